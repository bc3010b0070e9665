//! The operators: what each is called, what it takes, and where its value comes from
//! (Envoy docs: "Access logging", command operators).

use super::{Facts, json, server_name::ServerName, time::TimeFormat, tls::TlsOperator};
use crate::{
    base::Address,
    http::{Protocol, grpc, message::query_of},
    observe::{StreamInfo, stream_info::Metadata},
};
use http::{HeaderMap, HeaderName, header};
use serde_json::Value;
use std::{
    borrow::Cow,
    fmt::Write as _,
    sync::OnceLock,
    time::{Duration, Instant, SystemTime},
};
use weft_config::header_value::HeaderKey;

/// An operator with the most bytes of its value that are wanted.
#[derive(Debug)]
pub struct Operator {
    kind: Kind,
    most: Option<usize>,
}

/// Which end of a connection, with or without its port.
#[derive(Clone, Copy, Debug)]
enum Which {
    DownstreamRemote,
    DownstreamDirectRemote,
    DownstreamLocal,
    DownstreamDirectLocal,
    UpstreamRemote,
    UpstreamLocal,
    UpstreamHost,
}

#[derive(Clone, Copy, Debug)]
enum Show {
    Whole,
    WithoutPort,
    Port,
}

#[derive(Clone, Copy, Debug)]
enum From {
    Route,
    Cluster,
    Listener,
    VirtualHost,
    Dynamic,
    UpstreamHost,
}

#[derive(Clone, Copy, Debug)]
enum Point {
    DownstreamRxStart,
    DownstreamRxEnd,
    UpstreamConnectStart,
    UpstreamConnectEnd,
    UpstreamTxStart,
    UpstreamTxEnd,
    UpstreamRxStart,
    UpstreamRxEnd,
    DownstreamTxStart,
    DownstreamTxEnd,
}

#[derive(Debug)]
enum Kind {
    /// Several names: the first that is there.
    Request(Vec<HeaderKey>),
    Response(Vec<HeaderKey>),
    Trailer(Vec<HeaderKey>),
    StartTime(TimeFormat),
    EmitTime(TimeFormat),
    BytesReceived,
    BytesSent,
    Bytes(fn(&StreamInfo) -> u64),
    Protocol,
    UpstreamProtocol,
    ResponseCode,
    ResponseCodeDetails {
        keep_spaces: bool,
    },
    ConnectionTerminationDetails,
    Flags {
        long: bool,
    },
    Duration(Option<(Point, Point, Duration)>),
    SinceStart(Point),
    RoundtripMissing,
    Address(Which, Show),
    UpstreamHostName,
    UpstreamCluster,
    UpstreamConnectionId,
    UpstreamAttempts,
    UpstreamHostsAttempted,
    UpstreamTransportFailure,
    DownstreamTransportFailure,
    RequestedServerName(ServerName),
    TransportProtocol,
    ConnectionId,
    StreamId,
    RouteName,
    FilterChainName,
    VirtualHostName,
    VirtualClusterName,
    Hostname,
    Environment(String),
    Metadata(From, String, Vec<String>),
    FilterState {
        key: String,
        plain: bool,
    },
    Path {
        query: bool,
        original: PathChoice,
    },
    QueryParameter(String),
    QueryParameters,
    GrpcStatus(GrpcForm),
    LocalReplyBody,
    RequestHeadBytes,
    ResponseHeadBytes,
    ResponseTrailerBytes,
    LogType,
    TraceId,
    SpanId,
    UniqueId,
    CustomFlags,
    Tls(TlsOperator),
    /// Fingerprints of the client's TLS, which nobody takes.
    Absent,
}

#[derive(Clone, Copy, Debug)]
enum PathChoice {
    Current,
    Original,
    OriginalOrCurrent,
}

#[derive(Clone, Copy, Debug)]
enum GrpcForm {
    Camel,
    Snake,
    Number,
}

