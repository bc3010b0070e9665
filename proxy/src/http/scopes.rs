//! Scoped routes: which route configuration a request is for, by a key made of its headers.
//!
//! A connection manager has a [`ScopeSeat`]; the control thread puts the scopes of now into it.

use super::{RequestHead, thread::RouteSlot};
use crate::route::RouteTable;
use arc_swap::ArcSwapOption;
use foldhash::HashMap;
use std::sync::Arc;
use weft_config::{header_value::HeaderKey, scoped_routes::ScopedRoutes};

/// A connection manager's scopes.
pub struct ScopeSeat {
    pub config: ScopedRoutes,
    pub stat_prefix: String,
    current: ArcSwapOption<ScopeTable>,
}

/// Scopes by key.
pub type ScopeTable = HashMap<Vec<String>, ScopeRoutes>;

/// A scope's route configuration.
#[derive(Clone)]
pub enum ScopeRoutes {
    Inline(Arc<RouteTable>),
    Rds {
        slot: RouteSlot,
        /// Asked for by name once a request needs it.
        on_demand: Option<Arc<str>>,
    },
}

impl ScopeSeat {
    pub fn new(config: ScopedRoutes, stat_prefix: &str) -> Self {
        Self { config, stat_prefix: stat_prefix.to_owned(), current: ArcSwapOption::empty() }
    }

    pub fn put(&self, table: ScopeTable) {
        self.current.store(Some(Arc::new(table)));
    }

    /// The routes of the scope that a request is in.
    pub fn find(&self, head: &RequestHead) -> Option<ScopeRoutes> {
        let table = self.current.load();
        let key = self.config.key.iter().map(|extractor| {
            let value = match &extractor.header {
                HeaderKey::Name(name) => head.headers.get(name)?.as_bytes(),
                HeaderKey::Authority => &head.authority,
                HeaderKey::Path => &head.path,
                HeaderKey::Method => head.method.as_str().as_bytes(),
                HeaderKey::Scheme => &head.scheme,
                HeaderKey::Status | HeaderKey::Protocol => return None,
            };
            Some(extractor.extract(std::str::from_utf8(value).ok()?)?.to_owned())
        });
        table.as_ref()?.get(&key.collect::<Option<Vec<_>>>()?).cloned()
    }
}
