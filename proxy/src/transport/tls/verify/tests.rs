//! Tests of the verifier with certificates made for them.

#[path = "../../../../../tests/src/certificate_matrix.rs"]
mod certificate_matrix;

use super::*;
use certificate_matrix::{Authority as Ca, EXPIRED, HOUR, Issued, Matrix, REVOKED, Role, UNKNOWN_CA, Verdict, uris};
use rcgen::{CertificateParams, SanType as Rcgen};
use rustls::AlertDescription;
use std::time::{Duration, Instant};
use weft_config::{
    data_source::DataSource,
    string_matcher::StringMatcher,
    tls::{SpiffeValidator, TrustBundles},
};
use weft_control_api::envoy::r#type::matcher::v3::{self as pb, string_matcher::MatchPattern};

fn pem(text: impl Into<Vec<u8>>) -> DataSource {
    DataSource { data: text.into().into(), filename: None }
}

fn san(kind: SanType, pattern: MatchPattern) -> SanMatcher {
    let p = pb::StringMatcher { match_pattern: Some(pattern), ..Default::default() };
    SanMatcher { kind, matcher: StringMatcher::from_proto(p, &mut Context::new()).unwrap(), oid: String::new() }
}

fn ids() -> SanMatcher {
    san(SanType::Uri, MatchPattern::Prefix("spiffe://example.org/".into()))
}

fn trusting(ca: &Ca) -> CertificateValidationContext {
    CertificateValidationContext { trusted_ca: Some(pem(&*ca.pem)), ..Default::default() }
}

fn spiffe(domains: &[(&str, &Ca)]) -> CertificateValidationContext {
    let trust_domains = domains.iter().map(|(name, ca)| ((*name).to_owned(), pem(&*ca.pem))).collect();
    let spiffe = Some(SpiffeValidator { trust_domains, trust_bundles: None });
    CertificateValidationContext { spiffe, ..Default::default() }
}

fn compile(config: &CertificateValidationContext) -> Verifier {
    let mut cx = Context::new();
    let verifier = Verifier::compile(config, &mut cx);
    cx.finish(verifier).unwrap().0
}

fn later(seconds: i64) -> UnixTime {
    let now = UnixTime::now().as_secs().saturating_add_signed(seconds);
    UnixTime::since_unix_epoch(Duration::from_secs(now))
}

fn verify_at(
    config: &CertificateValidationContext,
    peer: Peer,
    issued: &Issued,
    name: Option<&str>,
    now: UnixTime,
) -> Result<Verified, Refusal> {
    let chain: Vec<_> = issued.chain.iter().map(|der| CertificateDer::from(&**der)).collect();
    let verifier = compile(config);
    let verify = || verifier.verify(peer, &chain[0], &chain[1..], name, now);
    let first = verify();
    // What is remembered is what was said.
    assert_eq!(first.as_ref().map_err(ToString::to_string), verify().as_ref().map_err(ToString::to_string));
    first
}

fn verify(config: &CertificateValidationContext, issued: &Issued) -> Result<Verified, Refusal> {
    verify_at(config, Peer::Client, issued, None, UnixTime::now())
}

fn alert(refusal: Refusal) -> u8 {
    AlertDescription::from(refusal.error).into()
}

fn alert_of(config: &CertificateValidationContext, issued: &Issued) -> Option<u8> {
    verify(config, issued).err().map(alert)
}

#[test]
fn the_matrix() {
    for (role, peer) in [(Role::Client, Peer::Client), (Role::Server, Peer::Server)] {
        let matrix = Matrix::new(role);
        let by_spiffe = spiffe(&[("example.org", &matrix.ca), ("other.org", &matrix.other)]);
        let by_matcher = CertificateValidationContext { sans: vec![ids()], ..trusting(&matrix.ca) };
        for case in &matrix.cases {
            for (config, verdict) in [(&by_spiffe, case.by_spiffe), (&by_matcher, case.by_matcher)] {
                let found = verify_at(config, peer, &case.issued, None, UnixTime::now());
                let name = case.name;
                match (found, verdict) {
                    (Ok(verified), Verdict::Accepted) => assert_eq!(verified, Verified::Trusted, "{name}"),
                    (Err(refusal), Verdict::Refused(wanted)) => {
                        let details = refusal.details.clone();
                        assert_eq!(alert(refusal), wanted, "{peer:?} {name}: {details}");
                    }
                    (Err(refusal), Verdict::KeyUsage) => assert_eq!(alert(refusal), 43, "{name}"),
                    (found, _) => panic!("{peer:?} {name}: {found:?}"),
                }
            }
        }
        let count = |wanted: fn(&Verdict) -> bool| matrix.cases.iter().filter(|case| wanted(&case.by_spiffe)).count();
        assert_eq!(count(|verdict| *verdict == Verdict::Accepted), 9);
        assert_eq!(count(|verdict| *verdict != Verdict::Accepted), 41);
    }
}

