//! Redirects that this proxy answers.

use crate::{
    http::{RequestHead, header_names::FORWARDED_PROTO},
    observe::{
        StreamInfo,
        format::{Facts, Format},
    },
};
use http::{HeaderValue, StatusCode};
use std::borrow::Cow;
use weft_config::{
    Context,
    route::{PathMatch, RedirectAction, RedirectPath},
};

/// A compiled redirect.
pub struct Redirect {
    pub status: StatusCode,
    config: RedirectAction,
    /// How much of the path a prefix rewrite replaces; `None`: all of it.
    matched_length: Option<usize>,
    /// Makes the path, if a format does.
    path_format: Option<Format>,
}

impl Redirect {
    pub(super) fn compile(config: &RedirectAction, path: &PathMatch, cx: &mut Context) -> Self {
        Self {
            status: config.status,
            config: config.clone(),
            matched_length: match path {
                PathMatch::Prefix(prefix) | PathMatch::SeparatedPrefix(prefix) => Some(prefix.len()),
                _ => None,
            },
            path_format: match &config.path {
                RedirectPath::Format(format) => cx.field("path_rewrite", |cx| Format::compile_text(format, cx)),
                _ => None,
            },
        }
    }

    /// `location`.
    pub fn location(&self, head: &RequestHead, info: &StreamInfo) -> Option<HeaderValue> {
        let config = &self.config;
        let forwarded = head.headers.get(FORWARDED_PROTO).and_then(|v| v.to_str().ok()).unwrap_or("http");
        let scheme = config.scheme.as_deref().unwrap_or(forwarded);
        let host = match config.host.as_str() {
            "" => original_host(std::str::from_utf8(&head.authority).ok()?, forwarded, scheme, config.port != 0),
            host => host,
        };
        let path = std::str::from_utf8(&head.path).ok()?;
        let (plain, query) = path.split_at(path.find('?').unwrap_or(path.len()));
        // What stands in place of the path may bring a query of its own, which stripping takes as well.
        let with_query = |new: Cow<'_, str>| match (config.strip_query, new.is_empty()) {
            (true, true) => plain.to_owned(),
            (true, false) => new[..new.find('?').unwrap_or(new.len())].to_owned(),
            (false, true) => path.to_owned(),
            (false, false) => [&*new, query].concat(),
        };
        // A whole path that has a query means it: it wins over the request's, and is not stripped.
        let own_query = |new: &str| {
            if config.strip_query || new.contains('?') { new.to_owned() } else { [new, query].concat() }
        };
        let target = match &config.path {
            RedirectPath::Keep => with_query(Cow::default()),
            RedirectPath::Path(path) => own_query(path),
            RedirectPath::Format(_) => {
                let facts = Facts { request: Some(head), ..Facts::new(info) };
                match self.path_format.as_ref()?.header_value(&facts) {
                    new if new.is_empty() => with_query(Cow::default()),
                    new => own_query(&new),
                }
            }
            RedirectPath::Prefix(prefix) => {
                let rest = self.matched_length.and_then(|n| plain.get(n..)).unwrap_or("");
                with_query([prefix, rest].concat().into())
            }
            RedirectPath::Regex(rewrite) => with_query(String::from_utf8(rewrite.apply(plain)).ok()?.into()),
        };
        let slash = if target.starts_with('/') { "" } else { "/" };
        let location = match config.port {
            0 => format!("{scheme}://{host}{slash}{target}"),
            port => format!("{scheme}://{host}:{port}{slash}{target}"),
        };
        HeaderValue::try_from(location).ok()
    }
}

/// The request's host, without a port that no longer fits.
fn original_host<'h>(host: &'h str, old_scheme: &str, new_scheme: &str, new_port: bool) -> &'h str {
    let colon = if host.starts_with('[') { host.rfind("]:").map(|at| at + 1) } else { host.rfind(':') };
    let Some(colon) = colon else { return host };
    let was_default =
        (old_scheme == "https" && &host[colon..] == ":443") || (old_scheme == "http" && &host[colon..] == ":80");
    if new_port || (old_scheme != new_scheme && was_default) { &host[..colon] } else { host }
}
