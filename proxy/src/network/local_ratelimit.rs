//! `envoy.filters.network.local_ratelimit`: closes connections for which there is no token.

use super::{Admission, CompileContext, Connection, Gate, GateFilter};
use crate::{
    base::{clock, token_bucket::TokenBucket},
    http::Thread,
    stats,
};
use std::{
    future::{Future, ready},
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Instant,
};
use weft_config::{Context, rate_limit::NetworkLocalRateLimit};
use weft_control_api::Any;

pub const TYPE: &str = "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit";

stats! {
    /// `local_rate_limit.PREFIX.*`
    pub struct LocalRateLimitStats {
        counter rate_limited,
    }
}

/// Compiled once and shared by all workers.
struct LocalRateLimit {
    config: NetworkLocalRateLimit,
    tokens: Arc<TokenBucket>,
}

/// Buckets that filters have in common, by what their configurations say of them. Read and written when these are compiled.
static SHARED: Mutex<Vec<(NetworkLocalRateLimit, Weak<TokenBucket>)>> = Mutex::new(Vec::new());

pub fn compile(any: &Any, _: &mut CompileContext<'_>, cx: &mut Context) -> Option<Arc<dyn GateFilter>> {
    let config = NetworkLocalRateLimit::from_proto(cx.unpack("", any)?, cx)?;
    Some(Arc::new(LocalRateLimit { tokens: tokens(&config), config }))
}

fn tokens(config: &NetworkLocalRateLimit) -> Arc<TokenBucket> {
    let new = || Arc::new(TokenBucket::new(&config.token_bucket, Instant::now()));
    if config.share_key.is_empty() {
        return new();
    }
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.retain(|(_, bucket)| bucket.strong_count() > 0);
    let same = |of: &NetworkLocalRateLimit| of.share_key == config.share_key && of.token_bucket == config.token_bucket;
    if let Some(bucket) = shared.iter().filter(|(of, _)| same(of)).find_map(|(_, bucket)| bucket.upgrade()) {
        return bucket;
    }
    let bucket = new();
    shared.push((config.clone(), Arc::downgrade(&bucket)));
    bucket
}

impl GateFilter for LocalRateLimit {
    fn activate(self: Arc<Self>, thread: &Rc<Thread>) -> Rc<dyn Gate> {
        let stats = thread.registry.attach(&format!("local_rate_limit.{}", self.config.stat_prefix));
        Rc::new(Active { stats, limit: self })
    }
}

/// One worker's part.
struct Active {
    limit: Arc<LocalRateLimit>,
    stats: Arc<LocalRateLimitStats>,
}

impl Gate for Active {
    fn admit<'a>(&'a self, connection: &'a mut Connection) -> Pin<Box<dyn Future<Output = Admission> + 'a>> {
        let (key, default) = &self.limit.config.enabled;
        let said = if key.is_empty() { None } else { connection.thread.runtime().boolean(key) };
        let admission = if !said.unwrap_or(*default) || self.limit.tokens.take(1, clock::now()) {
            Admission::Pass
        } else {
            self.stats.rate_limited.inc();
            Admission::Close
        };
        Box::pin(ready(admission))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use weft_config::rate_limit::TokenBucket as Config;

    #[test]
    fn buckets_are_shared_by_key_and_size() {
        let config = |share_key: &str, max_tokens| NetworkLocalRateLimit {
            stat_prefix: "s".into(),
            token_bucket: Config { max_tokens, tokens_per_fill: 1, fill_interval: Duration::from_secs(1) },
            enabled: (String::new(), true),
            share_key: share_key.into(),
        };
        let first = tokens(&config("k", 1));
        assert!(Arc::ptr_eq(&first, &tokens(&config("k", 1))));
        assert!(!Arc::ptr_eq(&first, &tokens(&config("k", 2))));
        assert!(!Arc::ptr_eq(&tokens(&config("", 1)), &tokens(&config("", 1))));
    }
}
