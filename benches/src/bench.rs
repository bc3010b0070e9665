//! Runs the rows: proxies alternate, each freshly started for a group's rows, and what is measured goes to the samples.
//!
//! A proxy that does not start, or a row that fails with it, is said and left out; the others go on.

use crate::{
    load::{self, Outcome, Plan, bulk, idle::Idle, spread},
    peers::{DIRECT, Folders, Peer, WEFT},
    ports,
    process::Process,
    row::{Closed, Group, How, Load, RATE, Rate, Rounds, Row, Security, Talk},
    rows,
    samples::Samples,
    strace,
    talk::{
        Client,
        certificates::Files,
        http1, http2,
        tls::{Ends, Secure},
        websocket,
    },
};
use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, thread, time::Duration};

/// How long a proxy is left alone before its memory is read.
const SETTLE: Duration = Duration::from_millis(500);
/// How often the few connections of a spread are made anew in a round.
const SPREADS: usize = 20;

/// How long things take, and how often they are done.
pub struct Lengths {
    pub rounds: usize,
    pub few: usize,
    pub warm: Duration,
    pub closed: Duration,
    pub open: Duration,
    /// Starts a round.
    pub starts: usize,
    /// Idle connections at most, and clusters and routes.
    pub most: usize,
}

impl Lengths {
    pub fn of(&self, rounds: Rounds) -> usize {
        match rounds {
            Rounds::All => self.rounds,
            Rounds::Few => self.few.min(self.rounds),
            Rounds::Once => 1,
        }
    }
}

pub struct Bench {
    pub lengths: Lengths,
    pub peers: Vec<Peer>,
    pub samples: Samples,
    pub folders: Folders,
    pub ends: Ends,
    pub files: Files,
    /// The control plane, which lies where Weft does.
    pub control: PathBuf,
    /// The rows that are asked for, by how their names begin; none: all.
    pub only: Vec<String>,
    /// What is worth a line under the table.
    pub notes: BTreeSet<String>,
    /// What failed: a proxy, and a row or a group.
    pub failed: BTreeSet<(&'static str, &'static str)>,
}

impl Bench {
    pub fn run(&mut self) -> Result<(), String> {
        for group in rows::GROUPS {
            if !group.rows.iter().any(|row| self.wants(row)) {
                continue;
            }
            match group.how {
                How::Alternating => self.alternate(group)?,
                How::ByItself(run) => run(self, group)?,
            }
        }
        Ok(())
    }

