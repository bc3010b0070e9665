//! `/listeners`: listeners and what they are bound to.

use super::{
    message::{JSON, Reply, Request},
    view::{ListenerStatus, ServerView},
};
use crate::base::Address;
use http::StatusCode;
use serde_json::Value;
use std::fmt::Write as _;
use weft_control_api::{
    Message, Name, PrintOptions,
    envoy::{
        admin::v3 as pb,
        config::core::v3::{
            self as core, SocketAddress, address::Address as Kind, envoy_internal_address::AddressNameSpecifier,
            socket_address::PortSpecifier,
        },
    },
};

/// `/listeners`.
pub(super) fn show(request: &Request, view: &dyn ServerView) -> Reply {
    let listeners = view.listeners();
    if request.param("format") == Some("json") {
        let status = |ListenerStatus { name, addresses }: ListenerStatus| {
            let mut addresses = addresses.iter().map(address);
            pb::ListenerStatus {
                name,
                local_address: addresses.next(),
                additional_local_addresses: addresses.collect(),
            }
        };
        return message(&pb::Listeners { listener_statuses: listeners.into_iter().map(status).collect() });
    }
    let mut out = String::new();
    for ListenerStatus { name, addresses } in listeners {
        for address in addresses {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{name}::{address}");
        }
    }
    Reply::text(out)
}

/// A message as JSON.
pub(super) fn message<M: Message + Name>(message: &M) -> Reply {
    match to_json(message) {
        Some(value) => Reply { content_type: JSON, ..Reply::json(&value) },
        None => Reply::error(StatusCode::INTERNAL_SERVER_ERROR, "cannot be printed\n"),
    }
}

/// A message as JSON, without secrets.
pub(super) fn to_json<M: Message + Name>(message: &M) -> Option<Value> {
    weft_control_api::print(&M::full_name(), &message.encode_to_vec(), PrintOptions { redact: true }).ok()
}

/// An address as configuration writes it.
pub fn address(address: &Address) -> core::Address {
    let kind = match address {
        Address::Ip(ip) => Kind::SocketAddress(SocketAddress {
            address: ip.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(ip.port().into())),
            ..SocketAddress::default()
        }),
        Address::Unix(path) => Kind::Pipe(core::Pipe { path: path.to_string(), mode: 0 }),
        Address::Internal { listener, endpoint_id } => Kind::EnvoyInternalAddress(core::EnvoyInternalAddress {
            endpoint_id: endpoint_id.to_string(),
            address_name_specifier: Some(AddressNameSpecifier::ServerListenerName(listener.to_string())),
        }),
    };
    core::Address { address: Some(kind) }
}
