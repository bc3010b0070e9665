//! The tries of one request: a host is picked, the request goes there, and again elsewhere as the retry policy says,
//! until there is a response that may go to the client, or none will come.
//!
//! `dispatch` calls [`Tries::run`]. A try that takes too long may be left running beside the next one (hedging); the first
//! good response wins, and the other tries are reset. Invariant: at most one try is being sent to; those left running have got
//! the whole request.

mod elsewhere;

use super::{
    Body, ResponseEvent, ResponseHead,
    deadlines::{Deadline, Deadlines},
    dispatch::{count_failure, count_timeout, failed, no_host, timed_out},
    grpc,
    header_names::*,
    pump::{Pump, PumpError},
    retry::{Retries, Verdict},
    service::{Responder, UpstreamStream},
    single_headers,
    stream::{Answer, Interrupt, Stream},
    timeouts::{self, TimeoutPolicy, Timeouts},
};
use crate::{
    base::{ResponseFlag, StreamError, clock},
    observe::StreamInfo,
    route::Forward,
    upstream::{
        LbContext, ProtocolChoice, ServerNames, StreamRequest, ThreadCluster, ThreadHost, UpstreamConnection,
        outlier::Report,
    },
};
use elsewhere::Elsewhere;
use http::HeaderValue;
use std::{
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

/// So many bytes of a request's body are kept until the response begins, in case its kept-alive connection turns out to
/// have been closed.
const REPLAY: u64 = 16 * 1024;
/// How often that may happen to one request.
const REPLAYS: u32 = 3;

/// One try at one host.
pub struct Attempt {
    pub stream: UpstreamStream,
    pub connection: Rc<UpstreamConnection>,
    pub host: Rc<ThreadHost>,
    route_timeout: Duration,
    request_is_done: bool,
}

impl Attempt {
    /// The whole request was handed to the upstream.
    pub fn request_done(&mut self, info: &mut StreamInfo, deadlines: &mut Deadlines) {
        if std::mem::replace(&mut self.request_is_done, true) {
            return;
        }
        info.points.upstream_tx_end = Some(clock::now());
        request_received(info, deadlines, self.route_timeout);
    }
}

/// The whole request is here: the route's timeout begins, unless it did with an earlier try.
fn request_received(info: &mut StreamInfo, deadlines: &mut Deadlines, route_timeout: Duration) {
    info.points.downstream_rx_end.get_or_insert_with(clock::now);
    deadlines.clear(Deadline::Request);
    if !route_timeout.is_zero() && !deadlines.is_set(Deadline::Route) {
        deadlines.set(Deadline::Route, Some(route_timeout));
    }
}

/// A try with the response that it got.
pub type Answered = (Attempt, ResponseHead, Body);

/// What came of one try.
enum Outcome {
    Response(Answered),
    Failed {
        host: Rc<ThreadHost>,
        error: StreamError,
        /// The connection had carried another request before.
        was_reused: bool,
    },
    /// The try goes on, unless there is none yet.
    Interrupted(Option<Attempt>, Interrupt),
    NoHost,
    /// One of those left running was faster.
    Older(Answered),
}

/// The tries of one request.
pub struct Tries<'a> {
    /// As it is now: it may be replaced between tries.
    pub cluster: Rc<ThreadCluster>,
    pub forward: &'a Forward,
    pub policy: &'a TimeoutPolicy,
    pub timeouts: &'a Timeouts,
    pub retries: Option<Retries>,
    /// Took too long, and were left running.
    older: Vec<Attempt>,
    elsewhere: Elsewhere,
}

impl<'a> Tries<'a> {
    pub fn new(
        cluster: Rc<ThreadCluster>,
        forward: &'a Forward,
        policy: &'a TimeoutPolicy,
        timeouts: &'a Timeouts,
        retries: Option<Retries>,
    ) -> Self {
        Self { cluster, forward, policy, timeouts, retries, older: Vec::new(), elsewhere: Elsewhere::default() }
    }

