//! Heads of requests and responses, as rules look into both and take headers out.

use crate::http::{RequestHead, ResponseHead};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use std::borrow::Cow;
use weft_config::header_value::HeaderKey;

/// A request's or response's head.
pub trait Message {
    fn headers(&self) -> &HeaderMap;
    fn headers_mut(&mut self) -> &mut HeaderMap;
    /// A pseudo-header; empty if it is not there.
    fn pseudo(&self, key: &HeaderKey) -> &[u8];
    /// Says what it cannot go on without.
    fn remove_pseudo(&mut self, key: &HeaderKey) -> Option<&'static str>;
}

impl Message for RequestHead {
    fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }

    fn pseudo(&self, key: &HeaderKey) -> &[u8] {
        match key {
            HeaderKey::Authority => &self.authority,
            HeaderKey::Path => &self.path,
            HeaderKey::Method => self.method.as_str().as_bytes(),
            HeaderKey::Scheme => &self.scheme,
            // A tunnel is told by its `upgrade` header, whatever its protocol.
            HeaderKey::Name(_) | HeaderKey::Status | HeaderKey::Protocol => b"",
        }
    }

    fn remove_pseudo(&mut self, key: &HeaderKey) -> Option<&'static str> {
        match key {
            HeaderKey::Authority => self.authority = Bytes::new(),
            HeaderKey::Scheme => self.scheme = Bytes::new(),
            HeaderKey::Path => {
                self.path = Bytes::new();
                return (!self.is_connect()).then_some(":path");
            }
            HeaderKey::Method => return Some(":method"),
            HeaderKey::Name(_) | HeaderKey::Status | HeaderKey::Protocol => {}
        }
        None
    }
}

impl Message for ResponseHead {
    fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }

    fn pseudo(&self, key: &HeaderKey) -> &[u8] {
        match key {
            HeaderKey::Status => self.status.as_str().as_bytes(),
            _ => b"",
        }
    }

    fn remove_pseudo(&mut self, key: &HeaderKey) -> Option<&'static str> {
        (*key == HeaderKey::Status).then_some(":status")
    }
}

/// The header's values, joined; `None` if it is not there.
pub fn header<'a>(head: &'a impl Message, key: &HeaderKey) -> Option<Cow<'a, [u8]>> {
    let HeaderKey::Name(name) = key else {
        return Some(head.pseudo(key)).filter(|value| !value.is_empty()).map(Cow::from);
    };
    let mut values = head.headers().get_all(name).iter().map(HeaderValue::as_bytes);
    let mut all = Cow::from(values.next()?);
    for value in values {
        let all = all.to_mut();
        all.push(b',');
        all.extend_from_slice(value);
    }
    Some(all)
}