#[test]
fn anchors_may_be_intermediates_and_the_certificate_itself() {
    let root = Ca::root("root");
    let middle = root.below("middle", |_| ());
    let issued = middle.leaf(|_| ());
    assert!(verify(&trusting(&root), &issued).is_ok());
    assert!(verify(&trusting(&middle), &issued).is_ok());
    let alone = Issued { chain: vec![issued.chain[0].clone()], key: Vec::new(), serial: issued.serial.clone() };
    assert!(verify(&trusting(&middle), &alone).is_ok(), "nothing but the leaf is presented");
    assert_eq!(alert_of(&trusting(&root), &alone), Some(UNKNOWN_CA));
    let other = Ca::root("root");
    assert_eq!(alert_of(&trusting(&other), &issued), Some(UNKNOWN_CA), "the same name, another key");
    let text = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", encode(&alone.chain[0]));
    let itself = CertificateValidationContext { trusted_ca: Some(pem(text)), ..Default::default() };
    assert!(verify(&itself, &alone).is_ok());
    assert_eq!(alert_of(&itself, &middle.leaf(|_| ())), Some(UNKNOWN_CA));
}

fn encode(der: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.encode(der)
}

#[test]
fn validity_may_be_left_aside_and_depth_limited() {
    let root = Ca::root("root");
    let issued = root.leaf(|_| ());
    let config = trusting(&root);
    for (when, wanted) in [(0, None), (2 * HOUR, Some(EXPIRED)), (-2 * HOUR, Some(EXPIRED))] {
        let verdict = verify_at(&config, Peer::Client, &issued, None, later(when));
        assert_eq!(verdict.err().map(alert), wanted, "{when}");
        let lenient = CertificateValidationContext { allow_expired_certificate: true, ..config.clone() };
        assert_eq!(verify_at(&lenient, Peer::Client, &issued, None, later(when)).unwrap(), Verified::Trusted);
    }
    let refusal = verify_at(&config, Peer::Client, &issued, None, later(48 * HOUR)).unwrap_err();
    assert_eq!(
        refusal.details,
        "verify cert failed: X509_verify_cert: certificate verification error at depth 1: certificate has expired"
    );

    let deep = root.below("1", |_| ()).below("2", |_| ()).leaf(|_| ());
    let limited = |depth| CertificateValidationContext { max_verify_depth: Some(depth), ..config.clone() };
    assert_eq!(alert_of(&limited(2), &deep), Some(UNKNOWN_CA));
    assert_eq!(alert_of(&limited(3), &deep), None);
    assert_eq!(alert_of(&limited(1), &issued), None);
    assert_eq!(alert_of(&limited(0), &issued), None, "as Envoy has it");
}

#[test]
fn what_leads_nowhere_may_be_let_through() {
    let (root, other) = (Ca::root("root"), Ca::root("other"));
    let sans = vec![ids()];
    let config = CertificateValidationContext { accept_untrusted: true, sans, ..trusting(&root) };
    assert_eq!(verify(&config, &root.leaf(|_| ())).unwrap(), Verified::Trusted);
    assert_eq!(verify(&config, &other.leaf(|_| ())).unwrap(), Verified::Unverified);
    assert_eq!(verify(&CertificateValidationContext::default(), &other.leaf(|_| ())).unwrap(), Verified::Unverified);
    assert!(!compile(&CertificateValidationContext::default()).demands_certificate());
    assert!(compile(&config).hints().len() == 1 && !root.leaf(|_| ()).key.is_empty());
}

