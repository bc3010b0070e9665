//! One connection's byte stream, whatever carries it.
//!
//! Made by listeners (accept) and clusters (connect); read and written by codecs and the TCP proxy.

use super::{splice::Pipe, tls::Secured};
use bytes::Bytes;
use socket2::SockRef;
use std::{
    io::{self, IoSlice},
    net::Shutdown,
    os::fd::AsRawFd,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

/// Anything else that can carry a connection: an internal listener's pipe.
pub trait Carrier: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Carrier for T {}

/// A connection's byte stream. The common cases are named so that they cost no virtual call.
pub enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<Secured>),
    Boxed(Box<dyn Carrier>),
    /// Bytes that were read ahead come first.
    Prefixed(Bytes, Box<Io>),
    /// What passes is counted.
    Metered(Rc<dyn Meter>, Box<Io>),
}

/// Counts the bytes of a connection.
pub trait Meter {
    fn received(&self, bytes: usize);
    fn sent(&self, bytes: usize);
}

impl Io {
    /// The same connection with `prefix` in front of what is still to be read.
    pub fn with_prefix(self, prefix: Bytes) -> Self {
        if prefix.is_empty() { self } else { Self::Prefixed(prefix, Box::new(self)) }
    }

    /// The same connection with `meter` counting from here on.
    pub fn metered(self, meter: Rc<dyn Meter>) -> Self {
        Self::Metered(meter, Box::new(self))
    }

    /// The same in place.
    pub fn put_back(&mut self, prefix: Bytes) {
        if !prefix.is_empty() {
            let inner = std::mem::replace(self, Self::Boxed(Box::new(tokio::io::empty())));
            *self = inner.with_prefix(prefix);
        }
    }

    /// How many bytes the peer's TCP has acknowledged since the connection began (RFC 4898, `ThruOctetsAcked`; Linux counts
    /// the SYN too). `None` where the kernel does not say.
    pub fn bytes_acked(&self) -> Option<u64> {
        match self {
            Self::Tcp(s) => bytes_acked(s),
            Self::Prefixed(_, s) | Self::Metered(_, s) => s.bytes_acked(),
            Self::Unix(_) | Self::Tls(_) | Self::Boxed(_) => None,
        }
    }

    /// The socket, where what is read from it and written to it is what passes here.
    pub fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(s) => Some(s),
            Self::Prefixed(prefix, s) if prefix.is_empty() => s.socket(),
            Self::Metered(_, s) => s.socket(),
            Self::Prefixed(..) | Self::Unix(_) | Self::Tls(_) | Self::Boxed(_) => None,
        }
    }

    /// Counts what was read from the [`Io::socket`] itself.
    pub fn was_received(&self, bytes: usize) {
        match self {
            Self::Metered(meter, inner) => {
                meter.received(bytes);
                inner.was_received(bytes);
            }
            Self::Prefixed(_, inner) => inner.was_received(bytes),
            Self::Tcp(_) | Self::Unix(_) | Self::Tls(_) | Self::Boxed(_) => {}
        }
    }

    /// Counts what was written to the [`Io::socket`] itself.
    fn was_sent(&self, bytes: usize) {
        match self {
            Self::Metered(meter, inner) => {
                meter.sent(bytes);
                inner.was_sent(bytes);
            }
            Self::Prefixed(_, inner) => inner.was_sent(bytes),
            Self::Tcp(_) | Self::Unix(_) | Self::Tls(_) | Self::Boxed(_) => {}
        }
    }

    /// Writes what a pipe holds to the [`Io::socket`]; `InvalidInput` if there is none.
    pub fn poll_drain(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        let Some(socket) = self.socket() else { return Poll::Ready(Err(io::ErrorKind::InvalidInput.into())) };
        loop {
            ready!(socket.poll_write_ready(cx))?;
            match pipe.drain(socket) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
                Ok(n) => {
                    self.was_sent(n);
                    return Poll::Ready(Ok(n));
                }
            }
        }
    }

    /// Ready when a read would not wait; a hint, as readiness is everywhere.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(s) => s.poll_read_ready(cx),
            Self::Unix(s) => s.poll_read_ready(cx),
            Self::Tls(_) | Self::Boxed(_) | Self::Prefixed(..) => Poll::Ready(Ok(())),
            Self::Metered(_, s) => s.poll_read_ready(cx),
        }
    }
}

