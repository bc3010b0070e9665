//! The buckets of one configuration, shared by all workers: which of them a request takes tokens from, and whether they are
//! there.
//!
//! Nothing is locked but where a descriptor with a wildcard sees a value for the first time.

use crate::{base::token_bucket::TokenBucket, route::Descriptor};
use arc_swap::ArcSwap;
use foldhash::HashMap;
use smallvec::SmallVec;
use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    ops::Deref,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};
use weft_config::rate_limit::{LocalDescriptor, LocalRateLimit, TokenBucket as BucketConfig};

/// How many values one map of a wildcard holds: it is copied for each new one. There are more maps where there may be
/// more values, each with its share of them.
const PER_MAP: usize = 256;

/// The buckets.
pub struct Limiter {
    default: DefaultBucket,
    /// By a descriptor's bytes.
    fixed: HashMap<Box<[u8]>, Arc<Bucket>>,
    wildcards: Vec<Wildcard>,
    always_default: bool,
}

enum DefaultBucket {
    None,
    /// A bucket that never has a token.
    Deny,
    Bucket(Arc<Bucket>),
}

pub struct Bucket {
    tokens: TokenBucket,
    /// Counts, and refuses nothing.
    pub shadow: bool,
    /// When it was last asked, for wildcards: nanoseconds after their start.
    used: AtomicU64,
}

impl Deref for Bucket {
    type Target = TokenBucket;

    fn deref(&self) -> &TokenBucket {
        &self.tokens
    }
}

impl Bucket {
    fn new(config: &BucketConfig, shadow: bool, now: Instant) -> Arc<Self> {
        Arc::new(Self { tokens: TokenBucket::new(config, now), shadow, used: AtomicU64::new(0) })
    }
}

/// Whether a request may pass.
pub struct Verdict<'a> {
    pub allowed: bool,
    /// The one that refused, or else the first that was asked.
    pub bucket: Option<Held<'a>>,
    /// `x-ratelimit-*`, as the descriptor says.
    pub headers: Option<bool>,
}

pub enum Held<'a> {
    Fixed(&'a Arc<Bucket>),
    Dynamic(Arc<Bucket>),
}

impl Deref for Held<'_> {
    type Target = Arc<Bucket>;

    fn deref(&self) -> &Arc<Bucket> {
        match self {
            Self::Fixed(bucket) => bucket,
            Self::Dynamic(bucket) => bucket,
        }
    }
}

type Key = SmallVec<[u8; 128]>;

impl Limiter {
    pub fn new(config: &LocalRateLimit, now: Instant) -> Self {
        let (wild, fixed): (Vec<_>, Vec<_>) =
            config.descriptors.iter().partition(|descriptor| descriptor.entries.iter().any(|(_, v)| v.is_empty()));
        Self {
            default: match &config.token_bucket {
                None => DefaultBucket::None,
                Some(bucket) if bucket.max_tokens == 0 => DefaultBucket::Deny,
                Some(bucket) => DefaultBucket::Bucket(Bucket::new(bucket, false, now)),
            },
            fixed: fixed
                .into_iter()
                .map(|descriptor| {
                    let key = key(descriptor.entries.iter().map(|(key, value)| (key.as_str(), value.as_bytes())));
                    (key.into_vec().into(), Bucket::new(&descriptor.token_bucket, descriptor.shadow_mode, now))
                })
                .collect(),
            wildcards: wild
                .into_iter()
                .map(|descriptor| Wildcard::new(descriptor.clone(), config.max_dynamic_descriptors as usize, now))
                .collect(),
            always_default: config.always_consume_default_token_bucket,
        }
    }

    /// True if descriptors make a difference.
    pub fn has_descriptors(&self) -> bool {
        !self.fixed.is_empty() || !self.wildcards.is_empty()
    }

