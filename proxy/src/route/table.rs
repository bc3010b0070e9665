//! Which route a request takes: its virtual host by domain, then the first route whose conditions all hold.

use super::{Action, MatchedRoute, RateLimits, RouteFilters, action::Compiler, index::PathIndex};
use crate::{
    base::RuntimeSnapshot,
    http::{
        RequestHead, grpc,
        header_names::FORWARDED_PROTO,
        header_rules::HeaderRules,
        message::{query_of, query_parameter},
        request_headers::port_colon,
    },
    observe::{StreamInfo, stream_info::Metadata},
    upstream::Names,
};
use foldhash::HashMap;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::{borrow::Cow, sync::Arc};
use weft_config::{
    Context,
    config_source::ConfigSource,
    header_matcher::HeaderMatcher,
    header_value::HeaderKey,
    route::{self as config, PathMatch, RequireTls, RouteMatch},
};

/// A compiled route configuration.
pub struct RouteTable {
    pub name: Arc<str>,
    hosts: Vec<Arc<VirtualHost>>,
    exact: HashMap<Box<str>, u32>,
    /// `*.foo` and `*-foo` by the length of what follows the star, longest first; likewise `foo.*`.
    suffixes: Vec<(usize, HashMap<Box<str>, u32>)>,
    prefixes: Vec<(usize, HashMap<Box<str>, u32>)>,
    any: Option<u32>,
    internal_only: Vec<HeaderName>,
    ignore_port: bool,
    ignore_path_parameters: bool,
    vhost_header: Option<HeaderName>,
    pub rules: HeaderRules,
    pub most_specific_wins: bool,
    pub per_filter: RouteFilters,
    /// Where virtual hosts that it does not have are asked for.
    pub vhds: Option<Arc<ConfigSource>>,
}

/// A compiled virtual host.
pub struct VirtualHost {
    pub name: Arc<str>,
    routes: Vec<Arc<Route>>,
    index: PathIndex,
    require_tls: RequireTls,
    pub rules: HeaderRules,
    pub per_filter: RouteFilters,
    pub metadata: Option<Arc<Metadata>>,
    pub include_attempt_count: bool,
    pub include_attempt_count_in_response: bool,
    virtual_clusters: Vec<(Arc<str>, Vec<HeaderMatcher>)>,
    pub rate_limits: RateLimits,
}

/// A compiled route.
pub struct Route {
    /// Empty names are no names.
    pub name: Option<Arc<str>>,
    pub matching: RouteMatch,
    pub action: Action,
    pub rules: HeaderRules,
    pub per_filter: RouteFilters,
    pub metadata: Option<Arc<Metadata>>,
    pub stat_prefix: Option<Arc<str>>,
    pub request_buffer_limit: Option<u64>,
}

/// What matching may ask beside the request itself.
pub struct MatchContext<'a> {
    pub random: u64,
    pub runtime: &'a RuntimeSnapshot,
    pub is_tls: bool,
    pub is_internal: bool,
    pub info: &'a StreamInfo,
}

/// What the table says of a request.
pub enum RouteOutcome {
    Matched(MatchedRoute),
    /// The virtual host wants TLS: the client is sent to this URL.
    TlsRedirect(HeaderValue),
    NoVirtualHost,
    NoRoute,
}

/// Metadata in the form that stream facts have; `None` if there is none.
pub fn shared_metadata(metadata: &weft_config::metadata::Metadata) -> Option<Arc<Metadata>> {
    (!metadata.is_empty()).then(|| Arc::new(metadata.iter().map(|(k, v)| (k.as_str().into(), v.clone())).collect()))
}

impl RouteTable {
    /// Compiles a configuration; formats that cannot be compiled are problems.
    pub fn compile(config: &config::RouteConfiguration, names: &mut Names, cx: &mut Context) -> Self {
        let mut table = Self {
            name: config.name.as_str().into(),
            hosts: Vec::with_capacity(config.virtual_hosts.len()),
            exact: HashMap::default(),
            suffixes: Vec::new(),
            prefixes: Vec::new(),
            any: None,
            internal_only: config.internal_only_headers.clone(),
            ignore_port: config.ignore_port_in_host_matching,
            ignore_path_parameters: config.ignore_path_parameters_in_path_matching,
            vhost_header: config.vhost_header.clone(),
            rules: HeaderRules::compile(&config.headers, cx),
            most_specific_wins: config.most_specific_header_mutations_wins,
            per_filter: RouteFilters::compile(&config.per_filter, cx),
            vhds: config.vhds.clone(),
        };
        for (i, host) in config.virtual_hosts.iter().enumerate() {
            let number = i as u32;
            for domain in &host.domains {
                table.add_domain(domain, number);
            }
            let host = cx.element("virtual_hosts", i, |cx| VirtualHost::compile(host, names, cx));
            table.hosts.push(Arc::new(host));
        }
        table
    }

