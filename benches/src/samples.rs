//! What was measured, by proxy and figure, and what is said of it: medians, spreads, ratios of the same round.

use std::collections::BTreeMap;

/// One value a round, in the order of the rounds.
#[derive(Default)]
pub struct Samples {
    values: BTreeMap<(String, String), Vec<f64>>,
}

/// The middle of some values, and their extremes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Middle {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Samples {
    /// `key` is a row's name and a figure's key: `http1-small.cpu`.
    pub fn add(&mut self, peer: &str, key: impl Into<String>, value: f64) {
        self.values.entry((peer.to_owned(), key.into())).or_default().push(value);
    }

    /// By round.
    pub fn of(&self, peer: &str, key: &str) -> &[f64] {
        self.values.get(&(peer.to_owned(), key.to_owned())).map_or(&[], Vec::as_slice)
    }

    /// All of a proxy, by key.
    pub fn all(&self, peer: &str) -> impl Iterator<Item = (&str, &[f64])> {
        self.values.iter().filter(move |((of, _), _)| of == peer).map(|((_, key), values)| (&**key, &**values))
    }

    pub fn middle(&self, peer: &str, key: &str) -> Option<Middle> {
        Middle::of(self.of(peer, key).to_vec())
    }

    /// `peer` against `other`, each round by itself.
    pub fn ratio(&self, peer: &str, other: &str, key: &str) -> Option<Middle> {
        let pairs = self.of(peer, key).iter().zip(self.of(other, key));
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
            samples.add("weft", "http1-small.cpu", ours);
            samples.add("envoy", "http1-small.cpu", theirs);
        }
        let ratio = samples.ratio("weft", "envoy", "http1-small.cpu").unwrap();
        assert_eq!((ratio.median, ratio.least, ratio.most), (0.25, 0.25, 0.3));
        assert_eq!(samples.ratio("weft", "nginx", "http1-small.cpu"), None);
    }

    #[test]
    fn an_even_count_has_its_median_between() {
        assert_eq!(Middle::of(vec![4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
    }
}
