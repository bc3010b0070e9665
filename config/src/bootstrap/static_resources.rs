//! What the bootstrap itself serves: listeners, clusters and secrets, each read later by its own module.

use weft_control_api::{Message, Name, envoy::config::bootstrap::v3::bootstrap as pb};

/// A resource as it would come over xDS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// `type.googleapis.com/envoy.config.cluster.v3.Cluster`.
    pub type_url: String,
    /// Its name; a static listener may have none.
    pub name: String,
    /// The encoded message.
    pub bytes: Vec<u8>,
}

/// Resources in the bootstrap. The path of each is `static_resources.listeners[0]`, by its place here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StaticResources {
    pub listeners: Vec<Resource>,
    pub clusters: Vec<Resource>,
    pub secrets: Vec<Resource>,
}

impl StaticResources {
    pub(super) fn from_proto(pb: pb::StaticResources) -> Self {
        let pb::StaticResources { listeners, clusters, secrets } = pb;
        Self {
            listeners: listeners.into_iter().map(|l| resource(&l, &l.name)).collect(),
            clusters: clusters.into_iter().map(|c| resource(&c, &c.name)).collect(),
            secrets: secrets.into_iter().map(|s| resource(&s, &s.name)).collect(),
        }
    }
}

fn resource<T: Message + Name>(message: &T, name: &str) -> Resource {
    Resource { type_url: T::type_url(), name: name.to_owned(), bytes: message.encode_to_vec() }
}
