//! Which HTTP version a downstream connection speaks (`codec_type: AUTO`), and its codec from there on. The connection
//! manager calls [`serve`].

use super::{
    StreamService,
    h1::{self, Closed},
    h2,
};
use crate::{
    base::{Drain, Timer},
    transport::Io,
};
use bytes::BytesMut;
use futures_util::FutureExt as _;
use std::{
    future::{Future, poll_fn},
    io,
    mem::MaybeUninit,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, ReadBuf};

/// What HTTP/2's client preface begins with, and no HTTP/1 request does.
const PREFACE: &[u8] = b"PRI * HTTP/2";

/// A codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Http1,
    Http2,
}

/// The codec of what TLS agreed on: whatever is not HTTP/2 is taken for HTTP/1, as Envoy does.
pub fn by_alpn(alpn: &[u8]) -> Codec {
    match alpn {
        b"h2" => Codec::Http2,
        _ => Codec::Http1,
    }
}

/// What happens to a downstream connection beside its streams; for the connection manager's stats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionEvent {
    /// The codec is known; the first event.
    Codec(Codec),
    /// No streams for the idle timeout.
    IdleTimeout,
    /// The connection's longest duration is over.
    MaxDuration,
    /// It served as many requests as it may.
    MaxRequests,
    /// The peer spoke no acceptable HTTP; the connection ends.
    ProtocolError,
    /// It ends by our doing, for another reason.
    ClosedByUs,
}

/// Both codecs' options, for one connection manager.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    pub h1: Rc<h1::ServerOptions>,
    pub h2: Rc<h2::ServerOptions>,
}

/// Serves one connection to its end with `codec`, or with the one that its first bytes tell.
pub fn serve<S: StreamService + 'static>(
    io: Io,
    codec: Option<Codec>,
    options: ServerOptions,
    service: S,
    drain: Drain,
    event: impl Fn(ConnectionEvent) + 'static,
) -> Serving {
    match codec {
        Some(codec) => Serving::Serving(serve_as(codec, io, options, service, drain, event)),
        None => Serving::Detecting(Box::pin(async move {
            let mut io = io;
            match first_bytes(&mut io, &options, &drain).await {
                Detected::Codec(codec) => return Some(serve_as(codec, io, options, service, drain, event)),
                Detected::Idle => event(ConnectionEvent::IdleTimeout),
                Detected::Gone => {}
            }
            None
        })),
    }
}

type Served = Pin<Box<dyn Future<Output = ()>>>;

/// A connection that is served. Once its codec is known, nothing of what it took to find out is held.
pub enum Serving {
    Detecting(Pin<Box<dyn Future<Output = Option<Served>>>>),
    Serving(Served),
}

impl Future for Serving {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut *self {
                Self::Serving(served) => return served.as_mut().poll(cx),
                Self::Detecting(detecting) => match ready!(detecting.as_mut().poll(cx)) {
                    Some(served) => *self = Self::Serving(served),
                    None => return Poll::Ready(()),
                },
            }
        }
    }
}

fn serve_as<S: StreamService + 'static>(
    codec: Codec,
    io: Io,
    options: ServerOptions,
    service: S,
    drain: Drain,
    event: impl Fn(ConnectionEvent) + 'static,
) -> Served {
    event(ConnectionEvent::Codec(codec));
    match codec {
        Codec::Http2 => Box::pin(h2::server::serve(io, options.h2, service, drain, event)),
        Codec::Http1 => Box::pin(h1::serve(io, options.h1, service, drain).map(move |closed| {
            event(match closed {
                Closed::IdleTimeout => ConnectionEvent::IdleTimeout,
                Closed::MaxDuration => ConnectionEvent::MaxDuration,
                Closed::MaxRequests => ConnectionEvent::MaxRequests,
                // What was wrong was counted with the request that was rejected.
                Closed::ProtocolError | Closed::Drained | Closed::Local => ConnectionEvent::ClosedByUs,
                Closed::Remote => return,
            });
        })),
    }
}

/// What came of waiting for the first bytes.
enum Detected {
    Codec(Codec),
    Idle,
    Gone,
}

/// Waits for the first bytes, for as long as an idle connection may wait. While draining it does not wait: the
/// codec of HTTP/1 knows when to let go.
async fn first_bytes(io: &mut Io, options: &ServerOptions, drain: &Drain) -> Detected {
    let mut drain = drain.watch();
    let mut idle = Timer::new();
    idle.set_after(options.h1.idle_timeout);
    let mut read = BytesMut::with_capacity(64);
    let detected = poll_fn(|cx| {
        if let Poll::Ready(detected) = poll_detect(io, &mut read, cx) {
            return Poll::Ready(detected.map_or(Detected::Gone, Detected::Codec));
        }
        if drain.poll(cx).is_ready() {
            return Poll::Ready(Detected::Codec(Codec::Http1));
        }
        idle.poll(cx).map(|()| Detected::Idle)
    })
    .await;
    io.put_back(read.freeze());
    detected
}

/// Reads into `read` until it tells the codec. A connection that ends before is left to HTTP/1.
fn poll_detect(io: &mut Io, read: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<Codec>> {
    loop {
        if let Some(codec) = by_preface(read) {
            return Poll::Ready(Ok(codec));
        }
        let mut space = [MaybeUninit::uninit(); 64];
        let mut buf = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut *io).poll_read(cx, &mut buf))?;
        if buf.filled().is_empty() {
            return Poll::Ready(Ok(Codec::Http1));
        }
        read.extend_from_slice(buf.filled());
    }
}

/// Decides as early as one byte differs; `None` if more are needed.
fn by_preface(read: &[u8]) -> Option<Codec> {
    if read.starts_with(PREFACE) {
        Some(Codec::Http2)
    } else if PREFACE.starts_with(read) {
        None
    } else {
        Some(Codec::Http1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_can_be_enough() {
        assert_eq!(by_preface(b""), None);
        assert_eq!(by_preface(b"G"), Some(Codec::Http1));
        assert_eq!(by_preface(b"P"), None);
        assert_eq!(by_preface(b"PO"), Some(Codec::Http1));
        assert_eq!(by_preface(b"PRI * HTTP/1"), Some(Codec::Http1));
        assert_eq!(by_preface(b"PRI * HTTP/2.0\r\n"), Some(Codec::Http2));
        assert_eq!(by_alpn(b"h2"), Codec::Http2);
        assert_eq!(by_alpn(b"istio"), Codec::Http1);
    }

    #[tokio::test]
    async fn nothing_read_is_lost() {
        let (client, server) = tokio::io::duplex(64);
        let mut client = client;
        tokio::io::AsyncWriteExt::write_all(&mut client, b"PRI * HTTP/2.0\r\n\r\nSM").await.expect("open");
        drop(client);
        let options = ServerOptions { h1: Rc::default(), h2: Rc::default() };
        let mut io = Io::Boxed(Box::new(server));
        let detected = first_bytes(&mut io, &options, &Drain::new()).await;
        let mut all = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut io, &mut all).await.expect("readable");
        assert!(matches!(detected, Detected::Codec(Codec::Http2)));
        assert_eq!(all, b"PRI * HTTP/2.0\r\n\r\nSM");
    }
}
