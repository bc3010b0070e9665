//! The HTTP connection manager's compiled configuration, shared by all workers. [`super::connection`] is one
//! connection's part of it.

use super::{
    discovered_filter::{ActiveSeat, FilterSeat},
    filter_chain::{ActiveEntry, ActiveFilters},
    header_rules::{HeaderRules, Mutations},
    local_reply::{BodyFormat, LocalReplyRules, Mapper},
    response_headers::ResponseRules,
    scopes::ScopeSeat,
    thread::{RouteSlot, Thread},
};
use crate::{
    filters::{self, FilterConfig, FilterScope, router, router::Router},
    network::{
        CompileContext,
        discovered::{Category, Discovered},
    },
    observe::{
        access_log::{AccessLogs, LogFilter},
        format::Format,
        stream_info::Metadata,
    },
    route::RouteTable,
};
use http::{HeaderValue, StatusCode};
use std::{rc::Rc, sync::Arc};
use weft_config::{
    Context,
    extension_config::FilterConfig as FilterSource,
    http_connection_manager::{self as config, HttpConnectionManager},
    substitution_format::SubstitutionFormatString,
};
use weft_control_api::Any;

/// Where a connection manager finds its routes.
pub enum Routes {
    Inline(Arc<RouteTable>),
    Rds(RouteSlot),
    Scoped(Arc<ScopeSeat>),
}

/// Where a filter's configuration is.
enum Place {
    Fixed(Arc<dyn FilterConfig>),
    Discovered(Arc<FilterSeat>),
}

/// One configured HTTP filter.
struct FilterEntry {
    name: Box<str>,
    config: Place,
    /// Off unless a route turns it on.
    disabled: bool,
}

/// A compiled connection manager.
pub struct ConnectionManager {
    pub config: HttpConnectionManager,
    pub routes: Routes,
    pub router: Arc<Router>,
    filters: Vec<FilterEntry>,
    pub early_mutations: Mutations,
    pub response: ResponseRules,
    pub local_reply: LocalReplyRules,
    pub access_logs: AccessLogs,
    pub listener_metadata: Option<Arc<Metadata>>,
    /// `listener.<this>.http.PREFIX.*`
    pub listener_stat_name: Arc<str>,
    pub buffer_limit: usize,
    /// `drain_type: MODIFY_ONLY`: a failed health check does not drain its connections.
    pub drain_modify_only: bool,
    /// Something reads the response's headers after they were sent.
    pub keeps_response: bool,
}

impl ConnectionManager {
    /// Compiles all but where the routes are.
    pub fn compile(
        config: HttpConnectionManager,
        routes: Routes,
        context: &mut CompileContext<'_>,
        cx: &mut Context,
    ) -> Self {
        let (filters, router) = compile_filters("http_filters", &config.http_filters, context, cx);
        let (listener, writer) = (&context.listener, context.log_writer);
        for (i, upgrade) in config.upgrade_configs.iter().enumerate() {
            cx.element("upgrade_configs", i, |cx| cx.unsupported_if("filters", !upgrade.filters.is_empty()));
        }
        let access_logs = AccessLogs::compile("access_log", &config.access_log, writer, cx);
        cx.unsupported_if("access_log_flush_interval", config.access_log_flush_interval.is_some());
        Self {
            routes,
            router: Arc::new(router),
            filters,
            early_mutations: Mutations::compile("early_header_mutation_extensions", &config.early_header_mutations, cx),
            response: ResponseRules::new(&config),
            local_reply: cx.field("local_reply_config", |cx| compile_local_reply(&config.local_reply, cx)),
            keeps_response: access_logs.reads_response(),
            access_logs,
            listener_metadata: listener.metadata.clone(),
            listener_stat_name: listener.stat_name.clone(),
            buffer_limit: listener.buffer_limit,
            drain_modify_only: listener.drain_modify_only,
            config,
        }
    }

    /// One worker's part of the filters.
    pub fn activate_filters(self: &Arc<Self>, thread: &Rc<Thread>) -> ActiveFilters {
        let prefix = format!("http.{}", self.stat_name());
        let scope = FilterScope { thread, stat_prefix: &prefix };
        let activate = |entry: &FilterEntry| ActiveEntry {
            name: entry.name.clone(),
            filter: match &entry.config {
                Place::Fixed(config) => config.clone().activate(&scope),
                Place::Discovered(seat) => ActiveSeat::filter(seat, &scope),
            },
            disabled: entry.disabled,
        };
        ActiveFilters::new(self.clone(), self.filters.iter().map(activate).collect())
    }

