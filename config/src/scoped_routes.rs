//! Scoped routes: headers of a request say which route configuration it is for (`ScopedRoutes`, `ScopedRouteConfiguration`).

use crate::{Context, config_source::ConfigSource, header_value::HeaderKey, route::RouteConfiguration};
use std::sync::Arc;
use weft_control_api::{
    Message as _,
    envoy::{
        config::route::v3 as route,
        extensions::filters::network::http_connection_manager::v3::{
            self as pb, ScopedRds, ScopedRouteConfigurationsList, scoped_routes,
            scoped_routes::scope_key_builder::{
                FragmentBuilder,
                fragment_builder::{self, HeaderValueExtractor, header_value_extractor},
            },
        },
    },
};

/// A connection manager's scoped routes.
#[derive(Clone, Debug)]
pub struct ScopedRoutes {
    pub name: String,
    pub key: Vec<Extractor>,
    /// Where route configurations are asked for by name; `None` if all stand in their scopes.
    pub rds: Option<ConfigSource>,
    pub scopes: Scopes,
}

/// Where the scopes come from.
#[derive(Clone, Debug)]
pub enum Scopes {
    /// With their encoded messages, for dumps.
    Inline(Vec<(Scope, Vec<u8>)>),
    /// SRDS.
    Discovered(ConfigSource),
}

/// One part of a request's key: a header's value, or a part of it.
#[derive(Clone, Debug)]
pub struct Extractor {
    pub header: HeaderKey,
    /// Empty: the value is one element.
    pub element_separator: String,
    pub part: Part,
}

/// Which part of the header's value.
#[derive(Clone, Debug)]
pub enum Part {
    /// The element at this index.
    Index(usize),
    /// The value of the first element with this key.
    Element { separator: String, key: String },
}

/// Requests of one key, and their route configuration.
#[derive(Clone, Debug)]
pub struct Scope {
    pub name: String,
    pub key: Vec<String>,
    /// Empty: it stands in the scope.
    pub route_configuration_name: String,
    pub route_configuration: Option<Arc<RouteConfiguration>>,
    /// The route configuration is not asked for before a request needs it.
    pub on_demand: bool,
}

impl ScopedRoutes {
    pub fn from_proto(p: pb::ScopedRoutes, cx: &mut Context) -> Option<Self> {
        let pb::ScopedRoutes { name, scope_key_builder, rds_config_source, config_specifier } = p;
        let builder = cx.required("scope_key_builder", scope_key_builder)?;
        let scoped_routes::ScopeKeyBuilder { fragments } = builder;
        let key = cx.field("scope_key_builder", |cx| {
            cx.elements("fragments", fragments, |cx, FragmentBuilder { r#type }| {
                let fragment_builder::Type::HeaderValueExtractor(p) = cx.required("type", r#type)?;
                cx.field("header_value_extractor", |cx| Extractor::from_proto(p, cx))
            })
        });
        let rds = match rds_config_source {
            Some(p) => Some(cx.field("rds_config_source", |cx| ConfigSource::from_proto(p, cx))?),
            None => None,
        };
        let scopes = match cx.required("config_specifier", config_specifier)? {
            scoped_routes::ConfigSpecifier::ScopedRouteConfigurationsList(list) => {
                let ScopedRouteConfigurationsList { scoped_route_configurations } = list;
                cx.field("scoped_route_configurations_list", |cx| {
                    Scopes::Inline(cx.elements("scoped_route_configurations", scoped_route_configurations, |cx, p| {
                        let bytes = p.encode_to_vec();
                        let scope = Scope::from_proto(p, cx)?;
                        if !scope.route_configuration_name.is_empty() {
                            cx.problem_at(
                                "route_configuration_name",
                                "Fetching routes via RDS (route_configuration_name) is not supported with inline \
                                 scoped routes.",
                            );
                        }
                        Some((scope, bytes))
                    }))
                })
            }
            scoped_routes::ConfigSpecifier::ScopedRds(p) => {
                let ScopedRds { scoped_rds_config_source, srds_resources_locator } = p;
                cx.field("scoped_rds", |cx| {
                    cx.unsupported_if("srds_resources_locator", !srds_resources_locator.is_empty());
                    let source = cx.required("scoped_rds_config_source", scoped_rds_config_source)?;
                    let read = |cx: &mut Context| ConfigSource::from_proto(source, cx);
                    Some(Scopes::Discovered(cx.field("scoped_rds_config_source", read)?))
                })?
            }
        };
        if let Scopes::Inline(scopes) = &scopes {
            let mut known: Vec<&Scope> = Vec::new();
            for (scope, _) in scopes {
                if let Some(other) = known.iter().find(|other| other.key == scope.key || other.name == scope.name) {
                    let what = if other.name == scope.name { "name" } else { "key" };
                    cx.problem_at(
                        "scoped_route_configurations_list",
                        format!("scopes {:?} and {:?} have the same {what}", other.name, scope.name),
                    );
                }
                known.push(scope);
            }
        }
        Some(Self { name, key, rds, scopes })
    }
}

impl Extractor {
    fn from_proto(p: HeaderValueExtractor, cx: &mut Context) -> Option<Self> {
        let HeaderValueExtractor { name, element_separator, extract_type } = p;
        let part = match extract_type {
            Some(header_value_extractor::ExtractType::Index(index)) => {
                if index != 0 && element_separator.is_empty() {
                    cx.problem_at("index", "Index > 0 for empty string element separator.");
                }
                Part::Index(index as usize)
            }
            Some(header_value_extractor::ExtractType::Element(p)) => {
                let header_value_extractor::KvElement { separator, key } = p;
                Part::Element { separator, key }
            }
            None => {
                cx.problem("HeaderValueExtractor extract_type not set");
                return None;
            }
        };
        Some(Self { header: HeaderKey::read("name", &name, cx)?, element_separator, part })
    }