    pub fn wants(&self, row: &Row) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| row.name.starts_with(name.as_str()))
    }

    fn wanted(&self, group: &'static Group) -> Vec<&'static Row> {
        group.rows.iter().filter(|row| self.wants(row)).collect()
    }

    fn alternate(&mut self, group: &'static Group) -> Result<(), String> {
        let rounds = self.lengths.of(group.rounds);
        // The last one is none.
        let count = self.peers.len() + 1;
        for round in 0..rounds {
            println!("{}: round {} of {rounds}", group.name, round + 1);
            for which in (0..count).map(|i| (i + round) % count) {
                if which + 1 == count {
                    for row in self.wanted(group) {
                        if let Err(why) = self.direct(row) {
                            self.fail(DIRECT, row.name, &why);
                        }
                    }
                } else {
                    self.visit(which, group)?;
                }
            }
        }
        Ok(())
    }

    /// One round of a proxy.
    fn visit(&mut self, which: usize, group: &'static Group) -> Result<(), String> {
        let peer = &self.peers[which];
        let name = peer.name;
        let Some(command) = peer.command(group, &self.folders)? else { return Ok(()) };
        if self.failed.contains(&(name, group.name)) {
            return Ok(());
        }
        let start = group.rows.iter().find(|row| matches!(row.load, Load::Start) && self.wants(row));
        let process = match self.starts(name, start, &command) {
            Ok(process) => process,
            Err(why) => {
                self.fail(name, group.name, &why);
                return Ok(());
            }
        };
        for row in self.wanted(group) {
            if self.failed.contains(&(name, row.name)) || (name != WEFT && !row.load.is_served()) {
                continue;
            }
            if let Err(why) = self.measure(name, row, &process) {
                self.fail(name, row.name, &why);
            }
        }
        Ok(())
    }

    /// Starts it; where that is a row, some times: the middle one counts.
    fn starts(&mut self, name: &str, row: Option<&Row>, command: &[String]) -> Result<Process, String> {
        let mut process = self.start(name, command)?;
        let Some(row) = row else { return Ok(process) };
        let mut starts = vec![process.start];
        while starts.len() < self.lengths.starts {
            drop(process);
            process = self.start(name, command)?;
            starts.push(process.start);
        }
        starts.sort();
        self.add(name, row, "ms", starts[starts.len() / 2].as_secs_f64() * 1e3);
        Ok(process)
    }

    pub fn start(&self, name: &str, command: &[String]) -> Result<Process, String> {
        Process::start(command, ports::HTTP1, &self.folders.results.join(format!("{name}.log")))
    }

    pub fn fail(&mut self, peer: &'static str, what: &'static str, why: &str) {
        eprintln!("{peer}, {what}: left out: {why}");
        self.failed.insert((peer, what));
    }

    fn measure(&mut self, name: &str, row: &Row, process: &Process) -> Result<(), String> {
        let cpu = || process.cpu();
        match &row.load {
            Load::Memory => {
                thread::sleep(SETTLE);
                let memory = process.memory()?;
                const MIB: f64 = 1024.0 * 1024.0;
                self.add(name, row, "rss", memory.rss as f64 / MIB);
                self.add(name, row, "pss", memory.pss as f64 / MIB);
            }
            Load::Closed(closed) => {
                let outcome = self.closed(closed, closed.to, &cpu)?;
                self.add_outcome(name, row, closed, &outcome);
            }
            Load::Open(rate, closed) => self.open(name, row, *rate, closed, closed.to, &cpu)?,
            Load::Bulk => {
                let found = bulk::read(ports::TCP_BULK, self.lengths.warm, self.lengths.closed, &cpu)?;
                let gib = found.bytes / bulk::GIB;
                self.add(name, row, "cpu", found.cpu.as_secs_f64() * 1e3 / gib);
                self.add(name, row, RATE, gib / found.elapsed.as_secs_f64());
            }
            Load::Idle { to, tls } => self.idle(name, row, *to, *tls, process)?,
            Load::Spread { to, connections } => {
                let shares = (0..SPREADS).map(|_| spread::busiest(*to, *connections)).sum::<Result<f64, _>>()?;
                self.add(name, row, "busiest", shares / SPREADS as f64 * 100.0);
            }
            Load::Syscalls(closed) => {
                let traced = strace::Trace::new(process.id());
                let outcome = self.closed(closed, closed.to, &|| traced.turn())?;
                let counts = traced.counts()?;
                let requests = outcome.requests as f64;
                self.add(name, row, "calls", counts.values().sum::<u64>() as f64 / requests);
                let mut counts: Vec<_> = counts.iter().map(|(call, n)| (*n as f64 / requests, call)).collect();
                counts.sort_by(|a, b| b.0.total_cmp(&a.0));
                let calls = counts.iter().filter(|(n, _)| *n >= 0.005).map(|(n, call)| format!("{call} {n:.2}"));
                self.notes.insert(format!("{}, {name}: {}", row.title, calls.collect::<Vec<_>>().join(", ")));
            }
            Load::Start | Load::Own => {}
        }
        Ok(())
    }

    /// The same without a proxy: what the load generator and the backend can do.
    fn direct(&mut self, row: &Row) -> Result<(), String> {
        let none = || Duration::ZERO;
        match &row.load {
            Load::Closed(closed) => {
                let Some(to) = closed.direct else { return Ok(()) };
                let outcome = self.closed(closed, to, &none)?;
                self.add_outcome(DIRECT, row, closed, &outcome);
            }
            Load::Open(rate, closed) => {
                let Some(to) = closed.direct else { return Ok(()) };
                self.open(DIRECT, row, *rate, closed, to, &none)?;
            }
            Load::Bulk => {
                let found = bulk::read(ports::SOURCE, self.lengths.warm, self.lengths.closed, &none)?;
                self.add(DIRECT, row, RATE, found.bytes / bulk::GIB / found.elapsed.as_secs_f64());
            }
            _ => {}
        }
        Ok(())
    }

    pub fn add(&mut self, name: &str, row: &Row, key: &str, value: f64) {
        self.samples.add(name, format!("{}.{key}", row.name), value);
    }

    fn add_outcome(&mut self, name: &str, row: &Row, closed: &Closed, outcome: &Outcome) {
        let count = (outcome.requests * closed.per_exchange as u64) as f64;
        if name != DIRECT {
            self.add(name, row, "cpu", outcome.cpu.as_secs_f64() * 1e6 / count);
        }
        self.add(name, row, RATE, count / outcome.elapsed.as_secs_f64());
    }

    fn plan(&self, closed: &Closed, to: SocketAddr) -> Plan {
        let &Closed { connections, depth, once, .. } = closed;
        Plan { to, connections, depth, once, warm: self.lengths.warm, length: self.lengths.closed }
    }

    fn closed(&self, closed: &Closed, to: SocketAddr, cpu: &dyn Fn() -> Duration) -> Result<Outcome, String> {
        let plan = self.plan(closed, to);
        speak(&self.ends, closed, &Saturate { plan: &plan, cpu })
    }

    fn open(
        &mut self,
        name: &str,
        row: &Row,
        rate: Rate,
        closed: &Closed,
        to: SocketAddr,
        cpu: &dyn Fn() -> Duration,
    ) -> Result<(), String> {
        let Some(rate) = self.rate(rate) else { return Ok(()) };
        let plan = Plan { length: self.lengths.open, ..self.plan(closed, to) };
        let (outcome, latencies) = speak(&self.ends, closed, &Pace { plan: &plan, rate, cpu })?;
        let at = |part: f64| {
            let index = (latencies.len() as f64 * part) as usize;
            latencies.get(index.min(latencies.len().saturating_sub(1))).map_or(0.0, |l| l.as_secs_f64() * 1e6)
        };
        for (key, part) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
            self.add(name, row, key, at(part));
        }
        if name != DIRECT {
            self.add(name, row, "cpu", outcome.cpu.as_secs_f64() * 1e6 / outcome.requests as f64);
        }
        Ok(())
    }

    /// Requests a second; `None` where nobody's capacity was measured, or it comes to a rate that is measured anyway.
    pub fn rate(&self, rate: Rate) -> Option<f64> {
        const NEAR: f64 = 0.15;
        const ANYWAY: f64 = 5_000.0;
        let part = match rate {
            Rate::PerSecond(rate) => return Some(rate),
            Rate::OfSlowest(part) => part,
        };
        let rates = self.peers.iter().filter_map(|peer| self.samples.middle(peer.name, "http1-small.rate"));
        let rate = part * rates.map(|rate| rate.median).reduce(f64::min)?;
        ((rate / ANYWAY - 1.0).abs() > NEAR).then_some(rate)
    }

    fn idle(&mut self, name: &str, row: &Row, to: SocketAddr, tls: bool, process: &Process) -> Result<(), String> {
        const KIB: f64 = 1024.0;
        let tls = tls.then_some(&self.ends.client);
        let mut idle = Idle::default();
        // What the first ones bring with them for all is not theirs.
        idle.grow(16, to, tls)?;
        thread::sleep(SETTLE);
        let before = process.memory()?;
        let first = idle.len();
        let mut found = Vec::new();
        for count in rows::IDLE.into_iter().filter(|count| *count <= self.lengths.most) {
            idle.grow(first + count, to, tls)?;
            thread::sleep(2 * SETTLE);
            let now = process.memory()?;
            let each = |now: u64, before: u64| (now as f64 - before as f64) / KIB / count as f64;
            found.push((count, each(now.rss, before.rss), each(now.pss, before.pss)));
        }
        for (count, rss, pss) in found {
            self.add(name, row, &format!("rss-{count}"), rss);
            self.add(name, row, &format!("pss-{count}"), pss);
        }
        Ok(())
    }
}

