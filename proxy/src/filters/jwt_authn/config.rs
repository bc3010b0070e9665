//! The configuration of `jwt_authn`, and a route's.

use super::jwks::Jwks;
use crate::filters::{FilterConfig, FilterFactory, RouteFilterConfig};
use http::HeaderName;
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};
use weft_config::{Context, data_source::DataSource, route::RouteMatch, string_matcher::StringMatcher};
use weft_control_api::envoy::{
    config::core::v3::{HttpUri, http_uri::HttpUpstreamType},
    extensions::filters::http::jwt_authn::v3::{
        self as pb, jwt_provider::JwksSourceSpecifier, jwt_requirement::RequiresType,
        per_route_config::RequirementSpecifier, requirement_rule::RequirementType,
    },
};

pub const FACTORY: FilterFactory = FilterFactory {
    name: "envoy.filters.http.jwt_authn",
    type_name: "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
    parse: |any, cx| {
        let config = cx.unpack("typed_config", any)?;
        Some(Arc::new(cx.field("typed_config", |cx| JwtAuthn::from_proto(config, cx))) as Arc<dyn FilterConfig>)
    },
    route: Some(("envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig", |any, cx| {
        let pb::PerRouteConfig { requirement_specifier } = cx.unpack("", any)?;
        let requirement = match cx.required("requirement_specifier", requirement_specifier)? {
            RequirementSpecifier::Disabled(_) => RouteRequirement::Disabled,
            RequirementSpecifier::RequirementName(name) => RouteRequirement::Named(name),
        };
        Some(Arc::new(requirement) as RouteFilterConfig)
    })),
};

pub(super) struct JwtAuthn {
    pub providers: Vec<Provider>,
    pub rules: Vec<Rule>,
    pub named: BTreeMap<String, Option<Requirement>>,
    /// The key in filter state, and requirements by its value.
    pub by_filter_state: Option<(String, HashMap<String, Option<Requirement>>)>,
    pub bypass_cors_preflight: bool,
    pub strip_failure_response: bool,
    pub stat_prefix: String,
}

pub(super) enum RouteRequirement {
    Disabled,
    Named(String),
}

pub(super) struct Rule {
    pub matching: RouteMatch,
    /// `None`: nothing is required.
    pub requirement: Option<Requirement>,
}

/// What tokens a request has to have. Providers by number.
#[derive(Clone)]
pub(super) enum Requirement {
    /// With the audiences that it allows in place of the provider's.
    Provider(usize, Option<Audiences>),
    Any(Vec<Requirement>),
    All(Vec<Requirement>),
    AllowMissing,
    AllowMissingOrFailed,
}

pub(super) struct Provider {
    /// Empty: any.
    pub issuer: String,
    pub audiences: Audiences,
    pub subjects: Option<StringMatcher>,
    pub require_expiration: bool,
    pub max_lifetime: Option<Duration>,
    pub forward: bool,
    pub locations: Vec<Location>,
    pub payload_header: Option<HeaderName>,
    pub pad_payload_header: bool,
    pub payload_in_metadata: String,
    pub header_in_metadata: String,
    /// Claims that are lists, written with spaces.
    pub spaced_claims: Option<Vec<String>>,
    /// Seconds.
    pub clock_skew: u64,
    /// How many verified tokens are remembered, and the longest.
    pub cache: Option<(usize, usize)>,
    pub claims: Vec<Claim>,
    pub clear_route_cache: bool,
    pub keys: Keys,
}

/// A claim that becomes a header.
pub(super) struct Claim {
    pub header: HeaderName,
    pub path: Vec<String>,
}

/// Where a token may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Location {
    Header { name: HeaderName, prefix: String },
    Parameter(String),
    Cookie(String),
}

pub(super) enum Keys {
    /// `None`: there is none that can be read.
    Local(Option<Jwks>),
    Remote(Remote),
}

pub(super) struct Remote {
    pub cluster: String,
    pub authority: String,
    pub path: String,
    pub timeout: Duration,
    pub cache: Duration,
    /// Fetched before anybody asks; how soon again after a failure.
    pub background: Option<Duration>,
    pub retries: u32,
}

/// Without their scheme and last slash; empty: all are allowed.
#[derive(Clone, Default)]
pub(super) struct Audiences(Vec<String>);

impl Audiences {
    fn new(names: Vec<String>) -> Self {
        Self(names.iter().map(|name| plain(name).to_owned()).collect())
    }

    pub fn allow(&self, token: &[String]) -> bool {
        self.0.is_empty() || token.iter().any(|name| self.0.iter().any(|own| own == plain(name)))
    }
}

fn plain(audience: &str) -> &str {
    let rest = audience.strip_prefix("https://").or_else(|| audience.strip_prefix("http://")).unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
}

