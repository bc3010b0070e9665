//! Which of a connection manager's HTTP filters a stream runs through, and with which per-route configurations.
//!
//! A [`Chain`] is what one route makes of the filters: it is put together when the route is taken first and then kept,
//! so that what does not apply to a route costs its streams nothing. The streams' part of it is in `filter_run`.

use super::connection_manager::ConnectionManager;
use crate::{
    filters::{ActiveFilter, HttpFilter, RouteFilterConfig},
    http::stream::Stream,
    route::{MatchedRoute, RouteTable},
};
use foldhash::HashMap;
use std::{cell::RefCell, rc::Rc, sync::Arc};

/// One worker's part of a connection manager's filters.
pub struct ActiveFilters {
    pub manager: Arc<ConnectionManager>,
    entries: Box<[ActiveEntry]>,
    /// For routes that say nothing of filters.
    plain: Rc<Chain>,
    kept: RefCell<Kept>,
}

pub(super) struct ActiveEntry {
    pub name: Box<str>,
    pub filter: Rc<dyn ActiveFilter>,
    /// Off unless a route turns it on.
    pub disabled: bool,
}

/// The filters as one route has them.
pub struct Chain {
    /// Those that take part, in order.
    enabled: Box<[usize]>,
    /// Of each entry, the route's configurations from the least to the most specific. Empty: there are none at all.
    routes: Box<[Box<[RouteFilterConfig]>]>,
}

/// The chains of the routes of one table. Its routes live as long as the table does, so their places name them.
#[derive(Default)]
struct Kept {
    table: Option<Arc<RouteTable>>,
    chains: HashMap<(usize, Option<usize>), Rc<Chain>>,
}

impl ActiveFilters {
    pub(super) fn new(manager: Arc<ConnectionManager>, entries: Box<[ActiveEntry]>) -> Self {
        let enabled = (0..entries.len()).filter(|i| !entries[*i].disabled).collect();
        let plain = Rc::new(Chain { enabled, routes: Box::default() });
        Self { manager, entries, plain, kept: RefCell::default() }
    }

    /// The filters as `route` has them.
    pub fn chain(&self, route: Option<&MatchedRoute>) -> Rc<Chain> {
        let Some(route) = route.filter(|route| !self.entries.is_empty() && route.has_filters()) else {
            return self.plain.clone();
        };
        let mut kept = self.kept.borrow_mut();
        if !kept.table.as_ref().is_some_and(|table| Arc::ptr_eq(table, &route.table)) {
            *kept = Kept { table: Some(route.table.clone()), chains: HashMap::default() };
        }
        kept.chains.entry(route.place()).or_insert_with(|| Rc::new(self.compile(route))).clone()
    }

    fn compile(&self, route: &MatchedRoute) -> Chain {
        let is_enabled = |entry: &ActiveEntry| {
            let most_specific = route.filters(&entry.name).last();
            !most_specific.map_or(entry.disabled, |filter| filter.disabled)
        };
        let routes = |entry: &ActiveEntry| route.filters(&entry.name).filter_map(|f| f.config.clone()).collect();
        Chain {
            enabled: (0..self.entries.len()).filter(|i| is_enabled(&self.entries[*i])).collect(),
            routes: self.entries.iter().map(routes).collect(),
        }
    }

    /// The filter at `index` of `chain`, if it applies to the stream: `Some(None)` if not, `None` after the last one.
    /// `current` is what the route says now: a filter may have had the stream's route looked up again.
    pub fn create(
        &self,
        chain: &Chain,
        index: usize,
        current: &Chain,
        stream: &Stream,
    ) -> Option<Option<Box<dyn HttpFilter>>> {
        let number = *chain.enabled.get(index)?;
        let routes = current.routes.get(number).map(|routes| &**routes).unwrap_or_default();
        Some(self.entries[number].filter.create(stream, routes))
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
