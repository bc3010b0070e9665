//! What is said of configurations that are not quite right: in words, with the place, and without what is secret.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::{fs, process::Command};
use weft_tests::{Kind, Proxy, certificate_matrix::Authority, tools, until};

const TYPE: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";

/// A certificate, its key, and an authority.
struct Made {
    chain: String,
    key: String,
    ca: String,
}

impl Made {
    fn new() -> Self {
        let ca = Authority::root("ca");
        let issued = ca.leaf(|_| {});
        Self { chain: issued.chain_pem(), key: issued.key_pem(), ca: ca.pem }
    }

    /// The certificate with its key.
    fn certificate(&self) -> String {
        format!(
            "tls_certificates: [{{certificate_chain: {{inline_string: {:?}}}, private_key: {{inline_string: {:?}}}}}]",
            self.chain, self.key
        )
    }
}

/// What `--mode validate` says of a listener with these fields of a TLS context.
fn said(common: &str, fields: &str) -> String {
    let bootstrap = format!(
        "static_resources: {{listeners: [{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}, \
         filter_chains: [{{transport_socket: {{name: tls, typed_config: {{\"@type\": {TYPE}.DownstreamTlsContext, {fields} \
         common_tls_context: {{{common}}}}}}}, filters: [{{name: e, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo}}}}]}}]}}]}}"
    );
    let mut command = Command::new(tools::binary("weft"));
    let output = command.args(["--mode", "validate", "-l", "trace", "--config-yaml", &bootstrap]).output().unwrap();
    assert!(!output.status.success(), "{common} {fields} is accepted");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn what_is_secret_is_not_repeated() {
    let made = Made::new();
    let (chain, key) = (&made.chain, &made.key);
    let body = key.lines().nth(1).unwrap();
    let (ticket, password) = (STANDARD.encode([7; 80]), "hunter2pw");
    let certificate =
        |key: &str| format!("tls_certificates: [{{certificate_chain: {{inline_string: {chain:?}}}, {key}}}]");
    let good = made.certificate();
    let cases = [
        (certificate(&format!("private_key: {body:?}")), ""),
        (certificate(&format!("private_key: {{{body:?}: 1}}")), ""),
        (certificate(&format!("private_key: {{inline_string: [{key:?}]}}")), ""),
        (certificate(&format!("private_key: {{inline_bytes: {key:?}}}")), ""),
        (certificate(&format!("private_key: {{filename: {key:?}}}")), ""),
        (certificate(&format!("private_key: {{filename: {body:?}}}")), ""),
        (certificate(&format!("private_key: {{environment_variable: {key:?}}}")), ""),
        (certificate(&format!("private_key: {{environment_variable: {body:?}}}")), ""),
        (certificate(&format!("private_key: {{inline_string: {:?}}}", key.replace('\n', ""))), ""),
        (certificate(&format!("private_key: {{inline_string: {:?}}}", &key[..100])), ""),
        (certificate(&format!("private_key: {{inline_string: {key:?}}}, password: {password}")), ""),
        (certificate(&format!("private_key: {{inline_string: {key:?}}}, password: {{filename: {password}}}")), ""),
        (format!("tls_certificates: [{{certificate_chain: {{filename: {key:?}}}, private_key: {{inline_string: x}}}}]"), ""),
        (format!("tls_certificates: [{key:?}]"), ""),
        (format!("tls_certificates: [{{certificate_chain: {{inline_string: {key:?}}}, private_key: {{inline_string: {key:?}}}}}]"), ""),
        (good.clone(), &*format!("session_ticket_keys: {{keys: [{ticket}]}},")),
        (good.clone(), &*format!("session_ticket_keys: {{keys: {ticket}}},")),
        (good.clone(), &*format!("session_ticket_keys: {{keys: [{{inline_bytes: \"{ticket}!\"}}]}},")),
        (good.clone(), &*format!("session_ticket_keys: {{keys: [{{inline_string: {ticket}}}]}},")),
    ]
    .map(|(common, fields)| (common, fields.to_owned()));
    for (common, fields) in cases {
        let said = said(&common, &fields);
        for secret in [&body[30..50], &ticket[..20], password] {
            assert!(!said.contains(secret), "{secret} is repeated: {said}");
        }
    }
}

#[test]
fn problems_say_where_and_what_in_words() {
    let made = Made::new();
    let (chain, key, ca) = (&made.chain, &made.key, &made.ca);
    let good = made.certificate();
    let other = Authority::root("other").leaf(|_| {}).key_pem();
    let directory = std::env::temp_dir().join(format!("weft-messages-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let file = |name: &str, content: &str| {
        let path = directory.join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let half = file("half.pem", &chain[..100]);
    let certificate = |chain: &str, key: &str| {
        format!("tls_certificates: [{{certificate_chain: {{{chain}}}, private_key: {{{key}}}}}]")
    };
    let inline = |pem: &str| format!("inline_string: {pem:?}");
    let trusting = |context: &str| format!("{good}, validation_context: {{{context}}}");
    let spiffe = format!(
        "custom_validator_config: {{name: s, typed_config: {{\"@type\": {TYPE}.SPIFFECertValidatorConfig, trust_domains: \
         [{{name: \"a b\", trust_bundle: {{{}}}}}]}}}}",
        inline(ca)
    );
    let traditional = key.replace("KEY-----\nM", "KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nM");
    let at = "filter_chains[0].transport_socket.typed_config.common_tls_context";
    let cases: &[(String, &[&str])] = &[
        (
            certificate(&format!("filename: {half}"), &inline(key)),
            &["tls_certificates[0].certificate_chain: ", &half, "a PEM block without its end"],
        ),
        (certificate(&inline(""), &inline(key)), &["certificate_chain"]),
        (
            certificate(&inline(chain), &inline(&other)),
            &["tls_certificates[0].private_key: ", "<inline>", "not the key of the first certificate"],
        ),
        (certificate(&inline(chain), &inline(&traditional)), &["private_key", "openssl pkcs8 -topk8"]),
        (
            certificate("filename: /no/such.pem", &inline(key)),
            &["certificate_chain.filename", "/no/such.pem", "cannot be read"],
        ),
        (
            certificate(&inline(chain), "filename: /no/such.key"),
            &["private_key.filename", "/no/such.key", "cannot be read"],
        ),
        (
            trusting(&format!("trusted_ca: {{filename: {half}}}")),
            &[".common_tls_context.validation_context.trusted_ca: ", &half, "certificate 0: ", "without its end"],
        ),
        (
            trusting(&format!("trusted_ca: {{{}}}", inline("#"))),
            &[".common_tls_context.validation_context.trusted_ca: ", "<inline>", "no PEM certificate"],
        ),
        (trusting(&spiffe), &[".validation_context.custom_validator_config.typed_config.trust_domains[0].name: "]),
        (
            "tls_certificate_sds_secret_configs: [{name: nosuch}]".into(),
            &["common_tls_context.tls_certificate_sds_secret_configs[0].name: Unknown static secret: nosuch"],
        ),
        (
            format!("{good}, validation_context_sds_secret_config: {{name: nosuch}}"),
            &["common_tls_context.validation_context_sds_secret_config.name: Unknown static secret: nosuch"],
        ),
        (
            trusting(&format!(
                "trusted_ca: {{{}}}, match_typed_subject_alt_names: [{{matcher: {{exact: a}}}}]",
                inline(ca)
            )),
            &["match_typed_subject_alt_names[0].san_type", "EMAIL, DNS, URI, IP_ADDRESS, OTHER_NAME"],
        ),
        (
            format!("{good}, tls_params: {{ecdh_curves: [P-999]}}"),
            &["ecdh_curves[0]", "X25519MLKEM768, X25519, P-256, P-384"],
        ),
    ];
    for (common, parts) in cases {
        let said = said(common, "");
        let problems: Vec<&str> = said.lines().filter(|line| line.contains("common_tls_context")).collect();
        assert_eq!(problems.len(), 1, "one problem: {said}");
        assert!(problems[0].contains(at), "{said}");
        for part in *parts {
            assert!(problems[0].contains(part), "{part:?} is missing: {said}");
        }
        for inner in ["KeyMismatch", "SectionEnd", "[67", "InvalidCharacter"] {
            assert!(!said.contains(inner), "{said}");
        }
    }
    let tickets = said(&good, "session_ticket_keys_sds_secret_config: {name: nosuch},");
    assert!(tickets.contains("typed_config.session_ticket_keys_sds_secret_config.name: Unknown static"), "{tickets}");
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn unknown_fields_of_files_are_let_pass_or_refused_as_by_envoy() {
    let clusters = |nope: &str| {
        format!(
            "resources: [{{\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: c, {nope}connect_timeout: 1s}}]\n"
        )
    };
    let observe = |kind: &Kind, flag: &[&str]| {
        let directory = std::env::temp_dir().join(format!("weft-unknown-{}-{}", std::process::id(), flag.len()));
        fs::create_dir_all(&directory).unwrap();
        let (file, next) = (directory.join("cds.yaml"), directory.join("next.yaml"));
        fs::write(&file, clusters("nope: 1, nothing: {a: 2}, ")).unwrap();
        let bootstrap = format!(
            "node: {{id: test, cluster: test}}\ndynamic_resources: {{cds_config: {{resource_api_version: V3, path_config_source: \
             {{path: {}}}}}}}\n",
            file.display()
        );
        let proxy = Proxy::begin(kind, &bootstrap, flag);
        let counted = || {
            ["update_success", "update_rejected", "update_failure"]
                .map(|name| proxy.stat(&format!("cluster_manager.cds.{name}")).unwrap_or_default())
        };
        let wait = |count| until("the file to be read", || (counted().iter().sum::<u64>() == count).then_some(()));
        wait(1);
        let first = (counted(), proxy.stat("server.dynamic_unknown_fields"));
        fs::write(&next, clusters("")).unwrap();
        fs::rename(&next, &file).unwrap();
        wait(2);
        let seen = (first, counted(), proxy.stat("server.dynamic_unknown_fields"));
        fs::remove_dir_all(directory).unwrap();
        (seen, proxy.log())
    };
    let Some(envoy) = tools::envoy() else { return };
    let (envoy, flags) =
        (Kind::Envoy(envoy), [&[][..], &["--reject-unknown-dynamic-fields"], &["--ignore-unknown-dynamic-fields"]]);
    for flag in flags {
        let ((theirs, _), (ours, log)) = (observe(&envoy, flag), observe(&Kind::Weft, flag));
        assert_eq!(ours, theirs, "left: Weft, right: Envoy, {flag:?}");
        let is_silent = flag == flags[2];
        assert_eq!(log.contains("resources[0].nope"), !is_silent, "{flag:?}: {log}");
    }
}
