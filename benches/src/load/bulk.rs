//! Many bytes one way over one TCP connection, from a source without end.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

pub const GIB: f64 = (1u64 << 30) as f64;

/// Serves bytes without end at `address`, each connection from a thread of its own.
///
/// # Errors
/// The port cannot be had.
pub fn start_source(address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    thread::Builder::new().name(format!("source-{}", address.port())).spawn(move || {
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
pub struct Bulk {
    pub bytes: f64,
    pub elapsed: Duration,
    pub cpu: Duration,
}

/// Reads as fast as it comes. `cpu` reads the CPU time of the process between.
///
/// # Errors
/// The connection's.
pub fn read(to: SocketAddr, warm: Duration, length: Duration, cpu: &dyn Fn() -> Duration) -> Result<Bulk, String> {
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
