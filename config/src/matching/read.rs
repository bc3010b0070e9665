//! Reads trees of conditions.

use super::{Input, IpRange, Kind, Map, Matcher, OnMatch, Predicate, Scope, Test};
use crate::{
    Context, address::CidrRange, header_value::HeaderKey, metadata::ValueMatcher, string_matcher::StringMatcher,
};
use std::collections::{BTreeMap, HashMap};
use weft_control_api::{
    Any,
    envoy::{
        extensions::matching::{
            common_inputs::network::v3 as network,
            input_matchers::{ip::v3 as ip, metadata::v3 as metadata},
        },
        r#type::matcher::v3 as envoy,
    },
    xds::{
        core::v3::TypedExtensionConfig,
        r#type::matcher::v3::{self as pb, matcher},
    },
};

/// Reads an action's configuration.
pub type ReadAction<A> = fn(&Any, &mut Context) -> Option<A>;

/// What is the same throughout a tree.
struct Reader<A> {
    scope: Scope,
    action: ReadAction<A>,
}

impl<A> Matcher<A> {
    /// Reads a tree; `None` if a problem was reported.
    pub fn from_proto(p: pb::Matcher, scope: Scope, action: ReadAction<A>, cx: &mut Context) -> Option<Self> {
        Reader { scope, action }.matcher(p, cx)
    }
}

impl<A> Reader<A> {
    fn matcher(&self, p: pb::Matcher, cx: &mut Context) -> Option<Matcher<A>> {
        let pb::Matcher { on_no_match, matcher_type } = p;
        let kind = match matcher_type {
            None => Some(Kind::List(Vec::new())),
            Some(matcher::MatcherType::MatcherList(p)) => cx.field("matcher_list", |cx| {
                let matchers = cx.elements("matchers", p.matchers, |cx, p| {
                    let matcher::matcher_list::FieldMatcher { predicate, on_match } = p;
                    let predicate = cx.required("predicate", predicate);
                    let predicate = predicate.and_then(|p| cx.field("predicate", |cx| self.predicate(p, cx)));
                    let on_match = self.required_on_match(on_match, cx);
                    Some((predicate?, on_match?))
                });
                Some(Kind::List(matchers))
            }),
            Some(matcher::MatcherType::MatcherTree(p)) => cx.field("matcher_tree", |cx| self.tree(p, cx)),
        };
        let on_no_match = match on_no_match {
            Some(p) => Some(cx.field("on_no_match", |cx| self.on_match(*p, cx))?),
            None => None,
        };
        Some(Matcher { kind: kind?, on_no_match })
    }

    fn required_on_match(&self, p: Option<matcher::OnMatch>, cx: &mut Context) -> Option<OnMatch<A>> {
        let p = cx.required("on_match", p)?;
        cx.field("on_match", |cx| self.on_match(p, cx))
    }

    fn on_match(&self, p: matcher::OnMatch, cx: &mut Context) -> Option<OnMatch<A>> {
        let matcher::OnMatch { keep_matching, on_match } = p;
        if keep_matching {
            cx.problem_at("keep_matching", "is not supported in this context");
        }
        match cx.required("on_match", on_match)? {
            matcher::on_match::OnMatch::Matcher(p) => {
                cx.field("matcher", |cx| self.matcher(*p, cx)).map(|matcher| OnMatch::Matcher(Box::new(matcher)))
            }
            matcher::on_match::OnMatch::Action(p) => cx.field("action", |cx| {
                let any = typed_config(p, cx)?;
                cx.field("typed_config", |cx| (self.action)(&any, cx)).map(OnMatch::Action)
            }),
        }
    }

    fn predicate(&self, p: matcher::matcher_list::Predicate, cx: &mut Context) -> Option<Predicate> {
        use matcher::matcher_list::predicate::{MatchType, PredicateList, SinglePredicate, single_predicate};
        let list = |name, p: PredicateList, cx: &mut Context| {
            cx.field(name, |cx| cx.elements("predicate", p.predicate, |cx, p| self.predicate(p, cx)))
        };
        Some(match cx.required("match_type", p.match_type)? {
            MatchType::SinglePredicate(SinglePredicate { input, matcher }) => cx.field("single_predicate", |cx| {
                let input = self.input(input, cx);
                let test = match cx.required("matcher", matcher)? {
                    single_predicate::Matcher::ValueMatch(p) => {
                        cx.field("value_match", |cx| StringMatcher::from_xds(p, cx)).map(Test::Text)
                    }
                    single_predicate::Matcher::CustomMatch(p) => cx.field("custom_match", |cx| custom_test(p, cx)),
                };
                Some(Predicate::Single(input?, test?))
            })?,
            MatchType::OrMatcher(p) => Predicate::Or(list("or_matcher", p, cx)),
            MatchType::AndMatcher(p) => Predicate::And(list("and_matcher", p, cx)),
            MatchType::NotMatcher(p) => Predicate::Not(Box::new(cx.field("not_matcher", |cx| self.predicate(*p, cx))?)),
        })
    }

