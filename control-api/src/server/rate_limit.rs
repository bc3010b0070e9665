//! A rate limit service (RLS v3): answers whether a request is within the limits that its descriptors have.
//!
//! Served by `weft-control` beside the discovery services. `config` says which limits there are, in files that are watched;
//! `store` counts, here or in a Redis that several share. Invariant: a store that cannot be asked is an error to whoever asks,
//! never an answer, so that its own failure mode decides.

mod config;
mod redis;
mod store;

pub use config::{Limit, RateLimits};
pub use redis::RedisAddress;

use super::watch::Watch;
use crate::{
    Duration, Problem,
    envoy::{
        extensions::common::ratelimit::v3::RateLimitDescriptor,
        service::ratelimit::v3::{
            RateLimitRequest, RateLimitResponse,
            rate_limit_response::{self as answer, Code, DescriptorStatus, rate_limit::Unit},
        },
    },
};
use redis::Redis;
use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs,
    future::Future,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll},
    time::{SystemTime, UNIX_EPOCH},
};
use store::{Embedded, Hit, Store};
use tonic::{
    Status,
    body::Body,
    server::{Grpc, UnaryService},
};
use tonic_prost::ProstCodec;

/// The method that is served.
pub(super) const METHOD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
/// Bytes of a request.
const MOST: usize = 1 << 20;

/// The service: limits that may change, and a store.
pub struct RateLimitService {
    limits: RwLock<Arc<RateLimits>>,
    store: Store,
}

impl RateLimitService {
    /// Counts in this process.
    pub fn embedded() -> Self {
        Self { limits: RwLock::default(), store: Store::Embedded(Embedded::default()) }
    }

    /// Counts in a Redis. `tell` hears when the connection comes and goes.
    pub fn redis(address: RedisAddress, tell: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { limits: RwLock::default(), store: Store::Redis(Redis::start(address, Arc::new(tell))) }
    }

    /// What holds from now on. Counts stay.
    pub fn set_limits(&self, limits: RateLimits) {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(limits);
    }

