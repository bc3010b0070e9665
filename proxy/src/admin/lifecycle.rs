//! What the server is and how far: `/ready`, `/server_info`, `/memory`; and commands over its life.

use super::{
    message::{Reply, Request},
    view::{Command, ServerInfo, ServerView, State},
};
use crate::observe::memory::Memory;
use http::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;
use weft_control_api::{Message as _, Name as _, PrintOptions, envoy::config::core::v3::Node};

/// `/ready`. Ours: without a certificate that was withdrawn, or with nothing but expired ones, it is not ready, live or not.
pub(super) fn ready(_: &Request, view: &dyn ServerView) -> Reply {
    let state = view.info().state;
    if state == State::Live && view.is_identity_withdrawn() {
        return Reply::error(StatusCode::SERVICE_UNAVAILABLE, "NO_OWN_CERTIFICATE\n");
    }
    if state == State::Live && view.is_identity_expired() {
        return Reply::error(StatusCode::SERVICE_UNAVAILABLE, "OWN_CERTIFICATE_EXPIRED\n");
    }
    let status = if state == State::Live { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Reply::error(status, format!("{}\n", state.name()))
}

/// `/server_info`.
pub(super) fn server_info(_: &Request, view: &dyn ServerView) -> Reply {
    let ServerInfo { version, state, uptime, uptime_all_epochs, hot_restart_version, command_line_options, node } =
        view.info();
    let seconds = |duration: Duration| format!("{}s", duration.as_secs());
    Reply::json(&json!({
        "version": version,
        "state": state.name(),
        "uptime_current_epoch": seconds(uptime),
        "uptime_all_epochs": seconds(uptime_all_epochs),
        "hot_restart_version": hot_restart_version,
        "command_line_options": command_line_options,
        "node": node_json(&node),
        "hot_restart_initializing": false,
    }))
}

/// The node, with fields that have their default shown too.
fn node_json(node: &Node) -> Value {
    let printed = weft_control_api::print(&Node::full_name(), &node.encode_to_vec(), PrintOptions { redact: true });
    let mut printed = printed.unwrap_or_default();
    let mut take = |name: &str| printed.get_mut(name).map(Value::take);
    let list = |value: Option<Value>| value.unwrap_or_else(|| json!([]));
    let mut out = json!({ "id": node.id, "cluster": node.cluster });
    if let Some(metadata) = take("metadata") {
        out["metadata"] = metadata;
    }
    if let Some(locality) = &node.locality {
        out["locality"] = json!({ "region": locality.region, "zone": locality.zone, "sub_zone": locality.sub_zone });
    }
    out["user_agent_name"] = node.user_agent_name.as_str().into();
    for oneof in ["user_agent_version", "user_agent_build_version"] {
        if let Some(version) = take(oneof) {
            out[oneof] = version;
        }
    }
    out["extensions"] = list(take("extensions"));
    out["client_features"] = list(take("client_features"));
    out["listening_addresses"] = list(take("listening_addresses"));
    out["dynamic_parameters"] = take("dynamic_parameters").unwrap_or_else(|| json!({}));
    out
}

/// `/hot_restart_version`.
pub(super) fn hot_restart_version(_: &Request, view: &dyn ServerView) -> Reply {
    Reply::text(view.info().hot_restart_version)
}

/// `/memory`.
pub(super) fn memory(_: &Request, _: &dyn ServerView) -> Reply {
    let Memory { allocated, heap_size, physical } = Memory::read();
    Reply::json(&json!({
        "allocated": allocated.to_string(),
        "heap_size": heap_size.to_string(),
        "pageheap_unmapped": "0",
        "pageheap_free": heap_size.saturating_sub(allocated).to_string(),
        "total_thread_cache": "0",
        "total_physical_bytes": physical.to_string(),
    }))
}

/// `/certs`.
pub(super) fn certs(_: &Request, view: &dyn ServerView) -> Reply {
    Reply::json(&json!({ "certificates": view.certificates() }))
}

/// `/init_dump`.
pub(super) fn init_dump(request: &Request, view: &dyn ServerView) -> Reply {
    let mask = request.param("mask").unwrap_or_default();
    let shown = |name: &str| mask.is_empty() || mask.split(',').any(|part| name.starts_with(part));
    let dumps = view.unready_targets().into_iter().filter(|dump| shown(&dump.name));
    let dumps: Vec<Value> = dumps.map(|dump| json!({ "name": dump.name, "target_names": dump.targets })).collect();
    Reply::json(&if dumps.is_empty() { json!({}) } else { json!({ "unready_targets_dumps": dumps }) })
}

/// `/contention`.
pub(super) fn contention(_: &Request, _: &dyn ServerView) -> Reply {
    Reply::text("Mutex contention tracing is not enabled.")
}

/// `/cpuprofiler`, `/allocprofiler`.
pub(super) fn no_profiler(request: &Request, _: &dyn ServerView) -> Reply {
    match request.param("enable") {
        Some("y" | "n") => {
            Reply::error(StatusCode::NOT_IMPLEMENTED, "The current build does not support this profiler")
        }
        _ => Reply::bad_request("?enable=<y|n>\n"),
    }
}

/// `/heapprofiler`, `/heap_dump` and their like.
pub(super) fn no_heap_profiler(_: &Request, _: &dyn ServerView) -> Reply {
    Reply::error(StatusCode::NOT_IMPLEMENTED, "The current build does not support heap profiler")
}

/// `/quitquitquit`.
pub(super) fn quit(_: &Request, view: &dyn ServerView) -> Reply {
    view.command(Command::Quit);
    Reply::ok()
}

/// `/healthcheck/fail`.
pub(super) fn fail(_: &Request, view: &dyn ServerView) -> Reply {
    view.command(Command::FailHealthCheck);
    Reply::ok()
}

/// `/healthcheck/ok`.
pub(super) fn pass(_: &Request, view: &dyn ServerView) -> Reply {
    view.command(Command::PassHealthCheck);
    Reply::ok()
}

/// `/drain_listeners`.
pub(super) fn drain_listeners(request: &Request, view: &dyn ServerView) -> Reply {
    view.command(Command::DrainListeners {
        inbound_only: request.has("inboundonly"),
        graceful: request.has("graceful"),
        skip_exit: request.has("skip_exit"),
    });
    Reply::ok()
}

/// `/reopen_logs`.
pub(super) fn reopen_logs(_: &Request, view: &dyn ServerView) -> Reply {
    view.command(Command::ReopenLogs);
    Reply::ok()
}
