//! `envoy.filters.http.set_metadata`: gives requests dynamic metadata, before the filters behind it see them.
//!
//! A namespace that is there already stays as it is, which is counted, unless the entry may overwrite: it is then merged into
//! what is there. A route's entries come after the filter's own.

use super::{
    Action, ActiveFilter, FilterConfig, FilterFactory, FilterScope, HttpFilter, RouteFilterConfig, most_specific,
};
use crate::{
    http::stream::Stream,
    observe::{StreamInfo, stats::Registry},
    stats,
};
use serde_json::{Map, Value};
use std::{cell::OnceCell, rc::Rc, sync::Arc};
use weft_config::{
    Context,
    metadata::{merge, object},
};
use weft_control_api::envoy::extensions::filters::http::set_metadata::v3 as pb;

const TYPE: &str = "envoy.extensions.filters.http.set_metadata.v3.Config";

pub const FACTORY: FilterFactory = FilterFactory {
    name: "envoy.filters.http.set_metadata",
    type_name: TYPE,
    parse: |any, cx| {
        let config: pb::Config = cx.unpack("typed_config", any)?;
        let config = cx.field("typed_config", |cx| SetMetadata::from_proto(config, cx));
        Some(Arc::new(config) as Arc<dyn FilterConfig>)
    },
    route: Some((TYPE, |any, cx| {
        let config: pb::Config = cx.unpack("", any)?;
        Some(Arc::new(SetMetadata::from_proto(config, cx)) as RouteFilterConfig)
    })),
};

stats! {
    /// `PREFIX.set_metadata.*`, of routes `set_metadata.*`
    pub struct SetStats {
        counter overwrite_denied,
    }
}

/// The filter's configuration, or a route's beside it.
struct SetMetadata {
    untyped: Vec<Untyped>,
    typed: Vec<Typed>,
}

struct Untyped {
    namespace: Box<str>,
    value: Map<String, Value>,
    allow_overwrite: bool,
}

struct Typed {
    namespace: Arc<str>,
    allow_overwrite: bool,
}

impl SetMetadata {
    #[allow(deprecated)] // Deprecated fields are still read: configurations have them.
    fn from_proto(p: pb::Config, cx: &mut Context) -> Self {
        let pb::Config { metadata_namespace, value, metadata } = p;
        let mut all = Self { untyped: Vec::new(), typed: Vec::new() };
        match value {
            Some(value) if !metadata_namespace.is_empty() => all.untyped.push(Untyped {
                namespace: metadata_namespace.into(),
                value: object(value),
                allow_overwrite: true,
            }),
            // Half of a pair does nothing.
            value => {
                cx.ignored_if("metadata_namespace", !metadata_namespace.is_empty());
                cx.ignored_if("value", value.is_some());
            }
        }
        for (i, entry) in metadata.into_iter().enumerate() {
            cx.element("metadata", i, |cx| all.add(entry, cx));
        }
        all
    }

    fn add(&mut self, p: pb::Metadata, cx: &mut Context) {
        let pb::Metadata { metadata_namespace, allow_overwrite, value, typed_value } = p;
        // Nothing reads typed metadata.
        cx.ignored_if("typed_value", typed_value.is_some());
        match (value, typed_value) {
            (Some(value), _) => self.untyped.push(Untyped {
                namespace: metadata_namespace.into(),
                value: object(value),
                allow_overwrite,
            }),
            (None, Some(_)) => self.typed.push(Typed { namespace: metadata_namespace.into(), allow_overwrite }),
            (None, None) => cx.ignored_if("metadata_namespace", true),
        }
    }

    fn is_empty(&self) -> bool {
        self.untyped.is_empty() && self.typed.is_empty()
    }

    fn apply(&self, info: &mut StreamInfo, stats: &SetStats) {
        for Untyped { namespace, value, allow_overwrite } in &self.untyped {
            match info.dynamic_metadata.get_mut(namespace) {
                None => {
                    info.dynamic_metadata.insert(namespace.clone(), value.clone());
                }
                Some(old) if *allow_overwrite => merge(old, value),
                Some(_) => stats.overwrite_denied.inc(),
            }
        }
        for Typed { namespace, allow_overwrite } in &self.typed {
            if !info.typed_metadata.contains(namespace) {
                info.typed_metadata.push(namespace.clone());
            } else if !allow_overwrite {
                stats.overwrite_denied.inc();
            }
        }
    }
}

