//! HTTP filters that ask who a request is of, beside Envoy: ext_authz over HTTP, jwt_authn.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};
use weft_tests::{Client, Proxy, Reply, Response, Upstream, differential, free_port, until, yaml};

const EX: &str = "type.googleapis.com/envoy.extensions.filters.http";
const LOG: &str = "access_log: [{name: stderr, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.\
                   access_loggers.stream.v3.StderrAccessLog, log_format: {text_format_source: {inline_string: \"LOG \
                   %REQ(:path)% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% \
                   %DYNAMIC_METADATA(envoy.filters.http.jwt_authn)%\\n\"}}}}]";

fn listener(name: &str, port: u16, filter: &str, host: &str) -> String {
    yaml::http_listener(name, port, LOG, &format!("{{name: v, domains: [\"*\"], {host}}}"))
        .replacen("http_filters: [", &format!("http_filters: [{filter}, "), 1)
        .replacen("stat_prefix: http", &format!("stat_prefix: {name}"), 1)
}

fn ask(port: u16, request: &str) -> Response {
    let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
    client.send(request);
    client.response().expect("a response")
}

fn get(port: u16, path: &str, headers: &str) -> Response {
    ask(port, &format!("GET {path} HTTP/1.1\r\nhost: a.test\r\n{headers}connection: close\r\n\r\n"))
}

/// Without what differs from run to run.
fn steady(response: &Response) -> (u16, Vec<(String, String)>, String) {
    let varies = ["date", "x-envoy-upstream-service-time"];
    let mut headers: Vec<_> = response.headers.iter().filter(|(n, _)| !varies.contains(&n.as_str())).cloned().collect();
    headers.sort();
    (response.status, headers, response.text())
}

/// Line, headers and body of a request.
type Request = (String, Vec<(String, String)>, Vec<u8>);

fn seen(upstream: &Upstream) -> Vec<Request> {
    let usual = ["x-request-id", "x-forwarded-for", "x-envoy-expected-rq-timeout-ms", "x-envoy-internal"];
    let headers = |headers: Vec<(String, String)>| {
        let mut headers: Vec<_> = headers.into_iter().filter(|(n, _)| !usual.contains(&n.as_str())).collect();
        headers.sort();
        headers
    };
    upstream.take().into_iter().map(|seen| (seen.line, headers(seen.headers), seen.body)).collect()
}

fn stats(proxy: &Proxy, part: &str) -> Vec<String> {
    let page = proxy.page("/stats");
    page.lines().filter(|line| line.contains(part) && !line.ends_with(": 0")).map(str::to_owned).collect()
}

