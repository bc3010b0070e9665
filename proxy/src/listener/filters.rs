//! Listener filters: they see the first bytes of a connection, before its filter chain is chosen.
//!
//! Bytes are read into a bounded buffer and given back in front of the connection, but for a PROXY header, which is
//! used up.

use super::{
    client_hello::{Inspection, NotTls, Seen},
    proxy_header::{self, Parsed},
    stats::{
        HttpInspectorStats, ProxyProtocolRootStats, ProxyProtocolStats, ProxyProtocolVersionStats, TlsInspectorStats,
    },
};
use crate::{
    base::{Address, ConnectionInfo},
    http::{Thread, h1::is_request_target},
    network::{
        CompileContext,
        discovered::{Category, Discovered},
    },
    transport::Io,
};
use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};
use tokio::io::AsyncReadExt;
use weft_config::{
    Context,
    cluster::PassTlvs,
    extension_config::FilterConfig,
    listener::{Listener, ListenerFilter as Config, Predicate},
};
use weft_control_api::Any;
use weft_control_api::envoy::extensions::filters::listener::{
    http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst, proxy_protocol::v3 as proxy_protocol,
    tls_inspector::v3 as tls_inspector,
};

/// A compiled listener filter.
#[derive(Clone)]
pub struct ListenerFilter {
    pub disabled: Option<Predicate>,
    pub kind: Kind,
}

#[derive(Clone)]
pub enum Kind {
    HttpInspector,
    TlsInspector(TlsInspector),
    OriginalDst,
    ProxyProtocol(ProxyProtocol),
    /// Whatever sits there.
    Discovered(Arc<Discovered<Kind>>),
}

/// The TLS inspector's options.
#[derive(Clone, Debug)]
pub struct TlsInspector {
    /// Bytes; a longer ClientHello is refused.
    most: usize,
    /// A ClientHello that cannot be read ends the connection.
    close_on_error: bool,
}

/// The PROXY protocol's options.
#[derive(Clone, Debug, Default)]
pub struct ProxyProtocol {
    allow_without: bool,
    disallow_v1: bool,
    disallow_v2: bool,
    stat_prefix: String,
    passed_tlvs: PassTlvs,
    /// TLV type, metadata namespace, key.
    rules: Vec<(u8, String, String)>,
}

/// Compiles a listener's filters, with those that its own fields ask for at the end.
pub fn compile(config: &Listener, context: &mut CompileContext<'_>, cx: &mut Context) -> Vec<ListenerFilter> {
    let compile = |(i, filter)| cx.element("listener_filters", i, |cx| ListenerFilter::compile(filter, context, cx));
    let mut filters: Vec<_> = config.listener_filters.iter().enumerate().filter_map(compile).collect();
    let asked = |wanted: bool, kind: Kind| wanted.then_some(ListenerFilter { disabled: None, kind });
    filters.extend(asked(config.use_original_dst, Kind::OriginalDst));
    filters.extend(asked(config.use_proxy_proto, Kind::ProxyProtocol(ProxyProtocol::default())));
    filters
}

impl ListenerFilter {
    fn compile(config: &Config, context: &mut CompileContext<'_>, cx: &mut Context) -> Option<Self> {
        let kind = match &config.config {
            FilterConfig::Typed(any) => Kind::compile(any, cx)?,
            FilterConfig::Discovery(source) => {
                let compile = |any: &Any, _: &mut CompileContext<'_>, cx: &mut Context| Kind::compile(any, cx);
                Kind::Discovered(Discovered::new(Category::Listener, &config.name, source, compile, context, cx)?)
            }
        };
        Some(Self { disabled: config.disabled.clone(), kind })
    }
}

impl Kind {
    fn compile(any: &Any, cx: &mut Context) -> Option<Self> {
        Some(match any.type_url.rsplit('/').next().unwrap_or_default() {
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
                });
                Kind::TlsInspector(TlsInspector {
                    most: max_client_hello_size.map_or(16 << 10, |most| most as usize),
                    close_on_error: close_connection_on_client_hello_parsing_errors,
                })
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
                    cx.unsupported_if("tlv_location", tlv_location != 0);
                    if disallowed_versions.contains(&0) && disallowed_versions.contains(&1) {
                        cx.problem_at("disallowed_versions", "leaves no version that is allowed");
                    }
                    Some(Kind::ProxyProtocol(ProxyProtocol {
                        allow_without: allow_requests_without_proxy_protocol,
                        disallow_v1: disallowed_versions.contains(&0),
                        disallow_v2: disallowed_versions.contains(&1),
                        stat_prefix,
                        passed_tlvs: PassTlvs::from_proto("pass_through_tlvs", pass_through_tlvs, cx),
                        rules: cx.elements("rules", rules, |cx, p| {
                            let proxy_protocol::proxy_protocol::Rule { tlv_type, on_tlv_present } = p;
                            let proxy_protocol::proxy_protocol::KeyValuePair {
                                metadata_namespace: namespace,
                                key,
                                value_string_encoding,
                            } = cx.required("on_tlv_present", on_tlv_present)?;
                            cx.unsupported_if("on_tlv_present.value_string_encoding", value_string_encoding != 0);
                            let namespace = if namespace.is_empty() {
                                "envoy.filters.listener.proxy_protocol".into()
                            } else {
                                namespace
                            };
                            Some((tlv_type as u8, namespace, key))
                        }),
                    }))
                })?
            }
            other => {
                cx.problem_at("typed_config", format!("found {other}, which is not supported; allowed: http_inspector, tls_inspector, original_dst, proxy_protocol"));
                return None;
            }
        })
    }
}

