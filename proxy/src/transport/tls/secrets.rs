//! How contexts get their secrets, and what they make of them.

use super::{material::Identity, verify::Verifier};
use std::sync::Arc;
use weft_config::{
    Context,
    data_source::DataSource,
    tls::{
        CertificateSource, CertificateValidationContext, CommonTlsContext, SecretRef, SecretValue, ValidationSource,
    },
};

/// All secrets of this moment.
pub trait Secrets {
    /// The secret, if it is there.
    fn get(&self, secret: &SecretRef) -> Option<&SecretValue>;

    /// It is not there and will not come: it was waited for long enough, or there is no such one.
    fn is_given_up(&self, secret: &SecretRef) -> bool;
}

/// No secrets: contexts that have everything in themselves.
pub struct NoSecrets;

impl Secrets for NoSecrets {
    fn get(&self, _: &SecretRef) -> Option<&SecretValue> {
        None
    }

    fn is_given_up(&self, _: &SecretRef) -> bool {
        false
    }
}

/// What both sides' contexts are made of.
pub(super) struct Material {
    pub identities: Vec<Arc<Identity>>,
    /// `None`: nothing is said of how the peer is verified.
    pub verifier: Option<Arc<Verifier>>,
}

impl Material {
    /// Gathers a context's material. `None`: a secret is missing, or a problem was reported.
    pub fn gather(config: &CommonTlsContext, secrets: &dyn Secrets, cx: &mut Context) -> Option<Self> {
        // Each is read even where another is missing, so that all problems show.
        let identities: Vec<Option<Arc<Identity>>> = (config.certificates.iter().enumerate())
            .map(|(i, source)| match source {
                CertificateSource::Here(certificate) => {
                    cx.element("tls_certificates", i, |cx| Identity::compile(certificate, "", cx))
                }
                CertificateSource::Sds(secret) => match secrets.get(secret)? {
                    SecretValue::TlsCertificate(certificate) => cx.field(&format!("secret {:?}", secret.name), |cx| {
                        Identity::compile(certificate, &secret.name, cx)
                    }),
                    _ => wrong_kind(secret, "a certificate", cx),
                },
            })
            .collect();
        let verifier = match &config.validation {
            ValidationSource::None => None,
            source => Some(validation(source, secrets, cx).and_then(|context| Verifier::compile(&context, cx))),
        };
        let identities = identities.into_iter().collect::<Option<_>>()?;
        Some(Self {
            identities,
            verifier: match verifier {
                Some(compiled) => Some(Arc::new(compiled?)),
                None => None,
            },
        })
    }
}

/// The validation context with what a secret adds.
fn validation(
    source: &ValidationSource,
    secrets: &dyn Secrets,
    cx: &mut Context,
) -> Option<CertificateValidationContext> {
    let bytes = |secret, cx: &mut Context| match secrets.get(secret)? {
        SecretValue::ValidationContext(bytes) => Some(bytes.clone()),
        _ => wrong_kind(secret, "a validation context", cx),
    };
    let context = match source {
        ValidationSource::None => return None,
        ValidationSource::Here(context) => return Some((**context).clone()),
        ValidationSource::Sds(secret) => bytes(secret, cx)?.read(cx)?,
        ValidationSource::Combined { default, dynamic } => default.read_merged(&*bytes(dynamic, cx)?, cx)?,
    };
    context.check(cx);
    Some(context)
}

/// The ticket keys of a secret.
pub(super) fn ticket_keys<'a>(
    secret: &SecretRef,
    secrets: &'a dyn Secrets,
    cx: &mut Context,
) -> Option<&'a [DataSource]> {
    match secrets.get(secret)? {
        SecretValue::SessionTicketKeys(keys) => Some(keys),
        _ => wrong_kind(secret, "session ticket keys", cx),
    }
}

fn wrong_kind<T>(secret: &SecretRef, wanted: &str, cx: &mut Context) -> Option<T> {
    cx.problem(format!("secret {:?} is not {wanted}, which is needed here", secret.name));
    None
}

/// Stands for what a context trusts at this moment.
pub(super) fn trust(config: &CommonTlsContext, secrets: &dyn Secrets) -> String {
    // Problems were reported when it was compiled.
    format!("{:?}", validation(&config.validation, secrets, &mut Context::new()))
}
