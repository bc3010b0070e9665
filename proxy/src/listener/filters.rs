//! Listener filters: they see the first bytes of a connection, before its filter chain is chosen.
//!
//! Bytes are read into a bounded buffer and given back in front of the connection, but for a PROXY header, which is
//! used up.

use super::{
    client_hello::{self, Hello},
    proxy_header::{self, Parsed},
    stats::{
        HttpInspectorStats, ProxyProtocolErrors, ProxyProtocolStats, ProxyProtocolVersionStats, TlsInspectorStats,
    },
};
use crate::{
    base::{Address, ConnectionInfo},
    http::Thread,
    transport::Io,
};
use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use std::{rc::Rc, sync::Arc};
use tokio::io::AsyncReadExt;
use weft_config::{
    Context,
    listener::{ListenerFilter as Config, Predicate},
};
use weft_control_api::envoy::extensions::filters::listener::{
    http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst, proxy_protocol::v3 as proxy_protocol,
    tls_inspector::v3 as tls_inspector,
};

/// A compiled listener filter.
#[derive(Clone, Debug)]
pub struct ListenerFilter {
    pub disabled: Option<Predicate>,
    pub kind: Kind,
}

#[derive(Clone, Debug)]
pub enum Kind {
    HttpInspector,
    TlsInspector,
    OriginalDst,
    ProxyProtocol(ProxyProtocol),
}

/// The PROXY protocol's options.
#[derive(Clone, Debug)]
pub struct ProxyProtocol {
    allow_without: bool,
    disallow_v1: bool,
    disallow_v2: bool,
    stat_prefix: String,
    /// TLV type, metadata namespace, key.
    rules: Vec<(u8, String, String)>,
}

impl ListenerFilter {
    pub fn compile(config: &Config, cx: &mut Context) -> Option<Self> {
        let any = &config.config;
        let kind = match any.type_url.rsplit('/').next().unwrap_or_default() {
            "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector" => {
                let HttpInspector {} = cx.unpack("typed_config", any)?;
                Kind::HttpInspector
            }
            "envoy.extensions.filters.listener.original_dst.v3.OriginalDst" => {
                let OriginalDst {} = cx.unpack("typed_config", any)?;
                Kind::OriginalDst
            }
            "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" => {
                let tls_inspector::TlsInspector {
                    enable_ja3_fingerprinting,
                    enable_ja4_fingerprinting,
                    initial_read_buffer_size,
                    close_connection_on_client_hello_parsing_errors,
                    max_client_hello_size,
                } = cx.unpack("typed_config", any)?;
                cx.field("typed_config", |cx| {
                    cx.unsupported_if("enable_ja3_fingerprinting", enable_ja3_fingerprinting == Some(true));
                    cx.unsupported_if("enable_ja4_fingerprinting", enable_ja4_fingerprinting == Some(true));
                    cx.ignored_if("initial_read_buffer_size", initial_read_buffer_size.is_some());
                    cx.unsupported_if("max_client_hello_size", max_client_hello_size.is_some());
                    cx.unsupported_if(
                        "close_connection_on_client_hello_parsing_errors",
                        close_connection_on_client_hello_parsing_errors,
                    );
                });
                Kind::TlsInspector
            }
            "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol" => {
                let proxy_protocol::ProxyProtocol {
                    rules,
                    allow_requests_without_proxy_protocol,
                    pass_through_tlvs,
                    disallowed_versions,
                    stat_prefix,
                    tlv_location,
                } = cx.unpack("typed_config", any)?;
                cx.field("typed_config", |cx| {
                    cx.unsupported_if("pass_through_tlvs", pass_through_tlvs.is_some());
                    cx.unsupported_if("tlv_location", tlv_location != 0);
                    Some(Kind::ProxyProtocol(ProxyProtocol {
                        allow_without: allow_requests_without_proxy_protocol,
                        disallow_v1: disallowed_versions.contains(&0),
                        disallow_v2: disallowed_versions.contains(&1),
                        stat_prefix,
                        rules: cx.elements("rules", rules, |cx, p| {
                            let proxy_protocol::proxy_protocol::Rule { tlv_type, on_tlv_present } = p;
                            let pair = cx.required("on_tlv_present", on_tlv_present)?;
                            let namespace = pair.metadata_namespace;
                            let namespace = if namespace.is_empty() {
                                "envoy.filters.listener.proxy_protocol".into()
                            } else {
                                namespace
                            };
                            Some((tlv_type as u8, namespace, pair.key))
                        }),
                    }))
                })?
            }
            other => {
                cx.problem_at("typed_config", format!("found {other}, which is not supported; allowed: http_inspector, tls_inspector, original_dst, proxy_protocol"));
                return None;
            }
        };
        Some(Self { disabled: config.disabled.clone(), kind })
    }
}

