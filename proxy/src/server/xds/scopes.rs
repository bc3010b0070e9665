//! Scopes of routes over SRDS: taken or refused as a whole, and counted for every connection manager that has them.

use crate::{http::scopes::ScopeSeat, server::control::Control};
use std::{
    rc::Rc,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use weft_config::scoped_routes::Scopes;
use weft_control_api::{
    ResourceType,
    client::{Refused, Update},
};

fn prefix_of(seat: &ScopeSeat) -> String {
    format!("http.{}.scoped_rds.{}", seat.stat_prefix, seat.config.name.replace(':', "_"))
}

fn seats(control: &Control) -> Vec<Arc<ScopeSeat>> {
    let mut seats = control.store.borrow().scope_seats();
    seats.retain(|seat| matches!(seat.config.scopes, Scopes::Discovered(_)));
    seats
}

/// The prefix of the subscription's stats: that of the first connection manager.
pub(super) fn prefix(control: &Control) -> String {
    let prefix = seats(control).first().map(|seat| prefix_of(seat)).unwrap_or_default();
    count(control, false);
    prefix
}

/// Puts an update into the store; what is wrong with one scope is wrong with all of it.
pub(super) fn apply(control: &Rc<Control>, update: &Update) -> Vec<Refused> {
    let taken = control.store.borrow_mut().update_scopes(update);
    let mut refused = Vec::new();
    match taken {
        Ok(changed) => count(control, changed),
        Err(problems) => {
            let message = super::joined(&problems);
            tracing::warn!(target: "config", "scoped routes rejected: {message}");
            let name = update.resources.first().map(|resource| resource.name.clone()).unwrap_or_default();
            refused.push(Refused { name, message });
        }
    }
    let stats = control.xds.stats(control, ResourceType::ScopedRouteConfiguration, "");
    super::count_update(&stats, update, refused.is_empty() && update.refused.is_empty());
    refused
}

/// Counts the scopes of all connection managers; with `reloaded` they changed.
fn count(control: &Control, reloaded: bool) {
    for seat in seats(control) {
        let prefix = prefix_of(&seat);
        let mut all = control.xds.scope_stats.borrow_mut();
        let stats = all.entry(prefix.clone()).or_insert_with(|| control.registry.attach(&prefix));
        let (scopes, on_demand) = control.store.borrow().count_scopes(&seat);
        stats.all_scopes.set(scopes);
        stats.on_demand_scopes.set(on_demand);
        stats.active_scopes.set(scopes - on_demand);
        if reloaded {
            stats.config_reload.inc();
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            stats.config_reload_time_ms.set(now.as_millis() as u64);
        }
    }
}
