//! What the connection manager makes of a request's head before it is routed: who is asking, and which headers
//! may be believed (Envoy docs: "HTTP header manipulation", "HTTP header sanitizing").

use super::{RequestHead, header_names::*, path, single_headers};
use crate::base::{Address, ConnectionInfo};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{self, Entry},
};
use std::net::IpAddr;
use weft_config::{
    http_connection_manager::{
        HttpConnectionManager, OriginalIpDetection, PathWithEscapedSlashesAction, SchemeTransformation, StripPort,
    },
    http_protocol_options::HeadersWithUnderscoresAction,
};

/// Facts of this process that requests may carry.
#[derive(Debug)]
pub struct LocalInfo {
    /// The address that stands for this host in `x-forwarded-for` when the peer is a loopback address.
    pub address: IpAddr,
    pub node_id: Option<HeaderValue>,
    pub service_cluster: Option<HeaderValue>,
}

/// Who asked, after `x-forwarded-for` and the detection extensions had their say.
#[derive(Debug, PartialEq)]
pub struct Origin {
    pub remote: Address,
    /// The client is one of ours (`x-envoy-internal: true`).
    pub is_internal: bool,
}

/// A request that an original IP detection extension refused.
#[derive(Debug, PartialEq)]
pub struct DetectionRejected {
    pub status: u16,
}

/// What became of the path.
#[derive(Debug, PartialEq)]
pub enum PathAction {
    Continue,
    Reject,
    /// The path was changed; the client is to come back with it.
    Redirect,
}

/// Applies the path options of the connection manager.
pub fn normalize_path(head: &mut RequestHead, config: &HttpConnectionManager) -> PathAction {
    use PathWithEscapedSlashesAction as Action;
    if head.path.is_empty() {
        return PathAction::Continue;
    }
    // A fragment is never sent; one that is may hide a path from this proxy or the next.
    if memchr::memchr(b'#', &head.path).is_some() {
        return PathAction::Reject;
    }
    let mut redirect = false;
    let action = config.path_with_escaped_slashes_action;
    if !matches!(action, Action::KeepUnchanged | Action::ImplementationSpecificDefault)
        && let Some(unescaped) = path::unescape_slashes(&head.path)
    {
        head.path = unescaped;
        if action == Action::RejectRequest {
            return PathAction::Reject;
        }
        redirect = action == Action::UnescapeAndRedirect;
    }
    if config.normalize_path {
        match path::normalize(&head.path) {
            Some(normal) => head.path = normal,
            None => return PathAction::Reject,
        }
    }
    if config.merge_slashes {
        head.path = path::merge_slashes(&head.path);
    }
    if redirect { PathAction::Redirect } else { PathAction::Continue }
}

/// Strips the authority's trailing dot and port as configured. `local_port` is the listener's.
pub fn normalize_host(head: &mut RequestHead, config: &HttpConnectionManager, local_port: Option<u16>) {
    if config.strip_trailing_host_dot {
        strip_trailing_dot(&mut head.authority);
    }
    if config.strip_port == StripPort::No {
        return;
    }
    let Some(colon) = port_colon(&head.authority) else { return };
    let Some(port) = std::str::from_utf8(&head.authority[colon + 1..]).ok().and_then(|p| p.parse::<u32>().ok()) else {
        return;
    };
    if config.strip_port == StripPort::Any || local_port.map(u32::from) == Some(port) {
        head.authority.truncate(colon);
    }
}

fn strip_trailing_dot(authority: &mut Bytes) {
    match port_colon(authority) {
        None if authority.ends_with(b".") => authority.truncate(authority.len() - 1),
        Some(colon) if authority[..colon].ends_with(b".") => {
            *authority = [&authority[..colon - 1], &authority[colon..]].concat().into();
        }
        _ => {}
    }
}

/// Where the last colon is, unless it is inside an IPv6 literal's brackets.
pub fn port_colon(authority: &[u8]) -> Option<usize> {
    let colon = memchr::memrchr(b':', authority)?;
    memchr::memrchr(b']', authority).is_none_or(|bracket| bracket < colon).then_some(colon)
}

