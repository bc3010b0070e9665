//! Scopes of routes that are discovered (SRDS), and the connection managers' seats that they go into.
//!
//! No two scopes have the same key: an update that would make it so changes nothing.

use super::Store;
use crate::{
    http::scopes::{ScopeRoutes, ScopeSeat, ScopeTable},
    route::RouteTable,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::SystemTime,
};
use weft_config::{
    Context, Problem,
    config_source::ConfigSource,
    scoped_routes::{Scope, Scopes as Source},
};
use weft_control_api::{client::Update, envoy::config::route::v3::ScopedRouteConfiguration};

/// A scope that came.
#[derive(Clone)]
pub struct Known {
    scope: Scope,
    /// What stands in the scope itself.
    table: Option<Arc<RouteTable>>,
    /// As it was sent, for `/config_dump`.
    pub bytes: Vec<u8>,
}

/// All scopes that came, and the route configurations that requests asked for.
#[derive(Default)]
pub struct Scopes {
    pub known: BTreeMap<String, Known>,
    pub version: String,
    pub updated: Option<SystemTime>,
    /// There was an answer, or it was waited for long enough.
    pub is_known: bool,
    demanded: BTreeSet<String>,
}

impl Store {
    /// Takes an update of scopes as a whole. True if something changed.
    pub fn update_scopes(&mut self, update: &Update) -> Result<bool, Vec<Problem>> {
        let mut known = self.scopes.known.clone();
        update.removed.iter().for_each(|name| drop(known.remove(name)));
        let mut changed = !update.removed.is_empty();
        for resource in &update.resources {
            let Some(bytes) = &resource.body else { continue };
            if known.get(&resource.name).is_some_and(|known| known.bytes[..] == bytes[..]) {
                continue;
            }
            changed = true;
            let (proto, mut cx) = self.read::<ScopedRouteConfiguration>(bytes)?;
            let scope = Scope::from_proto(proto, &mut cx);
            let (scope, _) = cx.finish(scope)?;
            let mut cx = Context::new();
            let table = self.table_of(&scope, &mut cx);
            let (table, _) = cx.finish(Some(table))?;
            known.insert(resource.name.clone(), Known { scope, table, bytes: bytes.to_vec() });
        }
        let mut keys: BTreeMap<&[String], &str> = BTreeMap::new();
        for (name, Known { scope, .. }) in &known {
            if let Some(other) = keys.insert(&scope.key, name) {
                return Err(vec![Problem::new(
                    "key",
                    format!("scope key conflict found, first scope is {other}, second scope is {name}"),
                )]);
            }
        }
        self.scopes.known = known;
        self.scopes.version.clone_from(&update.version);
        self.scopes.updated = Some(SystemTime::now());
        self.fill_scopes();
        Ok(changed)
    }

    fn table_of(&mut self, scope: &Scope, cx: &mut Context) -> Option<Arc<RouteTable>> {
        let config = scope.route_configuration.as_ref()?;
        Some(Arc::new(cx.field("route_configuration", |cx| RouteTable::compile(config, &mut self.names, cx))))
    }

    /// Puts the scopes of now into all seats that discover them.
    pub(super) fn fill_scopes(&mut self) {
        for seat in self.routes.scoped() {
            if matches!(seat.config.scopes, Source::Discovered(_)) {
                let known = self.scopes.known.values().map(|known| (known.scope.clone(), known.table.clone()));
                let known: Vec<_> = known.collect();
                seat.put(self.routes.scope_table(&seat, known));
            }
        }
    }

    /// Where scopes are discovered, if they are.
    pub fn wanted_scopes(&self) -> Option<ConfigSource> {
        self.routes.scoped().iter().find_map(|seat| match &seat.config.scopes {
            Source::Discovered(source) => Some(source.clone()),
            Source::Inline(_) => None,
        })
    }

    /// The connection managers that have scopes.
    pub fn scope_seats(&self) -> Vec<Arc<ScopeSeat>> {
        self.routes.scoped()
    }

    /// The route configurations that the scopes of `seat` refer to, but for those that nobody asked for yet.
    pub(super) fn routes_of_scopes(&self, seat: &ScopeSeat) -> Vec<String> {
        let name = |scope: &Scope| {
            let is_wanted = !scope.on_demand || self.scopes.demanded.contains(&scope.route_configuration_name);
            Some(scope.route_configuration_name.clone()).filter(|name| is_wanted && !name.is_empty())
        };
        match &seat.config.scopes {
            Source::Inline(scopes) => scopes.iter().filter_map(|(scope, _)| name(scope)).collect(),
            Source::Discovered(_) => self.scopes.known.values().filter_map(|known| name(&known.scope)).collect(),
        }
    }

    /// A request needs the route configuration of a scope.
    pub fn demand_routes(&mut self, name: &str) {
        self.scopes.demanded.insert(name.to_owned());
    }

    /// How many scopes of `seat` there are, and of how many the routes are asked for only on demand.
    pub fn count_scopes(&self, seat: &ScopeSeat) -> (u64, u64) {
        match &seat.config.scopes {
            Source::Inline(scopes) => (scopes.len() as u64, 0),
            Source::Discovered(_) => {
                let on_demand = self.scopes.known.values().filter(|known| known.scope.on_demand).count();
                (self.scopes.known.len() as u64, on_demand as u64)
            }
        }
    }
}

impl crate::network::RouteSlots {
    /// The scopes as workers find them.
    pub fn scope_table(&mut self, seat: &ScopeSeat, scopes: Vec<(Scope, Option<Arc<RouteTable>>)>) -> ScopeTable {
        let routes = |(scope, table): (Scope, Option<Arc<RouteTable>>)| {
            let routes = match (table, &seat.config.rds) {
                (Some(table), _) => ScopeRoutes::Inline(table),
                (None, Some(source)) => {
                    let slot = self.slot(&scope.route_configuration_name, source, &seat.stat_prefix);
                    let name = || scope.route_configuration_name.as_str().into();
                    ScopeRoutes::Rds { slot, on_demand: scope.on_demand.then(name) }
                }
                (None, None) => return None,
            };
            Some((scope.key, routes))
        };
        let table = scopes.into_iter().filter_map(routes).collect();
        self.take_wanted();
        table
    }
}
