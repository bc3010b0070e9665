//! When to connect again: exponential back-off with full jitter, as Envoy schedules its streams.
//!
//! Invariant: the same seed gives the same delays.

use std::time::Duration;

/// The bounds of the delays; Envoy's `retry_back_off` of a gRPC service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackoffOptions {
    /// The bound of the first delay.
    pub base: Duration,
    /// The bound that later delays grow to.
    pub max: Duration,
}

impl Default for BackoffOptions {
    fn default() -> Self {
        Self { base: Duration::from_millis(500), max: Duration::from_secs(30) }
    }
}

/// Delays, each drawn from zero to a bound that doubles.
#[derive(Debug)]
pub(super) struct Backoff {
    options: BackoffOptions,
    bound: Duration,
    random: fastrand::Rng,
}

impl Backoff {
    pub(super) fn new(options: BackoffOptions, seed: u64) -> Self {
        Self { options, bound: options.base, random: fastrand::Rng::with_seed(seed) }
    }

    /// The next delay, shorter than its bound.
    pub(super) fn next(&mut self) -> Duration {
        let bound = u64::try_from(self.bound.min(self.options.max).as_millis()).unwrap_or(u64::MAX);
        self.bound = self.bound.saturating_mul(2).min(self.options.max);
        Duration::from_millis(self.random.u64(0..bound.max(1)))
    }

    /// The stream was useful: the next delay is a short one.
    pub(super) fn reset(&mut self) {
        self.bound = self.options.base;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_bound_and_start_over() {
        let ms = Duration::from_millis;
        for seed in 0..50 {
            let mut backoff = Backoff::new(BackoffOptions::default(), seed);
            for bound in [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
                assert!(backoff.next() < ms(bound), "seed {seed}");
            }
            backoff.reset();
            assert!(backoff.next() < ms(500), "seed {seed}");
        }
        let delays = |seed| {
            let mut backoff = Backoff::new(BackoffOptions::default(), seed);
            (0..5).map(|_| backoff.next()).collect::<Vec<_>>()
        };
        assert_eq!(delays(7), delays(7));
        assert_ne!(delays(7), delays(8));
    }
}