/// Where the operator that starts at the begin of `text` ends: the position of its closing `%`.
/// A `%` inside parentheses is part of the argument.
pub fn end(text: &str) -> Option<usize> {
    let open = text.find('(');
    let first = text.find('%')?;
    match open.filter(|open| *open < first) {
        None => Some(first),
        Some(open) => {
            let close = text[open..].find(")%").map(|at| open + at + 1).or_else(|| {
                // `(...):length%`
                text[open..].match_indices("):").map(|(at, _)| open + at).find_map(|at| {
                    let digits = text[at + 2..].bytes().take_while(u8::is_ascii_digit).count();
                    (digits > 0 && text[at + 2 + digits..].starts_with('%')).then_some(at + 2 + digits)
                })
            })?;
            let with_length = text[open..].match_indices("):").map(|(at, _)| open + at).find_map(|at| {
                let digits = text[at + 2..].bytes().take_while(u8::is_ascii_digit).count();
                (digits > 0 && text[at + 2 + digits..].starts_with('%')).then_some(at + 2 + digits)
            });
            Some(with_length.map_or(close, |with_length| close.min(with_length)))
        }
    }
}

impl Operator {
    /// Parses what stands between two percent signs.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_at(text.find(['(', ':']).unwrap_or(text.len()));
        let (argument, rest) = match rest.strip_prefix('(') {
            Some(inner) => {
                let close = inner.rfind(')').ok_or("a parenthesis is not closed")?;
                (Some(&inner[..close]), &inner[close + 1..])
            }
            None => (None, rest),
        };
        let most = match rest.strip_prefix(':') {
            Some(digits) => Some(digits.parse().map_err(|_| "a length is a number")?),
            None if rest.is_empty() => None,
            None => return Err("nothing but :length follows a closing parenthesis".into()),
        };
        let kind = Kind::parse(name, argument)?;
        if most.is_some() && matches!(kind, Kind::Tls(_)) {
            return Err("does not take any parameters or length".into());
        }
        Ok(Self { kind, most })
    }

    /// Writes the value; false if there is none.
    pub fn write(&self, facts: &Facts<'_>, out: &mut String) -> bool {
        let start = out.len();
        let there = self.kind.write(facts, out);
        if let Some(most) = self.most {
            let mut end = (start + most).min(out.len());
            while !out.is_char_boundary(end) {
                end -= 1;
            }
            out.truncate(end);
        }
        there
    }

    /// The value with its own type; null if there is none.
    pub fn value(&self, facts: &Facts<'_>) -> Value {
        if let Some(number) = self.kind.number(facts) {
            return number.map_or(Value::Null, Value::from);
        }
        if let Kind::Metadata(from, namespace, path) = &self.kind {
            let value = metadata(facts, *from, namespace, path);
            // Only texts are cut.
            if self.most.is_none() || !matches!(value.as_deref(), Some(Value::String(_))) {
                return value.map_or(Value::Null, Cow::into_owned);
            }
        }
        let mut text = String::new();
        if self.write(facts, &mut text) { Value::String(text) } else { Value::Null }
    }

    /// True if it reads the response's head.
    pub fn reads_response(&self) -> bool {
        matches!(self.kind, Kind::Response(_) | Kind::Trailer(_) | Kind::GrpcStatus(_) | Kind::ResponseHeadBytes)
    }
}

fn keys(argument: Option<&str>) -> Result<Vec<HeaderKey>, String> {
    let argument = argument.filter(|a| !a.is_empty()).ok_or("a header name is required")?;
    let keys: Vec<_> = argument
        .split('?')
        .map(|name| HeaderKey::parse(name).ok_or_else(|| format!("{name:?} is no header name")))
        .collect::<Result<_, _>>()?;
    if keys.len() > 2 { Err("more than one alternative name".into()) } else { Ok(keys) }
}

fn path_of(argument: Option<&str>) -> Result<(String, Vec<String>), String> {
    let mut parts = argument.filter(|a| !a.is_empty()).ok_or("a namespace is required")?.split(':').map(str::to_owned);
    let namespace = parts.next().unwrap_or_default();
    Ok((namespace, parts.collect()))
}

