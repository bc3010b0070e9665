//! HTTP filters: the trait, the table, and one file or folder for each filter.
//!
//! Adding a filter is its file and one line in [`TABLE`]. A filter that does not apply to a stream says so when it is
//! created and costs nothing after that.

use crate::http::{Body, Frame, ResponseHead, Thread, stream::Stream};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use std::{any::Any as StdAny, borrow::Cow, future::Future, pin::Pin, rc::Rc, sync::Arc};
use weft_config::Context;
use weft_control_api::Any;

pub mod basic_auth;
pub mod buffer;
mod challenge;
mod compression;
pub mod compressor;
pub mod cors;
pub mod decompressor;
pub mod ext_authz;
pub mod fault;
pub mod header_mutation;
pub mod header_to_metadata;
pub mod health_check;
pub mod jwt_authn;
pub mod local_ratelimit;
mod mapped_trailers;
pub mod on_demand;
pub mod ratelimit;
pub mod rbac;
pub mod router;
pub mod set_metadata;

/// What a filter wants after a hook.
pub enum Action {
    /// On to the next filter.
    Continue,
    /// This is the answer; no filter further on and no upstream sees the request.
    Reply(LocalReply),
    /// Wait for the future; it then decides, with the stream at hand.
    Await(Pin<Box<dyn Future<Output = Resume>>>),
    /// Hold the request back until its body is whole or there are more than so many bytes of it;
    /// [`HttpFilter::on_request_body`] then decides. Of request hooks only.
    Buffer(u64),
}

/// What is there of a request's body that was held back. It goes on to the next filter by itself.
pub struct Buffered<'a> {
    pub frames: &'a [Frame],
    /// Payload bytes.
    pub size: u64,
    /// Nothing is still to come.
    pub is_whole: bool,
}

impl Buffered<'_> {
    /// The payload, at most `most` bytes of it.
    pub fn bytes(&self, most: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(most.min(usize::try_from(self.size).unwrap_or(usize::MAX)));
        for frame in self.frames {
            if let Frame::Data(data) = frame {
                bytes.extend_from_slice(&data[..data.len().min(most - bytes.len())]);
            }
        }
        bytes
    }
}

/// What a filter does with the stream once what it waited for is there.
pub type Resume = Box<dyn FnOnce(&mut Stream) -> Action>;

/// An answer that this proxy gives by itself.
#[derive(Debug, Default)]
pub struct LocalReply {
    pub status: StatusCode,
    pub body: Bytes,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Cow<'static, str>,
    /// Set on the response, over what is there.
    pub headers: HeaderMap,
    /// Of a body that a format made: set over every other.
    pub content_type: Option<Box<HeaderValue>>,
    /// In answers to gRPC requests, in place of the status's own mapping.
    pub grpc_status: Option<u32>,
    /// The router gives it: the route's response header rules hold for it, even if the route does not forward.
    pub by_router: bool,
    /// A whole response of a filter's own: nothing rewrites it, nor makes gRPC of it.
    pub as_is: bool,
}

impl LocalReply {
    pub fn new(status: StatusCode, body: impl Into<Bytes>, details: impl Into<Cow<'static, str>>) -> Self {
        Self { status, body: body.into(), details: details.into(), ..Self::default() }
    }

    /// The same, given by the router.
    pub fn by_router(mut self) -> Self {
        self.by_router = true;
        self
    }
}

/// A filter's compiled configuration, shared by all workers.
pub trait FilterConfig: Send + Sync {
    /// One worker's part: its stats and caches.
    fn activate(self: Arc<Self>, scope: &FilterScope<'_>) -> Rc<dyn ActiveFilter>;
}

/// What a filter's worker part may use.
pub struct FilterScope<'a> {
    pub thread: &'a Rc<Thread>,
    /// Of the connection manager's stats: `http.PREFIX`.
    pub stat_prefix: &'a str,
}

/// One worker's part of a filter.
pub trait ActiveFilter {
    /// The filter for one stream, made when its turn has come; `None` if it does not apply. `routes` are the per-route
    /// configurations, as the factory's [`ParseRoute`] made them, from the least specific to the most specific.
    fn create(&self, stream: &Stream, routes: &[RouteFilterConfig]) -> Option<Box<dyn HttpFilter>>;
}

/// A compiled per-route configuration; its filter downcasts it.
pub type RouteFilterConfig = Arc<dyn StdAny + Send + Sync>;

/// The most specific of per-route configurations, for filters that know one.
pub fn most_specific<T: StdAny + Send + Sync>(routes: &[RouteFilterConfig]) -> Option<Arc<T>> {
    routes.last()?.clone().downcast().ok()
}

/// One filter on one stream. Request hooks run in the order of the configuration, response hooks in reverse.
pub trait HttpFilter {
    /// The request head is there. `end`: there is no body.
    fn on_request(&mut self, _stream: &mut Stream, _end: bool) -> Action {
        Action::Continue
    }

    /// What was held back for an [`Action::Buffer`] is there.
    fn on_request_body(&mut self, _stream: &mut Stream, _body: &Buffered<'_>) -> Action {
        Action::Continue
    }

    /// Lets the filter look at, change or hold back the request body, trailers included.
    fn request_body(&mut self, _stream: &mut Stream, body: Body) -> Body {
        body
    }

    /// The response head is there, local replies included.
    fn on_response(&mut self, _stream: &mut Stream, _head: &mut ResponseHead, _end: bool) -> Action {
        Action::Continue
    }

    /// Lets the filter look at, change or hold back the response body, trailers included.
    fn response_body(&mut self, _stream: &mut Stream, body: Body) -> Body {
        body
    }

    /// The stream is over.
    fn on_end(&mut self, _stream: &Stream) {}
}

/// Reads a per-route configuration.
pub type ParseRoute = fn(&Any, &mut Context) -> Option<RouteFilterConfig>;

/// How a filter's configuration is read.
pub struct FilterFactory {
    /// Envoy's canonical name.
    pub name: &'static str,
    /// Full name of the configuration's message type.
    pub type_name: &'static str,
    /// Reads the configuration.
    pub parse: fn(&Any, &mut Context) -> Option<Arc<dyn FilterConfig>>,
    /// Full name of the per-route configuration's message type, if there is one, and its reader.
    pub route: Option<(&'static str, ParseRoute)>,
}

/// Every filter there is.
pub const TABLE: &[FilterFactory] = &[
    basic_auth::FACTORY,
    buffer::FACTORY,
    compressor::FACTORY,
    cors::FACTORY,
    decompressor::FACTORY,
    ext_authz::FACTORY,
    fault::FACTORY,
    header_mutation::FACTORY,
    header_to_metadata::FACTORY,
    health_check::FACTORY,
    jwt_authn::FACTORY,
    local_ratelimit::FACTORY,
    on_demand::FACTORY,
    ratelimit::FACTORY,
    rbac::FACTORY,
    router::FACTORY,
    set_metadata::FACTORY,
];

/// The factory for a configuration of type `type_url`.
pub fn by_type(type_url: &str) -> Option<&'static FilterFactory> {
    let type_name = type_url.rsplit('/').next()?;
    TABLE.iter().find(|factory| factory.type_name == type_name)
}

/// The factory whose per-route configuration is of type `type_url`.
pub fn by_route_type(type_url: &str) -> Option<&'static FilterFactory> {
    let type_name = type_url.rsplit('/').next()?;
    TABLE.iter().find(|factory| factory.route.is_some_and(|(name, _)| name == type_name))
}
