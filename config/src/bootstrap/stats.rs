//! Which stats there are and how they are told apart.

use crate::{Context, string_matcher::StringMatcher};
use regex::Regex;
use weft_control_api::envoy::{
    config::metrics::v3::{self as pb, stats_matcher, tag_specifier},
    r#type::matcher::v3::ListStringMatcher,
};

/// Settings of all stats.
#[derive(Clone, Debug)]
pub struct StatsConfig {
    /// Takes Envoy's own tags out of names, beside `tags`.
    pub use_all_default_tags: bool,
    pub tags: Vec<Tag>,
    /// A tag of the same name as one of Envoy's own takes its place instead of being refused.
    pub allow_default_tag_overrides: bool,
    pub matcher: StatsMatcher,
    /// The first that matches a histogram's name counts.
    pub histogram_buckets: Vec<HistogramBuckets>,
}

/// A tag that stats may carry.
#[derive(Clone, Debug)]
pub struct Tag {
    pub name: String,
    pub value: TagValue,
}

/// Where a tag's value comes from.
#[derive(Clone, Debug)]
pub enum TagValue {
    /// Envoy's own tag of that name.
    Default,
    /// Group 1 is cut out of the name, group 2 (or 1) is the value.
    Regex(Regex),
    Fixed(String),
}

/// Which stats there are.
#[derive(Clone, Debug)]
pub enum StatsMatcher {
    All,
    None,
    /// All but those.
    Exclusion(Vec<StringMatcher>),
    /// Only those.
    Inclusion(Vec<StringMatcher>),
}

/// The buckets of some histograms.
#[derive(Clone, Debug)]
pub struct HistogramBuckets {
    pub matcher: StringMatcher,
    /// Upper bounds, rising; empty: the default ones.
    pub buckets: Vec<f64>,
}

impl StatsConfig {
    pub(super) fn from_proto(pb: pb::StatsConfig, cx: &mut Context) -> Self {
        let pb::StatsConfig {
            stats_tags,
            use_all_default_tags,
            stats_matcher,
            histogram_bucket_settings,
            allow_default_tag_overrides,
        } = pb;
        Self {
            use_all_default_tags: use_all_default_tags.unwrap_or(true),
            tags: cx.elements("stats_tags", stats_tags, |cx, pb| Tag::from_proto(pb, cx)),
            allow_default_tag_overrides: allow_default_tag_overrides.unwrap_or(false),
            matcher: cx.field("stats_matcher", |cx| StatsMatcher::from_proto(stats_matcher.unwrap_or_default(), cx)),
            histogram_buckets: cx.elements("histogram_bucket_settings", histogram_bucket_settings, |cx, pb| {
                HistogramBuckets::from_proto(pb, cx)
            }),
        }
    }
}

impl Tag {
    fn from_proto(pb: pb::TagSpecifier, cx: &mut Context) -> Option<Self> {
        let pb::TagSpecifier { tag_name, tag_value } = pb;
        if tag_name.is_empty() {
            cx.problem_at("tag_name", "is empty, allowed: text of at least 1 character");
        }
        let value = match tag_value {
            None => TagValue::Default,
            Some(tag_specifier::TagValue::Regex(pattern)) if pattern.is_empty() => TagValue::Default,
            Some(tag_specifier::TagValue::Regex(pattern)) => match Regex::new(&pattern) {
                Ok(regex) => TagValue::Regex(regex),
                Err(_) => {
                    cx.problem_at("regex", format!("found {pattern:?}, which is no valid regular expression"));
                    return None;
                }
            },
            Some(tag_specifier::TagValue::FixedValue(value)) => TagValue::Fixed(value),
        };
        Some(Self { name: tag_name, value })
    }
}

impl StatsMatcher {
    fn from_proto(pb: pb::StatsMatcher, cx: &mut Context) -> Self {
        let pb::StatsMatcher { stats_matcher } = pb;
        let mut list = |name, ListStringMatcher { patterns }| {
            cx.field(name, |cx| cx.elements("patterns", patterns, |cx, pb| StringMatcher::from_proto(pb, cx)))
        };
        match stats_matcher {
            None | Some(stats_matcher::StatsMatcher::RejectAll(false)) => Self::All,
            Some(stats_matcher::StatsMatcher::RejectAll(true)) => Self::None,
            Some(stats_matcher::StatsMatcher::ExclusionList(l)) => Self::Exclusion(list("exclusion_list", l)),
            Some(stats_matcher::StatsMatcher::InclusionList(l)) => Self::Inclusion(list("inclusion_list", l)),
        }
    }
}

impl HistogramBuckets {
    fn from_proto(pb: pb::HistogramBucketSettings, cx: &mut Context) -> Option<Self> {
        let pb::HistogramBucketSettings { r#match, buckets, bins } = pb;
        cx.ignored_if("bins", bins.is_some());
        if !buckets.is_sorted_by(|a, b| a < b) {
            cx.problem_at("buckets", "do not rise, allowed: each bound above the one before it");
        }
        let matcher = cx.required("match", r#match)?;
        let matcher = cx.field("match", |cx| StringMatcher::from_proto(matcher, cx))?;
        Some(Self { matcher, buckets })
    }
}
