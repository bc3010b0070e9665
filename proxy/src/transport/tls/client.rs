//! TLS towards hosts: a cluster's context, and the handshake on a connection that was made.

use super::{
    capture, expirations, facts,
    failure::Failure,
    key_log::KeyLogFile,
    linger,
    material::Identity,
    parameters,
    revisions::{Distrusted, Revisions, Trust},
    secrets::{self, Material, Secrets, WatchedFile},
    secured::Secured,
    stats::SslStats,
    verify::{Peer, ServerVerifier, Verified, Verifier, WantedName},
};
use crate::{
    base::{Address, TlsConnection},
    transport::Io,
};
use rustls::{
    ClientConfig, HandshakeKind,
    client::{ClientSessionMemoryCache, Resumption},
    pki_types::{IpAddr, Ipv4Addr, ServerName},
    sign::SingleCertAndKey,
};
use std::{rc::Rc, sync::Arc};
use tokio_rustls::{TlsConnector, TlsStream};
use weft_config::{Context, tls::UpstreamTlsContext};

/// A cluster's TLS: what is configured, and what it is made of now.
#[derive(Debug)]
pub struct ClientContext {
    pub config: Arc<UpstreamTlsContext>,
    pub revisions: Revisions<ClientRevision>,
    key_log: Option<Arc<KeyLogFile>>,
}

/// What a context is made of at one moment.
#[derive(Debug)]
pub struct ClientRevision {
    tls: Arc<ClientConfig>,
    /// The same, for connections whose peer must be who the server's name says.
    for_name: Arc<ClientConfig>,
    pub identity: Option<Arc<Identity>>,
    pub verifier: Option<Arc<Verifier>>,
    pub watched: Option<WatchedFile>,
    /// Stands for the authorities and CRLs that hosts are verified by.
    trust: u64,
}

/// What differs between connections of one context.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClientOptions {
    /// In place of the configured one.
    pub sni: Option<Box<str>>,
    /// The peer's certificate must be for this name.
    pub san: Option<Box<str>>,
    /// Offered where the context says nothing of ALPN.
    pub alpn_fallback: Vec<Box<[u8]>>,
}

impl ClientContext {
    /// A context made of what secrets there are; if some are missing it has no revision yet.
    pub fn compile(config: Arc<UpstreamTlsContext>, secrets: &dyn Secrets, cx: &mut Context) -> Self {
        let context = Self::new(config, cx);
        cx.field("common_tls_context", |cx| secrets::check_sources(&context.config.common, secrets, cx));
        if let Some(revision) = context.prepare(secrets, cx) {
            context.revisions.publish(revision);
        }
        context
    }

    fn new(config: Arc<UpstreamTlsContext>, cx: &mut Context) -> Self {
        let key_log = config.common.key_log.as_ref();
        let key_log = key_log.and_then(|log| cx.field("common_tls_context.key_log", |cx| KeyLogFile::open(log, cx)));
        if !config.sni.is_empty() && ServerName::try_from(config.sni.as_str()).is_err() {
            cx.problem_at("sni", format!("found {:?}, which is no name of a server", config.sni));
        }
        Self { config, revisions: Revisions::default(), key_log }
    }

    /// Builds a revision of what there is now. `None`: a secret is missing, or a problem was reported.
    pub fn prepare(&self, secrets: &dyn Secrets, cx: &mut Context) -> Option<Arc<ClientRevision>> {
        cx.field("common_tls_context", |cx| ClientRevision::compile(&self.config, secrets, cx)).map(Arc::new)
    }

    /// When what it is made of now is no longer valid, by name.
    pub fn expirations(&self) -> Vec<(String, i64)> {
        let Some(revision) = self.revisions.now() else { return Vec::new() };
        expirations(&self.config.common, revision.identity.as_slice(), revision.verifier.as_ref())
    }

