//! Counters, gauges and histograms, grouped by what they tell of, written by one thread each.
//!
//! A group (`ClusterStats`, `HttpStats`, ...) is allocated once per worker and scope and attached to the [`Registry`];
//! reading sums over the workers' groups of one name. Writing is a plain load and store: no locks, no atomic
//! read-modify-write. Invariant: one instance of a group is written by one thread only.

use std::sync::Arc;
use std::sync::{
    Mutex, OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// A count that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn inc(&self) {
        self.add(1);
    }

    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A level. One worker's part may be negative for a moment (stored in two's complement); the sum is what counts.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub fn inc(&self) {
        self.0.store(self.0.load(Relaxed).wrapping_add(1), Relaxed);
    }

    pub fn dec(&self) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(1), Relaxed);
    }

    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Counts by response code: `<name>_200`, `<name>_2xx` and `<name>_completed`. Codes are allocated by class on first use.
#[derive(Debug, Default)]
pub struct CodeCounters {
    classes: [Counter; 5],
    codes: [OnceLock<Box<[Counter; 100]>>; 5],
    completed: Counter,
}

impl CodeCounters {
    /// Counts a response of `code` (100 to 599; others count as completed only).
    pub fn inc(&self, code: u16) {
        self.completed.inc();
        let Some(class) = usize::from(code / 100).checked_sub(1).filter(|class| *class < 5) else { return };
        self.classes[class].inc();
        let codes = self.codes[class].get_or_init(|| Box::new(std::array::from_fn(|_| Counter::default())));
        codes[usize::from(code % 100)].inc();
    }

    /// Visits `<name>_completed`, the classes, and the codes that were counted.
    pub fn visit(&self, name: &str, visit: &mut dyn FnMut(&str, StatRef<'_>)) {
        visit(&format!("{name}_completed"), StatRef::Counter(&self.completed));
        for (i, class) in self.classes.iter().enumerate() {
            visit(&format!("{name}_{}xx", i + 1), StatRef::Counter(class));
            for (j, code) in self.codes[i].get().into_iter().flat_map(|codes| codes.iter().enumerate()) {
                if code.get() > 0 {
                    visit(&format!("{name}_{}", (i + 1) * 100 + j), StatRef::Counter(code));
                }
            }
        }
    }
}

/// What a histogram's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Milliseconds,
    Microseconds,
    Bytes,
    Percent,
    Unspecified,
}

/// A distribution of values; allocated on the first value.
#[derive(Debug)]
pub struct Histogram {
    pub unit: Unit,
    buckets: OnceLock<Box<[AtomicU64]>>,
    sum: AtomicU64,
}

impl Histogram {
    pub const fn new(unit: Unit) -> Self {
        Self { unit, buckets: OnceLock::new(), sum: AtomicU64::new(0) }
    }

    /// Records one value.
    pub fn record(&self, value: u64) {
        let buckets = self.buckets.get_or_init(|| (0..Self::BUCKETS).map(|_| AtomicU64::new(0)).collect());
        if let Some(bucket) = buckets.get(Self::index(value)) {
            bucket.store(bucket.load(Relaxed) + 1, Relaxed);
        }
        self.sum.store(self.sum.load(Relaxed).wrapping_add(value), Relaxed);
    }

    /// 90 buckets for each decimal exponent, as libcircllhist has them, up to 10^12.
    const BUCKETS: usize = 10 + 90 * 11;

    fn index(value: u64) -> usize {
        let (mut mantissa, mut exponent) = (value, 0);
        while mantissa >= 100 {
            mantissa /= 10;
            exponent += 1;
        }
        if mantissa < 10 {
            mantissa as usize
        } else {
            (10 + exponent * 90 + mantissa as usize - 10).min(Self::BUCKETS - 1)
        }
    }

    /// (lower bound of the bucket, its width, count) of every bucket that holds values, and the sum of all values.
    pub fn read(&self) -> (Vec<(u64, u64, u64)>, u64) {
        let buckets = self.buckets.get().map(|b| &b[..]).unwrap_or_default();
        let filled = buckets.iter().enumerate().filter_map(|(i, count)| {
            let (low, width) = if i < 10 {
                (i as u64, 1)
            } else {
                let scale = 10u64.pow(((i - 10) / 90) as u32);
                (((i - 10) % 90 + 10) as u64 * scale, scale)
            };
            Some((low, width, count.load(Relaxed))).filter(|(_, _, count)| *count > 0)
        });
        (filled.collect(), self.sum.load(Relaxed))
    }
}

