//! One stream from its begin to its end: the life of a request, one stage a line in [`serve`].
//!
//! The codec calls [`serve`] for each request and drops the future when the client's connection is gone. Whatever
//! happens, [`Stream`]'s drop ends the stream exactly once: stats, access log, filters' `on_end`.

use super::{
    BadRequest, Body, Protocol, RequestHead, ResponseHead,
    attempts::Attempt,
    balancing::Balancing,
    client_cert,
    connection::HttpConnection,
    connection_manager::Routes,
    deadlines::{Deadline, Deadlines},
    filter_run::FilterRun,
    grpc,
    header_names::*,
    local_reply,
    pump::{Pump, PumpError},
    request_headers::{self, PathAction, Underscores},
    service::Responder,
};
use crate::{
    base::{ResetReason, ResponseFlag, Side, StreamError, clock},
    filters::LocalReply,
    observe::{StreamInfo, format::Facts},
    route::{MatchContext, MatchedRoute, RouteOutcome, RouteTable},
    upstream::outlier::Report,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use std::{
    future::{Future, poll_fn},
    rc::Rc,
    sync::Arc,
    task::Poll,
};

/// The state of one stream, as filters and the router see it.
pub struct Stream {
    pub connection: Rc<HttpConnection>,
    pub info: StreamInfo,
    pub request: RequestHead,
    /// Pinned at the begin: the stream sees one route table to its end.
    pub table: Option<Arc<RouteTable>>,
    pub route: Option<Rc<MatchedRoute>>,
    pub deadlines: Deadlines,
    pub balancing: Balancing,
    /// Decides weighted clusters, runtime fractions and the like: the same throughout the stream.
    pub random: u64,
    pub is_grpc: bool,
    pub is_head: bool,
    pub is_internal: bool,
    /// The client's protocol version has no way to go on after this response.
    pub must_close: bool,
    /// Kept for access logs.
    pub response: Option<ResponseHead>,
    pub response_trailers: Option<HeaderMap>,
    pub filters: FilterRun,
    /// What the router answers where there is no route.
    pub no_route: Option<Box<LocalReply>>,
    /// The client is told by the response that its connection will close.
    pub response_started: bool,
    /// A 1xx of an upstream went to the client.
    pub was_informed: bool,
    is_tunnel: bool,
    tunnel_was_refused: bool,
    /// Counted as one, whatever the upstream says to it.
    is_upgrade: bool,
    /// False for what was refused before it was a request: there is nothing to tell of its head.
    has_head: bool,
}

/// How far a response comes from.
pub enum Answer {
    /// This proxy's own.
    Local(LocalReply),
    /// The stream is over; nothing is left to say to the client.
    Done,
}

/// Serves one request. Every stage may answer; the answer then skips the rest.
pub fn serve(
    connection: Rc<HttpConnection>,
    head: RequestHead,
    body: Body,
    responder: Responder,
) -> impl Future<Output = ()> {
    // Begun outside of the future, which stays small so: it is moved a few times before it runs.
    run(Stream::begin(connection, head), Pump::new(body), responder)
}

async fn run(mut stream: Box<Stream>, mut request: Pump, mut responder: Responder) {
    let answer = match stream.accept(&mut request, &mut responder) {
        Err(reply) => Answer::Local(*reply),
        Ok(()) => stream.take_to_its_end(&mut request, &mut responder).await,
    };
    if let Answer::Local(reply) = answer {
        stream.answer(reply, &mut request, &mut responder).await;
    }
    stream.info.bytes.received = request.bytes;
}

/// Answers a request that was no acceptable HTTP.
pub async fn reject(connection: Rc<HttpConnection>, bad: BadRequest, mut responder: Responder) {
    let BadRequest { status, mut details, head } = bad;
    let has_head = head.is_some();
    let head = head.map_or_else(|| RequestHead::new(Method::GET, Bytes::new()), |head| *head);
    let mut stream = Stream::begin(connection, head);
    stream.has_head = has_head;
    stream.must_close = true;
    let stats = stream.connection.stats.clone();
    let body = match details {
        "downstream_remote_disconnect" => {
            stream.client_gone(&StreamError::new(Side::Downstream, ResetReason::ConnectionTermination, ""));
            return;
        }
        "missing_host_header" => {
            stream.must_close = !stream.connection.manager.config.tolerates_invalid_messages();
            ""
        }
        "stream_idle_timeout" => {
            stream.info.set_flag(ResponseFlag::StreamIdleTimeout);
            stats.downstream_rq_idle_timeout.inc();
            "stream timeout"
        }
        "request_header_timeout" if stream.connection.manager.config.request_timeout_comes_first() => {
            stats.downstream_rq_timeout.inc();
            details = "request_overall_timeout";
            "request timeout"
        }
        "request_header_timeout" => {
            stats.downstream_rq_header_timeout.inc();
            "request header timeout"
        }
        _ => {
            stream.info.set_flag(ResponseFlag::DownstreamProtocolError);
            if stream.request.protocol < Protocol::Http2 {
                // The connection of HTTP/2 counts its own. HTTP/1 has nothing that would end this request.
                stats.downstream_cx_protocol_error.inc();
                stats.downstream_rq_rx_reset.inc();
                stats.downstream_rq_response_before_rq_complete.inc();
            }
            if status == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE {
                stats.downstream_rq_too_large.inc();
            }
            status.canonical_reason().unwrap_or_default()
        }
    };
    let reply = LocalReply::new(status, Bytes::from_static(body.as_bytes()), details);
    stream.answer(reply, &mut Pump::new(Body::Empty), &mut responder).await;
}

impl Stream {
    fn begin(connection: Rc<HttpConnection>, request: RequestHead) -> Box<Self> {
        let mut info = StreamInfo::new(connection.info.clone());
        info.protocol = Some(request.protocol.as_str());
        info.listener_metadata = connection.manager.listener_metadata.clone();
        connection.begin_stream(request.protocol);
        let table = connection.route_table(&request);
        let mut deadlines = Deadlines::with_timer(connection.take_timer());
        let config = &connection.manager.config;
        deadlines.set_idle(config.stream_idle_timeout);
        deadlines.set(Deadline::Request, Some(config.request_timeout));
        deadlines.set(Deadline::MaxStreamDuration, config.common.max_stream_duration);
        Box::new(Self {
            is_grpc: grpc::is_grpc(&request.headers),
            is_head: request.method == Method::HEAD,
            info,
            request,
            table,
            route: None,
            deadlines,
            balancing: Balancing::default(),
            random: fastrand::u64(..),
            is_internal: false,
            must_close: false,
            response: None,
            response_trailers: None,
            filters: FilterRun::default(),
            no_route: None,
            response_started: false,
            is_tunnel: false,
            tunnel_was_refused: false,
            is_upgrade: false,
            was_informed: false,
            has_head: true,
            connection,
        })
    }

    /// Checks the head, makes it ours, and finds its route.
    fn accept(&mut self, request: &mut Pump, responder: &mut Responder) -> Result<(), Box<LocalReply>> {
        let connection = self.connection.clone();
        let (manager, stats) = (&connection.manager, &connection.stats);
        let config = &manager.config;
        self.unify_upgrade();
        if !config.proxy_100_continue && self.expects_continue() {
            // Our answer, so that the upstream is not asked.
            let _ = responder.send_informational(ResponseHead::new(StatusCode::CONTINUE));
            stats.downstream_rq.inc(100);
            self.request.headers.remove(header::EXPECT);
        }
        if self.request.protocol == Protocol::Http10 {
            if !config.http1.accept_http_10 {
                self.is_no_request();
                return Err(LocalReply::new(StatusCode::UPGRADE_REQUIRED, "", "low_version").into());
            }
            if self.request.authority.is_empty() && !config.http1.default_host_for_http_10.is_empty() {
                self.request.authority = Bytes::copy_from_slice(config.http1.default_host_for_http_10.as_bytes());
            }
        }
        // HTTP/1 without a host was refused by its codec; one that is there may be empty.
        if self.request.authority.is_empty() && self.request.protocol == Protocol::Http2 {
            return Err(LocalReply::new(StatusCode::BAD_REQUEST, "", "missing_host_header").into());
        }
        if self.request.protocol < Protocol::Http2 {
            match request_headers::check_underscores(
                &mut self.request.headers,
                config.common.headers_with_underscores_action,
            ) {
                Underscores::None => {}
                Underscores::Dropped(count) => connection.codec_stats.dropped_headers_with_underscores.add(count),
                Underscores::Reject => {
                    connection.codec_stats.requests_rejected_with_underscores_in_headers.inc();
                    self.must_close = true;
                    self.is_no_request();
                    return Err(
                        LocalReply::new(StatusCode::BAD_REQUEST, "Bad Request", "http1.unexpected_underscore").into()
                    );
                }
            }
        }
        if !is_valid_authority(&self.request.authority) {
            return Err(LocalReply::new(StatusCode::BAD_REQUEST, "", "invalid_authority").into());
        }
        if !self.request.path.is_empty() && self.request.path[0] != b'/' {
            stats.downstream_rq_non_relative_path.inc();
            return Err(LocalReply::new(StatusCode::NOT_FOUND, "", "absolute_path_rejected").into());
        }
        match request_headers::normalize_path(&mut self.request, config) {
            PathAction::Continue => {}
            PathAction::Redirect if !self.is_grpc => {
                stats.downstream_rq_redirected_with_normalized_path.inc();
                let mut reply = LocalReply::new(StatusCode::TEMPORARY_REDIRECT, "", "path_normalization_failed");
                if let Ok(location) = HeaderValue::from_maybe_shared(self.request.path.clone()) {
                    reply.headers.insert(header::LOCATION, location);
                }
                return Err(reply.into());
            }
            PathAction::Reject | PathAction::Redirect => {
                self.must_close = true;
                stats.downstream_rq_failed_path_normalization.inc();
                return Err(LocalReply::new(StatusCode::BAD_REQUEST, "", "path_normalization_failed").into());
            }
        }
        request_headers::normalize_host(&mut self.request, config, connection.info.local.ip().map(|ip| ip.port()));
        manager.early_mutations.apply(&mut self.request, &self.info);
        let internal_only = self.table.as_ref().map(|table| table.internal_only_headers()).unwrap_or_default();
        match request_headers::sanitize(
            &mut self.request,
            config,
            &connection.info,
            &connection.thread.local,
            internal_only,
        ) {
            Ok(origin) => {
                self.info.downstream_remote = origin.remote;
                self.is_internal = origin.is_internal;
            }
            Err(rejected) => {
                stats.downstream_rq_rejected_via_ip_detection.inc();
                let status = StatusCode::from_u16(rejected.status).unwrap_or(StatusCode::FORBIDDEN);
                return Err(LocalReply::new(status, "", "rejecting_because_detection_failed").into());
            }
        }
        client_cert::forward(self);
        self.info.stream_id = self.request.headers.get(REQUEST_ID).map(|id| Bytes::copy_from_slice(id.as_bytes()));
        self.no_route = self.find_route().err();
        self.check_upgrade(request)?;
        self.apply_route_timeouts();
        Ok(())
    }

    /// The codec of Envoy lets such requests not pass: logs know nothing of them but that.
    fn is_no_request(&mut self) {
        self.has_head = false;
        self.info.set_flag(ResponseFlag::DownstreamProtocolError);
    }

    /// An extended CONNECT and an HTTP/1 upgrade look the same from here on: GET with `upgrade` and `connection`.
    fn unify_upgrade(&mut self) {
        let Some(protocol) = &self.request.upgrade else { return };
        if self.request.method == Method::CONNECT {
            self.request.method = Method::GET;
            if let Ok(protocol) = HeaderValue::from_maybe_shared(protocol.clone()) {
                self.request.headers.insert(header::UPGRADE, protocol);
            }
        }
        self.request.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }

    fn expects_continue(&self) -> bool {
        self.request.headers.get(header::EXPECT).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    }

    /// The route configuration of now takes the place of the one that the stream began with.
    pub fn take_new_routes(&mut self) {
        self.table = self.connection.route_table(&self.request);
        self.refresh_route();
    }

    /// Looks the route up again: a filter changed what it depends on.
    pub fn refresh_route(&mut self) {
        self.no_route = self.find_route().err();
        self.refresh_filters();
        self.apply_route_timeouts();
    }

    /// Looks the route up, again after an internal redirect.
    pub fn find_route(&mut self) -> Result<(), Box<LocalReply>> {
        let connection = &self.connection;
        if matches!(connection.manager.routes, Routes::Scoped(_)) {
            // The headers may have changed, and the scope with them.
            self.table = connection.route_table(&self.request);
        }
        self.route = None;
        self.info.has_route = false;
        self.info.route_metadata = None;
        let Some(table) = &self.table else {
            // The route configuration has not come yet, or is gone.
            return Err(LocalReply::new(StatusCode::NOT_FOUND, "", "route_not_found").into());
        };
        let runtime = connection.thread.runtime();
        let context = MatchContext {
            random: self.random,
            runtime: &runtime,
            is_tls: connection.info.tls.is_some(),
            is_internal: self.is_internal,
            info: &self.info,
        };
        match table.find(&self.request, &context) {
            RouteOutcome::Matched(route) => {
                self.info.route_name = route.route.name.clone();
                self.info.virtual_host_name = Some(route.virtual_host.name.clone());
                self.info.has_route = true;
                self.info.route_metadata = route.route.metadata.clone();
                self.info.virtual_host_metadata = route.virtual_host.metadata.clone();
                self.route = Some(Rc::new(route));
                Ok(())
            }
            RouteOutcome::TlsRedirect(location) => {
                let mut reply = LocalReply::new(StatusCode::MOVED_PERMANENTLY, "", "direct_response");
                reply.headers.insert(header::LOCATION, location);
                Err(reply.into())
            }
            RouteOutcome::NoVirtualHost | RouteOutcome::NoRoute => {
                Err(LocalReply::new(StatusCode::NOT_FOUND, "", "route_not_found").into())
            }
        }
    }

    /// An upgrade or CONNECT goes on only where connection manager and route allow it.
    fn check_upgrade(&mut self, _request: &mut Pump) -> Result<(), Box<LocalReply>> {
        let kind = match &self.request.upgrade {
            Some(kind) => kind.clone(),
            None if self.request.is_connect() => Bytes::from_static(b"CONNECT"),
            None => return Ok(()),
        };
        let route =
            self.route.as_ref().and_then(|route| route.route.action.forward()).and_then(|action| action.upgrade(&kind));
        if route.unwrap_or_else(|| self.connection.manager.allows_upgrade(&kind)) {
            self.is_tunnel = true;
            self.is_upgrade = true;
            self.connection.stats.downstream_cx_upgrades_total.inc();
            self.connection.stats.downstream_cx_upgrades_active.inc();
            return Ok(());
        }
        if self.route.is_none() {
            // The router says so.
            return Ok(());
        }
        // What follows on this connection may be meant for the tunnel: it must not be read as a request.
        self.must_close = true;
        self.connection.stats.downstream_rq_ws_on_non_ws_route.inc();
        Err(LocalReply::new(StatusCode::FORBIDDEN, "", "upgrade_failed").into())
    }

    fn apply_route_timeouts(&mut self) {
        let Some(forward) = self.route.as_ref().and_then(|route| route.route.action.forward()) else { return };
        if let Some(idle) = forward.config.idle_timeout {
            self.deadlines.set_idle(idle);
        }
        if let Some(most) = &forward.config.max_stream_duration {
            let mut limit = most.max_stream_duration;
            if let Some(cap) = most.grpc_timeout_header_max {
                // The client's deadline, capped; zero caps nothing, and asks for as much as there is.
                let asked = grpc::timeout(&self.request.headers).map(|asked| match (asked.is_zero(), cap.is_zero()) {
                    (_, true) => asked,
                    (true, false) => cap,
                    (false, false) => asked.min(cap),
                });
                let offset = most.grpc_timeout_header_offset.unwrap_or_default();
                let asked = asked.map(|asked| if offset < asked { asked - offset } else { asked });
                if let Some(asked) = asked {
                    // The upstream is told what is left for it.
                    grpc::set_timeout(&mut self.request.headers, asked);
                    limit = Some(asked);
                }
            }
            if limit.is_some() {
                self.deadlines.set(Deadline::MaxStreamDuration, limit);
            }
        }
    }

    /// What to do when the client went away or a timeout passed before there was a response.
    pub fn interrupted(&mut self, interrupt: Interrupt, request: &Pump) -> Answer {
        let stats = &self.connection.stats;
        let which = match interrupt {
            Interrupt::Gone(error) => {
                if error.side == Side::Downstream
                    && error.reason == ResetReason::ProtocolError
                    && self.request.protocol < Protocol::Http2
                {
                    return self.malformed_body(&error);
                }
                self.client_gone(&error);
                return Answer::Done;
            }
            Interrupt::Deadline(which) => which,
        };
        let (status, body, details, flag) = match which {
            Deadline::Request => {
                stats.downstream_rq_timeout.inc();
                (StatusCode::REQUEST_TIMEOUT, "request timeout", "request_overall_timeout", None)
            }
            Deadline::MaxStreamDuration => {
                stats.downstream_rq_max_duration_reached.inc();
                (
                    if request.is_read() { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::REQUEST_TIMEOUT },
                    "downstream duration timeout",
                    "max_duration_timeout",
                    None,
                )
            }
            _ => {
                stats.downstream_rq_idle_timeout.inc();
                let status = if request.is_read() { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::REQUEST_TIMEOUT };
                (status, "stream timeout", "stream_idle_timeout", Some(ResponseFlag::StreamIdleTimeout))
            }
        };
        if let Some(flag) = flag {
            self.info.set_flag(flag);
        }
        let mut reply = LocalReply::new(status, body, details);
        reply.grpc_status = (which == Deadline::MaxStreamDuration).then_some(grpc::DEADLINE_EXCEEDED);
        Answer::Local(reply)
    }

    /// The request's body was no HTTP/1: the client is told, and its connection has no more requests that could be trusted.
    fn malformed_body(&mut self, error: &StreamError) -> Answer {
        self.client_gone(error);
        self.must_close = true;
        let status = super::h1::status_of(&error.details);
        let stats = &self.connection.stats;
        stats.downstream_cx_protocol_error.inc();
        if status == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE {
            stats.downstream_rq_too_large.inc();
        }
        Answer::Local(LocalReply::new(status, status.canonical_reason().unwrap_or_default(), ""))
    }

    /// The client reset the stream or closed its connection.
    pub fn client_gone(&mut self, error: &StreamError) {
        let stats = &self.connection.stats;
        if error.side == Side::Downstream {
            stats.downstream_rq_rx_reset.inc();
        }
        match error.reason {
            ResetReason::RemoteReset | ResetReason::RemoteRefusedStreamReset => {
                self.info.set_flag(ResponseFlag::DownstreamRemoteReset);
                self.info.set_details("downstream_remote_reset");
            }
            ResetReason::ProtocolError => {
                self.info.set_flag(ResponseFlag::DownstreamProtocolError);
                self.info.set_details(error.details.clone());
            }
            _ => {
                self.info.set_flag(ResponseFlag::DownstreamConnectionTermination);
                self.info.set_details("downstream_remote_disconnect");
            }
        }
    }

    /// Logs the part of the stream that an internal redirect ended; the rest begins anew.
    pub fn redirected(&mut self, status: StatusCode) {
        let connection = self.connection.clone();
        self.info.response_code = status.as_u16();
        self.info.set_details("internal_redirect");
        connection.manager.access_logs.log(&self.facts(None), &connection.thread.runtime());
        self.info.response_code = 0;
        self.info.response_code_details = None;
        self.info.attempt_count = 0;
        self.info.upstream = Default::default();
    }

    /// Gives the client a local reply: through the response filters, as gRPC where the client speaks that.
    pub async fn answer(&mut self, reply: LocalReply, request: &mut Pump, responder: &mut Responder) {
        if self.info.upstream.cluster.is_none() {
            // The request was not taken to the cluster that it was meant for.
            let cluster =
                self.route.as_ref().and_then(|route| route.cluster(&self.connection.thread.upstreams, &self.request));
            self.info.upstream.cluster = cluster.map(|cluster| cluster.info().observability_name.clone());
        }
        self.info.set_details(reply.details.clone());
        // The reply may have come before some of the filters.
        self.create_filters();
        let (head, body) = local_reply::build(self, reply);
        self.respond(head, body, request, responder, None).await;
    }

    /// Takes a response through the filters and to the client; returns once the exchange is over.
    pub async fn respond(
        &mut self,
        head: ResponseHead,
        body: Body,
        request: &mut Pump,
        responder: &mut Responder,
        upstream: Option<&mut Attempt>,
    ) {
        let (head, body) = self.run_response_filters(head, body).await;
        let mut response = Pump::new(body);
        if self.connection.manager.keeps_response {
            response.keep_trailers();
        }
        if let Err(error) = self.send_head(head, &response, request, responder) {
            self.client_gone(&error);
            return;
        }
        if !self.is_head {
            self.pump_response(&mut response, request, responder, upstream).await;
        } else {
            self.flush_head(responder).await;
        }
    }

    /// Waits until a response without a body is written.
    async fn flush_head(&mut self, responder: &mut Responder) {
        let late = poll_fn(|cx| {
            if super::BodySink::poll_flush(responder, cx).is_ready() || responder.poll_closed(cx).is_ready() {
                return Poll::Ready(None);
            }
            self.deadlines.poll(cx).map(Some)
        })
        .await;
        if let Some(which) = late {
            self.late_deadline(which);
            self.connection.stats.downstream_rq_tx_reset.inc();
            super::BodySink::reset(responder, ResetReason::LocalReset);
        }
    }

    /// Finishes the response's head and hands it to the codec.
    pub fn send_head(
        &mut self,
        mut head: ResponseHead,
        response: &Pump,
        request: &Pump,
        responder: &mut Responder,
    ) -> Result<(), StreamError> {
        let connection = self.connection.clone();
        let accepted = if self.request.upgrade.is_some() {
            head.status == StatusCode::SWITCHING_PROTOCOLS
        } else {
            head.status.is_success()
        };
        let is_tunnel = self.is_tunnel && accepted;
        if !is_tunnel && self.is_tunnel {
            self.tunnel_was_refused = true;
            // The upgrade was refused: the connection's framing is no longer sure.
            self.must_close |= self.request.protocol < Protocol::Http2 && !request.is_read();
        }
        self.is_tunnel = is_tunnel;
        let force_id = self.request.headers.contains_key(ENVOY_FORCE_TRACE);
        connection.manager.response.apply(&mut head, is_tunnel, self.request.headers.get(REQUEST_ID), force_id);
        if !request.is_read() {
            connection.stats.downstream_rq_response_before_rq_complete.inc();
            self.must_close |= self.request.protocol < Protocol::Http2 && !is_tunnel;
        }
        if self.must_close || connection.should_close_after_response() {
            responder.close_connection();
        }
        self.info.response_code = head.status.as_u16();
        self.info.points.downstream_tx_start = Some(clock::now());
        connection.count_response(head.status.as_u16(), &self.info);
        if connection.manager.keeps_response {
            self.response = Some(head.clone());
        }
        self.response_started = true;
        let end = response.is_empty() || (self.is_head && !is_tunnel);
        responder.send_head(head, end)
    }

    /// The stream as formats and log filters see it.
    pub fn facts<'a>(&'a self, response: Option<&'a ResponseHead>) -> Facts<'a> {
        Facts {
            request: self.has_head.then_some(&self.request),
            response,
            response_trailers: self.response_trailers.as_ref(),
            log_type: "DownstreamEnd",
            ..Facts::new(&self.info)
        }
    }

    /// True if the exchange turned, or may turn, into a tunnel.
    pub fn is_tunnel(&self) -> bool {
        self.is_tunnel
    }

    /// Moves the response's body to the client, and what is left of the request to the upstream, to the end of both.
    pub async fn pump_response(
        &mut self,
        response: &mut Pump,
        request: &mut Pump,
        responder: &mut Responder,
        mut upstream: Option<&mut Attempt>,
    ) {
        // What the client sent for the tunnel is no part of a request.
        let tunnel_was_refused = self.tunnel_was_refused;
        let result = poll_fn(|cx| {
            if let Poll::Ready(gone) = responder.poll_closed(cx)
                && !response.is_done()
            {
                return Poll::Ready(Err(End::Gone(gone)));
            }
            let deadlines = &mut self.deadlines;
            if let Some(attempt) = &mut upstream
                && !tunnel_was_refused
                && !request.is_done()
            {
                match request.poll(cx, &mut attempt.stream, || deadlines.touch()) {
                    Poll::Ready(Err(PumpError::Source(error))) => return Poll::Ready(Err(End::Gone(error))),
                    // The upstream may answer without reading all: its response decides.
                    Poll::Ready(Err(PumpError::Sink(_))) | Poll::Pending => {}
                    Poll::Ready(Ok(())) => attempt.request_done(&mut self.info, deadlines),
                }
            }
            match response.poll(cx, responder, || deadlines.touch()) {
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(PumpError::Sink(error))) => return Poll::Ready(Err(End::Gone(error))),
                Poll::Ready(Err(PumpError::Source(error))) => return Poll::Ready(Err(End::Upstream(error))),
                Poll::Pending => {}
            }
            match deadlines.poll(cx) {
                Poll::Ready(which) => Poll::Ready(Err(End::Deadline(which))),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        self.info.bytes.sent = response.bytes;
        self.response_trailers = response.take_trailers();
        self.info.points.downstream_tx_end = Some(clock::now());
        let reset = match result {
            Ok(()) => return,
            Err(End::Gone(error)) => {
                self.client_gone(&error);
                return;
            }
            Err(End::Upstream(error)) => {
                upstream.iter().for_each(|attempt| attempt.host.report(Report::Failed));
                self.connection.stats.rq_reset_after_downstream_response_started.inc();
                self.info.set_flag(error.reason.upstream_flag());
                self.info.response_code_details =
                    Some(local_reply::reset_details("upstream_reset_after_response_started", &error).into());
                ResetReason::LocalReset
            }
            Err(End::Deadline(which)) => {
                self.late_deadline(which);
                ResetReason::LocalReset
            }
        };
        self.connection.stats.downstream_rq_tx_reset.inc();
        super::BodySink::reset(responder, reset);
    }

    /// A timeout after the response began: all that can be done is to cut it.
    fn late_deadline(&mut self, which: Deadline) {
        let stats = &self.connection.stats;
        let (flag, details) = match which {
            Deadline::MaxStreamDuration => {
                stats.downstream_rq_max_duration_reached.inc();
                self.info.response_code_details = Some("max_duration_timeout".into());
                return;
            }
            Deadline::StreamIdle => {
                stats.downstream_rq_idle_timeout.inc();
                (ResponseFlag::StreamIdleTimeout, "stream_idle_timeout")
            }
            Deadline::Request => {
                stats.downstream_rq_timeout.inc();
                (ResponseFlag::DownstreamProtocolError, "request_overall_timeout")
            }
            Deadline::UpstreamMaxStreamDuration => {
                (ResponseFlag::UpstreamMaxStreamDurationReached, "upstream_max_stream_duration_reached")
            }
            Deadline::PerTryIdle => (ResponseFlag::StreamIdleTimeout, "upstream_per_try_idle_timeout"),
            Deadline::Route | Deadline::PerTry | Deadline::BackOff => {
                (ResponseFlag::UpstreamRequestTimeout, "response_timeout")
            }
        };
        self.info.set_flag(flag);
        self.info.response_code_details = Some(details.into());
    }
}

/// What can come between a stream and its response.
pub enum Interrupt {
    Gone(StreamError),
    Deadline(Deadline),
}

enum End {
    Gone(StreamError),
    Upstream(StreamError),
    Deadline(Deadline),
}

/// Letters, digits, and what a URI's authority may hold; obs-text is refused.
fn is_valid_authority(authority: &[u8]) -> bool {
    authority.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@[]%".contains(b))
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.info.points.end = Some(clock::now());
        if !self.response_started && self.info.flags.is_empty() {
            // The codec dropped the stream with its connection.
            self.info.set_flag(ResponseFlag::DownstreamConnectionTermination);
            self.info.set_details("downstream_remote_disconnect");
            self.connection.stats.downstream_rq_rx_reset.inc();
        }
        self.end_filters();
        let connection = self.connection.clone();
        if self.is_upgrade {
            connection.stats.downstream_cx_upgrades_active.dec();
        }
        let facts = self.facts(self.response.as_ref());
        connection.manager.access_logs.log(&facts, &connection.thread.runtime());
        connection.keep_timer(std::mem::take(&mut self.deadlines).into_timer());
        connection.end_stream(&self.info);
    }
}