impl JwtAuthn {
    fn from_proto(p: pb::JwtAuthentication, cx: &mut Context) -> Self {
        let pb::JwtAuthentication {
            providers,
            rules,
            filter_state_rules,
            bypass_cors_preflight,
            requirement_map,
            strip_failure_response,
            stat_prefix,
        } = p;
        let mut all: Vec<_> = providers.into_iter().collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let numbers: HashMap<String, usize> = all.iter().enumerate().map(|(i, (name, _))| (name.clone(), i)).collect();
        let providers = all
            .into_iter()
            .filter_map(|(name, p)| cx.entry("providers", &name, |cx| Provider::from_proto(p, cx)))
            .collect();
        let named: BTreeMap<_, _> = requirement_map
            .into_iter()
            .map(|(name, p)| {
                let requirement = cx.entry("requirement_map", &name, |cx| Requirement::from_proto(p, &numbers, cx));
                (name, requirement)
            })
            .collect();
        let rules = cx.elements("rules", rules, |cx, p| Rule::from_proto(p, &numbers, &named, cx));
        let by_filter_state = filter_state_rules.map(|pb::FilterStateRule { name, requires }| {
            let requires = requires.into_iter().map(|(value, p)| {
                let read = |cx: &mut Context| Requirement::from_proto(p, &numbers, cx);
                let requirement = cx.field("filter_state_rules", |cx| cx.entry("requires", &value, read));
                (value, requirement)
            });
            (name, requires.collect())
        });
        Self { providers, rules, named, by_filter_state, bypass_cors_preflight, strip_failure_response, stat_prefix }
    }

    /// What a request's headers may say only because this filter says it.
    pub fn own_headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.providers.iter().flat_map(|p| p.payload_header.iter().chain(p.claims.iter().map(|claim| &claim.header)))
    }
}

