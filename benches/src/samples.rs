//! What was measured, by proxy and measure, and what is said of it: medians, spreads, ratios of the same round.

use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    /// Microseconds a request, HTTP/1.1 in a closed loop.
    CpuHttp1,
    /// Microseconds a request, HTTP/2 in a closed loop.
    CpuHttp2,
    /// Requests a second, HTTP/1.1 in a closed loop.
    RateHttp1,
    /// Requests a second, HTTP/2 in a closed loop.
    RateHttp2,
    /// Microseconds, at a fixed rate.
    P50,
    P99,
    /// Microseconds a request, at that rate.
    CpuFixed,
    /// Bytes, idle.
    Rss,
    Pss,
    /// Milliseconds from exec to the first response.
    Start,
    /// Microseconds a request, HTTP/1.1 in mTLS on both sides, connections kept.
    CpuMtls,
    /// Requests a second of that.
    RateMtls,
    /// Microseconds a connection with one request in it, mTLS; those to the backend are kept.
    CpuNew,
    /// Connections a second of that.
    RateNew,
    /// The same with a new connection to the backend too.
    CpuNewBoth,
    /// The same as `CpuNew` with the proxy's default groups.
    CpuNewDefault,
    /// Milliseconds from a push to the end of the first handshake with the new certificate.
    Rotation,
    /// Milliseconds a GiB that goes one way over TCP.
    CpuBulk,
    /// GiB a second of that.
    RateBulk,
    /// Microseconds an exchange of small messages over TCP.
    CpuSmall,
    /// Microseconds a TCP connection with one exchange.
    CpuChurn,
}

impl Measure {
    pub const ALL: [Self; 21] = [
        Self::CpuHttp1,
        Self::CpuHttp2,
        Self::RateHttp1,
        Self::RateHttp2,
        Self::P50,
        Self::P99,
        Self::CpuFixed,
        Self::Rss,
        Self::Pss,
        Self::Start,
        Self::CpuMtls,
        Self::RateMtls,
        Self::CpuNew,
        Self::RateNew,
        Self::CpuNewBoth,
        Self::CpuNewDefault,
        Self::Rotation,
        Self::CpuBulk,
        Self::RateBulk,
        Self::CpuSmall,
        Self::CpuChurn,
    ];

    /// Its name in the results file.
    pub fn key(self) -> &'static str {
        match self {
            Self::CpuHttp1 => "http1_cpu_us",
            Self::CpuHttp2 => "http2_cpu_us",
            Self::RateHttp1 => "http1_rps",
            Self::RateHttp2 => "http2_rps",
            Self::P50 => "fixed_rate_p50_us",
            Self::P99 => "fixed_rate_p99_us",
            Self::CpuFixed => "fixed_rate_cpu_us",
            Self::Rss => "idle_rss_bytes",
            Self::Pss => "idle_pss_bytes",
            Self::Start => "start_ms",
            Self::CpuMtls => "mtls_cpu_us",
            Self::RateMtls => "mtls_rps",
            Self::CpuNew => "mtls_new_cpu_us",
            Self::RateNew => "mtls_new_cps",
            Self::CpuNewBoth => "mtls_new_both_cpu_us",
            Self::CpuNewDefault => "mtls_new_default_cpu_us",
            Self::Rotation => "rotation_ms",
            Self::CpuBulk => "tcp_bulk_cpu_ms_per_gib",
            Self::RateBulk => "tcp_bulk_gib_per_s",
            Self::CpuSmall => "tcp_small_cpu_us",
            Self::CpuChurn => "tcp_churn_cpu_us",
        }
    }
}

/// One value a round, in the order of the rounds.
#[derive(Default)]
pub struct Samples {
    values: BTreeMap<(String, Measure), Vec<f64>>,
}

/// The middle of some values, and their extremes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Middle {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Samples {
    pub fn add(&mut self, name: &str, measure: Measure, value: f64) {
        self.values.entry((name.to_owned(), measure)).or_default().push(value);
    }

    /// By round.
    pub fn of(&self, name: &str, measure: Measure) -> &[f64] {
        self.values.get(&(name.to_owned(), measure)).map_or(&[], Vec::as_slice)
    }

    pub fn middle(&self, name: &str, measure: Measure) -> Option<Middle> {
        Middle::of(self.of(name, measure).to_vec())
    }

    /// `name` against `other`, each round by itself.
    pub fn ratio(&self, name: &str, other: &str, measure: Measure) -> Option<Middle> {
        let pairs = self.of(name, measure).iter().zip(self.of(other, measure));
        Middle::of(pairs.map(|(a, b)| a / b).collect())
    }
}

impl Middle {
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 };
        Some(Self { median, least, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_the_same_round() {
        let mut samples = Samples::default();
        // The machine was twice as slow in the second round: the ratio does not know.
        for (ours, theirs) in [(1.0, 4.0), (2.0, 8.0), (3.0, 10.0)] {
            samples.add("weft", Measure::CpuHttp1, ours);
            samples.add("envoy", Measure::CpuHttp1, theirs);
        }
        let ratio = samples.ratio("weft", "envoy", Measure::CpuHttp1).unwrap();
        assert_eq!((ratio.median, ratio.least, ratio.most), (0.25, 0.25, 0.3));
        assert_eq!(samples.ratio("weft", "nginx", Measure::CpuHttp1), None);
    }

    #[test]
    fn an_even_count_has_its_median_between() {
        assert_eq!(Middle::of(vec![4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
    }
}
