//! `envoy.filters.http.decompressor`: decompresses requests and responses, and tells upstreams that it does.
//!
//! Only the last encoding of several is taken off. A body that is not what it says, or grows more than its library allows,
//! ends its stream.

use super::{
    Action, ActiveFilter, FilterConfig, FilterFactory, FilterScope, HttpFilter, RouteFilterConfig,
    compression::decoder::{Decoder, Library},
};
use crate::{
    base::{ResetReason, RuntimeSnapshot, Side, StreamError},
    http::{Body, BodySource, Frame, ResponseHead, request_headers::append, stream::Stream},
    stats,
};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH},
};
use std::{
    rc::Rc,
    sync::Arc,
    task::{Context as TaskContext, Poll, ready},
};
use weft_config::Context;
use weft_control_api::envoy::{
    config::core::v3::{RuntimeFeatureFlag, TypedExtensionConfig},
    extensions::filters::http::decompressor::v3::{
        self as pb,
        decompressor::{CommonDirectionConfig, RequestDirectionConfig, ResponseDirectionConfig},
    },
};

pub const FACTORY: FilterFactory = FilterFactory {
    name: "envoy.filters.http.decompressor",
    type_name: "envoy.extensions.filters.http.decompressor.v3.Decompressor",
    parse: |any, cx| {
        let config = cx.unpack("typed_config", any)?;
        let config = cx.field("typed_config", |cx| Decompressor::from_proto(config, cx))?;
        Some(Arc::new(config) as Arc<dyn FilterConfig>)
    },
    route: None,
};

stats! {
    /// `PREFIX.decompressor.LIBRARY.ENCODING.*`, one group a direction
    pub struct DecompressorStats {
        counter decompressed,
        counter not_decompressed,
        counter total_uncompressed_bytes,
        counter total_compressed_bytes,
    }
}

struct Decompressor {
    library: Library,
    /// In stats and trailers.
    library_name: String,
    compressed_bytes: Option<HeaderName>,
    uncompressed_bytes: Option<HeaderName>,
    advertise: bool,
    request: Direction,
    response: Direction,
}

struct Direction {
    default: bool,
    runtime_key: String,
    ignore_no_transform: bool,
}

impl Direction {
    fn new(p: Option<CommonDirectionConfig>) -> Self {
        let CommonDirectionConfig { enabled, ignore_no_transform_header } = p.unwrap_or_default();
        let (default, runtime_key) = match enabled {
            Some(RuntimeFeatureFlag { default_value, runtime_key }) => (default_value.unwrap_or(true), runtime_key),
            None => (true, String::new()),
        };
        Self { default, runtime_key, ignore_no_transform: ignore_no_transform_header }
    }

    fn is_enabled(&self, runtime: &RuntimeSnapshot) -> bool {
        let of_key = if self.runtime_key.is_empty() { None } else { runtime.boolean(&self.runtime_key) };
        of_key.unwrap_or(self.default)
    }
}

impl Decompressor {
    fn from_proto(p: pb::Decompressor, cx: &mut Context) -> Option<Self> {
        let pb::Decompressor { decompressor_library, request_direction_config, response_direction_config } = p;
        let library = cx.required("decompressor_library", decompressor_library)?;
        let (name, library) = cx.field("decompressor_library", |cx| {
            let TypedExtensionConfig { name, typed_config } = library;
            let any = cx.required("typed_config", typed_config)?;
            Some((name, cx.field("typed_config", |cx| Library::from_any(&any, cx))?))
        })?;
        let RequestDirectionConfig { common_config: request, advertise_accept_encoding } =
            request_direction_config.unwrap_or_default();
        let ResponseDirectionConfig { common_config: response } = response_direction_config.unwrap_or_default();
        let trailer =
            |tail: &str| HeaderName::try_from(format!("x-envoy-decompressor-{}-{tail}", name.to_lowercase())).ok();
        Some(Self {
            compressed_bytes: trailer("compressed-bytes"),
            uncompressed_bytes: trailer("uncompressed-bytes"),
            library,
            library_name: name,
            advertise: advertise_accept_encoding.unwrap_or(true),
            request: Direction::new(request),
            response: Direction::new(response),
        })
    }
}

impl FilterConfig for Decompressor {
    fn activate(self: Arc<Self>, scope: &FilterScope<'_>) -> Rc<dyn ActiveFilter> {
        let registry = &scope.thread.registry;
        let encoding = self.library.encoding().stat_name();
        let prefix = match &*self.library_name {
            "" => format!("{}.decompressor.{encoding}", scope.stat_prefix),
            name => format!("{}.decompressor.{name}.{encoding}", scope.stat_prefix),
        };
        Rc::new(Active(Rc::new(Shared {
            request: registry.attach(&format!("{prefix}.request")),
            response: registry.attach(&format!("{prefix}.response")),
            config: self,
        })))
    }
}

/// One worker's part.
struct Active(Rc<Shared>);

struct Shared {
    config: Arc<Decompressor>,
    request: Arc<DecompressorStats>,
    response: Arc<DecompressorStats>,
}

impl ActiveFilter for Active {
    fn create(&self, _: &Stream, _: &[RouteFilterConfig]) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(Filter { shared: self.0.clone(), request: None, response: None }))
    }
}