impl FilterConfig for SetMetadata {
    fn activate(self: Arc<Self>, scope: &FilterScope<'_>) -> Rc<dyn ActiveFilter> {
        Rc::new(Active {
            config: self,
            stats: scope.thread.registry.attach(&format!("{}.set_metadata", scope.stat_prefix)),
            registry: scope.thread.registry.clone(),
            route_stats: OnceCell::new(),
        })
    }
}

/// One worker's part.
struct Active {
    config: Arc<SetMetadata>,
    stats: Arc<SetStats>,
    registry: Registry,
    /// Counted for all routes together.
    route_stats: OnceCell<Arc<SetStats>>,
}

impl ActiveFilter for Active {
    fn create(&self, _: &Stream, routes: &[RouteFilterConfig]) -> Option<Box<dyn HttpFilter>> {
        let of_route = most_specific::<SetMetadata>(routes);
        let of_route = of_route.filter(|config| !config.is_empty()).map(|config| {
            let stats = self.route_stats.get_or_init(|| self.registry.attach("set_metadata"));
            (config, stats.clone())
        });
        if self.config.is_empty() && of_route.is_none() {
            return None;
        }
        Some(Box::new(Filter { config: self.config.clone(), stats: self.stats.clone(), of_route }))
    }
}

struct Filter {
    config: Arc<SetMetadata>,
    stats: Arc<SetStats>,
    of_route: Option<(Arc<SetMetadata>, Arc<SetStats>)>,
}

impl HttpFilter for Filter {
    fn on_request(&mut self, stream: &mut Stream, _end: bool) -> Action {
        self.config.apply(&mut stream.info, &self.stats);
        if let Some((config, stats)) = &self.of_route {
            config.apply(&mut stream.info, stats);
        }
        Action::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Address, ConnectionInfo};
    use serde_json::json;
    use weft_control_api::{Any, Struct, value::Kind};

    fn value(key: &str, n: f64) -> Option<Struct> {
        let value = weft_control_api::Value { kind: Some(Kind::NumberValue(n)) };
        Some(Struct { fields: [(key.to_owned(), value)].into() })
    }

    fn entry(value: Option<Struct>, allow_overwrite: bool) -> pb::Metadata {
        let typed_value = value.is_none().then(Any::default);
        pb::Metadata { metadata_namespace: "a".into(), allow_overwrite, value, typed_value }
    }

    #[test]
    fn what_is_there_stays_unless_it_may_be_overwritten() {
        let mut cx = Context::new();
        let metadata = vec![
            entry(value("k", 1.0), false),
            entry(value("k", 2.0), false),
            entry(value("j", 3.0), true),
            entry(None, false),
            entry(None, true),
            entry(None, false),
        ];
        let config = SetMetadata::from_proto(pb::Config { metadata, ..Default::default() }, &mut cx);
        let (config, ignored) = cx.finish(Some(config)).expect("valid");
        assert_eq!(ignored, ["metadata[3].typed_value", "metadata[4].typed_value", "metadata[5].typed_value"]);
        let here = || Address::Ip(([127, 0, 0, 1], 1).into());
        let mut info = StreamInfo::new(Rc::new(ConnectionInfo::accepted(1, here(), here())));
        let stats = SetStats::default();
        config.apply(&mut info, &stats);
        assert_eq!(json!(info.dynamic_metadata["a"]), json!({"j": 3.0, "k": 1.0}));
        assert_eq!(stats.overwrite_denied.get(), 2);
    }

    #[test]
    #[allow(deprecated)] // It is what is tested.
    fn the_old_fields_overwrite() {
        let mut cx = Context::new();
        let p = pb::Config { metadata_namespace: "a".into(), value: value("k", 1.0), metadata: vec![] };
        assert!(SetMetadata::from_proto(p, &mut cx).untyped[0].allow_overwrite);
        let half = pb::Config { metadata_namespace: "a".into(), ..Default::default() };
        assert!(SetMetadata::from_proto(half, &mut cx).is_empty());
        assert_eq!(cx.finish(Some(())).expect("valid").1, ["metadata_namespace"]);
    }
}
