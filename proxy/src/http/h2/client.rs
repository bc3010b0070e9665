//! The upstream side: connections that a pool keeps, and the streams it takes from them.
//!
//! The connection itself is driven by a task of its own, since its streams belong to many downstream connections.

use super::{
    BodyReader,
    body::Owner,
    connection::{Link, Shared},
    core::{Core, Fatal, Left},
    error,
    frame::Code,
    keepalive::KeepaliveTimer,
    options::ClientOptions,
    receive::Step,
    send::gone,
};
use crate::{
    base::{ResetReason, StreamError},
    http::{Body, BodySink, RequestHead, ResponseEvent},
    transport::Io,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header::UPGRADE};
use std::{
    cell::Cell,
    future::{Future, poll_fn},
    rc::Rc,
    task::{Context, Poll},
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

/// What all clones of a connection hold.
struct Handle(Rc<Client>);

/// What the connection, its task and its streams share.
pub(super) struct Client {
    pub shared: Shared,
    options: Rc<ClientOptions>,
    events: Rc<dyn ClientEvents>,
    active: Cell<u32>,
    started: Cell<u32>,
    /// The driver has ended.
    over: Cell<bool>,
    /// A stream was started since the driver last looked.
    starts: Cell<bool>,
    /// No stream will be started any more.
    abandoned: Cell<bool>,
}

impl ClientConnection {
    /// Begins HTTP/2 on a connected socket. The future returned has to be spawned; it ends with the connection.
    pub async fn handshake(
        io: Io,
        options: Rc<ClientOptions>,
        events: Rc<dyn ClientEvents>,
    ) -> Result<(Self, impl Future<Output = ()>), StreamError> {
        options.stats.nghttp2_upstream_connections.inc();
        let limits = (options.max_response_headers_kb, options.max_headers_count);
        let core = Core::new(true, &options.http2, limits, options.stats.clone());
        let client = Rc::new(Client {
            shared: Shared::new(core),
            options,
            events,
            active: Cell::new(0),
            started: Cell::new(0),
            over: Cell::new(false),
            starts: Cell::new(false),
            abandoned: Cell::new(false),
        });
        Ok((Self(Rc::new(Handle(client.clone()))), drive(Link::new(io), client)))
    }

    fn client(&self) -> &Rc<Client> {
        &self.0.0
    }

    /// True if a stream may be started now.
    pub fn can_take_stream(&self) -> bool {
        let client = self.client();
        !self.is_closing()
            && client.started.get() < MAX_STREAMS
            && client.active.get() < client.options.http2.max_concurrent_streams
            && (client.active.get() as usize) < client.shared.core.borrow().peer_streams
    }

    /// True once no stream may be started any more: GOAWAY, or the connection has ended.
    pub fn is_closing(&self) -> bool {
        let core = self.client().shared.core.borrow();
        self.client().over.get() || core.is_killed() || core.goaway.is_some()
    }

    /// Streams that are under way.
    pub fn active_streams(&self) -> u32 {
        self.client().active.get()
    }

    /// Streams that were ever started.
    pub fn started_streams(&self) -> u32 {
        self.client().started.get()
    }

    /// Starts a stream; ask [`ClientConnection::can_take_stream`] before.
    pub fn start(&self) -> ClientStream {
        let client = self.client();
        client.active.set(client.active.get() + 1);
        client.started.set(client.started.get() + 1);
        client.options.stats.streams_active.inc();
        if client.options.http2.connection_keepalive.is_some() {
            client.starts.set(true);
            client.shared.touch();
        }
        let key = client.shared.core.borrow_mut().reserve(1);
        ClientStream { client: client.clone(), key, stage: Stage::Idle, upgrade: None, sent: (0, 0) }
    }

    /// Closes the connection at once; streams under way end with it.
    pub fn close(&self) {
        let client = self.client();
        client.shared.core.borrow_mut().kill(ResetReason::ConnectionTermination, "");
        client.shared.touch();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.abandoned.set(true);
        self.0.shared.touch();
    }
}

/// Runs a connection to its end.
async fn drive(mut link: Link, client: Rc<Client>) {
    let mut keepalive = KeepaliveTimer::new(client.options.http2.connection_keepalive.as_ref());
    let mut goaway = false;
    poll_fn(|cx| {
        client.shared.resume(cx);
        let over = client.turn(&mut link, &mut keepalive, &mut goaway, cx);
        client.shared.pause();
        over
    })
    .await;
    client.over.set(true);
    drop(link);
    client.events.closed();
}

impl Client {
    /// Moves the connection on as far as that goes now; ready when it is over.
    fn turn(
        &self,
        link: &mut Link,
        keepalive: &mut Option<KeepaliveTimer>,
        goaway: &mut bool,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            self.shared.take_dirty();
            let mut core = self.shared.core.borrow_mut();
            let reads = self.read(&mut core, link, cx);
            if let Some(keepalive) = keepalive {
                if self.starts.take() {
                    keepalive.stream_starts(&mut core);
                }
                if keepalive.poll_dead(cx, &mut core).is_ready() {
                    self.options.stats.keepalive_timeout.inc();
                    core.kill(ResetReason::ConnectionTermination, error::PING_TIMEOUT);
                }
            }
            if let Poll::Ready(Err(_)) = link.poll_write(&mut core, cx) {
                core.close(ResetReason::ConnectionTermination, "");
            }
            let is_over = core.is_closed() || (self.abandoned.get() && core.streams.is_empty());
            let goes = core.goaway.is_some();
            if reads.is_pending() {
                core.rest();
                link.rest();
            }
            drop(core);
            if goes && !std::mem::replace(goaway, true) {
                self.events.goaway();
            }
            if is_over {
                self.shared.core.borrow_mut().close(ResetReason::ConnectionTermination, "");
                return Poll::Ready(());
            }
            if reads.is_pending() && !self.shared.take_dirty() {
                return Poll::Pending;
            }
        }
    }

    /// Reads once and takes what came. Pending when there is nothing.
    fn read(&self, core: &mut Core, link: &mut Link, cx: &mut Context<'_>) -> Poll<()> {
        if core.is_closed() {
            return Poll::Ready(());
        }
        match std::task::ready!(link.poll_fill(cx)) {
            Ok(n) if n > 0 => {}
            _ => {
                core.close(ResetReason::ConnectionTermination, "");
                return Poll::Ready(());
            }
        }
        loop {
            match core.receive(&mut link.input) {
                Ok(Step::More) => return Poll::Ready(()),
                // Neither begins at a client.
                Ok(Step::Request(..) | Step::TooMany(_)) => {}
                Ok(Step::Malformed) => {
                    self.options.stats.rx_messaging_error.inc();
                    if !self.options.http2.stream_error_on_invalid_http_message {
                        core.kill(ResetReason::ProtocolError, error::MESSAGING);
                        return Poll::Ready(());
                    }
                }
                Err(Fatal::Killed) => return Poll::Ready(()),
                Err(Fatal::Error(code)) => {
                    core.fail(code, ResetReason::ProtocolError, error::CODEC);
                    return Poll::Ready(());
                }
            }
        }
    }

    /// Someone let go of a stream. When all have before the exchange is whole, the stream is reset.
    pub fn let_go(&self, key: u32) {
        let mut core = self.shared.core.borrow_mut();
        let left = core.let_go(key);
        if left == Left::Held {
            return;
        }
        if left == Left::UnderWay {
            core.reset(key, Code::INTERNAL_ERROR, super::streams::Over::Local);
        }
        let writes = core.out.pending() > 0 || !core.waiting.is_empty() || self.abandoned.get();
        drop(core);
        if writes {
            self.shared.touch();
        }
        self.active.set(self.active.get() - 1);
        self.options.stats.streams_active.dec();
        self.events.stream_ended();
    }
}

