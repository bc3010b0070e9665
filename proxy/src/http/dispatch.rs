//! The router's work: a routed request goes to a host of its cluster, and the host's response comes back.

use super::{
    Body, ResponseEvent, ResponseHead,
    balancing::Balancing,
    deadlines::Deadline,
    deadlines::Deadlines,
    header_names::*,
    load_report,
    local_reply::reset_details,
    pump::{Pump, PumpError},
    redirect,
    service::{Responder, UpstreamStream},
    shadow, single_headers,
    stream::{Answer, Interrupt, Stream},
    timeouts::{self, TimeoutPolicy, Timeouts},
};
use crate::{
    base::{ResetReason, ResponseFlag, Side, StreamError, clock},
    filters::LocalReply,
    observe::StreamInfo,
    route::{Action, Forward},
    upstream::{LbContext, ProtocolChoice, ServerNames, StreamRequest, ThreadCluster, ThreadHost, UpstreamConnection},
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use std::{future::poll_fn, rc::Rc, task::Poll};
use weft_config::http_connection_manager::SchemeTransformation;

/// One try at one host.
pub struct Attempt {
    pub stream: UpstreamStream,
    pub connection: Rc<UpstreamConnection>,
    pub host: Rc<ThreadHost>,
    route_timeout: std::time::Duration,
    request_is_done: bool,
}

impl Attempt {
    /// The whole request was handed to the upstream: the route's timeout begins.
    pub fn request_done(&mut self, info: &mut StreamInfo, deadlines: &mut Deadlines) {
        if std::mem::replace(&mut self.request_is_done, true) {
            return;
        }
        let now = clock::now();
        info.points.upstream_tx_end = Some(now);
        info.points.downstream_rx_end.get_or_insert(now);
        deadlines.clear(Deadline::Request);
        if self.route_timeout > std::time::Duration::ZERO {
            deadlines.set(Deadline::Route, Some(self.route_timeout));
        }
    }
}

/// What came of one try.
enum Outcome {
    Response(ResponseHead, Body),
    Failed(StreamError),
    Interrupted(Interrupt),
}

/// Takes the routed request to its end, or says what to answer.
pub async fn dispatch(stream: &mut Stream, request: &mut Pump, responder: &mut Responder) -> Answer {
    let mut redirects = redirect::Followed::default();
    stream.connection.stats.rq_total.inc();
    loop {
        let Some(matched) = stream.route.clone() else { return no_route(stream) };
        let forward = match &matched.route.action {
            Action::Forward(forward) => forward,
            Action::Redirect(redirect) => {
                stream.connection.stats.rq_redirect.inc();
                let mut reply = LocalReply::new(redirect.status, "", "direct_response");
                if let Some(location) = redirect.location(&stream.request, &stream.info) {
                    reply.headers.insert(header::LOCATION, location);
                }
                return Answer::Local(reply.by_router());
            }
            Action::DirectResponse(direct) => {
                let stats = &stream.connection.stats;
                if direct.status.is_redirection() { &stats.rq_redirect } else { &stats.rq_direct_response }.inc();
                let body = match &direct.format {
                    Some((format, _)) => {
                        let mut facts = stream.facts(None);
                        facts.local_reply_body = Some(&direct.body);
                        format.text(&facts).into()
                    }
                    None => direct.body.clone(),
                };
                let mut reply = LocalReply::new(direct.status, body, "direct_response");
                reply.content_type = direct.format.as_ref().map(|(_, content_type)| Box::new(content_type.clone()));
                if (direct.status == StatusCode::CREATED || direct.status.is_redirection())
                    && let Some(location) = redirect::own_location(&stream.request)
                {
                    // RFC 9110 section 10.2.2: these refer to something.
                    reply.headers.insert(header::LOCATION, location);
                }
                return Answer::Local(reply.by_router());
            }
            Action::NonForwarding => {
                // It is for who reads routes without being a proxy; for one that is, its cluster is missing.
                stream.connection.stats.no_cluster.inc();
                stream.info.set_flag(ResponseFlag::NoClusterFound);
                return Answer::Local(
                    LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "", "cluster_not_found").by_router(),
                );
            }
        };
        match forward_request(stream, forward, request, responder, &mut redirects).await {
            Next::Answer(answer) => return answer,
            Next::Again => {}
        }
    }
}

