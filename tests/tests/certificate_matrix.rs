//! The certificate matrix through sockets: Weft as the server of clients that present each certificate, and as the client of
//! servers that do, in TLS 1.2 and 1.3, with the SPIFFE validator and with a matcher of SPIFFE IDs. What Envoy makes of it is
//! printed beside (`--nocapture`).

use rcgen::{SanType, date_time_ymd};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, Error, ServerConfig, ServerConnection, SignatureScheme,
    SupportedProtocolVersion,
    client::{ResolvesClientCert, Resumption, danger},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};
use weft_tests::{
    Client, Kind, PATIENCE, Proxy,
    certificate_matrix::{Authority, Issued, Matrix, Role, Verdict},
    free_port, pem, tools, yaml,
};

const VERSIONS: [(&str, &SupportedProtocolVersion); 2] = [("TLSv1_2", &TLS12), ("TLSv1_3", &TLS13)];
/// Within this, a refusal follows a handshake.
const REFUSAL: Duration = Duration::from_millis(60);
const VALIDATORS: [&str; 2] = ["validator", "matcher"];

fn quoted(pem: &str) -> String {
    format!("{{inline_string: \"{}\"}}", pem.replace('\n', "\\n"))
}

/// Both validation contexts, as the validators' names are listed.
fn contexts(matrix: &Matrix) -> [String; 2] {
    let (ca, other) = (quoted(&matrix.ca.pem), quoted(&matrix.other.pem));
    let validator = format!(
        "custom_validator_config: {{name: envoy.tls.cert_validator.spiffe, typed_config: {{\"@type\": type.googleapis.com/\
         envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig, trust_domains: [{{name: example.org, \
         trust_bundle: {ca}}}, {{name: other.org, trust_bundle: {other}}}]}}}}"
    );
    let matcher = format!(
        "trusted_ca: {ca}, match_typed_subject_alt_names: [{{san_type: URI, matcher: {{prefix: \"spiffe://example.org/\"}}}}]"
    );
    [validator, matcher]
}

fn transport_socket(message: &str, common: &str, fields: &str) -> String {
    format!(
        "transport_socket: {{name: envoy.transport_sockets.tls, typed_config: {{\"@type\": type.googleapis.com/envoy.\
         extensions.transport_sockets.tls.v3.{message}, common_tls_context: {{{common}}}, {fields}}}}}"
    )
}

fn own_certificate(issued: &Issued) -> String {
    let chain = quoted(&pem::pem("CERTIFICATE", &issued.chain[0]));
    format!("tls_certificates: [{{certificate_chain: {chain}, private_key: {}}}]", quoted(&issued.key_pem()))
}

/// What became of a handshake: an alert by its number, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Accepted,
    Alert(u8),
    Closed(String),
}

impl From<io::Error> for Seen {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::AlertReceived(alert)) => Self::Alert((*alert).into()),
            _ => Self::Closed(error.to_string()),
        }
    }
}