    /// Tries until one gives a response that may go to the client.
    pub async fn run(
        &mut self,
        stream: &mut Stream,
        request: &mut Pump,
        responder: &mut Responder,
    ) -> Result<Answered, Answer> {
        let answered = self.until_answered(stream, request, responder).await?;
        if answered.0.request_is_done {
            // It may be one that was left running, and a later one have got a part of the request since.
            request.finish();
        }
        Ok(answered)
    }

    async fn until_answered(
        &mut self,
        stream: &mut Stream,
        request: &mut Pump,
        responder: &mut Responder,
    ) -> Result<Answered, Answer> {
        let mut replays = 0;
        let mut outcome = self.make(stream, request, responder).await;
        loop {
            // A kept-alive connection was closed before the upstream had seen the request: nothing is lost.
            if let Outcome::Failed { error, was_reused: true, .. } = &outcome
                && error.retry_is_safe
                && request.can_replay()
                && replays < REPLAYS
            {
                replays += 1;
                self.follow_cluster(stream);
                request.rewind();
                outcome = self.make(stream, request, responder).await;
                continue;
            }
            let is_timeout = matches!(
                outcome,
                Outcome::Interrupted(_, Interrupt::Deadline(Deadline::PerTry | Deadline::PerTryIdle))
            );
            let verdict = self.judge(stream, &outcome, is_timeout, request);
            match verdict {
                Verdict::Again => {
                    self.leave(stream, outcome);
                    if let Some(done) = self.back_off(stream, request, responder).await {
                        return done;
                    }
                    self.prepare(stream, is_timeout);
                    request.rewind();
                    outcome = self.make(stream, request, responder).await;
                    continue;
                }
                Verdict::No => {}
                Verdict::Overflow => stream.info.set_flag(ResponseFlag::UpstreamOverflow),
                Verdict::LimitExceeded => stream.info.set_flag(ResponseFlag::UpstreamRetryLimitExceeded),
            }
            return match outcome {
                // It may take as long as the route's timeout says.
                Outcome::Interrupted(Some(attempt), _) if is_timeout && self.timeouts.hedges => {
                    outcome = self.wait(stream, attempt, request, responder).await;
                    continue;
                }
                Outcome::NoHost => Err(no_host(stream, &self.cluster)),
                Outcome::Interrupted(attempt, interrupt) => {
                    let host = attempt.map(|attempt| attempt.host);
                    Err(timed_out(stream, &self.cluster, host.as_deref(), interrupt, self.timeouts, request))
                }
                // A response that would have been tried again gives those that still run a chance.
                Outcome::Response((attempt, ..)) if verdict != Verdict::No && !self.older.is_empty() => {
                    attempt.host.count_error();
                    drop(attempt);
                    self.older_alone(stream, request, responder).await
                }
                Outcome::Response(answered) | Outcome::Older(answered) => Ok(answered),
                Outcome::Failed { host, error, .. } if !self.older.is_empty() => {
                    count_failure(&self.cluster, &host, &error);
                    self.older_alone(stream, request, responder).await
                }
                Outcome::Failed { host, error, .. } => Err(failed(stream, &self.cluster, &host, &error)),
            };
        }
    }

    /// Decides whether there is another try.
    fn judge(&mut self, stream: &Stream, outcome: &Outcome, is_timeout: bool, request: &Pump) -> Verdict {
        let Some(retries) = &mut self.retries else { return Verdict::No };
        if !request.can_replay() {
            return Verdict::No;
        }
        let runtime = stream.connection.thread.runtime();
        match outcome {
            Outcome::Response((_, head, _)) => retries.on_response(head, &runtime),
            Outcome::Failed { error, .. } => retries.on_reset(error.reason, &runtime),
            Outcome::Interrupted(..) if is_timeout && self.timeouts.hedges => retries.on_slow(&runtime),
            Outcome::Interrupted(..) if is_timeout => retries.on_timeout(&runtime),
            Outcome::Interrupted(..) | Outcome::NoHost | Outcome::Older(_) => Verdict::No,
        }
    }

