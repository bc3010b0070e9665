//! A bucket of tokens that all threads take from: exact, without a lock.
//!
//! Used by local rate limits. It is one number: the moment at which the bucket will be full again. A take moves that moment on,
//! and is refused if it would come to lie further ahead than the time that the whole bucket takes to fill. So tokens come
//! back continuously, none is ever made by rounding, and N tokens admit N.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};
use weft_config::rate_limit::TokenBucket as Config;

/// Time is counted in sixteenths of nanoseconds, shifted to the right where a bucket would not fit.
const FRACTION: u32 = 4;

/// The shared bucket.
#[derive(Debug)]
pub struct TokenBucket {
    /// In units after `start`.
    full_at: AtomicU64,
    start: Instant,
    /// What one token takes to come back.
    token: u64,
    /// What all take; at most 2^62.
    capacity: u64,
    shift: u32,
    max_tokens: u32,
    /// Tokens a second.
    rate: f64,
}

impl TokenBucket {
    /// A bucket that is full at `now`.
    pub fn new(config: &Config, now: Instant) -> Self {
        let Config { max_tokens, tokens_per_fill, fill_interval } = *config;
        let per_fill = u128::from(tokens_per_fill.max(1));
        let interval = fill_interval.as_nanos() << FRACTION;
        let (mut shift, most) = (0, 1 << 62);
        while (interval >> shift) / per_fill * u128::from(max_tokens) > most {
            shift += 1;
        }
        let token = ((interval >> shift) / per_fill).max(1) as u64;
        Self {
            full_at: AtomicU64::new(0),
            start: now,
            token,
            capacity: token.saturating_mul(u64::from(max_tokens)),
            shift,
            max_tokens,
            rate: f64::from(tokens_per_fill) / fill_interval.as_secs_f64().max(f64::MIN_POSITIVE),
        }
    }

    /// Takes `tokens`, all or none; true if they were there. Nobody can take none.
    pub fn take(&self, tokens: u64, now: Instant) -> bool {
        let now = self.units(now);
        let Some(cost) = self.token.checked_mul(tokens).filter(|cost| *cost <= self.capacity && tokens > 0) else {
            return false;
        };
        let taken = |full_at: u64| Some(full_at.max(now) + cost).filter(|full_at| full_at - now <= self.capacity);
        self.full_at.fetch_update(Relaxed, Relaxed, taken).is_ok()
    }

    /// Gives `tokens` back, up to a full bucket.
    pub fn give(&self, tokens: u64) {
        let back = self.token.saturating_mul(tokens);
        let _ = self.full_at.fetch_update(Relaxed, Relaxed, |full_at| Some(full_at.saturating_sub(back)));
    }

    pub fn max_tokens(&self) -> u32 {
        self.max_tokens
    }

    /// Whole tokens that are there.
    pub fn remaining(&self, now: Instant) -> u64 {
        self.available(now) / self.token
    }

    /// How long until there is a token; zero if there is one.
    pub fn next_token(&self, now: Instant) -> Duration {
        let missing = self.token.saturating_sub(self.available(now));
        Duration::from_nanos(missing.saturating_mul(1 << self.shift) >> FRACTION)
    }

    /// Tokens a second.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    fn available(&self, now: Instant) -> u64 {
        let debt = self.full_at.load(Relaxed).saturating_sub(self.units(now));
        self.capacity.saturating_sub(debt)
    }

    /// 36 years of them before they overflow.
    fn units(&self, now: Instant) -> u64 {
        ((now.saturating_duration_since(self.start).as_nanos() << FRACTION) >> self.shift) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn bucket(max_tokens: u32, tokens_per_fill: u32, fill_interval: Duration, now: Instant) -> TokenBucket {
        TokenBucket::new(&Config { max_tokens, tokens_per_fill, fill_interval }, now)
    }

    #[test]
    fn as_many_are_admitted_as_there_are_tokens() {
        let now = Instant::now();
        let day = Duration::from_secs(86_400);
        for (max, per_fill, interval) in [
            (1, 1, day),
            (7, 7, Duration::from_secs(60)),
            (3, 1_000_000, Duration::from_millis(50)),
            (100_000, 1, 365 * day),
            (12_345, u32::MAX, Duration::from_millis(50)),
        ] {
            let bucket = bucket(max, per_fill, interval, now);
            let admitted = (0..max + 10).filter(|_| bucket.take(1, now)).count();
            assert_eq!(admitted as u32, max, "{max} {per_fill} {interval:?}");
            assert_eq!(bucket.remaining(now), 0);
        }
        assert!(!bucket(0, 1, day, now).take(1, now));
    }

    #[test]
    fn tokens_come_back_one_by_one() {
        let start = Instant::now();
        let bucket = bucket(3, 3, Duration::from_secs(60), start);
        assert!(bucket.take(3, start));
        assert_eq!(bucket.next_token(start), Duration::from_secs(20));
        let later = start + Duration::from_millis(19_999);
        assert!(!bucket.take(1, later));
        let later = start + Duration::from_secs(20);
        assert!(bucket.take(1, later) && !bucket.take(1, later));
        let much_later = start + Duration::from_secs(3600);
        assert_eq!((bucket.remaining(much_later), bucket.next_token(much_later)), (3, Duration::ZERO));
        assert!(!bucket.take(4, much_later) && !bucket.take(0, much_later) && !bucket.take(u64::MAX, much_later));
        assert!(bucket.take(2, much_later));
        bucket.give(100);
        assert_eq!(bucket.remaining(much_later), 3);
    }

    #[test]
    fn threads_share_it_exactly() {
        let now = Instant::now();
        let bucket = Arc::new(bucket(10_000, 1, Duration::from_secs(86_400), now));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let bucket = bucket.clone();
                std::thread::spawn(move || (0..5_000).filter(|_| bucket.take(1, now)).count())
            })
            .collect();
        let admitted: usize = threads.into_iter().map(|thread| thread.join().expect("no panic")).sum();
        assert_eq!(admitted, 10_000);
    }
}
