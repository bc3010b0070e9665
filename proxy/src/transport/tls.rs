//! TLS on a connection, of both sides: rustls, with Envoy's choices.
//!
//! A context ([`ServerContext`] of a filter chain, [`ClientContext`] of a cluster) is compiled on the control thread. What
//! it was made of (certificates, keys, authorities, CRLs) is one [`revision`](server::ServerRevision) of it, swapped as a
//! whole when a secret changes. A handshake sees one revision from begin to end, and session tickets of one revision
//! mean nothing to another.

mod capture;
pub mod client;
mod client_hello;
mod expiry;
pub mod failure;
pub mod hello;
mod key_log;
pub mod material;
mod old_alert;
mod parameters;
mod recent;
mod revisions;
pub mod secrets;
mod secured;
mod select;
pub mod server;
mod staple;
pub mod stats;
mod tickets;
pub mod verify;

pub use client::{ClientContext, ClientOptions};
pub use revisions::{DRAIN_ON_TRUST_CHANGE, Distrusted, Guarded, LAST_WORDS, Trust};
pub use secrets::Secrets;
pub use secured::Secured;
pub use server::ServerContext;
pub use stats::SslStats;

use super::Io;
use crate::base::{Certificate, TlsConnection};
use failure::Failure;
use rustls::{CommonState, HandshakeKind};
use std::{rc::Rc, sync::Arc, time::Duration};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use verify::Verifier;
use weft_config::tls::{CommonTlsContext, ValidationSource};

/// Names and ends of validity of what is presented, and of the first authority, for [`stats::Expirations`]. What has no name
/// of its own is named as Envoy does: by the digest of nothing.
fn expirations(
    config: &CommonTlsContext,
    identities: &[Arc<material::Identity>],
    verifier: Option<&Arc<Verifier>>,
) -> Vec<(String, i64)> {
    let named = |name: &str, what: &str| match name {
        "" => format!("unnamed_{what}_e3b0c442"),
        name => name.to_owned(),
    };
    let trusted = match &config.validation {
        ValidationSource::Sds(secret) | ValidationSource::Combined { dynamic: secret, .. } => &*secret.name,
        ValidationSource::None | ValidationSource::Here(_) => "",
    };
    let authority = verifier.and_then(|verifier| verifier.authorities().first());
    let authority = authority.map(|authority| (named(trusted, "ca_cert"), authority.certificate.not_after));
    let own = identities.iter().map(|identity| (named(&identity.name, "cert"), identity.certificate.not_after));
    own.chain(authority).collect()
}

/// A peer that was refused has so long to read why.
const LINGER: Duration = Duration::from_secs(1);

/// Lets the peer read an alert: what it sends meanwhile must not make the socket reset the connection.
fn linger(mut io: Io) {
    tokio::task::spawn_local(tokio::time::timeout(LINGER, async move {
        let _ = io.shutdown().await;
        let mut sink = [0; 4096];
        while io.read(&mut sink).await.is_ok_and(|n| n > 0) {}
    }));
}

/// The facts of a connection whose handshake is done.
///
/// # Errors
/// The peer's certificate, which nobody verified, cannot be read: who it is could not be told from nobody.
fn facts(state: &CommonState, local: Option<Arc<Certificate>>, peer_validated: bool) -> Result<TlsConnection, Failure> {
    let presented = state.peer_certificates().unwrap_or_default();
    let (peer, peer_chain) = match recent::peer(presented).map_err(|why| Failure::unreadable(&why))? {
        Some(peer) => (Some(peer.certificate), peer.chain),
        None => (None, Rc::default()),
    };
    Ok(TlsConnection {
        version: parameters::version_name(state.protocol_version()),
        cipher: parameters::cipher_name(state.negotiated_cipher_suite()),
        group: state
            .negotiated_key_exchange_group()
            .map(|group| parameters::group_name(group.name()))
            .unwrap_or_default(),
        session_id: Box::default(),
        alpn: state.alpn_protocol().map(Into::into),
        local,
        peer,
        peer_chain,
        peer_validated,
        resumed: state.handshake_kind() == Some(HandshakeKind::Resumed),
    })
}