/// One exchange: the request's sink and the response's events. Dropped, with the response's body, before the exchange is
/// whole, it resets the stream.
pub struct ClientStream {
    client: Rc<Client>,
    key: u32,
    stage: Stage,
    /// The protocol that an extended CONNECT asked for.
    upgrade: Option<Bytes>,
    sent: (u64, u64),
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Idle,
    Sent,
    Answered,
}

impl ClientStream {
    /// Sends the request's head.
    pub fn send_head(&mut self, head: &RequestHead, end: bool) -> Result<(), StreamError> {
        if self.stage != Stage::Idle {
            return Err(gone());
        }
        self.upgrade = head.upgrade.clone();
        self.sent.0 += self.client.shared.core.borrow_mut().send_request(self.key, head, end)? as u64;
        self.stage = Stage::Sent;
        self.client.shared.touch();
        Ok(())
    }

    /// The next event of the response.
    pub fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseEvent, StreamError>> {
        if self.stage != Stage::Sent {
            return Poll::Ready(Err(gone()));
        }
        let mut core = self.client.shared.core.borrow_mut();
        let stream = &mut core.streams[self.key];
        if let Some(head) = stream.informational.pop_front() {
            return Poll::Ready(Ok(ResponseEvent::Informational(head)));
        }
        if let Some(mut head) = stream.response.take() {
            self.stage = Stage::Answered;
            let body = if stream.got_end && stream.received.is_empty() && stream.got_trailers.is_none() {
                Body::Empty
            } else {
                stream.refs += 1;
                Body::H2(BodyReader::new(Owner::Client(self.client.clone()), self.key))
            };
            if let Some(upgrade) = self.upgrade.as_ref().filter(|_| head.status == StatusCode::OK)
                && let Ok(value) = HeaderValue::from_maybe_shared(upgrade.clone())
            {
                head.status = StatusCode::SWITCHING_PROTOCOLS;
                head.headers.insert(UPGRADE, value);
            }
            return Poll::Ready(Ok(ResponseEvent::Head(head, body)));
        }
        if let Some(error) = core.error(self.key) {
            self.stage = Stage::Answered;
            return Poll::Ready(Err(error));
        }
        core.streams[self.key].receiver.set(cx);
        Poll::Pending
    }