/// There is no route, or only one for TLS.
fn no_route(stream: &mut Stream) -> Answer {
    let Some(reply) = stream.no_route.take() else { return Answer::Done };
    let stats = &stream.connection.stats;
    if reply.status.is_redirection() { &stats.rq_redirect } else { &stats.no_route }.inc();
    Answer::Local(reply.by_router())
}

/// After one route's turn.
enum Next {
    Answer(Answer),
    /// An internal redirect gave the request a new route.
    Again,
}

async fn forward_request(
    stream: &mut Stream,
    forward: &Forward,
    request: &mut Pump,
    responder: &mut Responder,
    redirects: &mut redirect::Followed,
) -> Next {
    let Some(matched) = stream.route.clone() else { return Next::Answer(Answer::Done) };
    let Some(cluster) = matched.cluster(&stream.connection.thread.upstreams, &stream.request) else {
        stream.connection.stats.no_cluster.inc();
        stream.info.set_flag(ResponseFlag::NoClusterFound);
        return Next::Answer(Answer::Local(
            LocalReply::new(forward.config.cluster_not_found_response_code, "", "cluster_not_found").by_router(),
        ));
    };
    let router = stream.connection.manager.router.clone();
    stream.info.upstream.cluster = Some(cluster.info().observability_name.clone());
    stream.info.upstream.cluster_metadata = cluster.info().metadata.clone();

    let retry = forward.config.retry.as_ref();
    let policy = TimeoutPolicy {
        route: forward.config.timeout,
        per_try: retry.and_then(|r| r.per_try_timeout).unwrap_or_default(),
        per_try_idle: retry.and_then(|r| r.per_try_idle_timeout).unwrap_or_default(),
        max_grpc_timeout: forward.config.max_grpc_timeout,
        grpc_timeout_offset: forward.config.grpc_timeout_offset,
        has_max_stream_duration: forward.config.max_stream_duration.is_some(),
        respect_expected: router.respect_expected_rq_timeout,
        suppress_envoy_headers: router.suppress_envoy_headers,
    };
    if let Some(name) = timeouts::malformed(&stream.request.headers, &router.strict_check_headers) {
        return Next::Answer(refuse_header(stream, name));
    }
    stream.info.attempt_count = 1;
    if forward.include_attempt_count {
        stream.request.headers.insert(ENVOY_ATTEMPT_COUNT, 1.into());
    }
    let timeouts = timeouts::decide(&mut stream.request, &policy, stream.is_grpc);
    matched.finalize_request(&mut stream.request, &stream.info, !router.suppress_envoy_headers);
    if stream.connection.manager.config.scheme_header_transformation == Some(SchemeTransformation::MatchUpstream) {
        // Transport sockets are in the clear so far.
        stream.request.scheme = Bytes::from_static(b"http");
    }
    if forward.config.internal_redirect.is_some() {
        request.keep_for_replay(
            matched.route.request_buffer_limit.unwrap_or(stream.connection.manager.buffer_limit as u64),
        );
    }
    stream.balancing = Balancing::of(stream, &cluster, forward);
    shadow::start(stream, forward, request);

    let outcome = attempts(stream, &cluster, forward, &timeouts, request, responder).await;
    let (mut attempt, head, body) = match outcome {
        Ok(done) => done,
        Err(answer) => return Next::Answer(answer),
    };
    let method = stream.request.method.clone();
    if let Some(policy) = &forward.config.internal_redirect
        && request.is_read()
        && redirect::follow(stream, policy, &head, redirects)
    {
        drop((attempt, body));
        if stream.request.method == method {
            request.rewind()
        } else {
            *request = Pump::new(Body::Empty)
        }
        stream.deadlines.clear(Deadline::Route);
        return Next::Again;
    }
    respond(stream, &cluster, &mut attempt, head, body, request, responder).await;
    Next::Answer(Answer::Done)
}

/// So many bytes of a request's body are kept until the response begins, in case its kept-alive connection turns out to
/// have been closed.
const REPLAY: u64 = 16 * 1024;