impl Kind {
    fn parse(name: &str, argument: Option<&str>) -> Result<Self, String> {
        use {Show::*, Which::*};
        let required = || {
            argument.filter(|a| !a.is_empty()).map(str::to_owned).ok_or_else(|| "an argument is required".to_owned())
        };
        Ok(match name {
            "REQ" | "REQUEST_HEADER" => Self::Request(keys(argument)?),
            "RESP" | "RESPONSE_HEADER" => Self::Response(keys(argument)?),
            "TRAILER" | "RESPONSE_TRAILER" => Self::Trailer(keys(argument)?),
            "REQUEST_HEADERS_BYTES" => Self::RequestHeadBytes,
            "RESPONSE_HEADERS_BYTES" => Self::ResponseHeadBytes,
            "RESPONSE_TRAILERS_BYTES" => Self::ResponseTrailerBytes,
            "PER_REQUEST_STATE" => Self::FilterState { key: required()?, plain: true },
            "START_TIME" | "START_TIME_LOCAL" => Self::StartTime(TimeFormat::new(argument.unwrap_or_default())),
            "EMIT_TIME" | "EMIT_TIME_LOCAL" => Self::EmitTime(TimeFormat::new(argument.unwrap_or_default())),
            "BYTES_RECEIVED" => Self::BytesReceived,
            "BYTES_SENT" => Self::BytesSent,
            "DOWNSTREAM_WIRE_BYTES_RECEIVED" => Self::Bytes(|i| i.bytes.downstream_wire_received),
            "DOWNSTREAM_WIRE_BYTES_SENT" => Self::Bytes(|i| i.bytes.downstream_wire_sent),
            "DOWNSTREAM_HEADER_BYTES_RECEIVED" => Self::Bytes(|i| i.bytes.downstream_headers_received),
            "DOWNSTREAM_HEADER_BYTES_SENT" => Self::Bytes(|i| i.bytes.downstream_headers_sent),
            "UPSTREAM_WIRE_BYTES_RECEIVED" => Self::Bytes(|i| i.bytes.upstream_wire_received),
            "UPSTREAM_WIRE_BYTES_SENT" => Self::Bytes(|i| i.bytes.upstream_wire_sent),
            "UPSTREAM_HEADER_BYTES_RECEIVED" => Self::Bytes(|i| i.bytes.upstream_headers_received),
            "UPSTREAM_HEADER_BYTES_SENT" => Self::Bytes(|i| i.bytes.upstream_headers_sent),
            "PROTOCOL" => Self::Protocol,
            "UPSTREAM_PROTOCOL" => Self::UpstreamProtocol,
            "RESPONSE_CODE" => Self::ResponseCode,
            "RESPONSE_CODE_DETAILS" => Self::ResponseCodeDetails { keep_spaces: argument == Some("ALLOW_WHITESPACES") },
            "CONNECTION_TERMINATION_DETAILS" => Self::ConnectionTerminationDetails,
            "RESPONSE_FLAGS" => Self::Flags { long: false },
            "RESPONSE_FLAGS_LONG" => Self::Flags { long: true },
            "DURATION" => Self::Duration(None),
            "COMMON_DURATION" => Self::Duration(Some(common_duration(&required()?)?)),
            "REQUEST_DURATION" => Self::SinceStart(Point::DownstreamRxEnd),
            "RESPONSE_DURATION" => Self::SinceStart(Point::UpstreamRxStart),
            "RESPONSE_TX_DURATION" => {
                Self::Duration(Some((Point::UpstreamRxStart, Point::DownstreamTxEnd, Duration::from_millis(1))))
            }
            "REQUEST_TX_DURATION" => Self::SinceStart(Point::UpstreamTxEnd),
            "ROUNDTRIP_DURATION" | "DOWNSTREAM_HANDSHAKE_DURATION" | "UPSTREAM_CONNECTION_POOL_READY_DURATION" => {
                Self::RoundtripMissing
            }
            "DOWNSTREAM_REMOTE_ADDRESS" => Self::Address(DownstreamRemote, Whole),
            "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Self::Address(DownstreamRemote, WithoutPort),
            "DOWNSTREAM_REMOTE_PORT" => Self::Address(DownstreamRemote, Port),
            "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Self::Address(DownstreamDirectRemote, Whole),
            "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => Self::Address(DownstreamDirectRemote, WithoutPort),
            "DOWNSTREAM_DIRECT_REMOTE_PORT" => Self::Address(DownstreamDirectRemote, Port),
            "DOWNSTREAM_LOCAL_ADDRESS" => Self::Address(DownstreamLocal, Whole),
            "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Self::Address(DownstreamLocal, WithoutPort),
            "DOWNSTREAM_LOCAL_PORT" => Self::Address(DownstreamLocal, Port),
            "DOWNSTREAM_DIRECT_LOCAL_ADDRESS" => Self::Address(DownstreamDirectLocal, Whole),
            "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT" => Self::Address(DownstreamDirectLocal, WithoutPort),
            "DOWNSTREAM_DIRECT_LOCAL_PORT" => Self::Address(DownstreamDirectLocal, Port),
            "UPSTREAM_HOST" => Self::Address(UpstreamHost, Whole),
            "UPSTREAM_REMOTE_ADDRESS" => Self::Address(UpstreamRemote, Whole),
            "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Self::Address(UpstreamRemote, WithoutPort),
            "UPSTREAM_REMOTE_PORT" => Self::Address(UpstreamRemote, Port),
            "UPSTREAM_LOCAL_ADDRESS" => Self::Address(UpstreamLocal, Whole),
            "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Self::Address(UpstreamLocal, WithoutPort),
            "UPSTREAM_LOCAL_PORT" => Self::Address(UpstreamLocal, Port),
            "UPSTREAM_HOST_NAME" | "UPSTREAM_HOST_NAME_WITHOUT_PORT" => Self::UpstreamHostName,
            "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Self::UpstreamCluster,
            "UPSTREAM_CONNECTION_ID" => Self::UpstreamConnectionId,
            "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Self::UpstreamAttempts,
            "UPSTREAM_HOSTS_ATTEMPTED" => Self::UpstreamHostsAttempted,
            "UPSTREAM_TRANSPORT_FAILURE_REASON" => Self::UpstreamTransportFailure,
            "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => Self::DownstreamTransportFailure,
            "REQUESTED_SERVER_NAME" => Self::RequestedServerName(ServerName::parse(argument.unwrap_or_default())?),
            "DOWNSTREAM_TRANSPORT_PROTOCOL" => Self::TransportProtocol,
            "CONNECTION_ID" => Self::ConnectionId,
            "STREAM_ID" => Self::StreamId,
            "ROUTE_NAME" => Self::RouteName,
            "FILTER_CHAIN_NAME" => Self::FilterChainName,
            "VIRTUAL_HOST_NAME" => Self::VirtualHostName,
            "VIRTUAL_CLUSTER_NAME" => Self::VirtualClusterName,
            "HOSTNAME" => Self::Hostname,
            "ENVIRONMENT" => {
                Self::Environment(std::env::var(required()?).ok().filter(|v| !v.is_empty()).unwrap_or_default())
            }
            "DYNAMIC_METADATA" => path_of(argument).map(|(n, p)| Self::Metadata(From::Dynamic, n, p))?,
            "CLUSTER_METADATA" => path_of(argument).map(|(n, p)| Self::Metadata(From::Cluster, n, p))?,
            "UPSTREAM_METADATA" => path_of(argument).map(|(n, p)| Self::Metadata(From::UpstreamHost, n, p))?,
            "METADATA" => {
                let argument = required()?;
                let (from, rest) =
                    argument.split_once(':').ok_or("the kind of metadata and a namespace are required")?;
                let from = match from {
                    "ROUTE" => From::Route,
                    "CLUSTER" => From::Cluster,
                    "LISTENER" => From::Listener,
                    "VIRTUAL_HOST" => From::VirtualHost,
                    "DYNAMIC" => From::Dynamic,
                    "UPSTREAM_HOST" => From::UpstreamHost,
                    other => {
                        return Err(format!(
                            "{other:?} is no kind of metadata: ROUTE, CLUSTER, LISTENER, VIRTUAL_HOST, DYNAMIC, UPSTREAM_HOST"
                        ));
                    }
                };
                path_of(Some(rest)).map(|(n, p)| Self::Metadata(from, n, p))?
            }
            "FILTER_STATE" => {
                let argument = required()?;
                let (key, form) = argument.split_once(':').unwrap_or((&argument, ""));
                match form {
                    "" | "TYPED" | "PLAIN" => Self::FilterState { key: key.into(), plain: form == "PLAIN" },
                    other => return Err(format!("{other:?} is no form of filter state: PLAIN, TYPED")),
                }
            }
            "PATH" => {
                let mut words = argument.unwrap_or_default().split(':');
                let query = match words.next().unwrap_or_default() {
                    "WQ" | "" => true,
                    "NQ" => false,
                    other => return Err(format!("{other:?} is not WQ or NQ")),
                };
                let original = match words.next().unwrap_or_default() {
                    "PATH" => PathChoice::Current,
                    "ORIG" => PathChoice::Original,
                    "ORIG_OR_PATH" | "" => PathChoice::OriginalOrCurrent,
                    other => return Err(format!("{other:?} is not ORIG, PATH or ORIG_OR_PATH")),
                };
                Self::Path { query, original }
            }
            "QUERY_PARAM" => Self::QueryParameter(required()?),
            "QUERY_PARAMS" => Self::QueryParameters,
            "GRPC_STATUS" => Self::GrpcStatus(match argument.unwrap_or_default() {
                "" | "CAMEL_STRING" => GrpcForm::Camel,
                "SNAKE_STRING" => GrpcForm::Snake,
                "NUMBER" => GrpcForm::Number,
                other => return Err(format!("{other:?} is not CAMEL_STRING, SNAKE_STRING or NUMBER")),
            }),
            "GRPC_STATUS_NUMBER" => Self::GrpcStatus(GrpcForm::Number),
            "LOCAL_REPLY_BODY" => Self::LocalReplyBody,
            "ACCESS_LOG_TYPE" => Self::LogType,
            "TRACE_ID" => Self::TraceId,
            "SPAN_ID" => Self::SpanId,
            "UNIQUE_ID" => Self::UniqueId,
            "CUSTOM_FLAGS" => Self::CustomFlags,
            "JA3_FINGERPRINT" | "TLS_JA3_FINGERPRINT" | "TLS_JA4_FINGERPRINT" => Self::Absent,
            _ => match TlsOperator::parse(name, argument) {
                Some(operator) => Self::Tls(operator?),
                None => return Err("is not supported".into()),
            },
        })
    }

