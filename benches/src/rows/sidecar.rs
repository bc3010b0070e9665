//! A sidecar's full configuration, Weft and Envoy with the same: `configs/sidecar.yaml`. What a sidecar does besides is added to that
//! file's filters once; these rows stay.

use crate::{
    ports,
    row::{CPU, Closed, Group, How, Load, P50, P99, P999, PSS, RSS, Rate, Rounds, Row},
    rows::{plain, tls},
};

const FILES: &[(&str, &str)] = &[("weft", "sidecar.yaml"), ("envoy", "sidecar.yaml")];

/// Without a proxy it is the plain rows' number.
const fn only(load: Closed) -> Closed {
    Closed { direct: None, ..load }
}

pub const PLAIN: Group = Group {
    name: "sidecar",
    files: FILES,
    workers: 1,
    rounds: Rounds::All,
    how: How::Alternating,
    rows: &[
        Row {
            name: "sidecar-memory",
            title: "full sidecar: idle memory",
            load: Load::Memory,
            figures: &[RSS.goal(0.15).floor(0.25), PSS],
        },
        Row {
            name: "sidecar-http1",
            title: "full sidecar: HTTP/1.1, small",
            load: Load::Closed(only(plain::SMALL)),
            figures: &[CPU.goal(0.40)],
        },
        Row {
            name: "sidecar-h2c",
            title: "full sidecar: HTTP/2, 100 streams",
            load: Load::Closed(only(plain::H2C)),
            figures: &[CPU.goal(0.33)],
        },
        Row {
            name: "sidecar-mtls",
            title: "full sidecar: HTTP/1.1 in mTLS on both sides",
            load: Load::Closed(Closed { to: ports::MTLS, ..only(tls::KEPT) }),
            figures: &[CPU.goal(0.38)],
        },
    ],
};

pub const LATENCY: Group = Group {
    name: "sidecar-latency",
    files: FILES,
    workers: 1,
    rounds: Rounds::All,
    how: How::Alternating,
    rows: &[Row {
        name: "sidecar-latency-5000",
        title: "full sidecar: HTTP/1.1 at 5,000 requests/s",
        load: Load::Open(Rate::PerSecond(5_000.0), only(plain::SMALL)),
        figures: &[P50.goal(0.45), P99.goal(0.40).floor(1.00), P999, CPU.goal(0.45)],
    }],
};
