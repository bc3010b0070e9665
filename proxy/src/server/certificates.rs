//! `/certs` (`envoy.admin.v3.Certificates`) and the stats of certificates that end, out of what contexts have now.

use crate::snapshot::secrets::{ContextCertificates, Loaded};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};
use weft_control_api::Timestamp;

const DAY: i64 = 24 * 60 * 60;

/// The contexts as `/certs` shows them.
pub fn shown(contexts: &[ContextCertificates]) -> Vec<Value> {
    let now = now();
    let list = |all: &[Loaded]| all.iter().map(|loaded| details(loaded, now)).collect::<Vec<_>>();
    let context = |context: &ContextCertificates| json!({ "ca_cert": list(&context.authorities), "cert_chain": list(&context.identities) });
    contexts.iter().map(context).collect()
}

/// Whole days until the first certificate ends; `u32::MAX` without any.
pub fn days_until_first_ends(contexts: &[ContextCertificates]) -> u64 {
    let now = now();
    let all = contexts.iter().flat_map(|context| context.authorities.iter().chain(&context.identities));
    all.map(|loaded| days(loaded.certificate.not_after, now)).min().unwrap_or(u64::from(u32::MAX))
}

/// Seconds until the first OCSP staple ends; zero without any.
pub fn seconds_until_first_staple_ends(contexts: &[ContextCertificates]) -> u64 {
    let now = u64::try_from(now()).unwrap_or_default();
    let all = contexts.iter().flat_map(|context| &context.identities).filter_map(|loaded| loaded.staple_until);
    all.map(|until| until.saturating_sub(now)).min().unwrap_or_default()
}

fn details(loaded: &Loaded, now: i64) -> Value {
    let certificate = &loaded.certificate;
    let time = |seconds| Timestamp { seconds, nanos: 0 }.to_string();
    let dns = certificate.dns_sans.iter().map(|name| json!({ "dns": name }));
    let uris = certificate.uri_sans.iter().map(|name| json!({ "uri": name }));
    let ips = certificate.ip_sans.iter().map(|ip| json!({ "ip_address": ip.to_string() }));
    let mut details = json!({
        "path": loaded.path,
        "serial_number": certificate.serial,
        "subject_alt_names": dns.chain(uris).chain(ips).collect::<Vec<_>>(),
        "days_until_expiration": days(certificate.not_after, now).to_string(),
        "valid_from": time(certificate.not_before),
        "expiration_time": time(certificate.not_after),
    });
    if let Some(until) = loaded.staple_until.and_then(|until| i64::try_from(until).ok()) {
        details["ocsp_details"] = json!({ "expiration": time(until) });
    }
    details
}

/// Zero for what has ended.
fn days(end: i64, now: i64) -> u64 {
    u64::try_from((end - now).div_euclid(DAY)).unwrap_or_default()
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_whole_and_never_negative() {
        assert_eq!((days(DAY, 0), days(DAY - 1, 0), days(0, 1), days(3 * DAY, DAY)), (1, 0, 0, 2));
        assert_eq!(days_until_first_ends(&[]), u64::from(u32::MAX));
        assert_eq!(seconds_until_first_staple_ends(&[]), 0);
    }
}
