//! Which host gets a request, beside Envoy: the same one where a key decides, as many requests each where chance does.

use std::collections::BTreeMap;
use weft_tests::{Client, Proxy, Upstream, both, differential, free_port, until, yaml};

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

fn upstreams() -> Vec<Upstream> {
    NAMES.into_iter().map(Upstream::named).collect()
}

/// One endpoint; `fields` are the `LbEndpoint`'s, `own` the endpoint's.
fn endpoint(upstream: &Upstream, fields: &str, own: &str) -> String {
    format!(
        "{{{fields} endpoint: {{{own} address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}",
        upstream.port()
    )
}

/// A cluster of localities, each with its fields and endpoints.
fn cluster(name: &str, fields: &str, localities: &[(&str, Vec<String>)]) -> String {
    let localities: Vec<_> = localities
        .iter()
        .map(|(fields, endpoints)| format!("{{{fields} lb_endpoints: [{}]}}", endpoints.join(", ")))
        .collect();
    format!(
        "{{name: {name}, connect_timeout: 1s, {fields} load_assignment: {{cluster_name: {name}, endpoints: [{}]}}}}",
        localities.join(", ")
    )
}

/// A cluster of all upstreams with the same fields, in one locality.
fn plain(name: &str, fields: &str, upstreams: &[Upstream]) -> String {
    cluster(name, fields, &[("", upstreams.iter().map(|upstream| endpoint(upstream, "", "")).collect())])
}

/// A virtual host with a route `/NAME` for each cluster, which also has `fields`.
fn routes(clusters: &[&str], fields: &str) -> String {
    let route = |name: &&str| format!("{{match: {{prefix: /{name}}}, route: {{cluster: {name}, {fields}}}}}");
    host(&clusters.iter().map(route).collect::<Vec<_>>())
}

fn host(routes: &[String]) -> String {
    format!("{{name: v, domains: [\"*\"], routes: [{}]}}", routes.join(", "))
}