#[test]
fn an_http_service_decides_as_with_envoy() {
    let upstream = Upstream::named("ok");
    let service = Upstream::start(|seen| {
        let status = seen.header("x-status").and_then(|status| status.parse().ok()).unwrap_or(200);
        let names = ["x-up", "x-app", "x-cl", "x-other", "www-authenticate", "location", "content-type"];
        let mut headers: Vec<_> = names.map(|name| (name.to_owned(), "authz".to_owned())).into();
        headers.extend([("set-cookie".into(), "a=1".into()), ("set-cookie".into(), "b=2".into())]);
        headers.push(("x-envoy-auth-headers-to-remove".into(), "x-gone, x-gone2".into()));
        Reply::Message(status, headers, b"from authz".to_vec())
    });
    let pattern = |names: &[&str]| {
        let all: Vec<_> = names.iter().map(|name| format!("{{exact: {name}}}")).collect();
        format!("{{patterns: [{}]}}", all.join(", "))
    };
    let config = |http: &str, fields: &str| {
        format!(
            "{{name: ea, typed_config: {{\"@type\": {EX}.ext_authz.v3.ExtAuthz, transport_api_version: V3, \
             http_service: {{server_uri: {{uri: \"http://authz.local:90\", cluster: authz, timeout: 5s}}, {http}}}, {fields}}}}}"
        )
    };
    let lists = format!(
        "path_prefix: /check, authorization_request: {{headers_to_add: [{{key: x-added, value: '1'}}]}}, \
         authorization_response: {{allowed_upstream_headers: {}, allowed_upstream_headers_to_append: {}, \
         allowed_client_headers: {}, allowed_client_headers_on_success: {}}}",
        pattern(&["x-up"]),
        pattern(&["x-app"]),
        pattern(&["x-cl"]),
        pattern(&["x-cl", "set-cookie"]),
    );
    let allowed = format!("allowed_headers: {}", pattern(&["x-status", "x-app"]));
    let filters = [
        config(&lists, &allowed),
        config("", &format!("{allowed}, failure_mode_allow: true, failure_mode_allow_header_add: true")),
        config(
            "path_override: /always",
            &format!(
                "{allowed}, status_on_error: {{code: 503}}, with_request_body: {{max_request_bytes: 5, allow_partial_message: true}}"
            ),
        ),
        config("", &format!("{allowed}, with_request_body: {{max_request_bytes: 5}}, stat_prefix: own")),
    ];
    let ports = [0; 4].map(|_| free_port());
    let host = format!(
        "routes: [{{match: {{prefix: /off}}, route: {{cluster: u}}, typed_per_filter_config: {{ea: {{\"@type\": \
         {EX}.ext_authz.v3.ExtAuthzPerRoute, disabled: true}}}}}}, {{match: {{prefix: /d}}, direct_response: {{status: 204}}}}, \
         {{match: {{prefix: /}}, route: {{cluster: u}}}}]"
    );
    let config = || {
        let all = filters.iter().zip(ports).enumerate();
        let all: Vec<_> = all.map(|(i, (filter, port))| listener(&format!("l{i}"), port, filter, &host)).collect();
        yaml::bootstrap(&all, &[yaml::cluster("u", upstream.port()), yaml::cluster("authz", service.port())])
    };
    differential(config, |proxy| {
        let mut answers = Vec::new();
        for port in ports {
            for path in ["/x?q=1", "/off", "/d"] {
                for status in ["200", "201", "302", "401", "403", "500", "503"] {
                    let headers =
                        format!("x-status: {status}\r\nx-up: c\r\nx-app: c\r\nx-gone: 1\r\nauthorization: a\r\n");
                    answers.push((path, status, steady(&get(port, path, &headers))));
                }
            }
            for body in ["abc", "abcde", "abcdef"] {
                let n = body.len();
                let request =
                    format!("POST /p HTTP/1.1\r\nhost: a\r\ncontent-length: {n}\r\nconnection: close\r\n\r\n{body}");
                answers.push(("/p", body, steady(&ask(port, &request))));
            }
        }
        (answers, seen(&upstream), seen(&service), stats(proxy, "ext_authz"))
    });
}

/// A key that signs, and what verifies.
struct Key {
    pair: EcdsaKeyPair,
    kid: &'static str,
}

