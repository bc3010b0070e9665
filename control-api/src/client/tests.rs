//! The engine against scripted responses; `random` runs it against a model of a control plane.

mod delta;
mod random;
mod sotw;

use super::*;
use crate::{
    Any, ResourceType, envoy::config::core::v3::Node, envoy::service::discovery::v3 as discovery, resource::Protocol,
};
use std::time::Instant;

/// An engine with a clock of its own.
struct Client {
    engine: Engine,
    now: Instant,
}

impl Client {
    fn new(protocol: Protocol) -> Self {
        let node = Node { id: "n".into(), ..Default::default() };
        Self::with(Options { protocol, node, ..Default::default() })
    }

    fn with(options: Options) -> Self {
        Self { engine: Engine::new(options), now: Instant::now() }
    }

    fn open(&mut self) {
        self.engine.on_stream_open(self.now);
    }

    fn want(&mut self, kind: ResourceType, names: &[&str]) {
        for name in names {
            self.engine.subscribe(kind, name, None, self.now);
        }
    }

    fn want_all(&mut self, kind: ResourceType) {
        self.engine.subscribe_wildcard(kind, None, self.now);
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.engine.on_timeout(self.now);
    }

    /// All requests that are due, one line each.
    fn sent(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.engine.poll_request(self.now)).map(|r| show(&r)).collect()
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.engine.poll_event()).collect()
    }

    /// The only event that is there, which is an update.
    fn update(&mut self) -> Update {
        match self.events().as_slice() {
            [Event::Update(update)] => update.clone(),
            other => panic!("not one update: {other:?}"),
        }
    }

    fn accept(&mut self, update: &Update) {
        assert!(self.engine.accept(update.resource_type, &update.nonce, self.now));
    }

    fn reject(&mut self, update: &Update, names: &[&str]) {
        let refused = names.iter().map(|n| Refused { name: (*n).to_owned(), message: "is bad".to_owned() }).collect();
        assert!(self.engine.reject(update.resource_type, &update.nonce, Rejection::Resources(refused), self.now));
    }
}

fn show(request: &Request) -> String {
    let (url, node, nonce, error, mut out) = match request {
        Request::StateOfTheWorld(r) => {
            let out = vec![format!("[{}] v={}", r.resource_names.join(","), r.version_info)];
            (&r.type_url, &r.node, &r.response_nonce, &r.error_detail, out)
        }
        Request::Delta(r) => {
            let mut have: Vec<String> =
                r.initial_resource_versions.iter().map(|(name, version)| format!("{name}={version}")).collect();
            have.sort();
            let mut out = Vec::new();
            for (sign, names) in
                [("+", &r.resource_names_subscribe), ("-", &r.resource_names_unsubscribe), ("have ", &have)]
            {
                if !names.is_empty() {
                    out.push(format!("{sign}{}", names.join(",")));
                }
            }
            (&r.type_url, &r.node, &r.response_nonce, &r.error_detail, out)
        }
    };
    out.insert(0, format!("{:?}", ResourceType::of_url(url).expect("a known kind")));
    if !nonce.is_empty() {
        out.push(format!("nonce={nonce}"));
    }
    if let Some(error) = error {
        assert_eq!(error.code, 13);
        out.push(format!("NACK {:?}", error.message));
    }
    if node.is_some() {
        out.push("node".to_owned());
    }
    out.join(" ")
}

/// The requests without the node, which most tests do not look at.
fn plain(lines: Vec<String>) -> Vec<String> {
    lines.into_iter().map(|l| l.trim_end_matches(" node").to_owned()).collect()
}

fn any(kind: ResourceType, name: &str, content: &str) -> Any {
    let mut value = Vec::new();
    crate::wire::put_bytes(&mut value, 1, name.as_bytes());
    crate::wire::put_bytes(&mut value, 28, content.as_bytes());
    Any { type_url: kind.url().to_owned(), value }
}

fn names(update: &Update) -> Vec<&str> {
    update.resources.iter().map(|r| r.name.as_str()).collect()
}

#[test]
fn streams_are_opened_again_after_a_delay() {
    let mut client = Client::new(Protocol::StateOfTheWorld);
    assert_eq!((client.events(), client.engine.poll_timeout()), (vec![], None));
    client.engine.start();
    client.engine.start();
    assert_eq!(client.events(), [Event::Connect]);
    let delay = client.engine.on_stream_closed(client.now);
    assert!(delay < Duration::from_millis(500));
    assert_eq!(client.engine.poll_timeout(), Some(client.now + delay));
    client.now += delay;
    client.engine.on_timeout(client.now);
    assert_eq!(client.events(), [Event::Connect]);
    assert_eq!(client.engine.poll_timeout(), None);
    client.open();
    assert!(client.engine.is_open());
}

#[test]
fn fetches_time_out_once_and_only_without_an_answer() {
    let mut client = Client::new(Protocol::StateOfTheWorld);
    let timeout = Some(Duration::from_secs(15));
    client.engine.subscribe_wildcard(ResourceType::Cluster, timeout, client.now);
    for name in ["came", "refused", "late", "gone"] {
        client.engine.subscribe(ResourceType::Endpoint, name, timeout, client.now);
    }
    client.engine.subscribe(ResourceType::Endpoint, "patient", Some(Duration::ZERO), client.now);
    client.engine.unsubscribe(ResourceType::Endpoint, "gone");
    client.open();
    let resources = ["came", "refused"].map(|n| any(ResourceType::Endpoint, n, "")).to_vec();
    client.engine.on_response(sotw::response(ResourceType::Endpoint, 1, resources), client.now);
    let update = client.update();
    client.reject(&update, &["refused"]);
    client.pass(14);
    assert_eq!(client.events(), []);
    client.pass(1);
    let late = |resource_type, name: Option<&str>| Event::FetchTimeout { resource_type, name: name.map(str::to_owned) };
    assert_eq!(client.events(), [late(ResourceType::Cluster, None), late(ResourceType::Endpoint, Some("late"))]);
    client.pass(100);
    assert_eq!(client.events(), []);
}

#[test]
fn requests_wait_for_tokens() {
    let rate_limit = Some(RateLimitOptions { max_tokens: 1, fill_rate: 1.0 });
    let mut client = Client::with(Options { rate_limit, ..Default::default() });
    client.want_all(ResourceType::Cluster);
    client.want_all(ResourceType::Listener);
    client.open();
    assert_eq!(client.sent().len(), 1);
    assert!(client.engine.poll_timeout().is_some_and(|at| at > client.now));
    assert_eq!(client.engine.pending_requests(), 1);
    client.pass(2);
    assert_eq!(client.sent().len(), 1);
    assert_eq!(client.engine.poll_timeout(), None);
}

#[test]
fn files_are_responses() {
    let yaml =
        "version_info: v\nresources:\n- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: c\n";
    let (response, unknown) = read_file(yaml.as_bytes(), text::Format::Yaml).expect("a response");
    assert!(unknown.is_empty());
    assert_eq!(response.version_info, "v");
    assert_eq!(
        response.resources,
        [Any { type_url: ResourceType::Cluster.url().into(), value: b"\x0a\x01c".to_vec() }]
    );
    let more = yaml.replace("name: c", "name: c\n  nope: 1");
    let (same, unknown) = read_file(more.as_bytes(), text::Format::Yaml).expect("a response");
    assert_eq!((same, &*unknown[0].path), (response, "resources[0].nope"));
    let problems = read_file(b"resources: [{'@type': type.googleapis.com/x.Y}]", text::Format::Yaml);
    assert_eq!(problems.expect_err("an unknown type")[0].path, "resources[0]");
}
