//! Secrets: certificates with their keys, validation contexts and ticket keys, as they stand in a context, in the
//! bootstrap, or come over SDS.
//!
//! Invariant: key material is never printed, and is overwritten when it is dropped.

use super::ValidationContextBytes;
use crate::{
    Context,
    config_source::ConfigSource,
    data_source::{self, DataSource},
};
use std::fmt;
use weft_control_api::envoy::{
    config::core::v3 as core,
    extensions::transport_sockets::tls::v3::{self as pb, secret},
};
use zeroize::Zeroizing;

/// A reference to a secret.
#[derive(Clone, Debug, PartialEq)]
pub struct SecretRef {
    pub name: String,
    /// `None`: one of the bootstrap's.
    pub source: Option<ConfigSource>,
}

/// A named secret.
#[derive(Clone, Debug)]
pub struct Secret {
    pub name: String,
    pub value: SecretValue,
}

/// What a secret holds.
#[derive(Clone, Debug)]
pub enum SecretValue {
    TlsCertificate(Box<TlsCertificate>),
    ValidationContext(Box<ValidationContextBytes>),
    SessionTicketKeys(Vec<DataSource>),
    /// Anything else that is secret; nothing here reads it yet.
    Generic,
}

/// A certificate with its key. Not yet understood: that is the transport's business.
#[derive(Clone, Debug)]
pub struct TlsCertificate {
    /// PEM, the holder's own first.
    pub certificate_chain: DataSource,
    /// PEM.
    pub private_key: PrivateKey,
    pub password: Option<PrivateKey>,
    /// DER; handed to clients that ask for it.
    pub ocsp_staple: Option<DataSource>,
    /// In place of the files' own directories, what is watched for changes.
    pub watched_directory: Option<String>,
}

/// Bytes that nobody may see.
#[derive(Clone)]
pub struct PrivateKey {
    pub data: Zeroizing<Vec<u8>>,
    pub filename: Option<String>,
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateKey").field("filename", &self.filename).finish_non_exhaustive()
    }
}

impl PrivateKey {
    /// The file that it is from, or that it stands in the configuration itself.
    pub fn origin(&self) -> &str {
        data_source::origin(self.filename.as_deref())
    }

    fn from_proto(p: core::DataSource, cx: &mut Context) -> Option<Self> {
        let DataSource { data, filename } = DataSource::secret_from_proto(p, cx)?;
        // Bytes that were made here have one owner, whose memory is taken over.
        let data = data.try_into_mut().map_or_else(|shared| shared.to_vec(), Vec::from);
        Some(Self { data: Zeroizing::new(data), filename })
    }
}

impl SecretRef {
    pub fn from_proto(p: pb::SdsSecretConfig, cx: &mut Context) -> Option<Self> {
        let pb::SdsSecretConfig { name, sds_config } = p;
        if name.is_empty() {
            cx.problem_at("name", "is required");
        }
        let source = match sds_config {
            Some(p) => Some(cx.field("sds_config", |cx| ConfigSource::from_proto(p, cx))?),
            None => None,
        };
        Some(Self { name, source })
    }
}

impl Secret {
    pub fn from_proto(p: pb::Secret, cx: &mut Context) -> Option<Self> {
        let pb::Secret { name, r#type } = p;
        let value = match cx.required("type", r#type)? {
            secret::Type::TlsCertificate(p) => SecretValue::TlsCertificate(Box::new(
                cx.field("tls_certificate", |cx| TlsCertificate::from_proto(p, cx))?,
            )),
            secret::Type::ValidationContext(p) => {
                let bytes = cx.field("validation_context", |cx| ValidationContextBytes::from_proto(p, cx))?;
                SecretValue::ValidationContext(Box::new(bytes))
            }
            secret::Type::SessionTicketKeys(p) => {
                SecretValue::SessionTicketKeys(cx.field("session_ticket_keys", |cx| ticket_keys(p, cx)))
            }
            secret::Type::GenericSecret(_) => SecretValue::Generic,
        };
        Some(Self { name, value })
    }
}

impl TlsCertificate {
    pub(super) fn from_proto(p: pb::TlsCertificate, cx: &mut Context) -> Option<Self> {
        let pb::TlsCertificate {
            certificate_chain,
            private_key,
            pkcs12,
            watched_directory,
            private_key_provider,
            password,
            ocsp_staple,
            signed_certificate_timestamp,
            tls_params,
        } = p;
        cx.unsupported_if("pkcs12", pkcs12.is_some());
        cx.unsupported_if("private_key_provider", private_key_provider.is_some());
        cx.unsupported_if("tls_params", tls_params.is_some());
        // Envoy never sends them either.
        cx.ignored_if("signed_certificate_timestamp", !signed_certificate_timestamp.is_empty());
        let chain = cx.required("certificate_chain", certificate_chain);
        let key = cx.required("private_key", private_key);
        let chain = chain.and_then(|p| cx.field("certificate_chain", |cx| DataSource::from_proto(p, cx)));
        let key = key.and_then(|p| cx.field("private_key", |cx| PrivateKey::from_proto(p, cx)));
        let password = match password {
            Some(p) => Some(cx.field("password", |cx| PrivateKey::from_proto(p, cx))?),
            None => None,
        };
        let ocsp_staple = match ocsp_staple {
            Some(p) => Some(cx.field("ocsp_staple", |cx| DataSource::from_proto(p, cx))?),
            None => None,
        };
        Some(Self {
            certificate_chain: chain?,
            private_key: key?,
            password,
            ocsp_staple,
            watched_directory: cx.field("watched_directory", |cx| directory(watched_directory, cx)),
        })
    }

    /// The files that it was read from.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        let sources = [Some(&self.certificate_chain), self.ocsp_staple.as_ref()].into_iter().flatten();
        let keys = [Some(&self.private_key), self.password.as_ref()].into_iter().flatten();
        sources.map(|source| &source.filename).chain(keys.map(|key| &key.filename)).flatten().map(String::as_str)
    }
}

/// Reads session ticket keys: 80 bytes each.
pub(super) fn ticket_keys(p: pb::TlsSessionTicketKeys, cx: &mut Context) -> Vec<DataSource> {
    let pb::TlsSessionTicketKeys { keys } = p;
    if keys.is_empty() {
        cx.problem_at("keys", "at least one is required");
    }
    cx.elements("keys", keys, |cx, p| {
        let key = DataSource::secret_from_proto(p, cx)?;
        if key.data.len() != 80 {
            let found = key.data.len();
            let origin = key.origin();
            cx.problem(format!(
                "Incorrect TLS session ticket key length. Length {found}, expected length 80 (from {origin})."
            ));
        }
        Some(key)
    })
}

/// A directory that is watched.
pub(super) fn directory(p: Option<core::WatchedDirectory>, cx: &mut Context) -> Option<String> {
    let core::WatchedDirectory { path, watch_modify } = p?;
    cx.unsupported_if("watch_modify", watch_modify);
    Some(path)
}
