//! `envoy.filters.http.compressor`: compresses responses for clients that accept it, and requests if it is told to.
//!
//! Several compressors of one chain agree about which of them is the one: what the client likes best, then what comes
//! first. So each tells the stream of itself when the request passes.

mod accept;
mod body;
mod config;

use super::{
    Action, ActiveFilter, FilterConfig, FilterScope, HttpFilter, RouteFilterConfig, compression::encoder::Encoder,
    most_specific,
};
use crate::{
    http::{Body, Protocol, ResponseHead, stream::Stream},
    stats,
};
use accept::Decision;
use body::CompressedBody;
pub use config::{Compressor, FACTORY};
use config::{Direction, RouteOverride};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, VARY},
};
use std::{borrow::Cow, rc::Rc, sync::Arc};

stats! {
    /// `PREFIX.compressor.LIBRARY.ENCODING.*`, one group a direction
    pub struct DirectionStats {
        counter compressed,
        counter not_compressed,
        counter total_uncompressed_bytes,
        counter total_compressed_bytes,
        counter content_length_too_small,
    }
}

stats! {
    /// `PREFIX.compressor.LIBRARY.ENCODING.*`: of responses
    pub struct ResponseStats {
        counter no_accept_header,
        counter header_identity,
        counter header_compressor_used,
        counter header_compressor_overshadowed,
        counter header_wildcard,
        counter header_not_valid,
        counter not_compressed_etag,
    }
}

impl FilterConfig for Compressor {
    fn activate(self: Arc<Self>, scope: &FilterScope<'_>) -> Rc<dyn ActiveFilter> {
        let registry = &scope.thread.registry;
        let name = self.library.encoding().stat_name();
        let prefix = match &*self.library_name {
            "" => format!("{}.compressor.{name}", scope.stat_prefix),
            library => format!("{}.compressor.{library}.{name}", scope.stat_prefix),
        };
        let response = if self.has_response_direction { format!("{prefix}.response") } else { prefix.clone() };
        Rc::new(Active(Rc::new(Shared {
            request: registry.attach(&format!("{prefix}.request")),
            response: registry.attach(&response),
            decisions: registry.attach(&prefix),
            config: self,
        })))
    }
}

/// One worker's part.
struct Active(Rc<Shared>);

struct Shared {
    config: Arc<Compressor>,
    request: Arc<DirectionStats>,
    response: Arc<DirectionStats>,
    decisions: Arc<ResponseStats>,
}

impl ActiveFilter for Active {
    fn create(&self, _: &Stream, routes: &[RouteFilterConfig]) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(Filter {
            shared: self.0.clone(),
            route: most_specific(routes),
            accept: None,
            request: None,
            response: None,
        }))
    }
}

struct Filter {
    shared: Rc<Shared>,
    route: Option<Arc<RouteOverride>>,
    /// The request's `accept-encoding`.
    accept: Option<HeaderValue>,
    request: Option<Encoder>,
    response: Option<Encoder>,
}

impl Filter {
    fn is_response_enabled(&self, stream: &Stream) -> bool {
        let of_route = self.route.as_ref().and_then(|route| route.response_enabled);
        of_route.unwrap_or_else(|| self.shared.config.response.is_enabled(&stream.connection.thread.runtime()))
    }

    fn encoder(&self) -> Option<Encoder> {
        let of_route = self.route.as_ref().and_then(|route| route.library.as_ref());
        of_route.unwrap_or(&self.shared.config.library).encoder()
    }

    fn encoding(&self) -> &'static str {
        let of_route = self.route.as_ref().and_then(|route| route.library.as_ref());
        of_route.unwrap_or(&self.shared.config.library).encoding().name()
    }

    /// Counts how the client's wishes were understood; true if they are for this compressor.
    fn is_chosen(&self, stream: &Stream, content_type: Option<&HeaderValue>) -> bool {
        let stats = &self.shared.decisions;
        let Some(accept) = &self.accept else {
            stats.no_accept_header.inc();
            return false;
        };
        let compressors = stream.filters.compressors.iter().filter(|c| c.response.takes_type(content_type));
        let decision = accept::choose(accept.as_bytes(), compressors.map(|c| (c.library.encoding(), c.choose_first)));
        let own = self.shared.config.library.encoding();
        match decision {
            Decision::Encoding(encoding) if encoding == own => stats.header_compressor_used.inc(),
            Decision::Encoding(_) => stats.header_compressor_overshadowed.inc(),
            Decision::Wildcard(_) => stats.header_wildcard.inc(),
            Decision::Identity => stats.header_identity.inc(),
            Decision::NotValid => stats.header_not_valid.inc(),
        }
        matches!(decision, Decision::Encoding(encoding) | Decision::Wildcard(encoding) if encoding == own)
    }
}

