//! Asking an authorisation service: what it is told of a request, over gRPC or HTTP, and reading what it answers.

use super::{
    config::{BodySettings, ExtAuthz, HttpService},
    verdict::{Change, How, Kind, Refusal, Verdict},
};
use crate::{
    base::{Address, Certificate, ConnectionInfo, certificate::url_encoded_pem},
    filters::Buffered,
    http::{Protocol, RequestHead, header_names::*, stream::Stream},
    upstream::http_call,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::Map;
use std::{collections::HashMap, future::Future, sync::Arc, time::UNIX_EPOCH};
use weft_config::string_matcher::StringMatcher;
use weft_control_api::{
    Timestamp,
    envoy::{
        config::core::v3::{self as core, address::Address as AddressKind, socket_address::PortSpecifier},
        service::auth::v3::{
            AttributeContext, CheckRequest,
            attribute_context::{HttpRequest, Peer, Request, TlsSession},
        },
    },
};

/// `x-envoy-auth-partial-body`
const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";
const HEADERS_TO_REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");
/// Bytes of an answer over HTTP.
const MOST: usize = 1 << 20;

/// The body that goes along, if any does.
pub(super) struct SentBody {
    pub bytes: Vec<u8>,
    /// There is more of it.
    pub is_partial: bool,
    pub as_bytes: bool,
    pub size: u64,
}

impl SentBody {
    pub fn new(body: &Buffered<'_>, settings: BodySettings) -> Self {
        let bytes = body.bytes(usize::try_from(settings.most).unwrap_or(usize::MAX));
        let is_partial = bytes.len() as u64 != body.size;
        Self { bytes, is_partial, as_bytes: settings.as_bytes, size: body.size }
    }
}

/// The request for the gRPC service.
pub(super) fn check_request(
    stream: &Stream,
    config: &ExtAuthz,
    context: HashMap<String, String>,
    body: Option<SentBody>,
) -> CheckRequest {
    let connection = &stream.connection.info;
    let request = &stream.request;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let service = request.headers.get(ENVOY_DOWNSTREAM_SERVICE_CLUSTER).map(|value| text(value.as_bytes()));
    let metadata = |names: &[String], find: &dyn Fn(&str) -> Option<Map<String, serde_json::Value>>| {
        let filter_metadata =
            names.iter().filter_map(|name| Some((name.clone(), weft_config::metadata::fields(find(name)?)))).collect();
        Some(core::Metadata { filter_metadata, ..Default::default() })
    };
    let time = stream.info.start_time.duration_since(UNIX_EPOCH).unwrap_or_default();
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(Peer {
                service: service.unwrap_or_default(),
                ..source(connection, &stream.info.downstream_remote, config.include_peer_certificate)
            }),
            destination: Some(destination(connection)),
            request: Some(Request {
                time: Some(Timestamp { seconds: time.as_secs() as i64, nanos: time.subsec_nanos() as i32 }),
                http: Some(http_request(stream, config, body)),
            }),
            context_extensions: context,
            metadata_context: metadata(&config.metadata_namespaces, &|name| {
                stream.info.dynamic_metadata.get(name).cloned()
            }),
            route_metadata_context: metadata(&config.route_metadata_namespaces, &|name| {
                stream.info.route_metadata.as_ref()?.get(name).cloned()
            }),
            tls_session: tls_session(connection).filter(|_| config.include_tls_session),
        }),
    }
}

/// The client, as the service is told of it.
pub fn source(connection: &ConnectionInfo, remote: &Address, with_certificate: bool) -> Peer {
    let peer = connection.tls.as_ref().and_then(|tls| tls.peer.as_deref());
    Peer {
        address: Some(address(remote)),
        principal: peer.map(principal).unwrap_or_default(),
        certificate: match peer.filter(|_| with_certificate) {
            Some(peer) => url_encoded_pem(peer.der()),
            None => String::new(),
        },
        ..Default::default()
    }
}

/// This proxy, as the service is told of it.
pub fn destination(connection: &ConnectionInfo) -> Peer {
    let local = connection.tls.as_ref().and_then(|tls| tls.local.as_deref());
    Peer {
        address: Some(address(&connection.local)),
        principal: local.map(principal).unwrap_or_default(),
        ..Default::default()
    }
}

