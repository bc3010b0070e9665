//! One pooled connection: the codec on it, its limits, its task.

use super::{Opened, Pool, Protocol};
use crate::{
    base::StreamError,
    http::{h1, h2, service::UpstreamStream},
    transport::tls::{Distrusted, LAST_WORDS},
    upstream::{
        connect::Connected,
        connection::{ClosedBy, Tally, UpstreamConnection},
    },
};
use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::time::{Instant, Sleep};

pub(super) struct Client {
    pool: Rc<Pool>,
    connection: Rc<UpstreamConnection>,
    codec: Codec,
    active: Cell<u32>,
    /// Streams that may still be started; `None`: any number.
    remaining: Cell<Option<u32>>,
    idle_since: Cell<Instant>,
    /// Takes no new stream; closes with its last one.
    draining: Cell<bool>,
    closed: Cell<Option<ClosedBy>>,
    /// The task's.
    waker: RefCell<Option<Waker>>,
}

enum Codec {
    Http1 { connection: h1::ClientConnection, on_done: h1::OnDone },
    Http2(h2::ClientConnection),
}

type Driver = Pin<Box<dyn Future<Output = ()>>>;

impl Client {
    /// Speaks HTTP on a new connection until it ends.
    pub async fn run(pool: Rc<Pool>, connected: Connected, tally: Tally) {
        let Connected { io, local, remote, sent: _, tls, distrusted } = connected;
        let protocol = match pool.key.protocol {
            Protocol::Auto => {
                let is_http2 = tls.as_ref().is_some_and(|tls| tls.alpn.as_deref() == Some(b"h2"));
                let stats = pool.shared().stats();
                if is_http2 { &stats.upstream_cx_http2_total } else { &stats.upstream_cx_http1_total }.inc();
                if is_http2 { Protocol::Http2 } else { Protocol::Http1 }
            }
            known => known,
        };
        let io = io.metered(pool.shared().clone());
        let name = if protocol == Protocol::Http2 { "HTTP/2" } else { "HTTP/1.1" };
        let connection = UpstreamConnection::new(tally, local, remote, Some(name), tls);
        let me = Rc::<RefCell<Weak<Client>>>::default();
        let mut driver = None::<Driver>;
        let codec = match protocol {
            Protocol::Http1 | Protocol::Auto => {
                let me = me.clone();
                Codec::Http1 {
                    connection: h1::ClientConnection::new(io, pool.shared().http1().clone()),
                    on_done: Rc::new(move |_, outcome| {
                        let client = me.borrow().upgrade();
                        if let Some(client) = client {
                            client.exchange_done(outcome);
                        }
                    }),
                }
            }
            Protocol::Http2 => {
                let events = Rc::new(Events(me.clone()));
                match h2::ClientConnection::handshake(io, pool.shared().http2().clone(), events).await {
                    Ok((connection, drive)) => {
                        driver = Some(Box::pin(drive));
                        Codec::Http2(connection)
                    }
                    Err(error) => {
                        connection.closed(ClosedBy::Peer, false);
                        pool.fail_waiting(&error);
                        return;
                    }
                }
            }
        };
        let client = Rc::new(Self {
            remaining: Cell::new(pool.shared().info.config.max_requests_per_connection),
            pool,
            connection,
            codec,
            active: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            draining: Cell::new(false),
            closed: Cell::new(None),
            waker: RefCell::new(None),
        });
        *me.borrow_mut() = Rc::downgrade(&client);
        client.pool.clients.borrow_mut().push(client.clone());
        client.pool.is_ready(&client);
        client.pool.serve_waiting();
        if client.pool.owner.gone.get() {
            client.drain();
        }
        let by = client.live(&mut driver, distrusted).await;
        client.connection.closed(by, client.active.get() > 0);
        client.draining.set(true);
        if let (Codec::Http1 { connection, .. }, ClosedBy::Us, 1..) = (&client.codec, by, client.active.get()) {
            connection.abort();
        }
        // Who has a stream yet will find it at its end, when nobody is here to be told.
        for _ in 0..client.active.replace(0) {
            client.pool.end_request();
        }
        client.pool.forget(&client);
        if let (Codec::Http2(connection), Some(mut driver)) = (&client.codec, driver)
            && client.closed.get() == Some(ClosedBy::Us)
        {
            connection.close();
            driver.as_mut().await;
        }
    }

