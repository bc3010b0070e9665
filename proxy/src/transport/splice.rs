//! Moves bytes from one socket to another inside of the kernel: splice(2) through a pipe.
//!
//! Used by the TCP proxy and by bodies of HTTP/1 once many bytes flow: of few, the pipe costs more than copying does
//! (measured). Pipes are a thread's and are used again; invariant: a pipe is handed back empty or not at all, so that no byte
//! ever reaches another connection.

use rustix::{
    fd::{AsFd, OwnedFd},
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice},
};
use std::{cell::RefCell, io};
use tokio::{io::Interest, net::TcpStream};

/// What a pipe should hold (measured; the kernel may grant less).
const CAPACITY: usize = 1 << 20;
/// A pipe that holds less is no gain over copying.
const LEAST: usize = 128 << 10;
/// Empty pipes that a thread keeps.
const SPARE: usize = 16;

/// A pipe with bytes on their way.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
    held: usize,
}

thread_local! {
    static PIPES: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

impl Pipe {
    /// An empty pipe; `None` where the system has none that is large enough.
    pub fn take() -> Option<Self> {
        if let Some(pipe) = PIPES.with_borrow_mut(Vec::pop) {
            return Some(pipe);
        }
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).ok()?;
        // Refused where the user has many pipes already: then it holds what it holds.
        let _ = fcntl_setpipe_size(&write, CAPACITY);
        let capacity = fcntl_getpipe_size(&write).ok()?;
        (capacity >= LEAST).then_some(Self { read, write, capacity, held: 0 })
    }

    /// Keeps an empty pipe for the next who needs one; closes any other.
    pub fn give_back(self) {
        if self.held == 0 {
            PIPES.with_borrow_mut(|pipes| {
                if pipes.len() < SPARE {
                    pipes.push(self);
                }
            });
        }
    }

    /// Bytes that were read and not yet written.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes up to `most` bytes that the socket has. Only while the pipe is empty. 0: there seem to be none, and a read must
    /// decide: splice(2) does not get past urgent data, and finds nothing there or even the end.
    ///
    /// # Errors
    /// `WouldBlock` if the socket is known to have none; `InvalidInput` if it is of a kind that cannot be spliced; its own.
    pub fn fill(&mut self, from: &TcpStream, most: usize) -> io::Result<usize> {
        let length = most.min(self.capacity);
        let n = from.try_io(Interest::READABLE, || match splice_now(from, &self.write, length) {
            // Not taken for the socket's word: it stays readable until a read has found nothing.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
            result => result,
        })?;
        self.held += n;
        Ok(n)
    }

    /// Gives the socket what it takes.
    ///
    /// # Errors
    /// `WouldBlock` if it takes none; its own.
    pub fn drain(&mut self, to: &TcpStream) -> io::Result<usize> {
        let n = to.try_io(Interest::WRITABLE, || splice_now(&self.read, to, self.held))?;
        self.held -= n;
        Ok(n)
    }
}

fn splice_now(from: impl AsFd, to: impl AsFd, length: usize) -> io::Result<usize> {
    loop {
        match splice(&from, None, &to, None, length, SpliceFlags::MOVE | SpliceFlags::NONBLOCK) {
            Err(Errno::INTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::SockRef;
    use std::io::{Read, Write};

    /// Two ends of a connection: one is written to and read from by hand.
    fn ends() -> (TcpStream, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let far = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (near, _) = listener.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        (TcpStream::from_std(near).unwrap(), far)
    }

    #[test]
    fn bytes_pass_and_pipes_are_used_again() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let ((from, mut writer), (to, mut reader)) = (ends(), ends());
            writer.write_all(b"hello").unwrap();
            from.readable().await.unwrap();
            let mut pipe = Pipe::take().expect("there are pipes");
            let number = std::os::fd::AsRawFd::as_raw_fd(&pipe.read);
            assert_eq!(pipe.fill(&from, 100).unwrap(), 5);
            assert_eq!(pipe.fill(&from, 100).unwrap(), 0);
            to.writable().await.unwrap();
            assert_eq!(pipe.drain(&to).unwrap(), 5);
            assert_eq!(pipe.held(), 0);
            pipe.give_back();
            let mut got = [0; 5];
            reader.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"hello");

            let mut again = Pipe::take().unwrap();
            assert_eq!(std::os::fd::AsRawFd::as_raw_fd(&again.read), number);
            writer.write_all(b"left").unwrap();
            from.readable().await.unwrap();
            assert_eq!(again.fill(&from, 100).unwrap(), 4);
            again.give_back();
            assert!(PIPES.with_borrow(Vec::is_empty), "what still holds bytes is closed");
            let mut third = Pipe::take().unwrap();
            // Urgent data is left out, and what is behind it is not.
            SockRef::from(&writer).send_out_of_band(b"!").unwrap();
            writer.write_all(b"behind").unwrap();
            drop(writer);
            from.readable().await.unwrap();
            let mut buffer = [0; 10];
            assert_eq!(third.fill(&from, 100).unwrap(), 0);
            assert_eq!(from.try_read(&mut buffer).unwrap(), 6);
            assert_eq!(&buffer[..6], b"behind");
            assert_eq!(third.fill(&from, 100).unwrap(), 0, "the end");
        });
    }
}
