//! `x-forwarded-client-cert`: what upstreams are told of the client's certificate, and what of it may be believed
//! (Envoy docs: "HTTP header manipulation").
//!
//! Invariant: what a client says of certificates goes no further unless a certificate of its own vouches for it, or the
//! configuration asks for just that. No name in a certificate can pass for another part of the header.

use super::{header_names::FORWARDED_CLIENT_CERT, request_headers::append, stream::Stream};
use crate::{
    base::{Certificate, TlsConnection, certificate},
    rbac::Facts,
};
use http::{HeaderMap, HeaderValue};
use serde_json::{Map, Value};
use std::{borrow::Cow, fmt::Write as _};
use weft_config::http_connection_manager::{ClientCertDetails, ClientCertFormat, ForwardClientCertDetails as Mode};

/// Removes, keeps, extends or sets the header of a stream's request.
pub fn forward(stream: &mut Stream) {
    let connection = stream.connection.clone();
    let config = &connection.manager.config;
    let found = config
        .client_cert_matcher
        .as_ref()
        .and_then(|matcher| matcher.find(&Facts { info: &stream.info, request: Some(&stream.request) }));
    let forwarding = found.unwrap_or(&config.client_cert);
    let headers = &mut stream.request.headers;
    let presented = connection.info.tls.as_ref().and_then(|tls| Some((tls, tls.peer.as_deref()?)));
    match (forwarding.mode, presented) {
        (Mode::AlwaysForwardOnly, _) | (Mode::ForwardOnly, Some(_)) => {}
        (Mode::Sanitize, _) | (_, None) => drop(headers.remove(FORWARDED_CLIENT_CERT)),
        (Mode::SanitizeSet, Some((tls, peer))) => {
            headers.remove(FORWARDED_CLIENT_CERT);
            add(headers, tls, peer, &forwarding.details);
        }
        (Mode::AppendForward, Some((tls, peer))) => add(headers, tls, peer, &forwarding.details),
    }
}

/// Adds an element for this connection behind those that are there, in their format.
fn add(headers: &mut HeaderMap, tls: &TlsConnection, peer: &Certificate, details: &ClientCertDetails) {
    if details.format == ClientCertFormat::Json {
        let before = headers.get(FORWARDED_CLIENT_CERT).map(HeaderValue::as_bytes).unwrap_or_default();
        let rest = before.trim_ascii().strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
        if before.is_empty() || rest.is_some() {
            let separator = if rest.is_some_and(|rest| !rest.trim_ascii().is_empty()) { &b","[..] } else { b"" };
            let element = json(tls, peer, details).to_string();
            let all = [b"[", rest.unwrap_or_default(), separator, element.as_bytes(), b"]"].concat();
            if let Ok(value) = HeaderValue::from_bytes(&all) {
                headers.insert(FORWARDED_CLIENT_CERT, value);
            }
            return;
        }
    }
    append(headers, FORWARDED_CLIENT_CERT, text(tls, peer, details).as_bytes(), ",");
}

fn own_names(tls: &TlsConnection) -> &[Box<str>] {
    tls.local.as_ref().map(|local| &*local.uri_sans).unwrap_or_default()
}

/// `By=...;Hash=...;...`
fn text(tls: &TlsConnection, peer: &Certificate, details: &ClientCertDetails) -> String {
    let mut text = String::with_capacity(256);
    for name in own_names(tls) {
        let _ = write!(text, "By={};", quoted(name));
    }
    let _ = write!(text, "Hash={}", certificate::hex(peer.sha256()));
    if details.cert {
        let _ = write!(text, ";Cert=\"{}\"", certificate::url_encoded_pem(peer.der()));
    }
    if details.chain {
        let chain: String = tls.peer_chain.iter().map(|der| certificate::url_encoded_pem(der)).collect();
        let _ = write!(text, ";Chain=\"{chain}\"");
    }
    if details.subject {
        let _ = write!(text, ";Subject=\"{}\"", peer.subject);
    }
    if details.uri {
        if peer.uri_sans.is_empty() {
            text.push_str(";URI=");
        }
        for name in &peer.uri_sans {
            let _ = write!(text, ";URI={}", quoted(name));
        }
    }
    if details.dns {
        for name in &peer.dns_sans {
            let _ = write!(text, ";DNS={}", quoted(name));
        }
    }
    if details.issuer {
        let _ = write!(text, ";Issuer=\"{}\"", peer.issuer);
    }
    text
}

/// A name that could pass for more than one value goes between quotes; one that could end the header is made visible.
fn quoted(name: &str) -> Cow<'_, str> {
    let visible: Cow<'_, str> = if name.chars().any(char::is_control) {
        name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect::<String>().into()
    } else {
        name.into()
    };
    if visible.contains([',', ';', '"']) {
        return format!("\"{}\"", visible.replace('\\', "\\\\").replace('"', "\\\"")).into();
    }
    visible
}

/// The same as an object; what there is nothing of is left out.
fn json(tls: &TlsConnection, peer: &Certificate, details: &ClientCertDetails) -> Value {
    let mut element = Map::new();
    let mut set = |key: &str, value: Value| {
        let is_empty = value.as_str().is_some_and(str::is_empty) || value.as_array().is_some_and(Vec::is_empty);
        if !is_empty {
            element.insert(key.to_owned(), value);
        }
    };
    let names = |names: &[Box<str>]| Value::from(names.iter().map(|name| Value::from(&**name)).collect::<Vec<_>>());
    set("by", names(own_names(tls)));
    set("hash", certificate::hex(peer.sha256()).into());
    if details.cert {
        set("cert", peer.pem().into());
    }
    if details.chain {
        set("chain", tls.peer_chain.iter().map(|der| certificate::pem(der)).collect::<Vec<_>>().into());
    }
    if details.subject {
        set("subject", (&*peer.subject).into());
    }
    if details.uri {
        set("uri", names(&peer.uri_sans));
    }
    if details.dns {
        set("dns", names(&peer.dns_sans));
    }
    if details.issuer {
        set("issuer", (&*peer.issuer).into());
    }
    Value::Object(element)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_pass_for_another_part() {
        assert_eq!(quoted("spiffe://a/b?c=d"), "spiffe://a/b?c=d");
        assert_eq!(quoted("a;URI=spiffe://b/c"), "\"a;URI=spiffe://b/c\"");
        assert_eq!(quoted("a\",By=x"), "\"a\\\",By=x\"");
        assert_eq!(quoted("a\r\nx: y\0"), "a\u{fffd}\u{fffd}x: y\u{fffd}");
    }
}
