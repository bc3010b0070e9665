//! What a measurement is: a [`Row`] with its load and its figures, in a [`Group`] of those that one process of a proxy serves.
//!
//! The rows themselves are in `rows/`, by what they measure; `bench.rs` runs them and `report` shows them.

use crate::{
    bench::Bench,
    talk::{http1::Exchange, http2::Shape},
};
use std::net::{SocketAddr, TcpStream};

/// Rows for which the proxies run the same files.
pub struct Group {
    pub name: &'static str,
    /// What each proxy runs: a file of `configs/`, of the hyper proxy its arguments. Who is not here cannot do the work.
    pub files: &'static [(&'static str, &'static str)],
    /// Threads of each proxy.
    pub workers: usize,
    pub rounds: Rounds,
    pub how: How,
    /// In the order in which they are measured on one process.
    pub rows: &'static [Row],
}

/// How often a group is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rounds {
    All,
    /// What takes long and hardly varies.
    Few,
    /// A count, which does not vary.
    Once,
}

pub enum How {
    /// Each round starts each proxy anew, one after the other, and each round begins with another one.
    Alternating,
    ByItself(fn(&mut Bench, &'static Group) -> Result<(), String>),
}

pub struct Row {
    /// What `--only` calls it; its figures are `NAME.KEY` in the results.
    pub name: &'static str,
    /// What the table calls it.
    pub title: &'static str,
    pub load: Load,
    pub figures: &'static [Figure],
}

pub enum Load {
    /// From exec to the first response.
    Start,
    /// Of a process that has served one request.
    Memory,
    /// As much as goes.
    Closed(Closed),
    /// So many requests a second.
    Open(Rate, Closed),
    /// Bytes without end.
    Bulk,
    /// Connections that say nothing.
    Idle { to: SocketAddr, tls: bool },
    /// How evenly connections are spread over two workers.
    Spread { to: SocketAddr, connections: u64 },
    /// System calls while it works, counted by strace.
    Syscalls(Closed),
    /// The group's function knows.
    Own,
}

impl Load {
    /// Whether the proxy that runs now listens for it: who does not cannot do the work.
    pub fn is_served(&self) -> bool {
        match self {
            Self::Closed(closed) | Self::Open(_, closed) | Self::Syscalls(closed) => {
                TcpStream::connect(closed.to).is_ok()
            }
            Self::Idle { to, .. } | Self::Spread { to, .. } => TcpStream::connect(to).is_ok(),
            Self::Start | Self::Memory | Self::Bulk | Self::Own => true,
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
pub enum Rate {
    PerSecond(f64),
    /// A part of what the slowest proxy can do of `http1-small`.
    OfSlowest(f64),
}

/// A load of exchanges.
#[derive(Clone, Copy)]
pub struct Closed {
    pub to: SocketAddr,
    /// The same without a proxy, where there is such a thing.
    pub direct: Option<SocketAddr>,
    pub talk: Talk,
    pub security: Security,
    pub connections: usize,
    /// Exchanges at a time on a connection.
    pub depth: usize,
    /// A new connection for each exchange.
    pub once: bool,
    /// What is counted, in an exchange.
    pub per_exchange: usize,
}

#[derive(Clone, Copy)]
pub enum Talk {
    Http1(Exchange),
    Http2(Shape),
    WebSocket,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Security {
    Plain,
    /// TLS; mTLS, if the proxy asks for a certificate.
    Tls,
    /// The same with the post-quantum hybrid first.
    Hybrid,
    /// TLS with HTTP/2 in ALPN.
    TlsHttp2,
}

impl Closed {
    /// 64 kept connections, one exchange at a time on each.
    pub const fn new(to: SocketAddr, direct: Option<SocketAddr>, talk: Talk) -> Self {
        Self { to, direct, talk, security: Security::Plain, connections: 64, depth: 1, once: false, per_exchange: 1 }
    }

    pub const fn over(self, security: Security) -> Self {
        Self { security, ..self }
    }

    pub const fn on(self, connections: usize, depth: usize) -> Self {
        Self { connections, depth, ..self }
    }

    /// Ever new connections, 16 at a time.
    pub const fn once(self) -> Self {
        Self { connections: 16, once: true, ..self }
    }
}

/// One thing that is measured of a row, and a line of the table.
#[derive(Clone, Copy)]
pub struct Figure {
    pub key: &'static str,
    /// In the table.
    pub unit: &'static str,
    pub digits: usize,
    /// The most that Weft may be of Envoy: what it is to be.
    pub goal: Option<f64>,
    /// The most that `--check` lets pass; without one, the goal.
    pub floor: Option<f64>,
}

impl Figure {
    const fn new(key: &'static str, unit: &'static str, digits: usize) -> Self {
        Self { key, unit, digits, goal: None, floor: None }
    }

    pub const fn goal(self, most: f64) -> Self {
        Self { goal: Some(most), ..self }
    }

    /// Where the goal is not met yet, or there is none.
    pub const fn floor(self, most: f64) -> Self {
        Self { floor: Some(most), ..self }
    }

    pub const fn unit(self, unit: &'static str) -> Self {
        Self { unit, ..self }
    }

    pub const fn key(self, key: &'static str) -> Self {
        Self { key, ..self }
    }
}

/// Microseconds of the proxy's CPU time, user and system.
pub const CPU: Figure = Figure::new("cpu", "CPU us/request", 1);
pub const P50: Figure = Figure::new("p50", "p50 us", 0);
pub const P99: Figure = Figure::new("p99", "p99 us", 0);
pub const P999: Figure = Figure::new("p999", "p99.9 us", 0);
pub const RSS: Figure = Figure::new("rss", "RSS MiB", 1);
pub const PSS: Figure = Figure::new("pss", "PSS MiB", 1);
pub const KIB: Figure = Figure::new("rss", "RSS KiB/connection", 1);
pub const MS: Figure = Figure::new("ms", "ms", 1);
pub const PERCENT: Figure = Figure::new("busiest", "% of them on the busier worker", 0);
pub const CALLS: Figure = Figure::new("calls", "system calls/request", 2);

/// What is written down beside [`CPU`] and shown on its line: how many a second.
pub const RATE: &str = "rate";
