//! Stats as `/stats` prints them: lines of text, and JSON.
//!
//! Called by the admin API with stats already in their order.

use super::stats::{DEFAULT_BOUNDS, Distribution, QUANTILES, Stat, StatValue};
use serde_json::{Value, json};
use std::fmt::Write as _;
use weft_config::bootstrap::HistogramBuckets;

/// How histograms are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistogramView {
    /// Quantiles.
    Summary,
    /// Buckets that count all values up to a bound.
    Cumulative,
    /// Buckets that count the values between two bounds.
    Disjoint,
    /// All there is.
    Detailed,
}

/// The bounds of the buckets that histograms are shown with.
#[derive(Clone, Debug, Default)]
pub struct Bounds(Vec<HistogramBuckets>);

impl Bounds {
    /// Those of a bootstrap; the first that matches counts.
    pub fn new(settings: &[HistogramBuckets]) -> Self {
        Self(settings.to_vec())
    }

    /// Upper bounds for the histogram of that name.
    pub fn of(&self, name: &str) -> &[f64] {
        let matching = self.0.iter().find(|setting| setting.matcher.matches(name));
        matching.map(|setting| &setting.buckets[..]).filter(|bounds| !bounds.is_empty()).unwrap_or(&DEFAULT_BOUNDS)
    }
}

/// Prints one stat a line.
pub fn print(stats: &[Stat], bounds: &Bounds, view: HistogramView) -> String {
    let mut out = String::new();
    for Stat { name, value } in stats {
        // Writing to a string cannot fail.
        let _ = match value {
            StatValue::Text(text) => writeln!(out, "{name}: \"{text}\""),
            StatValue::Counter(n) | StatValue::Gauge(n) => writeln!(out, "{name}: {n}"),
            StatValue::Histogram(values) if values.0.buckets.is_empty() => writeln!(out, "{name}: No recorded values"),
            StatValue::Histogram(values) => match view {
                HistogramView::Summary => writeln!(out, "{name}: {}", summary(values)),
                HistogramView::Cumulative | HistogramView::Disjoint => {
                    let (all, last) =
                        (counts(&values.0, bounds.of(name), view), counts(&values.1, bounds.of(name), view));
                    let buckets = all
                        .iter()
                        .zip(&last)
                        .map(|((bound, all), (_, last))| format!("B{}({last},{all})", six_digits(*bound)));
                    writeln!(out, "{name}: {}", buckets.collect::<Vec<_>>().join(" "))
                }
                HistogramView::Detailed => writeln!(
                    out,
                    "{name}:\n  totals={}\n  intervals={}\n  summary={}",
                    details(&values.0),
                    details(&values.1),
                    summary(values)
                ),
            },
        };
    }
    out
}

fn summary((all, last): &(Distribution, Distribution)) -> String {
    let quantile = |q: f64| format!("P{}({},{})", percent(q), number(last.quantile(q)), number(all.quantile(q)));
    QUANTILES.map(quantile).join(" ")
}

fn details(values: &Distribution) -> String {
    let bucket = |b: &super::stats::Bucket| format!("{},{}:{}", six_digits(b.low), six_digits(b.width), b.count);
    values.buckets.iter().map(bucket).collect::<Vec<_>>().join(", ")
}

fn counts(values: &Distribution, bounds: &[f64], view: HistogramView) -> Vec<(f64, u64)> {
    let mut below = 0;
    let count = |bound: &f64| {
        let up_to = values.count_up_to(*bound);
        let between = up_to - below;
        below = up_to;
        (*bound, if view == HistogramView::Disjoint { between } else { up_to })
    };
    bounds.iter().map(count).collect()
}

/// Prints stats as one JSON object.
pub fn print_json(stats: &[Stat], bounds: &Bounds, view: HistogramView) -> Value {
    let mut out = Vec::with_capacity(stats.len());
    let mut histograms = Vec::new();
    for Stat { name, value } in stats {
        match value {
            StatValue::Text(text) => out.push(json!({ "name": name, "value": text })),
            StatValue::Counter(n) | StatValue::Gauge(n) => out.push(json!({ "name": name, "value": n })),
            StatValue::Histogram(values) => histograms.push(histogram_json(name, values, bounds, view)),
        }
    }
    if !histograms.is_empty() {
        let supported: Vec<Value> = QUANTILES.iter().map(|q| json_number(q * 100.0)).collect();
        out.push(match view {
            HistogramView::Summary => {
                json!({ "histograms": { "supported_quantiles": supported, "computed_quantiles": histograms } })
            }
            HistogramView::Detailed => {
                json!({ "histograms": { "supported_percentiles": supported, "details": histograms } })
            }
            HistogramView::Cumulative | HistogramView::Disjoint => json!({ "histograms": histograms }),
        });
    }
    json!({ "stats": out })
}

