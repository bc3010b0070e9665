//! All endpoints, once: path, what it does, parameters, whether it changes something. `/help` and the home page are made of it.

use super::{
    clusters, config_dump, home, lifecycle, listeners, logging,
    message::{Reply, Request},
    runtime, stats,
    view::ServerView,
};
use http::{Method, StatusCode};
use std::fmt::Write as _;

/// One endpoint.
pub(super) struct Endpoint {
    pub path: &'static str,
    pub about: &'static str,
    pub params: &'static [Param],
    /// It is asked for with POST.
    pub mutates: bool,
    pub run: fn(&Request, &dyn ServerView) -> Reply,
}

/// A parameter of an endpoint.
pub(super) struct Param {
    pub name: &'static str,
    pub about: &'static str,
    pub kind: ParamKind,
}

pub(super) enum ParamKind {
    /// It is there or not.
    Flag,
    Text,
    OneOf(&'static [&'static str]),
}

const fn flag(name: &'static str, about: &'static str) -> Param {
    Param { name, about, kind: ParamKind::Flag }
}

const fn text(name: &'static str, about: &'static str) -> Param {
    Param { name, about, kind: ParamKind::Text }
}

const fn one_of(name: &'static str, about: &'static str, values: &'static [&'static str]) -> Param {
    Param { name, about, kind: ParamKind::OneOf(values) }
}

const fn shows(
    path: &'static str,
    about: &'static str,
    params: &'static [Param],
    run: fn(&Request, &dyn ServerView) -> Reply,
) -> Endpoint {
    Endpoint { path, about, params, mutates: false, run }
}

const fn changes(
    path: &'static str,
    about: &'static str,
    params: &'static [Param],
    run: fn(&Request, &dyn ServerView) -> Reply,
) -> Endpoint {
    Endpoint { path, about, params, mutates: true, run }
}

const SWITCH: &[Param] = &[one_of("enable", "on or off", &["y", "n"])];
const USED_ONLY: Param = flag("usedonly", "leaves out stats that were never written");
const FILTER: Param = text("filter", "regular expression that names have to match");
const INVERT: Param = flag("invert_filter", "shows what the filter does not match");

