//! A TCP connection inside an HTTP request: CONNECT, or POST with a streamed body.
//!
//! Called by the TCP proxy's session in place of a plain connect. [`Tunnel`] makes the stream look like a connection:
//! what is written is request body, what is read is response body.

use crate::{
    base::{ResetReason, Side, StreamError},
    http::{
        Body, BodySink, BodySource, Frame, Protocol, RequestHead, ResponseEvent, header_rules::HeaderRules,
        service::UpstreamStream,
    },
    observe::{
        StreamInfo,
        format::{Facts, Format},
    },
    transport::Io,
    upstream::{ProtocolChoice, StreamRequest, ThreadCluster, ThreadHost, UpstreamConnection},
};
use bytes::{Buf, Bytes};
use http::{HeaderMap, Method};
use std::{
    borrow::Cow,
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weft_config::{Context as Problems, header_value::HeaderChanges, route::Priority, tcp_proxy::Tunneling as Config};

/// How tunnels are asked for.
pub struct Tunneling {
    /// `None` with a problem reported.
    hostname: Option<Format>,
    /// The path of a POST; `None`: CONNECT.
    post_path: Option<Bytes>,
    headers: HeaderRules,
}

impl Tunneling {
    pub fn compile(config: &Config, cx: &mut Problems) -> Self {
        let changes = HeaderChanges { request_add: config.headers_to_add.clone(), ..HeaderChanges::default() };
        Self {
            hostname: cx.field("hostname", |cx| Format::compile_text(&config.hostname, cx)),
            post_path: config.post_path.as_ref().map(|path| Bytes::copy_from_slice(path.as_bytes())),
            headers: HeaderRules::compile(&changes, cx),
        }
    }

    /// Asks `host` for a tunnel and waits for its consent.
    ///
    /// # Errors
    /// There is no stream to be had, or the answer is not a 2xx that leaves the stream open.
    pub async fn open(
        &self,
        cluster: &Rc<ThreadCluster>,
        host: &Rc<ThreadHost>,
        info: &StreamInfo,
    ) -> Result<(Io, Rc<UpstreamConnection>), StreamError> {
        let wanted = StreamRequest {
            downstream_protocol: Protocol::Http11,
            priority: Priority::Default,
            protocol: ProtocolChoice::Http,
            connection: Some(info.connection.clone()),
            names: Default::default(),
        };
        let (mut stream, connection) = cluster.http_stream(host, wanted).await?;
        let is_http1 = connection.protocol() == Some(Protocol::Http11.as_str());
        let failed = |details: Cow<'static, str>| {
            StreamError::new(Side::Upstream, ResetReason::RemoteConnectionFailure, details)
        };
        stream.send_head(&self.head(info), false).map_err(|error| failed(error.details))?;
        let body = loop {
            let event = poll_fn(|cx| {
                if let Poll::Ready(Err(error)) = stream.poll_flush(cx) {
                    return Poll::Ready(Err(error));
                }
                stream.poll_response(cx)
            });
            if let ResponseEvent::Head(head, body) = event.await.map_err(|error| failed(error.details))? {
                if !head.status.is_success() || body.is_end() {
                    stream.reset(ResetReason::LocalReset);
                    if !is_http1 {
                        cluster.stats().upstream_rq_tx_reset.inc();
                    }
                    return Err(failed(format!("tunnel_response:{}", head.status.as_u16()).into()));
                }
                break body;
            }
        };
        let tunnel = Tunnel {
            stream,
            body,
            unread: Bytes::new(),
            _connection: connection.clone(),
            is_http1,
            is_shut: false,
            is_over: false,
        };
        Ok((Io::Boxed(Box::new(tunnel)), connection))
    }

    fn head(&self, info: &StreamInfo) -> RequestHead {
        let hostname = self.hostname.as_ref().map(|format| format.text(&Facts::new(info))).unwrap_or_default();
        let mut head = RequestHead {
            protocol: Protocol::Http11,
            method: if self.post_path.is_some() { Method::POST } else { Method::CONNECT },
            scheme: if self.post_path.is_some() { Bytes::from_static(b"http") } else { Bytes::new() },
            authority: Bytes::from(hostname),
            path: self.post_path.clone().unwrap_or_default(),
            upgrade: None,
            headers: HeaderMap::new(),
            original_names: None,
        };
        self.headers.apply_request(&mut head, info);
        head
    }
}

/// A stream as a connection.
struct Tunnel {
    stream: UpstreamStream,
    body: Body,
    unread: Bytes,
    /// Kept as long as the stream.
    _connection: Rc<UpstreamConnection>,
    /// The end of the request is the end of the connection: HTTP/1 has no half-closed tunnels.
    is_http1: bool,
    is_shut: bool,
    is_over: bool,
}

fn broken(_: StreamError) -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            let frame = match self.body.poll_frame(cx) {
                Poll::Pending if self.is_over => return Poll::Ready(Ok(())),
                frame => ready!(frame),
            };
            match frame {
                Some(Ok(Frame::Data(data))) => self.unread = data,
                // Trailers end the bytes as the end does.
                Some(Ok(_)) | None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let n = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread[..n]);
        self.unread.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.stream.poll_ready(cx)).map_err(broken)?;
        self.stream.send_data(Bytes::copy_from_slice(buf), false).map_err(broken)?;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_shut {
            self.is_shut = true;
            self.stream.send_data(Bytes::new(), true).map_err(broken)?;
        }
        ready!(self.stream.poll_flush(cx)).map_err(broken)?;
        self.is_over = self.is_http1;
        Poll::Ready(Ok(()))
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if !self.is_shut || !self.body.is_end() {
            self.stream.reset(ResetReason::LocalReset);
        }
    }
}
