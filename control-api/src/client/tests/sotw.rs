//! State of the world, request by request.

use super::*;
use ResourceType::{Cluster, Endpoint, Listener, RouteConfiguration, Secret};

pub(super) fn response(kind: ResourceType, version: u32, resources: Vec<Any>) -> discovery::DiscoveryResponse {
    discovery::DiscoveryResponse {
        version_info: version.to_string(),
        nonce: format!("n{version}"),
        type_url: kind.url().to_owned(),
        resources,
        ..Default::default()
    }
}

fn client() -> Client {
    Client::new(Protocol::StateOfTheWorld)
}

impl Client {
    /// A response with resources that have names only.
    fn respond(&mut self, kind: ResourceType, version: u32, names: &[&str]) {
        let resources = names.iter().map(|n| any(kind, n, "")).collect();
        self.engine.on_response(response(kind, version, resources), self.now);
    }
}

fn wrapped(kind: ResourceType, name: &str, ttl: Option<i64>, with_body: bool, version: &str) -> Any {
    let wrapper = discovery::Resource {
        name: name.into(),
        version: version.into(),
        resource: with_body.then(|| any(kind, name, "")),
        ttl: ttl.map(|seconds| crate::Duration { seconds, nanos: 0 }),
        ..Default::default()
    };
    Any { type_url: "type.googleapis.com/envoy.service.discovery.v3.Resource".into(), value: wrapper.encode_to_vec() }
}

#[test]
fn nothing_is_answered_before_the_proxy_has() {
    let mut client = client();
    client.want_all(Cluster);
    client.open();
    assert_eq!(client.sent(), ["Cluster [] v= node"]);
    client.respond(Cluster, 1, &["a", "b"]);
    client.respond(Cluster, 2, &["b"]);
    assert_eq!(client.sent(), Vec::<String>::new());
    assert_eq!(client.engine.unanswered(), 2);
    let update = client.update();
    assert_eq!((names(&update), update.version.as_str()), (vec!["a", "b"], "1"));
    assert!(!client.engine.accept(Cluster, "other", client.now));
    client.accept(&update);
    assert!(!client.engine.accept(Cluster, "n1", client.now));
    let update = client.update();
    assert_eq!((names(&update), update.removed.clone()), (vec!["b"], vec!["a".to_owned()]));
    assert_eq!(plain(client.sent()), ["Cluster [] v=1 nonce=n1"]);
    client.accept(&update);
    assert_eq!(plain(client.sent()), ["Cluster [] v=2 nonce=n2"]);
}

#[test]
fn a_bad_resource_is_refused_alone_and_the_version_stays() {
    let mut client = client();
    client.want_all(Listener);
    client.open();
    client.sent();
    client.respond(Listener, 1, &["a", "b"]);
    let update = client.update();
    client.accept(&update);
    client.respond(Listener, 2, &["a", "bad", "worse"]);
    let update = client.update();
    assert_eq!(update.removed, ["b"]);
    client.reject(&update, &["bad", "worse"]);
    client.respond(Listener, 3, &[]);
    let update = client.update();
    assert_eq!(update.removed, ["a"], "what was refused never came");
    assert!(client.engine.reject(Listener, "n3", Rejection::Whole("no".into()), client.now));
    client.respond(Listener, 4, &[]);
    let update = client.update();
    assert_eq!(update.removed, ["a"]);
    client.accept(&update);
    assert_eq!(
        plain(client.sent()),
        [
            "Listener [] v=1 nonce=n1",
            "Listener [] v=1 nonce=n2 NACK \"Error adding/updating listener(s) bad: is bad, worse: is bad\"",
            "Listener [] v=1 nonce=n3 NACK \"no\"",
            "Listener [] v=4 nonce=n4",
        ]
    );
}

#[test]
fn a_response_by_name_is_partial_and_the_unrequested_is_ignored() {
    let mut client = client();
    client.want(RouteConfiguration, &["a", "b"]);
    client.open();
    assert_eq!(client.sent(), ["RouteConfiguration [a,b] v= node"]);
    client.respond(RouteConfiguration, 1, &["a", "b", "a"]);
    let update = client.update();
    assert_eq!((names(&update), &update.refused), (vec!["a", "b"], &vec![]));
    client.accept(&update);
    client.respond(RouteConfiguration, 2, &["b", "z"]);
    let update = client.update();
    assert_eq!((names(&update), &update.removed), (vec!["b"], &vec![]));
    client.accept(&update);
    client.respond(RouteConfiguration, 3, &["z"]);
    assert_eq!(client.events(), [], "of no concern to the proxy");
    assert_eq!(
        plain(client.sent()),
        [
            "RouteConfiguration [a,b] v=1 nonce=n1",
            "RouteConfiguration [a,b] v=2 nonce=n2",
            "RouteConfiguration [a,b] v=3 nonce=n3"
        ]
    );
}