    /// Waits for the end of the connection.
    async fn live(self: &Rc<Self>, driver: &mut Option<Driver>, mut distrusted: Option<Distrusted>) -> ClosedBy {
        let common = self.pool.shared().common();
        let mut idle = common.idle_timeout.map(|after| (after, Box::pin(tokio::time::sleep(after))));
        let lifetime = common.max_connection_duration.map(|most| {
            let jitter = common.max_connection_duration_jitter.unwrap_or_default() / 100.0;
            most.mul_f64(1.0 + jitter * fastrand::f64())
        });
        let mut last_words = None;
        let mut expiry = lifetime.map(|most| Box::pin(tokio::time::sleep(most)));
        poll_fn(|cx| {
            self.waker.replace(Some(cx.waker().clone()));
            if let Some(by) = self.closed.get() {
                return Poll::Ready(by);
            }
            match (&self.codec, driver.as_mut()) {
                (Codec::Http1 { connection, .. }, _) => {
                    if self.active.get() == 0 && connection.poll_idle(cx).is_ready() {
                        return Poll::Ready(ClosedBy::Peer);
                    }
                }
                (Codec::Http2(_), Some(running)) => {
                    if running.as_mut().poll(cx).is_ready() {
                        *driver = None;
                        return Poll::Ready(self.closed.get().unwrap_or(ClosedBy::Peer));
                    }
                }
                (Codec::Http2(_), None) => {}
            }
            if let Some(timer) = &mut expiry
                && timer.as_mut().poll(cx).is_ready()
            {
                expiry = None;
                self.pool.shared().stats().upstream_cx_max_duration_reached.inc();
                self.drain();
            }
            if let Some(watch) = &mut distrusted
                && watch.as_mut().poll(cx).is_ready()
            {
                distrusted = None;
                last_words = Some(Box::pin(tokio::time::sleep(LAST_WORDS)));
                self.drain();
            }
            if let Some(timer) = &mut last_words
                && timer.as_mut().poll(cx).is_ready()
            {
                self.close(ClosedBy::Us);
            }
            if let Some((after, timer)) = &mut idle
                && self.poll_idle_timeout(*after, timer, cx).is_ready()
            {
                self.pool.shared().stats().upstream_cx_idle_timeout.inc();
                self.close(ClosedBy::Us);
            }
            // A drain or timeout may have closed it just now.
            self.closed.get().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Ready once the connection was idle for `after`. The timer is armed for the soonest possible moment only, so that
    /// streams need not touch it.
    fn poll_idle_timeout(&self, after: Duration, timer: &mut Pin<Box<Sleep>>, cx: &mut Context<'_>) -> Poll<()> {
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let since = if self.active.get() > 0 { now } else { self.idle_since.get() };
            if since + after <= now {
                return Poll::Ready(());
            }
            timer.as_mut().reset(since + after);
        }
        Poll::Pending
    }

    /// Its streams.
    pub fn active(&self) -> usize {
        self.active.get() as usize
    }

    pub fn can_take_stream(&self) -> bool {
        !self.draining.get()
            && self.closed.get().is_none()
            && self.remaining.get() != Some(0)
            && match &self.codec {
                Codec::Http1 { connection, .. } => self.active.get() == 0 && !connection.is_closed(),
                Codec::Http2(connection) => connection.can_take_stream(),
            }
    }

    /// True if it takes no stream beside the next one.
    pub fn is_full_with_one_more(&self) -> bool {
        matches!(self.codec, Codec::Http1 { .. }) || self.remaining.get() == Some(1)
    }

    /// Starts a stream; the connection said that it can take one.
    pub fn start(self: &Rc<Self>, pool: &Pool) -> Result<Opened, StreamError> {
        if let Err(error) = pool.begin_request() {
            self.pool.is_ready(self);
            return Err(error);
        }
        self.active.set(self.active.get() + 1);
        if let Some(remaining) = self.remaining.get() {
            self.remaining.set(Some(remaining - 1));
            if remaining == 1 {
                pool.shared().stats().upstream_cx_max_requests.inc();
                self.draining.set(true);
            }
        }
        self.connection.stream_starts();
        let stream = match &self.codec {
            Codec::Http1 { connection, on_done } => match connection.start(on_done.clone()) {
                Ok(stream) => UpstreamStream::H1(stream),
                Err(error) => {
                    self.close(ClosedBy::Peer);
                    self.stream_done();
                    return Err(error);
                }
            },
            Codec::Http2(connection) => UpstreamStream::H2(connection.start()),
        };
        Ok((stream, self.connection.clone()))
    }

    /// An HTTP/1 exchange is over.
    fn exchange_done(self: &Rc<Self>, outcome: h1::Outcome) {
        if outcome == h1::Outcome::Close {
            self.close(ClosedBy::Us);
        } else if let (Codec::Http1 { connection, .. }, Some(waker)) = (&self.codec, &*self.waker.borrow())
            && connection.poll_idle(&mut Context::from_waker(waker)).is_ready()
        {
            // The look at the socket also put the task's waker there, without waking the task.
            self.closed.set(Some(ClosedBy::Peer));
            waker.wake_by_ref();
        }
        self.stream_done();
    }

    fn stream_done(self: &Rc<Self>) {
        // None: the connection is over, and its streams were counted out with it.
        let Some(left) = self.active.get().checked_sub(1) else { return };
        self.active.set(left);
        self.pool.end_request();
        if self.active.get() == 0 {
            self.idle_since.set(Instant::now());
            if self.draining.get() {
                self.close(ClosedBy::Us);
            }
        }
        if self.closed.get().is_some() {
            self.pool.not_ready(self);
        } else if self.can_take_stream() {
            self.pool.is_ready(self);
            self.pool.serve_waiting();
        }
    }

    /// Takes no more streams; closes once the last one is over.
    pub fn drain(self: &Rc<Self>) {
        self.draining.set(true);
        self.pool.not_ready(self);
        if self.active.get() == 0 {
            self.close(ClosedBy::Us);
        }
    }

    /// Ends the task, and the connection with it.
    fn close(&self, by: ClosedBy) {
        if self.closed.get().is_none() {
            self.closed.set(Some(by));
            if let Some(waker) = &*self.waker.borrow() {
                waker.wake_by_ref();
            }
        }
    }
}

/// What an HTTP/2 connection tells of itself.
struct Events(Rc<RefCell<Weak<Client>>>);

impl Events {
    fn client(&self) -> Option<Rc<Client>> {
        self.0.borrow().upgrade()
    }
}

impl h2::ClientEvents for Events {
    fn goaway(&self) {
        if let Some(client) = self.client() {
            client.pool.shared().stats().upstream_cx_close_notify.inc();
            client.drain();
        }
    }

    fn closed(&self) {
        if let Some(client) = self.client() {
            client.draining.set(true);
            client.pool.not_ready(&client);
        }
    }

    fn stream_ended(&self) {
        if let Some(client) = self.client() {
            client.stream_done();
        }
    }
}
