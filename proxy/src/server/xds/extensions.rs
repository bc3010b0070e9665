//! What is counted of configurations of filters that are discovered (ECDS).

use crate::{observe::stats::ExtensionStats, server::control::Control};
use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use weft_control_api::client::Refused;

/// The stats of a configuration.
pub(super) fn stats(control: &Control, name: &str) -> Arc<ExtensionStats> {
    let prefix = control.store.borrow().stat_prefix_of_extension(name);
    by_prefix(control, prefix)
}

fn by_prefix(control: &Control, prefix: String) -> Arc<ExtensionStats> {
    let mut all = control.xds.extension_stats.borrow_mut();
    all.entry(prefix.clone()).or_insert_with(|| control.registry.attach(&prefix)).clone()
}

/// Counts what an update said of `names`: those that it `changed`, and those that were refused.
pub(super) fn count(control: &Control, names: &[&str], changed: &[&str], refused: &[Refused]) {
    for name in names {
        let stats = stats(control, name);
        if changed.contains(name) {
            stats.config_reload.inc();
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            stats.config_reload_time_ms.set(now.as_millis() as u64);
        }
        if refused.iter().any(|refused| refused.name == *name) {
            stats.config_fail.inc();
        }
    }
}

/// Counts configurations that were known but fit into no new seat.
pub(super) fn count_conflicts(control: &Control) {
    let conflicts = std::mem::take(&mut control.store.borrow_mut().extensions.conflicts);
    for prefix in conflicts {
        by_prefix(control, prefix).config_conflict.inc();
    }
}
