//! One gRPC call with one request and one answer, to a host of a cluster, over the proxy's own upstream stack: what filters
//! ask of rate limit and authorisation services.
//!
//! Runs on the thread that asks, counts in `cluster.NAME.*` as any request does, and tells outlier detection what became of it.
//! Invariant: dropping the future gives the call up; nothing of it goes on.

use super::{
    LbContext, Priority, ProtocolChoice, StreamRequest, ThreadCluster, Upstreams, grpc_stream::Ended, http_call,
    outlier::Report,
};
use crate::{
    base::StreamError,
    http::{
        Protocol, RequestHead, grpc,
        header_names::{ENVOY_EXPECTED_RQ_TIMEOUT_MS, ENVOY_INTERNAL, FORWARDED_FOR},
    },
};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, header};
use prost::Message;
use std::{
    future::Future,
    net::IpAddr,
    rc::Rc,
    time::{Duration, Instant},
};
use weft_config::GrpcService;

/// Bytes of an answer, where the service says no limit of its own.
const MOST: u32 = 4 << 20;

const INTERNAL: u32 = 13;
const UNAVAILABLE: u32 = 14;

/// Calls `path` (`/package.Service/Method`) of `service` with `request`. `local`: our address, for `x-forwarded-for`.
/// `timeout`: of the whole call; zero is none.
///
/// # Errors
/// gRPC's status, the host's or (with what broke the call) ours: `UNAVAILABLE` without a host or connection,
/// `DEADLINE_EXCEEDED` after the timeout, `INTERNAL` for an answer that is none.
pub fn call<Q: Message, R: Message + Default>(
    upstreams: &Upstreams,
    local: IpAddr,
    service: &GrpcService,
    path: &'static str,
    request: &Q,
    timeout: Duration,
) -> impl Future<Output = Result<R, Ended>> + use<Q, R> {
    let cluster = upstreams.by_name(&service.cluster);
    let head = head(service, local, path, timeout);
    let body = frame(request);
    let most = service.max_receive_message_length.unwrap_or(MOST);
    async move {
        let cluster = cluster.ok_or_else(|| ended(UNAVAILABLE, "Cluster not available"))?;
        let answer = exchange(&cluster, head, body, most as usize, timeout).await?;
        let status = answer.trailers.as_ref().and_then(grpc::status).or_else(|| grpc::status(&answer.headers));
        match status {
            Some(0) => message(&answer.body).ok_or_else(|| ended(INTERNAL, "the answer is no message")),
            Some(status) => {
                let of = answer.trailers.as_ref().filter(|trailers| grpc::status(trailers).is_some());
                let text = of.unwrap_or(&answer.headers).get("grpc-message");
                Err(ended(status, &text.map(|v| String::from_utf8_lossy(v.as_bytes())).unwrap_or_default()))
            }
            None if answer.status != http::StatusCode::OK => {
                Err(ended(grpc::status_of(answer.status), answer.status.as_str()))
            }
            None => Err(ended(UNAVAILABLE, "the answer has no status")),
        }
    }
}

/// Picks a host and asks it.
async fn exchange(
    cluster: &Rc<ThreadCluster>,
    head: RequestHead,
    body: Bytes,
    most: usize,
    timeout: Duration,
) -> Result<http_call::Answer, Ended> {
    let Some(host) = cluster.choose_host(&LbContext { request: Some(&head), ..LbContext::default() }) else {
        cluster.count_local(503, true, true);
        return Err(ended(UNAVAILABLE, "no healthy upstream"));
    };
    let start = Instant::now();
    let wanted = StreamRequest {
        downstream_protocol: Protocol::Http2,
        priority: Priority::Default,
        protocol: ProtocolChoice::Http,
        connection: None,
        names: Default::default(),
    };
    let opening = cluster.http_stream(&host, wanted);
    let exchange = async {
        let (mut upstream, _connection) = opening.await?;
        http_call::exchange(&mut upstream, &head, body, most).await
    };
    let outcome: Option<Result<_, StreamError>> =
        if timeout.is_zero() { Some(exchange.await) } else { tokio::time::timeout(timeout, exchange).await.ok() };
    match outcome {
        Some(Ok(answer)) => {
            let code = answer.status.as_u16();
            cluster.count_local(code, true, true);
            cluster.count_time(start.elapsed(), true);
            host.count_response(code);
            let status = answer.trailers.as_ref().and_then(grpc::status).or_else(|| grpc::status(&answer.headers));
            host.report(Report::Status(status.map_or(code, grpc::http_status)));
            Ok(answer)
        }
        Some(Err(error)) => {
            cluster.count_local(503, true, true);
            host.count_error();
            host.report(Report::Failed);
            Err(ended(UNAVAILABLE, &error.to_string()))
        }
        None => {
            cluster.stats().upstream_rq_timeout.inc();
            cluster.count_local(504, true, true);
            host.count_timeout();
            host.report(Report::TimedOut);
            Err(ended(grpc::DEADLINE_EXCEEDED, "upstream request timeout"))
        }
    }
}

fn head(service: &GrpcService, local: IpAddr, path: &'static str, timeout: Duration) -> RequestHead {
    let mut head = RequestHead::new(Method::POST, Bytes::from_static(path.as_bytes()));
    head.protocol = Protocol::Http2;
    head.scheme = Bytes::from_static(b"http");
    let authority = if service.authority.is_empty() { &service.cluster } else { &service.authority };
    head.authority = Bytes::copy_from_slice(authority.as_bytes());
    let headers = &mut head.headers;
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if !timeout.is_zero() {
        grpc::set_timeout(headers, timeout);
    }
    if !timeout.is_zero() {
        headers.insert(ENVOY_EXPECTED_RQ_TIMEOUT_MS, (timeout.as_millis() as u64).into());
    }
    if !service.skip_envoy_headers {
        headers.insert(ENVOY_INTERNAL, HeaderValue::from_static("true"));
        if let Ok(local) = HeaderValue::try_from(local.to_string()) {
            headers.insert(FORWARDED_FOR, local);
        }
    }
    for (name, value) in &service.initial_metadata {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    head
}

/// A message with gRPC's prefix: not compressed, and its length.
fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    frame.put_u32(length as u32);
    // Room was made for all of it.
    message.encode_raw(&mut frame);
    frame.freeze()
}

/// The one message of a body.
fn message<R: Message + Default>(body: &[u8]) -> Option<R> {
    let (&[flags, a, b, c, d], rest) = body.split_first_chunk()?;
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    (flags == 0 && rest.len() == length).then(|| R::decode(rest).ok())?
}

fn ended(status: u32, message: &str) -> Ended {
    Ended { status, message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_control_api::envoy::service::ratelimit::v3::RateLimitRequest;

    #[test]
    fn a_body_is_one_whole_message() {
        let request = RateLimitRequest { domain: "d".into(), hits_addend: 3, ..Default::default() };
        let framed = frame(&request);
        assert_eq!(message::<RateLimitRequest>(&framed), Some(request));
        let with = |at: usize, value: u8| {
            let mut bytes = framed.to_vec();
            bytes[at] = value;
            bytes
        };
        for bytes in
            [&framed[..4], &framed[..framed.len() - 1], &[&framed[..], b"x"].concat(), &with(0, 1), &with(5, 0xff)]
        {
            assert_eq!(message::<RateLimitRequest>(bytes), None, "{bytes:?}");
        }
        assert_eq!(message::<RateLimitRequest>(&[0; 5]), Some(RateLimitRequest::default()));
    }
}
