//! Configurations of filters that are discovered (ECDS): those that are known, and the seats that they go into.
//!
//! A configuration is taken only if every seat that asks for its name can use it. One that is gone leaves the seats to their
//! defaults.

use super::{Origin, Store};
use crate::network::{
    CompileContext,
    discovered::{Category, Seat, Wanted, reached},
};
use std::{collections::BTreeMap, sync::Arc, time::SystemTime};
use weft_config::{Context, Problem, config_source::ConfigSource};
use weft_control_api::{Any, ResourceType, envoy::config::core::v3::TypedExtensionConfig};

/// A configuration that came.
pub struct Extension {
    config: Any,
    /// As it was sent, for `/config_dump`.
    pub bytes: Vec<u8>,
    pub version: String,
    pub updated: SystemTime,
}

/// The configurations in force, and how often one that is known did not fit into a new seat.
#[derive(Default)]
pub struct Extensions {
    pub known: BTreeMap<String, Extension>,
    /// The prefixes of the stats where it is to be counted.
    pub conflicts: Vec<String>,
}

impl Store {
    /// The seats of all listeners, in force and warming.
    fn seats(&self) -> Vec<Arc<dyn Seat>> {
        let listeners = self.listeners.iter().map(|(_, entry)| entry).chain(self.warming_listeners.values());
        listeners.flat_map(|entry| reached(&entry.value.seats).seats).collect()
    }

    /// The configurations that are asked for, with their sources and the prefix of their stats.
    pub fn wanted_extensions(&self) -> BTreeMap<String, (ConfigSource, String)> {
        let of = |Wanted { category, name, source, .. }: &Wanted| {
            (name.clone(), (source.config_source.clone(), category.stat_prefix(name)))
        };
        self.seats().iter().map(|seat| of(seat.wanted())).collect()
    }

    /// The prefixes of the stats of a configuration, one for each kind of filter that it is for.
    pub fn stat_prefix_of_extension(&self, name: &str) -> String {
        let seats = self.seats();
        let of = seats.iter().map(|seat| seat.wanted()).find(|wanted| wanted.name == name);
        of.map_or(Category::Http, |wanted| wanted.category).stat_prefix(name)
    }

    /// Adds or replaces a configuration. True if something changed.
    pub(super) fn set_extension(&mut self, bytes: &[u8], origin: &Origin) -> Result<bool, Vec<Problem>> {
        let (proto, mut cx) = self.read::<TypedExtensionConfig>(bytes)?;
        let TypedExtensionConfig { name, typed_config } = proto;
        let config = cx.required("typed_config", typed_config);
        let (config, _) = cx.finish(config)?;
        let Origin::Dynamic(version) = origin else { return Ok(false) };
        if let Some(known) = self.extensions.known.get_mut(&name)
            && known.config == config
        {
            version.clone_into(&mut known.version);
            return Ok(false);
        }
        let mut ready = Vec::new();
        for seat in self.seats().into_iter().filter(|seat| seat.wanted().name == name) {
            ready.push(self.prepare(seat, &config)?);
        }
        ready.into_iter().for_each(|(put, inner)| {
            put();
            self.fill(&inner);
        });
        let known = Extension { config, bytes: bytes.to_vec(), version: version.clone(), updated: SystemTime::now() };
        self.extensions.known.insert(name, known);
        Ok(true)
    }

    fn prepare(&mut self, seat: Arc<dyn Seat>, config: &Any) -> Result<Prepared, Vec<Problem>> {
        let mut cx = Context::new();
        let (clusters, refused) = (&self.clusters, &self.refused_clusters);
        let exists = |name: &str| clusters.has(name) || refused.contains(name);
        let mut seats = Vec::new();
        let mut context = CompileContext {
            names: &mut self.names,
            log_writer: &self.log_writer,
            listener: seat.wanted().listener.clone(),
            routes: &mut self.routes,
            cluster_exists: &exists,
            seats: &mut seats,
        };
        let put = seat.clone().prepare(config, &mut context, &mut cx);
        let (put, _) = cx.finish(put)?;
        Ok((put, vec![seat]))
    }

    /// Puts what is known into seats that are new.
    pub(super) fn fill(&mut self, seats: &[Arc<dyn Seat>]) {
        for seat in reached(seats).seats {
            let wanted = seat.wanted();
            let Some(known) = self.extensions.known.get(&wanted.name) else { continue };
            if seat.is_filled() && !wanted.source.apply_default_without_warming {
                continue;
            }
            let (config, prefix) = (known.config.clone(), wanted.category.stat_prefix(&wanted.name));
            match self.prepare(seat.clone(), &config) {
                Ok((put, _)) => put(),
                Err(problems) => {
                    tracing::warn!(target: "config", "{prefix}: what is known does not fit: {}", problems[0]);
                    self.extensions.conflicts.push(prefix);
                    seat.fall_back();
                }
            }
        }
    }

    /// There is no such configuration, or none any more: its seats have their defaults.
    pub(super) fn drop_extension(&mut self, name: &str) {
        self.extensions.known.remove(name);
        // Whoever waited for it has heard that it is not there.
        self.timed_out.insert((ResourceType::ExtensionConfig, name.to_owned()));
        let seats = self.seats();
        seats.iter().filter(|seat| seat.wanted().name == name).for_each(|seat| seat.fall_back());
    }

    /// True if nobody has to wait for what `seat` asks for.
    pub(super) fn is_settled_seat(&self, seat: &Arc<dyn Seat>) -> bool {
        let wanted = seat.wanted();
        seat.is_filled()
            || wanted.source.apply_default_without_warming
            || self.timed_out.contains(&(ResourceType::ExtensionConfig, wanted.name.clone()))
    }
}

type Prepared = (Box<dyn FnOnce()>, Vec<Arc<dyn Seat>>);
