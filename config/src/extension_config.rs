//! Where a filter's configuration comes from: it stands beside the filter's name, or is discovered (ECDS).
//!
//! Read for HTTP, network and listener filters alike. What the configuration means is for the filter to say.

use crate::{Context, config_source::ConfigSource};
use weft_control_api::{Any, envoy::config::core::v3 as core};

/// Where a filter's configuration comes from.
#[derive(Clone, Debug)]
pub enum FilterConfig {
    Typed(Any),
    /// ECDS.
    Discovery(Box<ExtensionConfigSource>),
}

/// Where a configuration is discovered, and what holds until it is.
#[derive(Clone, Debug)]
pub struct ExtensionConfigSource {
    pub config_source: ConfigSource,
    /// In force where none was found.
    pub default: Option<Any>,
    /// The default is in force from the start: nobody waits for another.
    pub apply_default_without_warming: bool,
    /// Types that the configuration may be of.
    pub type_urls: Vec<String>,
}

impl ExtensionConfigSource {
    pub fn from_proto(p: core::ExtensionConfigSource, cx: &mut Context) -> Option<Self> {
        let core::ExtensionConfigSource {
            config_source,
            default_config: default,
            apply_default_config_without_warming: apply_default_without_warming,
            type_urls,
        } = p;
        if apply_default_without_warming && default.is_none() {
            cx.problem_at("default_config", "is required with apply_default_config_without_warming");
        }
        let config_source = cx.required("config_source", config_source)?;
        let config_source = cx.field("config_source", |cx| ConfigSource::from_proto(config_source, cx))?;
        let read = Self { config_source, default, apply_default_without_warming, type_urls };
        if let Some(default) = &read.default {
            read.check_type("default_config", default, cx);
        }
        Some(read)
    }

    /// Reports a configuration whose type is none of those that are allowed.
    pub fn check_type(&self, name: &str, config: &Any, cx: &mut Context) {
        let of = |url: &str| url.rsplit('/').next().unwrap_or_default().to_owned();
        let found = of(&config.type_url);
        if !self.type_urls.iter().any(|url| of(url) == found) {
            let allowed: Vec<_> = self.type_urls.iter().map(|url| of(url)).collect();
            cx.problem_at(
                name,
                format!("filter config has type URL {found} but expect one of: {}", allowed.join(", ")),
            );
        }
    }
}