    fn add_domain(&mut self, domain: &str, number: u32) {
        let by_length = |lists: &mut Vec<(usize, HashMap<Box<str>, u32>)>, text: &str| {
            let at =
                lists.binary_search_by_key(&std::cmp::Reverse(text.len()), |(length, _)| std::cmp::Reverse(*length));
            let at = at.unwrap_or_else(|at| {
                lists.insert(at, (text.len(), HashMap::default()));
                at
            });
            lists[at].1.entry(text.into()).or_insert(number);
        };
        if domain == "*" {
            self.any.get_or_insert(number);
        } else if let Some(suffix) = domain.strip_prefix('*') {
            by_length(&mut self.suffixes, suffix);
        } else if let Some(prefix) = domain.strip_suffix('*') {
            by_length(&mut self.prefixes, prefix);
        } else {
            self.exact.entry(domain.into()).or_insert(number);
        }
    }

    /// The host that virtual hosts are looked up by, for an authority.
    pub fn host_of(&self, authority: &[u8]) -> String {
        let port = if self.ignore_port { port_colon(authority) } else { None };
        String::from_utf8_lossy(&authority[..port.unwrap_or(authority.len())]).to_ascii_lowercase()
    }

    pub fn internal_only_headers(&self) -> &[HeaderName] {
        &self.internal_only
    }

    /// The virtual host of an authority.
    fn virtual_host(&self, authority: &[u8]) -> Option<&Arc<VirtualHost>> {
        let only_any = self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty();
        if only_any {
            return self.any.and_then(|number| self.hosts.get(number as usize));
        }
        let mut authority = authority;
        if self.ignore_port
            && let Some(colon) = port_colon(authority)
        {
            authority = &authority[..colon];
        }
        let text = String::from_utf8_lossy(authority);
        let host: Cow<'_, str> =
            if text.bytes().any(|b| b.is_ascii_uppercase()) { text.to_ascii_lowercase().into() } else { text };
        let host = &*host;
        let found = self.exact.get(host).or_else(|| {
            // A wildcard stands for at least one character.
            let suffix = self
                .suffixes
                .iter()
                .filter(|(length, _)| *length < host.len())
                .find_map(|(length, hosts)| hosts.get(host.get(host.len() - length..)?));
            suffix.or_else(|| {
                self.prefixes
                    .iter()
                    .filter(|(length, _)| *length < host.len())
                    .find_map(|(length, hosts)| hosts.get(host.get(..*length)?))
            })
        });
        found.copied().or(self.any).and_then(|number| self.hosts.get(number as usize))
    }

    /// The route that `head` takes.
    pub fn find(self: &Arc<Self>, head: &RequestHead, context: &MatchContext<'_>) -> RouteOutcome {
        let authority = match &self.vhost_header {
            Some(name) => match head.headers.get(name) {
                Some(value) => value.as_bytes(),
                None => return RouteOutcome::NoVirtualHost,
            },
            None => &head.authority,
        };
        // The connection manager sets one that is missing; an empty one belongs to no request that could be routed.
        if head.headers.get(FORWARDED_PROTO).is_some_and(HeaderValue::is_empty) {
            return RouteOutcome::NoRoute;
        }
        let Some(host) = self.virtual_host(authority) else { return RouteOutcome::NoVirtualHost };
        if let Some(location) = host.tls_redirect(head, context) {
            return RouteOutcome::TlsRedirect(location);
        }
        let mut path = Cow::Borrowed(head.path_only());
        if self.ignore_path_parameters && memchr::memchr(b';', &path).is_some() {
            path = without_parameters(&path).into();
        }
        let path = &*path;
        let found = host.index.first(path, |number| {
            host.routes.get(number as usize).is_some_and(|route| route_matches(&route.matching, head, path, context))
        });
        let Some(route) = found.and_then(|number| host.routes.get(number as usize)) else {
            return RouteOutcome::NoRoute;
        };
        RouteOutcome::Matched(MatchedRoute::new(self.clone(), host.clone(), route.clone(), head, context))
    }
}