    /// What is sent as the server's name, and what name the peer's certificate must be for.
    fn names<'a>(&'a self, options: &'a ClientOptions, hostname: &'a str) -> (Option<&'a str>, Option<&'a str>) {
        let hostname = Some(hostname).filter(|name| self.config.auto_host_sni && !name.is_empty());
        let configured = Some(self.config.sni.as_str()).filter(|name| !name.is_empty());
        let sni = options.sni.as_deref().or(hostname).or(configured);
        (sni, options.san.as_deref().or(sni.filter(|_| self.config.auto_sni_san_validation)))
    }

    /// Ends once the host, which was trusted by `revision`, is trusted no longer; counts that.
    pub fn distrusts(
        self: &Arc<Self>,
        revision: &ClientRevision,
        tls: &Rc<TlsConnection>,
        options: &ClientOptions,
        hostname: &str,
        stats: &Arc<SslStats>,
    ) -> Distrusted {
        let san: Option<Box<str>> = self.names(options, hostname).1.map(Into::into);
        let (context, tls, stats, trust) = (self.clone(), tls.clone(), stats.clone(), revision.trust);
        Box::pin(async move {
            context.revisions.distrusts(&tls.peer_chain, san.as_deref(), trust).await;
            stats.distrusted.inc();
        })
    }

    /// Does the handshake on a connection to a host of the name `hostname`.
    ///
    /// # Errors
    /// Why it failed. The connection is closed.
    pub async fn connect(
        &self,
        revision: &ClientRevision,
        io: Io,
        options: &ClientOptions,
        hostname: &str,
        addresses: (Option<&Address>, Option<&Address>),
        stats: &Arc<SslStats>,
    ) -> Result<(Io, TlsConnection), Failure> {
        let (sni, san) = self.names(options, hostname);
        let name = sni.and_then(|name| ServerName::try_from(name.to_owned()).ok());
        let mut tls = revision.tls.clone();
        if let Some(san) = san {
            tls = revision.for_name.clone();
            // A name that cannot be one is nobody's.
            let Ok(wanted) = ServerName::try_from(san.to_owned()) else { return Err(Failure::bad_name(san)) };
            if name.as_ref() != Some(&wanted) {
                Arc::make_mut(&mut tls)
                    .dangerous()
                    .set_certificate_verifier(Arc::new(revision.verifier_for(WantedName::Other(wanted))));
            }
        }
        if name.is_none() {
            Arc::make_mut(&mut tls).enable_sni = false;
        }
        if let (Some(log), (Some(local), Some(remote))) = (&self.key_log, addresses)
            && log.takes(local, remote)
        {
            Arc::make_mut(&mut tls).key_log = log.clone();
        }
        // Sessions are kept by name; without one, all are this context's alike.
        let name = name.unwrap_or(ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0; 4]))));
        let own = &self.config.common.alpn;
        let alpn = if own.is_empty() { &options.alpn_fallback } else { own };
        let alpn = alpn.iter().map(|name| name.to_vec()).collect();
        let connector = TlsConnector::from(tls);
        let handshake = async { connector.with_alpn(alpn).connect(name, io).into_fallible().await };
        let (result, found) = capture::around(handshake).await;
        if revision.identity.as_ref().is_some_and(|identity| identity.certificate.is_expired()) {
            stats.own_certificate_expired.inc();
        }
        match result {
            Ok(stream) => {
                let state = stream.get_ref().1;
                let validated = match (found.verified, state.handshake_kind()) {
                    (None, Some(HandshakeKind::Resumed)) => {
                        revision.verify_again(state.peer_certificates(), san).map_err(|r| Failure::refused(&r))?
                    }
                    (verified, _) => verified == Some(Verified::Trusted),
                };
                let local = revision.identity.as_ref().map(|identity| identity.certificate.clone());
                let tls = facts(state, local, validated)?;
                stats.established(&tls, found.scheme.map(parameters::scheme_name));
                Ok((Io::Tls(Box::new(Secured::new(TlsStream::Client(stream), stats.clone()))), tls))
            }
            Err((error, io)) => {
                linger(io);
                Err(Failure::new(&error, found.refusal.as_ref()))
            }
        }
    }
}

impl ClientRevision {
    fn compile(config: &UpstreamTlsContext, secrets: &dyn Secrets, cx: &mut Context) -> Option<Self> {
        let parameters = &config.common.parameters;
        let provider = parameters::provider(parameters, false);
        let Material { identities, mut verifier, watched, trust } = Material::gather(&config.common, secrets, cx)?;
        if let Some(verifier) = verifier.as_mut().filter(|_| config.auto_sni_san_validation).and_then(Arc::get_mut) {
            verifier.let_names_replace_matchers();
        }
        let identity = identities.into_iter().next();
        let algorithms = provider.signature_verification_algorithms;
        let build = |name: WantedName, cx: &mut Context| {
            let verifier = Arc::new(ServerVerifier { verifier: verifier.clone(), name, algorithms });
            let builder = ClientConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(parameters::versions(parameters))
                .map_err(|e| cx.problem_at("tls_params", e.to_string()))
                .ok()?
                .dangerous()
                .with_custom_certificate_verifier(verifier);
            let mut tls = match &identity {
                Some(identity) => {
                    builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from((*identity.key).clone())))
                }
                None => builder.with_no_client_auth(),
            };
            tls.check_selected_alpn = false;
            tls.resumption = match config.max_session_keys {
                0 => Resumption::disabled(),
                most => Resumption::store(Arc::new(ClientSessionMemoryCache::new(most as usize))),
            };
            Some(Arc::new(tls))
        };
        let tls = build(WantedName::Any, cx)?;
        let for_name = build(WantedName::Sent, cx)?;
        Some(Self { tls, for_name, identity, verifier, watched, trust })
    }

    fn verifier_for(&self, name: WantedName) -> ServerVerifier {
        ServerVerifier {
            verifier: self.verifier.clone(),
            name,
            algorithms: self.tls.crypto_provider().signature_verification_algorithms,
        }
    }
}

impl Trust for ClientRevision {
    const PEER: Peer = Peer::Server;

    fn trust(&self) -> u64 {
        self.trust
    }

    fn verifier(&self) -> Option<&Verifier> {
        self.verifier.as_deref()
    }
}