/// What the client asked for in its handshake, if there was one.
pub fn tls_session(connection: &ConnectionInfo) -> Option<TlsSession> {
    connection.tls.as_ref()?;
    Some(TlsSession { sni: connection.requested_server_name.as_deref().unwrap_or_default().to_owned() })
}

fn http_request(stream: &Stream, config: &ExtAuthz, body: Option<SentBody>) -> HttpRequest {
    let request = &stream.request;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut all = HttpRequest {
        id: stream.random.to_string(),
        method: request.method.as_str().to_owned(),
        path: text(&request.path),
        host: text(&request.authority),
        scheme: text(&request.scheme),
        protocol: request.protocol.as_str().to_owned(),
        ..Default::default()
    };
    let pseudo = [
        (":authority", &request.authority[..]),
        (":path", &request.path),
        (":method", request.method.as_str().as_bytes()),
        (":scheme", &request.scheme),
    ];
    let headers = request.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let is_sent = |name: &str| name != PARTIAL_BODY && is_allowed(config, name);
    let sent = pseudo.into_iter().filter(|(_, value)| !value.is_empty()).chain(headers).filter(|(n, _)| is_sent(n));
    if config.raw_headers {
        let raw = |(name, value): (&str, &[u8])| core::HeaderValue {
            key: name.to_owned(),
            raw_value: value.to_vec(),
            ..Default::default()
        };
        let mut headers: Vec<_> = sent.map(raw).collect();
        if let Some(body) = &body {
            headers.push(raw((PARTIAL_BODY, body.is_partial.to_string().as_bytes())));
        }
        all.header_map = Some(core::HeaderMap { headers });
    } else {
        for (name, value) in sent {
            let value = text(value);
            all.headers
                .entry(name.to_owned())
                .and_modify(|all| {
                    all.push(',');
                    all.push_str(&value);
                })
                .or_insert(value);
        }
        if let Some(body) = &body {
            all.headers.insert(PARTIAL_BODY.to_owned(), body.is_partial.to_string());
        }
    }
    if let Some(SentBody { bytes, as_bytes, size, .. }) = body {
        all.size = size as i64;
        if as_bytes {
            all.raw_body = bytes;
        } else {
            all.body = String::from_utf8_lossy(&bytes).into_owned();
        }
    }
    all
}

fn matches(matchers: &[StringMatcher], name: &str) -> bool {
    matchers.iter().any(|matcher| matcher.matches(name))
}

fn is_allowed(config: &ExtAuthz, name: &str) -> bool {
    (config.allowed_headers.is_empty() || matches(&config.allowed_headers, name))
        && !matches(&config.disallowed_headers, name)
}

/// Whom a certificate is of: its first URI, else DNS name, else subject.
fn principal(certificate: &Certificate) -> String {
    let name = certificate.uri_sans.first().or(certificate.dns_sans.first());
    name.unwrap_or(&certificate.subject).to_string()
}

fn address(address: &Address) -> core::Address {
    let kind = match address {
        Address::Ip(ip) => AddressKind::SocketAddress(core::SocketAddress {
            address: ip.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(ip.port().into())),
            ..Default::default()
        }),
        other => AddressKind::Pipe(core::Pipe { path: other.to_string(), ..Default::default() }),
    };
    core::Address { address: Some(kind) }
}

