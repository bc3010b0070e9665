//! How contexts get their secrets, and what they make of them.

use super::{expiry, material::Identity, verify::Verifier};
use bytes::Bytes;
use std::sync::Arc;
use weft_config::{
    Context,
    config_source::Specifier,
    data_source::DataSource,
    tls::{
        CertificateSource, CertificateValidationContext, CommonTlsContext, SecretRef, SecretValue, TrustBundles,
        ValidationSource,
    },
};
use weft_control_api::workload::CLUSTER;
use xxhash_rust::xxh64::xxh64;

/// All secrets of this moment.
pub trait Secrets {
    /// The secret, if it is there.
    fn get(&self, secret: &SecretRef) -> Option<&SecretValue>;

    /// It is not there, and nobody waits for it any more: it was waited for long enough, or what came was no good.
    fn is_given_up(&self, secret: &SecretRef) -> bool;

    /// It is said where a SPIFFE Workload API is.
    fn has_workload_api(&self) -> bool;

    /// What a watched file holds now, if that is not what was read with the configuration.
    fn file(&self, path: &str) -> Option<Bytes>;
}

/// A file outside of all secrets that is read again whenever something is moved in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WatchedFile {
    pub path: String,
    pub directory: String,
}

/// No secrets: contexts that have everything in themselves.
#[cfg(test)]
pub struct NoSecrets;

#[cfg(test)]
impl Secrets for NoSecrets {
    fn get(&self, _: &SecretRef) -> Option<&SecretValue> {
        None
    }

    fn is_given_up(&self, _: &SecretRef) -> bool {
        false
    }

    fn has_workload_api(&self) -> bool {
        false
    }

    fn file(&self, _: &str) -> Option<Bytes> {
        None
    }
}

/// Reports sources of a context's secrets that cannot be asked.
pub(super) fn check_sources(config: &CommonTlsContext, secrets: &dyn Secrets, cx: &mut Context) {
    for (i, source) in config.certificates.iter().enumerate() {
        if let CertificateSource::Sds(secret) = source {
            cx.element("tls_certificate_sds_secret_configs", i, |cx| check_source(secret, secrets, cx));
        }
    }
    let (field, secret) = match &config.validation {
        ValidationSource::None | ValidationSource::Here(_) => return,
        ValidationSource::Sds(secret) => ("validation_context_sds_secret_config", secret),
        ValidationSource::Combined { dynamic, .. } => {
            ("combined_validation_context.validation_context_sds_secret_config", dynamic)
        }
    };
    cx.field(field, |cx| check_source(secret, secrets, cx));
}

/// The same of one secret.
pub(super) fn check_source(secret: &SecretRef, secrets: &dyn Secrets, cx: &mut Context) {
    let specifier = secret.source.as_ref().map(|source| &source.specifier);
    cx.field("sds_config.api_config_source", |cx| match specifier {
        Some(Specifier::Api(api)) if api.service.cluster == CLUSTER => {
            if api.aggregated {
                cx.problem_at("api_type", format!("{CLUSTER} is no ADS, allowed: GRPC, DELTA_GRPC"));
            }
            if !secrets.has_workload_api() {
                let message = format!(
                    "found {CLUSTER:?}, which is not there: say where the SPIFFE Workload API is with                      --spiffe-endpoint-socket or SPIFFE_ENDPOINT_SOCKET"
                );
                cx.problem_at("grpc_services[0].envoy_grpc.cluster_name", message);
            }
        }
        Some(Specifier::Rest(rest)) if rest.cluster == CLUSTER => {
            cx.problem_at("api_type", format!("{CLUSTER} does not speak REST, allowed: GRPC, DELTA_GRPC"));
        }
        _ => {}
    });
}