/// Something to do with whatever client a load speaks.
trait Drive {
    type Output;
    fn drive<C: Client>(&self, open: load::Open<'_, C>) -> Result<Self::Output, String>;
}

struct Saturate<'a> {
    plan: &'a Plan,
    cpu: &'a dyn Fn() -> Duration,
}

impl Drive for Saturate<'_> {
    type Output = Outcome;

    fn drive<C: Client>(&self, open: load::Open<'_, C>) -> Result<Outcome, String> {
        load::closed::closed(self.plan, open, self.cpu)
    }
}

struct Pace<'a> {
    plan: &'a Plan,
    rate: f64,
    cpu: &'a dyn Fn() -> Duration,
}

impl Drive for Pace<'_> {
    type Output = (Outcome, Vec<Duration>);

    fn drive<C: Client>(&self, open: load::Open<'_, C>) -> Result<Self::Output, String> {
        load::open::open(self.plan, self.rate, open, self.cpu)
    }
}

fn speak<D: Drive>(ends: &Ends, closed: &Closed, drive: &D) -> Result<D::Output, String> {
    match closed.talk {
        Talk::Http1(exchange) => secured(ends, closed, drive, &|_| http1::Client::new(exchange)),
        Talk::Http2(shape) => secured(ends, closed, drive, &|out| http2::Client::new(shape, out)),
        Talk::WebSocket => secured(ends, closed, drive, &|_| websocket::Client::default()),
    }
}

fn secured<C: Client, D: Drive>(
    ends: &Ends,
    closed: &Closed,
    drive: &D,
    open: load::Open<'_, C>,
) -> Result<D::Output, String> {
    let config = match closed.security {
        Security::Plain => return drive.drive(open),
        Security::Tls => &ends.client,
        Security::Hybrid => &ends.hybrid_client,
        Security::TlsHttp2 => &ends.http2_client,
    };
    drive.drive(&|_| Secure::client(config, open))
}

/// Loads what listens of a proxy that was started by hand, so long each row of those that are asked for, and says how much it was.
pub fn by_hand(bench: &mut Bench, length: Duration) {
    bench.lengths.closed = length;
    bench.lengths.warm = Duration::ZERO;
    for row in rows::GROUPS.iter().flat_map(|group| group.rows).filter(|row| bench.wants(row)) {
        if let Load::Closed(closed) = &row.load
            && row.load.is_served()
        {
            match bench.closed(closed, closed.to, &|| Duration::ZERO) {
                Ok(outcome) => {
                    println!("{}: {} requests in {:.2} s", row.name, outcome.requests, outcome.elapsed.as_secs_f64());
                }
                Err(why) => println!("{}: {why}", row.name),
            }
        }
    }
}
