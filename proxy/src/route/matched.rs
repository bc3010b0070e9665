//! A request's route with everything above it: what it inherits, and what it does to heads.

use super::{Action, Forward, MatchContext, Route, RouteFilter, RouteTable, VirtualHost, action::Cluster};
use crate::{
    http::{RequestHead, ResponseHead, header_names::*, header_rules::HeaderRules, request_headers::append},
    observe::{
        StreamInfo,
        format::{Facts, Format},
    },
    upstream::{MetadataMatch, ThreadCluster, Upstreams},
};
use bytes::Bytes;
use http::HeaderValue;
use std::{rc::Rc, sync::Arc};
use weft_config::{
    header_value::HeaderKey,
    route::{HostRewrite, PathMatch, PathRewrite},
};

/// The route that a request took.
#[derive(Clone)]
pub struct MatchedRoute {
    pub table: Arc<RouteTable>,
    pub virtual_host: Arc<VirtualHost>,
    pub route: Arc<Route>,
    /// Which of the weighted clusters.
    choice: Option<usize>,
}

impl MatchedRoute {
    pub(super) fn new(
        table: Arc<RouteTable>,
        virtual_host: Arc<VirtualHost>,
        route: Arc<Route>,
        head: &RequestHead,
        context: &MatchContext<'_>,
    ) -> Self {
        let choice = match &route.action {
            Action::Forward(forward) => match &forward.cluster {
                Cluster::Weighted(weighted) => weighted.choose(head, context.random, context.runtime),
                _ => None,
            },
            _ => None,
        };
        Self { table, virtual_host, route, choice }
    }

    /// The cluster, if it is there.
    pub fn cluster(&self, upstreams: &Upstreams, head: &RequestHead) -> Option<Rc<ThreadCluster>> {
        self.route.action.forward()?.cluster.find(self.choice, upstreams, head)
    }

    /// The name of the cluster, whether or not it is there.
    pub fn cluster_name(&self, upstreams: &Upstreams, head: &RequestHead) -> Option<String> {
        self.route.action.forward()?.cluster.name(self.choice, upstreams, head)
    }

    /// The one of the weighted clusters that was chosen.
    fn weighted(&self) -> Option<&super::action::WeightedCluster> {
        match &self.route.action.forward()?.cluster {
            Cluster::Weighted(weighted) => weighted.clusters.get(self.choice?),
            _ => None,
        }
    }

    /// What the hosts that the request goes to must have in their metadata.
    pub fn metadata_match(&self) -> Option<&MetadataMatch> {
        match self.weighted() {
            Some(weighted) => weighted.metadata_match.as_ref(),
            None => self.route.action.forward()?.metadata_match.as_ref(),
        }
    }

    /// The header rules of all levels, in the order in which they act: the weighted cluster's are always the first.
    fn rules(&self) -> [Option<&HeaderRules>; 4] {
        let (route, host, table) = (&self.route.rules, &self.virtual_host.rules, &self.table.rules);
        let [first, second, third] =
            if self.table.most_specific_wins { [table, host, route] } else { [route, host, table] };
        [self.weighted().map(|w| &w.rules), Some(first), Some(second), Some(third)]
    }

    /// What is said of a filter, from the least to the most specific.
    pub fn filters<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a RouteFilter> {
        let levels = [
            Some(&self.table.per_filter),
            Some(&self.virtual_host.per_filter),
            Some(&self.route.per_filter),
            self.weighted().map(|weighted| &weighted.per_filter),
        ];
        levels.into_iter().flatten().filter_map(move |filters| filters.get(name))
    }

    /// False if nothing is said of any filter.
    pub fn has_filters(&self) -> bool {
        !(self.route.per_filter.is_empty()
            && self.virtual_host.per_filter.is_empty()
            && self.table.per_filter.is_empty()
            && self.weighted().is_none_or(|weighted| weighted.per_filter.is_empty()))
    }

    /// Which route of its table this is, and which of its weighted clusters.
    pub fn place(&self) -> (usize, Option<usize>) {
        (Arc::as_ptr(&self.route) as usize, self.choice)
    }

    pub fn include_attempt_count_in_response(&self) -> bool {
        self.virtual_host.include_attempt_count_in_response
    }

    /// Changes the request's head as the route says. `keep_originals`: what was replaced goes into `x-envoy-original-*`.
    pub fn finalize_request(&self, head: &mut RequestHead, info: &StreamInfo, keep_originals: bool) {
        for rules in self.rules().into_iter().flatten() {
            rules.apply_request(head, info);
        }
        let Some(forward) = self.route.action.forward() else { return };
        if let Some(host) = self.weighted().and_then(|w| w.host_rewrite.as_ref()) {
            head.authority = host.clone();
        }
        self.rewrite_host(head, forward, info, keep_originals);
        self.rewrite_path(head, forward, info, keep_originals);
    }

