//! The configuration of rate limits, in the words that users of envoyproxy/ratelimit know: domains, descriptors by key and
//! value, and a limit at each that has one.
//!
//! A request's descriptor is followed entry by entry, at each level by key and value, then by a value's beginning
//! (`value: foo*`), then by the key alone. Invariant: what was read without a problem is complete; nothing is left out silently.

use crate::{
    Problem,
    envoy::{
        extensions::common::ratelimit::v3::rate_limit_descriptor as wire, service::ratelimit::v3::rate_limit_response,
    },
    node::{Node, NodeValue},
    yaml,
};
use foldhash::HashMap;
use rate_limit_response::rate_limit::Unit;
use std::{collections::HashSet, sync::Arc};

/// The limits of all domains.
#[derive(Debug, Default)]
pub struct RateLimits {
    domains: HashMap<String, Level>,
    limits: usize,
}

#[derive(Debug, Default)]
struct Level {
    exact: HashMap<(Box<str>, Box<str>), Descriptor>,
    /// Key and a value's beginning, longest first.
    prefixes: Vec<(Box<str>, Box<str>, Descriptor)>,
    by_key: HashMap<Box<str>, Descriptor>,
}

#[derive(Debug)]
struct Descriptor {
    limit: Option<Arc<Limit>>,
    below: Level,
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Told with answers; empty: none.
    pub name: String,
    pub requests_per_unit: u32,
    pub unit: Unit,
    /// There is none.
    pub unlimited: bool,
    /// Counts, and refuses nothing.
    pub shadow_mode: bool,
    /// The names of limits that do not count where this one does.
    pub replaces: Vec<String>,
}

impl Limit {
    /// How long one window is, in seconds.
    pub fn window(&self) -> u64 {
        seconds(self.unit)
    }
}

pub(super) fn seconds(unit: Unit) -> u64 {
    match unit {
        Unit::Unknown | Unit::Second => 1,
        Unit::Minute => 60,
        Unit::Hour => 3_600,
        Unit::Day => 86_400,
        Unit::Week => 604_800,
        Unit::Month => 2_592_000,
        Unit::Year => 31_536_000,
    }
}

impl RateLimits {
    /// Adds the domains of a YAML text, one a document.
    ///
    /// # Errors
    /// Everything that is wrong with the text; then nothing of it is added.
    pub fn add(&mut self, text: &str) -> Result<(), Vec<Problem>> {
        let documents = yaml::parse_all(text).map_err(|problem| vec![problem])?;
        let mut reader = Reader::default();
        let mut found = Vec::new();
        for document in &documents {
            let before = found.len();
            found.extend(reader.domain(document));
            if let Some((domain, _)) = found.get(before)
                && (self.domains.contains_key(domain) || found[..before].iter().any(|(other, _)| other == domain))
            {
                reader.problem(document, "domain", format!("found {domain:?} a second time"));
            }
        }
        if !reader.problems.is_empty() {
            return Err(reader.problems);
        }
        self.limits += reader.limits;
        self.domains.extend(found);
        Ok(())
    }

    /// The number of domains, and of limits.
    pub fn size(&self) -> (usize, usize) {
        (self.domains.len(), self.limits)
    }

    /// The limit of a descriptor.
    pub fn find(&self, domain: &str, entries: &[wire::Entry]) -> Option<&Arc<Limit>> {
        let mut level = self.domains.get(domain)?;
        let (last, before) = entries.split_last()?;
        for entry in before {
            level = &level.find(entry)?.below;
        }
        level.find(last)?.limit.as_ref()
    }
}

impl Level {
    fn find(&self, entry: &wire::Entry) -> Option<&Descriptor> {
        let wire::Entry { key, value } = entry;
        let exact = || {
            // A key of two owned texts cannot be asked for by borrowed ones.
            self.exact.get(&(key.as_str().into(), value.as_str().into()))
        };
        let prefix = || {
            let of = |(k, start, _): &&(Box<str>, Box<str>, Descriptor)| **k == **key && value.starts_with(&**start);
            self.prefixes.iter().find(of).map(|(_, _, descriptor)| descriptor)
        };
        let exact = if self.exact.is_empty() { None } else { exact() };
        exact.or_else(prefix).or_else(|| self.by_key.get(key.as_str()))
    }
}

/// Reads maps, and collects what is wrong with them.
#[derive(Default)]
struct Reader {
    path: String,
    problems: Vec<Problem>,
    limits: usize,
}

