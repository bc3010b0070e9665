//! TLS towards clients: a filter chain's context, and the handshake on an accepted connection.

use super::{
    capture, client_hello, expirations, facts,
    failure::Failure,
    key_log::KeyLogFile,
    linger,
    material::Identity,
    old_alert::OldAlert,
    parameters,
    revisions::{Revisions, Trust},
    secrets::{self, Material, Secrets, WatchedFile},
    secured::Secured,
    select::Selection,
    stats::SslStats,
    tickets,
    verify::{ClientVerifier, Peer, Verified, Verifier},
};
use crate::{
    base::{ConnectionInfo, TlsConnection},
    transport::Io,
};
use aws_lc_rs::digest::{SHA256, digest};
use rustls::{
    HandshakeKind, ServerConfig,
    server::{ClientHello, NoServerSessionStorage, ServerSessionMemoryCache, StoresServerSessions},
};
use std::sync::Arc;
use tokio_rustls::{StartHandshake, TlsStream};
use weft_config::{
    Context,
    tls::{DownstreamTlsContext, OcspStaplePolicy, TicketKeys, TlsVersion, ValidationSource},
};

/// Sessions of TLS 1.2 that are remembered by id.
const SESSIONS: usize = 1024;

/// A filter chain's TLS: what is configured, and what it is made of now.
#[derive(Debug)]
pub struct ServerContext {
    pub config: Arc<DownstreamTlsContext>,
    pub revisions: Revisions<ServerRevision>,
    key_log: Option<Arc<KeyLogFile>>,
}

/// What a context is made of at one moment.
#[derive(Debug)]
pub struct ServerRevision {
    /// By [`Order`].
    configs: [Configs; 3],
    order_12: Order12,
    speaks_12: bool,
    speaks_13: bool,
    requires_certificate: bool,
    pub identities: Vec<Arc<Identity>>,
    pub verifier: Option<Arc<Verifier>>,
    pub watched: Option<WatchedFile>,
    /// Stands for the authorities and CRLs that clients are verified by.
    trust: u64,
}

/// Whose order of cipher suites counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Ours,
    OursChaChaFirst,
    Clients,
}

/// Whose order counts before TLS 1.3, where it is always the client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order12 {
    Ours,
    /// Ours, but of two equals the one that the client prefers.
    OursOrEqual,
    Clients,
}

/// What is the same for all clients that one order counts for.
#[derive(Debug)]
struct Configs {
    with_alpn: Arc<ServerConfig>,
    /// For clients that offer nothing of ours: the handshake goes on without ALPN, as Envoy's does.
    without_alpn: Arc<ServerConfig>,
}

impl ServerContext {
    /// A context made of what secrets there are; if some are missing it has no revision yet.
    pub fn compile(config: Arc<DownstreamTlsContext>, secrets: &dyn Secrets, cx: &mut Context) -> Self {
        let context = Self::new(config, cx);
        cx.field("common_tls_context", |cx| secrets::check_sources(&context.config.common, secrets, cx));
        if let TicketKeys::Sds(secret) = &context.config.tickets {
            cx.field("session_ticket_keys_sds_secret_config", |cx| secrets::check_source(secret, secrets, cx));
        }
        if let Some(revision) = context.prepare(secrets, cx) {
            context.revisions.publish(revision);
        }
        context
    }

    fn new(config: Arc<DownstreamTlsContext>, cx: &mut Context) -> Self {
        if config.require_client_certificate.is_none() && !matches!(config.common.validation, ValidationSource::None) {
            tracing::warn!(
                target: "config",
                "{}: a validation context, and require_client_certificate is not said: clients without a certificate are let in, \
                 unless the context matches names or pins",
                cx.path()
            );
        }
        let key_log = config
            .common
            .key_log
            .as_ref()
            .and_then(|log| cx.field("common_tls_context.key_log", |cx| KeyLogFile::open(log, cx)));
        Self { config, revisions: Revisions::default(), key_log }
    }

    /// Builds a revision of what there is now. `None`: a secret is missing, or a problem was reported.
    pub fn prepare(&self, secrets: &dyn Secrets, cx: &mut Context) -> Option<Arc<ServerRevision>> {
        ServerRevision::compile(&self.config, secrets, cx).map(Arc::new)
    }