/// The stats that a worker's listener filters write.
pub struct FilterStats {
    http: Arc<HttpInspectorStats>,
    tls: Arc<TlsInspectorStats>,
    proxy: Vec<ProxyStats>,
}

struct ProxyStats {
    plain: Arc<ProxyProtocolStats>,
    errors: Arc<ProxyProtocolErrors>,
    versions: [Arc<ProxyProtocolVersionStats>; 2],
}

impl FilterStats {
    pub fn new(filters: &[ListenerFilter], thread: &Thread, listener_prefix: &str) -> Self {
        let registry = &thread.registry;
        let proxy = filters.iter().filter_map(|filter| match &filter.kind {
            Kind::ProxyProtocol(options) => {
                let prefix = if options.stat_prefix.is_empty() {
                    "proxy_proto".into()
                } else {
                    format!("proxy_proto.{}", options.stat_prefix)
                };
                Some(ProxyStats {
                    plain: registry.attach(&prefix),
                    errors: registry.attach(listener_prefix),
                    versions: [
                        registry.attach(&format!("{prefix}.versions.v1")),
                        registry.attach(&format!("{prefix}.versions.v2")),
                    ],
                })
            }
            _ => None,
        });
        Self { http: registry.attach("http_inspector"), tls: registry.attach("tls_inspector"), proxy: proxy.collect() }
    }
}

/// A connection on its way through the listener filters.
pub struct Accepted {
    pub io: Io,
    pub info: ConnectionInfo,
    /// Read ahead, not yet used.
    pub buffer: BytesMut,
    /// What filters leave for the streams of the connection.
    pub metadata: Vec<(String, String, Vec<u8>)>,
    /// The destination was restored: `use_original_dst` may hand the connection over.
    pub restored_destination: bool,
}

/// Why a connection ends here.
pub enum Refused {
    /// The client closed.
    RemoteClose,
    /// A filter refused it.
    Error,
}

/// Listener filters look at no more than this.
const MOST: usize = 64 << 10;

impl Accepted {
    /// Reads more; false once the client has ended.
    async fn read_more(&mut self) -> Result<bool, Refused> {
        if self.buffer.len() >= MOST {
            return Err(Refused::Error);
        }
        match self.io.read_buf(&mut self.buffer).await {
            Ok(n) => Ok(n > 0),
            Err(_) => Err(Refused::RemoteClose),
        }
    }

    /// The connection with what was read ahead in front.
    pub fn into_io(self) -> (Io, ConnectionInfo) {
        (self.io.with_prefix(Bytes::from(self.buffer)), self.info)
    }
}

/// Runs the filters in order.
pub async fn run(filters: &[ListenerFilter], stats: &Rc<FilterStats>, accepted: &mut Accepted) -> Result<(), Refused> {
    let mut proxy = stats.proxy.iter();
    for filter in filters {
        let proxy_stats = if matches!(filter.kind, Kind::ProxyProtocol(_)) { proxy.next() } else { None };
        let port = accepted.info.local.ip().map(|ip| ip.port());
        if filter.disabled.as_ref().is_some_and(|predicate| predicate.holds(port)) {
            continue;
        }
        match &filter.kind {
            Kind::HttpInspector => http_inspector(accepted, &stats.http).await?,
            Kind::TlsInspector => tls_inspector(accepted, &stats.tls).await?,
            Kind::OriginalDst => original_dst(accepted),
            Kind::ProxyProtocol(options) => {
                if let Some(stats) = proxy_stats {
                    proxy_protocol(accepted, options, stats).await?;
                }
            }
        }
    }
    Ok(())
}

async fn http_inspector(accepted: &mut Accepted, stats: &HttpInspectorStats) -> Result<(), Refused> {
    if accepted.info.transport_protocol == "tls" {
        return Ok(());
    }
    let found = loop {
        match inspect_http(&accepted.buffer) {
            Some(found) => break found,
            None => {
                if !accepted.read_more().await? {
                    stats.read_error.inc();
                    return Err(Refused::RemoteClose);
                }
            }
        }
    };
    let counter = match found {
        None => &stats.http_not_found,
        Some(b"http/1.0") => &stats.http10_found,
        Some(b"http/1.1") => &stats.http11_found,
        Some(_) => &stats.http2_found,
    };
    counter.inc();
    if let Some(protocol) = found {
        accepted.info.application_protocols = vec![protocol.into()];
    }
    Ok(())
}