    /// Answers a request at `now`.
    ///
    /// # Errors
    /// The request is none, or the store cannot be asked.
    pub async fn decide(&self, request: &RateLimitRequest, now: SystemTime) -> Result<RateLimitResponse, Status> {
        if request.domain.is_empty() || request.descriptors.is_empty() {
            return Err(Status::invalid_argument("a domain and descriptors are required"));
        }
        let now = now.duration_since(UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default();
        let all = self.limits.read().unwrap_or_else(PoisonError::into_inner).clone();
        let limits: Vec<Option<Arc<Limit>>> =
            request.descriptors.iter().map(|descriptor| limit_of(&all, &request.domain, descriptor)).collect();
        let replaced = |limit: &Limit| {
            !limit.name.is_empty() && limits.iter().flatten().any(|other| other.replaces.contains(&limit.name))
        };
        let counts = |limit: &Arc<Limit>| !limit.unlimited && !replaced(limit);
        let hits: Vec<Hit> = limits
            .iter()
            .zip(&request.descriptors)
            .filter_map(|(limit, descriptor)| {
                let limit = limit.as_ref().filter(|limit| counts(limit))?;
                Some(Hit {
                    key: key(&request.domain, descriptor, limit.unit),
                    window: limit.window(),
                    hits: hits(request, descriptor),
                })
            })
            .collect();
        let sums = self.store.add(&hits, now).await.map_err(Status::unavailable)?;
        let mut sums = sums.into_iter();
        let statuses: Vec<DescriptorStatus> = limits
            .iter()
            .map(|limit| match limit.as_ref().filter(|limit| !replaced(limit)) {
                None => DescriptorStatus { code: Code::Ok as i32, ..Default::default() },
                Some(limit) if limit.unlimited => {
                    DescriptorStatus { code: Code::Ok as i32, limit_remaining: u32::MAX, ..Default::default() }
                }
                Some(limit) => status(limit, sums.next().unwrap_or(0), now),
            })
            .collect();
        let over = statuses.iter().any(|status| status.code == Code::OverLimit as i32);
        let overall_code = if over { Code::OverLimit } else { Code::Ok } as i32;
        Ok(RateLimitResponse { overall_code, statuses, ..Default::default() })
    }
}

/// The configured limit, or the one that the request itself says.
fn limit_of(all: &RateLimits, domain: &str, descriptor: &RateLimitDescriptor) -> Option<Arc<Limit>> {
    let Some(own) = &descriptor.limit else { return all.find(domain, &descriptor.entries).cloned() };
    Some(Arc::new(Limit {
        name: String::new(),
        requests_per_unit: own.requests_per_unit,
        unit: Unit::try_from(own.unit).unwrap_or_default(),
        unlimited: false,
        shadow_mode: false,
        replaces: Vec::new(),
    }))
}

/// How much a descriptor counts: as it says, or as the request does, or once.
fn hits(request: &RateLimitRequest, descriptor: &RateLimitDescriptor) -> i64 {
    let hits = descriptor.hits_addend.unwrap_or(u64::from(request.hits_addend.max(1)));
    let hits = i64::try_from(hits).unwrap_or(i64::MAX);
    if descriptor.is_negative_hits { -hits } else { hits }
}

fn status(limit: &Limit, sum: u64, now: u64) -> DescriptorStatus {
    let most = u64::from(limit.requests_per_unit);
    let over = sum > most && !limit.shadow_mode;
    let left = limit.window() - now % limit.window();
    DescriptorStatus {
        code: if over { Code::OverLimit } else { Code::Ok } as i32,
        current_limit: Some(answer::RateLimit {
            name: limit.name.clone(),
            requests_per_unit: limit.requests_per_unit,
            unit: limit.unit as i32,
            unit_multiplier: None,
        }),
        limit_remaining: u32::try_from(most.saturating_sub(sum)).unwrap_or(u32::MAX),
        duration_until_reset: Some(Duration { seconds: i64::try_from(left).unwrap_or(i64::MAX), nanos: 0 }),
        quota: None,
    }
}

/// What a descriptor counts under. Lengths stand before texts, so that no two descriptors have one key.
fn key(domain: &str, descriptor: &RateLimitDescriptor, unit: Unit) -> Vec<u8> {
    let mut key = Vec::with_capacity(64);
    let mut add = |text: &str| {
        key.extend_from_slice(text.len().to_string().as_bytes());
        key.push(b':');
        key.extend_from_slice(text.as_bytes());
    };
    add(domain);
    for entry in &descriptor.entries {
        add(&entry.key);
        add(&entry.value);
    }
    add(unit.as_str_name());
    key
}

/// The gRPC side.
#[derive(Clone)]
pub(super) struct Method(pub Arc<RateLimitService>);

type Answering<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl tower::Service<http::Request<axum::body::Body>> for Method {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answering<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<axum::body::Body>) -> Self::Future {
        let method = self.clone();
        Box::pin(async move {
            let codec = ProstCodec::<RateLimitResponse, RateLimitRequest>::default();
            Ok(Grpc::new(codec).max_decoding_message_size(MOST).unary(method, request).await)
        })
    }
}

impl UnaryService<RateLimitRequest> for Method {
    type Response = RateLimitResponse;
    type Future = Answering<Result<tonic::Response<RateLimitResponse>, Status>>;

    fn call(&mut self, request: tonic::Request<RateLimitRequest>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move {
            let answer = service.decide(request.get_ref(), SystemTime::now()).await?;
            Ok(tonic::Response::new(answer))
        })
    }
}

/// What reading limits came to.
pub enum Read {
    /// So many domains and limits hold.
    Taken { domains: usize, limits: usize },
    /// What is wrong, by file; what held before holds on.
    Refused(BTreeMap<PathBuf, Vec<Problem>>),
}

/// Reads the limits of a YAML file, or of all YAML files of a directory, now and whenever they change, and tells what they
/// came to. Never ends by itself.
///
/// # Errors
/// The place cannot be watched.
pub async fn feed_limits(place: PathBuf, service: &RateLimitService, mut tell: impl FnMut(Read)) -> io::Result<()> {
    let watched = if place.is_dir() { place.clone() } else { parent(&place) };
    let mut watch = Watch::flat(&watched)?;
    let mut before = None;
    loop {
        let texts = texts(&place);
        if before.as_ref() != Some(&texts) {
            match limits(&texts) {
                Ok(limits) => {
                    let (domains, count) = limits.size();
                    service.set_limits(limits);
                    tell(Read::Taken { domains, limits: count });
                }
                Err(problems) => tell(Read::Refused(problems)),
            }
            before = Some(texts);
        }
        watch.change(&watched, false).await;
    }
}

fn parent(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

type Texts = BTreeMap<PathBuf, Result<String, String>>;

fn texts(place: &Path) -> Texts {
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).map_err(|error| error.to_string());
        (path, text)
    };
    if !place.is_dir() {
        return [read(place.to_owned())].into();
    }
    let is_yaml = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        !name.starts_with('.') && (name.ends_with(".yaml") || name.ends_with(".yml"))
    };
    match fs::read_dir(place) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).filter(is_yaml).map(read).collect(),
        Err(error) => [(place.to_owned(), Err(error.to_string()))].into(),
    }
}