/// The stats that a worker's listener filters write.
pub struct FilterStats {
    /// Of filters whose configuration is discovered, in their order.
    discovered: Vec<DiscoveredStats>,
    http: Option<Arc<HttpInspectorStats>>,
    tls: Option<Arc<TlsInspectorStats>>,
    proxy: Vec<ProxyStats>,
}

/// The stats of what sits in a seat.
struct DiscoveredStats {
    thread: Rc<Thread>,
    of: RefCell<Option<(Arc<Kind>, Rc<FilterStats>)>>,
}

impl DiscoveredStats {
    fn get(&self, kind: &Arc<Kind>) -> Rc<FilterStats> {
        let mut cached = self.of.borrow_mut();
        match &*cached {
            Some((of, stats)) if Arc::ptr_eq(of, kind) => stats.clone(),
            _ => {
                let filter = ListenerFilter { disabled: None, kind: (**kind).clone() };
                let stats = Rc::new(FilterStats::new(&[filter], &self.thread));
                *cached = Some((kind.clone(), stats.clone()));
                stats
            }
        }
    }
}

struct ProxyStats {
    root: Arc<ProxyProtocolRootStats>,
    plain: Arc<ProxyProtocolStats>,
    versions: [Arc<ProxyProtocolVersionStats>; 2],
}

impl FilterStats {
    pub fn new(filters: &[ListenerFilter], thread: &Rc<Thread>) -> Self {
        let registry = &thread.registry;
        let proxy = filters.iter().filter_map(|filter| match &filter.kind {
            Kind::ProxyProtocol(options) => {
                let prefix = if options.stat_prefix.is_empty() {
                    "proxy_proto".into()
                } else {
                    format!("proxy_proto.{}", options.stat_prefix)
                };
                Some(ProxyStats {
                    root: registry.attach(""),
                    plain: registry.attach(&prefix),
                    versions: [
                        registry.attach(&format!("{prefix}.versions.v1")),
                        registry.attach(&format!("{prefix}.versions.v2")),
                    ],
                })
            }
            _ => None,
        });
        let any = |is: fn(&Kind) -> bool| filters.iter().any(|filter| is(&filter.kind));
        let seats = filters.iter().filter(|filter| matches!(filter.kind, Kind::Discovered(_)));
        Self {
            discovered: seats.map(|_| DiscoveredStats { thread: thread.clone(), of: RefCell::default() }).collect(),
            http: any(|kind| matches!(kind, Kind::HttpInspector)).then(|| registry.attach("http_inspector")),
            tls: any(|kind| matches!(kind, Kind::TlsInspector(_))).then(|| registry.attach("tls_inspector")),
            proxy: proxy.collect(),
        }
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
    /// Reading failed.
    Error,
    /// A filter refused what it saw.
    ByFilter,
    /// The configuration of a filter has not been found.
    WithoutConfig,
}

/// Listener filters look at no more than this.
const MOST: usize = 64 << 10;

impl Accepted {
    pub fn new(io: Io, info: ConnectionInfo) -> Self {
        Self { io, info, buffer: BytesMut::new(), metadata: Vec::new(), restored_destination: false }
    }

    /// Reads more.
    async fn read_more(&mut self) -> Result<(), Refused> {
        // A first packet comes whole, so that it goes on as one.
        self.buffer.reserve(4096);
        match self.io.read_buf(&mut self.buffer).await {
            Ok(1..) => Ok(()),
            Ok(0) => Err(Refused::RemoteClose),
            Err(_) => Err(Refused::Error),
        }
    }

