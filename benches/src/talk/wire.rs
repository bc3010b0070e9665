//! Sockets and readiness for both ends of a measurement, as cheap as they can be: one thread, one edge-triggered
//! epoll set, one read and one write for what is ready.
//!
//! Used by the backend and the load generator, so that neither is what limits a measurement.

use rustix::{
    event::{Timespec, epoll},
    io::Errno,
};
use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

const READ: usize = 64 * 1024;
const EVENTS: usize = 256;

/// One side of a protocol, without I/O.
pub trait Session {
    /// Takes what came and appends what is to be sent. Returns how much of `input` it used and how many exchanges
    /// ended by that.
    ///
    /// # Errors
    /// The peer did what a measurement cannot go on with.
    fn receive(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, usize), String>;
}

/// A connection with its session and buffers.
pub struct Connection<S> {
    stream: TcpStream,
    pub session: S,
    input: Vec<u8>,
    filled: usize,
    pub out: Vec<u8>,
    /// How much of `out` the socket has taken.
    sent: usize,
}

impl<S: Session> Connection<S> {
    /// # Errors
    /// Socket options that cannot be set.
    pub fn new(stream: TcpStream, session: S) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, session, input: vec![0; READ], filled: 0, out: Vec::new(), sent: 0 })
    }

    /// Reads all that is there and feeds it to the session. Returns how many exchanges ended.
    ///
    /// # Errors
    /// The session's, or the end of the connection.
    pub fn receive(&mut self) -> Result<usize, String> {
        let mut ended = 0;
        loop {
            let room = self.input.len() - self.filled;
            let n = match self.stream.read(&mut self.input[self.filled..]) {
                Ok(0) => return Err("the connection was closed".into()),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(ended),
                Err(e) => return Err(e.to_string()),
            };
            self.filled += n;
            let (used, count) = self.session.receive(&self.input[..self.filled], &mut self.out)?;
            ended += count;
            self.input.copy_within(used..self.filled, 0);
            self.filled -= used;
            if n < room {
                return Ok(ended);
            }
        }
    }

    /// Writes what waits, as far as the socket takes it.
    ///
    /// # Errors
    /// The connection's.
    pub fn flush(&mut self) -> Result<(), String> {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e.to_string()),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }
}

impl<S> AsFd for Connection<S> {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Which sockets are ready.
pub struct Readiness {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Readiness {
    /// # Errors
    /// No epoll.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, events: Vec::with_capacity(EVENTS) })
    }

    /// Watches `socket` for both directions, edge-triggered, under the name `token`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add(&self, socket: impl AsFd, token: usize) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, socket, epoll::EventData::new_u64(token as u64), flags)?)
    }

    /// Waits until something is ready or `timeout` has passed, and gives the names of what is.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<impl Iterator<Item = usize> + '_> {
        self.events.clear();
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(self.events.iter().map(|event| event.data.u64() as usize))
    }
}
