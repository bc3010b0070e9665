//! All groups of the process, by prefix: attached where they are written, read by the admin API and by sinks.
//!
//! Never touched on the data path. Reading sums the workers' groups of one name.

use super::{Distribution, StatGroup, StatRef};
use foldhash::HashMap;
use smallvec::SmallVec;
use std::{
    collections::{BTreeMap, HashMap as StdHashMap},
    sync::{Arc, Mutex, PoisonError},
};
use weft_config::bootstrap::StatsMatcher;

/// All groups of the process. Clones share it.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    groups: HashMap<Arc<str>, SmallVec<[Arc<dyn StatGroup>; 2]>>,
    /// `None`: there are all stats.
    matcher: Option<StatsMatcher>,
    /// What counters had when they were reset.
    resets: BTreeMap<String, u64>,
    /// Used histograms at the last flush, and what they got in the interval before it.
    flushed: StdHashMap<String, (Distribution, Distribution)>,
}

/// What kind a stat is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StatKind {
    Text,
    Counter,
    Gauge,
    Histogram,
}

/// One stat as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Stat {
    pub name: String,
    pub value: StatValue,
}

/// What a stat had when it was read.
#[derive(Clone, Debug, PartialEq)]
pub enum StatValue {
    Text(String),
    Counter(u64),
    Gauge(u64),
    /// All values, and those of the last flush interval.
    Histogram(Box<(Distribution, Distribution)>),
}

impl StatValue {
    pub fn kind(&self) -> StatKind {
        match self {
            Self::Text(_) => StatKind::Text,
            Self::Counter(_) => StatKind::Counter,
            Self::Gauge(_) => StatKind::Gauge,
            Self::Histogram(_) => StatKind::Histogram,
        }
    }

    fn read(stat: StatRef<'_>) -> Self {
        match stat {
            StatRef::Text(text) => Self::Text(text.get()),
            StatRef::Counter(counter) => Self::Counter(counter.get()),
            StatRef::Gauge(gauge) => Self::Gauge(gauge.get()),
            StatRef::Histogram(histogram) => Self::Histogram(Box::new((histogram.read(), Distribution::default()))),
        }
    }

    /// Adds another writer's part.
    fn add(&mut self, other: Self) {
        match (self, other) {
            (Self::Counter(a), Self::Counter(b)) | (Self::Gauge(a), Self::Gauge(b)) => *a = a.wrapping_add(b),
            (Self::Text(a), Self::Text(b)) if a.is_empty() => *a = b,
            (Self::Histogram(a), Self::Histogram(b)) => a.0.add(&b.0),
            _ => {}
        }
    }
}

/// Which stats to read.
#[derive(Default)]
pub struct StatFilter<'a> {
    /// Only those that were written.
    pub used_only: bool,
    /// `None`: all names.
    pub name: Option<&'a dyn Fn(&str) -> bool>,
    /// `None`: all kinds.
    pub kind: Option<&'a dyn Fn(StatKind) -> bool>,
}

