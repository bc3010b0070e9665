//! The receiving half of a stream: a request's body downstream, a response's upstream.

use super::{
    client::Client,
    connection::Shared,
    core::{Core, Left},
    frame::Code,
};
use crate::{
    base::StreamError,
    http::{BodySource, Frame},
};
use std::{
    rc::Rc,
    task::{Context, Poll},
};

/// Reads a body. The flow-control windows grow when a piece is handed out.
pub struct BodyReader {
    owner: Owner,
    key: u32,
    ended: bool,
}

/// Whose stream it is.
pub(super) enum Owner {
    Server(Rc<Shared>),
    Client(Rc<Client>),
}

impl Owner {
    fn shared(&self) -> &Shared {
        match self {
            Self::Server(shared) => shared,
            Self::Client(client) => &client.shared,
        }
    }
}

impl BodyReader {
    /// The key is held already.
    pub(super) fn new(owner: Owner, key: u32) -> Self {
        Self { owner, key, ended: false }
    }
}

impl Core {
    /// The next piece of a body. `None`: it is whole.
    fn poll_piece(&mut self, key: u32, cx: &Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        let stream = &mut self.streams[key];
        if let Some(data) = stream.received.pop_front() {
            stream.unread -= data.len();
            self.release_window(Some(key), data.len());
            return Poll::Ready(Some(Ok(Frame::Data(data))));
        }
        if stream.got_end {
            return Poll::Ready(stream.got_trailers.take().map(|trailers| {
                self.stats.trailers.inc();
                Ok(Frame::Trailers(*trailers))
            }));
        }
        if let Some(error) = self.error(key) {
            return Poll::Ready(Some(Err(error)));
        }
        self.streams[key].receiver.set(cx);
        Poll::Pending
    }
}

impl BodySource for BodyReader {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let shared = self.owner.shared();
        let mut core = shared.core.borrow_mut();
        let before = core.out.pending();
        let piece = core.poll_piece(self.key, cx);
        if core.out.pending() != before {
            shared.touch();
        }
        self.ended = !matches!(piece, Poll::Pending | Poll::Ready(Some(Ok(Frame::Data(_)))));
        piece
    }

    fn is_end(&self) -> bool {
        if self.ended {
            return true;
        }
        let core = self.owner.shared().core.borrow();
        let stream = &core.streams[self.key];
        stream.got_end && stream.received.is_empty() && stream.got_trailers.is_none()
    }

    fn remaining(&self) -> Option<u64> {
        if self.is_end() {
            return Some(0);
        }
        let core = self.owner.shared().core.borrow();
        let stream = &core.streams[self.key];
        stream.promised.map(|promised| promised + stream.unread as u64)
    }
}

impl Drop for BodyReader {
    fn drop(&mut self) {
        match &self.owner {
            Owner::Client(client) => {
                client.shared.core.borrow_mut().unwanted(self.key);
                client.let_go(self.key);
            }
            Owner::Server(shared) => {
                let mut core = shared.core.borrow_mut();
                core.unwanted(self.key);
                if core.let_go(self.key) == Left::UnderWay {
                    // The response is whole: nobody waits for the rest of the request.
                    core.abandon(self.key, Code::NO_ERROR);
                }
                drop(core);
                shared.touch();
            }
        }
    }
}