impl Io {
    /// Dropping the connection then resets it, rather than ending it in order.
    pub fn reset_on_drop(&self) {
        match self {
            // An option that cannot be set leaves an ordinary close.
            Self::Tcp(s) => drop(SockRef::from(s).set_linger(Some(Duration::ZERO))),
            Self::Prefixed(_, s) | Self::Metered(_, s) => s.reset_on_drop(),
            Self::Tls(s) => s.carrier().reset_on_drop(),
            Self::Unix(_) | Self::Boxed(_) => {}
        }
    }
}

impl Io {
    /// Ends the connection in both directions at once: who waits for bytes finds its end.
    pub fn break_off(&self) {
        // Where the peer is gone already there is nothing to end.
        match self {
            Self::Tcp(s) => drop(SockRef::from(s).shutdown(Shutdown::Both)),
            Self::Unix(s) => drop(SockRef::from(s).shutdown(Shutdown::Both)),
            Self::Prefixed(_, s) | Self::Metered(_, s) => s.break_off(),
            Self::Tls(s) => s.carrier().break_off(),
            Self::Boxed(_) => {}
        }
    }
}

fn bytes_acked(socket: &TcpStream) -> Option<u64> {
    /// Where Linux' `struct tcp_info` has `tcpi_bytes_acked`; libc's has it not yet.
    const AT: usize = 120;
    let mut info = [0u8; AT + 8];
    let mut len = info.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `info`, which has as many.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut len)
    };
    let acked = info.last_chunk().copied().map(u64::from_ne_bytes)?;
    (result == 0 && len as usize == info.len()).then_some(acked)
}

macro_rules! each {
    ($self:ident, $s:ident => $call:expr) => {
        match $self.get_mut() {
            Io::Tcp(s) => {
                let $s = Pin::new(s);
                $call
            }
            Io::Unix(s) => {
                let $s = Pin::new(s);
                $call
            }
            Io::Tls(s) => {
                let $s = Pin::new(&mut **s);
                $call
            }
            Io::Boxed(s) => {
                let $s = Pin::new(s);
                $call
            }
            Io::Prefixed(_, s) | Io::Metered(_, s) => {
                let $s = Pin::new(&mut **s);
                $call
            }
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Io::Prefixed(prefix, _) = &mut *self {
            if !prefix.is_empty() {
                let n = prefix.len().min(buf.remaining());
                buf.put_slice(&prefix.split_to(n));
                return Poll::Ready(Ok(()));
            }
            // The prefix is used up: from now on there is no difference.
            if let Io::Prefixed(_, inner) = std::mem::replace(
                &mut *self,
                Io::Prefixed(Bytes::new(), Box::new(Io::Boxed(Box::new(tokio::io::empty())))),
            ) {
                *self = *inner;
            }
        }
        if let Io::Metered(meter, inner) = &mut *self {
            let before = buf.filled().len();
            ready!(Pin::new(&mut **inner).poll_read(cx, buf))?;
            meter.received(buf.filled().len() - before);
            return Poll::Ready(Ok(()));
        }
        each!(self, s => s.poll_read(cx, buf))
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Io::Metered(meter, inner) = &mut *self {
            let written = ready!(Pin::new(&mut **inner).poll_write(cx, buf))?;
            meter.sent(written);
            return Poll::Ready(Ok(written));
        }
        each!(self, s => s.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Io::Metered(meter, inner) = &mut *self {
            let written = ready!(Pin::new(&mut **inner).poll_write_vectored(cx, bufs))?;
            meter.sent(written);
            return Poll::Ready(Ok(written));
        }
        each!(self, s => s.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::Unix(_) => true,
            Self::Tls(s) => s.is_write_vectored(),
            Self::Boxed(s) => s.is_write_vectored(),
            Self::Prefixed(_, s) | Self::Metered(_, s) => s.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, s => s.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, s => s.poll_shutdown(cx))
    }
}
