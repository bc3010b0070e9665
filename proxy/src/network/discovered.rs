//! A filter's seat in a chain whose configuration is discovered (ECDS): HTTP, network and listener filters have them.
//!
//! The chain holds the seat from its compilation on. The control thread compiles what comes for this very seat and puts it in;
//! workers look in for each stream or connection. A seat whose configuration changes leaves its listener as it is.

use super::{CompileContext, ListenerFacts};
use arc_swap::ArcSwapOption;
use std::sync::{Arc, Mutex, PoisonError};
use weft_config::{Context, extension_config::ExtensionConfigSource};
use weft_control_api::Any;

/// The kinds of filters that have seats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Category {
    Http,
    Network,
    Listener,
}

impl Category {
    /// The prefix of the stats of the configuration `name`.
    pub fn stat_prefix(self, name: &str) -> String {
        let kind = match self {
            Self::Http => "http_filter",
            Self::Network => "network_filter",
            Self::Listener => "tcp_listener_filter",
        };
        format!("extension_config_discovery.{kind}.{}", name.replace(':', "_"))
    }
}

/// What a seat asks for.
pub struct Wanted {
    pub category: Category,
    /// The name that the configuration is known by.
    pub name: String,
    pub source: ExtensionConfigSource,
    pub listener: ListenerFacts,
}

/// What a configuration refers to in turn.
#[derive(Clone, Default)]
pub struct Uses {
    pub routes: Vec<String>,
    pub seats: Vec<Arc<dyn Seat>>,
}

/// A seat as the control thread sees it.
pub trait Seat: Send + Sync {
    fn wanted(&self) -> &Wanted;

    /// Compiles a configuration for this seat; calling what it gives puts it in. `None` with problems reported.
    fn prepare(
        self: Arc<Self>,
        config: &Any,
        context: &mut CompileContext<'_>,
        cx: &mut Context,
    ) -> Option<Box<dyn FnOnce()>>;

    /// There is no configuration, or none any more: the default holds, if there is one.
    fn fall_back(&self);

    /// True if there is something in it.
    fn is_filled(&self) -> bool;

    /// What the configuration in it refers to.
    fn uses(&self) -> Uses;
}

/// Reads a configuration for a seat.
pub type CompileFor<T> = fn(&Any, &mut CompileContext<'_>, &mut Context) -> Option<T>;

/// A seat for what `T` is compiled of.
pub struct Discovered<T> {
    wanted: Wanted,
    compile: CompileFor<T>,
    default: Option<(Arc<T>, Uses)>,
    current: ArcSwapOption<T>,
    uses: Mutex<Uses>,
}

impl<T: Send + Sync + 'static> Discovered<T> {
    /// An empty seat, which the context then knows; its default is in it already if nobody is to wait.
    pub fn new(
        category: Category,
        name: &str,
        source: &ExtensionConfigSource,
        compile: CompileFor<T>,
        context: &mut CompileContext<'_>,
        cx: &mut Context,
    ) -> Option<Arc<Self>> {
        let default = match &source.default {
            Some(config) => {
                let (default, uses) = using(context, |context| {
                    cx.field("config_discovery", |cx| cx.field("default_config", |cx| compile(config, context, cx)))
                });
                Some((Arc::new(default?), uses))
            }
            None => None,
        };
        let wanted =
            Wanted { category, name: name.to_owned(), source: source.clone(), listener: context.listener.clone() };
        let seat = Arc::new(Self { wanted, compile, default, current: ArcSwapOption::empty(), uses: Mutex::default() });
        if source.apply_default_without_warming {
            seat.fall_back();
        }
        context.seats.push(seat.clone());
        Some(seat)
    }

    /// What is in it now.
    pub fn get(&self) -> Option<Arc<T>> {
        self.current.load_full()
    }

    fn put(&self, value: Option<Arc<T>>, uses: Uses) {
        *self.uses.lock().unwrap_or_else(PoisonError::into_inner) = uses;
        self.current.store(value);
    }
}

impl<T: Send + Sync + 'static> Seat for Discovered<T> {
    fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    fn prepare(
        self: Arc<Self>,
        config: &Any,
        context: &mut CompileContext<'_>,
        cx: &mut Context,
    ) -> Option<Box<dyn FnOnce()>> {
        self.wanted.source.check_type("typed_config", config, cx);
        if cx.has_problems() {
            return None;
        }
        let (value, uses) = using(context, |context| (self.compile)(config, context, cx));
        let value = Arc::new(value?);
        Some(Box::new(move || self.put(Some(value), uses)))
    }

    fn fall_back(&self) {
        let (value, uses) = self.default.clone().unzip();
        self.put(value, uses.unwrap_or_default());
    }

    fn is_filled(&self) -> bool {
        self.current.load().is_some()
    }

    fn uses(&self) -> Uses {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Compiles something, and tells what it refers to, which is then no matter of the context.
fn using<T>(context: &mut CompileContext<'_>, compile: impl FnOnce(&mut CompileContext<'_>) -> T) -> (T, Uses) {
    let (routes, seats) = (context.routes.take_wanted(), std::mem::take(context.seats));
    let value = compile(context);
    let uses = Uses { routes: context.routes.take_wanted(), seats: std::mem::replace(context.seats, seats) };
    context.routes.want(routes);
    (value, uses)
}

/// All seats that are reached from `seats`, and the route configurations that what is in them refers to.
pub fn reached(seats: &[Arc<dyn Seat>]) -> Uses {
    let mut all = Uses { routes: Vec::new(), seats: seats.to_vec() };
    let mut at = 0;
    while let Some(seat) = all.seats.get(at) {
        let uses = seat.uses();
        all.routes.extend(uses.routes);
        all.seats.extend(uses.seats);
        at += 1;
    }
    all
}
