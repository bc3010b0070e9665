//! Where clients connect to: a TCP port or a unix socket, and connections that have to say HTTP/2 soon.
//!
//! Called by [`serve`](super::serve). Invariants: that connections cannot be accepted right now never ends the server
//! nor keeps it busy, and whoever connects and says nothing is let go.

use futures_util::{Stream, stream};
use std::{
    future::Future as _,
    io,
    os::unix::fs::FileTypeExt as _,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::{Sleep, sleep},
};
use tonic::transport::server::Connected;

/// Where clients connect to.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// From connecting to the end of the connection preface.
const GREETING: Duration = Duration::from_secs(10);
/// The preface and an empty SETTINGS frame: what every client starts with.
const PREFACE: usize = 24 + 9;
/// How long to wait when no more connections can be had, for example for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

impl Listener {
    /// Listens at `host:port` or `unix:PATH`. A socket file that nobody listens at any more is replaced.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn bind(address: &str) -> io::Result<Self> {
        let Some(path) = address.strip_prefix("unix:") else {
            return TcpListener::bind(address).await.map(Self::Tcp);
        };
        let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
        let refused = |e: io::Error| e.kind() == io::ErrorKind::ConnectionRefused;
        if is_socket && std::os::unix::net::UnixStream::connect(path).is_err_and(refused) {
            std::fs::remove_file(path)?;
        }
        UnixListener::bind(path).map(Self::Unix)
    }

    /// The address, with the port that was chosen for port 0.
    pub fn address(&self) -> String {
        match self {
            Self::Tcp(tcp) => tcp.local_addr().map(|a| a.to_string()).unwrap_or_default(),
            Self::Unix(unix) => {
                let address = unix.local_addr().ok();
                let path = address.as_ref().and_then(|a| a.as_pathname());
                path.map(|path| format!("unix:{}", path.display())).unwrap_or_default()
            }
        }
    }
}

/// The connections to a port.
pub(super) fn tcp(listener: TcpListener) -> impl Stream<Item = io::Result<Greeting<TcpStream>>> {
    stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok((connection, _)) => {
                    // Without it answers are late, no more.
                    let _ = connection.set_nodelay(true);
                    return Some((Ok(Greeting::new(connection)), listener));
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    })
}

/// The connections to a socket file.
pub(super) fn unix(listener: UnixListener) -> impl Stream<Item = io::Result<Greeting<UnixStream>>> {
    stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok((connection, _)) => return Some((Ok(Greeting::new(connection)), listener)),
                Err(_) => sleep(PAUSE).await,
            }
        }
    })
}

/// A connection whose first bytes have to come in time; the HTTP/2 server looks after it from then on.
#[derive(Debug)]
pub(super) struct Greeting<C> {
    connection: C,
    /// Bytes that are awaited, and until when.
    awaited: Option<(usize, Pin<Box<Sleep>>)>,
}

impl<C> Greeting<C> {
    fn new(connection: C) -> Self {
        Self { connection, awaited: Some((PREFACE, Box::pin(sleep(GREETING)))) }
    }
}

impl<C: Connected> Connected for Greeting<C> {
    type ConnectInfo = C::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.connection.connect_info()
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Greeting<C> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.connection).poll_read(cx, buffer);
        if let Some((left, deadline)) = &mut self.awaited {
            *left = left.saturating_sub(buffer.filled().len() - before);
            if *left == 0 {
                self.awaited = None;
            } else if deadline.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Greeting<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime")
    }

    #[test]
    fn whoever_says_too_little_is_let_go() {
        runtime().block_on(async {
            for (bytes, is_let_go) in [(0, true), (PREFACE - 1, true), (PREFACE, false)] {
                let (mut near, far) = tokio::io::duplex(1024);
                tokio::io::AsyncWriteExt::write_all(&mut near, &vec![b'P'; bytes]).await.expect("it has room");
                let mut greeting = Greeting::new(far);
                let mut read = Vec::new();
                let whole = tokio::time::timeout(2 * GREETING, greeting.read_to_end(&mut read)).await;
                assert_eq!(whole.is_ok_and(|read| read.is_err()), is_let_go, "{bytes} bytes");
            }
        });
    }

    #[test]
    fn only_a_socket_file_that_nobody_listens_at_is_replaced() {
        let path = std::env::temp_dir().join(format!("weft-listen-{}", std::process::id()));
        let address = format!("unix:{}", path.display());
        runtime().block_on(async {
            std::fs::write(&path, "precious").expect("a file");
            assert!(Listener::bind(&address).await.is_err());
            assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "precious");
            std::fs::remove_file(&path).expect("it is there");
            let first = Listener::bind(&address).await.expect("a socket");
            assert_eq!(first.address(), address);
            assert!(Listener::bind(&address).await.is_err(), "it is in use");
            drop(first);
            Listener::bind(&address).await.expect("a socket that was left behind");
        });
        std::fs::remove_file(path).expect("it is there");
    }
}
