//! Clusters that are asked for when a request or a connection needs them (ODCDS): where, and how long to wait.

use crate::{
    Context,
    config_source::{ConfigSource, Specifier},
};
use std::{sync::Arc, time::Duration};
use weft_control_api::{
    Duration as ProtoDuration,
    envoy::{
        config::core::v3 as core, extensions::filters::http::on_demand::v3 as pb,
        extensions::filters::network::tcp_proxy::v3::tcp_proxy as tcp,
    },
};

/// Where clusters are asked for.
#[derive(Clone, Debug)]
pub struct OnDemandClusters {
    pub source: Arc<ConfigSource>,
    pub timeout: Duration,
}

impl OnDemandClusters {
    /// Of the HTTP filter; the timeout's default is 5 s.
    pub fn from_http(p: pb::OnDemandCds, cx: &mut Context) -> Option<Self> {
        let pb::OnDemandCds { source, resources_locator, timeout } = p;
        Self::read("source", source, &resources_locator, timeout, Duration::from_secs(5), cx)
    }

    /// Of the TCP proxy; the timeout's default is a minute.
    pub fn from_tcp(p: tcp::OnDemand, cx: &mut Context) -> Option<Self> {
        let tcp::OnDemand { odcds_config, resources_locator, timeout } = p;
        Self::read("odcds_config", odcds_config, &resources_locator, timeout, Duration::from_secs(60), cx)
    }

    fn read(
        name: &str,
        source: Option<core::ConfigSource>,
        resources_locator: &str,
        timeout: Option<ProtoDuration>,
        default: Duration,
        cx: &mut Context,
    ) -> Option<Self> {
        cx.unsupported_if("resources_locator", !resources_locator.is_empty());
        let timeout = cx.duration("timeout", timeout).unwrap_or(default);
        let source = cx.required(name, source)?;
        let source = cx.field(name, |cx| ConfigSource::from_proto(source, cx))?;
        delta_only(name, &source, cx);
        Some(Self { source: Arc::new(source), timeout })
    }
}

/// What is asked for on demand goes by delta.
pub(crate) fn delta_only(name: &str, source: &ConfigSource, cx: &mut Context) {
    if matches!(&source.specifier, Specifier::Api(api) if !api.delta) || matches!(source.specifier, Specifier::Rest(_))
    {
        cx.problem_at(name, "only DELTA_GRPC and AGGREGATED_DELTA_GRPC are supported as an api_type");
    }
}
