//! The kinds of resources that travel over xDS: type URLs, service methods, and how a resource is named.
//!
//! Client and server share this table. Invariant: every kind is known by exactly one type URL.

use crate::wire::{Malformed, Records, Wire};
use std::fmt;

const PREFIX: &str = "type.googleapis.com/";

/// A kind of resource.
///
/// The order is the order in which a control plane sends them on an aggregated stream, so that whatever is named
/// exists before it is used: "make before break".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum ResourceType {
    Runtime,
    Cluster,
    Endpoint,
    Secret,
    Listener,
    ScopedRouteConfiguration,
    RouteConfiguration,
    VirtualHost,
    ExtensionConfig,
}

/// How subscriptions are spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// `GRPC` and `AGGREGATED_GRPC`: every response carries the state of the world.
    StateOfTheWorld,
    /// `DELTA_GRPC` and `AGGREGATED_DELTA_GRPC`: a response carries what changed.
    Delta,
}

impl ResourceType {
    /// All of them, in order.
    pub const ALL: [Self; 9] = [
        Self::Runtime,
        Self::Cluster,
        Self::Endpoint,
        Self::Secret,
        Self::Listener,
        Self::ScopedRouteConfiguration,
        Self::RouteConfiguration,
        Self::VirtualHost,
        Self::ExtensionConfig,
    ];

    /// The full name of the resources' message.
    pub fn message(self) -> &'static str {
        &self.url()[PREFIX.len()..]
    }

    /// The type URL of the resources.
    pub fn url(self) -> &'static str {
        match self {
            Self::Runtime => "type.googleapis.com/envoy.service.runtime.v3.Runtime",
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::ScopedRouteConfiguration => "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration",
            Self::RouteConfiguration => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::VirtualHost => "type.googleapis.com/envoy.config.route.v3.VirtualHost",
            Self::ExtensionConfig => "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
        }
    }

    /// The kind with this type URL.
    pub fn of_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.url() == url)
    }

    /// What one resource is called in messages to people.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Runtime => "runtime layer",
            Self::Cluster => "cluster",
            Self::Endpoint => "cluster load assignment",
            Self::Secret => "secret",
            Self::Listener => "listener",
            Self::ScopedRouteConfiguration => "scoped route",
            Self::RouteConfiguration => "route configuration",
            Self::VirtualHost => "virtual host",
            Self::ExtensionConfig => "extension configuration",
        }
    }

    /// True if a state-of-the-world response names all that exists, so that what it leaves out is removed. For all
    /// other kinds a response may be partial.
    pub fn is_full_state(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener | Self::ScopedRouteConfiguration)
    }

    /// The path of the method that streams this kind, apart from the aggregated service. Virtual hosts have no
    /// state-of-the-world method.
    pub fn method(self, protocol: Protocol) -> Option<&'static str> {
        let (sotw, delta) = match self {
            Self::Runtime => (
                "/envoy.service.runtime.v3.RuntimeDiscoveryService/StreamRuntime",
                "/envoy.service.runtime.v3.RuntimeDiscoveryService/DeltaRuntime",
            ),
            Self::Cluster => (
                "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters",
                "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters",
            ),
            Self::Endpoint => (
                "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints",
                "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints",
            ),
            Self::Secret => (
                "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
                "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
            ),
            Self::Listener => (
                "/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners",
                "/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners",
            ),
            Self::ScopedRouteConfiguration => (
                "/envoy.service.route.v3.ScopedRoutesDiscoveryService/StreamScopedRoutes",
                "/envoy.service.route.v3.ScopedRoutesDiscoveryService/DeltaScopedRoutes",
            ),
            Self::RouteConfiguration => (
                "/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes",
                "/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes",
            ),
            Self::VirtualHost => ("", "/envoy.service.route.v3.VirtualHostDiscoveryService/DeltaVirtualHosts"),
            Self::ExtensionConfig => (
                "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs",
                "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/DeltaExtensionConfigs",
            ),
        };
        let path = if protocol == Protocol::Delta { delta } else { sotw };
        (!path.is_empty()).then_some(path)
    }

    /// The name of a resource of this kind, read from its bytes without decoding the rest.
    ///
    /// # Errors
    /// The bytes are no protobuf message, or the name is not UTF-8.
    pub fn name_of(self, bytes: &[u8]) -> Result<String, Malformed> {
        // In every one of these messages the name is field 1, a string.
        let mut name: &[u8] = &[];
        for record in Records(bytes) {
            if let (1, Wire::Bytes(bytes)) = record? {
                name = bytes;
            }
        }
        String::from_utf8(name.to_vec()).map_err(|_| Malformed)
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl Protocol {
    /// The path of the aggregated method, which streams all kinds.
    pub fn aggregated_method(self) -> &'static str {
        match self {
            Self::StateOfTheWorld => "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
            Self::Delta => "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Message as _, envoy, schema};

    #[test]
    fn every_kind_is_a_message_whose_first_field_is_its_name() {
        for kind in ResourceType::ALL {
            let message = schema::message(kind.message()).expect("a message of the schema");
            let field = message.field(1).expect("field 1");
            assert!(["name", "cluster_name"].contains(&field.name()), "{kind}: {}", field.name());
            assert_eq!(field.kind(), schema::Kind::String, "{kind}");
            assert_eq!(ResourceType::of_url(kind.url()), Some(kind));
        }
    }

    #[test]
    fn names_are_read_without_decoding() {
        let cluster =
            envoy::config::cluster::v3::Cluster { name: "a".into(), alt_stat_name: "b".into(), ..Default::default() };
        assert_eq!(ResourceType::Cluster.name_of(&cluster.encode_to_vec()), Ok("a".to_owned()));
        assert_eq!(ResourceType::Cluster.name_of(&[]), Ok(String::new()));
        assert_eq!(ResourceType::Cluster.name_of(&[0x0a, 5, b'a']), Err(Malformed));
        assert_eq!(ResourceType::Cluster.name_of(&[0x0a, 1, 0xff]), Err(Malformed));
    }
}
