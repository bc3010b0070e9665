//! Ten thousand virtual hosts, ten thousand routes: the last is found as fast as the first.

use std::time::{Duration, Instant};
use weft_tests::{Client, Kind, Proxy, free_port, yaml};

/// The shortest of the round trips of many requests: what others do on the machine only makes some of them longer.
fn fastest(port: u16, path: &str, host: &str, answer: &str) -> Duration {
    let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
    let times = (0..300).map(|_| {
        let start = Instant::now();
        let response = client.get(path, &[("host", host)]).expect("a response");
        let took = start.elapsed();
        assert_eq!(response.text(), answer);
        took
    });
    times.min().expect("many")
}

fn direct(text: &str) -> String {
    format!("direct_response: {{status: 200, body: {{inline_string: \"{text}\"}}}}")
}

#[test]
fn the_last_is_found_as_fast_as_the_first() {
    const COUNT: usize = 10_000;
    let (hosts_port, routes_port, suffixes_port) = (free_port(), free_port(), free_port());
    let of = |domain: fn(usize) -> String| {
        let host = |i| {
            format!(
                "{{name: v{i}, domains: [\"{}\"], routes: [{{match: {{prefix: /}}, {}}}]}}",
                domain(i),
                direct(&i.to_string())
            )
        };
        (0..COUNT).map(host).collect::<Vec<_>>().join(", ")
    };
    let routes: Vec<String> = (0..COUNT)
        .map(|i| {
            let kind = if i % 2 == 0 { "path" } else { "prefix" };
            format!("{{match: {{{kind}: /r/{i}/}}, {}}}", direct(&i.to_string()))
        })
        .collect();
    let listeners = [
        yaml::http_listener("hosts", hosts_port, "", &of(|i| format!("h{i}.test"))),
        yaml::http_listener("suffixes", suffixes_port, "", &of(|i| format!("*.s{i}.test"))),
        yaml::http_listener(
            "routes",
            routes_port,
            "",
            &format!("{{name: v, domains: [\"*\"], routes: [{}]}}", routes.join(", ")),
        ),
    ];
    let _proxy = Proxy::start(&Kind::Weft, &yaml::bootstrap(&listeners, &[]));
    let pairs = [
        ("hosts", fastest(hosts_port, "/", "h0.test", "0"), fastest(hosts_port, "/", "h9999.test", "9999")),
        (
            "suffixes",
            fastest(suffixes_port, "/", "a.s0.test", "0"),
            fastest(suffixes_port, "/", "a.s9999.test", "9999"),
        ),
        ("routes", fastest(routes_port, "/r/0/", "a", "0"), fastest(routes_port, "/r/9999/", "a", "9999")),
    ];
    for (what, first, last) in pairs {
        eprintln!("{what}: the first in {first:?}, the last in {last:?}");
        // A walk over ten thousand costs hundreds of microseconds in a build for tests.
        assert!(last < first * 2 + Duration::from_micros(50), "{what}: the first in {first:?}, the last in {last:?}");
    }
}