struct Filter {
    shared: Rc<Shared>,
    request: Option<Decoder>,
    response: Option<Decoder>,
}

impl Filter {
    /// The decoder for a message with these headers, if it is to be decompressed; the headers then say so.
    fn begin(
        &self,
        direction: &Direction,
        runtime: &RuntimeSnapshot,
        headers: &mut HeaderMap,
        stats: &DecompressorStats,
    ) -> Option<Decoder> {
        let own = self.shared.config.library.encoding().name().as_bytes();
        let encodings = headers.get(CONTENT_ENCODING).map(|value| value.as_bytes().to_vec());
        let mut parts = encodings.as_deref().unwrap_or_default().splitn(2, |b| *b == b',');
        let first = parts.next().unwrap_or_default().trim_ascii();
        let no_transform = || {
            headers.get_all(CACHE_CONTROL).iter().any(|value| {
                value.as_bytes().split(|b| *b == b',').any(|t| t.trim_ascii().eq_ignore_ascii_case(b"no-transform"))
            })
        };
        let applies = direction.is_enabled(runtime)
            && first.eq_ignore_ascii_case(own)
            && (direction.ignore_no_transform || !no_transform());
        let Some(decoder) = applies.then(|| self.shared.config.library.decoder()).flatten() else {
            stats.not_decompressed.inc();
            return None;
        };
        stats.decompressed.inc();
        headers.remove(CONTENT_LENGTH);
        match parts.next().map(|rest| HeaderValue::from_bytes(rest.trim_ascii())) {
            Some(Ok(rest)) => headers.insert(CONTENT_ENCODING, rest),
            _ => headers.remove(CONTENT_ENCODING),
        };
        Some(decoder)
    }
}

impl HttpFilter for Filter {
    fn on_request(&mut self, stream: &mut Stream, end: bool) -> Action {
        let shared = self.shared.clone();
        let config = &shared.config;
        let runtime = stream.connection.thread.runtime();
        let headers = &mut stream.request.headers;
        if config.advertise && config.response.is_enabled(&runtime) {
            append(headers, ACCEPT_ENCODING, config.library.encoding().name().as_bytes(), ",");
        }
        if !end {
            self.request = self.begin(&config.request, &runtime, headers, &shared.request);
        }
        Action::Continue
    }

    fn request_body(&mut self, _: &mut Stream, body: Body) -> Body {
        match self.request.take() {
            Some(decoder) => DecompressedBody::new(body, decoder, self.shared.clone(), self.shared.request.clone()),
            None => body,
        }
    }

    fn on_response(&mut self, stream: &mut Stream, head: &mut ResponseHead, end: bool) -> Action {
        if !end {
            let (shared, runtime) = (self.shared.clone(), stream.connection.thread.runtime());
            self.response = self.begin(&shared.config.response, &runtime, &mut head.headers, &shared.response);
        }
        Action::Continue
    }

    fn response_body(&mut self, _: &mut Stream, body: Body) -> Body {
        match self.response.take() {
            Some(decoder) => DecompressedBody::new(body, decoder, self.shared.clone(), self.shared.response.clone()),
            None => body,
        }
    }
}

/// A body on its way through a decompressor. How large it was and became is in its trailers.
struct DecompressedBody {
    body: Body,
    decoder: Decoder,
    shared: Rc<Shared>,
    stats: Arc<DecompressorStats>,
    compressed: u64,
    uncompressed: u64,
    is_over: bool,
}

impl DecompressedBody {
    #[allow(clippy::new_ret_no_self)] // Nobody wants more of it than a body.
    fn new(body: Body, decoder: Decoder, shared: Rc<Shared>, stats: Arc<DecompressorStats>) -> Body {
        Body::Boxed(Box::new(Self { body, decoder, shared, stats, compressed: 0, uncompressed: 0, is_over: false }))
    }

    fn end(&mut self, mut trailers: HeaderMap) -> Frame {
        self.is_over = true;
        let config = &self.shared.config;
        for (name, bytes) in
            [(&config.compressed_bytes, self.compressed), (&config.uncompressed_bytes, self.uncompressed)]
        {
            if let Some(name) = name {
                trailers.insert(name, bytes.into());
            }
        }
        Frame::Trailers(trailers)
    }
}

impl BodySource for DecompressedBody {
    fn poll_frame(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(self.body.poll_frame(cx)) {
            Some(Ok(Frame::Data(data))) => {
                self.stats.total_compressed_bytes.add(data.len() as u64);
                self.compressed += data.len() as u64;
                match self.decoder.push(&data) {
                    Ok(out) => {
                        self.stats.total_uncompressed_bytes.add(out.len() as u64);
                        self.uncompressed += out.len() as u64;
                        Some(Ok(Frame::Data(out)))
                    }
                    Err(_) => {
                        self.is_over = true;
                        Some(Err(StreamError::new(Side::Ours, ResetReason::LocalReset, "decompression_error")))
                    }
                }
            }
            Some(Ok(Frame::Trailers(trailers))) => Some(Ok(self.end(trailers))),
            Some(Err(error)) => Some(Err(error)),
            None => Some(Ok(self.end(HeaderMap::new()))),
        })
    }

    fn is_end(&self) -> bool {
        self.is_over
    }

    fn remaining(&self) -> Option<u64> {
        None
    }
}