/// The protocol of the first bytes; `None` outside if more are needed, inside if it is no HTTP.
fn inspect_http(buf: &[u8]) -> Option<Option<&'static [u8]>> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    if buf.iter().zip(PREFACE).all(|(a, b)| a == b) {
        return (buf.len() >= PREFACE.len()).then_some(Some(b"h2c"));
    }
    // A method is a token; the line ends with the version.
    let method = memchr::memchr(b' ', buf).unwrap_or(buf.len());
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    if method == 0 || method > 32 || !buf[..method].iter().all(is_token) {
        return Some(None);
    }
    let end = memchr::memchr(b'\n', buf)?;
    let line = buf[..end].strip_suffix(b"\r").unwrap_or(&buf[..end]);
    Some(if line.ends_with(b" HTTP/1.1") {
        Some(b"http/1.1")
    } else if line.ends_with(b" HTTP/1.0") {
        Some(b"http/1.0")
    } else {
        None
    })
}

async fn tls_inspector(accepted: &mut Accepted, stats: &TlsInspectorStats) -> Result<(), Refused> {
    loop {
        match client_hello::parse(&accepted.buffer) {
            Hello::Partial => {
                if accepted.buffer.len() >= 16 << 10 {
                    stats.client_hello_too_large.inc();
                    return Err(Refused::Error);
                }
                if !accepted.read_more().await? {
                    return Err(Refused::RemoteClose);
                }
            }
            Hello::NotTls => {
                stats.tls_not_found.inc();
                return Ok(());
            }
            Hello::Found { server_name, protocols } => {
                stats.tls_found.inc();
                stats.bytes_processed.record(accepted.buffer.len() as u64);
                if server_name.is_some() { &stats.sni_found } else { &stats.sni_not_found }.inc();
                if protocols.is_empty() { &stats.alpn_not_found } else { &stats.alpn_found }.inc();
                accepted.info.transport_protocol = "tls";
                accepted.info.requested_server_name = server_name.map(String::into_boxed_str);
                accepted.info.application_protocols = protocols.into_iter().map(Vec::into_boxed_slice).collect();
                return Ok(());
            }
        }
    }
}

/// The destination before iptables' REDIRECT.
fn original_dst(accepted: &mut Accepted) {
    let Io::Tcp(stream) = &accepted.io else { return };
    let socket = SockRef::from(stream);
    let original = match accepted.info.direct_local.ip() {
        Some(ip) if ip.is_ipv6() => socket.original_dst_v6(),
        _ => socket.original_dst_v4(),
    };
    if let Some(original) = original.ok().and_then(|address| address.as_socket()) {
        accepted.info.local = Address::from(original);
        accepted.restored_destination = true;
    }
}

async fn proxy_protocol(accepted: &mut Accepted, options: &ProxyProtocol, stats: &ProxyStats) -> Result<(), Refused> {
    let refuse = || {
        stats.errors.downstream_cx_proxy_proto_error.inc();
        Err(Refused::Error)
    };
    let header = loop {
        match proxy_header::parse(&accepted.buffer) {
            Parsed::Header(header) => break header,
            Parsed::Absent if options.allow_without => {
                stats.plain.not_found_allowed.inc();
                return Ok(());
            }
            Parsed::Absent => {
                stats.plain.not_found_disallowed.inc();
                return refuse();
            }
            Parsed::Malformed { version, .. } => {
                stats.versions[usize::from(version - 1)].error.inc();
                return refuse();
            }
            Parsed::Partial => {
                if !accepted.read_more().await? {
                    return Err(Refused::RemoteClose);
                }
            }
        }
    };
    let version = &stats.versions[usize::from(header.version - 1)];
    let disallowed = if header.version == 1 { options.disallow_v1 } else { options.disallow_v2 };
    if disallowed {
        version.disallowed.inc();
        return refuse();
    }
    version.found.inc();
    let _ = accepted.buffer.split_to(header.length);
    if let Some((source, destination)) = header.addresses {
        accepted.info.remote = Address::from(source);
        if Address::from(destination) != accepted.info.local {
            accepted.info.local = Address::from(destination);
            accepted.restored_destination = true;
        }
    }
    for (kind, namespace, key) in &options.rules {
        if let Some((_, value)) = header.tlvs.iter().find(|(found, _)| found == kind) {
            accepted.metadata.push((namespace.clone(), key.clone(), value.clone()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_by_its_first_line() {
        assert_eq!(inspect_http(b"GET / HTTP/1.1\r\n"), Some(Some(&b"http/1.1"[..])));
        assert_eq!(inspect_http(b"GET / HTTP/1.0\n"), Some(Some(&b"http/1.0"[..])));
        assert_eq!(inspect_http(b"GET / HTTP/3.0\r\n"), Some(None));
        assert_eq!(inspect_http(b"GET / HT"), None);
        assert_eq!(inspect_http(b"\x16\x03\x01"), Some(None));
        assert_eq!(inspect_http(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Some(Some(&b"h2c"[..])));
        assert_eq!(inspect_http(b"PRI * HT"), None);
    }
}
