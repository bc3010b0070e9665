//! A distribution of values in logarithmic buckets: 90 for each power of ten, as libcircllhist has them.
//!
//! Written by one thread, read by the control thread. Buckets are allocated with the first value of their power of ten, so
//! that the many histograms of a large configuration that never see a value cost nearly nothing.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Powers of ten that are told apart: values from 10^12 on count in the last bucket.
const DECADES: usize = 12;

/// What a histogram's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Milliseconds,
    Microseconds,
    Bytes,
    Percent,
    Unspecified,
}

/// A distribution of values; allocated on the first value.
#[derive(Debug)]
pub struct Histogram {
    pub unit: Unit,
    data: OnceLock<Box<Data>>,
}

#[derive(Debug, Default)]
struct Data {
    zeros: AtomicU64,
    sum: AtomicU64,
    decades: [OnceLock<Box<[AtomicU64; 90]>>; DECADES],
}

impl Histogram {
    pub const fn new(unit: Unit) -> Self {
        Self { unit, data: OnceLock::new() }
    }

    /// Records one value.
    pub fn record(&self, value: u64) {
        let data = self.data.get_or_init(Box::default);
        data.sum.store(data.sum.load(Relaxed).wrapping_add(value), Relaxed);
        let bucket = match position(value) {
            None => &data.zeros,
            Some((decade, index)) => {
                let buckets = data.decades[decade].get_or_init(|| Box::new([const { AtomicU64::new(0) }; 90]));
                &buckets[index]
            }
        };
        bucket.store(bucket.load(Relaxed) + 1, Relaxed);
    }

    /// What was recorded so far.
    pub fn read(&self) -> Distribution {
        let mut out = Distribution::default();
        let Some(data) = self.data.get() else { return out };
        out.sum = data.sum.load(Relaxed) as f64;
        let zeros = data.zeros.load(Relaxed);
        if zeros > 0 {
            out.buckets.push(Bucket { low: 0.0, width: 0.0, count: zeros });
        }
        for (decade, buckets) in data.decades.iter().enumerate() {
            for (index, count) in buckets.get().into_iter().flat_map(|buckets| buckets.iter().enumerate()) {
                let count = count.load(Relaxed);
                if count > 0 {
                    // 1 to 9 fall into buckets a tenth wide, the first of which starts at the value itself.
                    let mantissa = index as f64 + 10.0;
                    let (low, width) = match decade {
                        0 => (mantissa / 10.0, 0.1),
                        _ => (mantissa * 10f64.powi(decade as i32 - 1), 10f64.powi(decade as i32 - 1)),
                    };
                    out.buckets.push(Bucket { low, width, count });
                }
            }
        }
        out
    }

    /// True if it ever saw a value.
    pub fn is_used(&self) -> bool {
        self.data.get().is_some()
    }
}

/// The power of ten of a value, and its bucket in there; `None` for 0.
fn position(value: u64) -> Option<(usize, usize)> {
    let exponent = value.checked_ilog10()?;
    let decade = (exponent as usize).min(DECADES - 1);
    // Two digits of the value.
    let mantissa = if exponent == 0 { value * 10 } else { value / 10u64.pow(exponent - 1) };
    Some((decade, if exponent as usize >= DECADES { 89 } else { mantissa as usize - 10 }))
}

/// Values of a histogram, at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    /// From the lowest on; none is empty.
    pub buckets: Vec<Bucket>,
    /// Of all values.
    pub sum: f64,
}

/// A range of values: from `low` on, `width` wide.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    pub low: f64,
    pub width: f64,
    pub count: u64,
}

/// The quantiles that the admin API shows.
pub const QUANTILES: [f64; 10] = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1.0];

/// Upper bounds of the buckets that the admin API shows, unless the bootstrap says others.
pub const DEFAULT_BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

impl Distribution {
    /// Number of values.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.count).sum()
    }

    /// The value at quantile `q` (0 to 1); NaN if there are no values. Within a bucket, values count as evenly spread.
    pub fn quantile(&self, q: f64) -> f64 {
        let count = self.count();
        if count == 0 {
            return f64::NAN;
        }
        // The rank of the value that is looked for, from 1.
        let rank = ((q * count as f64).ceil() as u64).clamp(1, count);
        let mut below = 0;
        for bucket in &self.buckets {
            if below + bucket.count >= rank {
                return bucket.low + bucket.width * (rank - below) as f64 / (bucket.count + 1) as f64;
            }
            below += bucket.count;
        }
        f64::NAN
    }

    /// Number of values up to `bound`; the bucket that starts at the bound counts as a whole.
    pub fn count_up_to(&self, bound: f64) -> u64 {
        self.buckets.iter().filter(|bucket| bucket.low <= bound).map(|bucket| bucket.count).sum()
    }

    /// Adds what another writer recorded.
    pub fn add(&mut self, other: &Self) {
        self.sum += other.sum;
        self.buckets.extend_from_slice(&other.buckets);
        self.buckets.sort_by(|a, b| a.low.total_cmp(&b.low));
        self.buckets.dedup_by(|next, bucket| {
            let same = next.low == bucket.low;
            if same {
                bucket.count += next.count;
            }
            same
        });
    }

    /// What came since `before`, an earlier moment of the same histogram.
    pub fn since(&self, before: &Self) -> Self {
        let earlier = |low: f64| before.buckets.iter().find(|b| b.low == low).map_or(0, |bucket| bucket.count);
        let buckets = self.buckets.iter().filter_map(|bucket| {
            let count = bucket.count.saturating_sub(earlier(bucket.low));
            Some(Bucket { count, ..*bucket }).filter(|_| count > 0)
        });
        Self { buckets: buckets.collect(), sum: self.sum - before.sum }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[u64]) -> Distribution {
        let histogram = Histogram::new(Unit::Milliseconds);
        for value in values {
            histogram.record(*value);
        }
        histogram.read()
    }

    #[test]
    fn quantiles_are_envoys() {
        let d = of(&[1, 2, 7, 10]);
        let quantiles: Vec<f64> = QUANTILES.iter().map(|q| d.quantile(*q)).collect();
        assert_eq!(quantiles, [1.05, 1.05, 2.05, 7.05, 10.5, 10.5, 10.5, 10.5, 10.5, 10.5]);
        let d = of(&[3, 3, 7, 11]);
        assert_eq!((d.quantile(0.0), d.quantile(0.5)), (3.0 + 0.1 / 3.0, 3.0 + 0.2 / 3.0));
        assert_eq!(of(&[0, 0]).quantile(1.0), 0.0);
        assert!(of(&[]).quantile(0.5).is_nan());
    }

    #[test]
    fn buckets_count_and_add_up() {
        let mut d = of(&[0, 1, 2, 7, 10, 35, 999, 1_000_000_000_000_000]);
        assert_eq!((d.count(), d.count_up_to(0.5), d.count_up_to(1.0), d.count_up_to(10.0)), (8, 1, 2, 5));
        assert_eq!(d.buckets[6], Bucket { low: 990.0, width: 10.0, count: 1 });
        let before = d.clone();
        d.add(&of(&[7, 100]));
        assert_eq!(d.since(&before), of(&[7, 100]));
    }
}
