//! Tags: parts of a stat's name that tell of whom it counts. `cluster.foo.upstream_rq_200` is `cluster.upstream_rq` with the tags
//! `envoy.cluster_name=foo` and `envoy.response_code=200`.
//!
//! Called when stats are printed for Prometheus (and for sinks that know tags). Every extractor looks at the full name; what
//! they take is cut out together in the end.

use regex::{Regex, bytes};
use std::{ops::Range, sync::OnceLock};
use weft_config::bootstrap::{StatsConfig, TagValue};

/// A tag of a stat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// `envoy.cluster_name`
    pub name: String,
    pub value: String,
}

/// All that takes tags out of names, in order.
pub struct TagExtractors {
    /// For all names.
    general: Vec<Extractor>,
    /// For names that begin with a word and a dot.
    by_first_word: Vec<(String, Extractor)>,
}

struct Extractor {
    name: String,
    rule: Rule,
}

enum Rule {
    Fixed(String),
    /// Group 1 is cut out, group 2 (or 1) is the value.
    Regex(Regex),
    /// The same out of [`DEFAULTS`]. Names without `contains` need no look. Built when the first name needs one: all of
    /// them together take longer and more memory than the rest of the start.
    Default {
        pattern: &'static str,
        contains: &'static str,
        regex: OnceLock<bytes::Regex>,
    },
    Tokens(&'static str),
}

/// Envoy's own tags: name, pattern, what names must contain. A pattern that begins with `^` or `_` or holds `(` is a regular
/// expression; the others are words between dots: `*` is any one word, `$` the one to take, `**` the rest.
#[rustfmt::skip]
const DEFAULTS: &[(&str, &str, &str)] = &[
    ("envoy.response_code", r"_rq(_(\d{3}))$", "_rq_"),
    ("envoy.response_code_class", r"_rq_((\d))xx$", "_rq_"),
    ("envoy.dynamo_partition_id", r"^http\.<TAG>\.dynamodb\.table\.<TAG>\.capacity\.<TAG>(\.__partition_id=(\w{7}))$", ".dynamodb.table."),
    ("envoy.dynamo_operation", r"^http\.<TAG>\.dynamodb.(?:operation|table\.<TAG>\.capacity)(\.(<TAG>))(?:\.|$)", ".dynamodb."),
    ("envoy.mongo_callsite", "mongo.*.collection.*.callsite.$.query.**", ""),
    ("envoy.dynamo_table", r"^http\.<TAG>\.dynamodb.(?:table|error)\.((<TAG>)\.)", ".dynamodb."),
    ("envoy.mongo_collection", "mongo.*.collection.$.**.query.*", ""),
    ("envoy.mongo_cmd", "mongo.*.cmd.$.**", ""),
    ("envoy.grpc_bridge_method", "cluster.*.grpc.*.$.**", ""),
    ("envoy.http_user_agent", "http.*.user_agent.$.**", ""),
    ("envoy.virtual_cluster", "vhost.*.vcluster.$.**", ""),
    ("envoy.fault_downstream_cluster", "http.*.fault.$.**", ""),
    ("envoy.ssl_cipher", r"^listener\..*?\.ssl\.ciphers(\.(<CIPHER>))$", ".ssl.ciphers."),
    ("cipher_suite", r"^cluster\.<TAG>\.ssl\.ciphers(\.(<CIPHER>))$", ".ssl.ciphers."),
    ("envoy.ssl_curve", r"^<OWNER>\.ssl\.curves(\.(<CIPHER>))$", ".ssl.curves."),
    ("envoy.ssl_sigalg", r"^<OWNER>\.ssl\.sigalgs(\.(<CIPHER>))$", ".ssl.sigalgs."),
    ("envoy.grpc_bridge_service", "cluster.*.grpc.$.**", ""),
    ("envoy.tcp_prefix", "tcp.$.**", ""),
    ("envoy.udp_prefix", "udp.$.**", ""),
    ("envoy.clientssl_prefix", "auth.clientssl.$.**", ""),
    ("envoy.ratelimit_prefix", "ratelimit.$.**", ""),
    ("envoy.cluster_name", "cluster.$.**", ""),
    ("envoy.http_conn_manager_prefix", r"^listener\..*?\.http\.((<TAG>)\.)", ".http."),
    ("envoy.http_conn_manager_prefix", "http.$.**", ""),
    ("envoy.listener_address", r"^listener\.((<ADDRESS>|<TAG>)\.)", ""),
    ("envoy.virtual_host", "vhost.$.**", ""),
    ("envoy.mongo_prefix", "mongo.$.**", ""),
    ("envoy.rds_route_config", r"^http\.<TAG>\.rds\.(([\w.-]+)\.)\w+?$", ".rds."),
    ("envoy.scoped_rds_config", r"^http\.<TAG>\.scoped_rds\.(([\w.-]+)\.)\w+?$", ".scoped_rds."),
    ("envoy.worker_id", r"^(?:listener\.(?:<ADDRESS>|<TAG>)|server|listener_manager|thread_local_cluster_manager)\.worker_((\d+)\.)", "worker_"),
    ("envoy.thrift_prefix", "thrift.$.**", ""),
    ("envoy.redis_prefix", "redis.$.**", ""),
    ("envoy.connection_limit_prefix", "connection_limit.$.**", ""),
    ("envoy.dns_filter_prefix", "dns_filter.$.**", ""),
    ("envoy.local_http_ratelimit_prefix", "$.http_local_rate_limit.**", ""),
    ("envoy.local_network_ratelimit_prefix", "local_rate_limit.$.**", ""),
    ("envoy.local_listener_ratelimit_prefix", "listener_local_ratelimit.$.**", ""),
    ("envoy.rbac_prefix", "$.rbac.**", ""),
    ("envoy.rbac_http_prefix", r"^http\.<TAG>\.rbac\.((<TAG>)\.).*?", ".rbac."),
    ("envoy.rbac_policy_name", r"^http\.<TAG>\.rbac\.(?:<TAG>\.)?policy\.((<TAG>)\.)(allowed|shadow_allowed|denied|shadow_denied)$", ".policy."),
    ("envoy.route", "vhost.*.route.$.**", ""),
    ("envoy.ext_authz_prefix", "http.*.ext_authz.$.**", ""),
    ("envoy.ext_authz_prefix", "cluster.*.ext_authz.$.**", ""),
    ("envoy.proxy_protocol_version", r"^proxy_proto\.((?:<TAG>\.)?versions\.v(\d)\.)\w+$", "proxy_proto."),
    ("envoy.proxy_protocol_prefix", r"^proxy_proto\.((<TAG>)\.).+$", "proxy_proto."),
    ("envoy.xds_resource_name", r"^sds\.((<TAG>)\.).+", "sds."),
    ("envoy.tls_certificate", r"^<OWNER>\.ssl\.certificate\.((<TAG>)\.).*$", ".ssl.certificate."),
    ("envoy.health_check_name", r"^cluster\.<TAG>\.health_check(\.name\.(<TAG>))\..+", ".health_check."),
];

impl TagExtractors {
    /// Those of a bootstrap's settings, with the tags of the command line.
    pub fn new(config: &StatsConfig, cli: &[(String, String)]) -> Self {
        let mut out = Self { general: Vec::new(), by_first_word: Vec::new() };
        if config.use_all_default_tags {
            let overridden = |name: &str| {
                let replaces =
                    |tag: &weft_config::bootstrap::Tag| tag.name == name && !matches!(tag.value, TagValue::Default);
                config.allow_default_tag_overrides && config.tags.iter().any(replaces)
            };
            for default in DEFAULTS.iter().filter(|(name, ..)| !overridden(name)) {
                out.add_default(default);
            }
        }
        for (name, value) in cli {
            out.general.push(Extractor { name: name.clone(), rule: Rule::Fixed(value.clone()) });
        }
        for tag in &config.tags {
            let rule = match &tag.value {
                TagValue::Default if config.use_all_default_tags => continue,
                TagValue::Default => {
                    DEFAULTS.iter().filter(|(name, ..)| *name == tag.name).for_each(|default| out.add_default(default));
                    continue;
                }
                TagValue::Regex(regex) => Rule::Regex(regex.clone()),
                TagValue::Fixed(value) => Rule::Fixed(value.clone()),
            };
            let extractor = Extractor { name: tag.name.clone(), rule };
            match &extractor.rule {
                Rule::Regex(regex) => match first_word(regex.as_str()) {
                    Some(word) => out.by_first_word.push((word, extractor)),
                    None => out.general.push(extractor),
                },
                Rule::Default { .. } | Rule::Fixed(_) | Rule::Tokens(_) => out.general.push(extractor),
            }
        }
        out
    }