    /// The value of operators that are numbers; the outer `None` for those that are not.
    fn number(&self, facts: &Facts<'_>) -> Option<Option<u64>> {
        let info = facts.info;
        Some(match self {
            Self::BytesReceived => Some(info.bytes.received),
            Self::BytesSent => Some(info.bytes.sent),
            Self::Bytes(read) => Some(read(info)),
            Self::ResponseCode => Some(u64::from(info.response_code)),
            Self::UpstreamAttempts => Some(u64::from(info.attempt_count)),
            Self::ConnectionId => Some(info.connection.id),
            Self::UpstreamConnectionId => info.upstream.connection_id,
            Self::Duration(None) => info.points.end.map(|end| millis(info.start, end)),
            Self::Duration(Some((from, to, unit))) => {
                let span =
                    point(info, *from).zip(point(info, *to)).map(|(from, to)| to.saturating_duration_since(from));
                span.map(|span| (span.as_nanos() / unit.as_nanos()) as u64)
            }
            Self::SinceStart(to) => point(info, *to).map(|to| millis(info.start, to)),
            Self::Address(which, Show::Port) => {
                address(facts, *which).and_then(Address::ip).map(|ip| u64::from(ip.port()))
            }
            Self::GrpcStatus(GrpcForm::Number) => grpc_status(facts).map(u64::from),
            Self::RequestHeadBytes => Some(facts.request.map_or(0, |head| {
                let pseudo = [
                    (":authority", &head.authority[..]),
                    (":path", &head.path),
                    (":method", head.method.as_str().as_bytes()),
                    (":scheme", &head.scheme),
                ];
                let pseudo = pseudo.iter().filter(|(_, value)| !value.is_empty());
                size(&head.headers) + pseudo.map(|(name, value)| (name.len() + value.len()) as u64).sum::<u64>()
            })),
            Self::ResponseHeadBytes => {
                // `:status` and its three digits.
                Some(facts.response.map_or(0, |head| size(&head.headers) + 10))
            }
            Self::ResponseTrailerBytes => Some(facts.response_trailers.map_or(0, size)),
            _ => return None,
        })
    }

