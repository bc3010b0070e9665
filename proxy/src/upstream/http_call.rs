//! One HTTP request to a host of a cluster, with a small body both ways: control planes that are polled.
//!
//! Used on the control thread; what travels on the data path is streamed elsewhere.

use super::{LbContext, Priority, ProtocolChoice, StreamRequest, ThreadCluster};
use crate::{
    base::{ResetReason, Side, StreamError},
    http::{BodySink, BodySource, Frame, Protocol, RequestHead, ResponseEvent, UpstreamStream},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use std::{future::poll_fn, rc::Rc};

/// The answer to a request.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

/// Sends `head` with `body` and gives the whole answer; an answer longer than `most` bytes is an error.
///
/// # Errors
/// There is no host, no connection to it, or the exchange broke.
pub async fn call(
    cluster: &Rc<ThreadCluster>,
    mut head: RequestHead,
    body: Bytes,
    most: usize,
) -> Result<Answer, StreamError> {
    let none = || StreamError::new(Side::Upstream, ResetReason::LocalConnectionFailure, "no healthy upstream");
    let host = cluster.choose_host(&LbContext::default()).ok_or_else(none)?;
    let wanted = StreamRequest {
        downstream_protocol: Protocol::Http11,
        priority: Priority::Default,
        protocol: ProtocolChoice::Http,
        connection: None,
        names: Default::default(),
    };
    // The connection lives as long as the exchange.
    let (mut upstream, _connection) = cluster.http_stream(&host, wanted).await?;
    if head.authority.is_empty() {
        head.authority = Bytes::copy_from_slice(cluster.info().name().as_bytes());
    }
    head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    exchange(&mut upstream, &head, body, most).await
}

/// The same on a stream that is there.
///
/// # Errors
/// The exchange broke, or the answer is too long.
pub(super) async fn exchange(
    upstream: &mut UpstreamStream,
    head: &RequestHead,
    body: Bytes,
    most: usize,
) -> Result<Answer, StreamError> {
    upstream.send_head(head, body.is_empty())?;
    if !body.is_empty() {
        poll_fn(|cx| upstream.poll_ready(cx)).await?;
        upstream.send_data(body, true)?;
    }
    let mut flushed = false;
    let (head, mut source) = loop {
        let event = poll_fn(|cx| {
            if !flushed && let std::task::Poll::Ready(done) = upstream.poll_flush(cx) {
                done?;
                flushed = true;
            }
            upstream.poll_response(cx)
        })
        .await?;
        if let ResponseEvent::Head(head, source) = event {
            break (head, source);
        }
    };
    let mut answer = Answer { status: head.status, headers: head.headers, body: Vec::new(), trailers: None };
    while let Some(frame) = poll_fn(|cx| source.poll_frame(cx)).await {
        let data = match frame? {
            Frame::Data(data) => data,
            Frame::Trailers(trailers) => {
                answer.trailers = Some(trailers);
                continue;
            }
        };
        if answer.body.len() + data.len() > most {
            return Err(StreamError::new(Side::Upstream, ResetReason::ProtocolError, "the answer is too long"));
        }
        answer.body.extend_from_slice(&data);
    }
    Ok(answer)
}
