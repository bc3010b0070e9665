//! Request mirroring: a copy of the request goes to another cluster, and what that answers is thrown away.

use super::{
    Body, BodySource, Frame, ResponseEvent,
    header_names::ENVOY_INTERNAL,
    kept,
    pump::{Pump, PumpError, TeeFrame},
    stream::Stream,
};
use crate::{
    base::{ResetReason, Side, StreamError},
    route::Forward,
    upstream::{LbContext, ProtocolChoice, ServerNames, StreamRequest},
};
use bytes::Bytes;
use http::HeaderValue;
use std::{
    cell::RefCell,
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

/// A body that another pump's frames feed. Bounded by [`LIMIT`].
#[derive(Default)]
struct Queue {
    frames: VecDeque<Frame>,
    size: usize,
    ended: bool,
    /// The mirror is given up.
    failed: bool,
    /// The mirror's host takes no more of it, but may still answer.
    refused: bool,
    /// Of the mirror's task.
    waker: Option<Waker>,
}

/// More than this behind, and the mirror is given up rather than the memory.
const LIMIT: usize = 1 << 20;

struct QueueBody(Rc<RefCell<Queue>>);

impl BodySource for QueueBody {
    fn poll_frame(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        let mut queue = self.0.borrow_mut();
        if queue.failed {
            return Poll::Ready(Some(Err(StreamError::new(Side::Ours, ResetReason::LocalReset, "mirror"))));
        }
        match queue.frames.pop_front() {
            Some(frame) => {
                if let Frame::Data(data) = &frame {
                    queue.size -= data.len();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            None if queue.ended => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    fn is_end(&self) -> bool {
        let queue = self.0.borrow();
        queue.ended && queue.frames.is_empty()
    }

    fn remaining(&self) -> Option<u64> {
        None
    }
}

impl Queue {
    /// True once there is no use in going on; the task is woken when that comes to be.
    fn is_given_up(&mut self, cx: &Context<'_>) -> bool {
        self.waker = Some(cx.waker().clone());
        self.failed
    }

    /// What came of moving frames to the mirror's host.
    fn moved(&mut self, result: Poll<Result<(), PumpError>>) {
        if let Poll::Ready(Err(_)) = result {
            self.refused = true;
            self.frames.clear();
        }
    }

    fn push(&mut self, frame: TeeFrame<'_>) {
        match frame {
            TeeFrame::Data(_) | TeeFrame::Trailers(_) if self.failed || self.refused => {}
            TeeFrame::Data(data) => {
                self.size += data.len();
                self.failed |= self.size > LIMIT;
                let before = match self.frames.pop_back() {
                    Some(Frame::Data(before)) => Some(before),
                    other => {
                        self.frames.extend(other);
                        None
                    }
                };
                let (before, last) = kept::join(before, data.clone());
                self.frames.extend(before.into_iter().chain([last]).map(Frame::Data));
            }
            TeeFrame::Trailers(trailers) => self.frames.push_back(Frame::Trailers(trailers.clone())),
            TeeFrame::End => self.ended = true,
            TeeFrame::Abort => self.failed |= !self.ended,
        }
        if self.failed {
            self.frames.clear();
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Starts the mirrors that the route asks for. The request's own way is not touched.
pub fn start(stream: &Stream, forward: &Forward, request: &mut Pump) {
    for policy in &forward.mirrors {
        let runtime = stream.connection.thread.runtime();
        if !policy.samples(&runtime, stream.random) {
            continue;
        }
        let Some(cluster) = policy.cluster(&stream.connection.thread.upstreams, &stream.request) else { continue };
        let mut head = stream.request.clone();
        if !policy.keeps_host {
            head.authority = shadow_host(&head.authority);
        }
        head.headers.insert(ENVOY_INTERNAL, HeaderValue::from_static("true"));
        if let Some(host) = &policy.host {
            head.authority = host.clone();
        }
        policy.mutations.apply(&mut head, &stream.info);
        let queue = Rc::new(RefCell::new(Queue::default()));
        let body = if request.is_empty() {
            Body::Empty
        } else {
            let tee = queue.clone();
            request.add_tee(Box::new(move |frame| tee.borrow_mut().push(frame)));
            Body::Boxed(Box::new(QueueBody(queue.clone())))
        };
        let timeout = forward.config.timeout;
        let priority = forward.config.priority;
        tokio::task::spawn_local(async move {
            let mut run = pin!(async {
                let host = cluster.choose_host(&LbContext { request: Some(&head), ..LbContext::default() })?;
                let wanted = StreamRequest {
                    downstream_protocol: head.protocol,
                    priority,
                    protocol: ProtocolChoice::Http,
                    connection: None,
                    names: ServerNames::of(&head, &cluster.info().config.http.upstream),
                };
                let (mut upstream, _connection) = cluster.http_stream(&host, wanted).await.ok()?;
                let mut pump = Pump::new(body);
                upstream.send_head(&head, pump.is_empty()).ok()?;
                let (head, mut body) = poll_fn(|cx| {
                    let moved = pump.poll(cx, &mut upstream, || ());
                    queue.borrow_mut().moved(moved);
                    loop {
                        match std::task::ready!(upstream.poll_response(cx)) {
                            Ok(ResponseEvent::Informational(_)) => {}
                            Ok(ResponseEvent::Head(head, body)) => return Poll::Ready(Some((head, body))),
                            Err(_) => return Poll::Ready(None),
                        }
                    }
                })
                .await?;
                cluster.count_shadow_response(head.status.as_u16());
                while poll_fn(|cx| {
                    let moved = pump.poll(cx, &mut upstream, || ());
                    queue.borrow_mut().moved(moved);
                    body.poll_frame(cx)
                })
                .await
                .is_some_and(|frame| frame.is_ok())
                {}
                Some(())
            });
            // Wherever it is: nothing is waited for once it is given up.
            let run = poll_fn(|cx| {
                if queue.borrow_mut().is_given_up(cx) {
                    return Poll::Ready(None);
                }
                run.as_mut().poll(cx)
            });
            if timeout.is_zero() {
                run.await;
            } else {
                // Counted from its start: nobody waits for a mirror's answer.
                let _ = tokio::time::timeout(timeout + Duration::from_secs(1), run).await;
            }
        });
    }
}

/// `host:port` becomes `host-shadow:port`.
fn shadow_host(authority: &Bytes) -> Bytes {
    let after_brackets = memchr::memrchr(b']', authority).map_or(0, |at| at + 1);
    let colon = memchr::memchr(b':', &authority[after_brackets..]).map_or(authority.len(), |at| at + after_brackets);
    [&authority[..colon], b"-shadow", &authority[colon..]].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shadow_hosts() {
        for (host, want) in [
            ("a.com", "a.com-shadow"),
            ("a.com:81", "a.com-shadow:81"),
            ("[::1]:80", "[::1]-shadow:80"),
            ("[::1]", "[::1]-shadow"),
        ] {
            assert_eq!(shadow_host(&Bytes::from(host)), want);
        }
    }

    #[test]
    fn a_mirror_that_falls_behind_is_given_up() {
        let queue = Rc::new(RefCell::new(Queue::default()));
        queue.borrow_mut().push(TeeFrame::Data(&Bytes::from(vec![0; LIMIT])));
        assert!(!queue.borrow().failed);
        queue.borrow_mut().push(TeeFrame::Data(&Bytes::from_static(b"x")));
        assert!(queue.borrow().failed);
        queue.borrow_mut().push(TeeFrame::Data(&Bytes::from_static(b"y")));
        assert!(queue.borrow().frames.is_empty(), "nothing is kept for it any more");
    }
}