/// Tries hosts until one gives a response that may go to the client.
async fn attempts(
    stream: &mut Stream,
    cluster: &Rc<ThreadCluster>,
    forward: &Forward,
    timeouts: &Timeouts,
    request: &mut Pump,
    responder: &mut Responder,
) -> Result<(Attempt, ResponseHead, Body), Answer> {
    let mut replays = 0;
    loop {
        let mut attempt = match connect(stream, cluster, forward, timeouts, request, responder).await {
            Ok(attempt) => attempt,
            Err(Ok(answer)) => return Err(answer),
            Err(Err(error)) => return Err(failed(stream, cluster, &error)),
        };
        if attempt.connection.was_reused() {
            request.keep_for_replay(REPLAY);
        }
        match exchange(stream, &mut attempt, timeouts, request, responder).await {
            Outcome::Response(head, body) => return Ok((attempt, head, body)),
            Outcome::Interrupted(interrupt) => return Err(timed_out(stream, cluster, interrupt, timeouts, request)),
            // The upstream closed a kept-alive connection before it had seen the request: nothing is lost.
            Outcome::Failed(error)
                if error.retry_is_safe && attempt.connection.was_reused() && request.can_replay() && replays < 3 =>
            {
                replays += 1;
                request.rewind();
            }
            Outcome::Failed(error) => return Err(failed(stream, cluster, &error)),
        }
    }
}

/// Picks a host and gets a stream on a connection to it.
async fn connect(
    stream: &mut Stream,
    cluster: &Rc<ThreadCluster>,
    forward: &Forward,
    timeouts: &Timeouts,
    request: &mut Pump,
    responder: &mut Responder,
) -> Result<Attempt, Result<Answer, StreamError>> {
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
    let Some(host) = cluster.choose_host(&context) else {
        stream.info.set_flag(ResponseFlag::NoHealthyUpstream);
        let reply = LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream", "no_healthy_upstream");
        return Err(Ok(Answer::Local(after_attempt(stream, reply))));
    };
    if let Some(route) = stream.route.clone() {
        let keep = !connection.manager.router.suppress_envoy_headers;
        route.rewrite_host_to(&mut stream.request, &host.host().hostname, keep);
    }
    stream.info.upstream.host = Some(host.address().clone());
    stream.info.upstream.host_name = Some(host.host().hostname.clone());
    stream.info.upstream.host_metadata = host.host().metadata.clone();
    stream.info.upstream.attempted.push(host.address().clone());
    let wanted = StreamRequest {
        downstream_protocol: stream.request.protocol,
        priority: forward.config.priority,
        protocol: if forward.connects_raw(&stream.request) { ProtocolChoice::Tcp } else { ProtocolChoice::Http },
        connection: Some(connection.info.clone()),
        names: ServerNames::of(&stream.request, &cluster.info().config.http.upstream),
    };
    stream.info.points.upstream_connect_start = Some(clock::now());
    if !timeouts.per_try.is_zero() {
        stream.deadlines.set(Deadline::PerTry, Some(timeouts.per_try));
    }
    let mut open = std::pin::pin!(cluster.http_stream(&host, wanted));
    let opened = poll_fn(|cx| {
        if let Poll::Ready(opened) = open.as_mut().poll(cx) {
            return Poll::Ready(Ok(opened));
        }
        if let Poll::Ready(gone) = responder.poll_closed(cx) {
            return Poll::Ready(Err(Interrupt::Gone(gone)));
        }
        stream.deadlines.poll(cx).map(|which| Err(Interrupt::Deadline(which)))
    })
    .await;
    match opened {
        Ok(Ok((upstream, connection))) => {
            stream.info.points.upstream_connect_end = Some(clock::now());
            let longest = timeouts.upstream_stream.or(cluster.info().config.http.common.max_stream_duration);
            stream.deadlines.set(Deadline::UpstreamMaxStreamDuration, longest);
            stream.info.upstream.local = connection.local().cloned();
            stream.info.upstream.remote = connection.remote().cloned();
            stream.info.upstream.connection_id = Some(connection.id());
            stream.info.upstream.tls = connection.tls().cloned();
            stream.info.upstream.protocol = connection.protocol();
            Ok(Attempt { stream: upstream, connection, host, route_timeout: timeouts.route, request_is_done: false })
        }
        Ok(Err(error)) => Err(Err(error)),
        Err(interrupt) => Err(Ok(timed_out(stream, cluster, interrupt, timeouts, request))),
    }
}