/// Removes what only concerns the client's connection, decides who the client is, and believes no header that it
/// had no right to set.
pub fn sanitize(
    head: &mut RequestHead,
    config: &HttpConnectionManager,
    connection: &ConnectionInfo,
    local: &LocalInfo,
    internal_only: &[HeaderName],
) -> Result<Origin, DetectionRejected> {
    single_headers::join_request(&mut head.headers);
    remove_hop_by_hop(head);
    sanitize_referer(&mut head.headers);
    let is_tls = connection.tls.is_some();
    let mut trusted: Option<Address> = None;
    // Only a request whose x-forwarded-for names a single address can be internal.
    let mut may_be_internal = false;
    if config.use_remote_address {
        may_be_internal = !head.headers.contains_key(FORWARDED_FOR);
        if config.xff_num_trusted_hops > 0 {
            trusted = last_forwarded(&head.headers, config.xff_num_trusted_hops - 1).map(|(address, _)| address);
        }
        trusted.get_or_insert_with(|| connection.remote.clone());
        if !config.skip_xff_append {
            append_forwarded_for(&mut head.headers, connection, local);
        }
        if config.xff_num_trusted_hops == 0 || !head.headers.contains_key(FORWARDED_PROTO) {
            set_forwarded_proto(&mut head.headers, config, connection, is_tls);
        }
        if config.append_x_forwarded_port
            && (config.xff_num_trusted_hops == 0 || !head.headers.contains_key(FORWARDED_PORT))
        {
            set_forwarded_port(&mut head.headers, connection);
        }
    } else if config.original_ip_detection.is_empty() {
        if let Some((address, single)) = last_forwarded(&head.headers, config.xff_num_trusted_hops) {
            (trusted, may_be_internal) = (Some(address), single);
        }
    } else {
        for extension in &config.original_ip_detection {
            let found = detect(extension, &head.headers, connection)?;
            if found.append_peer {
                append_forwarded_for(&mut head.headers, connection, local);
            }
            if found.address.is_some() {
                (trusted, may_be_internal) = (found.address, found.may_be_internal);
                break;
            }
        }
    }
    if !head.headers.contains_key(FORWARDED_PROTO) {
        set_forwarded_proto(&mut head.headers, config, connection, is_tls);
    }
    if config.append_x_forwarded_port && !head.headers.contains_key(FORWARDED_PORT) {
        set_forwarded_port(&mut head.headers, connection);
    }
    set_scheme(head, config, is_tls);
    let is_internal = may_be_internal && trusted.as_ref().is_some_and(|address| is_internal_address(config, address));
    let remote = trusted.unwrap_or_else(|| connection.remote.clone());
    let is_edge = !is_internal && config.use_remote_address;
    remove_unbelieved(&mut head.headers, is_internal, is_edge, internal_only);
    if is_internal {
        head.headers.insert(ENVOY_INTERNAL, HeaderValue::from_static("true"));
    }
    if config.add_user_agent {
        add_user_agent(&mut head.headers, local);
    }
    if !config.via.is_empty() {
        append(&mut head.headers, header::VIA, config.via.as_bytes(), ", ");
    }
    if is_edge && let Some(ip) = remote.ip() {
        set(&mut head.headers, ENVOY_EXTERNAL_ADDRESS, ip.ip().to_string());
    }
    if config.generate_request_id {
        super::request_id::ensure(
            &mut head.headers,
            is_edge,
            config.preserve_external_request_id,
            config.request_id.pack_trace_reason,
        );
    }
    Ok(Origin { remote, is_internal })
}

/// What became of header names with underscores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underscores {
    None,
    Dropped(u64),
    Reject,
}

/// Applies `headers_with_underscores_action` to an HTTP/1 request; HTTP/2's codec does it by itself.
pub fn check_underscores(headers: &mut HeaderMap, action: HeadersWithUnderscoresAction) -> Underscores {
    use HeadersWithUnderscoresAction as Action;
    if action == Action::Allow || !headers.keys().any(|name| name.as_str().contains('_')) {
        return Underscores::None;
    }
    if action == Action::RejectRequest {
        return Underscores::Reject;
    }
    let names: Vec<_> = headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
    names.iter().for_each(|name| drop(headers.remove(name)));
    Underscores::Dropped(names.len() as u64)
}

fn remove_hop_by_hop(head: &mut RequestHead) {
    let headers = &mut head.headers;
    if !has_connection_headers(headers) {
        return;
    }
    if head.upgrade.is_none() {
        headers.remove(header::CONNECTION);
        headers.remove(header::UPGRADE);
        // `trailers` is the one word that means something to the next hop.
        let wants_trailers = headers.get_all(header::TE).iter().any(|te| {
            te.to_str().is_ok_and(|te| {
                te.split(',').any(|word| word.split(';').next().unwrap_or_default().trim() == "trailers")
            })
        });
        if wants_trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(header::TE);
        }
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(header::TRANSFER_ENCODING);
}

/// A referer that is no URL reference, or tells more than one may (user, fragment), goes no further.
fn sanitize_referer(headers: &mut HeaderMap) {
    let Some(referer) = headers.get(header::REFERER) else { return };
    let is_acceptable = match referer.to_str().map(|text| (text, url::Url::parse(text))) {
        Ok((text, Ok(url))) if url.has_host() => {
            url.fragment().is_none()
                && url.username().is_empty()
                && url.password().is_none()
                && !text.contains([' ', '\t'])
                && url.host_str().is_some_and(|host| !host.contains(','))
        }
        _ => is_relative_reference(referer.as_bytes()),
    };
    if !is_acceptable {
        headers.remove(header::REFERER);
    }
}

