//! HTTP/1 on both sides: our own codec, since it must accept, reject and write exactly what Envoy does.
//!
//! Listeners call [`serve`] with a downstream connection; pools make [`ClientConnection`]s. Below them, without I/O:
//! `parse` (heads), `fields` (header lines), `target` (request targets), `body`, `encode`; and what both sides share:
//! `wire` (buffers over a stream), `outbox` (what waits to be written), `exchange` (a message in, a message out).
//! Invariants: payload is given on as the `Bytes` that were read; every buffer has a limit; an idle connection holds no
//! buffer; no borrow is held while anything else runs.

mod body;
mod client;
mod details;
mod encode;
mod exchange;
mod fields;
mod options;
mod outbox;
mod parse;
mod server;
mod target;
mod wire;

pub use client::{ClientConnection, ClientStream, OnDone, Outcome};
pub use details::status_of;
pub use options::{ClientOptions, HeadLimits, HeaderKeyFormat, Http1ProtocolOptions, ServerOptions};
pub use server::{Closed, Responder, serve};
pub use target::is_valid as is_request_target;

use super::{BodySource, Frame, body::PipeRoom};
use crate::{base::StreamError, transport::Pipe};
use exchange::{Count, Exchange};
use std::{
    cell::RefCell,
    rc::Rc,
    task::{Context, Poll},
};

crate::stats! {
    /// `http1.*` below the server's root, and below each cluster.
    pub struct CodecStats {
        counter dropped_headers_with_underscores,
        counter metadata_not_supported_error,
        counter requests_rejected_with_underscores_in_headers,
        counter response_flood,
    }
}

/// The body of a message on a connection, and after an upgrade whatever the peer sends.
pub struct BodyReader {
    owner: Owner,
    serial: u64,
    received: Count,
    /// Its end was seen: what comes next on the connection is another's.
    ended: bool,
}

enum Owner {
    Downstream(Rc<server::Shared>),
    Upstream(Rc<client::Shared>),
}

impl BodyReader {
    fn downstream(shared: Rc<server::Shared>, serial: u64) -> Self {
        Self { owner: Owner::Downstream(shared), serial, received: (0, 0), ended: false }
    }

    fn upstream(shared: Rc<client::Shared>, serial: u64) -> Self {
        Self { owner: Owner::Upstream(shared), serial, received: (0, 0), ended: false }
    }

    fn exchange(&self) -> &RefCell<Exchange> {
        match &self.owner {
            Owner::Downstream(shared) => &shared.exchange,
            Owner::Upstream(shared) => &shared.exchange,
        }
    }

    /// True if what comes next of the message is worth reading into pipes that go to `room`.
    pub fn gives_pipes(&self, room: PipeRoom) -> bool {
        let exchange = self.exchange().borrow();
        exchange.serial == self.serial && exchange.gives_pipes(room)
    }

    /// Reads what comes next into a pipe. `None`: it is to be read as ever.
    pub fn poll_pipe(&mut self, cx: &mut Context<'_>, room: PipeRoom) -> Poll<Result<Option<Pipe>, StreamError>> {
        self.read(cx, |exchange, cx| exchange.poll_pipe(cx, room))
    }

    /// Reads, and notes how far the message is. Where it is an upstream's, the request goes on being written meanwhile.
    fn read<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Exchange, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let polled = {
            let mut exchange = self.exchange().borrow_mut();
            let polled = poll(&mut exchange, cx);
            if polled.is_pending() && matches!(self.owner, Owner::Upstream(_)) {
                exchange.write_aside(cx);
            }
            let (received, ended) = (exchange.received, exchange.incoming.is_end());
            drop(exchange);
            (self.received, self.ended) = (received, ended);
            polled
        };
        if let (Owner::Upstream(shared), true) = (&self.owner, polled.is_ready()) {
            shared.settle();
        }
        polled
    }

    /// Bytes of the message so far: (header lines, everything else); their sum is what was on the wire.
    pub fn bytes_received(&self) -> (u64, u64) {
        let exchange = self.exchange().borrow();
        if exchange.serial == self.serial { exchange.received } else { self.received }
    }
}

impl BodySource for BodyReader {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        let exchange = self.exchange().borrow();
        if exchange.serial != self.serial {
            return Poll::Ready((!self.ended).then(|| Err(exchange.stale())));
        }
        drop(exchange);
        self.read(cx, Exchange::poll_frame)
    }

    fn is_end(&self) -> bool {
        let exchange = self.exchange().borrow();
        if exchange.serial == self.serial { exchange.incoming.is_end() } else { self.ended }
    }

    fn remaining(&self) -> Option<u64> {
        let exchange = self.exchange().borrow();
        if exchange.serial == self.serial { exchange.incoming.remaining() } else { self.ended.then_some(0) }
    }
}

impl Drop for BodyReader {
    fn drop(&mut self) {
        if let Owner::Upstream(shared) = &self.owner {
            shared.leave(self.serial);
        }
    }
}