    /// Counts a try that is followed by another, and ends it, unless it is left running.
    fn leave(&mut self, stream: &Stream, outcome: Outcome) {
        match outcome {
            Outcome::Response((attempt, head, body)) => {
                attempt.host.count_error();
                if stream.connection.manager.router.dynamic_stats {
                    self.cluster.stats().retry_upstream_rq.inc(head.status.as_u16());
                }
                drop((attempt, body));
            }
            Outcome::Failed { host, error, .. } => count_failure(&self.cluster, &host, &error),
            Outcome::Interrupted(Some(attempt), _) if self.timeouts.hedges => {
                attempt.host.report(Report::TimedOut);
                self.older.push(attempt);
            }
            Outcome::Interrupted(Some(attempt), Interrupt::Deadline(which)) => {
                let stats = self.cluster.stats();
                let idle = which == Deadline::PerTryIdle;
                if idle { &stats.upstream_rq_per_try_idle_timeout } else { &stats.upstream_rq_per_try_timeout }.inc();
                count_timeout(&attempt.host);
            }
            Outcome::Interrupted(..) | Outcome::NoHost | Outcome::Older(_) => {}
        }
    }

    /// Takes the cluster's replacement, if there is one: what was replaced has no hosts for another try.
    fn follow_cluster(&mut self, stream: &Stream) {
        let current = stream.connection.thread.upstreams.get(self.cluster.info().id);
        if let Some(current) = current.filter(|current| !Rc::ptr_eq(current, &self.cluster)) {
            self.cluster = current;
            self.elsewhere = Elsewhere::default();
        }
    }

    /// Writes into the request what the next try is to say of itself.
    fn prepare(&mut self, stream: &mut Stream, is_timeout: bool) {
        self.follow_cluster(stream);
        self.retries.iter_mut().for_each(Retries::begins);
        stream.info.attempt_count += 1;
        let headers = &mut stream.request.headers;
        if self.forward.include_attempt_count {
            headers.insert(ENVOY_ATTEMPT_COUNT, stream.info.attempt_count.into());
        }
        if self.forward.include_is_timeout_retry {
            let value = if is_timeout { "true" } else { "false" };
            headers.insert(ENVOY_IS_TIMEOUT_RETRY, HeaderValue::from_static(value));
        }
        let since = stream.info.points.downstream_rx_end;
        let elapsed = since.map(|since| clock::now().saturating_duration_since(since)).unwrap_or_default();
        timeouts::tell(headers, self.timeouts, self.policy, stream.is_grpc, elapsed);
    }

    /// Waits until the next try may begin. `Some`: there will be none.
    async fn back_off(
        &mut self,
        stream: &mut Stream,
        request: &Pump,
        responder: &mut Responder,
    ) -> Option<Result<Answered, Answer>> {
        let runtime = stream.connection.thread.runtime();
        let wait = self.retries.as_mut().map(|retries| retries.back_off(&runtime)).unwrap_or_default();
        for deadline in [Deadline::PerTry, Deadline::PerTryIdle, Deadline::UpstreamMaxStreamDuration] {
            stream.deadlines.clear(deadline);
        }
        // None, rather than a deadline of zero, which would be off.
        if wait.is_zero() {
            return None;
        }
        stream.deadlines.set(Deadline::BackOff, Some(wait));
        let over = poll_fn(|cx| {
            if let Poll::Ready(answered) = self.poll_older(cx, stream) {
                return Poll::Ready(Ok(answered));
            }
            poll_interrupt(cx, stream, responder).map(Err)
        })
        .await;
        stream.deadlines.clear(Deadline::BackOff);
        match over {
            Ok(answered) => Some(Ok(answered)),
            Err(Interrupt::Deadline(Deadline::BackOff)) => None,
            Err(interrupt) => Some(Err(timed_out(stream, &self.cluster, None, interrupt, self.timeouts, request))),
        }
    }

