//! `envoy.filters.http.header_to_metadata`: takes headers and cookies of requests and responses into dynamic metadata.
//!
//! A rule looks for one header or cookie and has a place for what it finds, for that there is nothing, or for both. Rules are
//! tried in order, each sees what the ones before it removed, and a later value takes an earlier one's place. What cannot be
//! read as its rule says is left out and counted.

mod message;
mod value;

use super::{
    Action, ActiveFilter, FilterConfig, FilterFactory, FilterScope, HttpFilter, LocalReply, RouteFilterConfig,
    most_specific,
};
use crate::{
    base::ResponseFlag,
    http::{ResponseHead, stream::Stream},
    observe::{
        stats::{Counter, Registry},
        stream_info::Metadata,
    },
    route::cookie,
    stats,
};
use http::StatusCode;
use message::{Message, header};
use std::{borrow::Cow, cell::RefCell, collections::BTreeMap, rc::Rc, sync::Arc};
use value::{Found, Reject};
use weft_config::{Context, header_value::HeaderKey};
use weft_control_api::envoy::extensions::filters::http::header_to_metadata::v3 as pb;

pub const FACTORY: FilterFactory = FilterFactory {
    name: NAMESPACE,
    type_name: "envoy.extensions.filters.http.header_to_metadata.v3.Config",
    parse: |any, cx| {
        let config: pb::Config = cx.unpack("typed_config", any)?;
        let config = cx.field("typed_config", |cx| HeaderToMetadata::from_proto(config, cx));
        Some(Arc::new(config) as Arc<dyn FilterConfig>)
    },
    route: Some(("envoy.extensions.filters.http.header_to_metadata.v3.Config", |any, cx| {
        let config: pb::Config = cx.unpack("", any)?;
        if config.request_rules.is_empty() && config.response_rules.is_empty() {
            cx.problem("found neither request_rules nor response_rules, of which there must be one");
        }
        Some(Arc::new(HeaderToMetadata::from_proto(config, cx)) as RouteFilterConfig)
    })),
};

/// Of metadata that is told no namespace.
const NAMESPACE: &str = "envoy.filters.http.header_to_metadata";

stats! {
    /// `http_filter_name.STAT_PREFIX.*`
    pub struct RuleStats {
        counter base64_decode_failed,
        counter header_value_too_long,
        counter regex_substitution_failed,
        counter request_header_not_found,
        counter request_metadata_added,
        counter request_rules_processed,
        counter response_header_not_found,
        counter response_metadata_added,
        counter response_rules_processed,
    }
}

/// The filter's configuration, or a route's in its place.
struct HeaderToMetadata {
    request: Vec<Rule>,
    response: Vec<Rule>,
    /// Without one nothing is counted.
    stat_prefix: Option<Box<str>>,
}

struct Rule {
    selector: Selector,
    present: Option<value::Entry>,
    missing: Option<value::Entry>,
}

enum Selector {
    /// `None`: a name that no header can have.
    Header {
        key: Option<HeaderKey>,
        remove: bool,
    },
    Cookie(String),
}

impl HeaderToMetadata {
    fn from_proto(p: pb::Config, cx: &mut Context) -> Self {
        let pb::Config { request_rules, response_rules, stat_prefix } = p;
        let stat_prefix = stat_prefix.trim_matches('.');
        Self {
            request: cx.elements("request_rules", request_rules, |cx, p| Rule::from_proto(p, cx)),
            response: cx.elements("response_rules", response_rules, |cx, p| Rule::from_proto(p, cx)),
            stat_prefix: (!stat_prefix.is_empty()).then(|| stat_prefix.into()),
        }
    }
}

impl Rule {
    fn from_proto(p: pb::config::Rule, cx: &mut Context) -> Option<Self> {
        let pb::config::Rule { header, cookie, on_header_present, on_header_missing, remove } = p;
        match (header.is_empty(), cookie.is_empty()) {
            (true, true) => cx.problem("found neither header nor cookie, of which there must be one"),
            (false, false) => cx.problem("found both header and cookie, of which there may be one only"),
            (true, false) if remove => cx.problem_at("remove", "found true, which is not allowed for a cookie"),
            _ => {}
        }
        if on_header_present.is_none() && on_header_missing.is_none() {
            cx.problem("found neither on_header_present nor on_header_missing, of which there must be one");
        }
        if on_header_missing.as_ref().is_some_and(|entry| entry.value.is_empty()) {
            cx.problem_at("on_header_missing.value", "must not be empty: there is no header to take a value from");
        }
        let entry = |name, cx: &mut Context, p: Option<_>| cx.field(name, |cx| value::Entry::from_proto(p?, cx));
        Some(Self {
            present: entry("on_header_present", cx, on_header_present),
            missing: entry("on_header_missing", cx, on_header_missing),
            selector: match cookie.is_empty() {
                true => Selector::Header { key: HeaderKey::parse(&header), remove },
                false => Selector::Cookie(cookie),
            },
        })
    }
}

impl Selector {
    fn find<'a>(&self, head: &'a impl Message) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Header { key, .. } => header(head, key.as_ref()?),
            // An empty cookie is none.
            Self::Cookie(name) => cookie(head.headers(), name).filter(|value| !value.is_empty()).map(Cow::from),
        }
    }

    /// The header to remove, if there is one.
    fn removes(&self) -> Option<&HeaderKey> {
        match self {
            Self::Header { key, remove: true } => key.as_ref(),
            _ => None,
        }
    }
}

/// Which counters rules of a direction count in.
struct Counts<'a> {
    stats: &'a RuleStats,
    processed: &'a Counter,
    added: &'a Counter,
    not_found: &'a Counter,
}

