//! Two workers: what a request costs then, and how evenly a few long-lived connections are spread over them.

use crate::{
    ports,
    row::{CPU, Closed, Group, How, Load, PERCENT, Rounds, Row},
    rows::{plain, tls},
};

// nginx has processes for workers.
const PLAIN_FILES: &[(&str, &str)] = plain::FILES.split_at(3).0;
const MTLS_FILES: &[(&str, &str)] = tls::FILES.split_at(3).0;

/// Eight long-lived connections of HTTP/2.
const FEW: Closed = plain::H2C.on(8, 16);

pub const PLAIN: Group = Group {
    name: "workers",
    files: PLAIN_FILES,
    workers: 2,
    rounds: Rounds::All,
    how: How::Alternating,
    rows: &[
        Row {
            name: "workers-http1",
            title: "two workers: HTTP/1.1, small",
            load: Load::Closed(Closed { direct: None, ..plain::SMALL }),
            figures: &[CPU],
        },
        Row {
            name: "workers-h2c",
            title: "two workers: HTTP/2, 8 connections with 16 streams",
            load: Load::Closed(Closed { direct: None, ..FEW }),
            figures: &[CPU],
        },
    ],
};

pub const MTLS: Group = Group {
    name: "workers-mtls",
    files: MTLS_FILES,
    workers: 2,
    rounds: Rounds::All,
    how: How::Alternating,
    rows: &[Row {
        name: "workers-mtls",
        title: "two workers: HTTP/1.1 in mTLS on both sides",
        load: Load::Closed(Closed { to: ports::MTLS, direct: None, ..tls::KEPT }),
        figures: &[CPU],
    }],
};

/// Eight connections, as a sidecar with few peers has them.
const EIGHT: Load = Load::Spread { to: ports::HTTP2, connections: 8 };

pub const SPREAD: Group = Group {
    name: "workers-spread",
    files: &[("weft", "spread.yaml"), ("envoy", "spread.yaml")],
    workers: 2,
    rounds: Rounds::All,
    how: How::Alternating,
    rows: &[Row {
        name: "workers-spread",
        title: "two workers: 8 connections, by SO_REUSEPORT",
        load: EIGHT,
        figures: &[PERCENT],
    }],
};

pub const BALANCED: Group = Group {
    name: "workers-exact",
    files: &[("weft", "balanced.yaml"), ("envoy", "balanced.yaml")],
    workers: 2,
    rounds: Rounds::All,
    how: How::Alternating,
    rows: &[Row {
        name: "workers-exact",
        title: "two workers: 8 connections, exact balance",
        load: EIGHT,
        figures: &[PERCENT],
    }],
};
