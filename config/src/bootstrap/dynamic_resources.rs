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

    /// Every control plane that is named here, with the path of its settings.
    pub(super) fn control_planes(&self) -> impl Iterator<Item = (&'static str, &ApiConfigSource)> {
        let own = [
            ("lds_config.api_config_source", own_stream(self.lds.as_ref())),
            ("cds_config.api_config_source", own_stream(self.cds.as_ref())),
            ("ads_config", self.ads.as_ref()),
        ];
        own.into_iter().filter_map(|(name, source)| Some((name, source?)))
    }
}

/// The control plane of a source that has a stream of its own.
fn own_stream(source: Option<&ConfigSource>) -> Option<&ApiConfigSource> {
    match &source?.specifier {
        Specifier::Api(api) if !api.aggregated => Some(api),
        _ => None,
    }
}
