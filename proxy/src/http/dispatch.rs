//! The router's work: a routed request goes to a host of its cluster, and the host's response comes back.

use super::{
    Body, ResponseHead,
    attempts::{Attempt, Tries},
    balancing::Balancing,
    deadlines::Deadline,
    header_names::*,
    load_report,
    local_reply::reset_details,
    pump::Pump,
    redirect,
    retry::Retries,
    service::Responder,
    shadow,
    stream::{Answer, Interrupt, Stream},
    timeouts::{self, TimeoutPolicy, Timeouts},
};
use crate::{
    base::{ResetReason, ResponseFlag, Side, StreamError, clock},
    filters::LocalReply,
    route::{Action, Forward},
    upstream::{ThreadCluster, ThreadHost, outlier::Report},
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use std::{rc::Rc, sync::atomic::Ordering::Relaxed};
use weft_config::http_connection_manager::SchemeTransformation;

/// Takes the routed request to its end, or says what to answer.
pub async fn dispatch(
    stream: &mut Stream,
    request: &mut Pump,
    responder: &mut Responder,
    redirects: &mut redirect::Followed,
) -> Next {
    stream.connection.stats.rq_total.inc();
    let Some(matched) = stream.route.clone() else { return Next::Answer(no_route(stream)) };
    let forward = match &matched.route.action {
        Action::Forward(forward) => forward,
        Action::Redirect(redirect) => {
            stream.connection.stats.rq_redirect.inc();
            let mut reply = LocalReply::new(redirect.status, "", "direct_response");
            if let Some(location) = redirect.location(&stream.request, &stream.info) {
                reply.headers.insert(header::LOCATION, location);
            }
            return Next::Answer(Answer::Local(reply.by_router()));
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
            return Next::Answer(Answer::Local(reply.by_router()));
        }
        Action::NonForwarding => {
            // It is for who reads routes without being a proxy; for one that is, its cluster is missing.
            stream.connection.stats.no_cluster.inc();
            stream.info.set_flag(ResponseFlag::NoClusterFound);
            return Next::Answer(Answer::Local(
                LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "", "cluster_not_found").by_router(),
            ));
        }
    };
    forward_request(stream, forward, request, responder, redirects).await
}

/// There is no route, or only one for TLS.
fn no_route(stream: &mut Stream) -> Answer {
    let Some(reply) = stream.no_route.take() else { return Answer::Done };
    if reply.details == "route_not_found" {
        stream.info.set_flag(ResponseFlag::NoRouteFound);
    }
    let stats = &stream.connection.stats;
    if reply.status.is_redirection() { &stats.rq_redirect } else { &stats.no_route }.inc();
    Answer::Local(reply.by_router())
}

/// After one route's turn.
pub enum Next {
    Answer(Answer),
    /// An internal redirect gave the request a new route: all begins anew.
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