    fn write(&self, facts: &Facts<'_>, out: &mut String) -> bool {
        let info = facts.info;
        if let Some(number) = self.number(facts) {
            return match number {
                Some(number) => {
                    out.push_str(itoa::Buffer::new().format(number));
                    true
                }
                None => false,
            };
        }
        let text: Option<Cow<'_, str>> = match self {
            Self::Request(keys) => keys.iter().find_map(|key| request_header(facts, key)),
            Self::Response(keys) => keys.iter().find_map(|key| {
                let head = facts.response?;
                match key {
                    HeaderKey::Status => Some(head.status.as_str().to_owned().into()),
                    HeaderKey::Name(name) => first(&head.headers, name),
                    _ => None,
                }
            }),
            Self::Trailer(keys) => keys.iter().find_map(|key| match key {
                HeaderKey::Name(name) => first(facts.response_trailers?, name),
                _ => None,
            }),
            Self::StartTime(format) => {
                format.write(info.start_time, out);
                return true;
            }
            Self::EmitTime(format) => {
                format.write(SystemTime::now(), out);
                return true;
            }
            Self::Protocol => info.protocol.map(Cow::from),
            Self::UpstreamProtocol => info.upstream.protocol.map(Cow::from),
            Self::ResponseCodeDetails { keep_spaces } => {
                info.response_code_details.as_deref().filter(|d| !d.is_empty()).map(|details| {
                    if *keep_spaces || !details.contains(' ') {
                        Cow::Borrowed(details)
                    } else {
                        details.replace(' ', "_").into()
                    }
                })
            }
            Self::ConnectionTerminationDetails => {
                let of_stream = info.connection_termination_details.map(Cow::from);
                of_stream.or_else(|| info.connection.termination_details.borrow().clone())
            }
            Self::Flags { long } => {
                for (i, flag) in info.flags.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    out.push_str(if *long { flag.long() } else { flag.short() });
                }
                if info.flags.is_empty() {
                    out.push('-');
                }
                return true;
            }
            Self::Address(which, show) => {
                let Some(address) = address(facts, *which) else { return false };
                let _ = match (show, address) {
                    (Show::WithoutPort, Address::Ip(ip)) => write!(out, "{}", ip.ip()),
                    _ => write!(out, "{address}"),
                };
                return true;
            }
            Self::UpstreamHostName => info
                .upstream
                .host_name
                .as_deref()
                .filter(|n| !n.is_empty())
                .map(Cow::from)
                .or_else(|| info.upstream.host.as_ref().map(|host| host.to_string().into())),
            Self::UpstreamCluster => info.upstream.cluster.as_deref().filter(|n| !n.is_empty()).map(Cow::from),
            Self::UpstreamHostsAttempted => {
                let hosts: Vec<_> = info.upstream.attempted.iter().map(Address::to_string).collect();
                (!hosts.is_empty()).then(|| hosts.join(",").into())
            }
            Self::UpstreamTransportFailure => {
                info.upstream.transport_failure.as_deref().map(|reason| reason.replace(' ', "_").into())
            }
            // A stream of HTTP came about: nothing had failed.
            Self::DownstreamTransportFailure if info.protocol.is_some() => None,
            Self::DownstreamTransportFailure => info.connection.transport_failure.borrow().clone().map(Cow::from),
            Self::Tls(operator) => return operator.write(facts, out),
            Self::RequestedServerName(which) => which.find(facts),
            Self::TransportProtocol => Some(info.connection.transport_protocol.into()),
            Self::StreamId => info.stream_id.as_deref().map(String::from_utf8_lossy),
            Self::FilterChainName => info.connection.filter_chain.as_deref().filter(|n| !n.is_empty()).map(Cow::from),
            Self::RouteName => info.route_name.as_deref().filter(|n| !n.is_empty()).map(Cow::from),
            Self::VirtualHostName => info.virtual_host_name.as_deref().filter(|n| !n.is_empty()).map(Cow::from),
            Self::VirtualClusterName => info.virtual_cluster_name.as_deref().map(Cow::from),
            Self::Hostname => Some(hostname().into()),
            Self::Environment(value) => (!value.is_empty()).then(|| value.as_str().into()),
            Self::Metadata(from, namespace, path) => metadata(facts, *from, namespace, path).map(|value| match value {
                Cow::Borrowed(Value::String(text)) => Cow::Borrowed(text.as_str()),
                other => json::print(&other).into(),
            }),
            Self::FilterState { key, plain } => info.filter_state.get(key.as_str()).map(|state| {
                let text = String::from_utf8_lossy(&state.text);
                if *plain { text } else { Value::String(text.into_owned()).to_string().into() }
            }),
            Self::Path { query, original } => path(facts, *original).map(|path| match path {
                Cow::Borrowed(path) if !query => path[..path.find('?').unwrap_or(path.len())].into(),
                Cow::Owned(path) if !query => path[..path.find('?').unwrap_or(path.len())].to_owned().into(),
                path => path,
            }),
            Self::QueryParameter(name) => facts.request.and_then(|r| decoded_query_parameter(query_of(&r.path), name)),
            Self::QueryParameters => facts.request.map(|r| query_of(&r.path)).filter(|q| !q.is_empty()).map(Cow::from),
            Self::GrpcStatus(form) => grpc_status(facts).map(|status| grpc_name(status, *form)),
            // Empty, not missing: also where there is none, as in access logs.
            Self::LocalReplyBody => {
                Some(facts.local_reply_body.map_or("".into(), |body| String::from_utf8_lossy(body)))
            }
            Self::LogType => Some(facts.log_type.into()),
            Self::TraceId => info.trace_id.as_deref().map(Cow::from),
            Self::SpanId => info.span_id.as_deref().map(Cow::from),
            Self::UniqueId => crate::http::request_id::uuid().to_str().ok().map(|id| id.to_owned().into()),
            _ => None,
        };
        match text {
            Some(text) => {
                out.push_str(&text);
                true
            }
            None => false,
        }
    }
}

