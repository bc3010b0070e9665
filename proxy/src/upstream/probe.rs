//! One active check of one host: over a connection that is kept for the next where that is asked for, past all pools and
//! their limits. Runs on the control thread.

use super::{
    ClusterInfo, Host,
    connect::{Connect, Connected, Target, TargetTls},
    health_check::{Checked, Checks, HealthCheckStats, has_all},
    http_call,
};
use crate::{
    base::{ConnectionInfo, RuntimeSnapshot},
    http::{Protocol, RequestHead, UpstreamStream, grpc, h1, h2, header_names::*},
    observe::StreamInfo,
    transport::Io,
};
use bytes::Bytes;
use http::{HeaderValue, Method, header};
use std::{rc::Rc, sync::Arc};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_config::{
    cluster::{GrpcHealthCheck, HealthCheckKind, HttpHealthCheck, TcpHealthCheck},
    http_protocol_options as options,
};

/// More of an answer is not read.
const MOST: usize = 1 << 20;

/// What is needed to check a host.
pub struct Probe {
    info: Arc<ClusterInfo>,
    host: Arc<Host>,
    checks: Arc<Checks>,
    connector: Rc<dyn Connect>,
    stats: Arc<HealthCheckStats>,
    kept: Option<Kept>,
}

/// A connection between two checks.
enum Kept {
    Http1(h1::ClientConnection),
    Http2(h2::ClientConnection),
    Tcp(Io),
}

impl Probe {
    pub fn new(
        info: Arc<ClusterInfo>,
        host: Arc<Host>,
        checks: Arc<Checks>,
        connector: Rc<dyn Connect>,
        stats: Arc<HealthCheckStats>,
    ) -> Self {
        Self { info, host, checks, connector, stats, kept: None }
    }

    /// Makes the check.
    pub async fn check(&mut self, runtime: &RuntimeSnapshot) -> Checked {
        let checks = self.checks.clone();
        let check = &checks.check;
        let made = async {
            match &check.kind {
                HealthCheckKind::Http(http) => self.http(http, runtime).await,
                HealthCheckKind::Tcp(tcp) => self.tcp(tcp).await,
                HealthCheckKind::Grpc(grpc) => self.grpc(grpc).await,
            }
        };
        match tokio::time::timeout(check.timeout, made).await {
            Ok(Some(checked)) => {
                if !check.reuse_connection {
                    self.kept = None;
                }
                checked
            }
            Ok(None) => {
                self.kept = None;
                Checked::Unreachable
            }
            Err(_) => {
                self.kept = None;
                Checked::TimedOut
            }
        }
    }

    async fn connect(&self) -> Option<Connected> {
        let host = self.host.for_checks(self.checks.check.alt_port);
        let target = Target {
            host,
            bind: self.info.bind.clone(),
            keepalive: self.info.config.tcp_keepalive,
            downstream: None,
            // What checks do with TLS is not counted with what requests do.
            tls: TargetTls { options: Rc::default(), ssl: Arc::default(), factory: Arc::default(), looks_again: false },
        };
        self.connector.connect(target).await.ok()
    }

    /// A stream for one exchange.
    async fn stream(&mut self, http2: bool) -> Option<UpstreamStream> {
        match &self.kept {
            Some(Kept::Http1(connection)) if !connection.is_closed() && connection.is_idle() => {
                if let Ok(stream) = connection.start(Rc::new(|_, _| {})) {
                    return Some(UpstreamStream::H1(stream));
                }
            }
            Some(Kept::Http2(connection)) if connection.can_take_stream() => {
                return Some(UpstreamStream::H2(connection.start()));
            }
            _ => {}
        }
        self.kept = None;
        let io = self.connect().await?.io;
        if http2 {
            let options = Rc::new(h2::ClientOptions {
                http2: h2::Http2Options::default(),
                max_response_headers_kb: 60,
                max_headers_count: 100,
                stats: Arc::default(),
            });
            let (connection, drive) = h2::ClientConnection::handshake(io, options, Rc::new(Deaf)).await.ok()?;
            tokio::task::spawn_local(drive);
            let stream = connection.start();
            self.kept = Some(Kept::Http2(connection));
            Some(UpstreamStream::H2(stream))
        } else {
            let options = Rc::new(h1::ClientOptions {
                http1: options::Http1ProtocolOptions::default(),
                limits: h1::HeadLimits { bytes: 80 * 1024, headers: 100 },
                buffer_limit: MOST,
            });
            let connection = h1::ClientConnection::new(io, options);
            let stream = connection.start(Rc::new(|_, _| {})).ok()?;
            self.kept = Some(Kept::Http1(connection));
            Some(UpstreamStream::H1(stream))
        }
    }

    /// The name by which the host is asked.
    fn authority(&self, configured: &str) -> Bytes {
        let of_host = self.host.checks.as_ref().map_or("", |checks| checks.hostname.as_str());
        let name = [configured, of_host, self.info.name()].into_iter().find(|name| !name.is_empty());
        Bytes::copy_from_slice(name.unwrap_or_default().as_bytes())
    }