impl Rule {
    fn from_proto(
        p: pb::RequirementRule,
        numbers: &HashMap<String, usize>,
        named: &BTreeMap<String, Option<Requirement>>,
        cx: &mut Context,
    ) -> Option<Self> {
        let pb::RequirementRule { r#match, requirement_type } = p;
        let matching = cx.required("match", r#match)?;
        let matching = cx.field("match", |cx| RouteMatch::from_proto(matching, cx));
        let requirement = match requirement_type {
            None => None,
            Some(RequirementType::Requires(p)) => cx.field("requires", |cx| Requirement::from_proto(p, numbers, cx)),
            Some(RequirementType::RequirementName(name)) => match named.get(&name) {
                Some(requirement) => requirement.clone(),
                None => {
                    cx.problem_at("requirement_name", format!("Wrong requirement_name: {name}. It is not in the map"));
                    None
                }
            },
        };
        Some(Self { matching: matching?, requirement })
    }
}

impl Requirement {
    fn from_proto(p: pb::JwtRequirement, numbers: &HashMap<String, usize>, cx: &mut Context) -> Option<Self> {
        let number = |field: &str, name: &str, cx: &mut Context| {
            let found = numbers.get(name).copied();
            if found.is_none() {
                cx.problem_at(field, format!("Required provider ['{name}'] is not configured."));
            }
            found
        };
        let list = |name: &str, all: Vec<pb::JwtRequirement>, cx: &mut Context| {
            cx.field(name, |cx| cx.elements("requirements", all, |cx, p| Self::from_proto(p, numbers, cx)))
        };
        Some(match p.requires_type? {
            RequiresType::ProviderName(name) => Self::Provider(number("provider_name", &name, cx)?, None),
            RequiresType::ProviderAndAudiences(pb::ProviderWithAudiences { provider_name, audiences }) => {
                let number = number("provider_and_audiences.provider_name", &provider_name, cx)?;
                Self::Provider(number, Some(Audiences::new(audiences)))
            }
            RequiresType::RequiresAny(pb::JwtRequirementOrList { requirements }) => {
                Self::Any(list("requires_any", requirements, cx))
            }
            RequiresType::RequiresAll(pb::JwtRequirementAndList { requirements }) => {
                Self::All(list("requires_all", requirements, cx))
            }
            RequiresType::AllowMissing(()) => Self::AllowMissing,
            RequiresType::AllowMissingOrFailed(()) => Self::AllowMissingOrFailed,
            RequiresType::ExtractOnlyWithoutValidation(_) => {
                cx.problem_at("extract_only_without_validation", "is not supported");
                return None;
            }
        })
    }
}

impl Provider {
    fn from_proto(p: pb::JwtProvider, cx: &mut Context) -> Option<Self> {
        let pb::JwtProvider {
            issuer,
            audiences,
            subjects,
            require_expiration,
            max_lifetime,
            forward,
            from_headers,
            from_params,
            from_cookies,
            forward_payload_header,
            pad_forward_payload_header,
            payload_in_metadata,
            normalize_payload_in_metadata,
            header_in_metadata,
            failed_status_in_metadata,
            clock_skew_seconds,
            jwt_cache_config,
            claim_to_headers,
            clear_route_cache,
            jwks_source_specifier,
        } = p;
        cx.unsupported_if("failed_status_in_metadata", !failed_status_in_metadata.is_empty());
        let header = |field: &str, text: &str, cx: &mut Context| {
            let name = HeaderName::try_from(text).ok();
            if name.is_none() {
                cx.problem_at(field, format!("found {text:?}, which is no header name"));
            }
            name
        };
        let mut locations = cx.elements("from_headers", from_headers, |cx, p| {
            let pb::JwtHeader { name, value_prefix } = p;
            Some(Location::Header { name: header("name", &name, cx)?, prefix: value_prefix })
        });
        locations.extend(from_params.into_iter().map(Location::Parameter));
        locations.extend(from_cookies.into_iter().map(Location::Cookie));
        if locations.is_empty() {
            let prefix = "Bearer ".to_owned();
            locations.push(Location::Header { name: http::header::AUTHORIZATION, prefix });
            locations.push(Location::Parameter("access_token".to_owned()));
        }
        let claims = cx.elements("claim_to_headers", claim_to_headers, |cx, p| {
            let pb::JwtClaimToHeader { header_name, claim_name, claim_path } = p;
            let path = match claim_path.is_empty() {
                true => claim_name.split('.').map(str::to_owned).collect(),
                false => claim_path.into_iter().map(|segment| segment.key).collect(),
            };
            Some(Claim { header: header("header_name", &header_name, cx)?, path })
        });
        let keys = match cx.required("jwks_source_specifier", jwks_source_specifier)? {
            JwksSourceSpecifier::LocalJwks(p) => {
                let source = cx.field("local_jwks", |cx| DataSource::from_proto(p, cx))?;
                Keys::Local(Jwks::parse(&source.data))
            }
            JwksSourceSpecifier::RemoteJwks(p) => {
                Keys::Remote(cx.field("remote_jwks", |cx| Remote::from_proto(p, cx))?)
            }
        };
        let cache = jwt_cache_config.map(|pb::JwtCacheConfig { jwt_cache_size, jwt_max_token_size }| {
            let or = |n: u32, default: usize| if n == 0 { default } else { usize::try_from(n).unwrap_or(default) };
            (or(jwt_cache_size, 100), or(jwt_max_token_size, 4096))
        });
        Some(Self {
            issuer,
            audiences: Audiences::new(audiences),
            subjects: subjects.and_then(|p| cx.field("subjects", |cx| StringMatcher::from_proto(p, cx))),
            require_expiration,
            max_lifetime: cx.duration("max_lifetime", max_lifetime),
            forward,
            locations,
            payload_header: match forward_payload_header.is_empty() {
                true => None,
                false => header("forward_payload_header", &forward_payload_header, cx),
            },
            pad_payload_header: pad_forward_payload_header,
            payload_in_metadata,
            header_in_metadata,
            spaced_claims: normalize_payload_in_metadata.map(|normalize| normalize.space_delimited_claims),
            clock_skew: if clock_skew_seconds == 0 { 60 } else { clock_skew_seconds.into() },
            cache,
            claims,
            clear_route_cache,
            keys,
        })
    }

    /// The payload as metadata has it.
    pub fn normalized(&self, payload: &serde_json::Map<String, Value>) -> serde_json::Map<String, Value> {
        let mut payload = payload.clone();
        for claim in self.spaced_claims.iter().flatten() {
            if let Some(Value::String(text)) = payload.get(claim) {
                let words: Vec<Value> = text.split_ascii_whitespace().map(|word| word.to_owned().into()).collect();
                payload.insert(claim.clone(), Value::Array(words));
            }
        }
        payload
    }
}

impl Remote {
    fn from_proto(p: pb::RemoteJwks, cx: &mut Context) -> Option<Self> {
        let pb::RemoteJwks { http_uri, cache_duration, async_fetch, retry_policy } = p;
        let HttpUri { uri, timeout, http_upstream_type } = cx.required("http_uri", http_uri)?;
        let (cluster, timeout) = cx.field("http_uri", |cx| {
            let HttpUpstreamType::Cluster(cluster) = cx.required("cluster", http_upstream_type)?;
            let timeout = cx.required("timeout", timeout)?;
            Some((cluster, cx.duration("timeout", Some(timeout))?))
        })?;
        let rest = uri.split_once("://").map_or(&*uri, |(_, rest)| rest);
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let background = async_fetch.map(|pb::JwksAsyncFetch { fast_listener, failed_refetch_duration }| {
            // Requests wait for the first fetch, not listeners.
            cx.ignored_if("async_fetch.fast_listener", fast_listener);
            let wait = cx.duration("async_fetch.failed_refetch_duration", failed_refetch_duration);
            wait.filter(|wait| !wait.is_zero()).unwrap_or(Duration::from_secs(1))
        });
        let cache = cx.duration("cache_duration", cache_duration).unwrap_or(Duration::from_secs(600));
        Some(Self {
            cluster,
            authority: authority.to_owned(),
            path: if path.is_empty() { "/".to_owned() } else { path.to_owned() },
            timeout,
            cache,
            background,
            // Back-offs and all else of the policy are our own.
            retries: retry_policy.map_or(0, |policy| policy.num_retries.unwrap_or(1).min(10)),
        })
    }
}