#[test]
fn duplicates_of_full_state_kinds_are_refused() {
    let mut client = client();
    client.want_all(Cluster);
    client.open();
    client.sent();
    client.respond(Cluster, 1, &["a", "a", "b"]);
    let update = client.update();
    assert_eq!(names(&update), ["a", "b"]);
    client.accept(&update);
    assert_eq!(
        plain(client.sent()),
        ["Cluster [] v= nonce=n1 NACK \"Error adding/updating cluster(s) a: duplicate cluster a found\""]
    );
    client.respond(Cluster, 2, &[]);
    assert_eq!(client.update().removed, ["a", "b"], "the first one of the two was taken");
}

#[test]
fn malformed_responses_are_refused_by_the_engine() {
    let mut client = client();
    client.want_all(Cluster);
    client.open();
    client.sent();
    let mut broken = any(Cluster, "x", "");
    broken.value.push(0xff);
    let inner = wrapped(Listener, "l", None, true, "");
    let junk = Any { type_url: inner.type_url.clone(), value: vec![0xff] };
    for (i, bad) in [any(Listener, "l", ""), broken, inner, junk].into_iter().enumerate() {
        client.engine.on_response(response(Cluster, i as u32, vec![any(Cluster, "a", ""), bad]), client.now);
        let events = client.events();
        assert!(matches!(events.as_slice(), [Event::Rejected { resource_type: Cluster, .. }]), "{events:?}");
        let sent = plain(client.sent());
        assert!(sent.len() == 1 && sent[0].starts_with(&format!("Cluster [] v= nonce=n{i} NACK")), "{sent:?}");
    }
    client.respond(Endpoint, 9, &["e"]);
    assert_eq!(client.events(), [Event::Ignored { type_url: Endpoint.url().into() }]);
    assert_eq!(client.sent(), Vec::<String>::new());
}

#[test]
fn a_secret_that_was_not_asked_for_is_told_and_taken() {
    let mut client = client();
    client.want(Secret, &["s"]);
    client.open();
    client.sent();
    client.respond(Secret, 1, &["other"]);
    assert_eq!(client.events(), [Event::Unmatched]);
    let sent = plain(client.sent());
    assert!(sent.len() == 1 && !sent[0].contains("NACK"), "{sent:?}");
}

#[test]
fn a_pause_gathers_changes_and_comes_before_the_ack() {
    let mut client = client();
    client.want_all(Listener);
    client.open();
    client.sent();
    client.respond(Listener, 1, &["l"]);
    let update = client.update();
    client.engine.pause(RouteConfiguration);
    client.want(RouteConfiguration, &["a", "b"]);
    assert_eq!(client.sent(), Vec::<String>::new());
    client.engine.unsubscribe(RouteConfiguration, "b");
    client.accept(&update);
    client.engine.resume(RouteConfiguration);
    assert_eq!(plain(client.sent()), ["RouteConfiguration [a] v=", "Listener [] v=1 nonce=n1"]);
    // A paused kind does not hold up others.
    client.engine.pause(RouteConfiguration);
    client.want(RouteConfiguration, &["c"]);
    client.want(Endpoint, &["e"]);
    assert_eq!(plain(client.sent()), ["Endpoint [e] v="]);
    client.engine.resume(RouteConfiguration);
    assert_eq!(plain(client.sent()), ["RouteConfiguration [a,c] v="]);
    // Said already.
    client.want(RouteConfiguration, &["d"]);
    client.engine.unsubscribe(RouteConfiguration, "d");
    client.want(RouteConfiguration, &["a"]);
    assert_eq!(client.sent(), Vec::<String>::new());
}

