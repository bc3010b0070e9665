//! A bidirectional gRPC stream to a host of a cluster, over the proxy's own upstream stack: control planes, log sinks.
//!
//! Messages are framed by the caller. Used on the control thread; nothing here knows what is said.

use super::{LbContext, Priority, ProtocolChoice, StreamRequest, ThreadCluster, UpstreamConnection};
use crate::{
    base::{ResetReason, Side, StreamError},
    http::{Body, BodySink, BodySource, Frame, Protocol, RequestHead, ResponseEvent, UpstreamStream, grpc},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use std::{
    collections::VecDeque,
    rc::Rc,
    task::{Context, Poll},
};

/// A stream that is open.
pub struct GrpcStream {
    upstream: UpstreamStream,
    _connection: Rc<UpstreamConnection>,
    body: Option<Body>,
    unsent: VecDeque<Bytes>,
    /// Nothing more will be sent, which the host is still to be told.
    ends: bool,
}

/// The end of a stream: gRPC's status and message, or what broke it.
#[derive(Clone, Debug)]
pub struct Ended {
    pub status: u32,
    pub message: String,
}

/// `UNAVAILABLE`
const UNAVAILABLE: u32 = 14;

impl GrpcStream {
    /// Opens a stream to `path` on a host of `cluster`. `authority`: empty for the cluster's name.
    ///
    /// # Errors
    /// There is no host, or no connection to it.
    pub async fn open(
        cluster: &Rc<ThreadCluster>,
        path: &'static str,
        authority: &str,
        metadata: &[(String, Vec<u8>)],
    ) -> Result<Self, StreamError> {
        let none = || StreamError::new(Side::Upstream, ResetReason::LocalConnectionFailure, "no healthy upstream");
        let host = cluster.choose_host(&LbContext::default()).ok_or_else(none)?;
        let wanted = StreamRequest {
            downstream_protocol: Protocol::Http2,
            priority: Priority::Default,
            protocol: ProtocolChoice::Http,
            connection: None,
            names: Default::default(),
        };
        let (mut upstream, connection) = cluster.http_stream(&host, wanted).await?;
        let mut head = RequestHead::new(Method::POST, Bytes::from_static(path.as_bytes()));
        head.protocol = Protocol::Http2;
        head.scheme = Bytes::from_static(b"http");
        let authority = if authority.is_empty() { cluster.info().name() } else { authority };
        head.authority = Bytes::copy_from_slice(authority.as_bytes());
        head.headers.insert(header::TE, HeaderValue::from_static("trailers"));
        head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        for (name, value) in metadata {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_bytes(value)) {
                head.headers.append(name, value);
            }
        }
        upstream.send_head(&head, false)?;
        Ok(Self { upstream, _connection: connection, body: None, unsent: VecDeque::new(), ends: false })
    }

    /// Sends a framed message as soon as the stream takes it.
    pub fn send(&mut self, frame: Bytes) {
        self.unsent.push_back(frame);
    }

    /// Says that nothing more will be sent: a call with one request is answered only then.
    pub fn end(&mut self) {
        self.ends = true;
    }

    /// Ready with the next bytes of the response; `None` once the stream has ended. Writes meanwhile what waits.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Ended>> {
        if let Err(error) = self.write(cx) {
            return Poll::Ready(Err(broken(&error)));
        }
        loop {
            let Some(body) = &mut self.body else {
                match std::task::ready!(self.upstream.poll_response(cx)) {
                    Ok(ResponseEvent::Informational(_)) => {}
                    Ok(ResponseEvent::Head(head, body)) => {
                        if let Some(status) = grpc::status(&head.headers) {
                            return Poll::Ready(Err(Ended { status, message: message(&head.headers) }));
                        }
                        if head.status != http::StatusCode::OK {
                            return Poll::Ready(Err(Ended {
                                status: grpc::status_of(head.status),
                                message: head.status.to_string(),
                            }));
                        }
                        self.body = Some(body);
                    }
                    Err(error) => return Poll::Ready(Err(broken(&error))),
                }
                continue;
            };
            return Poll::Ready(match std::task::ready!(body.poll_frame(cx)) {
                Some(Ok(Frame::Data(data))) => Ok(data),
                Some(Ok(Frame::Trailers(trailers))) => {
                    Err(Ended { status: grpc::status(&trailers).unwrap_or(2), message: message(&trailers) })
                }
                Some(Err(error)) => Err(broken(&error)),
                None => Err(Ended { status: UNAVAILABLE, message: "the stream ended without a status".into() }),
            });
        }
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), StreamError> {
        while !self.unsent.is_empty() {
            match self.upstream.poll_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => return Ok(()),
            }
            if let Some(frame) = self.unsent.pop_front() {
                self.upstream.send_data(frame, false)?;
            }
        }
        if std::mem::take(&mut self.ends) {
            self.upstream.send_data(Bytes::new(), true)?;
        }
        match self.upstream.poll_flush(cx) {
            Poll::Ready(flushed) => flushed,
            Poll::Pending => Ok(()),
        }
    }
}

fn broken(error: &StreamError) -> Ended {
    Ended { status: UNAVAILABLE, message: error.to_string() }
}

fn message(headers: &HeaderMap) -> String {
    headers.get("grpc-message").map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).unwrap_or_default()
}
