//! Load reports of hosts (ORCA): read from the headers or trailers of responses, and what a host weighs by them.
//!
//! The router reads them on the workers; the control thread makes weights of them from time to time. What is shared is in
//! [`Report`], one a host. A report that cannot be read is as none.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName};
use prost::Message as _;
use serde_json::Value;
use std::{
    collections::HashMap,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};
use weft_config::load_balancing::ClientSideWeightedRoundRobin;
use weft_control_api::{snake_case, xds::data::orca::v3::OrcaLoadReport};

const HEADER: HeaderName = HeaderName::from_static("endpoint-load-metrics");
const BINARY_HEADER: HeaderName = HeaderName::from_static("endpoint-load-metrics-bin");

/// What a host reported last. Times are milliseconds since the first of all; 0: never.
#[derive(Debug, Default)]
pub struct Report {
    weight: AtomicU32,
    /// Since when there are reports.
    since: AtomicU64,
    last: AtomicU64,
}

impl Report {
    /// Takes a weight that was reported now.
    pub fn set(&self, weight: u32, now: u64) {
        self.weight.store(weight, Relaxed);
        // The first one only, whoever else is about it.
        let _ = self.since.compare_exchange(0, now.max(1), Relaxed, Relaxed);
        self.last.store(now.max(1), Relaxed);
    }

    /// The weight, if it came for long enough and not too long ago.
    fn weight(&self, config: &ClientSideWeightedRoundRobin, now: u64) -> Option<u32> {
        let millis = |duration: Duration| duration.as_millis() as u64;
        let since = self.since.load(Relaxed);
        if since == 0 || now.saturating_sub(since) < millis(config.blackout_period) {
            return None;
        }
        let expires = millis(config.weight_expiration_period);
        if expires > 0 && now.saturating_sub(self.last.load(Relaxed)) > expires {
            self.since.store(0, Relaxed);
            return None;
        }
        Some(self.weight.load(Relaxed))
    }
}

/// What hosts weigh now: by their reports, and those without by the median of the others.
pub fn weights<'a>(
    config: &ClientSideWeightedRoundRobin,
    reports: impl Iterator<Item = &'a Report>,
    now: u64,
) -> Vec<u32> {
    let found: Vec<Option<u32>> = reports.map(|report| report.weight(config, now)).collect();
    let mut valid: Vec<u32> = found.iter().flatten().copied().collect();
    valid.sort_unstable();
    let middle = valid.len() / 2;
    let default = match valid.as_slice() {
        [] => 1,
        all if all.len().is_multiple_of(2) => ((u64::from(all[middle - 1]) + u64::from(all[middle])) / 2) as u32,
        all => all[middle],
    };
    found.into_iter().map(|weight| weight.unwrap_or(default).max(1)).collect()
}

/// The weight that a response's headers or trailers report, if they do.
pub fn reported(headers: &HeaderMap, config: &ClientSideWeightedRoundRobin) -> Option<u32> {
    weight_of(&read(headers)?, config)
}

fn weight_of(report: &OrcaLoadReport, config: &ClientSideWeightedRoundRobin) -> Option<u32> {
    let rate = report.rps_fractional;
    if rate <= 0.0 {
        return None;
    }
    let named = config.metric_names.iter().filter_map(|name| metric(report, name)).fold(0.0, f64::max);
    let utilization = match (report.application_utilization, named) {
        (own, _) if own > 0.0 => own,
        (_, named) if named > 0.0 => named,
        _ => report.cpu_utilization,
    };
    let utilization = utilization + config.error_utilization_penalty * report.eps / rate;
    // Written so that what is no number does not pass.
    if utilization > 0.0 { Some((rate / utilization).round() as u32) } else { None }
}

/// A value of a report by its name, such as `named_metrics.queue`.
fn metric(report: &OrcaLoadReport, name: &str) -> Option<f64> {
    match name.split_once('.') {
        Some(("named_metrics", key)) => report.named_metrics.get(key).copied(),
        Some(("utilization", key)) => report.utilization.get(key).copied(),
        Some(("request_cost", key)) => report.request_cost.get(key).copied(),
        _ => match name {
            "cpu_utilization" => Some(report.cpu_utilization),
            "mem_utilization" => Some(report.mem_utilization),
            "application_utilization" => Some(report.application_utilization),
            "eps" => Some(report.eps),
            "rps_fractional" => Some(report.rps_fractional),
            _ => None,
        },
    }
}

fn read(headers: &HeaderMap) -> Option<OrcaLoadReport> {
    if let Some(value) = headers.get(BINARY_HEADER) {
        return binary(value.as_bytes());
    }
    let text = headers.get(HEADER)?.to_str().ok()?;
    match text.split_once(' ')? {
        ("BIN", rest) => binary(rest.trim().as_bytes()),
        ("JSON", rest) => json(rest),
        ("TEXT", rest) => plain(rest),
        _ => None,
    }
}

fn binary(text: &[u8]) -> Option<OrcaLoadReport> {
    OrcaLoadReport::decode(STANDARD.decode(text).ok()?.as_slice()).ok()
}