/// Sends the request and waits for the response's head; 1xx go to the client at once.
async fn exchange(
    stream: &mut Stream,
    attempt: &mut Attempt,
    timeouts: &Timeouts,
    request: &mut Pump,
    responder: &mut Responder,
) -> Outcome {
    stream.info.points.upstream_tx_start = Some(clock::now());
    if !timeouts.per_try_idle.is_zero() {
        stream.deadlines.set(Deadline::PerTryIdle, Some(timeouts.per_try_idle));
    }
    let no_body = request.is_empty() && !stream.is_tunnel();
    if let Err(error) = attempt.stream.send_head(&stream.request, no_body) {
        return Outcome::Failed(error);
    }
    if no_body {
        request.finish_empty();
        attempt.request_done(&mut stream.info, &mut stream.deadlines);
    }
    let mut write_failed = None;
    poll_fn(|cx| {
        if let Poll::Ready(gone) = responder.poll_closed(cx) {
            return Poll::Ready(Outcome::Interrupted(Interrupt::Gone(gone)));
        }
        let deadlines = &mut stream.deadlines;
        if write_failed.is_none() {
            match request.poll(cx, &mut attempt.stream, || deadlines.touch()) {
                Poll::Ready(Ok(())) => attempt.request_done(&mut stream.info, deadlines),
                Poll::Ready(Err(PumpError::Source(error))) => {
                    return Poll::Ready(Outcome::Interrupted(Interrupt::Gone(error)));
                }
                // There may be a response all the same: it was sent before the connection broke.
                Poll::Ready(Err(PumpError::Sink(error))) => write_failed = Some(error),
                Poll::Pending => {}
            }
        }
        loop {
            match attempt.stream.poll_response(cx) {
                Poll::Ready(Ok(ResponseEvent::Informational(head))) => {
                    deadlines.touch();
                    // One is enough: nothing would hold back an upstream that sends them without end.
                    if std::mem::replace(&mut stream.was_informed, true) {
                        continue;
                    }
                    stream.connection.stats.downstream_rq.inc(head.status.as_u16());
                    if let Err(error) = responder.send_informational(head) {
                        return Poll::Ready(Outcome::Interrupted(Interrupt::Gone(error)));
                    }
                }
                Poll::Ready(Ok(ResponseEvent::Head(mut head, body))) => {
                    deadlines.touch();
                    single_headers::join_response(&mut head.headers);
                    return Poll::Ready(Outcome::Response(head, body));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Outcome::Failed(error)),
                Poll::Pending => break,
            }
        }
        deadlines.poll(cx).map(|which| Outcome::Interrupted(Interrupt::Deadline(which)))
    })
    .await
}

/// The upstream's response on its way to the client.
async fn respond(
    stream: &mut Stream,
    cluster: &Rc<ThreadCluster>,
    attempt: &mut Attempt,
    mut head: ResponseHead,
    body: Body,
    request: &mut Pump,
    responder: &mut Responder,
) {
    let now = clock::now();
    stream.info.points.upstream_rx_start = Some(now);
    stream.deadlines.clear(Deadline::PerTry);
    let router = stream.connection.manager.router.clone();
    stream.info.set_details("via_upstream");
    stream.info.response_code = head.status.as_u16();
    cluster.count_response(&stream.info, head.status.as_u16(), &head.headers, router.dynamic_stats, stream.is_internal);
    attempt.host.count_response(head.status.as_u16());
    if !router.suppress_envoy_headers
        && let Some(sent) = stream.info.points.downstream_rx_end
    {
        head.headers
            .insert(ENVOY_UPSTREAM_SERVICE_TIME, number(now.saturating_duration_since(sent).as_millis() as u64));
    }
    stream.balancing.set_cookies(&mut head.headers);
    let body = if attempt.host.wants_reports() && !attempt.host.take_report(&head.headers) {
        load_report::watched(body, attempt.host.clone())
    } else {
        body
    };
    if let Some(route) = stream.route.clone() {
        route.finalize_response(&mut head, &stream.request, &stream.info);
        if route.include_attempt_count_in_response() {
            head.headers.insert(ENVOY_ATTEMPT_COUNT, stream.info.attempt_count.into());
        }
    }
    stream.respond(head, body, request, responder, Some(attempt)).await;
    let end = clock::now();
    stream.info.points.upstream_rx_end = Some(end);
    if let Some(sent) = stream.info.points.downstream_rx_end
        && router.dynamic_stats
        && !stream.info.is_health_check
        && stream.info.flags.is_empty()
    {
        cluster.count_time(end.saturating_duration_since(sent), stream.is_internal);
    }
    let (headers, sent) = attempt.stream.bytes_sent();
    stream.info.bytes.upstream_headers_sent = headers;
    stream.info.bytes.upstream_wire_sent = headers + sent;
}