    /// Takes the tokens that a request needs. What fills slowest is asked first; a bucket that refuses ends it, unless it is a
    /// shadow, and what was taken until then stays taken.
    pub fn check(&self, descriptors: &[Descriptor<'_>], now: Instant) -> Verdict<'_> {
        let mut matched: SmallVec<[(Held<'_>, &Descriptor<'_>); 4]> = SmallVec::new();
        if self.has_descriptors() {
            let found = |descriptor| Some((self.bucket(descriptor, now)?, descriptor));
            matched.extend(descriptors.iter().filter_map(found));
            if matched.len() > 1 {
                matched.sort_by(|(a, _), (b, _)| a.rate().total_cmp(&b.rate()));
            }
        }
        let mut shadow = None;
        for at in 0..matched.len() {
            let (bucket, descriptor) = &matched[at];
            if let (true, Some(hits)) = (descriptor.is_negative, descriptor.hits) {
                bucket.give(hits);
            } else if !bucket.take(descriptor.hits.unwrap_or(1), now) {
                if bucket.shadow {
                    shadow.get_or_insert(at);
                    continue;
                }
                let headers = descriptor.headers;
                return Verdict { allowed: false, bucket: Some(matched.swap_remove(at).0), headers };
            }
        }
        let first = matched.into_iter().nth(shadow.unwrap_or(0));
        if first.is_none() || self.always_default {
            match &self.default {
                DefaultBucket::None => {}
                DefaultBucket::Deny => return Verdict { allowed: false, bucket: None, headers: None },
                DefaultBucket::Bucket(bucket) => {
                    let allowed = bucket.take(1, now);
                    if !allowed || first.is_none() {
                        return Verdict { allowed, bucket: Some(Held::Fixed(bucket)), headers: None };
                    }
                }
            }
        }
        let (bucket, headers) = first.map(|(bucket, descriptor)| (bucket, descriptor.headers)).unzip();
        Verdict { allowed: shadow.is_none(), bucket, headers: headers.flatten() }
    }

    fn bucket(&self, descriptor: &Descriptor<'_>, now: Instant) -> Option<Held<'_>> {
        let key = key(descriptor.entries.iter().map(|(key, value)| (*key, &**value)));
        if let Some(bucket) = self.fixed.get(&key[..]) {
            return Some(Held::Fixed(bucket));
        }
        let wildcard = self.wildcards.iter().find(|wildcard| wildcard.matches(descriptor))?;
        Some(Held::Dynamic(wildcard.bucket(&key, now)))
    }
}

/// A descriptor's entries as bytes, each with its length before it, so that no two descriptors have the same.
fn key<'a>(entries: impl Iterator<Item = (&'a str, &'a [u8])>) -> Key {
    let mut bytes = Key::new();
    for (key, value) in entries {
        for part in [key.as_bytes(), value] {
            bytes.extend_from_slice(&(part.len() as u32).to_ne_bytes());
            bytes.extend_from_slice(part);
        }
    }
    bytes
}

type Buckets = std::collections::HashMap<Box<[u8]>, Arc<Bucket>, foldhash::fast::RandomState>;

/// A descriptor with values that may be any: a bucket for each, the least recently asked of which go.
struct Wildcard {
    descriptor: LocalDescriptor,
    start: Instant,
    hash: RandomState,
    maps: Box<[Map]>,
    /// Of one map.
    most: usize,
}

#[derive(Default)]
struct Map {
    buckets: ArcSwap<Buckets>,
    /// Held by who puts something in.
    changing: Mutex<()>,
}

impl Wildcard {
    fn new(descriptor: LocalDescriptor, most: usize, now: Instant) -> Self {
        let maps = most.div_ceil(PER_MAP).max(1);
        Self {
            descriptor,
            start: now,
            hash: RandomState::new(),
            maps: (0..maps).map(|_| Map::default()).collect(),
            most: most.div_ceil(maps).max(1),
        }
    }

    fn matches(&self, descriptor: &Descriptor<'_>) -> bool {
        let entries = &self.descriptor.entries;
        entries.len() == descriptor.entries.len()
            && entries
                .iter()
                .zip(&descriptor.entries)
                .all(|((key, value), (of, given))| key == of && (value.is_empty() || value.as_bytes() == &**given))
    }

    fn bucket(&self, key: &[u8], now: Instant) -> Arc<Bucket> {
        let Self { maps, descriptor, most, .. } = self;
        let map = if maps.len() == 1 { &maps[0] } else { &maps[self.hash.hash_one(key) as usize % maps.len()] };
        let used = now.saturating_duration_since(self.start).as_nanos() as u64;
        let asked = |bucket: &Arc<Bucket>| {
            bucket.used.store(used, Relaxed);
            bucket.clone()
        };
        if let Some(bucket) = map.buckets.load().get(key) {
            return asked(bucket);
        }
        let _changing = map.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = map.buckets.load();
        if let Some(bucket) = before.get(key) {
            return asked(bucket);
        }
        let mut buckets = Buckets::clone(&before);
        while buckets.len() >= *most {
            let oldest = buckets.iter().min_by_key(|(_, bucket)| bucket.used.load(Relaxed));
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else { break };
            buckets.remove(&oldest);
        }
        let bucket = Bucket::new(&descriptor.token_bucket, descriptor.shadow_mode, now);
        buckets.insert(key.into(), bucket.clone());
        map.buckets.store(Arc::new(buckets));
        asked(&bucket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use weft_config::Context;
    use weft_control_api::{
        Duration as PbDuration,
        envoy::{
            extensions::{
                common::ratelimit::v3::{LocalRateLimitDescriptor, rate_limit_descriptor::Entry},
                filters::http::local_ratelimit::v3 as pb,
            },
            r#type::v3 as types,
        },
    };

    fn bucket(max_tokens: u32) -> Option<types::TokenBucket> {
        let fill_interval = Some(PbDuration { seconds: 60, nanos: 0 });
        Some(types::TokenBucket { max_tokens, tokens_per_fill: Some(max_tokens.max(1)), fill_interval })
    }

    fn limiter(default: Option<u32>, descriptors: &[(&str, &str, u32)], more: pb::LocalRateLimit) -> Limiter {
        let descriptors = descriptors.iter().map(|(key, value, tokens)| LocalRateLimitDescriptor {
            entries: vec![Entry { key: key.to_string(), value: value.to_string() }],
            token_bucket: bucket(*tokens),
            shadow_mode: false,
        });
        let token_bucket = default.and_then(bucket);
        let config = pb::LocalRateLimit { descriptors: descriptors.collect(), token_bucket, ..more };
        let mut cx = Context::new();
        let config = LocalRateLimit::from_proto(config, false, &mut cx);
        Limiter::new(&cx.finish(config).expect("valid").0, Instant::now())
    }

    fn asks(limiter: &Limiter, of: &[(&'static str, &'static str)], now: Instant) -> bool {
        let descriptor = |(key, value): &(&'static str, &'static str)| Descriptor {
            entries: [(*key, value.as_bytes().into())].into_iter().collect(),
            ..Descriptor::default()
        };
        limiter.check(&of.iter().map(descriptor).collect::<Vec<_>>(), now).allowed
    }

    #[test]
    fn a_descriptor_and_the_default_are_both_asked() {
        let limiter = limiter(Some(4), &[("client", "a", 2), ("client", "b", 9)], Default::default());
        let now = Instant::now();
        let a = || asks(&limiter, &[("client", "a")], now);
        assert_eq!([a(), a(), a()], [true, true, false]);
        // The refusal took nothing of the default bucket.
        let b = || asks(&limiter, &[("client", "b")], now);
        assert_eq!([b(), b(), b()], [true, true, false]);
        assert!(!asks(&limiter, &[], now));
    }

    #[test]
    fn the_slowest_is_asked_first() {
        let limiter = limiter(None, &[("a", "1", 5), ("b", "1", 1)], Default::default());
        let now = Instant::now();
        let both = || asks(&limiter, &[("a", "1"), ("b", "1")], now);
        assert_eq!([both(), both(), both()], [true, false, false]);
        let left = (0..9).filter(|_| asks(&limiter, &[("a", "1")], now)).count();
        assert_eq!(left, 4);
        assert!(asks(&limiter, &[("a", "2")], now));
    }

    #[test]
    fn wildcards_forget_what_was_not_asked_for_longest() {
        let more = pb::LocalRateLimit { max_dynamic_descriptors: Some(2), ..Default::default() };
        let limiter = limiter(None, &[("k", "", 1)], more);
        let mut now = Instant::now();
        let mut ask = |value: &'static str| {
            now += Duration::from_nanos(1);
            asks(&limiter, &[("k", value)], now)
        };
        let all: Vec<_> = ["a", "a", "b", "b", "a", "c", "c", "a", "a", "b"].map(&mut ask).into();
        assert_eq!(all, [true, false, true, false, false, true, false, false, false, true]);
    }

    #[test]
    fn no_tokens_are_for_nobody() {
        let now = Instant::now();
        assert!(!asks(&limiter(Some(0), &[], Default::default()), &[], now));
        assert!(!asks(&limiter(Some(5), &[("a", "1", 0)], Default::default()), &[("a", "1")], now));
        assert!(asks(&limiter(None, &[], Default::default()), &[], now));
    }
}
