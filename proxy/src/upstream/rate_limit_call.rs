//! Asking a rate limit service (RLS v3): the question in its words, the answer in ours.
//!
//! Used by the HTTP and the network filter.

use super::{Upstreams, grpc_call, grpc_stream::Ended};
use std::{future::Future, net::IpAddr, time::Duration};
use weft_config::GrpcService;
use weft_control_api::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse, rate_limit_response::Code};

const PATH: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// Asks `service`; `local` is our address.
///
/// # Errors
/// The service cannot be reached, takes longer than `timeout` (zero is no limit), or answers an error.
pub fn ask(
    upstreams: &Upstreams,
    local: IpAddr,
    service: &GrpcService,
    request: &RateLimitRequest,
    timeout: Duration,
) -> impl Future<Output = Result<RateLimitResponse, Ended>> + use<> {
    // Type erasure by the box keeps the request's type out of the future's.
    let call: std::pin::Pin<Box<dyn Future<Output = _>>> =
        Box::pin(grpc_call::call(upstreams, local, service, PATH, request, timeout));
    call
}

/// True if the answer is that there was too much.
pub fn is_over_limit(answer: &RateLimitResponse) -> bool {
    answer.overall_code == Code::OverLimit as i32
}