#[test]
fn unsubscribing_from_the_last_name_is_said_and_what_is_under_way_is_not_taken() {
    let mut client = client();
    client.want(Endpoint, &["e"]);
    client.open();
    client.sent();
    client.respond(Endpoint, 1, &["e"]);
    let update = client.update();
    client.accept(&update);
    client.sent();
    client.engine.unsubscribe(Endpoint, "e");
    assert_eq!(plain(client.sent()), ["Endpoint [] v=1 nonce=n1"]);
    client.respond(Endpoint, 2, &["e"]);
    assert_eq!((client.events(), plain(client.sent())), (vec![], vec!["Endpoint [] v=1 nonce=n2".to_owned()]));
    client.respond(Endpoint, 3, &[]);
    assert_eq!((client.events(), client.sent()), (vec![], vec![]));
    client.want(Endpoint, &["f"]);
    assert_eq!(plain(client.sent()), ["Endpoint [f] v=3 nonce=n3"]);
}

#[test]
fn wildcard_and_names_together() {
    let mut client = client();
    client.want(Cluster, &["x"]);
    client.open();
    assert_eq!(plain(client.sent()), ["Cluster [x] v="]);
    client.want_all(Cluster);
    assert_eq!(plain(client.sent()), ["Cluster [*,x] v="]);
    client.engine.unsubscribe(Cluster, "x");
    assert_eq!(plain(client.sent()), ["Cluster [*] v="], "an empty list would mean nothing now");
    client.respond(Cluster, 1, &["x", "y"]);
    let update = client.update();
    client.accept(&update);
    client.want(Cluster, &["y"]);
    client.engine.unsubscribe_wildcard(Cluster);
    client.sent();
    client.respond(Cluster, 2, &["x", "y"]);
    assert_eq!(names(&client.update()), ["y"]);
}

#[test]
fn a_new_stream_repeats_subscriptions_in_order_with_versions_but_no_nonces() {
    let mut client = client();
    client.want_all(Cluster);
    client.want(Endpoint, &["e"]);
    client.want_all(Listener);
    client.want(RouteConfiguration, &["r"]);
    client.open();
    client.sent();
    client.respond(Listener, 7, &["l"]);
    client.respond(Cluster, 8, &["c"]);
    let events = client.events();
    let [Event::Update(listener), Event::Update(cluster)] = events.as_slice() else { panic!("{events:?}") };
    client.accept(listener);
    client.sent();
    client.respond(Listener, 9, &[]);
    client.engine.unsubscribe(RouteConfiguration, "r");
    client.engine.on_stream_closed(client.now);
    client.accept(cluster);
    assert_eq!(client.sent(), Vec::<String>::new());
    client.open();
    let update = client.update();
    assert_eq!(update.version, "9");
    client.accept(&update);
    assert_eq!(
        client.sent(),
        ["Cluster [] v=8 node", "Endpoint [e] v= node", "Listener [] v=9 node"],
        "what was taken without a stream counts, but is not answered on the next one"
    );
}

#[test]
fn the_node_may_go_with_the_first_request_only() {
    let mut client = Client::with(Options { node_on_first_message_only: true, ..Default::default() });
    client.want_all(Cluster);
    client.want_all(Listener);
    for _ in 0..2 {
        client.open();
        assert_eq!(client.sent(), ["Cluster [] v= node", "Listener [] v="]);
        client.engine.on_stream_closed(client.now);
    }
}

#[test]
fn resources_expire_unless_they_are_confirmed() {
    let mut client = client();
    client.want_all(Cluster);
    client.open();
    client.sent();
    let both = |version: u32, body| {
        let resources = vec![wrapped(Cluster, "a", Some(10), body, "1"), any(Cluster, "b", "")];
        response(Cluster, version, resources)
    };
    client.engine.on_response(both(1, true), client.now);
    let update = client.update();
    assert_eq!(update.resources[0].ttl, Some(Duration::from_secs(10)));
    client.accept(&update);
    client.pass(8);
    client.engine.on_response(both(1, false), client.now);
    let update = client.update();
    assert_eq!((names(&update), &update.removed), (vec!["b"], &vec![]));
    client.accept(&update);
    client.pass(8);
    assert_eq!(client.events(), []);
    client.pass(2);
    assert_eq!(client.events(), [Event::Expired { resource_type: Cluster, names: vec!["a".into()] }]);
    client.respond(Cluster, 2, &["b"]);
    assert_eq!(client.update().removed, Vec::<String>::new(), "it is gone already");
}