    /// Changes the response's head as the route says.
    pub fn finalize_response(&self, head: &mut ResponseHead, request: &RequestHead, info: &StreamInfo) {
        for rules in self.rules().into_iter().flatten() {
            rules.apply_response(head, request, info);
        }
    }

    fn rewrite_host(&self, head: &mut RequestHead, forward: &Forward, info: &StreamInfo, keep: bool) {
        let host = match &forward.config.host_rewrite {
            HostRewrite::Keep | HostRewrite::Auto => None,
            HostRewrite::Literal(host) => Some(Bytes::copy_from_slice(host.as_bytes())),
            HostRewrite::Header(HeaderKey::Name(name)) => {
                head.headers.get(name).map(|v| Bytes::copy_from_slice(v.as_bytes()))
            }
            HostRewrite::Header(HeaderKey::Path) => Some(head.path.clone()),
            HostRewrite::Header(_) => None,
            HostRewrite::PathRegex(rewrite) => Some(rewrite.apply(head.path_only()).into()),
            HostRewrite::Format(_) => forward.host_format.as_ref().map(|format| format_over(format, head, info).into()),
        };
        if let Some(host) = host.filter(|host: &Bytes| !host.is_empty()) {
            set_authority(head, host, forward.config.append_x_forwarded_host, keep);
        }
    }

    /// Takes the chosen host's name, where the route asks for that (`auto_host_rewrite`).
    pub fn rewrite_host_to(&self, head: &mut RequestHead, hostname: &str, keep: bool) {
        let Some(forward) = self.route.action.forward() else { return };
        if matches!(forward.config.host_rewrite, HostRewrite::Auto) && !hostname.is_empty() {
            set_authority(
                head,
                Bytes::copy_from_slice(hostname.as_bytes()),
                forward.config.append_x_forwarded_host,
                keep,
            );
        }
    }

    fn rewrite_path(&self, head: &mut RequestHead, forward: &Forward, info: &StreamInfo, keep: bool) {
        let plain = head.path_only();
        let query = &head.path[plain.len()..];
        let new = match &forward.config.path_rewrite {
            PathRewrite::Keep => return,
            PathRewrite::Prefix(prefix) => {
                let rest = match &self.route.matching.path {
                    PathMatch::Prefix(text) | PathMatch::SeparatedPrefix(text) | PathMatch::Exact(text) => {
                        // Path parameters may stand in what was matched without them.
                        match plain.split_at_checked(text.len()) {
                            Some((matched, rest)) if matched.eq_ignore_ascii_case(text.as_bytes()) => rest,
                            _ => return,
                        }
                    }
                    _ => b"",
                };
                [prefix.as_bytes(), rest, query].concat()
            }
            PathRewrite::Regex(rewrite) => match rewrite.apply(plain) {
                new if new.is_empty() => return,
                new => [&new, query].concat(),
            },
            PathRewrite::Format(_) => {
                let Some(format) = &forward.path_format else { return };
                match format_over(format, head, info) {
                    new if new.is_empty() => return,
                    new => [new.as_bytes(), query].concat(),
                }
            }
            PathRewrite::Template(rewrite) => {
                let PathMatch::Template(template) = &self.route.matching.path else { return };
                let Some(new) = template.rewrite(plain, rewrite) else { return };
                [&new, query].concat()
            }
        };
        if keep && let Ok(original) = HeaderValue::from_maybe_shared(head.path.clone()) {
            head.headers.insert(ENVOY_ORIGINAL_PATH, original);
        }
        head.path = new.into();
    }
}

fn format_over(format: &Format, head: &RequestHead, info: &StreamInfo) -> String {
    format.header_value(&Facts { request: Some(head), ..Facts::new(info) })
}

/// Replaces the authority.
fn set_authority(head: &mut RequestHead, host: Bytes, append_forwarded: bool, keep: bool) {
    if append_forwarded && !head.authority.is_empty() {
        // Not twice in a row, for a retry or a second proxy with the same host.
        let last = head
            .headers
            .get_all(FORWARDED_HOST)
            .iter()
            .next_back()
            .map(|v| v.as_bytes().rsplit(|b| *b == b',').next().unwrap_or_default());
        if last != Some(&head.authority) {
            append(&mut head.headers, FORWARDED_HOST, &head.authority, ",");
        }
    }
    if keep
        && !head.authority.is_empty()
        && let Ok(original) = HeaderValue::from_maybe_shared(head.authority.clone())
    {
        head.headers.insert(ENVOY_ORIGINAL_HOST, original);
    }
    head.authority = host;
}
