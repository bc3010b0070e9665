//! `x-request-id`: made for every request that has none, or none that may be believed.

use super::header_names::REQUEST_ID;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};

/// Where a UUID of version 4 has its version digit; Envoy packs the trace reason there.
const REASON: usize = 14;

/// Sets a request id where there is none, or, at the edge, in place of the client's unless that is to be kept.
pub fn ensure(headers: &mut HeaderMap, is_edge: bool, keep_external: bool, pack_trace_reason: bool) {
    match headers.get(REQUEST_ID) {
        Some(id) if !id.is_empty() && (!is_edge || keep_external) => {
            // An external id may not decide about tracing: back to "not traced".
            let id = id.as_bytes();
            if is_edge && pack_trace_reason && id.len() == 36 && id[REASON] != b'4' {
                let mut plain = id.to_vec();
                plain[REASON] = b'4';
                if let Ok(plain) = HeaderValue::from_maybe_shared(Bytes::from(plain)) {
                    headers.insert(REQUEST_ID, plain);
                }
            }
        }
        _ => {
            headers.insert(REQUEST_ID, uuid());
        }
    }
}

/// A random UUID of version 4.
pub fn uuid() -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bits = (fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let mut text = [b'-'; 36];
    let mut nibble = 128;
    for (at, byte) in text.iter_mut().enumerate() {
        if !matches!(at, 8 | 13 | 18 | 23) {
            nibble -= 4;
            *byte = HEX[(bits >> nibble) as usize & 15];
        }
    }
    HeaderValue::from_maybe_shared(Bytes::copy_from_slice(&text)).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_version_4() {
        for _ in 0..100 {
            let id = uuid();
            let id = id.to_str().unwrap();
            assert_eq!((id.len(), &id[14..15]), (36, "4"), "{id}");
            assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"), "{id}");
            assert_eq!(id.matches('-').count(), 4);
        }
    }

    #[test]
    fn external_ids_are_replaced_at_the_edge() {
        let mine = "11111111-2222-9333-8444-555555555555";
        let run = |is_edge, keep| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_static(mine));
            ensure(&mut headers, is_edge, keep, true);
            headers[REQUEST_ID].to_str().unwrap().to_owned()
        };
        assert_eq!(run(false, false), mine);
        assert_eq!(run(true, true), "11111111-2222-4333-8444-555555555555");
        assert_ne!(run(true, false)[..8], mine[..8]);
    }
}
