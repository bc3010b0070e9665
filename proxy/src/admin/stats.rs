//! `/stats` and its kin: which stats, in which format.

use super::{
    message::{HTML, JSON, Reply, Request},
    view::{ServerView, StatsSettings},
};
use crate::observe::{
    prometheus::{self, PrometheusHistograms},
    stats::{Stat, StatFilter, StatKind},
    stats_text::{self, HistogramView},
};
use http::StatusCode;

/// `/stats`.
pub(super) fn show(request: &Request, view: &dyn ServerView) -> Reply {
    let format = request.param("format").unwrap_or("text");
    if !["", "html", "active-html", "json", "prometheus", "text"].contains(&format) {
        return Reply::bad_request("usage: /stats?format=(html|active-html|json|prometheus|text)\n\n");
    }
    print(request, view, format).unwrap_or_else(|reply| reply)
}

/// `/stats/prometheus`.
pub(super) fn prometheus(request: &Request, view: &dyn ServerView) -> Reply {
    print(request, view, "prometheus").unwrap_or_else(|reply| reply)
}

/// `/reset_counters`.
pub(super) fn reset(_: &Request, view: &dyn ServerView) -> Reply {
    view.registry().reset_counters();
    Reply::ok()
}

/// `/stats/recentlookups`.
pub(super) fn recent_lookups(_: &Request, _: &dyn ServerView) -> Reply {
    Reply::text("Lookup tracking is not enabled. Use /stats/recentlookups/enable to enable.\n\ntotal: 0\n")
}

fn print(request: &Request, view: &dyn ServerView, format: &str) -> Result<Reply, Reply> {
    let histograms = histogram_view(request)?;
    if !matches!(request.param("hidden"), None | Some("include" | "only" | "exclude")) {
        return Err(Reply::bad_request("usage: /stats?hidden=(include|only|exclude)\n\n"));
    }
    let kind = kind(request)?;
    let stats = read(request, view, if format == "prometheus" { None } else { kind })?;
    let StatsSettings { tags, bounds } = view.stats_settings();
    let body = |histograms: Option<HistogramView>| {
        stats_text::print(&stats, bounds, histograms.unwrap_or(HistogramView::Summary))
    };
    Ok(match format {
        "prometheus" => {
            let histograms = match histograms {
                None | Some(HistogramView::Cumulative) => PrometheusHistograms::Cumulative,
                Some(HistogramView::Summary) => PrometheusHistograms::Summary,
                Some(_) => return Err(Reply::bad_request("unsupported prometheus histogram bucket mode")),
            };
            Reply::text(prometheus::print(&stats, tags, bounds, histograms, request.has("text_readouts")))
        }
        "json" => {
            let json = stats_text::print_json(&stats, bounds, histograms.unwrap_or(HistogramView::Summary));
            Reply { status: StatusCode::OK, content_type: JSON, body: json.to_string() }
        }
        "html" | "active-html" => {
            let text = body(histograms).replace('&', "&amp;").replace('<', "&lt;");
            let page = format!(
                "<!DOCTYPE html>\n<html lang='en'>\n<head><title>Stats</title></head>\n<body>\n<pre>\n{text}</pre>\n</body>\n</html>\n"
            );
            Reply { status: StatusCode::OK, content_type: HTML, body: page }
        }
        _ => Reply::text(body(histograms)),
    })
}

fn histogram_view(request: &Request) -> Result<Option<HistogramView>, Reply> {
    Ok(match request.param("histogram_buckets") {
        // Quantiles in text and JSON, buckets for Prometheus.
        None | Some("" | "none") => None,
        Some("summary") => Some(HistogramView::Summary),
        Some("cumulative") => Some(HistogramView::Cumulative),
        Some("disjoint") => Some(HistogramView::Disjoint),
        Some("detailed") => Some(HistogramView::Detailed),
        Some(_) => {
            return Err(Reply::bad_request("usage: /stats?histogram_buckets=(cumulative|disjoint|detailed|summary)\n"));
        }
    })
}

fn kind(request: &Request) -> Result<Option<StatKind>, Reply> {
    Ok(match request.param("type") {
        None | Some("" | "All") => None,
        Some("Counters") => Some(StatKind::Counter),
        Some("Gauges") => Some(StatKind::Gauge),
        Some("Histograms") => Some(StatKind::Histogram),
        Some("TextReadouts") => Some(StatKind::Text),
        Some(_) => return Err(Reply::bad_request("invalid &type= param")),
    })
}

fn read(request: &Request, view: &dyn ServerView, kind: Option<StatKind>) -> Result<Vec<Stat>, Reply> {
    let regex = request.regex("filter");
    let regex = regex.map_err(|problem| Reply::bad_request(format!("Invalid re2 regex: {problem}")))?;
    let inverted = request.has("invert_filter");
    let name = |name: &str| regex.as_ref().is_none_or(|regex| regex.is_match(name) != inverted);
    let of_kind = |found: StatKind| kind.is_none_or(|kind| kind == found);
    // No hidden stats exist: only they would be shown.
    if request.param("hidden") == Some("only") {
        return Ok(Vec::new());
    }
    view.refresh_stats();
    let filter = StatFilter {
        used_only: request.has("usedonly"),
        name: regex.is_some().then_some(&name as &dyn Fn(&str) -> bool),
        kind: Some(&of_kind),
    };
    Ok(view.registry().read(&filter))
}
