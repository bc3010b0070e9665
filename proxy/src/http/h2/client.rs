//! The upstream side: connections that a pool keeps, and the streams it takes from them.
//!
//! The connection itself is driven by a task of its own, since its streams belong to many downstream connections.

use super::{
    BodyReader,
    chunk::{Chunk, HIGH_WATERMARK, Unsent},
    error, head,
    keepalive::KeepaliveTimer,
    options::{ClientOptions, Http2Options},
    wire::{Wire, WireIo},
};
use crate::{
    base::{ResetReason, Side, StreamError},
    http::{Body, BodySink, RequestHead, ResponseEvent, ResponseHead},
    transport::Io,
};
use bytes::Bytes;
use h2::{
    Reason, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{HeaderMap, Response, header::CONTENT_LENGTH};
use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

/// The largest number of streams that one connection can ever have: half of the 31 bits of their ids.
const MAX_STREAMS: u32 = 1 << 30;

/// What the owner of a connection is told.
pub trait ClientEvents {
    /// The upstream takes no new streams; those under way may end well.
    fn goaway(&self);
    /// The connection ended. Its streams have been told.
    fn closed(&self);
    /// A stream ended, so that another may be started.
    fn stream_ended(&self);
}

/// An HTTP/2 connection to a host. Clones are the same connection; it closes when all of them and all streams are gone.
#[derive(Clone)]
pub struct ClientConnection(Rc<Handle>);

struct Handle {
    send: SendRequest<Chunk>,
    link: Rc<Link>,
}

/// What the connection, its task and its streams share.
struct Link {
    wire: Rc<Wire>,
    options: Rc<ClientOptions>,
    events: Rc<dyn ClientEvents>,
    active: Cell<u32>,
    started: Cell<u32>,
    /// The driver has ended.
    over: Cell<bool>,
    /// A stream was started since the driver last looked.
    starts: Cell<bool>,
    driver: RefCell<Option<Waker>>,
}

impl ClientConnection {
    /// Begins HTTP/2 on a connected socket. The future returned has to be spawned; it ends with the connection.
    pub async fn handshake(
        io: Io,
        options: Rc<ClientOptions>,
        events: Rc<dyn ClientEvents>,
    ) -> Result<(Self, impl Future<Output = ()>), StreamError> {
        let http2 = &options.http2;
        options.stats.nghttp2_upstream_connections.inc();
        let wire = Wire::new(io, http2, true, options.stats.clone());
        let (send, h2) = builder(http2, &options).handshake::<_, Chunk>(WireIo(wire.clone())).await.map_err(|e| {
            StreamError::new(Side::Upstream, ResetReason::ConnectionTermination, e.to_string()).retry_safe()
        })?;
        let link = Rc::new(Link {
            wire,
            options,
            events,
            active: Cell::new(0),
            started: Cell::new(0),
            over: Cell::new(false),
            starts: Cell::new(false),
            driver: RefCell::new(None),
        });
        Ok((Self(Rc::new(Handle { send, link: link.clone() })), drive(h2, link)))
    }

    /// True if a stream may be started now.
    pub fn can_take_stream(&self) -> bool {
        let link = &self.0.link;
        !self.is_closing()
            && link.started.get() < MAX_STREAMS
            && link.active.get() < link.options.http2.max_concurrent_streams
            && (link.active.get() as usize) < self.0.send.current_max_send_streams()
    }

    /// True once no stream may be started any more: GOAWAY, or the connection has ended.
    pub fn is_closing(&self) -> bool {
        let link = &self.0.link;
        link.over.get() || link.wire.is_killed() || link.wire.goaway().is_some()
    }

    /// Streams that are under way.
    pub fn active_streams(&self) -> u32 {
        self.0.link.active.get()
    }

    /// Streams that were ever started.
    pub fn started_streams(&self) -> u32 {
        self.0.link.started.get()
    }

    /// Starts a stream; ask [`ClientConnection::can_take_stream`] before.
    pub fn start(&self) -> ClientStream {
        let link = &self.0.link;
        link.active.set(link.active.get() + 1);
        link.started.set(link.started.get() + 1);
        link.options.stats.streams_active.inc();
        if link.options.http2.connection_keepalive.is_some() {
            link.starts.set(true);
            link.wake_driver();
        }
        let life = Life {
            link: link.clone(),
            stream: RefCell::new(None),
            local_ended: Cell::new(false),
            remote_ended: Cell::new(false),
        };
        ClientStream {
            life: Rc::new(life),
            stage: Stage::Idle(self.0.send.clone()),
            unsent: Rc::default(),
            upgrade: None,
            sent: (0, 0),
        }
    }

    /// Closes the connection at once; streams under way end with it.
    pub fn close(&self) {
        self.0.link.kill(ResetReason::ConnectionTermination, "");
    }
}

fn builder(http2: &Http2Options, options: &ClientOptions) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .header_table_size(http2.hpack_table_size)
        .initial_max_send_streams(http2.max_concurrent_streams as usize)
        .initial_window_size(http2.initial_stream_window_size)
        .initial_connection_window_size(http2.initial_connection_window_size)
        .max_header_list_size(Http2Options::crate_header_list_size(
            options.max_response_headers_kb,
            options.max_headers_count,
        ))
        .max_send_buffer_size(HIGH_WATERMARK * 2)
        .max_concurrent_reset_streams(1024)
        .data_frame_budget(usize::MAX);
    builder
}