impl<'a> Counts<'a> {
    fn request(stats: &'a RuleStats) -> Self {
        Self {
            stats,
            processed: &stats.request_rules_processed,
            added: &stats.request_metadata_added,
            not_found: &stats.request_header_not_found,
        }
    }

    fn response(stats: &'a RuleStats) -> Self {
        Self {
            stats,
            processed: &stats.response_rules_processed,
            added: &stats.response_metadata_added,
            not_found: &stats.response_header_not_found,
        }
    }

    fn outcome(&self, outcome: &Found) {
        match outcome {
            Ok(_) => self.added.inc(),
            Err(Reject::TooLong) => self.stats.header_value_too_long.inc(),
            Err(Reject::NoBase64) => self.stats.base64_decode_failed.inc(),
            Err(Reject::Rewritten) => self.stats.regex_substitution_failed.inc(),
            Err(Reject::Empty | Reject::Unreadable) => {}
        }
    }
}

/// Applies rules to a message. Gives the name of what was removed and the message cannot go on without.
fn apply(
    rules: &[Rule],
    head: &mut impl Message,
    metadata: &mut Metadata,
    counts: Option<Counts<'_>>,
) -> Option<&'static str> {
    let mut needed = None;
    for rule in rules {
        let found = rule.selector.find(head);
        let is_there = found.is_some();
        let entry = if is_there { &rule.present } else { &rule.missing };
        let outcome = entry.as_ref().map(|entry| (entry, entry.read(found.as_deref().unwrap_or_default())));
        if let Some(counts) = &counts {
            counts.processed.inc();
            if !is_there && entry.is_some() {
                counts.not_found.inc();
            }
            if let Some((_, outcome)) = &outcome {
                counts.outcome(outcome);
            }
        }
        match outcome {
            Some((entry, Ok(value))) => entry.put(value, metadata),
            Some((_, Err(reject))) => tracing::debug!(target: "filter", "no metadata of a header: {reject:?}"),
            None => {}
        }
        if let Some(key) = rule.selector.removes().filter(|_| is_there) {
            match key {
                HeaderKey::Name(name) => {
                    head.headers_mut().remove(name);
                }
                pseudo => needed = needed.or(head.remove_pseudo(pseudo)),
            }
        }
    }
    needed
}

impl FilterConfig for HeaderToMetadata {
    fn activate(self: Arc<Self>, scope: &FilterScope<'_>) -> Rc<dyn ActiveFilter> {
        let stats = StatsByPrefix { registry: scope.thread.registry.clone(), all: RefCell::default() };
        // There from the start, at zero.
        stats.of(&self);
        Rc::new(Active { config: self, stats })
    }
}

/// One worker's part.
struct Active {
    config: Arc<HeaderToMetadata>,
    stats: StatsByPrefix,
}

/// The worker's counters, of the filter's own configuration and of those of routes.
struct StatsByPrefix {
    registry: Registry,
    all: RefCell<BTreeMap<Box<str>, Arc<RuleStats>>>,
}

impl StatsByPrefix {
    fn of(&self, config: &HeaderToMetadata) -> Option<Arc<RuleStats>> {
        let prefix = config.stat_prefix.as_ref()?;
        let mut all = self.all.borrow_mut();
        if let Some(stats) = all.get(prefix) {
            return Some(stats.clone());
        }
        let stats: Arc<RuleStats> = self.registry.attach(&format!("http_filter_name.{prefix}"));
        all.insert(prefix.clone(), stats.clone());
        Some(stats)
    }
}

impl ActiveFilter for Active {
    fn create(&self, _: &Stream, routes: &[RouteFilterConfig]) -> Option<Box<dyn HttpFilter>> {
        let of_route = most_specific::<HeaderToMetadata>(routes);
        let config = of_route.unwrap_or_else(|| self.config.clone());
        if config.request.is_empty() && config.response.is_empty() {
            return None;
        }
        let stats = self.stats.of(&config);
        Some(Box::new(Filter { config, stats, lost_status: false }))
    }
}

struct Filter {
    config: Arc<HeaderToMetadata>,
    stats: Option<Arc<RuleStats>>,
    /// The response lost its status and is being replaced.
    lost_status: bool,
}

impl HttpFilter for Filter {
    fn on_request(&mut self, stream: &mut Stream, _end: bool) -> Action {
        let counts = self.stats.as_deref().map(Counts::request);
        let needed = apply(&self.config.request, &mut stream.request, &mut stream.info.dynamic_metadata, counts);
        // Only an upstream would miss it.
        let forwards = stream.route.as_ref().is_some_and(|route| route.route.action.forward().is_some());
        match needed.filter(|_| forwards) {
            Some(name) => {
                stream.info.set_flag(ResponseFlag::DownstreamProtocolError);
                Action::Reply(lost(name, StatusCode::SERVICE_UNAVAILABLE, "request"))
            }
            None => Action::Continue,
        }
    }

    fn on_response(&mut self, stream: &mut Stream, head: &mut ResponseHead, _end: bool) -> Action {
        if self.lost_status {
            return Action::Continue;
        }
        let counts = self.stats.as_deref().map(Counts::response);
        match apply(&self.config.response, head, &mut stream.info.dynamic_metadata, counts) {
            Some(name) => {
                self.lost_status = true;
                stream.info.response_code_details = None;
                Action::Reply(lost(name, StatusCode::BAD_GATEWAY, "response"))
            }
            None => Action::Continue,
        }
    }
}

/// The answer in place of a message without a header that each must have.
fn lost(name: &str, status: StatusCode, message: &str) -> LocalReply {
    let details = format!("filter_removed_required_{message}_headers{{missing_required_header:_{name}}}");
    LocalReply::new(status, format!("missing required header: {name}"), details)
}

#[cfg(test)]
mod tests;