    /// When what it is made of now is no longer valid, by name.
    pub fn expirations(&self) -> Vec<(String, i64)> {
        let Some(revision) = self.revisions.now() else { return Vec::new() };
        expirations(&self.config.common, &revision.identities, revision.verifier.as_ref())
    }

    /// Does the handshake on an accepted connection.
    ///
    /// # Errors
    /// Why it failed. The client was told and the connection is closed.
    pub async fn accept(
        &self,
        revision: &ServerRevision,
        io: Io,
        info: &ConnectionInfo,
        stats: &Arc<SslStats>,
    ) -> Result<(Io, TlsConnection), Failure> {
        let read = client_hello::read(io).await?.judged(revision.speaks_12, revision.speaks_13).await?;
        let client_hello::Read { accepted, asks_for_staple, offers_13, io, .. } = read;
        let is_13 = revision.speaks_13 && offers_13;
        let mut start = StartHandshake::from_parts(accepted, io);
        let hello = start.client_hello();
        if self.config.require_sni && hello.server_name().is_none() {
            return Err(Failure::no_server_name());
        }
        let mut config = revision.config_for(&hello, is_13);
        if let Some(log) = self.key_log.as_ref().filter(|log| log.takes(&info.local, &info.remote)) {
            Arc::make_mut(&mut config).key_log = log.clone();
        }
        if revision.requires_certificate && !is_13 {
            start.io = Io::Boxed(Box::new(OldAlert(start.io)));
        }
        let handshake = async {
            capture::client_asks_for_staple(asks_for_staple);
            start.into_stream(config).into_fallible().await
        };
        let (result, found) = capture::around(handshake).await;
        stats.stapled(found.staple);
        if let Some(identity) = &found.presented
            && identity.certificate.is_expired()
        {
            stats.own_certificate_expired.inc();
        }
        match result {
            Ok(stream) => {
                let state = stream.get_ref().1;
                let validated = match (found.verified, state.handshake_kind()) {
                    (None, Some(HandshakeKind::Resumed)) => revision
                        .verify_again(state.peer_certificates(), None)
                        .map_err(|refusal| Failure::refused(&refusal))?,
                    (verified, _) => verified == Some(Verified::Trusted),
                };
                let local = found.presented.map(|identity| identity.certificate.clone());
                let tls = facts(state, local, validated)?;
                stats.established(&tls, found.scheme.map(parameters::scheme_name));
                Ok((Io::Tls(Box::new(Secured::new(TlsStream::Server(stream), stats.clone()))), tls))
            }
            Err((error, io)) => {
                let failure = Failure::new(&error, found.refusal.as_ref());
                linger(io);
                Err(failure)
            }
        }
    }
}

