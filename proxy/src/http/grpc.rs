//! gRPC's facts over HTTP (gRPC protocol, "gRPC over HTTP2"): what is a gRPC message, its status, its deadline.

use super::header_names::{GRPC_MESSAGE, GRPC_STATUS, GRPC_TIMEOUT};
use http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_TYPE};
use std::{fmt::Write as _, time::Duration};

/// `DEADLINE_EXCEEDED`
pub const DEADLINE_EXCEEDED: u32 = 4;

/// True for `application/grpc` and `application/grpc+anything`, to the letter.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(content_type) = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes) else { return false };
    content_type.strip_prefix(b"application/grpc").is_some_and(|rest| rest.is_empty() || rest[0] == b'+')
}

/// The gRPC status that stands for an HTTP status (gRPC, "HTTP to gRPC status code mapping").
pub fn status_of(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// The HTTP status that stands for a gRPC status (google.rpc.Code's mapping).
pub fn http_status(status: u32) -> u16 {
    match status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// `grpc-status`, if it is a number.
pub fn status(headers: &HeaderMap) -> Option<u32> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// Writes an error's status and message (percent-encoded) into headers or trailers.
pub fn set_error(headers: &mut HeaderMap, status: u32, message: &[u8]) {
    headers.insert(GRPC_STATUS, status.into());
    if message.is_empty() {
        return;
    }
    let mut encoded = String::with_capacity(message.len());
    for &byte in message {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(byte as char),
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    if let Ok(message) = HeaderValue::try_from(encoded) {
        headers.insert(GRPC_MESSAGE, message);
    }
}

/// `grpc-timeout`: at most 8 digits and a unit.
pub fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

/// Writes `grpc-timeout` in the smallest unit that holds it in 8 digits.
pub fn set_timeout(headers: &mut HeaderMap, timeout: Duration) {
    const MOST: u64 = 99_999_999;
    let milliseconds = timeout.as_millis() as u64;
    let (n, unit) = match milliseconds {
        ..=MOST => (milliseconds, 'm'),
        _ if milliseconds / 1000 <= MOST => (milliseconds / 1000, 'S'),
        _ if milliseconds / 60_000 <= MOST => (milliseconds / 60_000, 'M'),
        _ => ((milliseconds / 3_600_000).min(MOST), 'H'),
    };
    if let Ok(value) = HeaderValue::try_from(format!("{n}{unit}")) {
        headers.insert(GRPC_TIMEOUT, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: http::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn content_types() {
        for (value, want) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc-web", false),
            ("application/grpcx", false),
            ("application/grpc;x", false),
            ("APPLICATION/GRPC", false),
            ("application/json", false),
        ] {
            assert_eq!(is_grpc(&with(CONTENT_TYPE, value)), want, "{value}");
        }
    }

    #[test]
    fn timeouts() {
        for (text, want) in [
            ("5S", Some(5000)),
            ("1H", Some(3_600_000)),
            ("250m", Some(250)),
            ("123456789m", None),
            ("S", None),
            ("", None),
            ("1x", None),
        ] {
            assert_eq!(timeout(&with(GRPC_TIMEOUT, text)).map(|d| d.as_millis()), want, "{text}");
        }
        let mut headers = HeaderMap::new();
        set_timeout(&mut headers, Duration::from_secs(200_000));
        assert_eq!(headers[GRPC_TIMEOUT], "200000S");
    }

    #[test]
    fn messages_are_percent_encoded() {
        let mut headers = HeaderMap::new();
        set_error(&mut headers, 14, "a%b\n\u{e9}".as_bytes());
        assert_eq!(headers[GRPC_MESSAGE], "a%25b%0A%C3%A9");
        assert_eq!(status(&headers), Some(14));
    }
}