    fn finish(&self, head: &mut RequestHead, protocol: &'static str) {
        let mut info =
            StreamInfo::new(Rc::new(ConnectionInfo::accepted(0, self.host.address.clone(), self.host.address.clone())));
        info.protocol = Some(protocol);
        info.upstream.host = Some(self.host.address.clone());
        info.upstream.host_metadata = self.host.metadata.clone();
        self.checks.rules.apply_request(head, &info);
    }

    async fn http(&mut self, check: &HttpHealthCheck, runtime: &RuntimeSnapshot) -> Option<Checked> {
        let mut stream = self.stream(check.http2).await?;
        let mut head = RequestHead::new(check.method.clone(), Bytes::copy_from_slice(check.path.as_bytes()));
        head.protocol = if check.http2 { Protocol::Http2 } else { Protocol::Http11 };
        head.scheme = if self.host.transport_socket.tls().is_some() {
            Bytes::from_static(b"https")
        } else {
            Bytes::from_static(b"http")
        };
        head.authority = self.authority(&check.host);
        head.headers.insert(header::USER_AGENT, HeaderValue::from_static("Envoy/HC"));
        let protocol = head.protocol.as_str();
        self.finish(&mut head, protocol);
        let answer = http_call::exchange(&mut stream, &head, Bytes::new(), MOST).await.ok()?;
        let status = i64::from(answer.status.as_u16());
        let is_in = |ranges: &[std::ops::Range<i64>]| ranges.iter().any(|range| range.contains(&status));
        if !is_in(&check.expected) {
            return Some(Checked::Bad { retriable: is_in(&check.retriable) });
        }
        let seen = match usize::try_from(check.response_buffer_size).unwrap_or(0) {
            0 => &answer.body[..],
            most => &answer.body[..answer.body.len().min(most)],
        };
        if !has_all(seen, &check.receive) {
            return Some(Checked::Bad { retriable: false });
        }
        if let Some(matcher) = &check.service_name
            && runtime.enables("health_check.verify_cluster", 100, fastrand::u64(..))
        {
            self.stats.verify_cluster.inc();
            let name = answer.headers.get(ENVOY_UPSTREAM_HEALTHCHECKED_CLUSTER);
            if !name.is_some_and(|name| matcher.matches(name.as_bytes())) {
                return Some(Checked::Bad { retriable: false });
            }
        }
        Some(Checked::Good { degraded: answer.headers.contains_key(ENVOY_DEGRADED) })
    }

    async fn grpc(&mut self, check: &GrpcHealthCheck) -> Option<Checked> {
        /// `grpc.health.v1.HealthCheckResponse.SERVING`
        const SERVING: u64 = 1;
        let mut stream = self.stream(true).await?;
        let mut head = RequestHead::new(Method::POST, Bytes::from_static(b"/grpc.health.v1.Health/Check"));
        head.protocol = Protocol::Http2;
        head.scheme = Bytes::from_static(b"http");
        head.authority = self.authority(&check.authority);
        head.headers.insert(header::TE, HeaderValue::from_static("trailers"));
        head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        head.headers.insert(header::USER_AGENT, HeaderValue::from_static("Envoy/HC"));
        self.finish(&mut head, "HTTP/2");
        let answer = http_call::exchange(&mut stream, &head, request_message(&check.service_name), MOST).await.ok()?;
        let status = answer.trailers.as_ref().and_then(grpc::status).or_else(|| grpc::status(&answer.headers));
        let good = answer.status == 200 && status == Some(0) && serving_status(&answer.body) == Some(SERVING);
        Some(if good { Checked::Good { degraded: false } } else { Checked::Bad { retriable: false } })
    }

    async fn tcp(&mut self, check: &TcpHealthCheck) -> Option<Checked> {
        let mut io = match self.kept.take() {
            Some(Kept::Tcp(io)) => io,
            _ => self.connect().await?.io,
        };
        if !check.send.is_empty() {
            io.write_all(&check.send).await.ok()?;
            io.flush().await.ok()?;
        }
        if check.receive.is_empty() {
            // That there is a connection is all.
            return Some(Checked::Good { degraded: false });
        }
        let mut seen = Vec::new();
        while !has_all(&seen, &check.receive) {
            if seen.len() > MOST || io.read_buf(&mut seen).await.ok()? == 0 {
                return None;
            }
        }
        self.kept = Some(Kept::Tcp(io));
        Some(Checked::Good { degraded: false })
    }
}

/// Nobody waits for what the connection tells.
struct Deaf;

impl h2::ClientEvents for Deaf {
    fn goaway(&self) {}
    fn closed(&self) {}
    fn stream_ended(&self) {}
}

/// A framed `HealthCheckRequest`.
fn request_message(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        prost::encoding::encode_varint(service.len() as u64, &mut message);
        message.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0][..], &length, &message].concat().into()
}

/// The status of a framed `HealthCheckResponse`; `None` if it is none.
fn serving_status(frame: &[u8]) -> Option<u64> {
    let (head, message) = frame.split_at_checked(5)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if head[0] != 0 || message.len() != length {
        return None;
    }
    match message {
        [] => Some(0),
        [0x08, status] => Some(u64::from(*status)),
        _ => None,
    }
}