/// RFC 3986 section 4.2, without a fragment: a colon may not stand before the first slash.
fn is_relative_reference(text: &[u8]) -> bool {
    let mut had_slash = false;
    text.iter().all(|&byte| {
        had_slash |= byte == b'/';
        byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=@/?".contains(&byte) || (byte == b':' && had_slash)
    })
}

/// The address `skip` places from the end of `x-forwarded-for`, and whether it is the only one.
fn last_forwarded(headers: &HeaderMap, skip: u32) -> Option<(Address, bool)> {
    let mut parts =
        headers.get_all(FORWARDED_FOR).iter().map(|value| value.as_bytes()).collect::<smallvec::SmallVec<[&[u8]; 2]>>();
    let is_single = parts.len() == 1 && memchr::memchr(b',', parts[0]).is_none() && skip == 0;
    for _ in 0..skip {
        let last = parts.last_mut()?;
        match memchr::memrchr(b',', last) {
            Some(comma) => *last = &last[..comma],
            None => {
                parts.pop();
            }
        }
    }
    let last = parts.last()?;
    let last = match memchr::memrchr(b',', last) {
        Some(comma) if comma + 1 < last.len() => &last[comma + 1..],
        _ => last,
    };
    let ip: IpAddr = std::str::from_utf8(last).ok()?.trim().parse().ok()?;
    Some((Address::Ip((ip, 0).into()), is_single))
}

/// What an extension found.
struct Detected {
    address: Option<Address>,
    /// The address may make the request internal.
    may_be_internal: bool,
    /// The peer is to be appended to `x-forwarded-for`.
    append_peer: bool,
}

fn detect(
    extension: &OriginalIpDetection,
    headers: &HeaderMap,
    connection: &ConnectionInfo,
) -> Result<Detected, DetectionRejected> {
    let found = |found: Option<(Address, bool)>, append_peer| {
        let (address, may_be_internal) = found.unzip();
        Ok(Detected { address, may_be_internal: may_be_internal.unwrap_or_default(), append_peer })
    };
    match extension {
        OriginalIpDetection::Xff { num_trusted_hops, trusted_cidrs: None, skip_xff_append } => {
            found(last_forwarded(headers, *num_trusted_hops), !skip_xff_append)
        }
        OriginalIpDetection::Xff { trusted_cidrs: Some(cidrs), skip_xff_append, .. } => {
            let is_trusted = |ip: IpAddr| cidrs.iter().any(|cidr| cidr.contains(ip));
            if !connection.remote.ip().is_some_and(|peer| is_trusted(peer.ip())) {
                return found(None, true);
            }
            found(last_untrusted(headers, is_trusted), !skip_xff_append)
        }
        OriginalIpDetection::CustomHeader { header, allow_trusted, reject_with_status } => {
            let value = headers
                .get(header)
                .and_then(|value| value.to_str().ok())
                .and_then(|value| value.trim().parse::<IpAddr>().ok());
            match (value, reject_with_status) {
                (None, Some(status)) => Err(DetectionRejected { status: *status }),
                (value, _) => found(value.map(|ip| (Address::Ip((ip, 0).into()), *allow_trusted)), false),
            }
        }
    }
}

/// From the right, the first address in `x-forwarded-for` that no trusted range holds; else the leftmost. A single
/// address may be internal.
fn last_untrusted(headers: &HeaderMap, is_trusted: impl Fn(IpAddr) -> bool) -> Option<(Address, bool)> {
    let values: Vec<&str> = headers.get_all(FORWARDED_FOR).iter().map(|v| v.to_str().ok()).collect::<Option<_>>()?;
    let is_single = matches!(&*values, [one] if !one.contains(','));
    let mut last = None;
    for part in values.iter().rev().flat_map(|value| value.rsplit(',')) {
        let Ok(ip) = part.trim().parse::<IpAddr>() else { break };
        last = Some((Address::Ip((ip, 0).into()), is_single));
        if !is_trusted(ip) {
            break;
        }
    }
    last
}

fn append_forwarded_for(headers: &mut HeaderMap, connection: &ConnectionInfo, local: &LocalInfo) {
    let Some(peer) = connection.remote.ip() else { return };
    let address = if peer.ip().is_loopback() { local.address } else { peer.ip() };
    append(headers, FORWARDED_FOR, address.to_string().as_bytes(), ",");
}

fn set_forwarded_proto(
    headers: &mut HeaderMap,
    config: &HttpConnectionManager,
    connection: &ConnectionInfo,
    is_tls: bool,
) {
    let mut https = is_tls;
    // The destination's port decides where the PROXY protocol or original_dst restored the destination.
    if let (Some(ports), Some(port)) = (&config.forward_proto, connection.local.ip().map(|ip| u32::from(ip.port())))
        && connection.local != connection.direct_local
    {
        if ports.https_destination_ports.contains(&port) {
            https = true;
        } else if ports.http_destination_ports.contains(&port) {
            https = false;
        }
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(if https { "https" } else { "http" }));
}