#[test]
fn either_pin_will_do() {
    let root = Ca::root("root");
    let (pinned, other) = (root.leaf(|_| ()), root.leaf(|_| ()));
    let hash = |data: &[u8]| <[u8; 32]>::try_from(digest(&SHA256, data).as_ref()).unwrap();
    let key = Parsed::parse(&pinned.chain[0]).unwrap().key.der;
    for (spki_pins, certificate_pins) in
        [(vec![hash(&key)], vec![]), (vec![], vec![hash(&pinned.chain[0])]), (vec![hash(&key)], vec![[0; 32]])]
    {
        let pins = CertificateValidationContext { spki_pins, certificate_pins, ..Default::default() };
        assert!(compile(&pins).demands_certificate());
        for config in [CertificateValidationContext { trusted_ca: Some(pem(&*root.pem)), ..pins.clone() }, pins] {
            assert_eq!(verify(&config, &pinned).unwrap(), Verified::Trusted);
            assert_eq!(verify(&config, &other).unwrap_err().demand, Demand::Pin);
        }
    }
}

#[test]
fn names_match_by_their_kind() {
    let root = Ca::root("root");
    let exact = |kind, text: &str| CertificateValidationContext {
        sans: vec![san(kind, MatchPattern::Exact(text.into()))],
        ..trusting(&root)
    };
    let with = |names: Vec<Rcgen>| root.leaf(|params| params.subject_alt_names = names);
    let dns = |text: &str| with(vec![Rcgen::DnsName(text.try_into().unwrap())]);
    assert!(verify(&exact(SanType::Dns, "a.example.org"), &dns("*.example.org")).is_ok());
    for (config, issued) in [
        (exact(SanType::Dns, "b.a.example.org"), dns("*.example.org")),
        (exact(SanType::Dns, "10.0.0.1"), with(vec![Rcgen::IpAddress("10.0.0.1".parse().unwrap())])),
        (exact(SanType::IpAddress, "10.0.0.1"), dns("10.0.0.1")),
        (exact(SanType::Uri, "a.example.org"), dns("a.example.org")),
        (exact(SanType::Dns, "a.example.org"), dns("a.example.org\0.evil.org")),
        (exact(SanType::Dns, "a.example.org"), with(uris(&["a.example.org"]))),
        (exact(SanType::Email, "a@example.org"), dns("a@example.org")),
    ] {
        assert_eq!(verify(&config, &issued).unwrap_err().demand, Demand::San, "{config:?}");
    }
    assert!(verify(&exact(SanType::IpAddress, "::1"), &with(vec![Rcgen::IpAddress("::1".parse().unwrap())])).is_ok());
    let for_name =
        |issued: &Issued, name| verify_at(&trusting(&root), Peer::Server, issued, Some(name), UnixTime::now()).is_ok();
    assert!(for_name(&dns("*.example.org"), "a.example.org") && !for_name(&dns("*.example.org"), "a.b.example.org"));
    let address = with(vec![Rcgen::IpAddress("10.0.0.1".parse().unwrap())]);
    assert!(for_name(&address, "10.0.0.1") && !for_name(&dns("10.0.0.1"), "10.0.0.1"));
}

#[test]
fn certificates_without_spiffe_ids_are_judged_as_any() {
    let root = Ca::root("root");
    let dns = |params: &mut CertificateParams| {
        params.subject_alt_names = vec![Rcgen::DnsName("a.example.org".try_into().unwrap())];
        params.key_usages.clear();
    };
    let sans = vec![ids(), san(SanType::Dns, MatchPattern::Exact("a.example.org".into()))];
    let config = CertificateValidationContext { sans, ..trusting(&root) };
    assert!(verify(&config, &root.leaf(dns)).is_ok());
    let both = root.leaf(|params| {
        dns(params);
        params.subject_alt_names.extend(uris(&["spiffe://example.org/a/"]));
    });
    assert!(verify(&config, &both).is_err(), "an ID is read, and it is malformed");
    let kinds = [SanType::Dns, SanType::Uri, SanType::Email, SanType::IpAddress];
    let prefix = || MatchPattern::Prefix("spiffe://example.org/".into());
    let sans = kinds.map(|kind| san(kind, prefix())).to_vec();
    let deprecated = CertificateValidationContext { sans, ..trusting(&root) };
    assert!(verify(&deprecated, &root.leaf(|_| ())).is_ok());
    let disguised = root.leaf(|params| {
        params.subject_alt_names = vec![Rcgen::DnsName("spiffe://example.org/a".try_into().unwrap())];
    });
    assert_eq!(verify(&deprecated, &disguised).unwrap_err().demand, Demand::San, "an ID is a URI");
    let web = CertificateValidationContext { sans: config.sans[1..].to_vec(), ..trusting(&root) };
    assert!(verify(&web, &both).is_ok(), "nobody asks for an ID");
}

