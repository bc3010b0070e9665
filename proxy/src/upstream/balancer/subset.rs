//! Subsets: hosts grouped by their metadata, found by what a request asks for.
//!
//! Made with the host set on the control thread; each subset has its own lists, shares of priorities and tables.

use super::eligible::{Eligible, Found, LocalityWeights, Rules};
use crate::upstream::{
    host::HostSet,
    metadata_match::{Criterion, MatchValue},
};
use foldhash::{HashMap, HashMapExt, HashSet};
use serde_json::{Map, Value};
use smallvec::SmallVec;
use weft_config::load_balancing::{FallbackPolicy, SelectorFallback, Subset, SubsetSelector};

/// All subsets of one host set.
#[derive(Debug)]
pub(in crate::upstream) struct Subsets {
    config: Box<Subset>,
    /// By the first key and value, then the next.
    found: Level,
    /// The subsets by number; the first is the default one.
    pub eligible: Vec<Eligible>,
    /// What tells subsets apart, for the count of those that come and go.
    pub identities: HashSet<u64>,
    /// Hosts that are left out of subsets of a single host.
    pub duplicates: u64,
}

type Level = HashMap<Box<str>, HashMap<MatchValue, Node>>;

#[derive(Debug, Default)]
struct Node {
    hosts: Option<Hosts>,
    next: Level,
}

/// The hosts of a subset.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) enum Hosts {
    /// One, whatever its priority and health: (priority, index).
    Single(usize, usize),
    /// By number.
    Subset(usize),
    /// All hosts.
    Any,
}

/// The number of the default subset.
const DEFAULT: usize = 0;

/// How a request's host was decided upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Outcome {
    Selected,
    Fallback,
    Panic,
    /// By a selector's own fallback, which is not counted.
    Uncounted,
}

/// A subset while its hosts are collected.
#[derive(Default)]
struct Members {
    by_priority: Vec<Vec<u32>>,
    is_single: bool,
}

type Path = Vec<(Box<str>, MatchValue)>;

impl Subsets {
    pub fn new(hosts: &HostSet, found: &[Vec<Found>], config: &Subset, rules: Rules<'_>) -> Self {
        let mut paths: HashMap<Path, usize> = HashMap::new();
        let mut members: Vec<Members> = vec![Members::default()];
        let mut order: Vec<Path> = vec![Path::new()];
        let mut duplicates = 0;
        for (priority, set) in hosts.priorities.iter().enumerate() {
            for (index, host) in set.hosts.iter().enumerate() {
                let values = host.metadata.as_ref().and_then(|metadata| metadata.get("envoy.lb"));
                if has_all(values, &config.default_subset) {
                    members[DEFAULT].add(priority, index);
                }
                for selector in &config.selectors {
                    for path in paths_of(values, &selector.keys, config.list_as_any) {
                        let number = *paths.entry(path).or_insert_with_key(|path| {
                            members.push(Members { is_single: selector.single_host, ..Members::default() });
                            order.push(path.clone());
                            members.len() - 1
                        });
                        if selector.single_host && !members[number].is_empty() {
                            duplicates += 1;
                        } else {
                            members[number].add(priority, index);
                        }
                    }
                }
            }
        }
        let weights = match (config.locality_weight_aware, config.scale_locality_weight) {
            (false, _) => LocalityWeights::None,
            (true, false) => LocalityWeights::Configured,
            (true, true) => LocalityWeights::Scaled,
        };
        let rules = Rules { policy: &config.policy, weights, ..rules };
        let mut this = Self {
            config: Box::new(config.clone()),
            found: Level::default(),
            eligible: Vec::new(),
            identities: HashSet::default(),
            duplicates,
        };
        for (number, (path, members)) in order.into_iter().zip(&members).enumerate() {
            let hosts = match members.single() {
                Some((priority, index)) if members.is_single => Hosts::Single(priority, index),
                _ => {
                    this.eligible.push(Eligible::new(hosts, found, Some(&members.by_priority), rules));
                    Hosts::Subset(this.eligible.len() - 1)
                }
            };
            if number != DEFAULT {
                this.identities.insert(identity(&path));
                this.enter(path, hosts);
            }
        }
        this
    }

    fn enter(&mut self, path: Path, hosts: Hosts) {
        let mut level = &mut self.found;
        let mut path = path.into_iter().peekable();
        while let Some((key, value)) = path.next() {
            let node = level.entry(key).or_default().entry(value).or_default();
            if path.peek().is_none() {
                node.hosts = Some(hosts);
                return;
            }
            level = &mut node.next;
        }
    }

