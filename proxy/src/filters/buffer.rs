//! `envoy.filters.http.buffer`: requests go on once they are whole; those that are too large are refused.

use super::{
    Action, ActiveFilter, Buffered, FilterConfig, FilterFactory, FilterScope, HttpFilter, LocalReply,
    RouteFilterConfig, most_specific,
};
use crate::http::stream::Stream;
use http::{StatusCode, header::CONTENT_LENGTH};
use std::{rc::Rc, sync::Arc};
use weft_config::Context;
use weft_control_api::envoy::extensions::filters::http::buffer::v3 as pb;

pub const FACTORY: FilterFactory = FilterFactory {
    name: "envoy.filters.http.buffer",
    type_name: "envoy.extensions.filters.http.buffer.v3.Buffer",
    parse: |any, cx| {
        let config: pb::Buffer = cx.unpack("typed_config", any)?;
        let limit = cx.field("typed_config", |cx| limit(config, cx))?;
        Some(Arc::new(Buffer { limit: Some(limit) }) as Arc<dyn FilterConfig>)
    },
    route: Some(("envoy.extensions.filters.http.buffer.v3.BufferPerRoute", |any, cx| {
        let pb::BufferPerRoute { r#override } = cx.unpack("", any)?;
        let limit = match cx.required("override", r#override)? {
            pb::buffer_per_route::Override::Disabled(_) => None,
            pb::buffer_per_route::Override::Buffer(config) => Some(cx.field("buffer", |cx| limit(config, cx))?),
        };
        Some(Arc::new(Buffer { limit }) as RouteFilterConfig)
    })),
};

/// The most bytes of a request's body; `None`: the filter is off.
struct Buffer {
    limit: Option<u32>,
}

fn limit(p: pb::Buffer, cx: &mut Context) -> Option<u32> {
    let pb::Buffer { max_request_bytes } = p;
    cx.required("max_request_bytes", max_request_bytes)
}

impl FilterConfig for Buffer {
    fn activate(self: Arc<Self>, _: &FilterScope<'_>) -> Rc<dyn ActiveFilter> {
        Rc::new(Active(self))
    }
}

/// One worker's part.
struct Active(Arc<Buffer>);

impl ActiveFilter for Active {
    fn create(&self, _: &Stream, routes: &[RouteFilterConfig]) -> Option<Box<dyn HttpFilter>> {
        let limit = most_specific::<Buffer>(routes).map_or(self.0.limit, |route| route.limit)?;
        Some(Box::new(Filter { limit }))
    }
}

struct Filter {
    limit: u32,
}

impl HttpFilter for Filter {
    fn on_request(&mut self, _: &mut Stream, end: bool) -> Action {
        if end { Action::Continue } else { Action::Buffer(self.limit.into()) }
    }

    fn on_request_body(&mut self, stream: &mut Stream, body: &Buffered<'_>) -> Action {
        if body.size > u64::from(self.limit) {
            return Action::Reply(too_large(stream));
        }
        stream.request.headers.entry(CONTENT_LENGTH).or_insert_with(|| body.size.into());
        Action::Continue
    }
}

/// The answer to a request whose body is larger than a filter may hold.
pub fn too_large(stream: &Stream) -> LocalReply {
    stream.connection.stats.downstream_rq_too_large.inc();
    LocalReply::new(StatusCode::PAYLOAD_TOO_LARGE, "Payload Too Large", "request_payload_too_large")
}
