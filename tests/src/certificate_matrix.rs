//! Certificates that a proxy must take, and ones that it must refuse: each rule of X.509 SVIDs broken once.
//!
//! Made when tests run. Used through sockets here, and by the proxy's own tests of its verifier.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, PublicKeyData, SanType, SerialNumber,
    SignatureAlgorithm, date_time_ymd,
};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Seconds.
pub const HOUR: i64 = 3600;

/// What must become of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    /// Refused with this alert.
    Refused(u8),
    /// Refused for its key usage: with one alert in TLS 1.2, with another in TLS 1.3.
    KeyUsage,
}

pub const UNSUPPORTED: u8 = 43;
pub const REVOKED: u8 = 44;
pub const EXPIRED: u8 = 45;
pub const UNKNOWN: u8 = 46;
pub const UNKNOWN_CA: u8 = 48;

/// Who the certificates are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

/// A certificate with its chain, and what must become of it.
pub struct Case {
    pub name: &'static str,
    pub issued: Issued,
    /// With the SPIFFE validator that knows `example.org` and `other.org`.
    pub by_spiffe: Verdict,
    /// With `example.org`'s authority and a matcher of URIs that begin with `spiffe://example.org/`.
    pub by_matcher: Verdict,
}

/// A certificate.
pub struct Issued {
    /// DER, the peer's own first, the authority's not in it.
    pub chain: Vec<Vec<u8>>,
    /// PKCS #8. Of a certificate whose key is too weak to be signed with here, another.
    pub key: Vec<u8>,
    pub serial: SerialNumber,
}

/// An authority.
pub struct Authority {
    pub pem: String,
    pub der: Vec<u8>,
    /// The authorities between it and a root.
    chain: Vec<Vec<u8>>,
    issuer: Issuer<'static, KeyPair>,
}

/// All of it.
pub struct Matrix {
    /// Of `example.org`.
    pub ca: Authority,
    /// Of `other.org`.
    pub other: Authority,
    pub cases: Vec<Case>,
}

/// So many seconds from now.
macro_rules! at {
    ($seconds:expr) => {{
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        date_time_ymd(1970, 1, 1) + Duration::from_secs(now.saturating_add_signed($seconds))
    }};
}

impl Authority {
    /// A root.
    pub fn root(name: &str) -> Self {
        let (params, key) = (authority(name), KeyPair::generate().unwrap());
        let certificate = params.self_signed(&key).unwrap();
        let der = certificate.der().to_vec();
        Self { pem: certificate.pem(), der, chain: Vec::new(), issuer: Issuer::new(params, key) }
    }

    /// An authority below it.
    pub fn below(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let (mut params, key) = (authority(name), KeyPair::generate().unwrap());
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let der = certificate.der().to_vec();
        let chain = [vec![der.clone()], self.chain.clone()].concat();
        Self { pem: certificate.pem(), der, chain, issuer: Issuer::new(params, key) }
    }

    /// A workload's certificate: good, if nothing is changed.
    pub fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        self.leaf_of(&KeyPair::generate().unwrap(), change)
    }

    fn leaf_of(&self, key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        Issued { key: key.serialize_der(), ..self.certify(key, change) }
    }

    /// A certificate of a public key whose other half is somewhere else.
    fn certify(&self, key: &impl PublicKeyData, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        static SERIAL: AtomicU64 = AtomicU64::new(0x1000);
        let serial = SerialNumber::from(SERIAL.fetch_add(1, Ordering::Relaxed));
        let mut params = CertificateParams::default();
        params.serial_number = Some(serial.clone());
        params.distinguished_name = named("workload");
        (params.not_before, params.not_after) = (at!(-HOUR), at!(HOUR));
        params.subject_alt_names = uris(&["spiffe://example.org/workload"]);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        let own = params.signed_by(key, &self.issuer).unwrap().der().to_vec();
        let key = KeyPair::generate().unwrap().serialize_der();
        Issued { chain: [vec![own], self.chain.clone()].concat(), key, serial }
    }

    /// A list of what it revoked an hour ago, valid since then and for so many seconds from now; PEM.
    pub fn crl(&self, revoked: &[&Issued], valid_for: i64) -> String {
        let entry = |issued: &&Issued| rcgen::RevokedCertParams {
            serial_number: issued.serial.clone(),
            revocation_time: at!(-HOUR),
            reason_code: None,
            invalidity_date: None,
        };
        let params = rcgen::CertificateRevocationListParams {
            this_update: at!(-HOUR),
            next_update: at!(valid_for),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    (params.not_before, params.not_after) = (at!(-24 * HOUR), at!(24 * HOUR));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}

/// Names of a certificate.
pub fn uris(uris: &[&str]) -> Vec<SanType> {
    uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect()
}

/// Constraints to hosts of URIs that are permitted.
fn permitted_uris(host: &str) -> CustomExtension {
    let length = |content: &[u8]| u8::try_from(content.len()).unwrap();
    let wrap = |tag: u8, content: &[u8]| [&[tag, length(content)], content].concat();
    let content = wrap(0x30, &wrap(0xa0, &wrap(0x30, &wrap(0x86, host.as_bytes()))));
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], content);
    extension.set_criticality(true);
    extension
}

