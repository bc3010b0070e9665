//! `/runtime` and `/runtime_modify`: runtime values by layer, and those that are set here.

use super::{
    message::{Reply, Request},
    view::{RuntimeDump, ServerView},
};
use http::StatusCode;
use serde_json::{Map, Value, json};

/// `/runtime`.
pub(super) fn show(_: &Request, view: &dyn ServerView) -> Reply {
    let RuntimeDump { layers, mut entries } = view.runtime();
    entries.sort();
    let entry = |(key, values): (String, Vec<String>)| {
        let last = values.iter().rev().find(|value| !value.is_empty()).cloned().unwrap_or_default();
        (key, json!({ "final_value": last, "layer_values": values }))
    };
    let entries: Map<String, Value> = entries.into_iter().map(entry).collect();
    Reply::json(&json!({ "layers": layers, "entries": entries }))
}

/// `/runtime_modify`.
pub(super) fn modify(request: &Request, view: &dyn ServerView) -> Reply {
    if request.params.is_empty() {
        return Reply::bad_request(
            "usage: /runtime_modify?key1=value1&key2=value2&keyN=valueN\n       \
             or send the parameters as form values\nuse an empty value to remove a previously added override\n",
        );
    }
    match view.modify_runtime(&request.params) {
        Ok(()) => Reply::ok(),
        Err(problem) => Reply::error(StatusCode::SERVICE_UNAVAILABLE, problem),
    }
}