    fn add_default(&mut self, (name, pattern, contains): &'static (&str, &str, &str)) {
        let name = (*name).to_owned();
        if pattern.contains('(') {
            let extractor = Extractor { name, rule: Rule::Default { pattern, contains, regex: OnceLock::new() } };
            match first_word(pattern) {
                Some(word) => self.by_first_word.push((word, extractor)),
                None => self.general.push(extractor),
            }
            return;
        }
        let extractor = Extractor { name, rule: Rule::Tokens(pattern) };
        match pattern.split('.').next() {
            Some(word) if word != "$" => self.by_first_word.push((word.to_owned(), extractor)),
            _ => self.general.push(extractor),
        }
    }

    /// The name without its tags, and the tags.
    pub fn extract(&self, name: &str) -> (String, Vec<Tag>) {
        let word = name.split('.').next().unwrap_or_default();
        let by_word = self.by_first_word.iter().filter(|(first, _)| first == word).map(|(_, extractor)| extractor);
        let mut cuts: Vec<Range<usize>> = Vec::new();
        let mut tags: Vec<Tag> = Vec::new();
        for Extractor { name: tag, rule } in self.general.iter().chain(by_word) {
            // The first that finds a tag has it. Envoy's admin listener has no address in its names.
            let is_admin = name.starts_with("listener.admin.") && tag == "envoy.listener_address";
            if is_admin || tags.iter().any(|known| known.name == *tag) {
                continue;
            }
            let (value, cut) = match rule {
                Rule::Fixed(value) => (value.as_str(), None),
                Rule::Default { contains, .. } if !name.contains(contains) => continue,
                Rule::Default { pattern, regex, .. } => {
                    let regex = regex.get_or_init(|| build(pattern));
                    let Some(captures) = regex.captures(name.as_bytes()) else { continue };
                    let Some(cut) = captures.get(1) else { continue };
                    let Some(value) = name.get(captures.get(2).unwrap_or(cut).range()) else { continue };
                    (value, Some(cut.range()))
                }
                Rule::Regex(regex) => {
                    let Some(captures) = regex.captures(name) else { continue };
                    let Some(cut) = captures.get(1) else { continue };
                    (captures.get(2).unwrap_or(cut).as_str(), Some(cut.range()))
                }
                Rule::Tokens(pattern) => {
                    let Some(value) = match_tokens(name, pattern) else { continue };
                    // With the dot after it, or before it at the end.
                    let cut = match name.as_bytes().get(value.end) {
                        Some(_) => value.start..value.end + 1,
                        None => value.start.saturating_sub(1)..value.end,
                    };
                    (&name[value], Some(cut))
                }
            };
            tags.push(Tag { name: tag.clone(), value: value.to_owned() });
            cuts.extend(cut);
        }
        (cut_out(name, cuts), tags)
    }
}

/// The part of `name` that stands where `pattern` has its `$`.
fn match_tokens(name: &str, pattern: &str) -> Option<Range<usize>> {
    let mut taken = None;
    let mut at = 0;
    let mut tokens = pattern.split('.').peekable();
    while let Some(token) = tokens.next() {
        if token == "**" {
            // What must come at the end, after any number of words.
            let tail: Vec<&str> = tokens.collect();
            let words: Vec<&str> = name.get(at..)?.split('.').collect();
            let start = words.len().checked_sub(tail.len())?;
            let fits = |(word, token): (&&str, &&str)| *token == "*" || word == token;
            return taken.filter(|_| words[start..].iter().zip(&tail).all(fits));
        }
        let rest = name.get(at..)?;
        let end = rest.find('.').unwrap_or(rest.len());
        match token {
            "*" => {}
            "$" => taken = Some(at..at + end),
            word if word == &rest[..end] => {}
            _ => return None,
        }
        at += end + 1;
    }
    taken.filter(|_| at > name.len())
}

/// The word that a name must begin with to match, if the pattern says one: `^word\.`.
fn first_word(pattern: &str) -> Option<String> {
    let word = pattern.strip_prefix('^')?;
    let end = word.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
    Some(word[..end].to_owned()).filter(|word| !word.is_empty() && pattern[end + 1..].starts_with(r"\."))
}

/// Classes mean ASCII, as they do to Envoy; that also keeps them small.
fn build(pattern: &str) -> bytes::Regex {
    bytes::RegexBuilder::new(&expand(pattern)).unicode(false).build().expect("the table's patterns are tested")
}

fn expand(pattern: &str) -> String {
    pattern
        .replace("<OWNER>", r"(?:listener\.(?:<ADDRESS>|<TAG>)|cluster\.<TAG>)")
        .replace("<ADDRESS>", r"(?:\d+\.\d+\.\d+\.\d+|\[[_a-fA-F\d]*\])_\d+")
        .replace("<TAG>", r"[^\.]+")
        .replace("<CIPHER>", r"[\w-]+")
}

fn cut_out(name: &str, mut cuts: Vec<Range<usize>>) -> String {
    cuts.sort_by_key(|cut| cut.start);
    let mut out = String::with_capacity(name.len());
    let mut at = 0;
    for cut in cuts {
        if cut.start > at {
            out.push_str(&name[at..cut.start]);
        }
        at = at.max(cut.end);
    }
    out.push_str(name.get(at..).unwrap_or_default());
    out
}

/// Envoy's own tags and no others.
pub fn default_extractors() -> &'static TagExtractors {
    static DEFAULT: OnceLock<TagExtractors> = OnceLock::new();
    DEFAULT.get_or_init(|| {
        let mut out = TagExtractors { general: Vec::new(), by_first_word: Vec::new() };
        DEFAULTS.iter().for_each(|default| out.add_default(default));
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extract(name: &str) -> String {
        let (rest, tags) = default_extractors().extract(name);
        let tags: Vec<String> = tags.iter().map(|tag| format!("{}={}", tag.name, tag.value)).collect();
        format!("{rest} {}", tags.join(","))
    }

    #[test]
    fn names_are_taken_apart_as_envoy_does() {
        for (name, expected) in [
            ("server.live", "server.live "),
            ("cluster.c1.upstream_rq_200", "cluster.upstream_rq envoy.response_code=200,envoy.cluster_name=c1"),
            ("cluster.c.2.upstream_rq_total", "cluster.2.upstream_rq_total envoy.cluster_name=c"),
            (
                "listener.127.0.0.1_80.http.web.downstream_rq_2xx",
                "listener.http.downstream_rq_xx envoy.response_code_class=2,envoy.http_conn_manager_prefix=web,envoy.listener_address=127.0.0.1_80",
            ),
            ("listener.[__1]_80.downstream_cx_total", "listener.downstream_cx_total envoy.listener_address=[__1]_80"),
            (
                "listener.foo.worker_0.downstream_cx_total",
                "listener.worker_downstream_cx_total envoy.worker_id=0,envoy.listener_address=foo",
            ),
            ("listener.admin.downstream_cx_total", "listener.admin.downstream_cx_total "),
            ("server.worker_1.watchdog_miss", "server.worker_watchdog_miss envoy.worker_id=1"),
            (
                "vhost.v.vcluster.vc.upstream_rq_4xx",
                "vhost.vcluster.upstream_rq_xx envoy.response_code_class=4,envoy.virtual_cluster=vc,envoy.virtual_host=v",
            ),
            (
                "http.in.rds.a.b.update_success",
                "http.rds.update_success envoy.http_conn_manager_prefix=in,envoy.rds_route_config=a.b",
            ),
            ("tcp.p.downstream_cx_total", "tcp.downstream_cx_total envoy.tcp_prefix=p"),
            ("p.http_local_rate_limit.ok", "http_local_rate_limit.ok envoy.local_http_ratelimit_prefix=p"),
            (
                "mongo.p.collection.c.x.query.total",
                "mongo.collection.x.query.total envoy.mongo_collection=c,envoy.mongo_prefix=p",
            ),
        ] {
            assert_eq!(extract(name), expected, "{name}");
        }
    }

    #[test]
    fn every_pattern_is_valid() {
        DEFAULTS
            .iter()
            .filter(|(_, pattern, _)| pattern.contains('('))
            .for_each(|(_, pattern, _)| drop(build(pattern)));
    }

    #[test]
    fn a_bootstraps_own_tags() {
        let regex = Regex::new(r"^cluster\.svc\.one(\.(v[0-9]+))\.").expect("valid");
        let tag = |name: &str, value| weft_config::bootstrap::Tag { name: name.into(), value };
        let config = StatsConfig {
            use_all_default_tags: true,
            tags: vec![tag("version", TagValue::Regex(regex)), tag("dc", TagValue::Fixed("eu-1".into()))],
            allow_default_tag_overrides: false,
            matcher: weft_config::bootstrap::StatsMatcher::All,
            histogram_buckets: Vec::new(),
        };
        let extractors = TagExtractors::new(&config, &[("pod".into(), "p1".into())]);
        let (name, tags) = extractors.extract("cluster.svc.one.v1.upstream_rq_total");
        let tags: Vec<&str> = tags.iter().map(|tag| tag.value.as_str()).collect();
        assert_eq!(
            (name.as_str(), tags.as_slice()),
            ("cluster.one.upstream_rq_total", &["p1", "eu-1", "svc", "v1"][..])
        );
    }
}
