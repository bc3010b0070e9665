//! Load reports of hosts in the trailers of responses.

use super::{Body, BodySource, Frame};
use crate::{base::StreamError, upstream::ThreadHost};
use std::{
    rc::Rc,
    task::{Context, Poll, ready},
};

/// A response's body whose trailers are read on their way.
struct Watched {
    body: Body,
    host: Rc<ThreadHost>,
}

/// `body`, whose trailers are read for `host`.
pub fn watched(body: Body, host: Rc<ThreadHost>) -> Body {
    if body.is_end() { body } else { Body::Boxed(Box::new(Watched { body, host })) }
}

impl BodySource for Watched {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        let frame = ready!(self.body.poll_frame(cx));
        if let Some(Ok(Frame::Trailers(trailers))) = &frame {
            self.host.take_report(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end(&self) -> bool {
        self.body.is_end()
    }

    fn remaining(&self) -> Option<u64> {
        self.body.remaining()
    }
}