    /// Its stats' name: `http.<this>.*`
    pub fn stat_name(&self) -> String {
        self.config.stat_prefix.trim_end_matches('.').replace(':', "_")
    }

    /// True if an upgrade of this kind is allowed where the route says nothing.
    pub fn allows_upgrade(&self, kind: &[u8]) -> bool {
        self.config.upgrade_configs.iter().any(|u| u.enabled && u.upgrade_type.as_bytes().eq_ignore_ascii_case(kind))
    }
}

/// Compiles filters; the last must be the router.
fn compile_filters(
    name: &str,
    configs: &[config::HttpFilter],
    context: &mut CompileContext<'_>,
    cx: &mut Context,
) -> (Vec<FilterEntry>, Router) {
    let mut entries = Vec::new();
    let mut found_router = None;
    for (i, filter) in configs.iter().enumerate() {
        cx.element(name, i, |cx| {
            let config = match &filter.config {
                FilterSource::Typed(any) => {
                    let type_name = any.type_url.rsplit('/').next().unwrap_or_default();
                    if type_name == router::FACTORY.type_name {
                        if i + 1 < configs.len() {
                            cx.problem(format!(
                                "terminal filter named {} of type {type_name} must be the last filter in a http filter \
                                 chain",
                                filter.name
                            ));
                        }
                        found_router = router::parse(any, cx);
                        return;
                    }
                    if filter.is_optional && filters::by_type(&any.type_url).is_none() {
                        return;
                    }
                    parse_filter(any, cx).map(Place::Fixed)
                }
                FilterSource::Discovery(_) if i + 1 == configs.len() => {
                    cx.problem_at("config_discovery", "is not supported for the terminal filter");
                    None
                }
                FilterSource::Discovery(source) => {
                    let parse = |any: &Any, _: &mut CompileContext<'_>, cx: &mut Context| parse_filter(any, cx);
                    Discovered::new(Category::Http, &filter.name, source, parse, context, cx).map(Place::Discovered)
                }
            };
            let entry = |config| FilterEntry { name: filter.name.as_str().into(), config, disabled: filter.disabled };
            entries.extend(config.map(entry));
        });
    }
    if found_router.is_none() && !cx.has_problems() {
        cx.problem_at(name, "non-terminal filters only: the last must be a terminal filter, envoy.filters.http.router");
    }
    (entries, found_router.unwrap_or_default())
}

/// Reads the configuration of a filter that is not the last.
fn parse_filter(any: &Any, cx: &mut Context) -> Option<Arc<dyn FilterConfig>> {
    let type_name = any.type_url.rsplit('/').next().unwrap_or_default();
    if type_name == router::FACTORY.type_name {
        cx.problem(format!("terminal filter of type {type_name} must be the last filter in a http filter chain"));
        return None;
    }
    let Some(factory) = filters::by_type(&any.type_url) else {
        let known: Vec<_> = filters::TABLE.iter().map(|factory| factory.name).collect();
        cx.problem_at(
            "typed_config",
            format!("found {type_name}, which is not supported; allowed: {}", known.join(", ")),
        );
        return None;
    };
    (factory.parse)(any, cx)
}

fn compile_local_reply(config: &config::LocalReplyConfig, cx: &mut Context) -> LocalReplyRules {
    LocalReplyRules {
        mappers: config
            .mappers
            .iter()
            .enumerate()
            .map(|(i, mapper)| {
                cx.element("mappers", i, |cx| Mapper {
                    filter: LogFilter(mapper.filter.clone()),
                    status: mapper.status_code.and_then(|code| StatusCode::from_u16(code).ok()),
                    body: mapper.body.as_ref().map(|source| source.data.clone()),
                    format: mapper
                        .body_format_override
                        .as_ref()
                        .and_then(|f| body_format("body_format_override", f, cx)),
                    headers: HeaderRules::response_additions("headers_to_add", &mapper.headers_to_add, cx),
                })
            })
            .collect(),
        format: config.body_format.as_ref().and_then(|f| body_format("body_format", f, cx)),
    }
}

fn body_format(name: &str, config: &SubstitutionFormatString, cx: &mut Context) -> Option<BodyFormat> {
    let format = cx.field(name, |cx| Format::compile(config, cx))?;
    Some(BodyFormat { format, content_type: HeaderValue::try_from(&config.content_type).ok()? })
}
