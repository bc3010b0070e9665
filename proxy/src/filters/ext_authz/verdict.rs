//! What an authorisation service said, whichever way it was asked, and what that does to the stream.

use super::rules::MutationRules;
use crate::http::{RequestHead, ResponseHead};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use weft_config::header_value::{AppendAction, HeaderKey};
use weft_control_api::envoy::{
    config::core::v3::{self as core, HeaderValueOption},
    service::auth::v3::{self as pb, check_response::HttpResponse},
    r#type::v3::HttpStatus,
};

/// The service's answer.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub kind: Kind,
    pub metadata: Option<Map<String, Value>>,
    /// To the request, if it may pass.
    pub request: Vec<Change>,
    pub remove: Vec<String>,
    pub query_set: Vec<(String, String)>,
    pub query_remove: Vec<String>,
    /// To the response of a request that passed.
    pub response: Vec<Change>,
}

#[derive(Debug, Default)]
pub(super) enum Kind {
    Allowed,
    Denied(Refusal),
    /// The service could not tell; it may say how to answer then.
    #[default]
    Error,
    ErrorWith(Refusal),
}

#[derive(Debug)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub body: Bytes,
    pub headers: HeaderMap,
}

/// One header to change.
#[derive(Debug)]
pub(super) struct Change {
    pub name: String,
    pub value: Vec<u8>,
    pub how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Set,
    Add,
    AddIfAbsent,
    /// Only where there is one already.
    SetIfThere,
}

/// The answer holds what is no header.
pub(super) struct Invalid;

impl Verdict {
    #[allow(deprecated)] // Deprecated fields are still read: services send them.
    pub fn from_proto(p: pb::CheckResponse) -> Self {
        let pb::CheckResponse { status, dynamic_metadata, http_response } = p;
        let code = status.map_or(0, |status| status.code);
        let mut all = Self { metadata: dynamic_metadata.map(weft_config::metadata::object), ..Self::default() };
        all.kind = match (code, http_response) {
            (0, response) => {
                if let Some(HttpResponse::OkResponse(ok)) = response {
                    all.take_ok(ok);
                }
                Kind::Allowed
            }
            (_, Some(HttpResponse::DeniedResponse(denied))) => Kind::Denied(Refusal::from_proto(denied)),
            (_, Some(HttpResponse::ErrorResponse(error))) => Kind::ErrorWith(Refusal::from_proto(error)),
            _ => Kind::Denied(Refusal::from_proto(pb::DeniedHttpResponse::default())),
        };
        all
    }

    #[allow(deprecated)] // Deprecated fields are still read: services send them.
    fn take_ok(&mut self, ok: pb::OkHttpResponse) {
        let pb::OkHttpResponse {
            headers,
            headers_to_remove,
            dynamic_metadata,
            response_headers_to_add,
            query_parameters_to_set,
            query_parameters_to_remove,
        } = ok;
        if self.metadata.is_none() {
            self.metadata = dynamic_metadata.map(weft_config::metadata::object);
        }
        self.request = headers.into_iter().filter_map(|p| Change::from_proto(p, How::Set, How::Add)).collect();
        self.response =
            response_headers_to_add.into_iter().filter_map(|p| Change::from_proto(p, How::Set, How::Add)).collect();
        self.remove = headers_to_remove;
        self.query_set = query_parameters_to_set.into_iter().map(|p| (p.key, p.value)).collect();
        self.query_remove = query_parameters_to_remove;
    }

    /// Changes the request, as far as the rules let it. Removing pseudo-headers and `Host` is never possible.
    pub fn change_request(&self, head: &mut RequestHead, rules: Option<&MutationRules>) -> Result<(), Invalid> {
        let check = |name: &str| match rules {
            Some(rules) if !rules.allows(name) => {
                if rules.disallow_is_error {
                    Err(Invalid)
                } else {
                    Ok(false)
                }
            }
            _ => Ok(true),
        };
        for change in &self.request {
            if check(&change.name)? {
                change.apply_request(head);
            }
        }
        for name in &self.remove {
            let name = name.to_ascii_lowercase();
            if name != "host" && !name.starts_with(':') && check(&name)? {
                head.headers.remove(name);
            }
        }
        if !self.query_set.is_empty() || !self.query_remove.is_empty() {
            self.change_query(head);
        }
        Ok(())
    }

    /// True if a header or parameter of the request changes.
    pub fn changes_request(&self) -> bool {
        !(self.request.is_empty()
            && self.remove.is_empty()
            && self.query_set.is_empty()
            && self.query_remove.is_empty())
    }

    /// True if all names and values are such as headers have.
    pub fn is_valid(&self) -> bool {
        let valid = |change: &Change| {
            let name = change.name.strip_prefix(':').unwrap_or(&change.name);
            HeaderName::try_from(name).is_ok() && HeaderValue::from_bytes(&change.value).is_ok()
        };
        self.request.iter().chain(&self.response).all(valid)
            && self.remove.iter().all(|name| HeaderName::try_from(name.trim_start_matches(':')).is_ok())
    }