/// An RSA key of 1024 bits, the public half.
struct WeakKey(Vec<u8>);

impl WeakKey {
    fn new() -> Self {
        const HEX: &str = "30818902818100d971d59d287e0050dbe85ce156673e9580ade61c98d0511d6dea61f8a5b64b9b7236ab034161988b498e5617ccf7f9687190ff552a35809c59acab56ae25b521dbdd00b398e13c1f544b67869558f954dfb31e41de283c63dd1c995200e61ab1f8f2758ebe0bf7f6df6aadf9426f93f6bab90dd2ac6bbd2a688179fbfd99bef90203010001";
        let digits = HEX.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
        Self(digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect())
    }
}

impl PublicKeyData for WeakKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_RSA_SHA256
    }
}

impl Matrix {
    /// All certificates for a role.
    pub fn new(role: Role) -> Self {
        use Verdict::{Accepted, KeyUsage, Refused};
        let ca = Authority::root("example.org");
        let other = Authority::root("other.org");
        let mut cases = Vec::new();
        let mut add = |name, issued, by_spiffe, by_matcher| cases.push(Case { name, issued, by_spiffe, by_matcher });

        let mut good = |name, issued| add(name, issued, Accepted, Accepted);
        good("good", ca.leaf(|_| ()));
        good(
            "DNS names beside the ID",
            ca.leaf(|params| {
                let name = |name: &str| SanType::DnsName(name.try_into().unwrap());
                params.subject_alt_names.extend([name("a.example.org"), name("b.example.org")]);
            }),
        );
        good("RSA of 2048 bits", ca.leaf_of(&KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap(), |_| ()));
        good("P-384", ca.leaf_of(&KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(), |_| ()));
        good("by an intermediate", ca.below("intermediate", |_| ()).leaf(|_| ()));
        let long =
            |length: usize| format!("spiffe://example.org/{}", "a".repeat(length - "spiffe://example.org/".len()));
        good("ID of 2048 bytes", ca.leaf(|params| params.subject_alt_names = uris(&[&long(2048)])));
        good("no extended key usage", ca.leaf(|params| params.extended_key_usages.clear()));
        let theirs = |params: &mut CertificateParams| params.subject_alt_names = uris(&["spiffe://other.org/workload"]);
        add("of the federated trust domain", other.leaf(theirs), Accepted, Refused(UNKNOWN_CA));
        let constrained = |host| {
            let constrain = |params: &mut CertificateParams| params.custom_extensions.push(permitted_uris(host));
            ca.below("constrained", constrain).leaf(|_| ())
        };
        add("within name constraints", constrained("example.org"), Accepted, Accepted);

        let mut bad = |name, issued, verdict| add(name, issued, verdict, verdict);
        let expired = |seconds: i64| move |params: &mut CertificateParams| params.not_after = at!(-seconds);
        bad("expired", ca.leaf(expired(HOUR / 2)), Refused(EXPIRED));
        bad("expired a second ago", ca.leaf(expired(1)), Refused(EXPIRED));
        bad("not yet valid", ca.leaf(|params| params.not_before = at!(HOUR / 2)), Refused(EXPIRED));
        bad("by an unknown authority", Authority::root("unknown").leaf(|_| ()), Refused(UNKNOWN_CA));
        bad("by the other domain's authority", other.leaf(|_| ()), Refused(UNKNOWN_CA));

        let ids: [(_, &[&str]); 22] = [
            ("of an unlisted trust domain", &["spiffe://third.org/workload"]),
            ("two IDs", &["spiffe://example.org/workload", "spiffe://example.org/second"]),
            ("two trust domains", &["spiffe://example.org/workload", "spiffe://other.org/workload"]),
            ("an ID and another URI", &["spiffe://example.org/workload", "https://example.org/workload"]),
            ("another URI and an ID", &["https://example.org/workload", "spiffe://example.org/workload"]),
            ("no names", &[]),
            ("no path", &["spiffe://example.org"]),
            ("root path", &["spiffe://example.org/"]),
            ("slash at the end", &["spiffe://example.org/workload/"]),
            ("dot", &["spiffe://example.org/a/./b"]),
            ("two dots", &["spiffe://example.org/a/../b"]),
            ("two slashes", &["spiffe://example.org/a//b"]),
            ("encoded letter", &["spiffe://example.org/%61"]),
            ("query", &["spiffe://example.org/workload?q"]),
            ("fragment", &["spiffe://example.org/workload#f"]),
            ("space", &["spiffe://example.org/work load"]),
            ("user info", &["spiffe://user@example.org/workload"]),
            ("port", &["spiffe://example.org:443/workload"]),
            ("trust domain in capitals", &["spiffe://EXAMPLE.org/workload"]),
            ("scheme in capitals", &["SPIFFE://example.org/workload"]),
            ("another scheme", &["http://example.org/workload"]),
            ("ID of 2049 bytes", &[&long(2049)]),
        ];
        for (name, ids) in ids {
            bad(name, ca.leaf(|params| params.subject_alt_names = uris(ids)), Refused(UNKNOWN));
        }
        let dns = || vec![SanType::DnsName("workload.example.org".try_into().unwrap())];
        bad("DNS name only", ca.leaf(|params| params.subject_alt_names = dns()), Refused(UNKNOWN));

        let signing = |usage| move |params: &mut CertificateParams| params.key_usages.push(usage);
        bad("CA", ca.leaf(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), Refused(UNKNOWN));
        bad("may sign certificates", ca.leaf(signing(KeyUsagePurpose::KeyCertSign)), Refused(UNKNOWN));
        bad("may sign CRLs", ca.leaf(signing(KeyUsagePurpose::CrlSign)), Refused(UNKNOWN));
        bad("no key usage", ca.leaf(|params| params.key_usages.clear()), Refused(UNKNOWN));
        let encipher = |params: &mut CertificateParams| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
        bad("may not sign", ca.leaf(encipher), KeyUsage);
        bad("no basic constraints", ca.leaf(|params| params.is_ca = IsCa::NoCa), Refused(UNKNOWN));
        let purpose = match role {
            Role::Client => ExtendedKeyUsagePurpose::ServerAuth,
            Role::Server => ExtendedKeyUsagePurpose::ClientAuth,
        };
        bad("for the other role", ca.leaf(|params| params.extended_key_usages = vec![purpose]), Refused(UNSUPPORTED));
        bad("RSA of 1024 bits", ca.certify(&WeakKey::new(), |_| ()), Refused(UNKNOWN));

        let mut alone = ca.below("absent", |_| ()).leaf(|_| ());
        alone.chain.truncate(1);
        bad("intermediate missing", alone, Refused(UNKNOWN_CA));
        let no_ca = |params: &mut CertificateParams| {
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages.push(KeyUsagePurpose::DigitalSignature);
        };
        bad("by one that is no CA", ca.below("no CA", no_ca).leaf(|_| ()), Refused(UNKNOWN_CA));
        let no_sign = |params: &mut CertificateParams| params.key_usages = vec![KeyUsagePurpose::CrlSign];
        bad("by one that may not sign", ca.below("no signer", no_sign).leaf(|_| ()), Refused(UNKNOWN_CA));
        let short = |params: &mut CertificateParams| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let deep = ca.below("short", short).below("one too many", |_| ()).leaf(|_| ());
        bad("path too long", deep, Refused(UNKNOWN_CA));
        bad("outside name constraints", constrained("elsewhere.org"), Refused(UNKNOWN));
        Self { ca, other, cases }
    }
}
