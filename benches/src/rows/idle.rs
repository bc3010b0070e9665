//! Idle connections that were kept after a request: what each costs in memory, of 1,000 and of 10,000.

use crate::{
    ports,
    row::{Figure, Group, How, KIB, Load, Rounds, Row},
    rows::{plain, tls},
};

/// How many there are; the figures' keys say the same. A quick run has the first only.
pub const COUNTS: [usize; 2] = [1_000, 10_000];

const RSS_1000: Figure = KIB.key("rss-1000").unit("of 1,000: RSS KiB each");
const PSS_1000: Figure = KIB.key("pss-1000").unit("of 1,000: PSS KiB each");
const RSS_10000: Figure = KIB.key("rss-10000").unit("of 10,000: RSS KiB each");
const PSS_10000: Figure = KIB.key("pss-10000").unit("of 10,000: PSS KiB each");

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
        figures: &[RSS_1000.goal(0.25).floor(1.00), PSS_1000, RSS_10000.goal(0.25).floor(0.80), PSS_10000],
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
        figures: &[RSS_1000, PSS_1000, RSS_10000.floor(1.00), PSS_10000],
    }],
};