impl Reader {
    fn problem(&mut self, at: &Node, field: &str, message: impl Into<String>) {
        let dot = if self.path.is_empty() || field.is_empty() { "" } else { "." };
        let place = at.get(field).map_or(at.position, |node| node.position);
        self.problems.push(Problem::at(place, format!("{}{dot}{field}", self.path), message));
    }

    /// Refuses what has another name than these.
    fn only(&mut self, node: &Node, allowed: &[&str]) -> bool {
        let NodeValue::Map(entries) = &node.value else {
            self.problem(node, "", format!("found no map; allowed: a map with {}", allowed.join(", ")));
            return false;
        };
        for entry in entries.iter().filter(|entry| !allowed.contains(&&*entry.key)) {
            let about = format!("is not known; allowed: {}", allowed.join(", "));
            self.problem(node, &entry.key, about);
        }
        true
    }

    fn text(&mut self, node: &Node, field: &str) -> Option<String> {
        match &node.get(field)?.value {
            NodeValue::String(text) | NodeValue::Number(text) => Some(text.to_string()),
            NodeValue::Bool(value) => Some(value.to_string()),
            NodeValue::Null => None,
            _ => {
                self.problem(node, field, "found no text");
                None
            }
        }
    }

    fn flag(&mut self, node: &Node, field: &str) -> bool {
        match node.get(field).map(|node| &node.value) {
            None | Some(NodeValue::Null) => false,
            Some(NodeValue::Bool(value)) => *value,
            Some(_) => {
                self.problem(node, field, "found neither true nor false");
                false
            }
        }
    }