/// `name=value` or `name:value`, with commas between; nothing twice.
fn plain(text: &str) -> Option<OrcaLoadReport> {
    let mut report = OrcaLoadReport::default();
    let mut seen = std::collections::HashSet::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once(['=', ':'])?;
        let (name, value) = (name.trim(), value.trim().parse::<f64>().ok().filter(|value| value.is_finite())?);
        if !seen.insert(name) || !set(&mut report, name, value) {
            return None;
        }
    }
    Some(report)
}

/// False for a name that means nothing.
fn set(report: &mut OrcaLoadReport, name: &str, value: f64) -> bool {
    let map: Option<(&mut HashMap<String, f64>, &str)> = match name.split_once('.') {
        Some(("named_metrics", key)) => Some((&mut report.named_metrics, key)),
        Some(("utilization", key)) => Some((&mut report.utilization, key)),
        Some(("request_cost", key)) => Some((&mut report.request_cost, key)),
        _ => None,
    };
    if let Some((map, key)) = map {
        map.insert(key.to_owned(), value);
        return !key.is_empty();
    }
    match name {
        "cpu_utilization" => report.cpu_utilization = value,
        "mem_utilization" => report.mem_utilization = value,
        "application_utilization" => report.application_utilization = value,
        "eps" => report.eps = value,
        "rps_fractional" => report.rps_fractional = value,
        _ => return false,
    }
    true
}

/// The message in protobuf's JSON.
fn json(text: &str) -> Option<OrcaLoadReport> {
    let value: Value = serde_json::from_str(text).ok()?;
    let mut report = OrcaLoadReport::default();
    for (key, value) in value.as_object()? {
        let name = snake_case(key);
        match value {
            Value::Null => {}
            Value::Object(map) => {
                for (key, value) in map {
                    if !set(&mut report, &format!("{name}.{key}"), value.as_f64()?) {
                        return None;
                    }
                }
            }
            // A number of requests that nothing looks at, since it has no fractions.
            _ if name == "rps" => {}
            value => {
                if !set(&mut report, &name, value.as_f64()?) {
                    return None;
                }
            }
        }
    }
    Some(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn config() -> ClientSideWeightedRoundRobin {
        ClientSideWeightedRoundRobin {
            blackout_period: Duration::from_secs(10),
            weight_expiration_period: Duration::from_secs(60),
            weight_update_period: Duration::from_secs(1),
            error_utilization_penalty: 1.0,
            metric_names: vec!["named_metrics.queue".into()],
            slow_start: None,
        }
    }

    fn weight(name: HeaderName, value: &str) -> Option<u32> {
        let headers = [(name, HeaderValue::from_str(value).unwrap())].into_iter().collect();
        reported(&headers, &config())
    }

    #[test]
    fn formats() {
        for (value, want) in [
            ("TEXT rps_fractional=100, cpu_utilization=0.5", Some(200)),
            ("TEXT rps_fractional:100,application_utilization:0.25,cpu_utilization:0.5", Some(400)),
            ("TEXT rps_fractional=100,cpu_utilization=0.5,named_metrics.queue=0.8", Some(125)),
            ("TEXT rps_fractional=100,cpu_utilization=0.5,eps=50", Some(100)),
            ("TEXT rps_fractional=0,cpu_utilization=0.5", None),
            ("TEXT rps_fractional=100", None),
            ("TEXT rps_fractional=100,cpu_utilization=0.5,cpu_utilization=0.5", None),
            ("TEXT rps_fractional=NaN,cpu_utilization=0.5", None),
            ("TEXT nonsense=1", None),
            ("JSON {\"rpsFractional\": 100, \"cpu_utilization\": 0.5}", Some(200)),
            ("JSON {\"rps_fractional\": 100, \"namedMetrics\": {\"queue\": 1}}", Some(100)),
            ("JSON [1]", None),
            ("rps_fractional=100", None),
        ] {
            assert_eq!(weight(HEADER, value), want, "{value}");
        }
        let report = OrcaLoadReport { rps_fractional: 10.0, cpu_utilization: 0.1, ..OrcaLoadReport::default() };
        let bytes = STANDARD.encode(report.encode_to_vec());
        assert_eq!((weight(BINARY_HEADER, &bytes), weight(HEADER, &format!("BIN {bytes}"))), (Some(100), Some(100)));
        assert_eq!(weight(BINARY_HEADER, "??"), None);
    }

    #[test]
    fn weights_come_and_go() {
        let reports: [Report; 4] = Default::default();
        reports[0].set(10, 1000);
        reports[1].set(30, 1000);
        let at = |now| weights(&config(), reports.iter(), now);
        assert_eq!(at(5000), [1, 1, 1, 1]);
        assert_eq!(at(11_000), [10, 30, 20, 20]);
        reports[0].set(50, 40_000);
        assert_eq!(at(70_000), [50, 50, 50, 50]);
        // Reports that begin again have to come for a while again.
        reports[1].set(30, 71_000);
        assert_eq!(at(72_000), [50, 50, 50, 50]);
        assert_eq!(at(82_000), [50, 30, 40, 40]);
    }
}