    /// One try, from the pick of a host to the head of the response.
    async fn make(&mut self, stream: &mut Stream, request: &mut Pump, responder: &mut Responder) -> Outcome {
        if request.is_read() && !stream.is_tunnel() {
            // The wait for a connection counts, too.
            request_received(&mut stream.info, &mut stream.deadlines, self.timeouts.route);
        }
        let connection = stream.connection.clone();
        let context = LbContext {
            connection: Some(&connection.info),
            request: Some(&stream.request),
            dynamic_metadata: Some(&stream.info.dynamic_metadata),
            hash: stream.balancing.hash,
            metadata_match: stream.balancing.metadata_match(stream.route.as_deref()),
            attempt: stream.info.attempt_count.saturating_sub(1),
            ..LbContext::default()
        };
        let policy = self.retries.as_ref().and_then(Retries::policy);
        let chosen = match policy {
            Some(policy) => self.elsewhere.choose(&self.cluster, policy, context, &stream.info),
            None => self.cluster.choose_host(&context),
        };
        let Some(host) = chosen else { return Outcome::NoHost };
        if let Some(route) = stream.route.clone() {
            let keep = !connection.manager.router.suppress_envoy_headers;
            route.rewrite_host_to(&mut stream.request, &host.host().hostname, keep);
        }
        tell_host(stream, &host);
        stream.info.upstream.attempted.push(host.address().clone());
        let is_raw = self.forward.connects_raw(&stream.request);
        let wanted = StreamRequest {
            downstream_protocol: stream.request.protocol,
            priority: self.forward.config.priority,
            protocol: if is_raw { ProtocolChoice::Tcp } else { ProtocolChoice::Http },
            connection: Some(connection.info.clone()),
            names: ServerNames::of(&stream.request, &self.cluster.info().config.http.upstream),
        };
        stream.info.points.upstream_connect_start = Some(clock::now());
        let cluster = self.cluster.clone();
        let mut open = pin!(cluster.http_stream(&host, wanted));
        let opened = poll_fn(|cx| {
            if let Poll::Ready(opened) = open.as_mut().poll(cx) {
                return Poll::Ready(Ok(opened));
            }
            if let Poll::Ready(answered) = self.poll_older(cx, stream) {
                return Poll::Ready(Err(Box::new(Outcome::Older(answered))));
            }
            poll_interrupt(cx, stream, responder).map(|interrupt| Err(Box::new(Outcome::Interrupted(None, interrupt))))
        })
        .await;
        let (upstream, connection) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => return Outcome::Failed { host, error, was_reused: false },
            Err(outcome) => return *outcome,
        };
        stream.info.points.upstream_connect_end = Some(clock::now());
        host.report(Report::Connected);
        let longest = self.timeouts.upstream_stream.or(self.cluster.info().config.http.common.max_stream_duration);
        stream.deadlines.set(Deadline::UpstreamMaxStreamDuration, longest);
        let attempt =
            Attempt { stream: upstream, connection, host, route_timeout: self.timeouts.route, request_is_done: false };
        tell_connection(stream, &attempt);
        if attempt.connection.was_reused() {
            request.keep_for_replay(REPLAY);
        }
        self.exchange(stream, attempt, request, responder).await
    }

    /// Sends the request and waits for the response's head.
    async fn exchange(
        &mut self,
        stream: &mut Stream,
        mut attempt: Attempt,
        request: &mut Pump,
        responder: &mut Responder,
    ) -> Outcome {
        stream.info.points.upstream_tx_start = Some(clock::now());
        if !self.timeouts.per_try_idle.is_zero() {
            stream.deadlines.set(Deadline::PerTryIdle, Some(self.timeouts.per_try_idle));
        }
        if let Some(retries) = &mut self.retries {
            retries.sent();
        }
        let no_body = request.is_empty() && !stream.is_tunnel();
        if let Err(error) = attempt.stream.send_head(&stream.request, no_body) {
            return Outcome::Failed { was_reused: attempt.connection.was_reused(), host: attempt.host, error };
        }
        if no_body {
            request.finish();
            self.sent(stream, &mut attempt);
        }
        self.wait(stream, attempt, request, responder).await
    }

    /// Waits for the response's head, while the request goes out; 1xx go to the client at once.
    async fn wait(
        &mut self,
        stream: &mut Stream,
        mut attempt: Attempt,
        request: &mut Pump,
        responder: &mut Responder,
    ) -> Outcome {
        let mut write_failed = false;
        // What a client sends before its upgrade or CONNECT is accepted could be anything, another request for the upstream too.
        let is_held = stream.is_tunnel();
        let mut came = poll_fn(|cx| {
            if let Poll::Ready(gone) = responder.poll_closed(cx) {
                return Poll::Ready(Came::Interrupt(Interrupt::Gone(gone)));
            }
            if !write_failed && !is_held && !request.is_done() {
                match request.poll(cx, &mut attempt.stream, || stream.deadlines.touch()) {
                    Poll::Ready(Ok(())) => self.sent(stream, &mut attempt),
                    Poll::Ready(Err(PumpError::Source(error))) => {
                        return Poll::Ready(Came::Interrupt(Interrupt::Gone(error)));
                    }
                    // There may be a response all the same: it was sent before the connection broke.
                    Poll::Ready(Err(PumpError::Sink(_))) => write_failed = true,
                    Poll::Pending => {}
                }
                self.give_up_replay(request);
            }
            match poll_response(cx, stream, &mut attempt, responder) {
                Poll::Ready(came) => return Poll::Ready(came),
                Poll::Pending => {}
            }
            if let Poll::Ready(answered) = self.poll_older(cx, stream) {
                return Poll::Ready(Came::Older(answered));
            }
            stream.deadlines.poll(cx).map(|which| Came::Interrupt(Interrupt::Deadline(which)))
        })
        .await;
        if let Came::Head(head, _) = &mut came {
            stream.deadlines.touch();
            single_headers::join_response(&mut head.headers);
            report_response(stream, &attempt.host, head);
        }
        match came {
            Came::Head(head, body) => Outcome::Response((attempt, head, body)),
            Came::Error(error) => {
                Outcome::Failed { was_reused: attempt.connection.was_reused(), host: attempt.host, error }
            }
            Came::Interrupt(interrupt) => Outcome::Interrupted(Some(attempt), interrupt),
            Came::Older(answered) => Outcome::Older(answered),
        }
    }

    /// The whole request is with the upstream: its time runs.
    fn sent(&self, stream: &mut Stream, attempt: &mut Attempt) {
        attempt.request_done(&mut stream.info, &mut stream.deadlines);
        if !self.timeouts.per_try.is_zero() {
            stream.deadlines.set(Deadline::PerTry, Some(self.timeouts.per_try));
        }
    }

    /// A request that became too large to be kept is sent once.
    fn give_up_replay(&mut self, request: &Pump) {
        if !request.can_replay() && self.retries.take().is_some() {
            self.cluster.stats().retry_or_shadow_abandoned.inc();
        }
    }

    /// A good response of a try that was left running. Bad ones and failures end their tries, since there is another one.
    fn poll_older(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<Answered> {
        let mut index = 0;
        while let Some(attempt) = self.older.get_mut(index) {
            match poll_final(cx, attempt) {
                Poll::Pending => index += 1,
                Poll::Ready(Err(error)) => {
                    let attempt = self.older.remove(index);
                    count_failure(&self.cluster, &attempt.host, &error);
                }
                Poll::Ready(Ok((head, body))) => {
                    let attempt = self.older.remove(index);
                    report_response(stream, &attempt.host, &head);
                    if self.retries.as_ref().is_some_and(|retries| retries.wants_another(&head)) {
                        attempt.host.count_error();
                        continue;
                    }
                    return Poll::Ready(chosen(stream, attempt, head, body));
                }
            }
        }
        Poll::Pending
    }

    /// No further try is made: the first good response of those left running is the answer, or whatever the last one gets.
    async fn older_alone(
        &mut self,
        stream: &mut Stream,
        request: &Pump,
        responder: &mut Responder,
    ) -> Result<Answered, Answer> {
        for deadline in [Deadline::PerTry, Deadline::PerTryIdle] {
            stream.deadlines.clear(deadline);
        }
        let came = poll_fn(|cx| {
            while self.older.len() > 1 {
                let before = self.older.len();
                if let Poll::Ready((attempt, head, body)) = self.poll_older(cx, stream) {
                    return Poll::Ready(Ok((attempt, Ok((head, body)))));
                }
                if self.older.len() == before {
                    return poll_interrupt(cx, stream, responder).map(Err);
                }
            }
            if let Some(last) = self.older.last_mut()
                && let Poll::Ready(result) = poll_final(cx, last)
                && let Some(attempt) = self.older.pop()
            {
                return Poll::Ready(Ok((attempt, result)));
            }
            poll_interrupt(cx, stream, responder).map(Err)
        })
        .await;
        match came {
            Ok((attempt, Ok((head, body)))) => {
                report_response(stream, &attempt.host, &head);
                Ok(chosen(stream, attempt, head, body))
            }
            Ok((attempt, Err(error))) => Err(failed(stream, &self.cluster, &attempt.host, &error)),
            Err(interrupt) => {
                let host = self.older.pop().map(|attempt| attempt.host);
                Err(timed_out(stream, &self.cluster, host.as_deref(), interrupt, self.timeouts, request))
            }
        }
    }
}

