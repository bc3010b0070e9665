//! Trees of conditions that end in actions (`xds.type.matcher.v3.Matcher`), for whoever has actions.
//!
//! A tree is read with the inputs that its place allows ([`Scope`]), and walked with whatever gives values to them
//! ([`Inputs`]). A branch that ends in nothing is as if it had not matched: the walk goes on behind it.

mod read;

use crate::{address::CidrRange, header_value::HeaderKey, metadata::ValueMatcher, string_matcher::StringMatcher};
use serde_json::Value;
use std::{borrow::Cow, collections::HashMap, net::IpAddr};

/// A tree.
#[derive(Clone, Debug)]
pub struct Matcher<A> {
    kind: Kind<A>,
    on_no_match: Option<OnMatch<A>>,
}

#[derive(Clone, Debug)]
enum Kind<A> {
    /// The first whose predicate holds.
    List(Vec<(Predicate, OnMatch<A>)>),
    Map(Input, Map<A>),
}

/// What a match leads to.
#[derive(Clone, Debug)]
enum OnMatch<A> {
    Matcher(Box<Matcher<A>>),
    Action(A),
}

#[derive(Clone, Debug)]
enum Predicate {
    Single(Input, Test),
    Or(Vec<Predicate>),
    And(Vec<Predicate>),
    Not(Box<Predicate>),
}

#[derive(Clone, Debug)]
enum Test {
    Text(StringMatcher),
    Address(Vec<CidrRange>),
    Metadata { value: ValueMatcher, invert: bool },
}

#[derive(Clone, Debug)]
enum Map<A> {
    Exact(HashMap<Vec<u8>, OnMatch<A>>),
    /// Longest first.
    Prefix(Vec<(String, OnMatch<A>)>),
    /// Longest first, then in the order of the configuration; an exclusive one counts only where none is longer.
    Ranges {
        ranges: Vec<IpRange>,
        on_match: Vec<OnMatch<A>>,
    },
    Domains {
        exact: HashMap<String, usize>,
        /// With the leading dot, longest first.
        suffixes: Vec<(String, usize)>,
        all: Option<usize>,
        on_match: Vec<OnMatch<A>>,
    },
}

#[derive(Clone, Debug)]
struct IpRange {
    range: CidrRange,
    exclusive: bool,
    /// Index into `on_match`.
    on_match: usize,
}

/// Where a tree stands, which says what it may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Of a request.
    Http,
    /// Of a connection.
    Network,
}

/// What can be asked.
#[derive(Clone, Debug)]
pub enum Input {
    DestinationIp,
    DestinationPort,
    /// The client, after `x-forwarded-for` had its say.
    SourceIp,
    SourcePort,
    /// The socket's peer.
    DirectSourceIp,
    ServerName,
    FilterState(String),
    DynamicMetadata {
        filter: String,
        path: Vec<String>,
    },
    /// All of them, comma-separated.
    UriSans,
    DnsSans,
    Subject,
    /// All values, comma-separated.
    RequestHeader(HeaderKey),
}

/// Gives values to inputs.
pub trait Inputs {
    /// The input's value as text; `None` if there is none.
    fn text<'s>(&'s self, input: &'s Input) -> Option<Cow<'s, [u8]>>;

    /// A value of the dynamic metadata.
    fn metadata(&self, filter: &str, path: &[String]) -> Option<&Value>;
}

impl<A> Matcher<A> {
    /// Walks the tree to its action.
    pub fn find(&self, inputs: &dyn Inputs) -> Option<&A> {
        let found = match &self.kind {
            Kind::List(matchers) => {
                let holding = matchers.iter().filter(|(predicate, _)| predicate.holds(inputs));
                holding.into_iter().find_map(|(_, on_match)| on_match.find(inputs))
            }
            Kind::Map(input, map) => inputs.text(input).and_then(|text| map.find(&text, inputs)),
        };
        found.or_else(|| self.on_no_match.as_ref()?.find(inputs))
    }

    /// The same tree with other actions.
    pub fn map<B>(self, action: &dyn Fn(A) -> B) -> Matcher<B> {
        let list = |all: Vec<OnMatch<A>>| all.into_iter().map(|on_match| on_match.map(action)).collect();
        let kind = match self.kind {
            Kind::List(list) => Kind::List(list.into_iter().map(|(p, on_match)| (p, on_match.map(action))).collect()),
            Kind::Map(input, map) => Kind::Map(
                input,
                match map {
                    Map::Exact(map) => Map::Exact(map.into_iter().map(|(key, on)| (key, on.map(action))).collect()),
                    Map::Prefix(all) => Map::Prefix(all.into_iter().map(|(key, on)| (key, on.map(action))).collect()),
                    Map::Ranges { ranges, on_match } => Map::Ranges { ranges, on_match: list(on_match) },
                    Map::Domains { exact, suffixes, all, on_match } => {
                        Map::Domains { exact, suffixes, all, on_match: list(on_match) }
                    }
                },
            ),
        };
        Matcher { kind, on_no_match: self.on_no_match.map(|on_match| on_match.map(action)) }
    }