fn limits(texts: &Texts) -> Result<RateLimits, BTreeMap<PathBuf, Vec<Problem>>> {
    let (mut limits, mut problems) = (RateLimits::default(), BTreeMap::new());
    for (path, text) in texts {
        let read = match text {
            Ok(text) => limits.add(text),
            Err(error) => Err(vec![Problem::new("", error)]),
        };
        if let Err(found) = read {
            problems.insert(path.clone(), found);
        }
    }
    if problems.is_empty() { Ok(limits) } else { Err(problems) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor as wire;

    const TEXT: &str = "
domain: d
descriptors:
- {key: a, rate_limit: {unit: minute, requests_per_unit: 2, name: general}}
- {key: a, value: quiet, shadow_mode: true, rate_limit: {unit: minute, requests_per_unit: 1}}
- {key: b, rate_limit: {unit: hour, requests_per_unit: 5, replaces: [{name: general}]}}
- {key: free, rate_limit: {unlimited: true}}
";

    fn descriptor(key: &str, value: &str) -> RateLimitDescriptor {
        let entries = vec![wire::Entry { key: key.into(), value: value.into() }];
        RateLimitDescriptor { entries, ..Default::default() }
    }

    async fn ask(service: &RateLimitService, descriptors: Vec<RateLimitDescriptor>, second: u64) -> RateLimitResponse {
        let request = RateLimitRequest { domain: "d".into(), descriptors, hits_addend: 0 };
        let now = UNIX_EPOCH + std::time::Duration::from_secs(second);
        service.decide(&request, now).await.expect("an answer")
    }

    fn service() -> RateLimitService {
        let service = RateLimitService::embedded();
        let mut limits = RateLimits::default();
        limits.add(TEXT).expect("it is good");
        service.set_limits(limits);
        service
    }

    #[tokio::test]
    async fn each_value_has_its_own_count_in_each_window() {
        let service = service();
        let mut codes = Vec::new();
        for (value, second) in [("x", 61), ("x", 62), ("x", 119), ("y", 119), ("x", 120)] {
            let answer = ask(&service, vec![descriptor("a", value)], second).await;
            let status = &answer.statuses[0];
            let left = status.duration_until_reset.map(|left| left.seconds);
            codes.push((answer.overall_code, status.limit_remaining, left));
        }
        let (ok, over) = (Code::Ok as i32, Code::OverLimit as i32);
        let want = [(ok, 1, Some(59)), (ok, 0, Some(58)), (over, 0, Some(1)), (ok, 1, Some(1)), (ok, 1, Some(60))];
        assert_eq!(codes, want);
    }

    #[tokio::test]
    async fn shadows_refuse_nothing_and_replaced_limits_do_not_count() {
        let service = service();
        for _ in 0..3 {
            let answer = ask(&service, vec![descriptor("a", "quiet"), descriptor("free", "")], 0).await;
            assert_eq!(answer.overall_code, Code::Ok as i32);
            assert_eq!(answer.statuses[1].limit_remaining, u32::MAX);
            let replaced = ask(&service, vec![descriptor("a", "x"), descriptor("b", "")], 0).await;
            assert!(replaced.statuses[0].current_limit.is_none() && replaced.statuses[1].current_limit.is_some());
        }
        let answer = ask(&service, vec![descriptor("a", "x")], 0).await;
        assert_eq!(answer.statuses[0].limit_remaining, 1);
    }

    #[tokio::test]
    async fn hits_and_limits_of_requests_go_before() {
        let service = service();
        let own = wire::RateLimitOverride { requests_per_unit: 10, unit: Unit::Hour as i32, unit_multiplier: None };
        let ten = |hits, negative| RateLimitDescriptor {
            limit: Some(own),
            hits_addend: Some(hits),
            is_negative_hits: negative,
            ..descriptor("any", "")
        };
        let mut left = Vec::new();
        for (hits, negative) in [(4, false), (0, false), (7, false), (5, true), (1, false)] {
            left.push(ask(&service, vec![ten(hits, negative)], 0).await.statuses[0].limit_remaining);
        }
        assert_eq!(left, [6, 6, 0, 4, 3]);
        let none = service.decide(&RateLimitRequest::default(), UNIX_EPOCH).await;
        assert!(none.is_err());
    }
}
