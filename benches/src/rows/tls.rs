//! TLS to clients only, with HTTP/1.1 and HTTP/2; and mTLS on both sides, on kept connections and on new ones.

use crate::{
    ports,
    row::{CPU, Closed, Group, How, Load, Rounds, Row, Security, Talk},
    talk::{http1::Exchange, http2::Shape},
};
use std::net::SocketAddr;

pub const DOWNSTREAM: Group = Group {
    name: "tls",
    files: &[
        ("weft", "tls.yaml"),
        ("envoy", "tls.yaml"),
        ("haproxy", "tls.cfg"),
        ("nginx", "tls.conf"),
        ("hyper", "--http1 28080=28090 --tls 28097=28090 --tls-http2 28098=28091"),
    ],
    workers: 1,
    rounds: Rounds::All,
    how: How::Alternating,
    rows: &[
        Row {
            name: "tls",
            title: "HTTP/1.1 in TLS, plain to the backend",
            load: Load::Closed(
                Closed::new(ports::TLS, Some(ports::TLS_BACKEND), Talk::Http1(Exchange::Small)).over(Security::Tls),
            ),
            figures: &[CPU],
        },
        Row {
            name: "tls-new",
            title: "the same, a new connection a request",
            load: Load::Closed(
                Closed::new(ports::TLS, Some(ports::TLS_BACKEND), Talk::Http1(Exchange::Small))
                    .over(Security::Tls)
                    .once(),
            ),
            figures: &[CPU],
        },
        Row {
            name: "tls-h2",
            title: "HTTP/2 in TLS, 100 streams, plain to the backend",
            load: Load::Closed(
                Closed::new(ports::TLS_HTTP2, Some(ports::TLS_HTTP2_BACKEND), Talk::Http2(Shape::Plain))
                    .over(Security::TlsHttp2)
                    .on(1, 100),
            ),
            figures: &[CPU],
        },
    ],
};

pub const FILES: &[(&str, &str)] = &[
    ("weft", "mtls.yaml"),
    ("envoy", "mtls.yaml"),
    ("haproxy", "mtls.cfg"),
    ("nginx", "mtls.conf"),
    ("hyper", "--http1 28080=28090 --mtls 28082=28092"),
];

/// HTTP/1.1 in mTLS.
const fn mtls(to: SocketAddr, direct: Option<SocketAddr>) -> Closed {
    Closed::new(to, direct, Talk::Http1(Exchange::Small)).over(Security::Tls)
}

pub const KEPT: Closed = mtls(ports::MTLS, Some(ports::MTLS_BACKEND));

pub const BOTH: Group = Group {
    name: "mtls",
    files: FILES,
    workers: 1,
    rounds: Rounds::All,
    how: How::Alternating,
    rows: &[
        Row {
            name: "mtls",
            title: "HTTP/1.1 in mTLS on both sides",
            load: Load::Closed(KEPT),
            figures: &[CPU.goal(0.33).floor(0.35)],
        },
        Row {
            name: "mtls-new",
            title: "the same, a new connection a request",
            load: Load::Closed(KEPT.once()),
            figures: &[CPU.goal(0.50).floor(0.70)],
        },
        Row {
            name: "mtls-new-both",
            title: "the same, a new connection to the backend too",
            load: Load::Closed(mtls(ports::MTLS_ONCE, None).once()),
            figures: &[CPU.floor(0.70)],
        },
        Row {
            name: "mtls-new-default",
            title: "a new connection, default groups",
            load: Load::Closed(mtls(ports::MTLS_DEFAULT_GROUPS, None).over(Security::Hybrid).once()),
            figures: &[CPU],
        },
    ],
};