fn millis(from: Instant, to: Instant) -> u64 {
    to.saturating_duration_since(from).as_millis() as u64
}

fn point(info: &StreamInfo, point: Point) -> Option<Instant> {
    let points = &info.points;
    match point {
        Point::DownstreamRxStart => Some(info.start),
        Point::DownstreamRxEnd => points.downstream_rx_end,
        Point::UpstreamConnectStart => points.upstream_connect_start,
        Point::UpstreamConnectEnd => points.upstream_connect_end,
        Point::UpstreamTxStart => points.upstream_tx_start,
        Point::UpstreamTxEnd => points.upstream_tx_end,
        Point::UpstreamRxStart => points.upstream_rx_start,
        Point::UpstreamRxEnd => points.upstream_rx_end,
        Point::DownstreamTxStart => points.downstream_tx_start,
        Point::DownstreamTxEnd => points.downstream_tx_end,
    }
}

/// `START:END:PRECISION`
fn common_duration(text: &str) -> Result<(Point, Point, Duration), String> {
    let words: Vec<&str> = text.split(':').collect();
    let point = |word: &str| {
        Ok(match word {
            "DS_RX_BEG" => Point::DownstreamRxStart,
            "DS_RX_END" => Point::DownstreamRxEnd,
            "US_CX_BEG" => Point::UpstreamConnectStart,
            "US_CX_END" => Point::UpstreamConnectEnd,
            "US_TX_BEG" => Point::UpstreamTxStart,
            "US_TX_END" => Point::UpstreamTxEnd,
            "US_RX_BEG" => Point::UpstreamRxStart,
            "US_RX_END" => Point::UpstreamRxEnd,
            "DS_TX_BEG" => Point::DownstreamTxStart,
            "DS_TX_END" => Point::DownstreamTxEnd,
            other => return Err(format!("{other:?} is no time point")),
        })
    };
    let [from, to, rest @ ..] = &words[..] else { return Err("two time points are required".into()) };
    let unit = match rest {
        [] | ["ms"] => Duration::from_millis(1),
        ["us"] => Duration::from_micros(1),
        ["ns"] => Duration::from_nanos(1),
        other => return Err(format!("{other:?} is not ms, us or ns")),
    };
    Ok((point(from)?, point(to)?, unit))
}

