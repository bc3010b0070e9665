//! What the engine hands to the proxy, and what the proxy answers.
//!
//! Plain data: made by `sotw` and `delta`, read by whoever compiles resources.

use crate::resource::ResourceType;
use bytes::Bytes;
use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

/// One resource as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The name that it is subscribed to by.
    pub name: String,
    /// Other names of the same resource (virtual hosts on demand).
    pub aliases: Vec<String>,
    /// Its own version in delta, else that of the response.
    pub version: String,
    /// The encoded message of the type. `None` says that the resource does not exist (virtual hosts on demand).
    pub body: Option<Bytes>,
    /// How long it is valid without being sent again or confirmed by a heartbeat.
    pub ttl: Option<Duration>,
}

/// What a response changes. The proxy compiles it and answers with [`Engine::accept`](super::Engine::accept) or
/// [`Engine::reject`](super::Engine::reject); only then does the control plane get its ACK or NACK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The kind of all the resources.
    pub resource_type: ResourceType,
    /// The response's version (`version_info`, `system_version_info`), for `/config_dump` and stats.
    pub version: String,
    /// The response's nonce, which the answer names.
    pub nonce: String,
    /// Resources that are subscribed to, as the response orders them. Unchanged ones may be among them.
    pub resources: Vec<Resource>,
    /// Names that are gone. In delta also names that are subscribed to and do not exist.
    pub removed: Vec<String>,
    /// Resources that the engine has refused already (duplicates); the answer to the control plane names them too.
    pub refused: Vec<Refused>,
    /// The control plane's identifier, if it says one.
    pub control_plane: String,
}

/// A resource that is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its name.
    pub name: String,
    /// Everything that is wrong with it.
    pub message: String,
}

/// Why an update is not taken as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Nothing of it is taken.
    Whole(String),
    /// All of it is taken but these resources, whose last good versions stay.
    Resources(Vec<Refused>),
}

/// What happened, apart from requests to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Open a stream now, then say [`Engine::on_stream_open`](super::Engine::on_stream_open) or
    /// [`Engine::on_stream_closed`](super::Engine::on_stream_closed).
    Connect,
    /// Resources to compile, and to accept or reject.
    Update(Update),
    /// The engine itself answered a response with a NACK: it is malformed as a whole.
    Rejected {
        /// The kind of the response.
        resource_type: ResourceType,
        /// The response's version.
        version: String,
        /// What is wrong.
        message: String,
    },
    /// A response holds no secret that was asked for; it counts as taken.
    Unmatched,
    /// A response that nobody asked for; it got no answer. For the log.
    Ignored {
        /// The response's type.
        type_url: String,
    },
    /// The lifetime of these resources is over; they are gone.
    Expired {
        /// Their kind.
        resource_type: ResourceType,
        /// Their names.
        names: Vec<String>,
    },
    /// The first fetch took too long: warming goes on without the resource, which may still come.
    FetchTimeout {
        /// The kind.
        resource_type: ResourceType,
        /// The name; `None` for a wildcard subscription.
        name: Option<String>,
    },
}

/// Envoy cuts messages of NACKs here, so that they fit into gRPC's limits.
const MAX_MESSAGE: usize = 4096;

/// The message of a NACK: every refused resource with what is wrong with it.
pub(super) fn nack_message(resource_type: ResourceType, refused: &[Refused]) -> String {
    let mut out = match resource_type {
        ResourceType::Cluster | ResourceType::Listener => {
            format!("Error adding/updating {}(s) ", resource_type.noun())
        }
        _ => String::new(),
    };
    // One entry a name, also if the engine and the proxy both found something.
    let mut order: Vec<&str> = Vec::new();
    let mut by_name: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Refused { name, message } in refused {
        by_name.entry(name).or_insert_with(|| {
            order.push(name);
            Vec::new()
        });
        by_name.entry(name).and_modify(|m| m.push(message));
    }
    for (i, name) in order.into_iter().enumerate() {
        let messages = by_name.get(name).map(|m| m.join("; ")).unwrap_or_default();
        let separator = if i == 0 { "" } else { ", " };
        let _ = write!(out, "{separator}{name}: {messages}");
    }
    truncated(out)
}

/// `message`, not longer than what fits into a NACK.
pub(super) fn truncated(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let mut end = MAX_MESSAGE;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push_str("...(truncated)");
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nack_names_every_refused_resource() {
        let refused = |name: &str, message: &str| Refused { name: name.into(), message: message.into() };
        let all = [refused("a", "x"), refused("b", "y"), refused("a", "z")];
        assert_eq!(nack_message(ResourceType::Listener, &all), "Error adding/updating listener(s) a: x; z, b: y");
        assert_eq!(nack_message(ResourceType::Endpoint, &all[..1]), "a: x");
        let long = nack_message(ResourceType::Secret, &[refused("a", &"ä".repeat(5000))]);
        assert!(long.len() <= MAX_MESSAGE + 14 && long.ends_with("ä...(truncated)"), "{}", long.len());
    }
}