    fn tree(&self, p: matcher::MatcherTree, cx: &mut Context) -> Option<Kind<A>> {
        use matcher::matcher_tree::{MatchMap, TreeType};
        let matcher::MatcherTree { input, tree_type } = p;
        let input = self.input(input, cx);
        let map = |name: &str, p: MatchMap, cx: &mut Context| {
            // Problems in the order of the keys, not of a hash table.
            let sorted: BTreeMap<_, _> = p.map.into_iter().collect();
            cx.field(name, |cx| {
                let read = |(key, p): (String, matcher::OnMatch)| {
                    cx.entry("map", &key, |cx| self.on_match(p, cx)).map(|on_match| (key, on_match))
                };
                sorted.into_iter().filter_map(read).collect::<Vec<_>>()
            })
        };
        let map = match cx.required("tree_type", tree_type)? {
            TreeType::ExactMatchMap(p) => {
                let entries = map("exact_match_map", p, cx);
                Map::Exact(entries.into_iter().map(|(key, on_match)| (key.into_bytes(), on_match)).collect())
            }
            TreeType::PrefixMatchMap(p) => {
                let mut entries = map("prefix_match_map", p, cx);
                entries.sort_by_key(|(key, _)| std::cmp::Reverse(key.len()));
                Map::Prefix(entries)
            }
            TreeType::CustomMatch(p) => cx.field("custom_match", |cx| self.custom_tree(p, cx))?,
        };
        Some(Kind::Map(input?, map))
    }

    fn custom_tree(&self, p: TypedExtensionConfig, cx: &mut Context) -> Option<Map<A>> {
        let any = typed_config(p, cx)?;
        match type_name(&any) {
            "xds.type.matcher.v3.IPMatcher" => {
                let pb::IpMatcher { range_matchers } = cx.unpack("typed_config", &any)?;
                Some(cx.field("typed_config", |cx| self.ranges(range_matchers, cx)))
            }
            "xds.type.matcher.v3.ServerNameMatcher" => {
                let pb::ServerNameMatcher { domain_matchers } = cx.unpack("typed_config", &any)?;
                Some(cx.field("typed_config", |cx| self.domains(domain_matchers, cx)))
            }
            found => {
                cx.problem_at(
                    "typed_config",
                    format!("found {found}, which is not supported; allowed: xds.type.matcher.v3.IPMatcher, xds.type.matcher.v3.ServerNameMatcher"),
                );
                None
            }
        }
    }

    fn ranges(&self, p: Vec<pb::ip_matcher::IpRangeMatcher>, cx: &mut Context) -> Map<A> {
        let mut all = Vec::new();
        let on_match = cx.elements("range_matchers", p, |cx, p| {
            let pb::ip_matcher::IpRangeMatcher { ranges, on_match, exclusive } = p;
            let ranges = cx.elements("ranges", ranges, |cx, p| CidrRange::from_xds(p, cx));
            all.push((ranges, exclusive));
            self.required_on_match(on_match, cx)
        });
        // A place without an action was reported, and nothing of this is used then.
        let of_matcher = |(place, (ranges, exclusive)): (usize, (Vec<CidrRange>, bool))| {
            ranges.into_iter().map(move |range| IpRange { range, exclusive, on_match: place })
        };
        let mut ranges: Vec<_> = all.into_iter().enumerate().flat_map(of_matcher).collect();
        ranges.sort_by_key(|range| std::cmp::Reverse(range.range.0.prefix_len()));
        Map::Ranges { ranges, on_match }
    }

    fn domains(&self, p: Vec<pb::server_name_matcher::DomainMatcher>, cx: &mut Context) -> Map<A> {
        let mut names: HashMap<String, usize> = HashMap::new();
        let mut suffixes = Vec::new();
        let mut all = None;
        let mut place = 0;
        let on_match = cx.elements("domain_matchers", p, |cx, p| {
            let pb::server_name_matcher::DomainMatcher { domains, on_match } = p;
            for (i, domain) in domains.into_iter().enumerate() {
                let domain = domain.to_ascii_lowercase();
                let stem = domain.strip_prefix('*').unwrap_or(&domain);
                if stem.contains('*') || (stem.len() < domain.len() && !stem.is_empty() && !stem.starts_with('.')) {
                    let text = format!("found {domain:?}: a wildcard stands for whole labels at the begin");
                    cx.element("domains", i, |cx| cx.problem(text));
                } else if names.contains_key(&domain) {
                    cx.element("domains", i, |cx| {
                        cx.problem(format!("Duplicate domain in ServerNameMatcher: {domain}"))
                    });
                } else if stem.is_empty() {
                    all = Some(place);
                } else if stem.len() < domain.len() {
                    suffixes.push((stem.to_owned(), place));
                }
                names.insert(domain, place);
            }
            place += 1;
            self.required_on_match(on_match, cx)
        });
        suffixes.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        names.retain(|name, _| !name.starts_with('*'));
        Map::Domains { exact: names, suffixes, all, on_match }
    }