impl VirtualHost {
    fn compile(config: &config::VirtualHost, names: &mut Names, cx: &mut Context) -> Self {
        let routes: Vec<_> = config
            .routes
            .iter()
            .enumerate()
            .map(|(i, route)| {
                cx.element("routes", i, |cx| {
                    Arc::new(Route {
                        name: (!route.name.is_empty()).then(|| route.name.as_str().into()),
                        matching: route.matching.clone(),
                        action: Compiler { names, host: config }.action(route, cx),
                        rules: HeaderRules::compile(&route.headers, cx),
                        per_filter: RouteFilters::compile(&route.per_filter, cx),
                        metadata: shared_metadata(&route.metadata),
                        stat_prefix: (!route.stat_prefix.is_empty()).then(|| route.stat_prefix.as_str().into()),
                        request_buffer_limit: route.request_buffer_limit,
                    })
                })
            })
            .collect();
        Self {
            name: config.name.as_str().into(),
            index: PathIndex::new(routes.iter().map(|route| &route.matching).collect::<Vec<_>>().into_iter()),
            routes,
            require_tls: config.require_tls,
            rules: HeaderRules::compile(&config.headers, cx),
            per_filter: RouteFilters::compile(&config.per_filter, cx),
            metadata: shared_metadata(&config.metadata),
            rate_limits: RateLimits::compile(&config.rate_limits, cx),
            include_attempt_count: config.include_request_attempt_count,
            include_attempt_count_in_response: config.include_attempt_count_in_response,
            virtual_clusters: config
                .virtual_clusters
                .iter()
                .map(|c| (c.name.as_str().into(), c.headers.clone()))
                .collect(),
        }
    }

    /// The first virtual cluster that takes the request; Envoy calls the rest `other`.
    pub fn virtual_cluster(&self, head: &RequestHead) -> Option<Arc<str>> {
        if self.virtual_clusters.is_empty() {
            return None;
        }
        let found = self.virtual_clusters.iter().find(|(_, headers)| headers.iter().all(|m| header_matches(m, head)));
        Some(found.map_or_else(|| "other".into(), |(name, _)| name.clone()))
    }

    fn tls_redirect(&self, head: &RequestHead, context: &MatchContext<'_>) -> Option<HeaderValue> {
        let wanted = match self.require_tls {
            RequireTls::None => false,
            RequireTls::All => true,
            RequireTls::ExternalOnly => !context.is_internal,
        };
        let forwarded = head.headers.get(FORWARDED_PROTO).map(HeaderValue::as_bytes);
        if !wanted || forwarded == Some(b"https") {
            return None;
        }
        HeaderValue::from_bytes(&[b"https://", &head.authority[..], &head.path].concat()).ok()
    }
}

/// The path with every segment cut at its first semicolon.
fn without_parameters(path: &[u8]) -> Vec<u8> {
    let segments: Vec<&[u8]> =
        path.split(|b| *b == b'/').map(|segment| segment.split(|b| *b == b';').next().unwrap_or_default()).collect();
    segments.join(&b'/')
}

/// True if all of the route's conditions hold; `path` is what is compared, without its query.
pub fn route_matches(matching: &RouteMatch, head: &RequestHead, path: &[u8], context: &MatchContext<'_>) -> bool {
    let same = |a: &[u8], b: &[u8]| if matching.case_sensitive { a == b } else { a.eq_ignore_ascii_case(b) };
    // CONNECT has no path: only its own matcher (or a prefix of "/" is not one) takes it.
    let path_fits = match &matching.path {
        PathMatch::Connect => head.is_connect() || is_connect_upgrade(head),
        _ if head.is_connect() => false,
        PathMatch::Prefix(prefix) => path.get(..prefix.len()).is_some_and(|start| same(start, prefix.as_bytes())),
        PathMatch::Exact(exact) => same(path, exact.as_bytes()),
        PathMatch::SeparatedPrefix(prefix) => {
            path.get(..prefix.len()).is_some_and(|start| same(start, prefix.as_bytes()))
                && path.get(prefix.len()).is_none_or(|next| *next == b'/')
        }
        PathMatch::Regex(regex) => regex.is_match(path),
        PathMatch::Template(template) => template.matches(path),
    };
    path_fits
        && matching.runtime_fraction.as_ref().is_none_or(|fraction| context.runtime.takes(fraction, context.random))
        && (!matching.grpc || grpc::is_grpc(&head.headers))
        && matching.headers.iter().all(|m| header_matches(m, head))
        && (matching.query_parameters.is_empty() || query_matches(matching, head))
        && matching.cookies.iter().all(|m| m.matches(cookie(&head.headers, &m.name)))
        && matching.tls.is_none_or(|tls| tls.presented != Some(true) && tls.validated != Some(true))
        && matching.dynamic_metadata.iter().all(|m| m.matches(|name| context.info.dynamic_metadata.get(name)))
        && matching.filter_state.iter().all(|(key, m)| {
            context
                .info
                .filter_state
                .get(key.as_str())
                .and_then(|v| std::str::from_utf8(&v.text).ok())
                .is_some_and(|v| m.matches(v))
        })
}

/// An extended CONNECT, which became GET with `upgrade` in the connection manager.
fn is_connect_upgrade(head: &RequestHead) -> bool {
    head.upgrade
        .as_ref()
        .is_some_and(|kind| kind.eq_ignore_ascii_case(b"connect-udp") || kind.eq_ignore_ascii_case(b"connect-ip"))
}

