//! TLS 1.3 around a protocol, without I/O: a [`Session`] in a [`Session`].
//!
//! Used by the load generator and the backend; `certificates.rs` says who they are. The client shows its certificate where it is
//! asked for one. Nothing is resumed, and AES-128 is all that is offered, so that no proxy is measured with another cipher than the
//! next.

use super::{Client, certificates::Files, wire::Session};
use rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
    client::Resumption,
    crypto::{
        CryptoProvider, SupportedKxGroup,
        aws_lc_rs::{self, cipher_suite::TLS13_AES_128_GCM_SHA256, kx_group},
    },
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::TLS13,
};
use std::{
    io::{Read, Write},
    path::Path,
    sync::Arc,
};

/// What both ends of the measurement speak.
pub struct Ends {
    pub client: Arc<ClientConfig>,
    /// The same that offers the post-quantum hybrid first, as Weft does by default.
    pub hybrid_client: Arc<ClientConfig>,
    /// The first that says in ALPN that it speaks HTTP/2.
    pub http2_client: Arc<ClientConfig>,
    /// Wants a certificate.
    pub server: Arc<ServerConfig>,
    /// Wants none.
    pub open_server: Arc<ServerConfig>,
}

impl Ends {
    /// # Errors
    /// The files cannot be read, or are not what they should be.
    pub fn new(files: &Files) -> Result<Self, String> {
        let authority = certificate(&files.authority)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority).map_err(text)?;
        let roots = Arc::new(roots);
        let client = |groups: &[&'static dyn SupportedKxGroup]| -> Result<_, String> {
            let mut config = ClientConfig::builder_with_provider(provider(groups))
                .with_protocol_versions(&[&TLS13])
                .map_err(text)?
                .with_root_certificates(roots.clone())
                .with_client_auth_cert(vec![certificate(&files.client.chain)?], key(&files.client.key)?)
                .map_err(text)?;
            config.resumption = Resumption::disabled();
            Ok(config)
        };
        let server = provider(&[kx_group::X25519]);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), server.clone()).build().map_err(text)?;
        let server = |verifier: Arc<dyn ClientCertVerifier>| -> Result<_, String> {
            let mut config = ServerConfig::builder_with_provider(server.clone())
                .with_protocol_versions(&[&TLS13])
                .map_err(text)?
                .with_client_cert_verifier(verifier)
                .with_single_cert(vec![certificate(&files.backend.chain)?], key(&files.backend.key)?)
                .map_err(text)?;
            config.send_tls13_tickets = 0;
            Ok(Arc::new(config))
        };
        let mut http2_client = client(&[kx_group::X25519])?;
        http2_client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            client: Arc::new(client(&[kx_group::X25519])?),
            hybrid_client: Arc::new(client(&[kx_group::X25519MLKEM768, kx_group::X25519])?),
            http2_client: Arc::new(http2_client),
            server: server(verifier)?,
            open_server: server(Arc::new(NoClientAuth))?,
        })
    }
}

fn provider(groups: &[&'static dyn SupportedKxGroup]) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![TLS13_AES_128_GCM_SHA256],
        kx_groups: groups.to_vec(),
        ..aws_lc_rs::default_provider()
    })
}

fn certificate(path: &Path) -> Result<CertificateDer<'static>, String> {
    CertificateDer::from_pem_file(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A protocol's side inside of TLS.
pub struct Secure<S> {
    tls: Connection,
    session: S,
    /// What was received of it and not used yet.
    plain: Vec<u8>,
    /// What it has to say.
    answer: Vec<u8>,
}

impl<S> Secure<S> {
    /// A client's side around the session that `open` makes, which may have something to say first.
    pub fn client(config: &Arc<ClientConfig>, open: impl FnOnce(&mut Vec<u8>) -> S) -> Self {
        let name = ServerName::try_from("bench.example").expect("a name");
        let tls = ClientConnection::new(config.clone(), name).expect("a connection of any config");
        let mut first = Vec::new();
        let session = open(&mut first);
        Self { answer: first, ..Self::new(tls.into(), session) }
    }

    pub fn server(config: &Arc<ServerConfig>, session: S) -> Self {
        let tls = ServerConnection::new(config.clone()).expect("a connection of any config");
        Self::new(tls.into(), session)
    }

    fn new(mut tls: Connection, session: S) -> Self {
        tls.set_buffer_limit(None);
        Self { tls, session, plain: Vec::new(), answer: Vec::new() }
    }

    /// Appends the records that are due. What is said before the handshake is done comes after it.
    fn send(&mut self, out: &mut Vec<u8>) {
        const MEMORY: &str = "memory takes all";
        self.tls.writer().write_all(&self.answer).expect(MEMORY);
        self.answer.clear();
        while self.tls.wants_write() {
            self.tls.write_tls(out).expect(MEMORY);
        }
    }
}

impl<S: Session> Session for Secure<S> {
    fn receive(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<(usize, usize), String> {
        let (whole, mut ended) = (input.len(), 0);
        while !input.is_empty() {
            self.tls.read_tls(&mut input).map_err(text)?;
            let state = self.tls.process_new_packets().map_err(text)?;
            let (had, came) = (self.plain.len(), state.plaintext_bytes_to_read());
            if came > 0 {
                self.plain.resize(had + came, 0);
                self.tls.reader().read_exact(&mut self.plain[had..]).map_err(text)?;
                let (used, count) = self.session.receive(&self.plain, &mut self.answer)?;
                self.plain.drain(..used);
                ended += count;
            }
            if state.peer_has_closed() {
                return Err("the connection was closed".into());
            }
        }
        self.send(out);
        Ok((whole, ended))
    }
}

impl<C: Client> Client for Secure<C> {
    fn begin(&mut self, out: &mut Vec<u8>) {
        self.session.begin(&mut self.answer);
        self.send(out);
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.tls.send_close_notify();
        self.send(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::talk::http1::{self, Exchange};

    #[test]
    fn both_ends_understand_each_other() {
        let folder = std::env::temp_dir().join(format!("weft-benches-{}", std::process::id()));
        let ends = Ends::new(&Files::in_folder(&folder).unwrap()).unwrap();
        let mut client = Secure::client(&ends.client, |_| http1::Client::new(Exchange::Small));
        let mut server = Secure::server(&ends.server, http1::Server::default());
        let (mut up, mut down) = (Vec::new(), Vec::new());
        client.begin(&mut up);
        let mut ended = 0;
        while ended == 0 {
            assert!(!up.is_empty(), "nobody has anything to say");
            let sent = std::mem::take(&mut up);
            assert_eq!(server.receive(&sent, &mut down).unwrap().0, sent.len());
            let sent = std::mem::take(&mut down);
            ended = client.receive(&sent, &mut up).unwrap().1;
        }
        client.end(&mut up);
        assert!(server.receive(&up, &mut down).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