impl Registry {
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a group below `prefix` (`cluster.foo`, without the last dot) visible and returns it for one thread to write.
    /// It stays until [`Registry::detach`] of that prefix.
    pub fn attach<G: StatGroup + Default + 'static>(&self, prefix: &str) -> Arc<G> {
        let group = Arc::new(G::default());
        self.attach_group(prefix, group.clone());
        group
    }

    /// Makes a group that exists already visible below `prefix`.
    pub fn attach_group(&self, prefix: &str, group: Arc<dyn StatGroup>) {
        self.with(|state| match state.groups.get_mut(prefix) {
            Some(groups) => groups.push(group),
            None => {
                state.groups.insert(prefix.into(), SmallVec::from_iter([group]));
            }
        });
    }

    /// Forgets all groups below `prefix`.
    pub fn detach(&self, prefix: &str) {
        self.with(|state| {
            state.groups.remove(prefix);
            if !state.resets.is_empty() {
                let below = format!("{prefix}.");
                let names = state.resets.range(below.clone()..).map(|(name, _)| name);
                let names: Vec<_> = names.take_while(|name| name.starts_with(&below)).cloned().collect();
                for name in names {
                    state.resets.remove(&name);
                }
            }
        });
    }

    /// Sets which stats there are.
    pub fn set_matcher(&self, matcher: StatsMatcher) {
        self.with(|state| state.matcher = Some(matcher).filter(|matcher| !matches!(matcher, StatsMatcher::All)));
    }

    /// Visits every stat of every group with its full name; names repeat, once for each writer.
    pub fn visit(&self, visit: &mut dyn FnMut(&str, StatRef<'_>)) {
        self.with(|state| {
            let mut name = String::new();
            for (prefix, groups) in &state.groups {
                for group in groups {
                    group.visit(&mut |below, stat| {
                        join(&mut name, prefix, below);
                        visit(&name, stat);
                    });
                }
            }
        });
    }

    /// Reads stats, by kind (text, counters and gauges together, histograms) and then by name.
    pub fn read(&self, filter: &StatFilter<'_>) -> Vec<Stat> {
        let mut stats = self.with(|state| state.read(filter));
        stats.sort_by(|a, b| order(a).cmp(&order(b)));
        // One name may come from several prefixes.
        stats.dedup_by(|next, stat| {
            let same = next.name == stat.name && next.value.kind() == stat.value.kind();
            if same {
                stat.value.add(std::mem::replace(&mut next.value, StatValue::Counter(0)));
            }
            same
        });
        stats
    }

    /// Lets all counters begin at zero. (Their writers go on from where they are: the difference is kept here.)
    pub fn reset_counters(&self) {
        self.with(|state| {
            state.resets.clear();
            let counters = StatFilter { used_only: true, name: None, kind: Some(&|kind| kind == StatKind::Counter) };
            for Stat { name, value } in state.read(&counters) {
                if let StatValue::Counter(value) = value {
                    *state.resets.entry(name).or_default() += value;
                }
            }
        });
    }

    /// Ends an interval of the histograms; called every flush interval.
    pub fn flush(&self) {
        self.with(|state| {
            let histograms =
                StatFilter { used_only: true, name: None, kind: Some(&|kind| kind == StatKind::Histogram) };
            let mut flushed = StdHashMap::with_capacity(state.flushed.len());
            for Stat { name, value } in state.read(&histograms) {
                let StatValue::Histogram(histogram) = value else { continue };
                let before = state.flushed.remove(&name).map(|(total, _)| total).unwrap_or_default();
                let interval = histogram.0.since(&before);
                flushed.insert(name, (histogram.0, interval));
            }
            state.flushed = flushed;
        });
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        // Nothing in here is left half done by a panic.
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn read(&self, filter: &StatFilter<'_>) -> Vec<Stat> {
        let mut out = Vec::new();
        let mut name = String::new();
        for (prefix, groups) in &self.groups {
            let start = out.len();
            for group in groups {
                group.visit(&mut |below, stat| {
                    if filter.used_only && !stat.is_used() || filter.kind.is_some_and(|wants| !wants(stat.kind())) {
                        return;
                    }
                    join(&mut name, prefix, below);
                    if filter.name.is_some_and(|wants| !wants(&name)) || !self.has(&name) {
                        return;
                    }
                    out.push(Stat { name: name.clone(), value: StatValue::read(stat) });
                });
            }
            if groups.len() > 1 {
                merge(&mut out, start);
            }
        }
        for Stat { name, value } in &mut out {
            match value {
                StatValue::Counter(value) => {
                    *value = value.saturating_sub(self.resets.get(name).copied().unwrap_or_default());
                }
                StatValue::Histogram(histogram) => {
                    if let Some((_, interval)) = self.flushed.get(name) {
                        histogram.1 = interval.clone();
                    }
                }
                StatValue::Text(_) | StatValue::Gauge(_) => {}
            }
        }
        out
    }

    fn has(&self, name: &str) -> bool {
        match &self.matcher {
            None | Some(StatsMatcher::All) => true,
            Some(StatsMatcher::None) => false,
            Some(StatsMatcher::Exclusion(list)) => !list.iter().any(|matcher| matcher.matches(name)),
            Some(StatsMatcher::Inclusion(list)) => list.iter().any(|matcher| matcher.matches(name)),
        }
    }
}

/// Sums what the writers of one prefix have, from `start` on.
fn merge(stats: &mut Vec<Stat>, start: usize) {
    let mut tail = stats.split_off(start);
    tail.sort_by(|a, b| order(a).cmp(&order(b)));
    for stat in tail {
        match stats[start..].last_mut() {
            Some(last) if last.name == stat.name && last.value.kind() == stat.value.kind() => {
                last.value.add(stat.value)
            }
            _ => stats.push(stat),
        }
    }
}

/// Text first, then counters and gauges, then histograms; by name in each.
fn order(stat: &Stat) -> (u8, &str) {
    let kind = match stat.value.kind() {
        StatKind::Text => 0,
        StatKind::Counter | StatKind::Gauge => 1,
        StatKind::Histogram => 2,
    };
    (kind, &stat.name)
}

fn join(name: &mut String, prefix: &str, below: &str) {
    name.clear();
    name.push_str(prefix);
    if !prefix.is_empty() {
        name.push('.');
    }
    name.push_str(below);
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::stats! {
        struct TestStats {
            text version_text,
            counter hits,
            gauge level,
            codes rq,
            histogram(Milliseconds) time,
        }
    }

    fn lines(registry: &Registry, used_only: bool) -> Vec<String> {
        let stats = registry.read(&StatFilter { used_only, ..StatFilter::default() });
        let line = |stat: &Stat| match &stat.value {
            StatValue::Text(text) => format!("{}: {text:?}", stat.name),
            StatValue::Counter(n) | StatValue::Gauge(n) => format!("{}: {n}", stat.name),
            StatValue::Histogram(h) => format!("{}: {} {}", stat.name, h.0.count(), h.1.count()),
        };
        stats.iter().map(line).filter(|line| !line.contains("xx")).collect()
    }

    #[test]
    fn writers_of_one_name_are_summed_in_envoys_order() {
        let registry = Registry::new();
        let (a, b) = (registry.attach::<TestStats>("b"), registry.attach::<TestStats>("b"));
        registry.attach::<TestStats>("a");
        a.hits.add(2);
        b.hits.inc();
        a.level.dec();
        b.level.set(5);
        a.rq.inc(200);
        b.rq.inc(404);
        a.time.record(3);
        b.time.record(3);
        b.version_text.set("1");
        assert_eq!(
            lines(&registry, true),
            [
                "b.version_text: \"1\"",
                "b.hits: 3",
                "b.level: 4",
                "b.rq_200: 1",
                "b.rq_404: 1",
                "b.rq_completed: 2",
                "b.time: 2 0"
            ]
        );
        assert_eq!(lines(&registry, false).len(), 7 + 5);
        registry.flush();
        a.time.record(9);
        assert!(lines(&registry, true).contains(&"b.time: 3 2".to_owned()));
        registry.flush();
        assert!(lines(&registry, true).contains(&"b.time: 3 1".to_owned()));
    }

    #[test]
    fn counters_are_reset_without_touching_their_writers() {
        let registry = Registry::new();
        let stats = registry.attach::<TestStats>("a");
        stats.hits.add(3);
        registry.reset_counters();
        stats.hits.inc();
        stats.level.set(0);
        assert_eq!(lines(&registry, true), ["a.hits: 1", "a.level: 0"]);
        registry.reset_counters();
        assert_eq!(lines(&registry, true)[0], "a.hits: 0");
        registry.detach("a");
        registry.attach::<TestStats>("a").hits.inc();
        assert_eq!(lines(&registry, true), ["a.hits: 1"]);
    }

    #[test]
    fn stats_that_the_matcher_leaves_out_are_not_there() {
        let registry = Registry::new();
        registry.attach::<TestStats>("a").hits.inc();
        registry.set_matcher(StatsMatcher::None);
        assert!(lines(&registry, false).is_empty());
        registry.set_matcher(StatsMatcher::All);
        assert_eq!(lines(&registry, true).len(), 1);
    }
}