impl ServerRevision {
    fn compile(config: &DownstreamTlsContext, secrets: &dyn Secrets, cx: &mut Context) -> Option<Self> {
        let parameters = &config.common.parameters;
        let Material { identities, verifier, watched, trust } =
            cx.field("common_tls_context", |cx| Material::gather(&config.common, secrets, cx))?;
        if config.ocsp_staple_policy == OcspStaplePolicy::MustStaple && identities.iter().any(|id| id.staple.is_none())
        {
            cx.problem_at("common_tls_context.tls_certificates", "Required OCSP response is missing from TLS context");
            return None;
        }
        let requires = config.require_client_certificate == Some(true);
        if requires && !verifier.as_ref().is_some_and(|verifier| verifier.asks_for_certificate()) {
            let why = "a client certificate is required, and nothing is said to verify it by: found neither trusted_ca nor pins nor a \
                       validator, nor trust_chain_verification: ACCEPT_UNTRUSTED";
            cx.problem_at("common_tls_context.validation_context", why);
            return None;
        }
        let requires_certificate = requires || verifier.as_ref().is_some_and(|v| v.requires_certificate());
        let client_verifier = verifier.clone().filter(|v| requires_certificate || v.asks_for_certificate());
        let speaks_12 = parameters.min == TlsVersion::V1_2;
        let speaks_13 = parameters.max == TlsVersion::V1_3;
        let selection = Arc::new(Selection::new(identities.clone(), config, speaks_13));
        let lifetime = config.session_timeout.unwrap_or(tickets::DEFAULT_TIMEOUT);
        let shared = match &config.tickets {
            TicketKeys::Shared(keys) => Some(&keys[..]),
            TicketKeys::Sds(secret) => Some(secrets::ticket_keys(secret, secrets, cx)?),
            TicketKeys::Own | TicketKeys::Disabled => None,
        };
        let ticketer = match (&config.tickets, shared) {
            (TicketKeys::Disabled, _) => None,
            (_, Some(keys)) => {
                let keys: Vec<_> = keys.iter().map(|key| &key.data).collect();
                Some(tickets::shared(&keys, binding(config, secrets, &identities), lifetime)?)
            }
            (_, None) => Some(tickets::own(lifetime).map_err(|e| cx.problem(e.to_string())).ok()?),
        };
        let session_storage: Arc<dyn StoresServerSessions> = match config.stateful_resumption {
            true => ServerSessionMemoryCache::new(SESSIONS),
            false => Arc::new(NoServerSessionStorage {}),
        };
        let alpn: Vec<Vec<u8>> = config.common.alpn.iter().map(|name| name.to_vec()).collect();
        let mut configs = |order: Order| {
            let provider = parameters::provider(parameters, order == Order::OursChaChaFirst);
            let algorithms = provider.signature_verification_algorithms;
            let builder = ServerConfig::builder_with_provider(provider)
                .with_protocol_versions(parameters::versions(parameters))
                .map_err(|e| cx.problem_at("common_tls_context.tls_params", e.to_string()))
                .ok()?;
            let builder = match &client_verifier {
                Some(verifier) => builder.with_client_cert_verifier(Arc::new(ClientVerifier {
                    verifier: verifier.clone(),
                    required: requires_certificate,
                    algorithms,
                })),
                None => builder.with_no_client_auth(),
            };
            let mut tls = builder.with_cert_resolver(selection.clone());
            tls.ignore_client_order = order != Order::Clients;
            tls.session_storage = session_storage.clone();
            match &ticketer {
                Some(ticketer) => tls.ticketer = ticketer.clone(),
                None => tls.send_tls13_tickets = 0,
            }
            let without_alpn = Arc::new(tls.clone());
            tls.alpn_protocols.clone_from(&alpn);
            Some(Configs { with_alpn: Arc::new(tls), without_alpn })
        };
        let configs = [configs(Order::Ours)?, configs(Order::OursChaChaFirst)?, configs(Order::Clients)?];
        let order_12 = match (config.prefer_client_ciphers, parameters.has_equal_ciphers) {
            (true, _) => Order12::Clients,
            (false, true) => Order12::OursOrEqual,
            (false, false) => Order12::Ours,
        };
        Some(Self {
            configs,
            order_12,
            speaks_12,
            speaks_13,
            requires_certificate,
            identities,
            verifier,
            watched,
            trust,
        })
    }

    /// What a client is served by.
    fn config_for(&self, hello: &ClientHello<'_>, is_13: bool) -> Arc<ServerConfig> {
        let order = match self.order_12 {
            _ if is_13 => Order::Clients,
            Order12::Clients => Order::Clients,
            Order12::OursOrEqual if parameters::prefers_chacha(hello.cipher_suites()) => Order::OursChaChaFirst,
            Order12::Ours | Order12::OursOrEqual => Order::Ours,
        };
        let configs = &self.configs[order as usize];
        let is_ours = |theirs: &[u8]| configs.with_alpn.alpn_protocols.iter().any(|our| our == theirs);
        let overlaps = hello.alpn().is_some_and(|mut offered| offered.any(is_ours));
        if overlaps { &configs.with_alpn } else { &configs.without_alpn }.clone()
    }
}

impl Trust for ServerRevision {
    const PEER: Peer = Peer::Client;

    fn trust(&self) -> u64 {
        self.trust
    }

    fn verifier(&self) -> Option<&Verifier> {
        self.verifier.as_deref()
    }
}

/// Stands for the trust decision of a context: tickets under keys that contexts share open only where it is the same.
fn binding(config: &DownstreamTlsContext, secrets: &dyn Secrets, identities: &[Arc<Identity>]) -> [u8; 32] {
    let trust = secrets::trust(&config.common, secrets);
    let names: Vec<_> = identities
        .iter()
        .map(|identity| (&identity.certificate.subject, &identity.certificate.dns_sans, &identity.certificate.uri_sans))
        .collect();
    let text = format!("{:?} {trust} {names:?}", config.require_client_certificate);
    digest(&SHA256, text.as_bytes()).as_ref().try_into().unwrap_or_default()
}
