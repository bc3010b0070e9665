//! How connections are spread over a proxy's workers, as its listener's stats say.

use crate::ports;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(2);

/// Opens `count` connections at once, and gives the part of them that the worker with the most has. The proxy has none of them again when
/// this returns.
///
/// # Errors
/// It does not accept them, or its stats do not say so.
pub fn busiest(to: SocketAddr, count: u64) -> Result<f64, String> {
    let connections = (0..count).map(|_| TcpStream::connect(to)).collect::<Result<Vec<_>, _>>();
    let connections = connections.map_err(|e| format!("{to}: {e}"))?;
    let found = until(to, count)?;
    drop(connections);
    until(to, 0)?;
    Ok(found as f64 / count as f64)
}

/// Waits until there are `count`, and gives the most that one worker has of them.
fn until(to: SocketAddr, count: u64) -> Result<u64, String> {
    let begin = Instant::now();
    loop {
        let workers = workers(to).map_err(|e| format!("stats: {e}"))?;
        if workers.iter().sum::<u64>() == count && workers.len() > 1 {
            return Ok(workers.into_iter().max().unwrap_or(0));
        }
        if begin.elapsed() > PATIENCE {
            return Err(format!("{count} connections, but the workers have {workers:?}"));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn workers(to: SocketAddr) -> std::io::Result<Vec<u64>> {
    let mut stream = TcpStream::connect(ports::ADMIN)?;
    stream.write_all(b"GET /stats?filter=worker_ HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let prefix = format!("listener.{}_{}.worker_", to.ip(), to.port());
    let values = text.lines().filter(|line| line.starts_with(&prefix) && line.contains(".downstream_cx_active: "));
    Ok(values.filter_map(|line| line.rsplit_once(": ")?.1.trim().parse().ok()).collect())
}