fn set_forwarded_port(headers: &mut HeaderMap, connection: &ConnectionInfo) {
    if let Some(local) = connection.local.ip() {
        headers.insert(FORWARDED_PORT, local.port().into());
    }
}

/// Every request gets a scheme: the configured one, its own, `x-forwarded-proto`'s if that is one, or the transport's.
fn set_scheme(head: &mut RequestHead, config: &HttpConnectionManager, is_tls: bool) {
    if let Some(SchemeTransformation::Overwrite(scheme)) = &config.scheme_header_transformation {
        head.scheme = Bytes::copy_from_slice(scheme.as_bytes());
        set(&mut head.headers, FORWARDED_PROTO, scheme.clone());
    }
    if head.scheme.is_empty() {
        let forwarded = head.headers.get(FORWARDED_PROTO).map(HeaderValue::as_bytes).unwrap_or_default();
        head.scheme = Bytes::from_static(match forwarded {
            b if b.eq_ignore_ascii_case(b"https") => b"https",
            b if b.eq_ignore_ascii_case(b"http") => b"http",
            _ if is_tls => b"https",
            _ => b"http",
        });
    } else if head.scheme.iter().any(u8::is_ascii_uppercase) {
        head.scheme = head.scheme.to_ascii_lowercase().into();
    }
}

fn is_internal_address(config: &HttpConnectionManager, address: &Address) -> bool {
    match address {
        Address::Ip(ip) => config.internal_address_config.cidr_ranges.iter().any(|cidr| cidr.contains(ip.ip())),
        Address::Unix(_) => config.internal_address_config.unix_sockets,
        Address::Internal { .. } => false,
    }
}

/// One pass over the names: most requests carry none of them.
fn remove_unbelieved(headers: &mut HeaderMap, is_internal: bool, is_edge: bool, internal_only: &[HeaderName]) {
    if has_envoy_headers(headers) {
        headers.remove(ENVOY_INTERNAL);
        if is_edge {
            for name in [
                ENVOY_DECORATOR_OPERATION,
                ENVOY_DOWNSTREAM_SERVICE_CLUSTER,
                ENVOY_DOWNSTREAM_SERVICE_NODE,
                ENVOY_ORIGINAL_PATH,
                ENVOY_ORIGINAL_HOST,
            ] {
                headers.remove(name);
            }
        }
        if !is_internal {
            for name in [
                ENVOY_RETRIABLE_STATUS_CODES,
                ENVOY_RETRIABLE_HEADER_NAMES,
                ENVOY_RETRY_ON,
                ENVOY_RETRY_GRPC_ON,
                ENVOY_MAX_RETRIES,
                ENVOY_UPSTREAM_ALT_STAT_NAME,
                ENVOY_UPSTREAM_RQ_TIMEOUT_MS,
                ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS,
                ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE,
                ENVOY_EXPECTED_RQ_TIMEOUT_MS,
                ENVOY_FORCE_TRACE,
                ENVOY_IP_TAGS,
                ENVOY_ORIGINAL_URL,
                ENVOY_HEDGE_ON_PER_TRY_TIMEOUT,
            ] {
                headers.remove(name);
            }
        }
    }
    if !is_internal {
        for name in internal_only {
            headers.remove(name);
        }
    }
}

fn add_user_agent(headers: &mut HeaderMap, local: &LocalInfo) {
    if let Some(cluster) = &local.service_cluster {
        headers.insert(ENVOY_DOWNSTREAM_SERVICE_CLUSTER, cluster.clone());
        if headers.get(header::USER_AGENT).is_none_or(HeaderValue::is_empty) {
            headers.insert(header::USER_AGENT, cluster.clone());
        }
    }
    if let Some(node) = &local.node_id {
        headers.insert(ENVOY_DOWNSTREAM_SERVICE_NODE, node.clone());
    }
}

/// Appends to the header's single value, or sets it.
pub fn append(headers: &mut HeaderMap, name: HeaderName, value: &[u8], separator: &str) {
    match headers.entry(name) {
        Entry::Occupied(mut entry) => {
            let mut joined = Vec::new();
            for part in entry.iter().map(HeaderValue::as_bytes).chain([value]).filter(|part| !part.is_empty()) {
                if !joined.is_empty() {
                    joined.extend_from_slice(separator.as_bytes());
                }
                joined.extend_from_slice(part);
            }
            if let Ok(joined) = HeaderValue::from_bytes(&joined) {
                entry.insert(joined);
            }
        }
        Entry::Vacant(entry) => {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                entry.insert(value);
            }
        }
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}
