//! The load generator: one thread, in a closed loop (as much as goes, on kept connections or on new ones) or an open one
//! (at a fixed rate).
//!
//! In the open loop a request's latency counts from when it was due, not from when a connection was free for it: what
//! waits behind a slow response is not left out.

use crate::{
    http1, http2,
    wire::{Connection, Readiness, Session},
};
use std::{
    collections::VecDeque,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// How long an open loop waits for what is still out when its time is over.
const PATIENCE: Duration = Duration::from_secs(2);

/// A client's side of a protocol.
pub trait Client: Session {
    /// Appends a request.
    fn begin(&mut self, out: &mut Vec<u8>);

    /// Appends what is said before the connection is closed.
    fn end(&mut self, _out: &mut Vec<u8>) {}
}

/// Makes a client's side of a connection, and appends what opens it.
pub type Open<'a, C> = &'a dyn Fn(&mut Vec<u8>) -> C;

impl Client for http1::Client {
    fn begin(&mut self, out: &mut Vec<u8>) {
        http1::Client::begin(self, out);
    }
}

impl Client for http2::Client {
    fn begin(&mut self, out: &mut Vec<u8>) {
        http2::Client::begin(self, out);
    }
}

/// How a measurement goes.
#[derive(Clone, Copy)]
pub struct Plan {
    pub to: SocketAddr,
    pub connections: usize,
    /// Requests at a time on one connection.
    pub depth: usize,
    /// One request a connection; `depth` is 1 then.
    pub once: bool,
    pub warm: Duration,
    pub length: Duration,
}

/// What was measured between the end of the warming and the end.
pub struct Outcome {
    pub requests: u64,
    pub elapsed: Duration,
    /// CPU time of the process under load.
    pub cpu: Duration,
}

struct Load<C> {
    readiness: Readiness,
    connections: Vec<Connection<C>>,
}

impl<C: Client> Load<C> {
    fn connect(plan: &Plan, open: Open<'_, C>) -> Result<Self, String> {
        let readiness = Readiness::new().map_err(|e| e.to_string())?;
        let connections = (0..plan.connections)
            .map(|token| Self::one(&readiness, token, plan, open))
            .collect::<Result<_, String>>()?;
        Ok(Self { readiness, connections })
    }

    fn one(readiness: &Readiness, token: usize, plan: &Plan, open: Open<'_, C>) -> Result<Connection<C>, String> {
        let stream = TcpStream::connect(plan.to).map_err(|e| format!("{}: {e}", plan.to))?;
        let mut out = Vec::new();
        let session = open(&mut out);
        let mut connection = Connection::new(stream, session).map_err(|e| e.to_string())?;
        connection.out = out;
        readiness.add(&connection, token).map_err(|e| e.to_string())?;
        Ok(connection)
    }

    /// Ends a connection and makes another in its place.
    fn renew(&mut self, token: usize, plan: &Plan, open: Open<'_, C>) -> Result<(), String> {
        let old = &mut self.connections[token];
        old.session.end(&mut old.out);
        old.flush()?;
        self.connections[token] = Self::one(&self.readiness, token, plan, open)?;
        Ok(())
    }

    fn begin(&mut self, token: usize, count: usize) -> Result<(), String> {
        let connection = &mut self.connections[token];
        for _ in 0..count {
            connection.session.begin(&mut connection.out);
        }
        connection.flush()
    }
}

/// Keeps `plan.depth` requests out on each connection, or one on each of ever new connections. `cpu` reads the CPU time of the process under load.
///
/// # Errors
/// A connection that failed, a response that was not a 200.
pub fn closed<C: Client>(plan: &Plan, open: Open<'_, C>, cpu: &dyn Fn() -> Duration) -> Result<Outcome, String> {
    let mut load = Load::connect(plan, open)?;
    for token in 0..plan.connections {
        load.begin(token, plan.depth)?;
    }
    let mut ready = Vec::new();
    let mut start = Instant::now();
    let mut spent = plan.warm.is_zero().then(cpu);
    let mut end = start + if spent.is_some() { plan.length } else { plan.warm };
    let mut requests = 0;
    loop {
        ready.extend(load.readiness.wait(Some(Duration::from_secs(1))).map_err(|e| e.to_string())?);
        for token in ready.drain(..) {
            let ended = load.connections[token].receive()?;
            requests += ended as u64;
            if plan.once && ended > 0 {
                load.renew(token, plan, open)?;
            }
            load.begin(token, ended)?;
        }
        let now = Instant::now();
        if now < end {
            continue;
        }
        if requests == 0 {
            return Err("no response".into());
        }
        match spent {
            // Warm: from here on it counts.
            None => (start, end, spent, requests) = (now, now + plan.length, Some(cpu()), 0),
            Some(spent) => return Ok(Outcome { requests, elapsed: now - start, cpu: cpu() - spent }),
        }
    }
}

/// Sends `rate` requests a second, evenly, whether or not the answers come. Gives the latencies too, sorted.
///
/// # Errors
/// A connection that failed, a response that was not a 200.
pub fn open<C: Client>(
    plan: &Plan,
    rate: f64,
    open: Open<'_, C>,
    cpu: &dyn Fn() -> Duration,
) -> Result<(Outcome, Vec<Duration>), String> {
    // The default slack of 50 us would be in every latency.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    let mut load = Load::connect(plan, open)?;
    let interval = Duration::from_secs_f64(1.0 / rate);
    let start = Instant::now();
    let (warm, end) = (start + plan.warm, start + plan.warm + plan.length);
    let mut next = start;
    let mut waiting = VecDeque::new();
    let mut free: VecDeque<usize> = (0..plan.connections).collect();
    let mut due = vec![start; plan.connections];
    let mut latencies = Vec::new();
    let mut requests = 0;
    let mut spent = None;
    let mut ready = Vec::new();
    loop {
        let now = Instant::now();
        if spent.is_none() && now >= warm {
            spent = Some(cpu());
        }
        while next <= now && next < end {
            waiting.push_back(next);
            next += interval;
        }
        while !waiting.is_empty()
            && let Some(token) = free.pop_front()
            && let Some(at) = waiting.pop_front()
        {
            due[token] = at;
            load.begin(token, 1)?;
        }
        let over = next >= end;
        if over && (free.len() == plan.connections || now >= end + PATIENCE) {
            break;
        }
        let timeout = if over { PATIENCE } else { next.saturating_duration_since(Instant::now()) };
        ready.extend(load.readiness.wait(Some(timeout)).map_err(|e| e.to_string())?);
        for token in ready.drain(..) {
            if load.connections[token].receive()? == 0 {
                continue;
            }
            if due[token] >= warm {
                requests += 1;
                latencies.push(due[token].elapsed());
            }
            free.push_back(token);
        }
    }
    let now = Instant::now();
    // What never came counts with the time it has waited so far.
    latencies.extend(waiting.iter().map(|at| now - *at));
    let out = (0..plan.connections).filter(|token| !free.contains(token));
    latencies.extend(out.map(|token| now - due[token]));
    latencies.sort_unstable();
    let cpu = cpu() - spent.unwrap_or_default();
    Ok((Outcome { requests, elapsed: now - warm, cpu }, latencies))
}