fn histogram_json(name: &str, values: &(Distribution, Distribution), bounds: &Bounds, view: HistogramView) -> Value {
    let (all, last) = values;
    let quantiles = || -> Vec<Value> {
        let quantile = |q: &f64| json!({ "cumulative": json_number(all.quantile(*q)), "interval": json_number(last.quantile(*q)) });
        QUANTILES.iter().map(quantile).collect()
    };
    let details = |values: &Distribution| -> Vec<Value> {
        let bucket = |b: &super::stats::Bucket| json!({ "lower_bound": json_number(b.low), "width": json_number(b.width), "count": b.count });
        values.buckets.iter().map(bucket).collect()
    };
    match view {
        HistogramView::Summary => json!({ "name": name, "values": quantiles() }),
        HistogramView::Detailed => {
            json!({ "name": name, "totals": details(all), "intervals": details(last), "percentiles": quantiles() })
        }
        HistogramView::Cumulative | HistogramView::Disjoint => {
            let bounds = bounds.of(name);
            let buckets = counts(all, bounds, view).into_iter().zip(counts(last, bounds, view));
            let bucket = |((bound, all), (_, last)): ((f64, u64), (f64, u64))| json!({ "upper_bound": json_number(bound), "interval": last, "cumulative": all });
            json!({ "name": name, "buckets": buckets.map(bucket).collect::<Vec<_>>() })
        }
    }
}

/// A whole number without a point; no number at all is null.
fn json_number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { Value::from(value as i64) } else { Value::from(value) }
}

/// As short as it goes without a loss.
fn number(value: f64) -> String {
    if value.is_nan() { "nan".to_owned() } else { value.to_string() }
}

/// A quantile as a percentage: `P99.5`.
fn percent(q: f64) -> String {
    number((q * 1000.0).round() / 10.0)
}

/// Six digits at most, as C's `%g`.
pub fn six_digits(value: f64) -> String {
    let exponent = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    if (-4..6).contains(&exponent) {
        let text = format!("{value:.*}", (5 - exponent).max(0) as usize);
        return if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text };
    }
    let text = format!("{value:.5e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let mantissa = mantissa.trim_end_matches('0').trim_end_matches('.');
    let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
    format!("{mantissa}e{sign}{digits:0>2}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::stats::{Histogram, Unit};

    fn histogram() -> [Stat; 1] {
        let time = Histogram::new(Unit::Milliseconds);
        for value in [1, 2, 7, 10] {
            time.record(value);
        }
        let values = Box::new((time.read(), Distribution::default()));
        [Stat { name: "h".into(), value: StatValue::Histogram(values) }]
    }

    #[test]
    fn lines_are_envoys() {
        let bounds = Bounds::default();
        let stats = [
            Stat { name: "t".into(), value: StatValue::Text("7".into()) },
            Stat { name: "c".into(), value: StatValue::Counter(3) },
            Stat { name: "n".into(), value: StatValue::Histogram(Box::default()) },
        ];
        assert_eq!(print(&stats, &bounds, HistogramView::Summary), "t: \"7\"\nc: 3\nn: No recorded values\n");
        let text = |view| print(&histogram(), &bounds, view);
        let summary = "P0(nan,1.05) P25(nan,1.05) P50(nan,2.05) P75(nan,7.05) P90(nan,10.5) P95(nan,10.5) \
            P99(nan,10.5) P99.5(nan,10.5) P99.9(nan,10.5) P100(nan,10.5)\n";
        assert_eq!(text(HistogramView::Summary), format!("h: {summary}"));
        assert_eq!(
            text(HistogramView::Detailed),
            format!("h:\n  totals=1,0.1:1, 2,0.1:1, 7,0.1:1, 10,1:1\n  intervals=\n  summary={summary}")
        );
        assert_eq!(
            text(HistogramView::Disjoint),
            "h: B0.5(0,0) B1(0,1) B5(0,1) B10(0,2) B25(0,0) B50(0,0) B100(0,0) B250(0,0) B500(0,0) B1000(0,0) \
             B2500(0,0) B5000(0,0) B10000(0,0) B30000(0,0) B60000(0,0) B300000(0,0) B600000(0,0) B1.8e+06(0,0) \
             B3.6e+06(0,0)\n"
        );
        assert!(text(HistogramView::Cumulative).starts_with("h: B0.5(0,0) B1(0,1) B5(0,2) B10(0,4) B25(0,4)"));
    }

    #[test]
    fn json_is_envoys() {
        let json = print_json(&histogram(), &Bounds::default(), HistogramView::Summary).to_string();
        let start = r#"{"stats":[{"histograms":{"supported_quantiles":[0,25,50,75,90,95,99,99.5,99.9,100],"computed_quantiles":[{"name":"h","values":[{"cumulative":1.05,"interval":null},"#;
        assert!(json.starts_with(start), "{json}");
        let json = print_json(&histogram(), &Bounds::default(), HistogramView::Detailed).to_string();
        assert!(json.contains(r#""totals":[{"lower_bound":1,"width":0.1,"count":1},"#), "{json}");
    }
}