    /// (headers, body): bytes of names and values, and of data, given to the connection.
    pub fn bytes_sent(&self) -> (u64, u64) {
        self.sent
    }

    fn check_sent(&self) -> Result<(), StreamError> {
        if self.stage == Stage::Idle { Err(gone()) } else { Ok(()) }
    }
}

impl BodySink for ClientStream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.client.shared.core.borrow_mut().poll_room(self.key, cx)
    }

    fn send_data(&mut self, data: Bytes, end: bool) -> Result<(), StreamError> {
        let length = data.len() as u64;
        if length == 0 && !end {
            return Ok(());
        }
        self.check_sent()?;
        self.client.shared.core.borrow_mut().send_data(self.key, data, end)?;
        self.sent.1 += length;
        self.client.shared.touch();
        Ok(())
    }

    fn send_trailers(&mut self, trailers: HeaderMap) -> Result<(), StreamError> {
        if trailers.is_empty() {
            return self.send_data(Bytes::new(), true);
        }
        self.check_sent()?;
        let size = super::head::size(&trailers) as u64;
        self.client.shared.core.borrow_mut().send_trailers(self.key, trailers)?;
        self.sent.0 += size;
        self.client.shared.touch();
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.client.shared.core.borrow_mut().poll_flushed(self.key, cx)
    }

    fn reset(&mut self, reason: ResetReason) {
        let over = super::streams::Over::Local;
        self.client.shared.core.borrow_mut().reset(self.key, error::reset_code(reason), over);
        self.stage = Stage::Answered;
        self.client.shared.touch();
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        self.client.let_go(self.key);
    }
}