    if let Some(reply) = dropped(stream, &cluster) {
        return Next::Answer(Answer::Local(reply));
    }
    let retry = forward.config.retry.as_ref();
    let buffer_limit = matched.route.request_buffer_limit.unwrap_or(stream.connection.manager.buffer_limit as u64);
    let policy = TimeoutPolicy {
        route: forward.config.timeout,
        per_try: retry.and_then(|r| r.per_try_timeout).unwrap_or_default(),
        per_try_idle: retry.and_then(|r| r.per_try_idle_timeout).unwrap_or_default(),
        max_grpc_timeout: forward.config.max_grpc_timeout,
        grpc_timeout_offset: forward.config.grpc_timeout_offset,
        has_max_stream_duration: forward.config.max_stream_duration.is_some(),
        hedge_on_per_try_timeout: forward.config.hedge_on_per_try_timeout,
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
    let retries = Retries::of(retry, &mut stream.request, &cluster, forward.config.priority);
    if forward.config.internal_redirect.is_some() || retries.is_some() {
        request.keep_for_replay(buffer_limit);
    }
    stream.balancing = Balancing::of(stream, &cluster, forward);
    shadow::start(stream, forward, request);

    let mut tries = Tries::new(cluster, forward, &policy, &timeouts, retries);
    let outcome = tries.run(stream, request, responder).await;
    let cluster = tries.cluster.clone();
    drop(tries);
    let (mut attempt, head, body) = match outcome {
        Ok(done) => done,
        Err(answer) => return Next::Answer(answer),
    };
    let method = stream.request.method.clone();
    if let Some(policy) = &forward.config.internal_redirect
        && request.is_read()
        && request.can_replay()
        && redirect::follow(stream, policy, &head, redirects)
    {
        drop((attempt, body));
        if stream.request.method == method {
            *request = Pump::new(request.take_kept());
        } else {
            *request = Pump::new(Body::Empty)
        }
        stream.deadlines.clear(Deadline::Route);
        return Next::Again;
    }
    respond(stream, &cluster, &mut attempt, head, body, request, responder).await;
    Next::Answer(Answer::Done)
}

/// Drops the request if the cluster's control plane asks for that; in case of overload it need not reach a host to be refused.
fn dropped(stream: &mut Stream, cluster: &ThreadCluster) -> Option<LocalReply> {
    let drop = cluster.drop_overload()?;
    if !drop.share.takes(fastrand::u64(..)) {
        return None;
    }
    let is_all = drop.share.numerator >= drop.share.denominator;
    let (flag, header, body, details) = if is_all {
        let flag = ResponseFlag::UnconditionalDropOverload;
        (flag, ENVOY_UNCONDITIONAL_DROP_OVERLOAD, "unconditional drop overload", "unconditional_drop_overload")
    } else {
        (ResponseFlag::DropOverload, ENVOY_DROP_OVERLOAD, "drop overload", "drop_overload")
    };
    stream.info.set_flag(flag);
    cluster.info().dropped.fetch_add(1, Relaxed);
    let router = stream.connection.manager.router.clone();
    cluster.count_local(503, router.dynamic_stats, stream.is_internal);
    let mut reply = LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, body, details);
    if !router.suppress_envoy_headers {
        reply.headers.insert(header, HeaderValue::from_static("true"));
    }
    Some(reply.by_router())
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

/// No host is to be had.
pub(super) fn no_host(stream: &mut Stream, cluster: &ThreadCluster) -> Answer {
    stream.info.set_flag(ResponseFlag::NoHealthyUpstream);
    cluster.count_local(503, stream.connection.manager.router.dynamic_stats, stream.is_internal);
    let reply = LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream", "no_healthy_upstream");
    Answer::Local(after_attempt(stream, reply))
}

/// Counts a try that failed before there was a response.
pub(super) fn count_failure(cluster: &ThreadCluster, host: &ThreadHost, error: &StreamError) {
    match error.reason {
        ResetReason::ProtocolError => cluster.stats().upstream_cx_protocol_error.inc(),
        ResetReason::RemoteReset | ResetReason::RemoteRefusedStreamReset => cluster.stats().upstream_rq_rx_reset.inc(),
        _ => {}
    }
    host.count_error();
    // A limit of ours says nothing about the host.
    if error.reason != ResetReason::Overflow {
        host.report(Report::Failed);
    }
}

/// Counts a try that the host did not answer in time.
pub(super) fn count_timeout(host: &ThreadHost) {
    host.count_timeout();
    host.count_error();
    host.report(Report::TimedOut);
}

/// A host or connection failed us before there was a response.
pub(super) fn failed(
    stream: &mut Stream,
    cluster: &Rc<ThreadCluster>,
    host: &ThreadHost,
    error: &StreamError,
) -> Answer {
    if error.side == Side::Downstream {
        stream.client_gone(error);
        return Answer::Done;
    }
    count_failure(cluster, host, error);
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
pub(super) fn timed_out(
    stream: &mut Stream,
    cluster: &Rc<ThreadCluster>,
    host: Option<&ThreadHost>,
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
            ("upstream request timeout", "upstream_per_try_idle_timeout", ResponseFlag::UpstreamRequestTimeout)
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
    if let Some(host) = host {
        count_timeout(host);
    }
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
