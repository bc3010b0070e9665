//! `exact_balance`: an accepted connection goes to the worker that has the fewest of its listener.
//!
//! Each worker's share of a listener takes a seat among those of its sockets; who accepts a connection asks whose it is to be,
//! and hands it over where that is another. Listeners that do not ask for it never come here: the kernel balances then.
//! Invariant: a connection counts for one seat from when it was given to it until it is closed.

use crate::{base::Address, transport::Io};
use std::{
    io,
    net::TcpStream as StdTcp,
    os::unix::net::UnixStream as StdUnix,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::{
    net::{TcpStream, UnixStream},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};

/// The workers that accept for one listener.
#[derive(Debug, Default)]
pub struct Balancer(Mutex<Vec<Seat>>);

#[derive(Debug)]
struct Seat {
    worker: usize,
    connections: Arc<AtomicU64>,
    sender: UnboundedSender<Handed>,
}

/// An accepted connection on its way to another worker.
#[derive(Debug)]
pub struct Handed {
    socket: Socket,
    pub local: Address,
    pub remote: Address,
    pub place: Place,
}

#[derive(Debug)]
enum Socket {
    Tcp(StdTcp),
    Unix(StdUnix),
}

/// What a connection counts, until this is dropped.
#[derive(Debug)]
pub struct Place(Arc<AtomicU64>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Whose a connection is.
pub enum Given {
    /// Of the worker that accepted it.
    Own(Io, Place),
    /// It was handed over.
    Other,
}

impl Balancer {
    fn seats(&self) -> MutexGuard<'_, Vec<Seat>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a worker's seat; what is handed to it comes out here. It is given up by dropping that.
    pub fn join(self: &Arc<Self>, worker: usize) -> Joined {
        let (sender, receiver) = unbounded_channel();
        let connections = Arc::<AtomicU64>::default();
        self.seats().push(Seat { worker, connections: connections.clone(), sender });
        Joined { balancer: self.clone(), connections, receiver }
    }

    /// Gives a connection that `worker` accepted to whoever has the fewest; to itself where others have as few.
    ///
    /// # Errors
    /// The socket cannot be handed over, and is closed.
    pub fn give(&self, worker: usize, io: Io, local: &Address, remote: &Address) -> io::Result<Given> {
        let seats = self.seats();
        let load = |seat: &&Seat| (seat.connections.load(Relaxed), seat.worker != worker);
        let Some(fewest) = seats.iter().min_by_key(load) else {
            return Ok(Given::Own(io, Place(Arc::new(AtomicU64::new(1)))));
        };
        fewest.connections.fetch_add(1, Relaxed);
        let place = Place(fewest.connections.clone());
        if fewest.worker == worker {
            return Ok(Given::Own(io, place));
        }
        let sender = fewest.sender.clone();
        drop(seats);
        let socket = match io {
            Io::Tcp(stream) => Socket::Tcp(stream.into_std()?),
            Io::Unix(stream) => Socket::Unix(stream.into_std()?),
            // Nothing else is accepted.
            other => return Ok(Given::Own(other, place)),
        };
        match sender.send(Handed { socket, local: local.clone(), remote: remote.clone(), place }) {
            Ok(()) => Ok(Given::Other),
            // It stopped listening meanwhile.
            Err(back) => back.0.open().map(|(io, place)| Given::Own(io, place)),
        }
    }
}

impl Handed {
    /// The connection on this thread.
    ///
    /// # Errors
    /// It cannot be watched.
    pub fn open(self) -> io::Result<(Io, Place)> {
        let io = match self.socket {
            Socket::Tcp(stream) => Io::Tcp(TcpStream::from_std(stream)?),
            Socket::Unix(stream) => Io::Unix(UnixStream::from_std(stream)?),
        };
        Ok((io, self.place))
    }
}

/// A worker's seat.
pub struct Joined {
    balancer: Arc<Balancer>,
    connections: Arc<AtomicU64>,
    receiver: UnboundedReceiver<Handed>,
}

impl Joined {
    /// The next connection that is handed to this worker.
    pub async fn next(&mut self) -> Option<Handed> {
        self.receiver.recv().await
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.balancer.seats().retain(|seat| !Arc::ptr_eq(&seat.connections, &self.connections));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_fewest_get_the_next() {
        let balancer = Arc::<Balancer>::default();
        let mut seats: Vec<_> = (0..3).map(|worker| balancer.join(worker)).collect();
        let (near, _far) = UnixStream::pair().expect("sockets");
        let mut spare = vec![near.into_std().expect("a socket")];
        let mut socket = || {
            let socket = spare.pop().expect("one is kept");
            spare.push(socket.try_clone().expect("a descriptor"));
            Io::Unix(UnixStream::from_std(socket).expect("it can be watched"))
        };
        let address = Address::Unix("".into());
        let mut give = || balancer.give(1, socket(), &address, &address).expect("a socket");
        let mut own = Vec::new();
        for _ in 0..6 {
            if let Given::Own(_, place) = give() {
                own.push(place);
            }
        }
        assert_eq!(own.len(), 2);
        let counts = |balancer: &Balancer| -> Vec<u64> {
            balancer.seats().iter().map(|seat| seat.connections.load(Relaxed)).collect()
        };
        assert_eq!(counts(&balancer), [2, 2, 2]);
        let handed = seats[0].next().await.expect("it was handed over");
        assert!(handed.open().is_ok());
        assert_eq!(counts(&balancer), [1, 2, 2], "it was closed");
        assert!(matches!(give(), Given::Other));
        drop(seats.remove(0));
        own.clear();
        assert!(matches!(give(), Given::Own(..)));
        assert_eq!(counts(&balancer), [0, 2]);
    }
}
