//! Counters, gauges and histograms, grouped by what they tell of, written by one thread each.
//!
//! A group (`ClusterStats`, `HttpStats`, ...) is allocated once per worker and scope and attached to the [`Registry`];
//! reading sums over the workers' groups of one name. Writing is a plain load and store: no locks, no atomic
//! read-modify-write. Invariant: one instance of a group is written by one thread only.

mod histogram;
mod process;
mod registry;

pub use histogram::{Bucket, DEFAULT_BOUNDS, Distribution, Histogram, QUANTILES, Unit};
pub use process::*;
pub use registry::{Registry, Stat, StatFilter, StatKind, StatValue};

use std::sync::{
    Mutex, OnceLock, PoisonError,
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

/// A level. One worker's part may be negative for a moment; the sum is what counts.
///
/// The highest bit says that it was ever written; the level is what the others hold, in two's complement.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    const USED: u64 = 1 << 63;

    pub fn inc(&self) {
        self.set(self.0.load(Relaxed).wrapping_add(1));
    }

    pub fn dec(&self) {
        self.set(self.0.load(Relaxed).wrapping_sub(1));
    }

    pub fn add(&self, n: u64) {
        self.set(self.0.load(Relaxed).wrapping_add(n));
    }

    pub fn sub(&self, n: u64) {
        self.set(self.0.load(Relaxed).wrapping_sub(n));
    }

    pub fn set(&self, value: u64) {
        self.0.store(value | Self::USED, Relaxed);
    }

    /// The level, in two's complement of 64 bits.
    pub fn get(&self) -> u64 {
        ((self.0.load(Relaxed) << 1) as i64 >> 1) as u64
    }

    /// True if it was ever written.
    pub fn is_used(&self) -> bool {
        self.0.load(Relaxed) & Self::USED != 0
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

    /// Visits `<name>_completed`, and the classes and codes that were counted.
    pub fn visit(&self, name: &str, visit: &mut dyn FnMut(&str, StatRef<'_>)) {
        visit(&format!("{name}_completed"), StatRef::Counter(&self.completed));
        self.visit_counted(name, visit);
    }

    /// Visits what [`CodeCounters::visit`] does, but nothing before the first response.
    pub fn visit_lazily(&self, name: &str, visit: &mut dyn FnMut(&str, StatRef<'_>)) {
        if self.completed.get() > 0 {
            self.visit(name, visit);
        }
    }

    fn visit_counted(&self, name: &str, visit: &mut dyn FnMut(&str, StatRef<'_>)) {
        for (i, class) in self.classes.iter().enumerate().filter(|(_, class)| class.get() > 0) {
            visit(&format!("{name}_{}xx", i + 1), StatRef::Counter(class));
            for (j, code) in self.codes[i].get().into_iter().flat_map(|codes| codes.iter().enumerate()) {
                if code.get() > 0 {
                    visit(&format!("{name}_{}", (i + 1) * 100 + j), StatRef::Counter(code));
                }
            }
        }
    }
}

/// Counts by class of response code: `<name>_1xx` to `<name>_5xx`, and `<name>_completed`.
#[derive(Debug, Default)]
pub struct ClassCounters {
    classes: [Counter; 5],
    completed: Counter,
}

impl ClassCounters {
    /// Counts a response of `code` (100 to 599; others count as completed only).
    pub fn inc(&self, code: u16) {
        self.completed.inc();
        if let Some(class) = usize::from(code / 100).checked_sub(1).and_then(|class| self.classes.get(class)) {
            class.inc();
        }
    }

    /// Visits `<name>_completed` and the classes.
    pub fn visit(&self, name: &str, visit: &mut dyn FnMut(&str, StatRef<'_>)) {
        visit(&format!("{name}_completed"), StatRef::Counter(&self.completed));
        for (i, class) in self.classes.iter().enumerate() {
            visit(&format!("{name}_{}xx", i + 1), StatRef::Counter(class));
        }
    }
}

/// A line of text, such as the version of a configuration. Not for the data path.
#[derive(Debug, Default)]
pub struct TextReadout(Mutex<String>);

impl TextReadout {
    pub fn set(&self, text: &str) {
        text.clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub fn get(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One stat while it is read.
#[derive(Clone, Copy, Debug)]
pub enum StatRef<'a> {
    Counter(&'a Counter),
    Gauge(&'a Gauge),
    Histogram(&'a Histogram),
    Text(&'a TextReadout),
}

impl StatRef<'_> {
    /// True if it was ever written.
    pub fn is_used(&self) -> bool {
        match self {
            Self::Counter(counter) => counter.get() > 0,
            Self::Gauge(gauge) => gauge.is_used(),
            Self::Histogram(histogram) => histogram.is_used(),
            Self::Text(text) => !text.get().is_empty(),
        }
    }

    pub fn kind(&self) -> StatKind {
        match self {
            Self::Counter(_) => StatKind::Counter,
            Self::Gauge(_) => StatKind::Gauge,
            Self::Histogram(_) => StatKind::Histogram,
            Self::Text(_) => StatKind::Text,
        }
    }
}

/// A struct of stats, made by [`stats!`](crate::stats).
pub trait StatGroup: Send + Sync {
    /// Visits every stat with its name below the group's prefix.
    fn visit(&self, visit: &mut dyn FnMut(&str, StatRef<'_>));
}

/// Declares a group of stats with Envoy's names. `lazy_codes` and `lazy_histogram` are not there before their first value.
///
/// ```
/// weft_proxy::stats! {
///     /// `cluster.NAME.*`
///     pub struct ExampleStats {
///         counter upstream_cx_total,
///         gauge upstream_cx_active,
///         codes upstream_rq,
///         classes downstream_rq,
///         histogram(Milliseconds) upstream_rq_time,
///         text version_text,
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
    (@type lazy_codes) => { $crate::observe::stats::CodeCounters };
    (@type lazy_histogram) => { $crate::observe::stats::Histogram };
    (@type classes) => { $crate::observe::stats::ClassCounters };
    (@type text) => { $crate::observe::stats::TextReadout };
    (@new histogram $unit:ident) => { $crate::observe::stats::Histogram::new($crate::observe::stats::Unit::$unit) };
    (@new lazy_histogram $unit:ident) => { $crate::stats!(@new histogram $unit) };
    (@new $kind:ident) => { Default::default() };
    (@name $name:ident) => { stringify!($name) };
    (@name $name:ident $wire:literal) => { $wire };
    (@visit counter $stat:expr, $name:expr, $visit:ident) => { $visit($name, $crate::observe::stats::StatRef::Counter(&$stat)) };
    (@visit gauge $stat:expr, $name:expr, $visit:ident) => { $visit($name, $crate::observe::stats::StatRef::Gauge(&$stat)) };
    (@visit codes $stat:expr, $name:expr, $visit:ident) => { $stat.visit($name, $visit) };
    (@visit lazy_codes $stat:expr, $name:expr, $visit:ident) => { $stat.visit_lazily($name, $visit) };
    (@visit lazy_histogram $stat:expr, $name:expr, $visit:ident) => {
        if $stat.is_used() {
            $crate::stats!(@visit histogram $stat, $name, $visit);
        }
    };
    (@visit classes $stat:expr, $name:expr, $visit:ident) => { $stat.visit($name, $visit) };
    (@visit histogram $stat:expr, $name:expr, $visit:ident) => { $visit($name, $crate::observe::stats::StatRef::Histogram(&$stat)) };
    (@visit text $stat:expr, $name:expr, $visit:ident) => { $visit($name, $crate::observe::stats::StatRef::Text(&$stat)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gauges_go_below_zero_and_know_if_they_were_used() {
        let gauge = Gauge::default();
        assert!(!gauge.is_used());
        gauge.dec();
        gauge.dec();
        assert_eq!(gauge.get() as i64, -2);
        gauge.add(5);
        gauge.sub(3);
        assert_eq!((gauge.get(), gauge.is_used()), (0, true));
        gauge.set(u64::from(u32::MAX));
        assert_eq!(gauge.get(), 4_294_967_295);
    }
}