/// Who answers each of the requests, on one connection.
fn answers(port: u16, requests: impl Iterator<Item = (String, Vec<(&'static str, String)>)>) -> Vec<String> {
    let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
    requests
        .map(|(path, headers)| {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let response = client.get(&path, &headers).expect("an answer");
            if response.status == 200 { response.text() } else { response.status.to_string() }
        })
        .collect()
}

fn keys(path: &str) -> impl Iterator<Item = (String, Vec<(&'static str, String)>)> + use<> {
    let path = path.to_owned();
    (0..200).map(move |i| (path.clone(), vec![("x-key", format!("key-{i}"))]))
}

fn counts(answers: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    answers.iter().for_each(|who| *counts.entry(who.as_str()).or_default() += 1);
    counts
}

const HEADER: &str = "hash_policy: [{header: {header_name: x-key}}]";

fn policy(name: &str, fields: &str) -> String {
    let (package, message) = name.split_once('.').expect("a package and a message");
    format!(
        "load_balancing_policy: {{policies: [{{typed_extension_config: {{name: p, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.load_balancing_policies.{package}.v3.{message}, {fields}}}}}}}]}},"
    )
}

#[test]
fn a_key_goes_to_the_same_host() {
    let up = upstreams();
    let each = |fields: &dyn Fn(usize) -> String, own: &dyn Fn(usize) -> String| {
        up.iter().enumerate().map(|(i, u)| endpoint(u, &fields(i), &own(i))).collect::<Vec<_>>()
    };
    let none = |_: usize| String::new();
    let weighted = |i: usize| format!("load_balancing_weight: {},", i + 1);
    let by_key = |i: usize| format!("metadata: {{filter_metadata: {{envoy.lb: {{hash_key: \"host-{}\"}}}}}},", i / 2);
    let named = |i: usize| format!("hostname: host-{i},");
    let sick = |i: usize| if i == 1 || i == 4 { "health_status: UNHEALTHY,".to_owned() } else { String::new() };
    let (ring, maglev) = ("lb_policy: RING_HASH,", "lb_policy: MAGLEV,");
    let zones = || {
        let all = each(&weighted, &none);
        let (first, second) = all.split_at(2);
        vec![
            ("locality: {zone: z2}, load_balancing_weight: 3,", first.to_vec()),
            ("locality: {zone: z1}, load_balancing_weight: 1,", second.to_vec()),
        ]
    };
    let of = |name: &str, fields: &str, endpoints: Vec<String>| cluster(name, fields, &[("", endpoints)]);
    let murmur = format!("{ring} ring_hash_lb_config: {{hash_function: MURMUR_HASH_2, minimum_ring_size: 100}},");
    let capped = format!("{ring} ring_hash_lb_config: {{minimum_ring_size: 3, maximum_ring_size: 4}},");
    let by_name = "consistent_hashing_lb_config: {use_hostname_for_hashing: true}";
    let by_locality = "common_lb_config: {locality_weighted_lb_config: {}},";
    let subset = "lb_subset_config: {fallback_policy: ANY_ENDPOINT, subset_selectors: [{keys: [hash_key]}]},";
    let clusters = [
        of("ring", ring, each(&none, &none)),
        of("ring-weighted", ring, each(&weighted, &none)),
        of("ring-murmur", &murmur, each(&weighted, &none)),
        of("ring-capped", &capped, each(&none, &none)),
        of("ring-keys", ring, each(&by_key, &none)),
        of("ring-names", &policy("ring_hash.RingHash", by_name), each(&none, &named)),
        of("ring-sick", ring, each(&sick, &none)),
        cluster("ring-zones", &format!("{ring} {by_locality}"), &zones()),
        of("maglev", maglev, each(&none, &none)),
        of("maglev-weighted", maglev, each(&weighted, &none)),
        of("maglev-small", &format!("{maglev} maglev_lb_config: {{table_size: 101}},"), each(&none, &none)),
        of("maglev-names", &policy("maglev.Maglev", by_name), each(&none, &named)),
        of("maglev-sick", maglev, each(&sick, &none)),
        cluster("maglev-zones", &format!("{maglev} {by_locality}"), &zones()),
        of("maglev-subset", &format!("{maglev} {subset}"), each(&by_key, &none)),
        of("ring-extension", &policy("ring_hash.RingHash", "minimum_ring_size: 50"), each(&weighted, &none)),
        cluster(
            "two",
            ring,
            &[("priority: 0,", each(&sick, &none)[..3].to_vec()), ("priority: 1,", each(&none, &none)[3..].to_vec())],
        ),
    ];
    let names: Vec<&str> = clusters.iter().filter_map(|text| text[7..].split(',').next()).collect();
    let port = free_port();
    let config = || yaml::bootstrap(&[yaml::http_listener("l", port, "", &routes(&names, HEADER))], &clusters);
    let observe = |_: &Proxy| names.iter().map(|name| answers(port, keys(&format!("/{name}")))).collect::<Vec<_>>();
    let Some((ours, theirs)) = both(config, observe) else { return };
    let differ: Vec<_> = (names.iter().zip(ours.iter().zip(&theirs)))
        .map(|(name, (ours, theirs))| (name, ours.iter().zip(theirs).filter(|(a, b)| a != b).count()))
        .filter(|(_, count)| *count > 0)
        .collect();
    assert!(differ.is_empty(), "of 200 keys each: {differ:?}");
}

#[test]
fn what_a_request_hashes_to() {
    let up = upstreams();
    let port = free_port();
    let of = |name: &str, policies: &str| {
        format!("{{match: {{prefix: /{name}/}}, route: {{cluster: u, hash_policy: [{policies}]}}}}")
    };
    let rewrite = "regex_rewrite: {pattern: {regex: \"-.*\"}, substitution: \"\"}";
    let (key, other) = ("{header: {header_name: x-key}}", "{header: {header_name: x-other}}");
    let routes = [
        of("header", key),
        of("path", "{header: {header_name: \":path\"}}"),
        of("host", "{header: {header_name: Host}}"),
        of("rewritten", &format!("{{header: {{header_name: x-key, {rewrite}}}}}")),
        of("cookie", "{cookie: {name: sid}}"),
        of("query", "{query_parameter: {name: q}}"),
        of("source", "{connection_properties: {source_ip: true}}"),
        of("both", &format!("{key}, {other}")),
        of("terminal", &format!("{{header: {{header_name: x-key}}, terminal: true}}, {other}")),
    ];
    let requests = || {
        let header = |name: &'static str, i: usize| (name, format!("{}-{i}", i % 40));
        (0..60).flat_map(move |i| {
            [
                ("/header/".to_owned(), vec![("x-key", format!("b{i}")), ("x-key", "a".to_owned())]),
                (format!("/path/{i}?x=1"), vec![]),
                ("/host/".to_owned(), vec![]),
                ("/rewritten/".to_owned(), vec![header("x-key", i)]),
                ("/cookie/".to_owned(), vec![("cookie", format!("a=1; sid=\"{i}\"; b=2"))]),
                (format!("/query/?a=1&q={i}%20&q=other"), vec![]),
                ("/source/".to_owned(), vec![("x-forwarded-for", format!("10.1.2.{i}"))]),
                ("/source/".to_owned(), vec![("x-forwarded-for", format!("2001:db8::{i}"))]),
                ("/both/".to_owned(), vec![header("x-key", i), header("x-other", i)]),
                ("/terminal/".to_owned(), vec![header("x-key", i), ("x-other", "o".to_owned())]),
            ]
        })
    };
    differential(
        || {
            let listener = yaml::http_listener("l", port, "use_remote_address: false", &host(&routes));
            yaml::bootstrap(&[listener], &[plain("u", "lb_policy: MAGLEV,", &up)])
        },
        |_| answers(port, requests()),
    );
}

#[test]
fn cookies_that_are_made() {
    let up = upstreams();
    let port = free_port();
    let of = |name: &str, cookie: &str| {
        format!("{{match: {{prefix: /{name}}}, route: {{cluster: u, hash_policy: [{{cookie: {{{cookie}}}}}]}}}}")
    };
    let routes = [
        of("plain", "name: sid, ttl: 60s, path: /shop"),
        of("session", "name: k, ttl: 0s, attributes: [{name: SameSite, value: Lax}, {name: Secure}]"),
        of("none", "name: sid"),
    ];
    differential(
        || {
            let listener = yaml::http_listener("l", port, "", &host(&routes));
            yaml::bootstrap(&[listener], &[plain("u", "lb_policy: RING_HASH,", &up)])
        },
        |_| {
            let mut seen = Vec::new();
            for path in ["/plain", "/session", "/none"] {
                let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
                let first = client.get(path, &[]).expect("an answer");
                let cookie = first.header("set-cookie").unwrap_or_default().to_owned();
                let (pair, attributes) = cookie.split_once("; ").unwrap_or_default();
                let value = pair.split('"').nth(1).unwrap_or_default().to_owned();
                let name = pair.split('=').next().unwrap_or_default().to_owned();
                let sent = format!("{name}={value}");
                let again = Client::connect(("127.0.0.1", port)).and_then(|mut c| c.get(path, &[("cookie", &sent)]));
                let again = again.expect("an answer");
                // The same for all requests of the connection, and for whoever brings it back.
                let second = client.get(path, &[]).expect("an answer");
                let same = second.header("set-cookie").unwrap_or_default() == cookie;
                let back = cookie.is_empty() || again.text() == first.text();
                seen.push((name, value.len(), attributes.to_owned(), same, back, again.header("set-cookie").is_some()));
            }
            seen
        },
    );
}

#[test]
fn shares_of_zones_and_priorities() {
    let up = upstreams();
    let port = free_port();
    let zone = |name: &str| format!("locality: {{zone: {name}}},");
    let plain = |from: usize, to: usize| up[from..to].iter().map(|u| endpoint(u, "", "")).collect::<Vec<_>>();
    let sick = |i: usize| endpoint(&up[i], "health_status: UNHEALTHY,", "");
    let (z1, z2) = (zone("z1"), zone("z2"));
    let weighted = |name: &str, weight| format!("{} load_balancing_weight: {weight},", zone(name));
    let aware = "common_lb_config: {zone_aware_lb_config: {min_cluster_size: 3}},";
    let clusters = [
        // Half of us are in z1 and a fifth of the hosts: 40 % stays.
        cluster("residual", aware, &[(&z1, plain(0, 1)), (&z2, plain(1, 5))]),
        cluster("direct", aware, &[(&z2, plain(0, 2)), (&z1, plain(2, 5))]),
        cluster("small", "", &[(&z1, plain(0, 1)), (&z2, plain(1, 5))]),
        cluster(
            "weighted",
            "common_lb_config: {locality_weighted_lb_config: {}},",
            &[(&weighted("z1", 1), plain(0, 1)), (&weighted("z2", 3), [plain(1, 2), vec![sick(2)]].concat())],
        ),
        cluster(
            "spill",
            "common_lb_config: {healthy_panic_threshold: {value: 0}},",
            &[("priority: 0,", [plain(0, 1), vec![sick(1), sick(2)]].concat()), ("priority: 1,", plain(3, 6))],
        ),
        cluster("panic", "", &[("", [plain(0, 1), vec![sick(1), sick(2)]].concat())]),
        cluster("local", "", &[(&z1, plain(0, 1)), (&z2, plain(1, 2))]),
    ];
    let names = ["residual", "direct", "small", "weighted", "spill", "panic"];
    let config = || {
        let base = yaml::bootstrap(&[yaml::http_listener("l", port, "", &routes(&names, ""))], &clusters);
        let node = "node: {id: test-node, cluster: test-cluster, locality: {zone: z1}}";
        let base = base.replace("node: {id: test-node, cluster: test-cluster}", node);
        format!("{base}cluster_manager: {{local_cluster_name: local}}\n")
    };
    let observe = |proxy: &Proxy| {
        let of = |name: &str| {
            let path = format!("/{name}");
            let all = answers(port, (0..600).map(|_| (path.clone(), vec![])));
            let counts: BTreeMap<_, _> = counts(&all).into_iter().map(|(who, n)| (who.to_owned(), n)).collect();
            let stat = |stat: &str| proxy.stat(&format!("cluster.{name}.{stat}")).unwrap_or_default();
            until("all are counted", || (stat("upstream_rq_total") == 600).then_some(()));
            let stats = [
                stat("lb_zone_routing_all_directly"),
                stat("lb_zone_routing_sampled") + stat("lb_zone_routing_cross_zone"),
                stat("lb_healthy_panic"),
            ];
            (counts, stats)
        };
        names.map(of)
    };
    let Some((ours, theirs)) = both(config, observe) else { return };
    for (name, ((ours, our_stats), (theirs, their_stats))) in names.iter().zip(ours.into_iter().zip(theirs)) {
        assert_eq!(our_stats, their_stats, "{name}: {ours:?} {theirs:?}");
        let near = |who: &String| {
            let of = |all: &BTreeMap<String, usize>| all.get(who).copied().unwrap_or_default();
            of(&ours).abs_diff(of(&theirs)) <= 75
        };
        assert!(ours.keys().chain(theirs.keys()).all(near), "{name}: {ours:?} {theirs:?}");
        assert!(ours.keys().eq(theirs.keys()), "{name}: {ours:?} {theirs:?}");
    }
}

#[test]
fn subsets() {
    let up = upstreams();
    let port = free_port();
    let values = [
        "stage: prod, v: \"1\"",
        "stage: prod, v: \"2\", default: true",
        "stage: dev, v: 1",
        "stage: dev, v: [\"3\", \"4\"]",
        "v: \"1\"",
        "",
    ];
    let endpoints: Vec<_> = up
        .iter()
        .zip(values)
        .map(|(u, values)| endpoint(u, &format!("metadata: {{filter_metadata: {{envoy.lb: {{{values}}}}}}},"), ""))
        .collect();
    let child = "subset_lb_policy: {policies: [{typed_extension_config: {name: rr, typed_config: {\"@type\": \
                 type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin}}}]}";
    let both_keys = "{keys: [stage, v]}, {keys: [stage]}";
    let variants = [
        ("none", format!("lb_subset_config: {{subset_selectors: [{both_keys}]}},")),
        ("any", format!("lb_subset_config: {{fallback_policy: ANY_ENDPOINT, subset_selectors: [{both_keys}]}},")),
        (
            "default",
            "lb_subset_config: {fallback_policy: DEFAULT_SUBSET, default_subset: {default: true}, list_as_any: true, \
             subset_selectors: [{keys: [v]}, {keys: [stage, v], fallback_policy: KEYS_SUBSET, fallback_keys_subset: \
             [stage]}, {keys: [stage], fallback_policy: NO_FALLBACK}]},"
                .to_owned(),
        ),
        (
            "panic",
            "lb_subset_config: {fallback_policy: DEFAULT_SUBSET, default_subset: {no: such}, panic_mode_any: true, \
             subset_selectors: [{keys: [v]}]},"
                .to_owned(),
        ),
        (
            "list",
            "lb_subset_config: {metadata_fallback_policy: FALLBACK_LIST, subset_selectors: [{keys: [stage, v]}]},"
                .to_owned(),
        ),
        (
            "redundant",
            policy(
                "subset.Subset",
                &format!("allow_redundant_keys: true, subset_selectors: [{{keys: [v]}}, {both_keys}], {child}"),
            ),
        ),
        ("single", "lb_subset_config: {subset_selectors: [{keys: [v], single_host_per_subset: true}]},".to_owned()),
    ];
    let wanted = [
        "stage: prod",
        "stage: prod, v: \"2\"",
        "stage: prod, v: \"9\"",
        "stage: none",
        "v: \"1\"",
        "v: 1",
        "v: \"3\"",
        "stage: dev, v: \"4\", more: x",
        "stage: dev, fallback_list: [{v: \"8\"}, {v: 1}, {stage: prod, v: \"1\"}]",
        "other: 1",
        "",
    ];
    let routes: Vec<_> = variants
        .iter()
        .flat_map(|(name, _)| {
            wanted.iter().enumerate().map(move |(i, values)| {
                format!(
                    "{{match: {{path: /{name}/{i}}}, route: {{cluster: {name}, metadata_match: {{filter_metadata: \
                     {{envoy.lb: {{{values}}}}}}}}}}}"
                )
            })
        })
        .collect();
    let clusters: Vec<_> =
        variants.iter().map(|(name, fields)| cluster(name, fields, &[("", endpoints.clone())])).collect();
    differential(
        || yaml::bootstrap(&[yaml::http_listener("l", port, "", &host(&routes))], &clusters),
        |proxy| {
            let mut seen = Vec::new();
            for (name, _) in &variants {
                for (i, values) in wanted.iter().enumerate() {
                    let all = answers(port, (0..16).map(|_| (format!("/{name}/{i}"), vec![])));
                    let who = counts(&all).into_keys().collect::<Vec<_>>().join(" ");
                    seen.push(format!("{name}: {values}: {who}"));
                }
                let stat = |stat: &str| proxy.stat(&format!("cluster.{name}.{stat}")).unwrap_or_default();
                for name in ["active", "created", "selected", "fallback", "fallback_panic", "removed"] {
                    seen.push(format!("{name} {}", stat(&format!("lb_subsets_{name}"))));
                }
                seen.push(format!("{}", stat("lb_subsets_single_host_per_subset_duplicate")));
            }
            seen
        },
    );
}

#[test]
fn aggregates() {
    let up = upstreams();
    let port = free_port();
    let of = |from: usize, to: usize, sick: &[usize]| -> Vec<String> {
        let health = |i: usize| if sick.contains(&i) { "health_status: UNHEALTHY," } else { "" };
        (from..to).map(|i| endpoint(&up[i], health(i), "")).collect()
    };
    let no_panic = "common_lb_config: {healthy_panic_threshold: {value: 0}},";
    let aggregate = |name: &str, fields: &str, members: &str| {
        format!(
            "{{name: {name}, connect_timeout: 1s, lb_policy: CLUSTER_PROVIDED, {fields} cluster_type: {{name: \
             envoy.clusters.aggregate, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.clusters.\
             aggregate.v3.ClusterConfig, clusters: [{members}]}}}}}}"
        )
    };
    let clusters = [
        cluster("well", "", &[("", of(0, 2, &[]))]),
        cluster("ill", no_panic, &[("", of(0, 2, &[0, 1]))]),
        cluster("so-so", no_panic, &[("", of(0, 2, &[0])), ("priority: 1,", of(2, 3, &[2]))]),
        cluster("last", no_panic, &[("", of(3, 5, &[]))]),
        cluster("hashed", "lb_policy: MAGLEV,", &[("", of(3, 6, &[]))]),
        aggregate("first", "", "well, last"),
        aggregate("second", no_panic, "ill, missing, last"),
        aggregate("shared", no_panic, "so-so, last"),
        aggregate("keyed", no_panic, "ill, hashed"),
        aggregate("nothing", no_panic, "missing"),
    ];
    let names = ["first", "second", "shared", "keyed", "nothing"];
    let fields = format!(
        "{HEADER}}}, response_headers_to_add: [{{header: {{key: x-cluster, value: \"%UPSTREAM_CLUSTER%\"}}}}], \
         metadata: {{"
    );
    let config = || yaml::bootstrap(&[yaml::http_listener("l", port, "", &routes(&names, &fields))], &clusters);
    differential(config, |proxy| {
        let mut seen = Vec::new();
        for name in names {
            let all = answers(port, keys(&format!("/{name}")));
            let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
            let one = client.get(&format!("/{name}"), &[]).expect("an answer");
            let cluster = one.header("x-cluster").unwrap_or_default().to_owned();
            let shares = counts(&all);
            // Chance decides between hosts: who was there, and where all have the same key.
            let who: Vec<_> = shares.keys().map(ToString::to_string).collect();
            seen.push(format!("{name}: {who:?} {cluster:?}"));
            if name == "keyed" {
                seen.push(format!("{all:?}"));
            }
            if name == "shared" {
                let share = shares.get("b").copied().unwrap_or_default();
                seen.push(format!("70 %: {}", (110..170).contains(&share)));
            }
            let stat = |stat: &str| proxy.stat(&format!("cluster.{name}.{stat}")).unwrap_or_default();
            let stats = ["upstream_rq_total", "upstream_rq_200", "upstream_rq_completed", "upstream_cx_none_healthy"];
            seen.push(format!("{:?}", stats.map(stat)));
        }
        for name in ["well", "last"] {
            let stat = |stat: &str| proxy.stat(&format!("cluster.{name}.{stat}")).unwrap_or_default();
            seen.push(format!("{name} {:?}", ["upstream_rq_200", "upstream_cx_none_healthy"].map(stat)));
            seen.push(format!("{name} total: {}", stat("upstream_rq_total") > 100));
        }
        seen
    });
}

#[test]
fn hosts_that_are_asked_for() {
    let up = upstreams();
    let port = free_port();
    let fallback = "fallback_policy: {policies: [{typed_extension_config: {name: rr, typed_config: {\"@type\": \
                    type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin}}}]}";
    let sources = "override_host_sources: [{header: x-one}, {header: x-two}]";
    let health = |i: usize| if i == 1 { "health_status: UNHEALTHY," } else { "" };
    let endpoints: Vec<_> = up[..5].iter().enumerate().map(|(i, u)| endpoint(u, health(i), "")).collect();
    let fields = policy("override_host.OverrideHost", &format!("{sources}, {fallback}"));
    let at = |i: usize| format!("127.0.0.1:{}", up[i].port());
    let cases = [
        vec![("x-one", at(2))],
        vec![("x-two", at(3))],
        vec![("x-one", at(2)), ("x-two", at(3))],
        vec![("x-one", format!("{},{}", at(4), at(2)))],
        vec![("x-one", format!("10.0.0.1:1, {}", at(2)))],
        vec![("x-one", "nonsense".to_owned())],
        vec![("x-one", at(1))],
        vec![("x-one", at(5))],
        vec![],
    ];
    differential(
        || {
            let cluster = cluster("u", &fields, &[("", endpoints.clone())]);
            yaml::bootstrap(&[yaml::http_listener("l", port, "", &routes(&["u"], ""))], &[cluster])
        },
        |_| {
            let who = |case: &Vec<(&'static str, String)>| {
                let all = answers(port, (0..12).map(|_| ("/u".to_owned(), case.clone())));
                counts(&all).into_keys().collect::<Vec<_>>().join(" ")
            };
            cases.iter().map(who).collect::<Vec<_>>()
        },
    );
}

#[test]
fn weights_by_load_reports() {
    use weft_tests::Reply;
    // a is half as busy as b by its own account, c says nothing.
    let reporting = |name: &'static str, utilization: &'static str| {
        Upstream::start(move |_| {
            let report = format!("TEXT rps_fractional=1000,application_utilization={utilization}");
            let headers =
                if utilization.is_empty() { vec![] } else { vec![("endpoint-load-metrics".to_owned(), report)] };
            Reply::Message(200, headers, name.as_bytes().to_vec())
        })
    };
    let up = [reporting("a", "0.25"), reporting("b", "0.5"), reporting("c", "")];
    let port = free_port();
    let fields = policy(
        "client_side_weighted_round_robin.ClientSideWeightedRoundRobin",
        "blackout_period: 0.2s, weight_update_period: 0.1s",
    );
    let config =
        || yaml::bootstrap(&[yaml::http_listener("l", port, "", &routes(&["u"], ""))], &[plain("u", &fields, &up)]);
    differential(config, |_| {
        let spread = || -> Vec<usize> {
            counts(&answers(port, (0..90).map(|_| ("/u".to_owned(), vec![])))).into_values().collect()
        };
        let first = spread();
        until("weights to be known", || (spread()[0] > 33).then_some(()));
        // c gets the median of 4000 and 2000.
        let then = spread();
        (first, then.iter().zip([40, 20, 30]).all(|(n, want)| n.abs_diff(want) <= 3))
    });
}