    fn list<'n>(&mut self, node: &'n Node, field: &str) -> &'n [Node] {
        match node.get(field).map(|node| &node.value) {
            None | Some(NodeValue::Null) => &[],
            Some(NodeValue::List(items)) => items,
            Some(_) => {
                self.problem(node, field, "found no list");
                &[]
            }
        }
    }

    fn within<T>(&mut self, field: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(field);
        let value = read(self);
        self.path.truncate(length);
        value
    }

    fn domain(&mut self, node: &Node) -> Option<(String, Level)> {
        if !self.only(node, &["domain", "descriptors"]) {
            return None;
        }
        let domain = self.text(node, "domain").unwrap_or_default();
        if domain.is_empty() {
            self.problem(node, "domain", "is required");
        }
        Some((domain, self.level(node)))
    }

    fn level(&mut self, node: &Node) -> Level {
        let mut level = Level::default();
        let mut seen = HashSet::new();
        for (i, item) in self.list(node, "descriptors").iter().enumerate() {
            self.within(&format!("descriptors[{i}]"), |reader| {
                let known = ["key", "value", "rate_limit", "shadow_mode", "descriptors"];
                if !reader.only(item, &known) {
                    return;
                }
                let key = reader.text(item, "key").unwrap_or_default();
                if key.is_empty() {
                    reader.problem(item, "key", "is required");
                }
                let value = reader.text(item, "value").filter(|value| !value.is_empty());
                if !seen.insert((key.clone(), value.clone())) {
                    let about = format!("found {key:?} with value {:?} a second time", value.as_deref().unwrap_or(""));
                    reader.problem(item, "key", about);
                }
                let limit = reader.limit(item);
                let descriptor = Descriptor { limit: limit.map(Arc::new), below: reader.level(item) };
                match value {
                    None => drop(level.by_key.insert(key.into(), descriptor)),
                    Some(value) => match value.strip_suffix('*') {
                        Some(start) => level.prefixes.push((key.into(), start.into(), descriptor)),
                        None => drop(level.exact.insert((key.into(), value.into()), descriptor)),
                    },
                }
            });
        }
        level.prefixes.sort_by_key(|(_, start, _)| std::cmp::Reverse(start.len()));
        level
    }

    fn limit(&mut self, descriptor: &Node) -> Option<Limit> {
        let shadow_mode = self.flag(descriptor, "shadow_mode");
        let node = descriptor.get("rate_limit").filter(|node| node.value != NodeValue::Null)?;
        self.limits += 1;
        self.within("rate_limit", |reader| {
            if !reader.only(node, &["name", "unit", "requests_per_unit", "unlimited", "replaces"]) {
                return None;
            }
            let unlimited = reader.flag(node, "unlimited");
            let (unit, requests) = (reader.text(node, "unit"), reader.text(node, "requests_per_unit"));
            if unlimited && (unit.is_some() || requests.is_some()) {
                reader.problem(node, "unlimited", "cannot be set together with unit or requests_per_unit");
            }
            let names = ["second", "minute", "hour", "day", "week", "month", "year"];
            let read = unit.as_ref().map(|unit| Unit::from_str_name(&unit.to_ascii_uppercase()));
            let unit = match read {
                Some(Some(unit)) if unit != Unit::Unknown => unit,
                None if unlimited => Unit::Second,
                _ => {
                    let found = unit.map_or_else(|| "is required".to_owned(), |unit| format!("found {unit:?}"));
                    reader.problem(node, "unit", format!("{found}; allowed: {}", names.join(", ")));
                    Unit::Second
                }
            };
            let requests_per_unit = match requests.as_ref().map(|text| text.parse()) {
                Some(Ok(number)) => number,
                None if unlimited => u32::MAX,
                Some(Err(_)) | None => {
                    let found = requests.map_or_else(|| "is required".to_owned(), |text| format!("found {text:?}"));
                    reader.problem(node, "requests_per_unit", format!("{found}; allowed: 0 to {}", u32::MAX));
                    0
                }
            };
            let name = reader.text(node, "name").unwrap_or_default();
            let mut replaces = Vec::new();
            for (i, item) in reader.list(node, "replaces").iter().enumerate() {
                reader.within(&format!("replaces[{i}]"), |reader| {
                    if !reader.only(item, &["name"]) {
                        return;
                    }
                    match reader.text(item, "name").filter(|other| !other.is_empty()) {
                        Some(other) if other == name => reader.problem(item, "name", "a limit cannot replace itself"),
                        Some(other) => replaces.push(other),
                        None => reader.problem(item, "name", "is required"),
                    }
                });
            }
            Some(Limit { name, requests_per_unit, unit, unlimited, shadow_mode, replaces })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
domain: d
descriptors:
- {key: a, value: x, rate_limit: {unit: second, requests_per_unit: 1}}
- {key: a, value: 'x-*', rate_limit: {unit: minute, requests_per_unit: 2, name: starts}}
- key: a
  rate_limit: {unit: hour, requests_per_unit: 3}
  descriptors:
  - {key: b, shadow_mode: true, rate_limit: {unit: DAY, requests_per_unit: 4, replaces: [{name: starts}]}}
- {key: free, rate_limit: {unlimited: true}}
---
domain: e
";

    fn find(limits: &RateLimits, domain: &str, entries: &[(&str, &str)]) -> Option<u32> {
        let entry = |(key, value): &(&str, &str)| wire::Entry { key: key.to_string(), value: value.to_string() };
        let entries: Vec<_> = entries.iter().map(entry).collect();
        limits.find(domain, &entries).map(|limit| limit.requests_per_unit)
    }

    #[test]
    fn descriptors_are_followed_from_the_special_to_the_general() {
        let mut limits = RateLimits::default();
        limits.add(TEXT).expect("it is good");
        assert_eq!(limits.size(), (2, 5));
        for (entries, want) in [
            (&[("a", "x")][..], Some(1)),
            (&[("a", "x-y")], Some(2)),
            (&[("a", "z")], Some(3)),
            (&[("a", "z"), ("b", "1")], Some(4)),
            (&[("a", "x"), ("b", "1")], None),
            (&[("a", "z"), ("c", "1")], None),
            (&[("free", "")], Some(u32::MAX)),
            (&[("none", "")], None),
            (&[], None),
        ] {
            assert_eq!(find(&limits, "d", entries), want, "{entries:?}");
        }
        assert_eq!(find(&limits, "e", &[("a", "x")]), None);
        assert!(limits.add("domain: d").is_err(), "a second time");
    }

    #[test]
    fn everything_that_is_wrong_is_said_with_its_place() {
        let text = "
descriptors:
- {key: a, rate_limit: {unit: fortnight, requests_per_unit: -1}}
- {key: a, values: b}
- {rate_limit: {unlimited: true, unit: day}}
- {key: c, rate_limit: {unit: day, requests_per_unit: 1, name: n, replaces: [{name: n}, {}]}}
- x
";
        let problems = RateLimits::default().add(text).expect_err("it is not good");
        let said: Vec<_> = problems.iter().map(|p| (p.path.as_str(), p.position.map(|p| p.line))).collect();
        let want = [
            ("domain", 2),
            ("descriptors[0].rate_limit.unit", 3),
            ("descriptors[0].rate_limit.requests_per_unit", 3),
            ("descriptors[1].values", 4),
            ("descriptors[1].key", 4),
            ("descriptors[2].key", 5),
            ("descriptors[2].rate_limit.unlimited", 5),
            ("descriptors[3].rate_limit.replaces[0].name", 6),
            ("descriptors[3].rate_limit.replaces[1].name", 6),
            ("descriptors[4]", 7),
        ];
        assert_eq!(said, want.map(|(path, line)| (path, Some(line))));
    }
}