#[test]
fn lists_of_the_revoked_are_asked_for_all() {
    let root = Ca::root("root");
    let middle = root.below("middle", |_| ());
    let (good, bad) = (middle.leaf(|_| ()), middle.leaf(|_| ()));
    let config = |crls: &[String], only_verify_leaf_cert_crl| CertificateValidationContext {
        crl: Some(pem(crls.concat())),
        only_verify_leaf_cert_crl,
        ..trusting(&root)
    };
    let (of_root, of_middle) = (root.crl(&[], HOUR), middle.crl(&[&bad], HOUR));
    let all = config(&[of_root, of_middle.clone()], false);
    assert_eq!(alert_of(&all, &good), None);
    assert_eq!(alert_of(&all, &bad), Some(REVOKED));
    assert_eq!(verify(&all, &bad).unwrap_err().demand, Demand::Crl);
    assert_eq!(
        alert_of(&config(std::slice::from_ref(&of_middle), false), &good),
        Some(UNKNOWN_CA),
        "the root's is missing"
    );
    assert_eq!(alert_of(&config(std::slice::from_ref(&of_middle), true), &good), None);
    assert_eq!(alert_of(&config(&[of_middle], true), &bad), Some(REVOKED));
    assert_eq!(alert_of(&config(&[middle.crl(&[], -HOUR / 2)], true), &good), Some(EXPIRED));
    let forged = Ca::root("middle").crl(&[], HOUR);
    assert!(verify(&config(&[forged], true), &good).is_err(), "another's key");
}