    fn change_query(&self, head: &mut RequestHead) {
        let at = memchr::memchr(b'?', &head.path);
        let query = at.map_or(&b""[..], |at| &head.path[at + 1..]);
        let mut all = BTreeMap::<&[u8], Vec<&[u8]>>::new();
        for pair in query.split(|b| *b == b'&').filter(|pair| !pair.is_empty()) {
            let equals = memchr::memchr(b'=', pair);
            let value = equals.map_or(&b""[..], |at| &pair[at + 1..]);
            all.entry(&pair[..equals.unwrap_or(pair.len())]).or_default().push(value);
        }
        for (key, value) in &self.query_set {
            all.insert(key.as_bytes(), vec![value.as_bytes()]);
        }
        for key in &self.query_remove {
            all.remove(key.as_bytes());
        }
        let mut path = head.path[..at.unwrap_or(head.path.len())].to_vec();
        let mut separator = b'?';
        for (key, values) in all {
            for value in values {
                path.push(std::mem::replace(&mut separator, b'&'));
                path.extend_from_slice(key);
                path.push(b'=');
                path.extend_from_slice(value);
            }
        }
        if path.iter().all(u8::is_ascii_graphic) {
            head.path = path.into();
        }
    }
}

impl Refusal {
    fn from_proto(p: pb::DeniedHttpResponse) -> Self {
        let pb::DeniedHttpResponse { status, headers, body } = p;
        let code = status.map_or(0, |HttpStatus { code }| u16::try_from(code).unwrap_or(0));
        let mut map = HeaderMap::new();
        for change in headers.into_iter().filter_map(|p| Change::from_proto(p, How::Set, How::Add)) {
            change.apply(&mut map);
        }
        Self {
            status: if code == 0 {
                StatusCode::FORBIDDEN
            } else {
                StatusCode::from_u16(code).unwrap_or(StatusCode::FORBIDDEN)
            },
            body: body.into(),
            headers: map,
        }
    }
}

impl Change {
    /// `plain`: where nothing is said of what is there already; `append`: where the old flag says so.
    #[allow(deprecated)] // Deprecated fields are still read: services send them.
    fn from_proto(p: HeaderValueOption, plain: How, append: How) -> Option<Self> {
        let HeaderValueOption { header, append: appends, append_action, keep_empty_value: _ } = p;
        let core::HeaderValue { key, value, raw_value } = header?;
        let how = match (appends, AppendAction::try_from(append_action)) {
            (Some(true), _) => append,
            (Some(false), _) => How::Set,
            (None, Ok(AppendAction::AddIfAbsent)) => How::AddIfAbsent,
            (None, Ok(AppendAction::OverwriteIfExistsOrAdd)) => How::Set,
            (None, Ok(AppendAction::OverwriteIfExists)) => How::SetIfThere,
            (None, _) => plain,
        };
        let value = if raw_value.is_empty() { value.into_bytes() } else { raw_value };
        Some(Self { name: key.to_ascii_lowercase(), value, how })
    }

    fn apply_request(&self, head: &mut RequestHead) {
        let Ok(value) = HeaderValue::from_bytes(&self.value) else { return };
        let bytes = || Bytes::copy_from_slice(value.as_bytes());
        match HeaderKey::parse(&self.name) {
            Some(HeaderKey::Name(name)) => self.change(&mut head.headers, name, value),
            Some(HeaderKey::Authority) => head.authority = bytes(),
            Some(HeaderKey::Path) if value.as_bytes().starts_with(b"/") => head.path = bytes(),
            Some(HeaderKey::Scheme) => head.scheme = bytes(),
            Some(HeaderKey::Method) => {
                if let Ok(method) = Method::from_bytes(value.as_bytes()) {
                    head.method = method;
                }
            }
            _ => {}
        }
    }

    pub fn apply_response(&self, head: &mut ResponseHead) {
        self.apply(&mut head.headers);
    }

    fn apply(&self, headers: &mut HeaderMap) {
        let (Ok(name), Ok(value)) = (HeaderName::try_from(&self.name), HeaderValue::from_bytes(&self.value)) else {
            return;
        };
        self.change(headers, name, value);
    }

    fn change(&self, headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
        // The message's framing is no one else's to say.
        if matches!(name, header::TRANSFER_ENCODING | header::CONNECTION | header::CONTENT_LENGTH) {
            return;
        }
        let is_there = headers.contains_key(&name);
        match self.how {
            How::Set => drop(headers.insert(name, value)),
            How::Add => drop(headers.append(name, value)),
            How::AddIfAbsent if !is_there => drop(headers.insert(name, value)),
            How::SetIfThere if is_there => drop(headers.insert(name, value)),
            How::AddIfAbsent | How::SetIfThere => {}
        }
    }
}