/// Every endpoint, by path.
#[rustfmt::skip]
pub(super) const ENDPOINTS: &[Endpoint] = &[
    shows("/", "this page", &[], home::page),
    changes("/allocprofiler", "the allocation profiler (not in this build)", SWITCH, lifecycle::no_profiler),
    shows("/certs", "certificates that are loaded", &[], lifecycle::certs),
    shows("/clusters", "clusters and the state of their hosts", &[
        text("filter", "regular expression that cluster names have to match"),
        one_of("format", "format of the answer", &["text", "json"]),
    ], clusters::show),
    shows("/config_dump", "all configuration that is in use", &[
        text("resource", "shows only this field of the dump, which is a list"),
        text("mask", "shows only these fields, of the dump or of each resource (a protobuf field mask)"),
        text("name_regex", "shows only resources whose names match this regular expression as a whole"),
        flag("include_eds", "shows endpoints too"),
    ], config_dump::show),
    shows("/contention", "contention of locks (there are none to trace)", &[], lifecycle::contention),
    changes("/cpuprofiler", "the CPU profiler (not in this build)", SWITCH, lifecycle::no_profiler),
    changes("/drain_listeners", "drains and closes listeners", &[
        flag("graceful", "lets connections drain for the drain time first"),
        flag("skip_exit", "lets connections drain, but closes no listener"),
        flag("inboundonly", "only listeners with the traffic direction INBOUND"),
    ], lifecycle::drain_listeners),
    changes("/healthcheck/fail", "lets this server fail health checks", &[], lifecycle::fail),
    changes("/healthcheck/ok", "lets this server pass health checks", &[], lifecycle::pass),
    shows("/heap_dump", "the heap (not in this build)", &[], lifecycle::no_heap_profiler),
    changes("/heapprofiler", "the heap profiler (not in this build)", SWITCH, lifecycle::no_heap_profiler),
    shows("/help", "this list", &[], |_, _| Reply::text(format!("admin commands are:\n{}", help()))),
    shows("/hot_restart_version", "the hot restart compatibility version", &[], lifecycle::hot_restart_version),
    shows("/init_dump", "what initialization waits for", &[
        text("mask", "shows only these parts: listener"),
    ], lifecycle::init_dump),
    shows("/listeners", "listeners and their addresses", &[
        one_of("format", "format of the answer", &["text", "json"]),
    ], listeners::show),
    changes("/logging", "shows or changes log levels", &[
        text("paths", "levels of several components: name1:level1,name2:level2"),
        text("group", "level of a group of files (not in this build)"),
        one_of("level", "level of all components", &["", "trace", "debug", "info", "warning", "error", "critical", "off"]),
    ], logging::show),
    shows("/memory", "memory in use", &[], lifecycle::memory),
    shows("/memory/tcmalloc", "the allocator's own stats (not in this build)", &[], lifecycle::no_heap_profiler),
    shows("/peak_heap_dump", "the heap at its largest (not in this build)", &[], lifecycle::no_heap_profiler),
    changes("/quitquitquit", "ends the process", &[], lifecycle::quit),
    shows("/ready", "the server's state; 200 if it is LIVE, else 503", &[], lifecycle::ready),
    changes("/reopen_logs", "opens access logs anew", &[], lifecycle::reopen_logs),
    changes("/reset_counters", "sets all counters to zero", &[], stats::reset),
    shows("/runtime", "runtime values, by layer", &[], runtime::show),
    changes("/runtime_modify", "sets runtime values of the admin layer: key=value; an empty value removes the key", &[], runtime::modify),
    shows("/server_info", "version, state and options of the server", &[], lifecycle::server_info),
    shows("/stats", "stats", &[
        USED_ONLY,
        FILTER,
        INVERT,
        one_of("format", "format of the answer", &["html", "active-html", "text", "json", "prometheus"]),
        one_of("type", "kind of the stats", &["All", "Counters", "Histograms", "Gauges", "TextReadouts"]),
        one_of("histogram_buckets", "how histograms are shown", &["cumulative", "disjoint", "detailed", "summary"]),
    ], stats::show),
    shows("/stats/prometheus", "stats in Prometheus' format", &[
        USED_ONLY,
        flag("text_readouts", "shows text as a label of a gauge"),
        FILTER,
        INVERT,
        one_of("histogram_buckets", "how histograms are shown", &["cumulative", "summary"]),
    ], stats::prometheus),
    shows("/stats/recentlookups", "stats looked up by name lately (there are no such lookups)", &[], stats::recent_lookups),
    changes("/stats/recentlookups/clear", "forgets those lookups", &[], |_, _| Reply::ok()),
    changes("/stats/recentlookups/disable", "no longer records lookups", &[], |_, _| Reply::ok()),
    changes("/stats/recentlookups/enable", "records lookups", &[], |_, _| Reply::ok()),
];

/// Answers a request.
pub(super) fn answer(request: &Request, view: &dyn ServerView) -> Reply {
    let Some(endpoint) = ENDPOINTS.iter().find(|endpoint| endpoint.path == request.path) else {
        let body = format!("invalid path. admin commands are:\n{}", help());
        return Reply::error(StatusCode::NOT_FOUND, body);
    };
    if endpoint.mutates && request.method != Method::POST {
        let body = format!("Method {} not allowed, POST required.", request.method);
        return Reply::error(StatusCode::METHOD_NOT_ALLOWED, body);
    }
    (endpoint.run)(request, view)
}

fn help() -> String {
    let mut out = String::new();
    for Endpoint { path, about, params, mutates, .. } in ENDPOINTS {
        let post = if *mutates { " (POST)" } else { "" };
        // Writing to a string cannot fail.
        let _ = writeln!(out, "  {path}{post}: {about}");
        for Param { name, about, kind } in *params {
            let _ = match kind {
                ParamKind::OneOf(values) => writeln!(out, "      {name}: {about}; One of ({})", values.join(", ")),
                ParamKind::Flag | ParamKind::Text => writeln!(out, "      {name}: {about}"),
            };
        }
    }
    out
}
