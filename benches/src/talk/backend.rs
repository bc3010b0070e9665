//! What the proxies forward to: one thread a protocol, answering every request at once with the same small response.

use super::{
    http1,
    wire::{Connection, Readiness, Session},
};
use crate::ports;
use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, TcpListener},
    thread,
};

const LISTENER: usize = usize::MAX;

/// Serves at `address` until the process ends, each connection with a session that `make` makes.
///
/// # Errors
/// The port cannot be had.
pub fn start<S: Session>(address: SocketAddr, make: impl Fn() -> S + Send + 'static) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    thread::Builder::new().name(format!("backend-{}", address.port())).spawn(move || serve(&listener, &make))?;
    Ok(())
}

/// How many hosts a cluster of many has: 127.0.0.1 and on.
pub const HOSTS: usize = 10;

/// Serves HTTP/1.1 at the others of them, as it is served at the first one anyway.
///
/// # Errors
/// A port cannot be had.
pub fn more_hosts() -> io::Result<()> {
    for n in 2..=HOSTS as u8 {
        let at = |address: SocketAddr| SocketAddr::from(([127, 0, 0, n], address.port()));
        start(at(ports::HTTP1_BACKEND), http1::Server::default)?;
        start(at(ports::OTHER_BACKEND), || http1::Server::named("other"))?;
    }
    Ok(())
}

fn serve<S: Session>(listener: &TcpListener, make: &dyn Fn() -> S) -> io::Result<()> {
    let mut readiness = Readiness::new()?;
    readiness.add(listener, LISTENER)?;
    let mut connections: HashMap<usize, Connection<S>> = HashMap::new();
    let mut ready = Vec::new();
    let mut next = 0;
    loop {
        ready.extend(readiness.wait(None)?);
        for token in ready.drain(..) {
            if token == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    let connection = Connection::new(stream, make())?;
                    readiness.add(&connection, next)?;
                    connections.insert(next, connection);
                    next += 1;
                }
            } else if let Some(connection) = connections.get_mut(&token)
                && connection.receive().and_then(|_| connection.flush()).is_err()
            {
                connections.remove(&token);
            }
        }
    }
}