/// Runs a connection to its end.
async fn drive(mut h2: h2::client::Connection<WireIo, Chunk>, link: Rc<Link>) {
    let mut keepalive = KeepaliveTimer::new(link.options.http2.connection_keepalive.as_ref(), h2.ping_pong());
    let mut goaway = false;
    let end = poll_fn(|cx| {
        link.driver.replace(Some(cx.waker().clone()));
        loop {
            let end = Pin::new(&mut h2).poll(cx);
            if link.wire.goaway().is_some() && !std::mem::replace(&mut goaway, true) {
                link.events.goaway();
            }
            if end.is_ready() {
                return end;
            }
            let Some(keepalive) = &mut keepalive else { return Poll::Pending };
            if link.starts.take() {
                keepalive.stream_starts(&link.wire);
            }
            ready!(keepalive.poll_dead(cx, &link.wire));
            link.options.stats.keepalive_timeout.inc();
            link.wire.kill(ResetReason::ConnectionTermination, error::PING_TIMEOUT);
        }
    })
    .await;
    match end {
        Err(e) if e.is_go_away() && e.is_library() => {
            link.wire.set_closed(ResetReason::ProtocolError, "http2.codec_error");
        }
        _ => link.wire.set_closed(ResetReason::ConnectionTermination, ""),
    }
    link.over.set(true);
    drop(h2);
    link.wire.close();
    link.events.closed();
}

impl Link {
    fn wake_driver(&self) {
        if let Some(waker) = &*self.driver.borrow() {
            waker.wake_by_ref();
        }
    }

    fn kill(&self, reason: ResetReason, details: &'static str) {
        self.wire.kill(reason, details);
        self.wake_driver();
    }
}

/// What a stream's two halves share. When both are gone before the exchange is whole, the stream is reset.
pub(super) struct Life {
    link: Rc<Link>,
    stream: RefCell<Option<SendStream<Chunk>>>,
    local_ended: Cell<bool>,
    remote_ended: Cell<bool>,
}

impl Life {
    /// The response is whole.
    pub fn remote_ended(&self) {
        self.remote_ended.set(true);
    }

    fn error(&self, e: h2::Error) -> StreamError {
        error::stream_error(Side::Upstream, e, self.link.wire.closed(Side::Upstream))
    }

    fn reset(&self, code: Reason) {
        if let Some(mut stream) = self.stream.take() {
            stream.send_reset(code);
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if !(self.local_ended.get() && self.remote_ended.get()) {
            self.reset(Reason::INTERNAL_ERROR);
        }
        self.link.active.set(self.link.active.get() - 1);
        self.link.options.stats.streams_active.dec();
        self.link.events.stream_ended();
    }
}

/// One exchange: the request's sink and the response's events. Dropped, with the response's body, before the exchange is
/// whole, it resets the stream.
pub struct ClientStream {
    life: Rc<Life>,
    stage: Stage,
    unsent: Rc<Unsent>,
    /// The protocol that an extended CONNECT asked for.
    upgrade: Option<Bytes>,
    sent: (u64, u64),
}

enum Stage {
    Idle(SendRequest<Chunk>),
    Sent(ResponseFuture),
    Answered,
}

impl ClientStream {
    /// Sends the request's head.
    pub fn send_head(&mut self, head: &RequestHead, end: bool) -> Result<(), StreamError> {
        let Stage::Idle(send) = &mut self.stage else { return Err(gone()) };
        self.upgrade = head.upgrade.clone();
        let Some(request) = head::send_request(head) else {
            return Err(StreamError::new(Side::Ours, ResetReason::LocalReset, "http2.invalid_request_target"));
        };
        self.sent.0 += head::size(request.headers()) as u64;
        let (response, stream) = send.send_request(request, end).map_err(|e| self.life.error(e).retry_safe())?;
        *self.life.stream.borrow_mut() = Some(stream);
        self.life.local_ended.set(end);
        self.stage = Stage::Sent(response);
        Ok(())
    }

