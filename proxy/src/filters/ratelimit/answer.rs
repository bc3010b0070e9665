//! What a rate limit service's answer comes to in headers.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use std::fmt::Write as _;
use weft_control_api::envoy::{
    config::core::v3 as core,
    service::ratelimit::v3::rate_limit_response::{Code, DescriptorStatus, RateLimit, rate_limit::Unit},
};

/// Headers that the service wants to be added; those that are none are left out.
pub(super) fn headers(p: Vec<core::HeaderValue>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for core::HeaderValue { key, value, raw_value } in p {
        let value = if raw_value.is_empty() { value.as_bytes() } else { &raw_value };
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    headers
}

/// `x-ratelimit-*`, draft 03: the limit of which least is left, and all windows.
pub(super) fn add_limits(statuses: &[DescriptorStatus], headers: &mut HeaderMap) {
    let limited = || statuses.iter().filter_map(|status| Some((status, status.current_limit.as_ref()?)));
    let Some((tightest, limit)) = limited().min_by_key(|(status, _)| status.limit_remaining) else { return };
    let mut text = limit.requests_per_unit.to_string();
    for (_, limit) in limited() {
        let Some(seconds) = window(limit) else { continue };
        let _ = write!(text, ", {};w={seconds}", limit.requests_per_unit);
        if !limit.name.is_empty() {
            let _ = write!(text, ";name=\"{}\"", limit.name);
        }
    }
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.append("x-ratelimit-limit", value);
    }
    headers.append("x-ratelimit-remaining", tightest.limit_remaining.into());
    headers.append("x-ratelimit-reset", reset(tightest).into());
}

/// `retry-after`: when the last of the limits that were exceeded begins anew.
pub(super) fn add_retry_after(statuses: &[DescriptorStatus], headers: &mut HeaderMap) {
    let over = statuses.iter().filter(|status| status.code == Code::OverLimit as i32);
    let latest = over.filter(|status| status.duration_until_reset.is_some()).map(reset).max();
    if let Some(seconds) = latest {
        headers.entry(header::RETRY_AFTER).or_insert(seconds.max(1).into());
    }
}

fn reset(status: &DescriptorStatus) -> u64 {
    status.duration_until_reset.and_then(|left| u64::try_from(left.seconds).ok()).unwrap_or(0)
}

/// Of a limit, in seconds.
fn window(limit: &RateLimit) -> Option<u64> {
    let unit = match Unit::try_from(limit.unit).ok()? {
        Unit::Unknown => return None,
        Unit::Second => 1,
        Unit::Minute => 60,
        Unit::Hour => 3_600,
        Unit::Day => 86_400,
        Unit::Week => 604_800,
        Unit::Month => 2_592_000,
        Unit::Year => 31_536_000,
    };
    Some(unit * u64::from(limit.unit_multiplier.unwrap_or(1).max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_control_api::Duration;

    fn status(code: Code, requests_per_unit: u32, unit: Unit, limit_remaining: u32, seconds: i64) -> DescriptorStatus {
        let limit = RateLimit { requests_per_unit, unit: unit as i32, ..Default::default() };
        DescriptorStatus {
            code: code as i32,
            current_limit: (requests_per_unit > 0).then_some(limit),
            limit_remaining,
            duration_until_reset: Some(Duration { seconds, nanos: 900_000_000 }),
            quota: None,
        }
    }

    #[test]
    fn the_tightest_limit_is_told_first() {
        let mut named = status(Code::OverLimit, 60, Unit::Minute, 4, 30);
        named.current_limit.as_mut().expect("there").name = "n".into();
        let statuses = [
            status(Code::Ok, 10, Unit::Second, 7, 3),
            named,
            status(Code::Ok, 0, Unit::Unknown, 0, 9),
            status(Code::Ok, 9, Unit::Unknown, 40, 1),
            status(Code::Ok, 5, Unit::Week, 4, 1),
        ];
        let mut headers = HeaderMap::new();
        add_limits(&statuses, &mut headers);
        add_retry_after(&statuses, &mut headers);
        assert_eq!(headers["x-ratelimit-limit"], "60, 10;w=1, 60;w=60;name=\"n\", 5;w=604800");
        assert_eq!([&headers["x-ratelimit-remaining"], &headers["x-ratelimit-reset"]], ["4", "30"]);
        assert_eq!(headers["retry-after"], "30");
        let mut none = HeaderMap::new();
        add_limits(&[], &mut none);
        add_retry_after(&statuses[..1], &mut none);
        assert!(none.is_empty());
    }
}