/// Tests one header, pseudo-headers included.
pub fn header_matches(matcher: &HeaderMatcher, head: &RequestHead) -> bool {
    let pseudo = |value: &[u8]| matcher.matches((!value.is_empty()).then_some(value));
    match &matcher.key {
        HeaderKey::Authority => pseudo(&head.authority),
        HeaderKey::Path => pseudo(&head.path),
        HeaderKey::Method => pseudo(head.method.as_str().as_bytes()),
        HeaderKey::Scheme => pseudo(&head.scheme),
        HeaderKey::Protocol => pseudo(head.upgrade.as_deref().unwrap_or_default()),
        HeaderKey::Status => matcher.matches([]),
        HeaderKey::Name(name) => matcher.matches(head.headers.get_all(name).iter().map(HeaderValue::as_bytes)),
    }
}

fn query_matches(matching: &RouteMatch, head: &RequestHead) -> bool {
    let query = query_of(&head.path);
    matching.query_parameters.iter().all(|m| m.matches(query_parameter(query, &m.name)))
}

/// The value of the first cookie of this name, without quotes.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let values = headers.get_all(http::header::COOKIE).iter();
    values.flat_map(|value| value.as_bytes().split(|b| *b == b';')).find_map(|pair| {
        let at = memchr::memchr(b'=', pair)?;
        let (key, value) = (&pair[..at], &pair[at + 1..]);
        let spaces = key.iter().take_while(|b| **b == b' ').count();
        let unquoted = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
        (&key[spaces..] == name.as_bytes()).then(|| unquoted.unwrap_or(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Address, ConnectionInfo};
    use http::Method;
    use std::rc::Rc;
    use weft_control_api::envoy::config::route::v3 as pb;

    fn table(domains: &[&[&str]]) -> Arc<RouteTable> {
        let hosts = domains.iter().map(|domains| pb::VirtualHost {
            name: domains.join(","),
            domains: domains.iter().map(|d| d.to_string()).collect(),
            routes: vec![pb::Route {
                name: domains.join(","),
                r#match: Some(pb::RouteMatch {
                    path_specifier: Some(pb::route_match::PathSpecifier::Prefix("/".into())),
                    ..Default::default()
                }),
                action: Some(pb::route::Action::NonForwardingAction(pb::NonForwardingAction {})),
                ..Default::default()
            }],
            ..Default::default()
        });
        let mut cx = Context::new();
        let config = config::RouteConfiguration::from_proto(
            pb::RouteConfiguration { virtual_hosts: hosts.collect(), ..Default::default() },
            &mut cx,
        );
        let (config, _) = cx.finish(config).unwrap();
        Arc::new(RouteTable::compile(&config, &mut Names::default(), &mut Context::new()))
    }

    fn find(table: &Arc<RouteTable>, authority: &str) -> Option<String> {
        let local = Address::Unix("".into());
        let info = StreamInfo::new(Rc::new(ConnectionInfo::accepted(1, local.clone(), local)));
        let mut head = RequestHead::new(Method::GET, "/");
        head.authority = authority.to_owned().into();
        let runtime = RuntimeSnapshot::default();
        match table
            .find(&head, &MatchContext { random: 0, runtime: &runtime, is_tls: false, is_internal: false, info: &info })
        {
            RouteOutcome::Matched(route) => Some(route.route.name.as_deref()?.to_owned()),
            _ => None,
        }
    }

    /// The expectations are Envoy's answers to the same configuration.
    #[test]
    fn domains_by_precedence() {
        let table = table(&[
            &["example.com"],
            &["*.example.com"],
            &["*.b.example.com", "*-x.example.com"],
            &["www.*"],
            &["www.ex*"],
            &["*"],
            &["www.example.com:8080", "[::1]", "UPPER.org"],
            &["*.org"],
        ]);
        for (host, want) in [
            ("EXAMPLE.com", "example.com"),
            ("a.example.com", "*.example.com"),
            ("a.b.example.com", "*.b.example.com,*-x.example.com"),
            (".example.com", "*"),
            ("q-x.example.com", "*.b.example.com,*-x.example.com"),
            ("www.example.com", "*.example.com"),
            ("www.example.net", "www.ex*"),
            ("www.foo.net", "www.*"),
            ("www.", "*"),
            ("www.example.com:8080", "www.example.com:8080,[::1],UPPER.org"),
            ("upper.ORG", "www.example.com:8080,[::1],UPPER.org"),
            ("x.y.org", "*.org"),
        ] {
            assert_eq!(find(&table, host).as_deref(), Some(want), "{host}");
        }
    }
}