    /// The next event of the response.
    pub fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseEvent, StreamError>> {
        let Stage::Sent(response) = &mut self.stage else { return Poll::Ready(Err(gone())) };
        if let Some(Ok(informational)) = ready!(response.poll_informational(cx)) {
            return Poll::Ready(Ok(ResponseEvent::Informational(head::response(informational, None))));
        }
        let answer = ready!(Pin::new(response).poll(cx));
        self.stage = Stage::Answered;
        Poll::Ready(match answer {
            Ok(response) => self.answered(response),
            Err(e) => {
                if e.is_reset() && e.is_library() && e.reason() == Some(Reason::PROTOCOL_ERROR) {
                    self.messaging_error();
                }
                Err(self.life.error(e))
            }
        })
    }

    fn answered(&self, response: Response<h2::RecvStream>) -> Result<ResponseEvent, StreamError> {
        let (parts, recv) = response.into_parts();
        let head = head::response(Response::from_parts(parts, ()), self.upgrade.as_ref());
        let length = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let body = BodyReader::new(recv, length, self.life.link.wire.clone(), Some(self.life.clone()));
        self.check_limits(&head)?;
        Ok(ResponseEvent::Head(head, Body::H2(body)))
    }

    fn check_limits(&self, head: &ResponseHead) -> Result<(), StreamError> {
        let options = &self.life.link.options;
        // `:status` counts too.
        if head.headers.len() + 1 > options.max_headers_count as usize {
            options.stats.header_overflow.inc();
        } else if head::size(&head.headers) + 10 > options.max_response_headers_kb as usize * 1024 {
            options.stats.header_list_size_too_large.inc();
        } else {
            return Ok(());
        }
        self.life.reset(Reason::INTERNAL_ERROR);
        Err(StreamError::new(Side::Upstream, ResetReason::ProtocolError, error::TOO_MANY_HEADERS))
    }

    /// The upstream broke HTTP's rules: that may end the connection.
    fn messaging_error(&self) {
        let link = &self.life.link;
        link.options.stats.rx_messaging_error.inc();
        if !link.options.http2.stream_error_on_invalid_http_message {
            link.kill(ResetReason::ProtocolError, error::MESSAGING);
        }
    }

    /// (headers, body): bytes of names and values, and of data, given to the connection.
    pub fn bytes_sent(&self) -> (u64, u64) {
        self.sent
    }

    fn send(&mut self, send: impl FnOnce(&mut SendStream<Chunk>) -> Result<(), h2::Error>) -> Result<(), StreamError> {
        match &mut *self.life.stream.borrow_mut() {
            Some(stream) => send(stream).map_err(|e| self.life.error(e)),
            None => Err(gone()),
        }
    }
}

fn gone() -> StreamError {
    StreamError::new(Side::Ours, ResetReason::LocalReset, "")
}

impl BodySink for ClientStream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.unsent.poll_room(cx).map(Ok)
    }

    fn send_data(&mut self, data: Bytes, end: bool) -> Result<(), StreamError> {
        let length = data.len() as u64;
        if length == 0 && !end {
            return Ok(());
        }
        let chunk = Chunk::new(data, &self.unsent);
        self.send(|stream| stream.send_data(chunk, end))?;
        self.sent.1 += length;
        self.life.local_ended.set(end);
        Ok(())
    }

    fn send_trailers(&mut self, trailers: HeaderMap) -> Result<(), StreamError> {
        if trailers.is_empty() {
            return self.send_data(Bytes::new(), true);
        }
        let size = head::size(&trailers) as u64;
        self.send(|stream| stream.send_trailers(trailers))?;
        self.sent.0 += size;
        self.life.local_ended.set(true);
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.unsent.poll_empty(cx).map(Ok)
    }

    fn reset(&mut self, reason: ResetReason) {
        self.life.reset(error::reset_code(reason));
        self.stage = Stage::Answered;
    }
}
