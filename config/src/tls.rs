//! What a transport socket is told of TLS: `DownstreamTlsContext` and `UpstreamTlsContext`.
//!
//! Read by listeners (filter chains) and clusters. Keys and certificates are read from their files here, and understood
//! by the proxy's transport, which alone knows TLS.

mod common;
pub mod received;
mod secret;
mod validation;

pub use common::{
    CertificateSource, CipherSuites, CommonTlsContext, KeyLog, TlsParameters, TlsVersion, ValidationSource,
};
pub use secret::{PrivateKey, Secret, SecretRef, SecretValue, TlsCertificate};
pub use validation::{
    CertificateValidationContext, SanMatcher, SanType, SpiffeValidator, TrustBundles, ValidationContextBytes,
};

use crate::{Context, data_source::DataSource};
use std::time::Duration;
use weft_control_api::{
    Any,
    envoy::extensions::transport_sockets::tls::v3::{self as pb, downstream_tls_context},
};

/// The full name of [`DownstreamTlsContext`]'s message.
pub const DOWNSTREAM: &str = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
/// The full name of [`UpstreamTlsContext`]'s message.
pub const UPSTREAM: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";

/// TLS towards clients.
#[derive(Clone, Debug)]
pub struct DownstreamTlsContext {
    pub common: CommonTlsContext,
    /// `None`: not said, which means no.
    pub require_client_certificate: Option<bool>,
    /// A client that names no server is refused.
    pub require_sni: bool,
    pub tickets: TicketKeys,
    /// TLS 1.2 sessions by id.
    pub stateful_resumption: bool,
    /// How long a session may be resumed; `None`: the library's own default.
    pub session_timeout: Option<Duration>,
    pub ocsp_staple_policy: OcspStaplePolicy,
    /// Names are compared with every certificate before the first one is taken.
    pub full_scan_certs_on_sni_mismatch: bool,
    pub prefer_client_ciphers: bool,
}

pub use downstream_tls_context::OcspStaplePolicy;

/// How session tickets are protected.
#[derive(Clone, Debug)]
pub enum TicketKeys {
    /// No tickets are given.
    Disabled,
    /// By keys of this process.
    Own,
    /// By keys of 80 bytes that several processes share: the first encrypts, all decrypt.
    Shared(Vec<DataSource>),
    /// The same, as a secret.
    Sds(Box<SecretRef>),
}

/// TLS towards hosts.
#[derive(Clone, Debug)]
pub struct UpstreamTlsContext {
    pub common: CommonTlsContext,
    /// Empty: none is sent.
    pub sni: String,
    /// The host's name takes the place of `sni` where it has one.
    pub auto_host_sni: bool,
    /// The certificate must be for the name that was sent.
    pub auto_sni_san_validation: bool,
    /// Sessions kept for resumption; 0: none is.
    pub max_session_keys: u32,
}

impl DownstreamTlsContext {
    /// Reads the context; `None` if a problem was reported.
    pub fn from_proto(p: pb::DownstreamTlsContext, cx: &mut Context) -> Option<Self> {
        use downstream_tls_context::SessionTicketKeysType as Tickets;
        let pb::DownstreamTlsContext {
            common_tls_context,
            require_client_certificate,
            require_sni,
            disable_stateful_session_resumption,
            session_timeout,
            ocsp_staple_policy,
            full_scan_certs_on_sni_mismatch,
            prefer_client_ciphers,
            session_ticket_keys_type,
        } = p;
        let common_tls_context = common_tls_context.unwrap_or_default();
        let names_certificate = names_certificate(&common_tls_context);
        let common = cx.field("common_tls_context", |cx| CommonTlsContext::from_proto(common_tls_context, true, cx));
        let tickets = match session_ticket_keys_type {
            None => TicketKeys::Own,
            Some(Tickets::DisableStatelessSessionResumption(true)) => TicketKeys::Disabled,
            Some(Tickets::DisableStatelessSessionResumption(false)) => TicketKeys::Own,
            Some(Tickets::SessionTicketKeys(p)) => {
                TicketKeys::Shared(cx.field("session_ticket_keys", |cx| secret::ticket_keys(p, cx)))
            }
            Some(Tickets::SessionTicketKeysSdsSecretConfig(p)) => TicketKeys::Sds(Box::new(
                cx.field("session_ticket_keys_sds_secret_config", |cx| SecretRef::from_proto(p, cx))?,
            )),
        };
        let common = common?;
        // Those that are no good have problems of their own.
        if !names_certificate {
            cx.problem_at("common_tls_context", "no TLS certificates found: a server needs one");
        }
        Some(Self {
            common,
            require_client_certificate,
            require_sni: require_sni.unwrap_or(false),
            tickets,
            stateful_resumption: !disable_stateful_session_resumption,
            session_timeout: cx.duration("session_timeout", session_timeout),
            ocsp_staple_policy: cx.enumeration("ocsp_staple_policy", ocsp_staple_policy),
            full_scan_certs_on_sni_mismatch: full_scan_certs_on_sni_mismatch.unwrap_or(false),
            prefer_client_ciphers,
        })
    }

    /// Reads the context packed in a transport socket.
    pub fn from_any(any: &Any, cx: &mut Context) -> Option<Self> {
        let p = cx.unpack("typed_config", any)?;
        cx.field("typed_config", |cx| Self::from_proto(p, cx))
    }

    /// Every secret that it waits for.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretRef> {
        let tickets = match &self.tickets {
            TicketKeys::Sds(secret) => Some(&**secret),
            _ => None,
        };
        self.common.secrets().chain(tickets)
    }
}

/// True if there is something that should give a certificate.
fn names_certificate(p: &pb::CommonTlsContext) -> bool {
    !p.tls_certificates.is_empty()
        || !p.tls_certificate_sds_secret_configs.is_empty()
        || p.custom_tls_certificate_selector.is_some()
        || p.tls_certificate_provider_instance.is_some()
        || p.tls_certificate_certificate_provider.is_some()
        || p.tls_certificate_certificate_provider_instance.is_some()
}

impl UpstreamTlsContext {
    /// Reads the context; `None` if a problem was reported.
    pub fn from_proto(p: pb::UpstreamTlsContext, cx: &mut Context) -> Option<Self> {
        let pb::UpstreamTlsContext {
            common_tls_context,
            sni,
            auto_host_sni,
            auto_sni_san_validation,
            allow_renegotiation,
            max_session_keys,
            enforce_rsa_key_usage,
        } = p;
        let common = cx.field("common_tls_context", |cx| {
            CommonTlsContext::from_proto(common_tls_context.unwrap_or_default(), false, cx)
        });
        if allow_renegotiation {
            cx.problem_at("allow_renegotiation", "is not supported: TLS renegotiation is unsafe and TLS 1.3 has none");
        }
        // A certificate whose key usage forbids what its key is used for is always refused.
        if enforce_rsa_key_usage == Some(false) {
            cx.problem_at("enforce_rsa_key_usage", "found false, which is not supported: key usage is always enforced");
        }
        if sni.len() > 255 {
            cx.problem_at("sni", format!("found {} bytes, allowed are at most 255", sni.len()));
        }
        let common = common?;
        if auto_sni_san_validation && !common.validates_peer() {
            cx.problem_at(
                "auto_sni_san_validation",
                "'auto_sni_san_validation' was configured without a validation context that verifies the peer",
            );
        }
        Some(Self {
            common,
            sni,
            auto_host_sni,
            auto_sni_san_validation,
            max_session_keys: max_session_keys.unwrap_or(1),
        })
    }

    /// Every secret that it waits for.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretRef> {
        self.common.secrets()
    }
}