    /// The part of a header's value, if there is one.
    pub fn extract<'a>(&self, value: &'a str) -> Option<&'a str> {
        let whole = |separator: &str, text: &'a str| separator.is_empty().then_some(text);
        let mut elements = match whole(&self.element_separator, value) {
            Some(value) => vec![value],
            None => value.split(self.element_separator.as_str()).collect(),
        }
        .into_iter();
        match &self.part {
            Part::Index(index) => elements.nth(*index),
            Part::Element { separator, key } => elements.find_map(|element| {
                let (found, value) = element.split_once(separator.as_str()).unwrap_or((element, ""));
                (found == key).then_some(value)
            }),
        }
    }
}

impl Scope {
    pub fn from_proto(p: route::ScopedRouteConfiguration, cx: &mut Context) -> Option<Self> {
        use route::scoped_route_configuration::{Key, key, key::Fragment};
        let route::ScopedRouteConfiguration { on_demand, name, route_configuration_name, route_configuration, key } = p;
        let Key { fragments } = cx.required("key", key)?;
        let key = cx.field("key", |cx| {
            cx.elements("fragments", fragments, |cx, Fragment { r#type }| {
                let key::fragment::Type::StringKey(text) = cx.required("type", r#type)?;
                Some(text)
            })
        });
        let route_configuration = match route_configuration {
            Some(p) => Some(cx.field("route_configuration", |cx| RouteConfiguration::from_proto(p, cx).map(Arc::new))?),
            None => None,
        };
        if route_configuration.is_some() != route_configuration_name.is_empty() {
            cx.problem("exactly one of route_configuration_name, route_configuration is required");
        }
        Some(Self { name, key, route_configuration_name, route_configuration, on_demand })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_value() {
        let extractor = |separator: &str, part| Extractor {
            header: HeaderKey::Authority,
            element_separator: separator.into(),
            part,
        };
        let element = |key: &str| Part::Element { separator: "=".into(), key: key.into() };
        for (extractor, value, want) in [
            (extractor("", Part::Index(0)), "a;b", Some("a;b")),
            (extractor(";", Part::Index(1)), "a;b", Some("b")),
            (extractor(";", Part::Index(2)), "a;b", None),
            (extractor(";", element("k")), "j=1;k=2=3;k=4", Some("2=3")),
            (extractor(";", element("k")), "j=1;k", Some("")),
            (extractor("", element("k")), "k=1;j", Some("1;j")),
            (extractor(";", element("x")), "k=1", None),
        ] {
            assert_eq!(extractor.extract(value), want, "{extractor:?} {value}");
        }
    }
}
