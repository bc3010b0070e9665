//! What RBAC costs a request, in instructions: `cargo bench -p weft-benches --bench rbac`; with `-- --check` it fails where a
//! thousand policies cost more than [`MOST`] instructions over what one costs.
//!
//! The program runs itself under callgrind, once for each case, and counts what is below [`measured`] only: the numbers
//! are the same on every machine of one architecture, whatever else it does.
#![allow(clippy::print_stdout)] // the table is what this program is for

#[path = "measure/callgrind.rs"]
mod callgrind;

use http::{HeaderName, HeaderValue, Method};
use std::{env, process::ExitCode, rc::Rc};
use weft_config::{
    Context,
    rbac::{Rbac, Rules},
};
use weft_control_api::{EncodeOptions, Message as _, encode, envoy::extensions::filters::http::rbac::v3 as pb, yaml};
use weft_proxy::{
    base::{Address, Certificate, ConnectionInfo, TlsConnection},
    http::RequestHead,
    observe::StreamInfo,
    rbac::{Engine, Facts},
};

/// Two microseconds, at two instructions a nanosecond.
const MOST: i64 = 4_000;
const MANY: usize = 1_000;
/// Decisions in one measurement.
const ROUNDS: u64 = 100;

/// Makes a policy's permission and principal of its number.
type Make = fn(usize) -> (String, String);

/// What policies ask for, number by number.
const CASES: [(&str, Make); 6] = [
    ("identity", |i| (ANY.into(), identity(i))),
    ("identity and path", |i| (path("exact", i), identity(i))),
    ("path", |i| (path("exact", i), ANY.into())),
    ("prefix", |i| (path("prefix", i), ANY.into())),
    ("one identity, paths", |i| (path("exact", i), identity(0))),
    ("address", |i| {
        (ANY.into(), format!("{{remote_ip: {{address_prefix: 10.{}.{}.0, prefix_len: 24}}}}", i / 256, i % 256))
    }),
];

const ANY: &str = "{any: true}";

fn identity(i: usize) -> String {
    format!("{{authenticated: {{principal_name: {{exact: 'spiffe://example.org/ns/team/sa/service-{i}'}}}}}}")
}

fn path(kind: &str, i: usize) -> String {
    format!("{{url_path: {{path: {{{kind}: /api/v1/resource-{i}/items}}}}}}")
}

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    if let ["--case", case, "--policies", policies] = words[..] {
        run(case.parse().expect("a number"), policies.parse().expect("a number"));
        return ExitCode::SUCCESS;
    }
    let mut missed = false;
    println!("{:24}{:>12}{:>14}{:>12}", "instructions a decision", "1 policy", "1000 policies", "difference");
    for (i, (name, _)) in CASES.iter().enumerate() {
        let (Some(one), Some(many)) = (count(i, 1), count(i, MANY)) else {
            println!("skipped: there is no valgrind");
            return ExitCode::SUCCESS;
        };
        let more = many as i64 - one as i64;
        let verdict = if more > MOST { "  missed" } else { "" };
        missed |= more > MOST;
        println!("{name:24}{one:>12}{many:>14}{more:>12}{verdict}");
    }
    let check = words.contains(&"--check");
    if check && missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Instructions a decision takes; `None` without valgrind.
fn count(case: usize, policies: usize) -> Option<u64> {
    let case = ["--case", &case.to_string(), "--policies", &policies.to_string()];
    callgrind::count(&case).map(|total| total / ROUNDS)
}

/// The decision about a request that the last policy takes.
fn run(case: usize, policies: usize) {
    let (_, make) = CASES[case];
    let text = (0..policies).map(|i| {
        let (permission, principal) = make(i);
        format!("p{i:04}: {{permissions: [{permission}], principals: [{principal}]}}")
    });
    let text = format!("{{rules: {{policies: {{{}}}}}}}", text.collect::<Vec<_>>().join(", "));
    let last = policies - 1;
    let engine = Engine::new(rules(&text));
    let only = CASES[case].0 == "one identity, paths";
    let info = info(if only { 0 } else { last }, last);
    let mut head = RequestHead::new(Method::GET, format!("/api/v1/resource-{last}/items?page=2"));
    head.headers.insert(HeaderName::from_static("user-agent"), HeaderValue::from_static("bench"));
    let facts = Facts { info: &info, request: Some(&head) };
    assert_eq!(engine.decide(&facts).policy.as_deref(), Some(&*format!("p{last:04}")));
    measured(&engine, &facts);
}

#[inline(never)]
fn measured(engine: &Engine, facts: &Facts<'_>) {
    for _ in 0..ROUNDS {
        std::hint::black_box(engine.decide(std::hint::black_box(facts)));
    }
}

fn rules(text: &str) -> Rules {
    let node = yaml::parse(text).expect("YAML");
    let encoded = encode(node, "envoy.extensions.filters.http.rbac.v3.RBAC", EncodeOptions::default()).expect("rules");
    let p = pb::Rbac::decode(&*encoded.bytes).expect("rules");
    let mut cx = Context::new();
    let rbac = Rbac::from_http(p, &mut cx);
    let (rbac, _) = cx.finish(Some(rbac)).expect("no problems");
    rbac.rules.expect("rules")
}

/// A connection of a client with this identity and address.
fn info(identity: usize, address: usize) -> StreamInfo {
    let mut params = rcgen::CertificateParams::default();
    let uri = format!("spiffe://example.org/ns/team/sa/service-{identity}");
    params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().expect("ASCII"))];
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    let ip = |text: &str| Address::Ip(text.parse().expect("an address"));
    let client = format!("10.{}.{}.7:1234", address / 256, address % 256);
    let mut info = ConnectionInfo::accepted(1, ip("10.200.0.1:443"), ip(&client));
    info.tls = Some(Rc::new(TlsConnection {
        version: "TLSv1.3",
        cipher: "TLS_AES_256_GCM_SHA384",
        group: "X25519MLKEM768",
        session_id: Box::default(),
        alpn: None,
        local: None,
        peer: Certificate::parse(certificate.der()).ok().map(Rc::new),
        peer_chain: std::rc::Rc::default(),
        peer_validated: true,
        resumed: false,
    }));
    StreamInfo::new(Rc::new(info))
}