    /// Tries the subsets that a request with these criteria may go to, in turn, until one gives a host.
    pub fn pick<T>(
        &self,
        wanted: Option<&crate::upstream::MetadataMatch>,
        mut pick: impl FnMut(Hosts) -> Option<T>,
    ) -> Option<(T, Outcome)> {
        let Some(wanted) = wanted else { return self.fall_back(&mut pick) };
        match wanted.alternatives() {
            Some(alternatives) if self.config.fallback_list => {
                alternatives.iter().find_map(|criteria| self.pick_by(&criteria.iter().collect(), &mut pick))
            }
            _ => self.pick_by(&wanted.criteria().iter().collect(), &mut pick),
        }
    }

    fn pick_by<T>(
        &self,
        criteria: &SmallVec<[&Criterion; 8]>,
        pick: &mut impl FnMut(Hosts) -> Option<T>,
    ) -> Option<(T, Outcome)> {
        let config = &self.config;
        let has = |keys: &[String]| keys.iter().all(|key| criteria.iter().any(|c| *c.key == **key));
        let only = |keys: &[String]| -> SmallVec<[&Criterion; 8]> {
            criteria.iter().copied().filter(|c| keys.iter().any(|key| *c.key == **key)).collect()
        };
        if config.allow_redundant_keys
            && let Some(selector) = config.selectors.iter().find(|selector| has(&selector.keys))
            && selector.keys.len() < criteria.len()
        {
            return self.pick_by(&only(&selector.keys), pick);
        }
        if let Some(hosts) = self.find(criteria) {
            return Some((pick(hosts)?, Outcome::Selected));
        }
        let same = |selector: &&SubsetSelector| selector.keys.len() == criteria.len() && has(&selector.keys);
        let fallback = config.selectors.iter().find(same).and_then(|selector| selector.fallback.as_ref());
        let chosen = match fallback {
            None => return self.fall_back(pick),
            Some(SelectorFallback::Keys(keys)) => return self.pick_by(&only(keys), pick),
            Some(SelectorFallback::Policy(policy)) => self.of_policy(*policy),
        };
        Some((pick(chosen?)?, Outcome::Uncounted))
    }

    fn fall_back<T>(&self, pick: &mut impl FnMut(Hosts) -> Option<T>) -> Option<(T, Outcome)> {
        let hosts = self.of_policy(self.config.fallback)?;
        if let Some(picked) = pick(hosts) {
            return Some((picked, Outcome::Fallback));
        }
        let panic = self.config.panic_mode_any.then(|| pick(Hosts::Any)).flatten()?;
        Some((panic, Outcome::Panic))
    }

    fn of_policy(&self, policy: FallbackPolicy) -> Option<Hosts> {
        match policy {
            FallbackPolicy::NoFallback => None,
            FallbackPolicy::AnyEndpoint => Some(Hosts::Any),
            FallbackPolicy::DefaultSubset => Some(Hosts::Subset(DEFAULT)),
        }
    }

    fn find(&self, criteria: &[&Criterion]) -> Option<Hosts> {
        let (last, before) = criteria.split_last()?;
        let mut level = &self.found;
        for criterion in before {
            level = &level.get(&criterion.key)?.get(&criterion.value)?.next;
        }
        level.get(&last.key)?.get(&last.value)?.hosts
    }
}

impl Members {
    fn add(&mut self, priority: usize, index: usize) {
        if self.by_priority.len() <= priority {
            self.by_priority.resize_with(priority + 1, Vec::new);
        }
        self.by_priority[priority].push(index as u32);
    }

    fn is_empty(&self) -> bool {
        self.by_priority.iter().all(Vec::is_empty)
    }

    fn single(&self) -> Option<(usize, usize)> {
        let lists = self.by_priority.iter().enumerate();
        lists.filter_map(|(priority, list)| Some((priority, *list.first()? as usize))).next()
    }
}

/// Where a host stands by these keys: nowhere if it lacks one, at several places if it has lists and these count so.
fn paths_of(values: Option<&Map<String, Value>>, keys: &[String], list_as_any: bool) -> Vec<Path> {
    let mut paths = vec![Path::new()];
    for key in keys {
        let Some(value) = values.and_then(|values| values.get(key)) else { return Vec::new() };
        let one = std::slice::from_ref(value);
        let choices = value.as_array().filter(|_| list_as_any).map_or(one, |list| list);
        paths = paths
            .into_iter()
            .flat_map(|path| {
                choices.iter().map(move |choice| {
                    let mut path = path.clone();
                    path.push((key.as_str().into(), MatchValue::new(choice.clone())));
                    path
                })
            })
            .collect();
    }
    paths
}

fn has_all(values: Option<&Map<String, Value>>, wanted: &Map<String, Value>) -> bool {
    wanted.iter().all(|(key, value)| values.and_then(|values| values.get(key)) == Some(value))
}

fn identity(path: &Path) -> u64 {
    use std::hash::BuildHasher as _;
    foldhash::quality::FixedState::default().hash_one(path)
}