    /// All actions there are.
    pub fn actions(&self) -> Vec<&A> {
        let mut actions = Vec::new();
        self.collect(&mut actions);
        actions
    }

    fn collect<'a>(&'a self, actions: &mut Vec<&'a A>) {
        let mut add = |on_match: &'a OnMatch<A>| match on_match {
            OnMatch::Matcher(matcher) => matcher.collect(actions),
            OnMatch::Action(action) => actions.push(action),
        };
        match &self.kind {
            Kind::List(matchers) => matchers.iter().for_each(|(_, on_match)| add(on_match)),
            Kind::Map(_, Map::Exact(map)) => map.values().for_each(&mut add),
            Kind::Map(_, Map::Prefix(prefixes)) => prefixes.iter().for_each(|(_, on_match)| add(on_match)),
            Kind::Map(_, Map::Ranges { on_match, .. } | Map::Domains { on_match, .. }) => {
                on_match.iter().for_each(&mut add);
            }
        }
        if let Some(on_match) = &self.on_no_match {
            add(on_match);
        }
    }
}

impl<A> OnMatch<A> {
    fn map<B>(self, action: &dyn Fn(A) -> B) -> OnMatch<B> {
        match self {
            Self::Matcher(matcher) => OnMatch::Matcher(Box::new(matcher.map(action))),
            Self::Action(found) => OnMatch::Action(action(found)),
        }
    }

    fn find(&self, inputs: &dyn Inputs) -> Option<&A> {
        match self {
            Self::Matcher(matcher) => matcher.find(inputs),
            Self::Action(action) => Some(action),
        }
    }
}

impl Predicate {
    fn holds(&self, inputs: &dyn Inputs) -> bool {
        match self {
            Self::Single(input, test) => test.holds(input, inputs),
            Self::Or(any) => any.iter().any(|predicate| predicate.holds(inputs)),
            Self::And(all) => all.iter().all(|predicate| predicate.holds(inputs)),
            Self::Not(predicate) => !predicate.holds(inputs),
        }
    }
}

impl Test {
    fn holds(&self, input: &Input, inputs: &dyn Inputs) -> bool {
        match (self, input) {
            (Self::Metadata { value, invert }, Input::DynamicMetadata { filter, path }) => {
                value.matches(inputs.metadata(filter, path)) != *invert
            }
            (Self::Metadata { .. }, _) => false,
            (Self::Text(matcher), _) => inputs.text(input).is_some_and(|text| matcher.matches(text)),
            (Self::Address(ranges), _) => inputs
                .text(input)
                .and_then(|text| address(&text))
                .is_some_and(|ip| ranges.iter().any(|range| range.contains(ip))),
        }
    }
}

impl<A> Map<A> {
    fn find(&self, text: &[u8], inputs: &dyn Inputs) -> Option<&A> {
        match self {
            Self::Exact(map) => map.get(text)?.find(inputs),
            Self::Prefix(prefixes) => prefixes
                .iter()
                .filter(|(prefix, _)| text.starts_with(prefix.as_bytes()))
                .find_map(|(_, on_match)| on_match.find(inputs)),
            Self::Ranges { ranges, on_match } => {
                let ip = address(text)?;
                ranges
                    .iter()
                    .filter(|range| range.range.contains(ip))
                    .enumerate()
                    .filter(|(i, range)| *i == 0 || !range.exclusive)
                    .find_map(|(_, range)| on_match.get(range.on_match)?.find(inputs))
            }
            Self::Domains { exact, suffixes, all, on_match } => {
                let name = std::str::from_utf8(text).ok()?.to_ascii_lowercase();
                let suffixes =
                    suffixes.iter().filter(|(suffix, _)| name.len() > suffix.len() && name.ends_with(suffix));
                let places = exact.get(&name).into_iter().chain(suffixes.map(|(_, place)| place)).chain(all);
                places.filter_map(|place| on_match.get(*place)).find_map(|on_match| on_match.find(inputs))
            }
        }
    }
}

fn address(text: &[u8]) -> Option<IpAddr> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
