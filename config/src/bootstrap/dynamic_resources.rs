//! Where listeners and clusters come from beyond the bootstrap.

use crate::{
    Context,
    config_source::{ApiConfigSource, ConfigSource, Specifier},
};
use weft_control_api::envoy::config::bootstrap::v3::bootstrap as pb;

/// The bootstrap's config sources.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DynamicResources {
    /// Listeners.
    pub lds: Option<ConfigSource>,
    /// Clusters.
    pub cds: Option<ConfigSource>,
    /// The aggregated stream that every source of kind ADS shares.
    pub ads: Option<ApiConfigSource>,
}

impl DynamicResources {
    pub(super) fn from_proto(pb: pb::DynamicResources, cx: &mut Context) -> Self {
        let pb::DynamicResources { lds_config, lds_resources_locator, cds_config, cds_resources_locator, ads_config } =
            pb;
        cx.unsupported_if("lds_resources_locator", !lds_resources_locator.is_empty());
        cx.unsupported_if("cds_resources_locator", !cds_resources_locator.is_empty());
        let has_ads = ads_config.is_some();
        let mut source = |name, config: Option<_>| {
            let source = cx.field(name, |cx| ConfigSource::from_proto(config?, cx))?;
            match &source.specifier {
                Specifier::Ads if !has_ads => cx.problem_at(name, "uses ADS, but there is no ads_config"),
                Specifier::Api(api) if api.aggregated && !has_ads => {
                    cx.problem_at(name, "uses an aggregated API, but there is no ads_config");
                }
                Specifier::SelfSource => cx.problem_at(name, "came over no stream, so \"self\" is no source for it"),
                _ => {}
            }
            Some(source)
        };
        let (lds, cds) = (source("lds_config", lds_config), source("cds_config", cds_config));
        let ads = cx.field("ads_config", |cx| {
            let ads = ApiConfigSource::from_proto(ads_config?, cx)?;
            if ads.aggregated {
                cx.problem_at("api_type", "is an aggregated type, allowed: GRPC, DELTA_GRPC");
            }
            Some(ads)
        });
        Self { lds, cds, ads }
    }

    /// The clusters of the control planes that are named here, each with the path that names it.
    pub(super) fn control_planes(&self) -> impl Iterator<Item = (String, &str)> {
        let ads = self.ads.as_ref().map(|api| grpc("ads_config", api));
        let lds = self.lds.as_ref().and_then(|source| own("lds_config", source));
        let cds = self.cds.as_ref().and_then(|source| own("cds_config", source));
        [lds, cds, ads].into_iter().flatten()
    }
}

/// The control plane of a source that does not share the aggregated stream.
fn own<'a>(name: &str, source: &'a ConfigSource) -> Option<(String, &'a str)> {
    match &source.specifier {
        Specifier::Api(api) if !api.aggregated => Some(grpc(&format!("{name}.api_config_source"), api)),
        Specifier::Rest(rest) => {
            Some((format!("dynamic_resources.{name}.api_config_source.cluster_names[0]"), &rest.cluster))
        }
        _ => None,
    }
}

fn grpc<'a>(name: &str, api: &'a ApiConfigSource) -> (String, &'a str) {
    (format!("dynamic_resources.{name}.grpc_services[0].envoy_grpc.cluster_name"), &api.service.cluster)
}