/// Asks the HTTP service.
pub(super) fn ask_http(
    stream: &Stream,
    config: &ExtAuthz,
    service: &Arc<HttpService>,
    body: Option<SentBody>,
) -> impl Future<Output = Verdict> + use<> {
    let thread = &stream.connection.thread;
    let cluster = thread.upstreams.by_name(&service.cluster);
    let mut head = http_head(&stream.request, config, service);
    head.headers.insert(ENVOY_INTERNAL, HeaderValue::from_static("true"));
    head.headers.insert(ENVOY_EXPECTED_RQ_TIMEOUT_MS, number(service.timeout.as_millis() as u64));
    if let Ok(local) = HeaderValue::try_from(thread.local.address.to_string()) {
        head.headers.insert(FORWARDED_FOR, local);
    }
    if let Some(body) = &body {
        let is_partial = if body.is_partial { "true" } else { "false" };
        head.headers.insert(HeaderName::from_static(PARTIAL_BODY), HeaderValue::from_static(is_partial));
    }
    let body = body.map(|body| Bytes::from(body.bytes)).unwrap_or_default();
    let service = service.clone();
    async move {
        let Some(cluster) = cluster else { return Verdict::default() };
        let call = http_call::call(&cluster, head, body, MOST);
        match tokio::time::timeout(service.timeout, call).await {
            Ok(Ok(answer)) => {
                cluster.count_local(answer.status.as_u16(), true, true);
                read(&service, answer)
            }
            Ok(Err(_)) => {
                cluster.count_local(503, true, true);
                Verdict::default()
            }
            Err(_) => {
                cluster.stats().upstream_rq_timeout.inc();
                cluster.count_local(504, true, true);
                Verdict::default()
            }
        }
    }
}

fn http_head(request: &RequestHead, config: &ExtAuthz, service: &HttpService) -> RequestHead {
    let path = if service.path_override.is_empty() {
        Bytes::from([&service.path_prefix[..], &request.path].concat())
    } else {
        service.path_override.clone()
    };
    let mut head = RequestHead::new(request.method.clone(), path);
    head.protocol = Protocol::Http11;
    head.scheme = Bytes::from_static(b"http");
    head.authority = request.authority.clone();
    for (name, value) in &request.headers {
        let text = name.as_str();
        let allowed = *name == header::AUTHORIZATION
            || matches(&config.allowed_headers, text)
            || matches(&service.allowed_headers, text);
        if allowed && *name != header::CONTENT_LENGTH && !matches(&config.disallowed_headers, text) {
            head.headers.append(name, value.clone());
        }
    }
    for (name, value) in &service.headers_to_add {
        head.headers.insert(name, value.clone());
    }
    head
}

/// What the HTTP service's answer means: 200 lets pass, 5xx is no answer, all else is what the client gets.
fn read(service: &HttpService, answer: http_call::Answer) -> Verdict {
    let http_call::Answer { status, mut headers, body, .. } = answer;
    if status.is_server_error() {
        return Verdict::default();
    }
    let mut verdict = Verdict::default();
    let metadata: Map<_, _> = headers
        .iter()
        .filter(|(name, _)| matches(&service.metadata_from_headers, name.as_str()))
        .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    verdict.metadata = (!metadata.is_empty()).then_some(metadata);
    if status != StatusCode::OK {
        let always = [header::WWW_AUTHENTICATE, header::LOCATION];
        if let Some(allowed) = &service.client_headers {
            headers = headers
                .iter()
                .map(|(n, v)| (n.clone(), v.clone()))
                .filter(|(name, _)| always.contains(name) || matches(allowed, name.as_str()))
                .collect();
        }
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(HEADERS_TO_REMOVE);
        verdict.kind = Kind::Denied(Refusal { status, body: body.into(), headers });
        return verdict;
    }
    verdict.kind = Kind::Allowed;
    verdict.remove = headers
        .get_all(HEADERS_TO_REMOVE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).into_owned())
        .filter(|name| !name.is_empty())
        .collect();
    let changes = |matchers: &[StringMatcher], first: How, further: How| changes_of(&headers, matchers, first, further);
    verdict.request = changes(&service.upstream_headers, How::Set, How::Set);
    verdict.request.extend(changes(&service.upstream_headers_to_append, How::Add, How::Add));
    verdict.response = changes(&service.client_headers_on_success, How::Add, How::Add);
    verdict
}

fn changes_of(headers: &HeaderMap, matchers: &[StringMatcher], first: How, further: How) -> Vec<Change> {
    let mut all = Vec::new();
    for name in headers.keys().filter(|name| matches(matchers, name.as_str())) {
        for (i, value) in headers.get_all(name).iter().enumerate() {
            let how = if i == 0 { first } else { further };
            all.push(Change { name: name.as_str().to_owned(), value: value.as_bytes().to_vec(), how });
        }
    }
    all
}