/// What came while a try was waited for.
enum Came {
    Head(ResponseHead, Body),
    Error(StreamError),
    Interrupt(Interrupt),
    Older(Answered),
}

fn poll_interrupt(cx: &mut Context<'_>, stream: &mut Stream, responder: &mut Responder) -> Poll<Interrupt> {
    if let Poll::Ready(gone) = responder.poll_closed(cx) {
        return Poll::Ready(Interrupt::Gone(gone));
    }
    stream.deadlines.poll(cx).map(Interrupt::Deadline)
}

fn poll_response(
    cx: &mut Context<'_>,
    stream: &mut Stream,
    attempt: &mut Attempt,
    responder: &mut Responder,
) -> Poll<Came> {
    loop {
        match std::task::ready!(attempt.stream.poll_response(cx)) {
            Ok(ResponseEvent::Informational(head)) => {
                stream.deadlines.touch();
                // One is enough: nothing would hold back an upstream that sends them without end.
                if std::mem::replace(&mut stream.was_informed, true) {
                    continue;
                }
                stream.connection.stats.downstream_rq.inc(head.status.as_u16());
                if let Err(error) = responder.send_informational(head) {
                    return Poll::Ready(Came::Interrupt(Interrupt::Gone(error)));
                }
            }
            Ok(ResponseEvent::Head(head, body)) => return Poll::Ready(Came::Head(head, body)),
            Err(error) => return Poll::Ready(Came::Error(error)),
        }
    }
}