impl Key {
    fn new(kid: &'static str) -> Self {
        Self { pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"), kid }
    }

    fn jwk(&self) -> String {
        let point = self.pair.public_key().as_ref();
        let (x, y) = (BASE64.encode(&point[1..33]), BASE64.encode(&point[33..]));
        format!(r#"{{"kty":"EC","crv":"P-256","alg":"ES256","kid":"{}","x":"{x}","y":"{y}"}}"#, self.kid)
    }

    fn token(&self, claims: &str) -> String {
        let head = format!(r#"{{"alg":"ES256","typ":"JWT","kid":"{}"}}"#, self.kid);
        let signed = format!("{}.{}", BASE64.encode(head), BASE64.encode(format!("{{{claims}}}")));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("it signs");
        format!("{signed}.{}", BASE64.encode(signature.as_ref()))
    }
}

fn jwt(providers: &str, fields: &str) -> String {
    format!(
        "{{name: jwt, typed_config: {{\"@type\": {EX}.jwt_authn.v3.JwtAuthentication, providers: {{{providers}}}, {fields}}}}}"
    )
}

#[test]
fn tokens_are_judged_as_by_envoy() {
    let upstream = Upstream::named("ok");
    let (a, b) = (Key::new("a"), Key::new("b"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("later").as_secs();
    let local = |key: &Key| format!("local_jwks: {{inline_string: '{{\"keys\":[{}]}}'}}", key.jwk());
    let providers = format!(
        "pa: {{issuer: A, audiences: [\"https://me/\"], {}, payload_in_metadata: pay, header_in_metadata: head, \
         forward_payload_header: x-payload, claim_to_headers: [{{header_name: x-sub, claim_name: sub}}, {{header_name: x-deep, \
         claim_name: deep.a}}], normalize_payload_in_metadata: {{space_delimited_claims: [scope]}}}}, \
         pb: {{issuer: B, {}, forward: true, require_expiration: true, max_lifetime: 7200s, from_headers: [{{name: x-b, value_prefix: \"T \"}}], \
         from_params: [tok], from_cookies: [ck], pad_forward_payload_header: true, forward_payload_header: x-pb, jwt_cache_config: {{}}}}",
        local(&a),
        local(&b)
    );
    let rules = "rules: [{match: {prefix: /free}}, {match: {prefix: /a}, requires: {provider_name: pa}}, {match: {prefix: /b}, \
                 requires: {provider_name: pb}}, {match: {prefix: /any}, requires: {requires_any: {requirements: [{provider_name: pa}, \
                 {provider_name: pb}]}}}, {match: {prefix: /all}, requires: {requires_all: {requirements: [{provider_name: pa}, \
                 {provider_name: pb}]}}}, {match: {prefix: /anymiss}, requires: {allow_missing: {}}}, {match: {prefix: /maybe}, requires: \
                 {requires_any: {requirements: [{provider_name: pa}, {allow_missing: {}}]}}}, {match: {prefix: /lenient}, requires: \
                 {allow_missing_or_failed: {}}}, {match: {prefix: /missing}, requires: {allow_missing: {}}}, {match: {prefix: /aud}, requires: \
                 {provider_and_audiences: {provider_name: pa, audiences: [you]}}}]";
    let ports = [0; 2].map(|_| free_port());
    let host = "routes: [{match: {prefix: /}, route: {cluster: u}}]";
    let config = || {
        let listeners = [
            listener("a", ports[0], &jwt(&providers, rules), host),
            listener("b", ports[1], &jwt(&providers, &format!("{rules}, strip_failure_response: true")), host),
        ];
        yaml::bootstrap(&listeners, &[yaml::cluster("u", upstream.port())])
    };
    let good = format!(
        "\"exp\":{},\"aud\":[\"me\",\"other\"],\"sub\":\"ann\",\"deep\":{{\"a\":1.5}},\"scope\":\"r w\"",
        now + 3600
    );
    let (ta, tb) = (a.token(&format!("\"iss\":\"A\",{good}")), b.token(&format!("\"iss\":\"B\",{good}")));
    let expired = a.token(&format!("\"iss\":\"A\",\"exp\":{},\"aud\":\"me\"", now - 100));
    let skewed = a.token(&format!("\"iss\":\"A\",\"exp\":{},\"aud\":\"me\"", now - 20));
    let you = a.token(&format!("\"iss\":\"A\",\"exp\":{},\"aud\":\"you\"", now + 100));
    let forever = b.token("\"iss\":\"B\"");
    let forged = b.token(&format!("\"iss\":\"A\",{good}"));
    let requests = [
        String::new(),
        format!("authorization: Bearer {ta}\r\n"),
        format!("authorization: Bearer {ta}\r\nx-sub: forged\r\nx-payload: forged\r\nx-pb: forged\r\n"),
        format!("x-b: T {tb}\r\n"),
        format!("cookie: ck={tb}; d=1\r\n"),
        format!("authorization: Bearer {ta}\r\nx-b: T {tb}\r\n"),
        format!("authorization: Bearer {tb}\r\n"),
        format!("authorization: Bearer {expired}\r\n"),
        format!("authorization: Bearer {skewed}\r\n"),
        format!("authorization: Bearer {you}\r\n"),
        format!("authorization: Bearer {forged}\r\n"),
        format!("x-b: T {forever}\r\n"),
        "authorization: Bearer nonsense\r\n".to_owned(),
        "x-b: x\r\n".to_owned(),
    ];
    differential(config, |proxy| {
        let mut answers = Vec::new();
        for port in ports {
            for path in ["/free", "/a", "/b", "/any", "/all", "/maybe", "/lenient", "/missing", "/aud", "/other"] {
                for headers in &requests {
                    answers.push((path, headers.clone(), steady(&get(port, path, headers))));
                }
            }
            answers.push(("param", String::new(), steady(&get(port, &format!("/b?x=1&tok={tb}&y=2"), ""))));
            answers.push(("param", String::new(), steady(&get(port, &format!("/a?access_token={ta}"), ""))));
        }
        let logs = proxy.log_lines(answers.len());
        (answers, seen(&upstream), logs, stats(proxy, "jwt_authn"))
    });
}

#[test]
fn users_and_passwords_are_tested_alike() {
    let upstream = Upstream::named("ok");
    let port = free_port();
    // ann:secret and bob:b
    let users = "ann:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\\nbob:{SHA}6dcfXufJLW3J6S/9rRe4vUlBj5g=";
    let message = |name: &str, fields: &str| format!("{{\"@type\": {EX}.basic_auth.v3.{name}, {fields}}}");
    let own = message("BasicAuth", &format!("users: {{inline_string: \"{users}\"}}, forward_username_header: x-user"));
    let of_route = message("BasicAuthPerRoute", "users: {inline_string: \"zoe:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\"}");
    let host = format!(
        "routes: [{{match: {{prefix: /r}}, route: {{cluster: u}}, typed_per_filter_config: {{ba: {of_route}}}}}, {{match: {{prefix: /}}, \
         route: {{cluster: u}}}}]"
    );
    let filter = format!("{{name: ba, typed_config: {own}}}");
    let config = || yaml::bootstrap(&[listener("a", port, &filter, &host)], &[yaml::cluster("u", upstream.port())]);
    differential(config, |proxy| {
        let plain =
            |text: &str| format!("authorization: Basic {}\r\n", base64::engine::general_purpose::STANDARD.encode(text));
        let requests = [
            String::new(),
            plain("ann:secret"),
            plain("ann:secret").trim_end().trim_end_matches('=').to_owned() + "\r\nx-user: root\r\n",
            plain("ann:no"),
            plain("zed:secret"),
            plain("zoe:secret"),
            plain("ann"),
            "authorization: Basic !!\r\n".to_owned(),
            "authorization: basic YW5uOnNlY3JldA==\r\n".to_owned(),
            "authorization: Bearer x\r\n".to_owned(),
        ];
        let mut answers = Vec::new();
        for headers in &requests {
            answers.extend(["/x?q=1", "/r"].map(|path| steady(&get(port, path, headers))));
        }
        (answers, seen(&upstream), proxy.log_lines(requests.len() * 2), stats(proxy, "basic_auth"))
    });
}

#[test]
fn keys_are_fetched_once_and_again_when_they_are_too_old() {
    let upstream = Upstream::named("ok");
    let keys = Arc::new([Key::new("first"), Key::new("second")]);
    let current = Arc::new(AtomicUsize::new(0));
    let server = {
        let (keys, current) = (keys.clone(), current.clone());
        Upstream::start(move |_| match keys.get(current.load(Relaxed)) {
            Some(key) => Reply::text(&format!("{{\"keys\":[{}]}}", key.jwk())),
            None => Reply::text("no keys"),
        })
    };
    let port = free_port();
    let provider = "p: {remote_jwks: {http_uri: {uri: \"http://keys.test/keys?x=1\", cluster: keys, timeout: 2s}, cache_duration: 1s}}";
    let rules = "rules: [{match: {prefix: /}, requires: {provider_name: p}}]";
    let host = "routes: [{match: {prefix: /}, route: {cluster: u}}]";
    let config = || {
        current.store(0, Relaxed);
        let clusters = [yaml::cluster("u", upstream.port()), yaml::cluster("keys", server.port())];
        yaml::bootstrap(&[listener("a", port, &jwt(provider, rules), host)], &clusters)
    };
    differential(config, |proxy| {
        let go = |n: usize| steady(&get(port, "/", &format!("authorization: Bearer {}\r\n", keys[n].token(""))));
        let mut answers = vec![steady(&get(port, "/", "")), go(0), go(0), go(1)];
        let asked: Vec<_> =
            server.take().into_iter().map(|seen| (seen.line.clone(), seen.header("host").map(str::to_owned))).collect();
        current.store(1, Relaxed);
        until("the new key", || (go(1).0 == 200).then_some(()));
        answers.push(go(0));
        current.store(2, Relaxed);
        until("no key at all", || (go(1).0 == 401).then_some(()));
        answers.push(go(1));
        let failed = proxy.stat("http.a.jwt_authn.jwks_fetch_failed") > Some(0);
        let _ = (server.take(), upstream.take());
        (answers, asked, failed)
    });
}
