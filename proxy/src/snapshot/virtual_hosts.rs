//! Virtual hosts that are discovered (VHDS): those of a route configuration come beside the ones that it brings itself.

use super::{Origin, Store};
use crate::route::RouteTable;
use std::{collections::BTreeMap, sync::Arc};
use weft_config::{self as config, Context, Problem, config_source::ConfigSource};
use weft_control_api::envoy::config::route::v3 as pb;

/// The virtual hosts that came, by the name of their resource, which begins with the route configuration's.
pub type VirtualHosts = BTreeMap<String, pb::VirtualHost>;

impl Store {
    /// Reads a route configuration with the virtual hosts that came for it.
    pub(super) fn read_routes(
        &self,
        bytes: &[u8],
        hosts: &VirtualHosts,
    ) -> Result<config::route::RouteConfiguration, Vec<Problem>> {
        let (mut proto, mut cx) = self.read::<pb::RouteConfiguration>(bytes)?;
        if proto.vhds.is_some() {
            let prefix = format!("{}/", proto.name);
            let ours = hosts.range(prefix.clone()..).take_while(|(name, _)| name.starts_with(&prefix));
            proto.virtual_hosts.extend(ours.map(|(_, host)| host.clone()));
        }
        let read = config::route::RouteConfiguration::from_proto(proto, &mut cx);
        Ok(cx.finish(read)?.0)
    }

    /// Adds or replaces a virtual host. True if something changed.
    pub(super) fn set_virtual_host(&mut self, name: &str, bytes: &[u8]) -> Result<bool, Vec<Problem>> {
        let (proto, cx) = self.read::<pb::VirtualHost>(bytes)?;
        let (proto, _) = cx.finish(Some(proto))?;
        if self.virtual_hosts.get(name) == Some(&proto) {
            return Ok(false);
        }
        let mut hosts = self.virtual_hosts.clone();
        hosts.insert(name.to_owned(), proto);
        self.with_virtual_hosts(name, hosts)?;
        Ok(true)
    }

    /// It is gone.
    pub(super) fn remove_virtual_host(&mut self, name: &str) {
        let mut hosts = self.virtual_hosts.clone();
        if hosts.remove(name).is_some()
            && let Err(problems) = self.with_virtual_hosts(name, hosts)
        {
            tracing::error!(target: "config", "routes without virtual host {name:?} cannot be compiled: {}", problems[0]);
        }
    }

    /// Compiles the route configuration that `name` belongs to anew.
    fn with_virtual_hosts(&mut self, name: &str, hosts: VirtualHosts) -> Result<(), Vec<Problem>> {
        let routes = name.rsplit_once('/').map_or(name, |(routes, _)| routes);
        if let Some(entry) = self.tables.get(routes) {
            let config = self.read_routes(&entry.bytes, &hosts)?;
            let mut cx = Context::new();
            let table = RouteTable::compile(&config, &mut self.names, &mut cx);
            let (table, _) = cx.finish(Some(table))?;
            if let Some(entry) = self.tables.get_mut(routes) {
                entry.value = Arc::new(table);
            }
        }
        self.virtual_hosts = hosts;
        Ok(())
    }

    /// Where the virtual hosts of a route configuration are asked for.
    pub fn source_of_virtual_hosts(&self, routes: &str) -> Option<ConfigSource> {
        Some((**self.tables.get(routes)?.value.vhds.as_ref()?).clone())
    }

    /// The prefix of the stats of the route configuration that a virtual host belongs to; of the first that asks for any if
    /// there is no name.
    pub fn stat_prefix_of_virtual_host(&self, name: &str) -> String {
        let first = || self.tables.iter().find(|(_, entry)| entry.value.vhds.is_some()).map(|(name, _)| name.as_str());
        let routes = match name.rsplit_once('/') {
            Some((routes, _)) => routes,
            None => first().unwrap_or_default(),
        };
        format!("http.{}.rds.vhds.{}", self.http_prefix_of_routes(routes), routes.replace(':', "_"))
    }

    /// The source of virtual hosts, if one is asked for.
    pub fn wanted_virtual_hosts(&self) -> Option<ConfigSource> {
        let mut dynamic = self.tables.values().filter(|entry| entry.origin != Origin::Static);
        dynamic.find_map(|entry| Some((**entry.value.vhds.as_ref()?).clone()))
    }
}