/// The final response of a try that was left running.
fn poll_final(cx: &mut Context<'_>, attempt: &mut Attempt) -> Poll<Result<(ResponseHead, Body), StreamError>> {
    loop {
        match std::task::ready!(attempt.stream.poll_response(cx)) {
            Ok(ResponseEvent::Informational(_)) => {}
            Ok(ResponseEvent::Head(mut head, body)) => {
                single_headers::join_response(&mut head.headers);
                return Poll::Ready(Ok((head, body)));
            }
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

/// Tells outlier detection of a response.
fn report_response(stream: &Stream, host: &ThreadHost, head: &ResponseHead) {
    let grpc = if stream.is_grpc { grpc::status(&head.headers) } else { None };
    host.report(Report::Status(grpc.map_or(head.status.as_u16(), grpc::http_status)));
}

/// A try that was left running is the one that counts after all.
fn chosen(stream: &mut Stream, attempt: Attempt, head: ResponseHead, body: Body) -> Answered {
    stream.deadlines.touch();
    tell_host(stream, &attempt.host);
    tell_connection(stream, &attempt);
    (attempt, head, body)
}

/// What logs say of the upstream: its host.
fn tell_host(stream: &mut Stream, host: &ThreadHost) {
    let upstream = &mut stream.info.upstream;
    upstream.host = Some(host.address().clone());
    upstream.host_name = Some(host.host().hostname.clone());
    upstream.host_metadata = host.host().metadata.clone();
}

/// And the connection to it.
fn tell_connection(stream: &mut Stream, attempt: &Attempt) {
    let (upstream, connection) = (&mut stream.info.upstream, &attempt.connection);
    upstream.local = connection.local().cloned();
    upstream.remote = connection.remote().cloned();
    upstream.connection_id = Some(connection.id());
    upstream.tls = connection.tls().cloned();
    upstream.protocol = connection.protocol();
}
