//! One stream's way through its HTTP filters. Called by `stream`; which filters there are is in `filter_chain`.
//!
//! A filter is made when its turn has come, so that it sees what those before it did; responses go through all of them,
//! whoever gives them and however early. After an internal redirect all begins anew, with new filters.

use super::{
    Body, BodySource, Frame, ResponseHead,
    dispatch::{self, Next},
    filter_chain::Chain,
    held_body::HeldBody,
    kept, local_reply,
    pump::Pump,
    redirect,
    service::Responder,
    stream::{Answer, Interrupt, Stream},
};
use crate::filters::{Action, Buffered, HttpFilter, LocalReply, compressor::Compressor};
use std::{
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

/// A stream's filters so far.
#[derive(Default)]
pub struct FilterRun {
    made: Vec<Box<dyn HttpFilter>>,
    /// Decided by the route that the stream took first.
    chain: Option<Rc<Chain>>,
    /// What the route says now, if it was looked up again.
    current: Option<Rc<Chain>>,
    /// How many of the chain were asked.
    asked: usize,
    /// Those that the request passed: they choose together.
    pub compressors: Vec<Arc<Compressor>>,
}

/// What is there of a body that does not go on yet.
#[derive(Default)]
struct Held {
    frames: Vec<Frame>,
    size: u64,
}

impl Held {
    /// Reads the request's body until it is whole, or there are `most` bytes.
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        request: &mut Pump,
        responder: &mut Responder,
        most: u64,
    ) -> Poll<Result<(), Interrupt>> {
        while self.size < most && !request.source().is_end() {
            match request.source().poll_frame(cx) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                    stream.deadlines.touch();
                    self.size += data.len() as u64;
                    let last = self.frames.pop_if(|frame| matches!(frame, Frame::Data(_)));
                    let last = last.and_then(|frame| if let Frame::Data(last) = frame { Some(last) } else { None });
                    let (before, last) = kept::join(last, data);
                    self.frames.extend(before.into_iter().chain([last]).map(Frame::Data));
                }
                Poll::Ready(Some(Ok(trailers))) => self.frames.push(trailers),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(Interrupt::Gone(error))),
                Poll::Ready(None) => break,
                Poll::Pending => return stream.poll_interrupt(cx, responder).map(Err),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Stream {
    /// Request filters, then the router; again after an internal redirect.
    pub(super) async fn take_to_its_end(&mut self, request: &mut Pump, responder: &mut Responder) -> Answer {
        let mut redirects = redirect::Followed::default();
        loop {
            if let Err(answer) = self.run_request_filters(request, responder).await {
                return answer;
            }
            match dispatch::dispatch(self, request, responder, &mut redirects).await {
                Next::Answer(answer) => return answer,
                Next::Again => self.end_filters(),
            }
        }
    }

    async fn run_request_filters(&mut self, request: &mut Pump, responder: &mut Responder) -> Result<(), Answer> {
        while let Some(mut filter) = self.next_filter() {
            let action = filter.on_request(self, request.is_empty());
            if let Err(answer) = self.settle(&mut *filter, action, request, responder).await {
                self.filters.made.push(filter);
                return Err(answer);
            }
            request.map_source(|body| filter.request_body(self, body));
            self.filters.made.push(filter);
        }
        Ok(())
    }

    /// Does what a request filter asked for, until it lets the request go on. What comes of the request's body in the
    /// meantime is kept: as much as is asked for, or else as connections may buffer.
    async fn settle(
        &mut self,
        filter: &mut dyn HttpFilter,
        mut action: Action,
        request: &mut Pump,
        responder: &mut Responder,
    ) -> Result<(), Answer> {
        let mut held = Held::default();
        let mut too_large = false;
        loop {
            let done = match action {
                Action::Continue => {
                    request.map_source(|rest| HeldBody::new(held.frames, rest));
                    return Ok(());
                }
                Action::Reply(reply) => {
                    // Nobody wants what was held any more: if it was all, the request is read. One that was refused for
                    // its size counts as unread, as with Envoy.
                    if too_large {
                        request.map_source(|rest| HeldBody::new(held.frames, rest));
                    }
                    return Err(Answer::Local(reply));
                }
                Action::Await(mut wait) => {
                    too_large = false;
                    let most = self.connection.manager.buffer_limit as u64;
                    let resume = poll_fn(|cx| {
                        if let Poll::Ready(resume) = wait.as_mut().poll(cx) {
                            return Poll::Ready(Ok(resume));
                        }
                        if let Poll::Ready(Err(interrupt)) = held.poll_fill(cx, self, request, responder, most) {
                            return Poll::Ready(Err(interrupt));
                        }
                        self.poll_interrupt(cx, responder).map(Err)
                    })
                    .await;
                    resume.map(|resume| resume(self))
                }
                Action::Buffer(limit) => {
                    poll_fn(|cx| held.poll_fill(cx, self, request, responder, limit.saturating_add(1))).await.map(
                        |()| {
                            let Held { frames, size } = &held;
                            too_large = *size > limit;
                            let is_whole = request.source().is_end();
                            filter.on_request_body(self, &Buffered { frames, size: *size, is_whole })
                        },
                    )
                }
            };
            match done {
                Ok(next) => action = next,
                Err(interrupt) => return Err(self.interrupted(interrupt, request)),
            }
        }
    }

    fn poll_interrupt(&mut self, cx: &mut Context<'_>, responder: &mut Responder) -> Poll<Interrupt> {
        if let Poll::Ready(gone) = responder.poll_closed(cx) {
            return Poll::Ready(Interrupt::Gone(gone));
        }
        self.deadlines.poll(cx).map(Interrupt::Deadline)
    }

    /// The next filter that applies.
    fn next_filter(&mut self) -> Option<Box<dyn HttpFilter>> {
        let filters = self.connection.filters.clone();
        if filters.is_empty() {
            return None;
        }
        let chain = self.filters.chain.get_or_insert_with(|| filters.chain(self.route.as_deref())).clone();
        let current = self.filters.current.clone();
        loop {
            let made = filters.create(&chain, self.filters.asked, current.as_ref().unwrap_or(&chain), self)?;
            self.filters.asked += 1;
            if made.is_some() {
                return made;
            }
        }
    }

    /// The route was looked up again: what it says of filters counts from here on, but for which of them are on.
    pub(super) fn refresh_filters(&mut self) {
        if self.filters.chain.is_some() {
            self.filters.current = Some(self.connection.filters.chain(self.route.as_deref()));
        }
    }

    /// Makes the filters that the request did not come to: responses go through them.
    pub(super) fn create_filters(&mut self) {
        while let Some(filter) = self.next_filter() {
            self.filters.made.push(filter);
        }
    }

    /// Takes a response through the filters.
    pub(super) async fn run_response_filters(
        &mut self,
        mut head: ResponseHead,
        mut body: Body,
    ) -> (ResponseHead, Body) {
        let mut filters = std::mem::take(&mut self.filters.made);
        let mut replaced = false;
        let mut at = filters.len();
        while at > 0 {
            at -= 1;
            let mut action = filters[at].on_response(self, &mut head, body.is_end());
            loop {
                match action {
                    Action::Reply(reply) if !replaced => {
                        // A reply in place of a response goes through the filters from the start, once.
                        replaced = true;
                        (head, body) = self.replace(reply);
                        at = filters.len();
                        break;
                    }
                    Action::Continue | Action::Reply(_) | Action::Buffer(_) => break,
                    Action::Await(wait) => action = wait.await(self),
                }
            }
            if at < filters.len() {
                body = filters[at].response_body(self, body);
            }
        }
        self.filters.made = filters;
        (head, body)
    }

    fn replace(&mut self, reply: LocalReply) -> (ResponseHead, Body) {
        self.info.set_details(reply.details.clone());
        local_reply::build(self, reply)
    }

    /// The filters' part of the stream is over, and may begin anew.
    pub(super) fn end_filters(&mut self) {
        for mut filter in std::mem::take(&mut self.filters).made {
            filter.on_end(self);
        }
    }
}
