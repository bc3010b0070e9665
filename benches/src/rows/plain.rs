//! HTTP without TLS, the plain route: start, idle memory, HTTP/1.1 and HTTP/2 in all shapes, gRPC, WebSocket; and latency at a fixed rate.

use crate::{
    ports,
    row::{CPU, Closed, Figure, Group, How, Load, MS, P50, P99, P999, PSS, RSS, Rate, Rounds, Row, Talk},
    talk::{
        http1::{Exchange, KIB_64, MIB},
        http2::{MESSAGES, Shape},
    },
};

pub const FILES: &[(&str, &str)] = &[
    ("weft", "plain.yaml"),
    ("envoy", "plain.yaml"),
    ("haproxy", "plain.cfg"),
    ("nginx", "plain.conf"),
    ("hyper", "--http1 28080=28090 --http2 28081=28091 --http2 28094=28104 --http2 28095=28105"),
];

/// HTTP/1.1 on 64 kept connections.
const fn http1(exchange: Exchange) -> Closed {
    Closed::new(ports::HTTP1, Some(ports::HTTP1_BACKEND), Talk::Http1(exchange))
}

pub const SMALL: Closed = http1(Exchange::Small);

/// 100 streams at a time on one connection.
pub const H2C: Closed = Closed::new(ports::HTTP2, Some(ports::HTTP2_BACKEND), Talk::Http2(Shape::Plain)).on(1, 100);

pub const WORK: Group = Group {
    name: "plain",
    files: FILES,
    workers: 1,
    rounds: Rounds::All,
    how: How::Alternating,
    rows: &[
        Row {
            name: "start",
            title: "exec to first response",
            load: Load::Start,
            figures: &[MS.goal(0.10).floor(0.20)],
        },
        Row { name: "memory", title: "idle memory", load: Load::Memory, figures: &[RSS.goal(0.12).floor(0.25), PSS] },
        Row {
            name: "http1-small",
            title: "HTTP/1.1, small",
            load: Load::Closed(SMALL),
            figures: &[CPU.goal(0.33).floor(0.40)],
        },
        Row {
            name: "http1-64k",
            title: "HTTP/1.1, 64 KiB responses",
            load: Load::Closed(http1(Exchange::Download(KIB_64))),
            figures: &[CPU.goal(0.40)],
        },
        Row {
            name: "http1-1m",
            title: "HTTP/1.1, 1 MiB responses",
            load: Load::Closed(http1(Exchange::Download(MIB)).on(16, 1)),
            figures: &[CPU.goal(0.40).floor(0.60)],
        },
        Row {
            name: "http1-64k-up",
            title: "HTTP/1.1, 64 KiB requests",
            load: Load::Closed(http1(Exchange::Upload(KIB_64))),
            figures: &[CPU],
        },
        Row {
            name: "http1-1m-up",
            title: "HTTP/1.1, 1 MiB requests",
            load: Load::Closed(http1(Exchange::Upload(MIB)).on(16, 1)),
            figures: &[CPU],
        },
        Row {
            name: "http1-new",
            title: "HTTP/1.1, a new connection a request",
            load: Load::Closed(SMALL.once()),
            figures: &[CPU],
        },
        Row {
            name: "websocket",
            title: "WebSocket, 32 bytes to and fro",
            load: Load::Closed(Closed::new(ports::WEBSOCKET, Some(ports::WEBSOCKET_BACKEND), Talk::WebSocket)),
            figures: &[CPU.unit("CPU us/message")],
        },
        Row {
            name: "h2c",
            title: "HTTP/2, 100 streams",
            load: Load::Closed(H2C),
            figures: &[CPU.goal(0.22).floor(0.40)],
        },
        Row {
            name: "grpc-unary",
            title: "gRPC, unary, 100 streams",
            load: Load::Closed(
                Closed::new(ports::UNARY, Some(ports::UNARY_BACKEND), Talk::Http2(Shape::Unary)).on(1, 100),
            ),
            figures: &[CPU.unit("CPU us/call")],
        },
        Row {
            name: "grpc-streaming",
            title: "gRPC, 100 messages down a stream, 16 streams",
            load: Load::Closed(Closed {
                per_exchange: MESSAGES,
                ..Closed::new(ports::STREAMING, Some(ports::STREAMING_BACKEND), Talk::Http2(Shape::Streaming)).on(1, 16)
            }),
            figures: &[CPU.unit("CPU us/message")],
        },
    ],
};

pub const LATENCY: Group = Group {
    name: "latency",
    files: FILES,
    workers: 1,
    rounds: Rounds::All,
    how: How::Alternating,
    rows: &[
        Row {
            name: "latency-5000",
            title: "HTTP/1.1 at 5,000 requests/s",
            load: Load::Open(Rate::PerSecond(5_000.0), SMALL),
            figures: &[P50.goal(0.35).floor(0.60), P99.goal(0.25).floor(1.00), P999, CPU.goal(0.36).floor(0.50)],
        },
        Row {
            name: "latency-40",
            title: "HTTP/1.1 at 40 % of the slowest's capacity",
            load: Load::Open(Rate::OfSlowest(0.4), SMALL),
            figures: OPEN,
        },
    ],
};

const OPEN: &[Figure] = &[P50, P99, P999, CPU];