/// One stat while it is read.
#[derive(Clone, Copy, Debug)]
pub enum StatRef<'a> {
    Counter(&'a Counter),
    Gauge(&'a Gauge),
    Histogram(&'a Histogram),
}

/// A struct of stats, made by [`stats!`](crate::stats).
pub trait StatGroup: Send + Sync {
    /// Visits every stat with its name below the group's prefix.
    fn visit(&self, visit: &mut dyn FnMut(&str, StatRef<'_>));
}

/// Declares a group of stats with Envoy's names.
///
/// ```
/// weft_proxy::stats! {
///     /// `cluster.NAME.*`
///     pub struct ExampleStats {
///         counter upstream_cx_total,
///         gauge upstream_cx_active,
///         codes upstream_rq,
///         histogram(Milliseconds) upstream_rq_time,
///     }
/// }
/// let stats = ExampleStats::default();
/// stats.upstream_cx_total.inc();
/// ```
#[macro_export]
macro_rules! stats {
    ($(#[$meta:meta])* $vis:vis struct $group:ident { $($kind:ident $(($unit:ident))? $name:ident $(as $wire:literal)?),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug)]
        $vis struct $group { $(pub $name: $crate::stats!(@type $kind),)* }

        impl Default for $group {
            fn default() -> Self {
                Self { $($name: $crate::stats!(@new $kind $($unit)?),)* }
            }
        }

        impl $crate::observe::stats::StatGroup for $group {
            fn visit(&self, visit: &mut dyn FnMut(&str, $crate::observe::stats::StatRef<'_>)) {
                $($crate::stats!(@visit $kind self.$name, $crate::stats!(@name $name $($wire)?), visit);)*
            }
        }
    };
    (@type counter) => { $crate::observe::stats::Counter };
    (@type gauge) => { $crate::observe::stats::Gauge };
    (@type codes) => { $crate::observe::stats::CodeCounters };
    (@type histogram) => { $crate::observe::stats::Histogram };
    (@new histogram $unit:ident) => { $crate::observe::stats::Histogram::new($crate::observe::stats::Unit::$unit) };
    (@new $kind:ident) => { Default::default() };
    (@name $name:ident) => { stringify!($name) };
    (@name $name:ident $wire:literal) => { $wire };
    (@visit counter $stat:expr, $name:expr, $visit:ident) => { $visit($name, $crate::observe::stats::StatRef::Counter(&$stat)) };
    (@visit gauge $stat:expr, $name:expr, $visit:ident) => { $visit($name, $crate::observe::stats::StatRef::Gauge(&$stat)) };
    (@visit codes $stat:expr, $name:expr, $visit:ident) => { $stat.visit($name, $visit) };
    (@visit histogram $stat:expr, $name:expr, $visit:ident) => { $visit($name, $crate::observe::stats::StatRef::Histogram(&$stat)) };
}

/// All groups of the process, by prefix. Shared by every thread; never touched on the data path.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<Vec<Entry>>>);

struct Entry {
    prefix: Arc<str>,
    group: Arc<dyn StatGroup>,
}

impl Registry {
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a group below `prefix` (`cluster.foo`, without the last dot) visible and returns it for one thread to write.
    /// It stays until [`Registry::detach`] of that prefix.
    pub fn attach<G: StatGroup + Default + 'static>(&self, prefix: &str) -> Arc<G> {
        let group = Arc::new(G::default());
        if let Ok(mut entries) = self.0.lock() {
            entries.push(Entry { prefix: prefix.into(), group: group.clone() });
        }
        group
    }

    /// Forgets all groups below `prefix`.
    pub fn detach(&self, prefix: &str) {
        if let Ok(mut entries) = self.0.lock() {
            entries.retain(|entry| &*entry.prefix != prefix);
        }
    }

    /// Visits every stat of every group with its full name; names repeat, once for each writer.
    pub fn visit(&self, visit: &mut dyn FnMut(&str, StatRef<'_>)) {
        let Ok(entries) = self.0.lock() else { return };
        for entry in entries.iter() {
            entry.group.visit(&mut |name, stat| visit(&format!("{}.{name}", entry.prefix), stat));
        }
    }
}