/// A host or connection failed us before there was a response.
fn failed(stream: &mut Stream, cluster: &Rc<ThreadCluster>, error: &StreamError) -> Answer {
    if error.side == Side::Downstream {
        stream.client_gone(error);
        return Answer::Done;
    }
    match error.reason {
        ResetReason::ProtocolError => cluster.stats().upstream_cx_protocol_error.inc(),
        ResetReason::RemoteReset | ResetReason::RemoteRefusedStreamReset => cluster.stats().upstream_rq_rx_reset.inc(),
        _ => {}
    }
    stream.info.set_flag(error.reason.upstream_flag());
    if !error.details.is_empty() {
        stream.info.upstream.transport_failure = Some(error.details.clone());
    }
    let overflow = error.reason == ResetReason::Overflow;
    let status = if error.reason == ResetReason::ProtocolError {
        StatusCode::BAD_GATEWAY
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body =
        format!("upstream connect error or disconnect/reset before headers. reset reason: {}", error.reason.as_str());
    cluster.count_local(status.as_u16(), stream.connection.manager.router.dynamic_stats, stream.is_internal);
    let mut reply = LocalReply::new(status, Bytes::from(body), "");
    stream.info.set_details(reset_details("upstream_reset_before_response_started", error));
    if overflow && !stream.connection.manager.router.suppress_envoy_headers {
        reply.headers.insert(ENVOY_OVERLOADED, HeaderValue::from_static("true"));
    }
    Answer::Local(after_attempt(stream, reply))
}

/// The router's reply once it turned to a cluster.
fn after_attempt(stream: &Stream, mut reply: LocalReply) -> LocalReply {
    if stream.route.as_ref().is_some_and(|route| route.include_attempt_count_in_response()) {
        reply.headers.insert(ENVOY_ATTEMPT_COUNT, stream.info.attempt_count.into());
    }
    reply.by_router()
}

/// A header that the router is to check strictly has a value that means nothing.
fn refuse_header(stream: &mut Stream, name: &HeaderName) -> Answer {
    let value = stream.request.headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes())).unwrap_or_default();
    let body = format!("invalid header '{name}' with value '{value}'");
    stream.info.set_flag(ResponseFlag::InvalidEnvoyRequestHeaders);
    stream.info.set_details(format!("request_headers_failed_strict_check{{{name}}}"));
    stream.must_close = true;
    Answer::Local(LocalReply::new(StatusCode::BAD_REQUEST, Bytes::from(body), "").by_router())
}

/// A timeout passed, or the client went away, before there was a response.
fn timed_out(
    stream: &mut Stream,
    cluster: &Rc<ThreadCluster>,
    interrupt: Interrupt,
    timeouts: &Timeouts,
    request: &Pump,
) -> Answer {
    let (body, details, flag) = match interrupt {
        Interrupt::Deadline(Deadline::Route) => {
            cluster.stats().upstream_rq_timeout.inc();
            ("upstream request timeout", "response_timeout", ResponseFlag::UpstreamRequestTimeout)
        }
        Interrupt::Deadline(Deadline::PerTry) => {
            cluster.stats().upstream_rq_per_try_timeout.inc();
            ("upstream request timeout", "upstream_per_try_timeout", ResponseFlag::UpstreamRequestTimeout)
        }
        Interrupt::Deadline(Deadline::PerTryIdle) => {
            cluster.stats().upstream_rq_per_try_idle_timeout.inc();
            ("upstream request timeout", "upstream_per_try_idle_timeout", ResponseFlag::StreamIdleTimeout)
        }
        Interrupt::Deadline(Deadline::UpstreamMaxStreamDuration) => {
            cluster.stats().upstream_rq_max_duration_reached.inc();
            (
                "upstream max stream duration reached",
                "upstream_max_stream_duration_reached",
                ResponseFlag::UpstreamMaxStreamDurationReached,
            )
        }
        other => return stream.interrupted(other, request),
    };
    stream.info.set_flag(flag);
    let (status, body) = if flag == ResponseFlag::UpstreamMaxStreamDurationReached && !request.is_read() {
        (StatusCode::REQUEST_TIMEOUT, body)
    } else if timeouts.alt_response && flag == ResponseFlag::UpstreamRequestTimeout {
        (StatusCode::NO_CONTENT, "")
    } else {
        (StatusCode::GATEWAY_TIMEOUT, body)
    };
    cluster.count_local(status.as_u16(), stream.connection.manager.router.dynamic_stats, stream.is_internal);
    Answer::Local(after_attempt(stream, LocalReply::new(status, body, details)))
}
