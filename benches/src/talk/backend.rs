//! What the proxies forward to: one thread a protocol, answering every request at once with the same small response.

use super::wire::{Connection, Readiness, Session};
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