impl HttpFilter for Filter {
    fn on_request(&mut self, stream: &mut Stream, end: bool) -> Action {
        let shared = self.shared.clone();
        let config = &shared.config;
        self.accept = joined(&stream.request.headers);
        if self.is_response_enabled(stream) {
            let of_route = self.route.as_ref().and_then(|route| route.remove_accept_encoding);
            if of_route.unwrap_or(config.remove_accept_encoding) {
                stream.request.headers.remove(ACCEPT_ENCODING);
            }
        }
        stream.filters.compressors.push(config.clone());
        let compresses = config.request.as_ref().is_some_and(|direction| {
            let request = &stream.request;
            !end && direction.is_enabled(&stream.connection.thread.runtime())
                && is_large_enough(direction, request.protocol, &request.headers, &shared.request)
                && direction.takes_type(request.headers.get(CONTENT_TYPE))
                && !request.headers.contains_key(CONTENT_ENCODING)
        });
        self.request = if compresses { self.encoder() } else { None };
        if self.request.is_some() {
            shared.request.compressed.inc();
            stream.request.headers.remove(CONTENT_LENGTH);
            stream.request.headers.insert(CONTENT_ENCODING, HeaderValue::from_static(self.encoding()));
        } else {
            shared.request.not_compressed.inc();
        }
        Action::Continue
    }

    fn request_body(&mut self, _: &mut Stream, body: Body) -> Body {
        match self.request.take() {
            Some(encoder) => CompressedBody::new(body, encoder, self.shared.request.clone()),
            None => body,
        }
    }

    fn on_response(&mut self, stream: &mut Stream, head: &mut ResponseHead, end: bool) -> Action {
        let shared = self.shared.clone();
        let (config, stats) = (&shared.config, &shared.response);
        let large_enough =
            self.is_response_enabled(stream) && is_large_enough(&config.response, head.protocol, &head.headers, stats);
        let compressible = large_enough
            && stream.request.upgrade.is_none()
            && config.response.takes_type(head.headers.get(CONTENT_TYPE))
            && !has_token(&head.headers, &CACHE_CONTROL, "no-transform", true)
            && is_etag_allowed(config, &head.headers, &shared.decisions)
            && !head.headers.contains_key(CONTENT_ENCODING)
            && !config.uncompressible_codes.contains(&head.status.as_u16());
        let chosen = !end
            && large_enough
            && head.status != StatusCode::SWITCHING_PROTOCOLS
            && self.is_chosen(stream, head.headers.get(CONTENT_TYPE));
        self.response = if chosen && compressible { self.encoder() } else { None };
        if self.response.is_some() {
            stats.compressed.inc();
            clean_etag(&mut head.headers, config.weaken_etag);
            head.headers.remove(CONTENT_LENGTH);
            head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static(self.encoding()));
        } else {
            stats.not_compressed.inc();
        }
        if compressible {
            // A cache in front has to know that another client may get another body.
            insert_vary(&mut head.headers);
        }
        Action::Continue
    }

    fn response_body(&mut self, _: &mut Stream, body: Body) -> Body {
        match self.response.take() {
            Some(encoder) => CompressedBody::new(body, encoder, self.shared.response.clone()),
            None => body,
        }
    }
}

/// `accept-encoding`, of several headers as one.
fn joined(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut values = headers.get_all(ACCEPT_ENCODING).iter();
    let (first, second) = (values.next()?, values.next());
    let Some(second) = second else { return Some(first.clone()) };
    let all: Vec<&[u8]> = [first, second].into_iter().chain(values).map(HeaderValue::as_bytes).collect();
    HeaderValue::from_bytes(&all.join(&b","[..])).ok()
}

fn is_large_enough(direction: &Direction, protocol: Protocol, headers: &HeaderMap, stats: &DirectionStats) -> bool {
    let Some(length) = headers.get(CONTENT_LENGTH) else {
        // Envoy asks for `transfer-encoding: chunked`, which HTTP/2 does not have.
        return protocol < Protocol::Http2;
    };
    let is = length.to_str().is_ok_and(|text| text.parse().is_ok_and(|length: u64| length >= direction.least));
    if !is {
        stats.content_length_too_small.inc();
    }
    is
}

fn is_etag_allowed(config: &Compressor, headers: &HeaderMap, stats: &ResponseStats) -> bool {
    let is = !(config.disable_on_etag && headers.contains_key(ETAG));
    if !is {
        stats.not_compressed_etag.inc();
    }
    is
}

fn has_token(headers: &HeaderMap, name: &http::HeaderName, token: &str, ignore_case: bool) -> bool {
    headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|b| *b == b',')).any(|part| {
        let part = part.trim_ascii();
        if ignore_case { part.eq_ignore_ascii_case(token.as_bytes()) } else { part == token.as_bytes() }
    })
}

/// A strong tag says that the bytes are the same, which they are not.
fn clean_etag(headers: &mut HeaderMap, weaken: bool) {
    let Some(tag) = headers.get(ETAG).map(HeaderValue::as_bytes) else { return };
    if tag.len() > 2 && matches!(tag[0], b'w' | b'W') && tag[1] == b'/' {
        return;
    }
    match HeaderValue::from_bytes(&[b"W/", tag].concat()) {
        Ok(weak) if weaken => {
            headers.insert(ETAG, weak);
        }
        _ => {
            headers.remove(ETAG);
        }
    }
}

fn insert_vary(headers: &mut HeaderMap) {
    if has_token(headers, &VARY, "Accept-Encoding", false) {
        return;
    }
    let value = match headers.get(VARY) {
        Some(old) => Cow::Owned([old.as_bytes(), b", Accept-Encoding"].concat()),
        None => Cow::Borrowed(&b"Accept-Encoding"[..]),
    };
    if let Ok(value) = HeaderValue::from_bytes(&value) {
        headers.insert(VARY, value);
    }
}