    /// To be said before a connection is closed whose bytes nobody took: they were peeked at, as it were, so that the client
    /// is told of a reset, as with Envoy, and not of an end.
    pub fn refuse(&self) {
        if let Io::Tcp(stream) = &self.io
            && !self.buffer.is_empty()
        {
            // Where it fails the client is told of an end.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// The connection with what was read ahead in front.
    pub fn into_io(self) -> (Io, ConnectionInfo) {
        (self.io.with_prefix(Bytes::from(self.buffer)), self.info)
    }
}

/// Runs the filters in order.
pub async fn run(filters: &[ListenerFilter], stats: &Rc<FilterStats>, accepted: &mut Accepted) -> Result<(), Refused> {
    let (mut proxy, mut discovered) = (stats.proxy.iter(), stats.discovered.iter());
    for filter in filters {
        let proxy_stats = if matches!(filter.kind, Kind::ProxyProtocol(_)) { proxy.next() } else { None };
        let seat = if let Kind::Discovered(seat) = &filter.kind { discovered.next().zip(Some(seat)) } else { None };
        let port = accepted.info.local.ip().map(|ip| ip.port());
        if filter.disabled.as_ref().is_some_and(|predicate| predicate.holds(port)) {
            continue;
        }
        match seat {
            None => run_one(&filter.kind, stats, proxy_stats, accepted).await?,
            Some((cached, seat)) => {
                let kind = seat.get().ok_or(Refused::WithoutConfig)?;
                let stats = cached.get(&kind);
                run_one(&kind, &stats, stats.proxy.first(), accepted).await?;
            }
        }
    }
    Ok(())
}

async fn run_one(
    kind: &Kind,
    stats: &FilterStats,
    proxy_stats: Option<&ProxyStats>,
    accepted: &mut Accepted,
) -> Result<(), Refused> {
    match kind {
        Kind::HttpInspector => {
            if let Some(stats) = &stats.http {
                http_inspector(accepted, stats).await?;
            }
        }
        Kind::TlsInspector(options) => {
            if let Some(stats) = &stats.tls {
                tls_inspector(accepted, options, stats).await?;
            }
        }
        Kind::OriginalDst => original_dst(accepted),
        Kind::ProxyProtocol(options) => {
            if let Some(stats) = proxy_stats {
                proxy_protocol(accepted, options, stats).await?;
            }
        }
        // What sits in a seat is never a seat itself.
        Kind::Discovered(_) => {}
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
            None if accepted.buffer.len() >= MOST => {
                stats.read_error.inc();
                return Err(Refused::ByFilter);
            }
            None => accepted.read_more().await?,
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
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    let is_space = |b: &u8| matches!(b, b' ' | b'\t' | b'\r');
    let end = memchr::memchr(b'\n', buf);
    let line = &buf[..end.unwrap_or(buf.len())];
    // The method shows at once what is no HTTP.
    let method = line.iter().position(is_space).unwrap_or(line.len());
    if !line[..method].iter().all(is_token) || method == 0 && !buf.is_empty() {
        return Some(None);
    }
    end?;
    let mut words = line.split(is_space).filter(|word| !word.is_empty());
    let (method, target, version) = (words.next()?, words.next().unwrap_or_default(), words.next());
    if words.next().is_some() || !is_request_target(target, method == b"CONNECT") {
        return Some(None);
    }
    // Without a version it is as old as HTTP gets; what is no 1.1 is served as 1.0.
    Some(match version {
        Some(b"HTTP/1.1") => Some(b"http/1.1"),
        None | Some([b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']) => Some(b"http/1.0"),
        _ => None,
    })
}

async fn tls_inspector(
    accepted: &mut Accepted,
    options: &TlsInspector,
    stats: &TlsInspectorStats,
) -> Result<(), Refused> {
    let mut inspection = Inspection::default();
    let processed = |inspection: &Inspection, all| stats.bytes_processed.record(inspection.processed(all) as u64);
    loop {
        // What is beyond the limit is not looked at.
        let bytes = accepted.buffer.get(..options.most).unwrap_or(&accepted.buffer);
        let (seen, all) = (inspection.look(bytes), bytes.len());
        let is_full = all >= options.most;
        match seen {
            Seen::Partial if is_full => {
                stats.client_hello_too_large.inc();
                processed(&inspection, all);
                return Err(Refused::ByFilter);
            }
            Seen::Partial => accepted.read_more().await?,
            Seen::Closed => {
                processed(&inspection, all);
                return Err(Refused::ByFilter);
            }
            Seen::NotTls(_) if options.close_on_error && is_full => {
                stats.client_hello_too_large.inc();
                processed(&inspection, all);
                return Err(Refused::ByFilter);
            }
            Seen::NotTls(why) => {
                processed(&inspection, all);
                not_tls(accepted, stats, why);
                return if options.close_on_error { Err(Refused::ByFilter) } else { Ok(()) };
            }
            Seen::Found(offer) => {
                processed(&inspection, all);
                if offer.server_name.is_some() { &stats.sni_found } else { &stats.sni_not_found }.inc();
                if !offer.has_version {
                    not_tls(accepted, stats, NotTls::Rejected);
                    return Err(Refused::ByFilter);
                }
                stats.tls_found.inc();
                if offer.protocols.is_empty() { &stats.alpn_not_found } else { &stats.alpn_found }.inc();
                accepted.info.transport_protocol = "tls";
                accepted.info.requested_server_name = offer.server_name;
                accepted.info.application_protocols = offer.protocols;
                return Ok(());
            }
        }
    }
}

fn not_tls(accepted: &Accepted, stats: &TlsInspectorStats, why: NotTls) {
    stats.tls_not_found.inc();
    let reason = format!("TLS_error|error:{}:TLS_error_end", why.error());
    *accepted.info.transport_failure.borrow_mut() = Some(reason);
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
    let is_disallowed = |version| if version == 1 { options.disallow_v1 } else { options.disallow_v2 };
    let header = loop {
        let parsed = proxy_header::parse(&accepted.buffer);
        // Where a header may be absent, one of a disallowed version is payload.
        let may_begin = |version| !is_disallowed(version) && proxy_header::may_begin(&accepted.buffer, version);
        if options.allow_without && !may_begin(1) && !may_begin(2) {
            stats.plain.not_found_allowed.inc();
            return Ok(());
        }
        match parsed {
            Parsed::Header(header) => break header,
            Parsed::Absent => {
                stats.plain.not_found_disallowed.inc();
                stats.root.downstream_cx_proxy_proto_error.inc();
                return Err(Refused::ByFilter);
            }
            Parsed::Malformed { version, is_whole, why } => {
                tracing::debug!(target: "filter", "no PROXY header of version {version}: {why}");
                let (root, stats) = (&stats.root, &stats.versions[usize::from(version - 1)]);
                if is_whole && is_disallowed(version) {
                    stats.found.inc();
                    stats.disallowed.inc();
                } else {
                    stats.error.inc();
                    root.downstream_cx_proxy_proto_error.inc();
                }
                return Err(Refused::ByFilter);
            }
            Parsed::Partial => accepted.read_more().await?,
        }
    };
    let version = &stats.versions[usize::from(header.version - 1)];
    version.found.inc();
    if is_disallowed(header.version) {
        version.disallowed.inc();
        return Err(Refused::ByFilter);
    }
    let _ = accepted.buffer.split_to(header.length);
    if let Some((source, destination)) = header.addresses {
        accepted.info.remote = Address::Ip(source);
        if Address::Ip(destination) != accepted.info.local {
            accepted.info.local = Address::Ip(destination);
            accepted.restored_destination = true;
        }
    }
    for (kind, namespace, key) in &options.rules {
        if let Some((_, value)) = header.tlvs.iter().find(|(found, _)| found == kind) {
            accepted.metadata.push((namespace.clone(), key.clone(), value.clone()));
        }
    }
    accepted.info.tlvs = header.tlvs;
    accepted.info.tlvs.retain(|(kind, _)| options.passed_tlvs.takes(*kind));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_by_its_first_line() {
        let found = |text: &str| inspect_http(text.as_bytes());
        for (line, protocol) in [
            ("GET / HTTP/1.1\r\n", "http/1.1"),
            ("get  /  HTTP/1.1 \r\n", "http/1.1"),
            ("GET\t/ HTTP/1.1\r\n", "http/1.1"),
            ("GET / HTTP/1.0\n", "http/1.0"),
            ("GET / HTTP/3.0\r\n", "http/1.0"),
            ("GET /\r\n", "http/1.0"),
            ("PRI * HTTP/2.0\r\n\r\nSMx", "http/1.0"),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nmore", "h2c"),
        ] {
            assert_eq!(found(line), Some(Some(protocol.as_bytes())), "{line:?}");
        }
        for line in [
            "GET / http/1.1\r\n",
            "GET / HTTP/1.11\r\n",
            "EHLO a\r\n",
            "GET /a b HTTP/1.1\r\n",
            "PROXY x\u{1}\r\n",
            "GET\r\n",
            "\r\nGET / HTTP/1.1\r\n",
            " GET / HTTP/1.1\r\n",
            "G\u{1}T",
            "\u{16}\u{3}\u{1}",
        ] {
            assert_eq!(found(line), Some(None), "{line:?}");
        }
        let whole = "GET /some HTTP/1.1\r\n";
        for at in 0..whole.len() {
            assert_eq!(found(&whole[..at]), None, "{at}");
        }
        assert_eq!(found("PRI * HTTP/2.0\r\n"), None);
    }
}