#[test]
fn bundles_are_taken_whole() {
    let (ca, other) = (Ca::root("example.org"), Ca::root("other.org"));
    let key =
        |ca: &Ca, usage: &str| format!(r#"{{"kty":"EC","crv":"P-256","use":"{usage}","x5c":["{}"]}}"#, encode(&ca.der));
    let bundles = |domains: &str| {
        let source = pem(format!(r#"{{"trust_domains":{{{domains}}}}}"#));
        let trust_bundles = Some(TrustBundles { source, watched_directory: None });
        let spiffe = Some(SpiffeValidator { trust_domains: Vec::new(), trust_bundles });
        CertificateValidationContext { spiffe, ..Default::default() }
    };
    let one = |name: &str, keys: &str| format!(r#""{name}":{{"spiffe_sequence":1,"keys":[{keys}]}}"#);
    let two = format!("{},{}", one("example.org", &key(&ca, "x509-svid")), one("other.org", ""));
    let config = bundles(&two);
    assert_eq!(alert_of(&config, &ca.leaf(|_| ())), None);
    let theirs = other.leaf(|params| params.subject_alt_names = uris(&["spiffe://other.org/a"]));
    assert_eq!(alert_of(&config, &theirs), Some(UNKNOWN_CA), "a bundle of nothing trusts nothing");
    let verifier = compile(&config);
    assert_eq!(verifier.authorities().len(), 1);
    assert_eq!(verifier.authorities()[0].trust_domain.as_deref(), Some("example.org"));
    assert_eq!(verifier.trust_domains().count(), 2);
    assert_eq!(alert_of(&bundles(&one("example.org", &key(&ca, "jwt-svid"))), &ca.leaf(|_| ())), Some(UNKNOWN_CA));

    let twice = format!("{0},{0}", one("example.org", &key(&ca, "x509-svid")));
    let no_certificate = one("example.org", r#"{"kty":"EC","use":"x509-svid"}"#);
    let garbage = one("example.org", r#"{"kty":"EC","use":"x509-svid","x5c":["AAAA"]}"#);
    for bad in [&twice, &no_certificate, &garbage, &one("Example.org", ""), "\"a\":1", "{"] {
        let mut cx = Context::new();
        assert!(Verifier::compile(&bundles(bad), &mut cx).is_none() && cx.has_problems(), "{bad}");
    }
}

#[test]
fn work_is_bounded() {
    let root = Ca::root("root");
    let mut last = root.below("0", |_| ());
    for i in 1..100 {
        last = last.below(&i.to_string(), |_| ());
    }
    let long = last.leaf(|_| ());
    // A hundred that might each have issued the leaf.
    let alike: Vec<_> = (0..100).map(|_| Ca::root("alike")).collect();
    let mut issued = alike[0].leaf(|_| ());
    issued.chain.extend(alike.iter().skip(1).map(|ca| ca.der.clone()));
    for issued in [&long, &issued] {
        let config = trusting(&root);
        let verifier = compile(&config);
        let chain: Vec<_> = issued.chain.iter().map(|der| CertificateDer::from(&**der)).collect();
        let best = (0..5).map(|_| {
            let start = Instant::now();
            assert!(verifier.verify(Peer::Client, &chain[0], &chain[1..], None, UnixTime::now()).is_err());
            start.elapsed()
        });
        let best = best.min().unwrap();
        // Unoptimised parsing is many times slower.
        let limit = if cfg!(debug_assertions) { 100 } else { 10 };
        assert!(best < Duration::from_millis(limit), "{best:?}");
    }
}

#[test]
fn mutations_are_refused_without_a_panic() {
    let ca = Ca::root("example.org");
    let issued = ca.below("middle", |_| ()).leaf(|_| ());
    let verifier = compile(&CertificateValidationContext { sans: vec![ids()], ..trusting(&ca) });
    let mut random = fastrand::Rng::with_seed(7);
    let mut mutate = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..bytes.len());
            match random.u8(..4) {
                0 => bytes[at] = random.u8(..),
                1 => bytes[at] ^= 1 << random.u8(..8),
                2 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, random.u8(..)),
            }
        }
        bytes
    };
    let (crl, json) = (
        ca.crl(&[&issued], HOUR),
        format!(
            r#"{{"trust_domains":{{"a":{{"keys":[{{"kty":"EC","use":"x509-svid","x5c":["{}"]}}]}}}}}}"#,
            encode(&ca.der)
        ),
    );
    for _ in 0..3000 {
        let chain: Vec<_> = issued.chain.iter().map(|der| CertificateDer::from(mutate(der))).collect();
        let _ = verifier.verify(Peer::Client, &chain[0], &chain[1..], None, UnixTime::now());
        let good = CertificateDer::from(&*issued.chain[0]);
        let _ = verifier.verify(Peer::Client, &good, &chain[1..], None, UnixTime::now());
        let (text, lists) = (pem(mutate(ca.pem.as_bytes())), pem(mutate(crl.as_bytes())));
        let config = CertificateValidationContext { trusted_ca: Some(text), crl: Some(lists), ..Default::default() };
        let _ = Verifier::compile(&config, &mut Context::new());
        let _ = bundle::parse(&mutate(json.as_bytes()));
    }
}

#[test]
fn trust_domains_may_have_lists_or_not() {
    let (ca, other) = (Ca::root("example.org"), Ca::root("other.org"));
    let (good, bad) = (ca.leaf(|_| ()), ca.leaf(|_| ()));
    let theirs = other.leaf(|params| params.subject_alt_names = uris(&["spiffe://other.org/a"]));
    let crl = Some(pem(ca.crl(&[&bad], HOUR)));
    let config = CertificateValidationContext { crl, ..spiffe(&[("example.org", &ca), ("other.org", &other)]) };
    assert_eq!(alert_of(&config, &good), None);
    assert_eq!(alert_of(&config, &bad), Some(REVOKED));
    assert_eq!(alert_of(&config, &theirs), None);
}