fn address<'a>(facts: &Facts<'a>, which: Which) -> Option<&'a Address> {
    let (info, connection) = (facts.info, &facts.info.connection);
    match which {
        Which::DownstreamRemote => Some(&info.downstream_remote),
        Which::DownstreamDirectRemote => Some(&connection.direct_remote),
        Which::DownstreamLocal => Some(&connection.local),
        Which::DownstreamDirectLocal => Some(&connection.direct_local),
        Which::UpstreamRemote => info.upstream.remote.as_ref(),
        Which::UpstreamLocal => info.upstream.local.as_ref(),
        Which::UpstreamHost => info.upstream.host.as_ref(),
    }
}

fn first<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, str>> {
    headers.get(name).map(|value| text(value.as_bytes()))
}

fn request_header<'a>(facts: &Facts<'a>, key: &HeaderKey) -> Option<Cow<'a, str>> {
    let head = facts.request?;
    let pseudo = |bytes: &'a [u8]| (!bytes.is_empty()).then(|| text(bytes));
    match key {
        HeaderKey::Name(name) => first(&head.headers, name),
        // Since HTTP/1.1 there always is one, empty or not.
        HeaderKey::Authority if head.protocol > Protocol::Http10 => Some(text(&head.authority)),
        HeaderKey::Authority => pseudo(&head.authority),
        HeaderKey::Path => pseudo(&head.path),
        HeaderKey::Method => Some(head.method.as_str().into()),
        HeaderKey::Scheme => pseudo(&head.scheme),
        HeaderKey::Protocol => head.upgrade.as_deref().and_then(pseudo),
        HeaderKey::Status => None,
    }
}

