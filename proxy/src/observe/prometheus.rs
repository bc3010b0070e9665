//! Stats in Prometheus' text format, with Envoy's names and labels.
//!
//! Called by the admin API. Stats of one name and kind stand together below one `# TYPE` line.

use super::{
    stats::{Distribution, QUANTILES, Stat, StatKind, StatValue},
    stats_text::Bounds,
    tags::{Tag, TagExtractors},
};
use std::{collections::BTreeMap, fmt::Write as _};

/// How histograms are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrometheusHistograms {
    /// Buckets that count all values up to a bound.
    Cumulative,
    /// Quantiles of the last flush interval.
    Summary,
}

/// The stats of one name without tags, each with its tags.
type Family<'a> = Vec<(Vec<Tag>, &'a Stat)>;

/// Prints `stats` by kind (counters, gauges, text, histograms) and name. Text has no number: it comes as a label if it comes.
pub fn print(
    stats: &[Stat],
    extractors: &TagExtractors,
    bounds: &Bounds,
    histograms: PrometheusHistograms,
    text_readouts: bool,
) -> String {
    // By kind and by name without tags; what has both in common in the order of the full names.
    let mut families: BTreeMap<(u8, String), Family<'_>> = BTreeMap::new();
    for stat in stats {
        let kind = match stat.value.kind() {
            StatKind::Counter => 0,
            StatKind::Gauge => 1,
            StatKind::Text if text_readouts => 2,
            StatKind::Text => continue,
            StatKind::Histogram => 3,
        };
        let (name, tags) = extractors.extract(&stat.name);
        families.entry((kind, name)).or_default().push((tags, stat));
    }
    let mut out = String::new();
    for ((kind, name), stats) in families {
        let name = format!("envoy_{}", sanitized(&name));
        let kind = match (kind, histograms) {
            (0, _) => "counter",
            (1 | 2, _) => "gauge",
            (_, PrometheusHistograms::Cumulative) => "histogram",
            (_, PrometheusHistograms::Summary) => "summary",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(out, "# TYPE {name} {kind}");
        for (tags, stat) in stats {
            let mut labels = labels(&tags);
            match &stat.value {
                StatValue::Counter(n) | StatValue::Gauge(n) => line(&mut out, &name, &labels, &n.to_string()),
                StatValue::Text(text) => {
                    if !labels.is_empty() {
                        labels.push(',');
                    }
                    let _ = write!(labels, "text_value=\"{}\"", escaped(text));
                    line(&mut out, &name, &labels, "0");
                }
                StatValue::Histogram(histogram) => match histograms {
                    PrometheusHistograms::Cumulative => {
                        buckets(&mut out, &name, &labels, &histogram.0, bounds.of(&stat.name));
                    }
                    PrometheusHistograms::Summary => summary(&mut out, &name, &labels, &histogram.1),
                },
            }
        }
    }
    out
}

fn buckets(out: &mut String, name: &str, labels: &str, values: &Distribution, bounds: &[f64]) {
    let comma = if labels.is_empty() { "" } else { "," };
    for bound in bounds {
        let labels = format!("{labels}{comma}le=\"{bound}\"");
        line(out, &format!("{name}_bucket"), &labels, &values.count_up_to(*bound).to_string());
    }
    line(out, &format!("{name}_bucket"), &format!("{labels}{comma}le=\"+Inf\""), &values.count().to_string());
    line(out, &format!("{name}_sum"), labels, &values.sum.to_string());
    line(out, &format!("{name}_count"), labels, &values.count().to_string());
}

fn summary(out: &mut String, name: &str, labels: &str, values: &Distribution) {
    let comma = if labels.is_empty() { "" } else { "," };
    for q in QUANTILES {
        let value = values.quantile(q);
        let value = if value.is_nan() { "nan".to_owned() } else { value.to_string() };
        line(out, name, &format!("{labels}{comma}quantile=\"{q}\""), &value);
    }
    line(out, &format!("{name}_sum"), labels, &values.sum.to_string());
    line(out, &format!("{name}_count"), labels, &values.count().to_string());
}

/// A line with its labels in braces; the braces stand even if there is no label.
fn line(out: &mut String, name: &str, labels: &str, value: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{name}{{{labels}}} {value}");
}

fn labels(tags: &[Tag]) -> String {
    let labels = tags.iter().map(|tag| format!("{}=\"{}\"", sanitized(&tag.name), escaped(&tag.value)));
    labels.collect::<Vec<_>>().join(",")
}

/// Prometheus' names have letters, digits and underscores.
fn sanitized(name: &str) -> String {
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) { format!("_{name}") } else { name }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{
        stats::{Histogram, Unit},
        tags::default_extractors,
    };

    #[test]
    fn families_stand_together_with_their_labels() {
        let time = Histogram::new(Unit::Milliseconds);
        time.record(3);
        time.record(700);
        let stat = |name: &str, value| Stat { name: name.into(), value };
        let stats = [
            stat("cluster.a.version_text", StatValue::Text("1\"".into())),
            stat("cluster.a.upstream_rq_200", StatValue::Counter(2)),
            stat("cluster.b.upstream_rq_200", StatValue::Counter(1)),
            stat("cluster_manager.active_clusters", StatValue::Gauge(2)),
            stat("cluster.a.time", StatValue::Histogram(Box::new((time.read(), Distribution::default())))),
        ];
        let bounds = Bounds::new(&[]);
        let text = print(&stats, default_extractors(), &bounds, PrometheusHistograms::Cumulative, true);
        let start = "# TYPE envoy_cluster_upstream_rq counter\n\
            envoy_cluster_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"a\"} 2\n\
            envoy_cluster_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"b\"} 1\n\
            # TYPE envoy_cluster_manager_active_clusters gauge\n\
            envoy_cluster_manager_active_clusters{} 2\n\
            # TYPE envoy_cluster_version_text gauge\n\
            envoy_cluster_version_text{envoy_cluster_name=\"a\",text_value=\"1\\\"\"} 0\n\
            # TYPE envoy_cluster_time histogram\n\
            envoy_cluster_time_bucket{envoy_cluster_name=\"a\",le=\"0.5\"} 0\n";
        assert!(text.starts_with(start), "{text}");
        let end = "envoy_cluster_time_bucket{envoy_cluster_name=\"a\",le=\"3600000\"} 2\n\
            envoy_cluster_time_bucket{envoy_cluster_name=\"a\",le=\"+Inf\"} 2\n\
            envoy_cluster_time_sum{envoy_cluster_name=\"a\"} 703\n\
            envoy_cluster_time_count{envoy_cluster_name=\"a\"} 2\n";
        assert!(text.ends_with(end), "{text}");
        let text = print(&stats, default_extractors(), &bounds, PrometheusHistograms::Summary, false);
        assert!(text.contains("envoy_cluster_time{envoy_cluster_name=\"a\",quantile=\"0.995\"} nan\n"), "{text}");
    }
}
