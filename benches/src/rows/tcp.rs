//! TCP through a proxy that knows nothing of what is said: many bytes one way, small messages to and fro, and connections that are
//! made for one exchange. The small messages are those of HTTP/1.1.

use crate::{
    ports,
    row::{CPU, Closed, Group, How, Load, Rounds, Row, Talk},
    talk::http1::Exchange,
};

const SMALL: Closed = Closed::new(ports::TCP_SMALL, Some(ports::HTTP1_BACKEND), Talk::Http1(Exchange::Small));

const FILES: &[(&str, &str)] = &[("weft", "tcp.yaml"), ("envoy", "tcp.yaml"), ("haproxy", "tcp.cfg")];

pub const TCP: Group = Group {
    name: "tcp",
    files: FILES,
    workers: 1,
    rounds: Rounds::All,
    how: How::Alternating,
    rows: &[
        Row {
            name: "tcp-bulk",
            title: "TCP, many bytes one way",
            load: Load::Bulk,
            figures: &[CPU.unit("CPU ms/GiB").goal(0.45).floor(0.60)],
        },
        Row {
            name: "tcp-small",
            title: "TCP, small messages, 64 connections",
            load: Load::Closed(SMALL),
            figures: &[CPU.unit("CPU us/exchange").goal(0.60).floor(0.80)],
        },
        Row {
            name: "tcp-churn",
            title: "TCP, a connection for one exchange",
            load: Load::Closed(SMALL.once()),
            figures: &[CPU.unit("CPU us/connection").goal(0.55).floor(0.80)],
        },
    ],
};
