//! How fast requests may go out: Envoy's `rate_limit_settings`, a token bucket.

use std::time::{Duration, Instant};

/// A token bucket; one request costs one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimitOptions {
    /// The size of the bucket, which starts full.
    pub max_tokens: u32,
    /// Tokens a second; at least 0.05 are given, as in Envoy.
    pub fill_rate: f64,
}

impl Default for RateLimitOptions {
    fn default() -> Self {
        Self { max_tokens: 100, fill_rate: 10.0 }
    }
}

#[derive(Debug)]
pub(super) struct RateLimit {
    options: RateLimitOptions,
    tokens: f64,
    filled: Option<Instant>,
}

impl RateLimit {
    pub(super) fn new(options: RateLimitOptions) -> Self {
        let fill_rate = options.fill_rate.max(0.05);
        Self { options: RateLimitOptions { fill_rate, ..options }, tokens: f64::from(options.max_tokens), filled: None }
    }

    /// True if there is a token to take.
    pub(super) fn has_token(&mut self, now: Instant) -> bool {
        let passed = self.filled.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.filled = Some(now);
        let filled = self.tokens + passed.as_secs_f64() * self.options.fill_rate;
        self.tokens = filled.min(f64::from(self.options.max_tokens));
        self.tokens >= 1.0
    }

    pub(super) fn take(&mut self) {
        self.tokens = (self.tokens - 1.0).max(0.0);
    }

    /// When the next token is there.
    pub(super) fn ready_at(&self) -> Option<Instant> {
        let missing = (1.0 - self.tokens).max(0.0);
        Some(self.filled? + Duration::from_secs_f64(missing / self.options.fill_rate) + Duration::from_millis(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_empties_and_fills() {
        let start = Instant::now();
        let mut limit = RateLimit::new(RateLimitOptions { max_tokens: 2, fill_rate: 10.0 });
        for _ in 0..2 {
            assert!(limit.has_token(start));
            limit.take();
        }
        assert!(!limit.has_token(start));
        let ready = limit.ready_at().expect("used");
        assert!(ready - start < Duration::from_millis(110));
        assert!(limit.has_token(ready));
        limit.take();
        assert!(!limit.has_token(ready));
    }
}