/// What must be seen of it.
fn wanted(verdict: Verdict, version: &str) -> Seen {
    match verdict {
        Verdict::Accepted => Seen::Accepted,
        Verdict::Refused(alert) => Seen::Alert(alert),
        Verdict::KeyUsage if version == "TLSv1_2" => Seen::Alert(AlertDescription::UnsupportedCertificate.into()),
        Verdict::KeyUsage => Seen::Alert(AlertDescription::IllegalParameter.into()),
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A certificate with a key that need not be its own.
fn certified(issued: &Issued) -> Arc<CertifiedKey> {
    let chain = issued.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let key = PrivateKeyDer::try_from(issued.key.clone()).expect("a key");
    Arc::new(CertifiedKey::new(chain, aws_lc_rs::sign::any_supported_type(&key).expect("a key of a known kind")))
}

/// Presents a certificate, whatever is asked for, and takes any.
#[derive(Debug)]
struct Anything(Option<Arc<CertifiedKey>>);

impl ResolvesClientCert for Anything {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

impl danger::ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<danger::ServerCertVerified, Error> {
        Ok(danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<danger::HandshakeSignatureValid, Error> {
        Ok(danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<danger::HandshakeSignatureValid, Error> {
        Ok(danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Connects with a certificate and asks for something. A refusal under TLS 1.3 comes when the client is done: it waits for
/// that before it writes, as an alert that meets unread bytes may be lost.
fn connect(port: u16, issued: Option<&Issued>, version: &'static SupportedProtocolVersion) -> Seen {
    let present = || Arc::new(Anything(issued.map(certified)));
    let mut provider = aws_lc_rs::default_provider();
    // A client of TLS 1.2 does not offer what it cannot speak.
    provider.cipher_suites.retain(|suite| suite.version() == version);
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .expect("a version that is supported")
        .dangerous()
        .with_custom_certificate_verifier(present())
        .with_client_cert_resolver(present());
    config.resumption = Resumption::disabled();
    let name = ServerName::try_from("example.org").expect("a name");
    let mut tls = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut tcp = TcpStream::connect(("127.0.0.1", port)).expect("the listener is there");
    let mut talk = || {
        tcp.set_read_timeout(Some(PATIENCE))?;
        while tls.is_handshaking() {
            tls.complete_io(&mut tcp)?;
        }
        tcp.set_read_timeout(Some(REFUSAL))?;
        let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
        match stream.read(&mut [0; 1]) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        stream.sock.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")?;
        stream.read_exact(&mut [0; 12])
    };
    match talk() {
        Ok(()) => Seen::Accepted,
        Err(error) => error.into(),
    }
}

/// By case, version and validator.
type Table = BTreeMap<(usize, &'static str, &'static str), Seen>;

/// A listener that asks clients for certificates.
fn listener(port: u16, own_certificate: &str, context: &str) -> String {
    let common = format!("{own_certificate}, validation_context: {{{context}}}");
    let tls = transport_socket("DownstreamTlsContext", &common, "require_client_certificate: true");
    let host = "{name: all, domains: [\"*\"], routes: [{match: {prefix: /}, direct_response: {status: 200}}]}";
    let listener = yaml::http_listener(&format!("l{port}"), port, "", host);
    listener.replacen("filter_chains: [{", &format!("filter_chains: [{{{tls}, "), 1)
}

/// What clients see that present each certificate.
fn as_server(kind: &Kind, matrix: &Matrix) -> Table {
    let certificate = own_certificate(&matrix.ca.leaf(|_| ()));
    let ports = [free_port(), free_port()];
    let listeners: Vec<_> =
        contexts(matrix).iter().zip(ports).map(|(context, port)| listener(port, &certificate, context)).collect();
    let _proxy = Proxy::start(kind, &yaml::bootstrap(&listeners, &[]));
    let mut table = Table::new();
    for (i, case) in matrix.cases.iter().enumerate() {
        for (name, version) in VERSIONS {
            for (validator, port) in VALIDATORS.into_iter().zip(ports) {
                table.insert((i, name, validator), connect(port, Some(&case.issued), version));
            }
        }
    }
    if *kind == Kind::Weft {
        let none = VERSIONS.map(|(_, version)| connect(ports[0], None, version));
        let alerts = [AlertDescription::HandshakeFailure, AlertDescription::CertificateRequired];
        assert_eq!(none, alerts.map(|alert| Seen::Alert(alert.into())), "no certificate");
    }
    table
}

/// What is presented at the moment.
#[derive(Debug)]
struct Current(Mutex<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.lock().expect("no panic").clone())
    }
}

/// A server that answers one request on each connection; tells what it saw of each handshake.
fn serve(current: Arc<Current>, version: &'static SupportedProtocolVersion) -> (u16, mpsc::Receiver<Seen>) {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .expect("a version that is supported")
        .with_no_client_auth()
        .with_cert_resolver(current);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for tcp in listener.incoming() {
            let mut tcp = tcp.expect("a connection");
            tcp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            let mut tls = ServerConnection::new(config.clone()).expect("a server");
            let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
            let mut request = [0; 1024];
            let seen = match stream.read(&mut request) {
                Ok(0) => Seen::Closed("end".to_owned()),
                Ok(_) => {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                    tls.send_close_notify();
                    let _ = tls.complete_io(&mut tcp);
                    Seen::Accepted
                }
                Err(error) => error.into(),
            };
            if sender.send(seen).is_err() {
                return;
            }
        }
    });
    (port, receiver)
}

/// What servers see that present each certificate.
fn as_client(kind: &Kind, matrix: &Matrix) -> Table {
    let current = Arc::new(Current(Mutex::new(certified(&matrix.cases[0].issued))));
    let servers = VERSIONS.map(|(name, version)| (name, serve(current.clone(), version)));
    let (mut clusters, mut routes) = (Vec::new(), Vec::new());
    for (version, (port, _)) in &servers {
        for (validator, context) in VALIDATORS.iter().zip(contexts(matrix)) {
            let versions = format!("tls_minimum_protocol_version: {version}, tls_maximum_protocol_version: {version}");
            let common = format!("tls_params: {{{versions}}}, validation_context: {{{context}}}");
            let tls = transport_socket("UpstreamTlsContext", &common, "max_session_keys: 0");
            let name = format!("{validator}-{version}");
            clusters.push(yaml::cluster(&name, *port).replacen('{', &format!("{{{tls}, "), 1));
            routes.push(format!("{{match: {{path: /{name}}}, route: {{cluster: {name}}}}}"));
        }
    }
    let port = free_port();
    let host = format!("{{name: all, domains: [\"*\"], routes: [{}]}}", routes.join(", "));
    let listener = yaml::http_listener("l", port, "", &host);
    let _proxy = Proxy::start(kind, &yaml::bootstrap(&[listener], &clusters));
    let mut table = Table::new();
    for (i, case) in matrix.cases.iter().enumerate() {
        *current.0.lock().expect("no panic") = certified(&case.issued);
        for (version, (_, seen)) in &servers {
            for validator in VALIDATORS {
                let mut client = Client::connect(("127.0.0.1", port)).expect("the listener is there");
                let response = client.get(&format!("/{validator}-{version}"), &[]).expect("a response");
                let seen = seen.recv_timeout(PATIENCE).expect("a handshake");
                let status = if seen == Seen::Accepted { 200 } else { 503 };
                assert_eq!(response.status, status, "{} {version} {validator}: {seen:?}", case.name);
                table.insert((i, version, validator), seen);
            }
        }
    }
    table
}

/// Checks what Weft makes of a matrix, and shows what Envoy does.
fn judge(role: Role, observe: fn(&Kind, &Matrix) -> Table) {
    let matrix = Matrix::new(role);
    let ours = observe(&Kind::Weft, &matrix);
    let theirs = tools::envoy().map(|envoy| observe(&Kind::Envoy(envoy), &matrix)).unwrap_or_default();
    let mut wrong = Vec::new();
    let mut lines = vec![format!("{role:?}: Weft's and Envoy's answers, A accepted, else the alert")];
    for (&(i, version, validator), seen) in &ours {
        let case = &matrix.cases[i];
        let verdict = if validator == VALIDATORS[0] { case.by_spiffe } else { case.by_matcher };
        let brief = |seen: Option<&Seen>| match seen {
            Some(Seen::Accepted) => "A".to_owned(),
            Some(Seen::Alert(alert)) => alert.to_string(),
            Some(Seen::Closed(_)) => "closed".to_owned(),
            None => "-".to_owned(),
        };
        let envoys = brief(theirs.get(&(i, version, validator)));
        lines.push(format!("{:36} {version} {validator:9} {:>6} {envoys:>6}", case.name, brief(Some(seen))));
        let wanted = wanted(verdict, version);
        if *seen != wanted {
            wrong.push(format!("{} {version} {validator}: {seen:?}, wanted {wanted:?}", case.name));
        }
    }
    let refused = |table: &Table, validator: &str| {
        let bad = |i: usize| matrix.cases[i].by_spiffe != Verdict::Accepted;
        let of = |key: &(usize, &str, &str)| bad(key.0) && key.1 == "TLSv1_3" && key.2 == validator;
        table.iter().filter(|(key, seen)| of(key) && **seen != Seen::Accepted).count()
    };
    for validator in VALIDATORS {
        let (ours, theirs) = (refused(&ours, validator), refused(&theirs, validator));
        lines.push(format!("{role:?}, {validator}: of 41 bad certificates Weft refuses {ours}, Envoy {theirs}"));
    }
    eprintln!("{}", lines.join("\n"));
    // The key of RSA of 1024 bits is not here to be signed with, so that Envoy too refuses it in the end.
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn clients_are_verified() {
    judge(Role::Client, as_server);
}

#[test]
fn servers_are_verified() {
    judge(Role::Server, as_client);
}

/// Contexts that need no SPIFFE, and certificates for them: what clients see is the same as with Envoy.
#[test]
fn contexts_mean_what_they_mean_to_envoy() {
    let Some(envoy) = tools::envoy() else { return };
    let (root, other) = (Authority::root("root"), Authority::root("other"));
    let middle = root.below("middle", |_| ());
    let deep = middle.below("deep", |_| ());
    let dns = |ca: &Authority, names: &[&str]| {
        let names = names.iter().map(|name| SanType::DnsName((*name).try_into().expect("a name"))).collect();
        ca.leaf(|params| params.subject_alt_names = names)
    };
    let alone = |mut issued: Issued| {
        issued.chain.truncate(1);
        issued
    };
    let revoked = root.leaf(|_| ());
    let certificates = [
        ("good", root.leaf(|_| ())),
        ("unknown", other.leaf(|_| ())),
        ("revoked", alone(revoked)),
        ("below one", middle.leaf(|_| ())),
        ("below one, which is missing", alone(middle.leaf(|_| ()))),
        ("below two", deep.leaf(|_| ())),
        ("expired", root.leaf(|params| params.not_after = date_time_ymd(2020, 1, 1))),
        ("wildcard", dns(&root, &["*.example.org"])),
        ("wildcard in a label", dns(&root, &["a*.example.org"])),
        ("deeper wildcard", dns(&root, &["*.a.example.org"])),
        ("exact", dns(&root, &["x.org", "abc.example.org"])),
        ("no key usage", root.leaf(|params| params.key_usages.clear())),
        ("no basic constraints", root.leaf(|params| params.is_ca = rcgen::IsCa::NoCa)),
    ];
    let revoked = &certificates[2].1;
    let trusting = |authorities: &[&Authority], fields: &str| {
        let pems: String = authorities.iter().map(|authority| &*authority.pem).collect();
        format!("trusted_ca: {}, {fields}", quoted(&pems))
    };
    let san = |kind: &str, matcher: &str| {
        format!("match_typed_subject_alt_names: [{{san_type: {kind}, matcher: {{{matcher}}}}}]")
    };
    let crl = |lists: &[String], fields: &str| format!("crl: {}, {fields}", quoted(&lists.concat()));
    let (of_root, of_middle) = (root.crl(&[revoked], 3600), middle.crl(&[], 3600));
    let contexts = [
        trusting(&[&root], ""),
        trusting(&[&root, &middle], "max_verify_depth: 1"),
        trusting(&[&root], "max_verify_depth: 0"),
        trusting(&[&root], "max_verify_depth: 1"),
        trusting(&[&root], "max_verify_depth: 2"),
        trusting(&[&middle], ""),
        trusting(&[&other, &root], "allow_expired_certificate: true"),
        trusting(&[&root], "trust_chain_verification: ACCEPT_UNTRUSTED"),
        trusting(&[&root], &san("DNS", "exact: abc.example.org")),
        trusting(&[&root], &san("DNS", "suffix: .example.org")),
        trusting(&[&root], &san("URI", "exact: abc.example.org")),
        trusting(&[&root], "match_subject_alt_names: [{exact: abc.example.org}]"),
        trusting(&[&root], &crl(&[of_root.clone(), of_middle.clone()], "")),
        trusting(&[&root], &crl(std::slice::from_ref(&of_root), "")),
        trusting(&[&root], &crl(&[of_middle], "only_verify_leaf_cert_crl: true")),
        trusting(&[&middle], &crl(std::slice::from_ref(&of_root), "")),
        trusting(&[&root], &crl(&[root.crl(&[], -60)], "")),
    ];
    let own = own_certificate(&root.leaf(|_| ()));
    let observe = |kind: &Kind| {
        let ports = contexts.each_ref().map(|_| free_port());
        let listeners: Vec<_> =
            contexts.iter().zip(ports).map(|(context, port)| listener(port, &own, context)).collect();
        let _proxy = Proxy::start(kind, &yaml::bootstrap(&listeners, &[]));
        ports.map(|port| certificates.each_ref().map(|(name, issued)| (*name, connect(port, Some(issued), &TLS12))))
    };
    let (ours, theirs) = (observe(&Kind::Weft), observe(&Kind::Envoy(envoy)));
    for ((context, ours), theirs) in contexts.iter().zip(ours).zip(theirs) {
        let brief: String = context.split("-----").filter(|part| !part.contains("\\n")).collect();
        assert_eq!(ours, theirs, "left: Weft, right: Envoy; {brief}");
    }
}
