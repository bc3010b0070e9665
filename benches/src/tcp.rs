//! TCP through a proxy that knows nothing of what is said: many bytes one way, small messages to and fro, and connections that are
//! made for one exchange.
//!
//! Each proxy gets a process of its own for it. The small messages are those of HTTP/1.1, so that the load generator and the
//! backend are the same as elsewhere.

use crate::{
    Bench, CONNECTIONS, http1,
    load::{self, Plan},
    peer,
    report::DIRECT,
    samples::Measure,
};
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

/// Connections at a time of those that are made for one exchange.
const NEW: usize = 16;
const GIB: f64 = (1u64 << 30) as f64;

/// Serves bytes without end on `port` of localhost, each connection from a thread of its own.
///
/// # Errors
/// The port cannot be had.
pub fn start_source(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    thread::Builder::new().name(format!("source-{port}")).spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let bytes = vec![b'w'; 256 << 10];
                while stream.write_all(&bytes).is_ok() {}
            });
        }
    })?;
    Ok(())
}

/// What came, how long that took, and the CPU time of the process meanwhile.
struct Bulk {
    bytes: f64,
    elapsed: Duration,
    cpu: Duration,
}

fn bulk(to: SocketAddr, warm: Duration, length: Duration, cpu: &dyn Fn() -> Duration) -> Result<Bulk, String> {
    let text = |e: io::Error| format!("{to}: {e}");
    let mut stream = TcpStream::connect(to).map_err(text)?;
    let mut buffer = vec![0; 256 << 10];
    let mut read_for = |length: Duration| -> Result<(f64, Duration), String> {
        let (begin, mut bytes) = (Instant::now(), 0);
        while begin.elapsed() < length {
            match stream.read(&mut buffer).map_err(text)? {
                0 => return Err(format!("{to}: the connection was closed")),
                n => bytes += n,
            }
        }
        Ok((bytes as f64, begin.elapsed()))
    };
    read_for(warm)?;
    let spent = cpu();
    let (bytes, elapsed) = read_for(length)?;
    Ok(Bulk { bytes, elapsed, cpu: cpu() - spent })
}

impl Bench {
    /// One round of it.
    pub fn tcp(&mut self, round: usize) -> Result<(), String> {
        for which in self.order(round) {
            let Some(index) = which else {
                self.tcp_of(DIRECT, peer::HTTP1_BACKEND, peer::SOURCE, &|| Duration::ZERO)?;
                continue;
            };
            let peer = &self.peers[index];
            let Some(command) = &peer.tcp else { continue };
            let process = self.process(peer, command)?;
            let name = peer.name;
            self.tcp_of(name, peer::TCP_SMALL, peer::TCP_BULK, &|| process.cpu())
                .map_err(|e| format!("{name}: {e}"))?;
        }
        Ok(())
    }

    fn tcp_of(
        &mut self,
        name: &str,
        small: SocketAddr,
        many: SocketAddr,
        cpu: &dyn Fn() -> Duration,
    ) -> Result<(), String> {
        let found = bulk(many, self.lengths.warm, self.lengths.closed, cpu)?;
        if name != DIRECT {
            self.samples.add(name, Measure::CpuBulk, found.cpu.as_secs_f64() * 1e3 / (found.bytes / GIB));
        }
        self.samples.add(name, Measure::RateBulk, found.bytes / GIB / found.elapsed.as_secs_f64());
        let plan = self.plan(small, CONNECTIONS, 1);
        let outcome = load::closed(&plan, &|_| http1::Client, cpu)?;
        self.add(name, &outcome, Measure::CpuSmall, None);
        let plan = Plan { once: true, ..self.plan(small, NEW, 1) };
        let outcome = load::closed(&plan, &|_| http1::Client, cpu)?;
        self.add(name, &outcome, Measure::CpuChurn, None);
        Ok(())
    }
}