    fn input(&self, p: Option<TypedExtensionConfig>, cx: &mut Context) -> Option<Input> {
        let p = cx.required("input", p)?;
        cx.field("input", |cx| {
            let any = typed_config(p, cx)?;
            let read = |cx: &mut Context| self.input_of(&any, cx);
            cx.field("typed_config", read)
        })
    }

    fn input_of(&self, any: &Any, cx: &mut Context) -> Option<Input> {
        const NETWORK: &str = "envoy.extensions.matching.common_inputs.network.v3.";
        const SSL: &str = "envoy.extensions.matching.common_inputs.ssl.v3.";
        let found = type_name(any);
        let is_http = self.scope == Scope::Http;
        if let Some(name) = found.strip_prefix(SSL) {
            match name {
                "UriSanInput" => return Some(Input::UriSans),
                "DnsSanInput" => return Some(Input::DnsSans),
                "SubjectInput" => return Some(Input::Subject),
                _ => {}
            }
        }
        match found.strip_prefix(NETWORK).unwrap_or(found) {
            "DestinationIPInput" => return Some(Input::DestinationIp),
            "DestinationPortInput" => return Some(Input::DestinationPort),
            "SourceIPInput" => return Some(Input::SourceIp),
            "SourcePortInput" => return Some(Input::SourcePort),
            "DirectSourceIPInput" => return Some(Input::DirectSourceIp),
            "ServerNameInput" => return Some(Input::ServerName),
            "FilterStateInput" => {
                let network::FilterStateInput { key, field } = cx.unpack("", any)?;
                cx.unsupported_if("field", !field.is_empty());
                return Some(Input::FilterState(key));
            }
            "DynamicMetadataInput" if is_http => {
                use network::dynamic_metadata_input::{PathSegment, path_segment::Segment};
                let network::DynamicMetadataInput { filter, path } = cx.unpack("", any)?;
                let path = cx.elements("path", path, |cx, PathSegment { segment }| {
                    let Segment::Key(key) = cx.required("key", segment)?;
                    Some(key)
                });
                return Some(Input::DynamicMetadata { filter, path });
            }
            "envoy.type.matcher.v3.HttpRequestHeaderMatchInput" if is_http => {
                let envoy::HttpRequestHeaderMatchInput { header_name } = cx.unpack("", any)?;
                return HeaderKey::read("header_name", &header_name, cx).map(Input::RequestHeader);
            }
            _ => {}
        }
        let what = if is_http { "HTTP" } else { "network" };
        cx.problem(format!("the {what} filter cannot match on {found}"));
        None
    }
}

fn custom_test(p: TypedExtensionConfig, cx: &mut Context) -> Option<Test> {
    let any = typed_config(p, cx)?;
    match type_name(&any) {
        "envoy.extensions.matching.input_matchers.ip.v3.Ip" => {
            let ip::Ip { cidr_ranges, stat_prefix: _ } = cx.unpack("typed_config", &any)?;
            cx.field("typed_config", |cx| {
                // Its only stat counts addresses that cannot be read, and all can.
                cx.ignored_if("stat_prefix", true);
                Some(Test::Address(cx.elements("cidr_ranges", cidr_ranges, |cx, p| CidrRange::from_proto(p, cx))))
            })
        }
        "envoy.extensions.matching.input_matchers.metadata.v3.Metadata" => {
            let metadata::Metadata { value, invert } = cx.unpack("typed_config", &any)?;
            cx.field("typed_config", |cx| {
                let value = cx.required("value", value)?;
                let value = cx.field("value", |cx| ValueMatcher::from_proto(value, cx))?;
                Some(Test::Metadata { value, invert })
            })
        }
        found => {
            cx.problem_at("typed_config", format!("found {found}, which is not supported"));
            None
        }
    }
}

fn typed_config(p: TypedExtensionConfig, cx: &mut Context) -> Option<Any> {
    let TypedExtensionConfig { name: _, typed_config } = p;
    cx.required("typed_config", typed_config)
}

fn type_name(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}
