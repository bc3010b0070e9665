//! Keys that are fetched: once for all who wait for them, again when they are too old or their server could not be had.
//!
//! One set for each provider and worker. What was fetched and cannot be read changes nothing: old keys that are not too old
//! stay.

use super::{JwtStats, config::Remote, jwks::Jwks};
use crate::{
    http::{RequestHead, Thread},
    upstream::http_call,
};
use bytes::Bytes;
use futures_util::{
    FutureExt as _,
    future::{LocalBoxFuture, Shared},
};
use http::Method;
use std::{
    cell::RefCell,
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, Instant},
};

/// Bytes of a set of keys.
const MOST: usize = 4 << 20;

/// The keys of one provider.
#[derive(Default)]
pub(super) struct Fetched {
    keys: RefCell<Option<(Rc<Jwks>, Instant)>>,
    fetch: RefCell<Option<Shared<LocalBoxFuture<'static, bool>>>>,
}

impl Fetched {
    /// The keys, if they are not too old.
    pub fn keys(&self) -> Option<Rc<Jwks>> {
        let keys = self.keys.borrow();
        keys.as_ref().filter(|(_, until)| Instant::now() < *until).map(|(keys, _)| keys.clone())
    }

    /// Fetches the keys, or waits for a fetch that runs; true if there are some then.
    pub fn fetch(
        self: &Rc<Self>,
        remote: &Remote,
        thread: &Rc<Thread>,
        stats: &Arc<JwtStats>,
    ) -> Shared<LocalBoxFuture<'static, bool>> {
        if let Some(fetch) = &*self.fetch.borrow() {
            return fetch.clone();
        }
        let (this, stats) = (Rc::downgrade(self), stats.clone());
        let call = call(remote, thread);
        let cache = remote.cache;
        let fetch = async move {
            let keys = call.await;
            if keys.is_some() { &stats.jwks_fetch_success } else { &stats.jwks_fetch_failed }.inc();
            let Some(this) = this.upgrade() else { return false };
            *this.fetch.borrow_mut() = None;
            let fetched = keys.is_some();
            if let Some(keys) = keys {
                *this.keys.borrow_mut() = Some((Rc::new(keys), Instant::now() + cache));
            }
            fetched
        };
        let fetch = fetch.boxed_local().shared();
        *self.fetch.borrow_mut() = Some(fetch.clone());
        // It goes on even if who asked for it goes away.
        tokio::task::spawn_local(fetch.clone());
        fetch
    }
}

/// Fetches keys for as long as they are held, each time a little before they are too old.
pub(super) async fn keep_fresh(
    fetched: Weak<Fetched>,
    remote: impl Fn() -> Option<Arc<super::config::JwtAuthn>>,
    number: usize,
    thread: Weak<Thread>,
    stats: Arc<JwtStats>,
) {
    loop {
        let (Some(fetched), Some(config), Some(thread)) = (fetched.upgrade(), remote(), thread.upgrade()) else {
            return;
        };
        let Some(super::config::Keys::Remote(remote)) = config.providers.get(number).map(|p| &p.keys) else { return };
        let Some(after_failure) = remote.background else { return };
        let (cache, fetch) = (remote.cache, fetched.fetch(remote, &thread, &stats));
        drop((fetched, config, thread));
        let wait = match fetch.await {
            true => cache.saturating_sub(Duration::from_secs(5)).max(Duration::from_secs(1)),
            false => after_failure,
        };
        tokio::time::sleep(wait).await;
    }
}

fn call(remote: &Remote, thread: &Rc<Thread>) -> impl Future<Output = Option<Jwks>> + use<> {
    let upstreams = thread.upstreams.clone();
    let mut head = RequestHead::new(Method::GET, remote.path.clone());
    head.scheme = Bytes::from_static(b"http");
    head.authority = remote.authority.clone().into();
    let (name, timeout, retries) = (remote.cluster.clone(), remote.timeout, remote.retries);
    async move {
        for retry in 0..=retries {
            if retry > 0 {
                tokio::time::sleep(Duration::from_millis(100 << retry)).await;
            }
            let Some(cluster) = upstreams.by_name(&name) else { continue };
            let call = http_call::call(&cluster, head.clone(), Bytes::new(), MOST);
            let Ok(answer) = tokio::time::timeout(timeout, call).await else {
                cluster.stats().upstream_rq_timeout.inc();
                continue;
            };
            let Ok(answer) = answer else { continue };
            cluster.count_local(answer.status.as_u16(), true, true);
            if answer.status == http::StatusCode::OK {
                return Jwks::parse(&answer.body);
            }
        }
        None
    }
}