fn path<'a>(facts: &Facts<'a>, choice: PathChoice) -> Option<Cow<'a, str>> {
    let head = facts.request?;
    let original = || first(&head.headers, &crate::http::header_names::ENVOY_ORIGINAL_PATH);
    let current = || (!head.path.is_empty()).then(|| text(&head.path));
    match choice {
        PathChoice::Current => current(),
        PathChoice::Original => original(),
        PathChoice::OriginalOrCurrent => original().or_else(current),
    }
}

/// Bytes of names and values.
fn size(headers: &HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| (name.as_str().len() + value.len()) as u64).sum()
}

/// The first value of a query parameter; escapes in names and values are resolved.
fn decoded_query_parameter<'q>(query: &'q str, name: &str) -> Option<Cow<'q, str>> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decoded(key) == name).then(|| percent_decoded(value))
    })
}

fn percent_decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return text.into();
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digit = |at: usize| after.get(at).and_then(|b| (*b as char).to_digit(16));
        match (byte, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high << 4 | low) as u8);
                rest = &after[2..];
            }
            _ => {
                out.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned().into()
}

/// A value, or all of a namespace if there is no path into it.
fn metadata<'a>(facts: &Facts<'a>, from: From, namespace: &str, path: &[String]) -> Option<Cow<'a, Value>> {
    let info = facts.info;
    let all: &Metadata = match from {
        From::Route => info.route_metadata.as_deref()?,
        From::Cluster => info.upstream.cluster_metadata.as_deref()?,
        From::Listener => info.listener_metadata.as_deref()?,
        From::VirtualHost => info.virtual_host_metadata.as_deref()?,
        From::UpstreamHost => info.upstream.host_metadata.as_deref()?,
        From::Dynamic => &info.dynamic_metadata,
    };
    let values = all.get(namespace)?;
    let Some((key, rest)) = path.split_first() else { return Some(Cow::Owned(Value::Object(values.clone()))) };
    rest.iter().try_fold(values.get(key)?, |value, key| value.as_object()?.get(key)).map(Cow::Borrowed)
}

/// Bytes of a message as text; those that are no UTF-8 are taken for Latin-1, one by one, as Envoy's JSON has them.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(bytes).map_or_else(|_| bytes.iter().map(|byte| char::from(*byte)).collect(), Cow::Borrowed)
}

/// From the trailers, then the headers, of a response to a gRPC request; else what the HTTP status stands for.
fn grpc_status(facts: &Facts<'_>) -> Option<u32> {
    let request = facts.request?;
    if !request.headers.get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc")) {
        return None;
    }
    let head = facts.response?;
    let from = facts.response_trailers.and_then(grpc::status).or_else(|| grpc::status(&head.headers));
    from.or_else(|| (head.status.as_u16() != 200).then(|| grpc::status_of(head.status)))
}

fn grpc_name(status: u32, form: GrpcForm) -> Cow<'static, str> {
    const NAMES: [(&str, &str); 17] = [
        ("OK", "OK"),
        ("Canceled", "CANCELLED"),
        ("Unknown", "UNKNOWN"),
        ("InvalidArgument", "INVALID_ARGUMENT"),
        ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
        ("NotFound", "NOT_FOUND"),
        ("AlreadyExists", "ALREADY_EXISTS"),
        ("PermissionDenied", "PERMISSION_DENIED"),
        ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
        ("FailedPrecondition", "FAILED_PRECONDITION"),
        ("Aborted", "ABORTED"),
        ("OutOfRange", "OUT_OF_RANGE"),
        ("Unimplemented", "UNIMPLEMENTED"),
        ("Internal", "INTERNAL"),
        ("Unavailable", "UNAVAILABLE"),
        ("DataLoss", "DATA_LOSS"),
        ("Unauthenticated", "UNAUTHENTICATED"),
    ];
    match (NAMES.get(status as usize), form) {
        (Some((camel, _)), GrpcForm::Camel) => (*camel).into(),
        (Some((_, snake)), GrpcForm::Snake) => (*snake).into(),
        _ => status.to_string().into(),
    }
}

/// This host's name, read once.
fn hostname() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
}