/// What both sides' contexts are made of.
pub(super) struct Material {
    pub identities: Vec<Arc<Identity>>,
    /// `None`: nothing is said of how the peer is verified.
    pub verifier: Option<Arc<Verifier>>,
    pub watched: Option<WatchedFile>,
    /// Stands for the authorities and CRLs that peers are verified by.
    pub trust: u64,
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
                CertificateSource::Sds(secret) => {
                    let at = format!("tls_certificate_sds_secret_configs[{i}]");
                    match cx.field(&at, |cx| find(secret, secrets, cx))? {
                        SecretValue::TlsCertificate(certificate) => {
                            cx.field(&in_secret(secret), |cx| Identity::compile(certificate, &secret.name, cx))
                        }
                        _ => cx.field(&at, |cx| wrong_kind(secret, "a certificate", cx)),
                    }
                }
            })
            .collect();
        let (mut watched, mut trust) = (None, 0);
        let verifier = match &config.validation {
            ValidationSource::None => None,
            source => Some(validation(source, secrets, cx).and_then(|context| {
                watched = watched_file(&context);
                trust = fingerprint(&context);
                let place = match source {
                    ValidationSource::None => String::new(),
                    ValidationSource::Here(_) => "validation_context".to_owned(),
                    ValidationSource::Sds(secret) => in_secret(secret),
                    ValidationSource::Combined { .. } => "combined_validation_context".to_owned(),
                };
                let verifier = cx.field(&place, |cx| Verifier::compile(&context, cx))?;
                for authority in verifier.authorities() {
                    let name = authority.path.as_deref().unwrap_or(&place);
                    expiry::warn(&authority.certificate, "the trusted certificate", name);
                }
                Some(verifier)
            })),
        };
        let identities = identities.into_iter().collect::<Option<_>>()?;
        Some(Self {
            identities,
            watched,
            trust,
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
    let place = match source {
        ValidationSource::Combined { .. } => "combined_validation_context.validation_context_sds_secret_config",
        _ => "validation_context_sds_secret_config",
    };
    let bytes = |secret, cx: &mut Context| {
        cx.field(place, |cx| match find(secret, secrets, cx)? {
            SecretValue::ValidationContext(bytes) => Some(bytes.clone()),
            _ => wrong_kind(secret, "a validation context", cx),
        })
    };
    let mut context = match source {
        ValidationSource::None => return None,
        ValidationSource::Here(context) => (**context).clone(),
        ValidationSource::Sds(secret) => bytes(secret, cx)?.read(cx)?,
        ValidationSource::Combined { default, dynamic } => default.read_merged(&*bytes(dynamic, cx)?, cx)?,
    };
    // What stands here was checked when it was read.
    if !matches!(source, ValidationSource::Here(_)) {
        context.check(cx);
    }
    let bundles = context.spiffe.as_mut().and_then(|spiffe| spiffe.trust_bundles.as_mut());
    if let Some(TrustBundles { source: DataSource { data, filename: Some(path) }, .. }) = bundles
        && let Some(now) = secrets.file(path)
    {
        *data = now;
    }
    Some(context)
}

/// Stands for what a validation context trusts.
fn fingerprint(context: &CertificateValidationContext) -> u64 {
    let spiffe = context.spiffe.as_ref();
    let domains = spiffe.into_iter().flat_map(|spiffe| &spiffe.trust_domains).map(|(_, bundle)| bundle);
    let map = spiffe.and_then(|spiffe| spiffe.trust_bundles.as_ref()).map(|bundles| &bundles.source);
    let sources = context.trusted_ca.iter().chain(&context.crl).chain(domains).chain(map);
    sources.fold(0, |seed, source| xxh64(&source.data, seed))
}

/// The file of trust bundles that a validation context is read from, if it is watched.
fn watched_file(context: &CertificateValidationContext) -> Option<WatchedFile> {
    let TrustBundles { source, watched_directory } = context.spiffe.as_ref()?.trust_bundles.as_ref()?;
    Some(WatchedFile { path: source.filename.clone()?, directory: watched_directory.clone()? })
}

/// The secret, if it is there; that there is no such one in the bootstrap is a problem.
fn find<'a>(secret: &SecretRef, secrets: &'a dyn Secrets, cx: &mut Context) -> Option<&'a SecretValue> {
    let found = secrets.get(secret);
    if found.is_none() && secret.source.is_none() {
        cx.problem_at("name", format!("Unknown static secret: {}", secret.name));
    }
    found
}

/// The ticket keys of a secret.
pub(super) fn ticket_keys<'a>(
    secret: &SecretRef,
    secrets: &'a dyn Secrets,
    cx: &mut Context,
) -> Option<&'a [DataSource]> {
    cx.field("session_ticket_keys_sds_secret_config", |cx| match find(secret, secrets, cx)? {
        SecretValue::SessionTicketKeys(keys) => Some(&**keys),
        _ => wrong_kind(secret, "session ticket keys", cx),
    })
}

/// The place of what stands in a secret.
fn in_secret(secret: &SecretRef) -> String {
    format!("secret {:?}", secret.name)
}

fn wrong_kind<T>(secret: &SecretRef, wanted: &str, cx: &mut Context) -> Option<T> {
    cx.problem_at("name", format!("secret {:?} is not {wanted}, which is needed here", secret.name));
    None
}

/// Stands for what a context trusts at this moment.
pub(super) fn trust(config: &CommonTlsContext, secrets: &dyn Secrets) -> String {
    // Problems were reported when it was compiled.
    format!("{:?}", validation(&config.validation, secrets, &mut Context::new()))
}
