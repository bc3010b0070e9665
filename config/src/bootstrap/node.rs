//! Who this proxy is to a control plane.

use crate::Context;
use weft_control_api::{Message as _, envoy::config::core::v3 as pb};

/// This proxy's identity. `--service-node` and its like overwrite fields of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub id: String,
    pub cluster: String,
    pub locality: Locality,
    /// An encoded `google.protobuf.Struct`; `None`: not set.
    pub metadata: Option<Vec<u8>>,
    /// By resource type, parameters by key; sorted.
    pub dynamic_parameters: Vec<(String, Vec<(String, String)>)>,
    /// What the client declares beyond its own features.
    pub client_features: Vec<String>,
}

/// Where something runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    pub region: String,
    pub zone: String,
    pub sub_zone: String,
}

impl Node {
    pub(super) fn from_proto(pb: pb::Node, cx: &mut Context) -> Self {
        let pb::Node {
            id,
            cluster,
            metadata,
            dynamic_parameters,
            locality,
            user_agent_name,
            extensions,
            client_features,
            listening_addresses,
            user_agent_version_type,
        } = pb;
        // Envoy overwrites these with what it is itself.
        cx.ignored_if("user_agent_name", !user_agent_name.is_empty());
        cx.ignored_if("user_agent_version_type", user_agent_version_type.is_some());
        cx.ignored_if("extensions", !extensions.is_empty());
        cx.ignored_if("listening_addresses", !listening_addresses.is_empty());
        let sorted = |params: std::collections::HashMap<String, String>| {
            let mut params: Vec<_> = params.into_iter().collect();
            params.sort();
            params
        };
        let mut dynamic_parameters: Vec<_> =
            dynamic_parameters.into_iter().map(|(kind, context)| (kind, sorted(context.params))).collect();
        dynamic_parameters.sort();
        Self {
            id,
            cluster,
            locality: Locality::from_proto(locality.unwrap_or_default()),
            metadata: metadata.map(|metadata| metadata.encode_to_vec()),
            dynamic_parameters,
            client_features,
        }
    }
}

impl Locality {
    /// Reads a locality.
    pub fn from_proto(pb: pb::Locality) -> Self {
        let pb::Locality { region, zone, sub_zone } = pb;
        Self { region, zone, sub_zone }
    }

    /// True if nothing is known of it.
    pub fn is_empty(&self) -> bool {
        self.region.is_empty() && self.zone.is_empty() && self.sub_zone.is_empty()
    }
}
