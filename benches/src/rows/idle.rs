//! Idle connections that were kept after a request: what each costs in memory, of 1,000 and of 10,000.

use crate::{
    ports,
    row::{Figure, Group, How, KIB, Load, Rounds, Row},
    rows::{plain, tls},
};

/// How many there are; the figures' keys say the same. A quick run has the first only.
pub const COUNTS: [usize; 2] = [1_000, 10_000];

const FIGURES: &[Figure] = &[
    KIB.key("rss-1000").unit("of 1,000: RSS KiB each"),
    KIB.key("pss-1000").unit("of 1,000: PSS KiB each"),
    KIB.key("rss-10000").unit("of 10,000: RSS KiB each").goal(0.25),
    KIB.key("pss-10000").unit("of 10,000: PSS KiB each"),
];

pub const PLAIN: Group = Group {
    name: "idle",
    files: plain::FILES,
    workers: 1,
    rounds: Rounds::Few,
    how: How::Alternating,
    rows: &[Row {
        name: "idle",
        title: "idle HTTP/1.1 connections",
        load: Load::Idle { to: ports::HTTP1, tls: false },
        figures: FIGURES,
    }],
};

pub const MTLS: Group = Group {
    name: "idle-mtls",
    files: tls::FILES,
    workers: 1,
    rounds: Rounds::Few,
    how: How::Alternating,
    rows: &[Row {
        name: "idle-mtls",
        title: "idle mTLS connections",
        load: Load::Idle { to: ports::MTLS, tls: true },
        figures: FIGURES,
    }],
};
