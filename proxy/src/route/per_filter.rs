//! What a route, virtual host or route configuration says of HTTP filters, each read by its own filter.
//!
//! Compiled with the route table, looked up by a filter's name when a stream's filters are made. A configuration that
//! no filter reads is a problem unless it is optional: it would have changed what happens to requests.

use crate::filters::{self, RouteFilterConfig};
use std::collections::BTreeMap;
use weft_config::{
    Context,
    route::{PerFilterConfig, PerFilterConfigs},
};

/// One filter's configuration at one level.
pub struct RouteFilter {
    /// As [`filters::FilterFactory::route`] made it.
    pub config: Option<RouteFilterConfig>,
    /// The filter is left out; if not, it takes part even if the connection manager has it switched off.
    pub disabled: bool,
}

/// The configurations of one level, by the filters' names.
#[derive(Default)]
pub struct RouteFilters(BTreeMap<Box<str>, RouteFilter>);

impl RouteFilters {
    pub(super) fn compile(configs: &PerFilterConfigs, cx: &mut Context) -> Self {
        let read = |(name, config): (&String, &PerFilterConfig)| {
            let filter = cx.entry("typed_per_filter_config", name, |cx| compile(config, cx))?;
            Some((name.as_str().into(), filter))
        };
        Self(configs.iter().filter_map(read).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, name: &str) -> Option<&RouteFilter> {
        self.0.get(name)
    }
}

fn compile(config: &PerFilterConfig, cx: &mut Context) -> Option<RouteFilter> {
    let disabled = config.disabled;
    let Some(any) = &config.config else { return Some(RouteFilter { config: None, disabled }) };
    match filters::by_route_type(&any.type_url).and_then(|factory| factory.route) {
        Some((_, parse)) => Some(RouteFilter { config: Some(parse(any, cx)?), disabled }),
        None if config.is_optional => disabled.then_some(RouteFilter { config: None, disabled }),
        None => {
            let name = any.type_url.rsplit('/').next().unwrap_or_default();
            cx.problem(format!("found {name}, which is not supported for routes and virtual hosts"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_control_api::Any;

    fn compiled(config: PerFilterConfig) -> Result<RouteFilters, usize> {
        let mut cx = Context::new();
        let filters = RouteFilters::compile(&[("f".to_owned(), config)].into(), &mut cx);
        cx.finish(Some(filters)).map(|(filters, _)| filters).map_err(|problems| problems.len())
    }

    #[test]
    fn what_no_filter_reads_is_refused() {
        let any = Any { type_url: "type.googleapis.com/no.such.Filter".into(), value: Default::default() };
        let config =
            |is_optional, disabled, any: Option<&Any>| PerFilterConfig { config: any.cloned(), is_optional, disabled };
        assert!(compiled(config(false, false, Some(&any))).is_err());
        assert!(compiled(config(true, false, Some(&any))).is_ok_and(|filters| filters.get("f").is_none()));
        let off = compiled(config(false, true, None));
        assert!(off.is_ok_and(|filters| filters.get("f").is_some_and(|filter| filter.disabled)));
    }
}
