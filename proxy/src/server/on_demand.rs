//! What workers ask for while requests wait: subscribed to, and answered once it is published or known not to exist.

use super::{control::Control, worker::Message};
use crate::{
    http::demand::{Demand, Wanted},
    snapshot::Origin,
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use weft_control_api::{ResourceType, client::Update};

/// Questions without an answer so far, with the workers that asked.
pub struct OnDemand {
    pub sender: UnboundedSender<Demand>,
    receiver: RefCell<Option<UnboundedReceiver<Demand>>>,
    pending: RefCell<BTreeMap<Wanted, BTreeSet<usize>>>,
}

impl Default for OnDemand {
    fn default() -> Self {
        let (sender, receiver) = unbounded_channel();
        Self { sender, receiver: RefCell::new(Some(receiver)), pending: RefCell::default() }
    }
}

impl OnDemand {
    /// Takes questions for as long as the process lives.
    pub fn start(control: &Rc<Control>) {
        let Some(mut receiver) = control.on_demand.receiver.take() else { return };
        let control = control.clone();
        tokio::task::spawn_local(async move {
            while let Some(demand) = receiver.recv().await {
                control.on_demand.take(&control, demand);
            }
        });
    }

    fn take(&self, control: &Rc<Control>, demand: Demand) {
        let Demand { wanted, source, worker } = demand;
        let is_new = {
            let mut pending = self.pending.borrow_mut();
            let workers = pending.entry(wanted.clone()).or_default();
            workers.insert(worker) && workers.len() == 1
        };
        let (kind, name, source) = match &wanted {
            Wanted::Cluster(name) => {
                let store = control.store.borrow();
                if store.clusters.in_force().contains_key(name) {
                    drop(store);
                    return self.answer(control, &wanted, true);
                }
                if store.clusters.warming().get(name).is_some_and(|entry| entry.origin == Origin::Static) {
                    return;
                }
                (ResourceType::Cluster, name.clone(), source.map(|source| (*source).clone()))
            }
            Wanted::Routes(name) => {
                if control.store.borrow().tables.contains_key(name) {
                    return self.answer(control, &wanted, true);
                }
                control.store.borrow_mut().demand_routes(name);
                return control.xds.follow(control);
            }
            Wanted::VirtualHost(routes, host) => {
                let source = control.store.borrow().source_of_virtual_hosts(routes);
                (ResourceType::VirtualHost, format!("{routes}/{host}"), source)
            }
        };
        match source {
            Some(source) if is_new => control.xds.demand(control, kind, &name, &source),
            Some(_) => {}
            None => self.answer(control, &wanted, false),
        }
    }

    /// An update was taken and published: whoever waited for what it brought, or heard that it is not there, goes on.
    pub fn updated(&self, control: &Control, update: &Update) {
        if self.pending.borrow().is_empty() {
            return;
        }
        let there = update.resources.iter().flat_map(|resource| {
            let names = resource.aliases.iter().chain([&resource.name]);
            names.map(|name| (name.as_str(), resource.body.is_some()))
        });
        let gone = update.removed.iter().map(|name| (name.as_str(), false));
        for (name, is_there) in there.chain(gone) {
            match update.resource_type {
                // One that is there may have to warm.
                ResourceType::Cluster if !is_there => {
                    self.answer(control, &Wanted::Cluster(name.to_owned()), false);
                }
                ResourceType::VirtualHost => {
                    if let Some((routes, host)) = name.rsplit_once('/') {
                        self.answer(control, &Wanted::VirtualHost(routes.to_owned(), host.to_owned()), is_there);
                    }
                }
                _ => {}
            }
        }
    }

    /// What is in force was published: who waited for a cluster of it goes on.
    pub fn published(&self, control: &Control) {
        let found: Vec<Wanted> = {
            let (pending, store) = (self.pending.borrow(), control.store.borrow());
            let is_there = |wanted: &&Wanted| match wanted {
                Wanted::Cluster(name) => store.clusters.in_force().contains_key(name),
                Wanted::Routes(name) => store.tables.contains_key(name),
                Wanted::VirtualHost(..) => false,
            };
            pending.keys().filter(is_there).cloned().collect()
        };
        found.iter().for_each(|wanted| self.answer(control, wanted, true));
    }

    fn answer(&self, control: &Control, wanted: &Wanted, is_there: bool) {
        if self.pending.borrow_mut().remove(wanted).is_some() {
            control.tell_workers(&Message::Demanded { wanted: wanted.clone(), is_there });
        }
    }
}
