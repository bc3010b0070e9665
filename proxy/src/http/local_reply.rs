//! Replies that this proxy gives by itself, and how a configuration may rewrite them.

use super::{Body, ResponseHead, grpc, stream::Stream};
use crate::{
    base::StreamError,
    filters::LocalReply,
    http::header_rules::HeaderRules,
    observe::{
        access_log::LogFilter,
        format::{Facts, Format},
    },
};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};

/// A connection manager's `local_reply_config`, compiled.
#[derive(Default)]
pub struct LocalReplyRules {
    pub mappers: Vec<Mapper>,
    pub format: Option<BodyFormat>,
}

/// The first mapper whose filter takes the reply rewrites it.
pub struct Mapper {
    pub filter: LogFilter,
    pub status: Option<StatusCode>,
    pub body: Option<Bytes>,
    pub format: Option<BodyFormat>,
    pub headers: HeaderRules,
}

/// A body made from the stream's facts.
pub struct BodyFormat {
    pub format: Format,
    pub content_type: HeaderValue,
}

/// The head and body of a local reply to this stream's request.
pub fn build(stream: &mut Stream, reply: LocalReply) -> (ResponseHead, Body) {
    let LocalReply { status, body, details: _, headers, content_type, grpc_status, by_router, as_is } = reply;
    let mut head = ResponseHead::new(status);
    for (name, value) in &headers {
        head.headers.append(name, value.clone());
    }
    if as_is {
        return (head, if body.is_empty() || stream.is_head { Body::Empty } else { Body::Full(body) });
    }
    // Those of a route that forwards hold for replies in the upstream's place too, whoever gives them.
    if let Some(route) = stream.route.clone().filter(|route| by_router || route.route.action.forward().is_some()) {
        route.finalize_response(&mut head, &stream.request, &stream.info);
    }
    let (body, format_type) = rewrite(stream, &mut head, body);
    if stream.is_grpc {
        let code = grpc_status.unwrap_or_else(|| grpc::status_of(head.status));
        head.status = StatusCode::OK;
        head.headers.remove(header::CONTENT_LENGTH);
        head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        grpc::set_error(&mut head.headers, code, &body);
        return (head, Body::Empty);
    }
    if body.is_empty() {
        head.headers.remove(header::CONTENT_TYPE);
        head.headers.remove(header::CONTENT_LENGTH);
        return (head, Body::Empty);
    }
    match format_type.or(content_type.map(|boxed| *boxed)) {
        Some(content_type) => {
            head.headers.insert(header::CONTENT_TYPE, content_type);
        }
        None => {
            head.headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("text/plain"));
        }
    }
    head.headers.insert(header::CONTENT_LENGTH, (body.len() as u64).into());
    if stream.is_head { (head, Body::Empty) } else { (head, Body::Full(body)) }
}

/// Applies the configured mappers and format; gives the body and the content type that goes with it.
fn rewrite(stream: &mut Stream, head: &mut ResponseHead, mut body: Bytes) -> (Bytes, Option<HeaderValue>) {
    let connection = stream.connection.clone();
    let rules = &connection.manager.local_reply;
    stream.info.response_code = head.status.as_u16();
    let mut format = rules.format.as_ref();
    let runtime = connection.thread.runtime();
    if let Some(mapper) = rules.mappers.iter().find(|mapper| mapper.filter.matches(&facts(stream, head), &runtime)) {
        if let Some(new) = &mapper.body {
            body = new.clone();
        }
        mapper.headers.apply_response(head, &stream.request, &stream.info);
        if let Some(status) = mapper.status {
            head.status = status;
            stream.info.response_code = status.as_u16();
        }
        format = mapper.format.as_ref().or(format);
    }
    match format {
        None => (body, None),
        Some(format) => {
            let mut facts = facts(stream, head);
            facts.local_reply_body = Some(&body);
            let text = format.format.text(&facts);
            (text.into(), Some(format.content_type.clone()))
        }
    }
}

/// The stream as mappers and formats see it: nothing is logged here.
fn facts<'a>(stream: &'a Stream, head: &'a ResponseHead) -> Facts<'a> {
    Facts { log_type: "NotSet", ..stream.facts(Some(head)) }
}

/// `upstream_reset_before_response_started{connection_termination}` and its kin: words without spaces.
pub fn reset_details(prefix: &str, error: &StreamError) -> String {
    let mut details = format!("{prefix}{{{}", error.reason.as_str());
    if !error.details.is_empty() {
        details.push('|');
        details.push_str(&error.details);
    }
    details.push('}');
    details.replace(' ', "_")
}
