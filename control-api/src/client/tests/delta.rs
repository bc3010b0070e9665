//! Delta, request by request.

use super::*;
use ResourceType::{Cluster, Endpoint, Listener, RouteConfiguration, VirtualHost};

fn client() -> Client {
    Client::new(Protocol::Delta)
}

pub(super) fn resource(kind: ResourceType, name: &str, version: &str) -> discovery::Resource {
    discovery::Resource {
        name: name.into(),
        version: version.into(),
        resource: Some(any(kind, name, version)),
        ..Default::default()
    }
}

impl Client {
    /// A response; resources are written as name=version.
    fn changed(&mut self, kind: ResourceType, nonce: &str, resources: &[&str], removed: &[&str]) {
        let resources = resources.iter().map(|r| {
            let (name, version) = r.split_once('=').expect("name=version");
            resource(kind, name, version)
        });
        let resources = resources.collect();
        self.respond_delta(kind, nonce, resources, removed);
    }

    fn respond_delta(
        &mut self,
        kind: ResourceType,
        nonce: &str,
        resources: Vec<discovery::Resource>,
        removed: &[&str],
    ) {
        let response = discovery::DeltaDiscoveryResponse {
            system_version_info: "s".into(),
            resources,
            type_url: kind.url().into(),
            removed_resources: removed.iter().map(|n| (*n).to_owned()).collect(),
            nonce: nonce.into(),
            ..Default::default()
        };
        self.engine.on_delta_response(response, self.now);
    }

    fn accept_next(&mut self) -> Update {
        let update = self.update();
        self.accept(&update);
        update
    }

    fn reopen(&mut self) -> Vec<String> {
        self.engine.on_stream_closed(self.now);
        self.open();
        plain(self.sent())
    }
}

#[test]
fn a_wildcard_goes_without_names_and_comes_back_with_versions() {
    let mut client = client();
    client.want_all(Cluster);
    client.open();
    assert_eq!(client.sent(), ["Cluster node"]);
    client.changed(Cluster, "1", &["a=1", "b=1"], &[]);
    client.accept_next();
    client.changed(Cluster, "2", &["b=2"], &["a", "never"]);
    let update = client.accept_next();
    assert_eq!((names(&update), update.removed.clone()), (vec!["b"], vec!["a".to_owned(), "never".to_owned()]));
    client.changed(Cluster, "3", &[], &[]);
    client.accept_next();
    assert_eq!(plain(client.sent()), ["Cluster nonce=1", "Cluster nonce=2", "Cluster nonce=3"]);
    assert_eq!(client.reopen(), ["Cluster have b=2"]);
}

#[test]
fn names_are_told_once_and_again_on_a_new_stream() {
    let mut client = client();
    client.want(Endpoint, &["a", "b"]);
    client.open();
    assert_eq!(plain(client.sent()), ["Endpoint +a,b"]);
    client.changed(Endpoint, "1", &["a=1", "z=1"], &["b"]);
    let update = client.accept_next();
    assert_eq!((names(&update), update.removed.clone()), (vec!["a"], vec!["b".to_owned()]), "b does not exist");
    client.want(Endpoint, &["c"]);
    client.engine.unsubscribe(Endpoint, "b");
    assert_eq!(plain(client.sent()), ["Endpoint +c -b nonce=1"], "the ACK takes along what is new");
    client.changed(Endpoint, "2", &["z=2"], &["y"]);
    client.changed(Endpoint, "3", &["z=3"], &[]);
    assert_eq!(
        (client.events().len(), plain(client.sent())),
        (0, vec!["Endpoint nonce=2".to_owned(), "Endpoint nonce=3".to_owned()])
    );
    assert_eq!(client.reopen(), ["Endpoint +a,c have a=1"]);
    client.engine.unsubscribe(Endpoint, "a");
    client.engine.unsubscribe(Endpoint, "c");
    assert_eq!(plain(client.sent()), ["Endpoint -a,c"]);
    client.want(Endpoint, &["a"]);
    assert_eq!(plain(client.sent()), ["Endpoint +a"]);
    client.engine.unsubscribe(Endpoint, "a");
    client.want(Endpoint, &["a"]);
    assert_eq!(plain(client.sent()), ["Endpoint +a"], "the copy is gone, so the server has to know");
    client.engine.unsubscribe(Endpoint, "a");
    assert_eq!(client.reopen(), Vec::<String>::new(), "an empty first request would ask for everything");
}

#[test]
fn a_refused_resource_keeps_its_old_version() {
    let mut client = client();
    client.want_all(Listener);
    client.open();
    client.sent();
    client.changed(Listener, "1", &["a=1", "b=1"], &[]);
    client.accept_next();
    client.changed(Listener, "2", &["a=2", "b=2", "c=2"], &[]);
    let update = client.update();
    client.reject(&update, &["b", "c"]);
    client.changed(Listener, "3", &["a=3"], &["b"]);
    let update = client.update();
    client.engine.reject(Listener, "3", Rejection::Whole("no".into()), client.now);
    assert_eq!(names(&update), ["a"]);
    assert_eq!(
        plain(client.sent()),
        [
            "Listener nonce=1",
            "Listener nonce=2 NACK \"Error adding/updating listener(s) b: is bad, c: is bad\"",
            "Listener nonce=3 NACK \"no\""
        ]
    );
    assert_eq!(client.reopen(), ["Listener have a=2,b=1"]);
}

#[test]
fn malformed_responses_are_refused_by_the_engine() {
    let mut client = client();
    client.want_all(Cluster);
    client.open();
    client.sent();
    client.changed(Cluster, "1", &["a=1", "a=2"], &[]);
    client.changed(Cluster, "2", &["a=1"], &["a"]);
    client.respond_delta(Cluster, "3", vec![resource(Listener, "a", "1")], &[]);
    let bare = discovery::Resource { name: "a".into(), version: "1".into(), ..Default::default() };
    client.respond_delta(Cluster, "4", vec![bare], &[]);
    client.changed(Endpoint, "5", &["a=1"], &[]);
    assert_eq!(client.events().len(), 5);
    let sent = plain(client.sent());
    assert_eq!(sent[0], "Cluster nonce=1 NACK \"duplicate name a found among added/updated resources\"");
    assert_eq!(sent[1], "Cluster nonce=2 NACK \"duplicate name a found in the union of added+removed resources\"");
    assert!(sent[2].contains("does not match") && sent[3].contains("does not match"), "{sent:?}");
    assert_eq!(sent.len(), 4);
}

#[test]
fn a_wildcard_and_names_together() {
    let mut client = client();
    client.want_all(Cluster);
    client.open();
    client.sent();
    client.changed(Cluster, "1", &["a=1", "b=1"], &[]);
    client.accept_next();
    client.sent();
    client.want(Cluster, &["a", "on-demand"]);
    assert_eq!(plain(client.sent()), ["Cluster +a,on-demand"]);
    client.engine.unsubscribe(Cluster, "a");
    assert_eq!(plain(client.sent()), ["Cluster -a"]);
    assert_eq!(client.reopen(), ["Cluster +*,on-demand have a=1,b=1"], "a may still belong to the wildcard");
    client.engine.unsubscribe(Cluster, "on-demand");
    assert_eq!(plain(client.sent()), ["Cluster -on-demand"]);
    assert_eq!(client.reopen(), ["Cluster have a=1,b=1"]);
    client.want(Cluster, &["c"]);
    client.engine.unsubscribe_wildcard(Cluster);
    assert_eq!(plain(client.sent()), ["Cluster +c -*"]);
    client.changed(Cluster, "2", &["a=2", "c=2"], &[]);
    assert_eq!(names(&client.accept_next()), ["c"]);
    assert_eq!(client.reopen(), ["Cluster +c have c=2"]);
}

#[test]
fn heartbeats_confirm_and_lifetimes_end() {
    let mut client = client();
    client.want(Endpoint, &["e"]);
    client.want_all(Cluster);
    client.open();
    client.sent();
    let lives = |kind, version, body: bool| {
        let name = if kind == Endpoint { "e" } else { "c" };
        let ttl = Some(crate::Duration { seconds: 10, nanos: 0 });
        let full = resource(kind, name, version);
        let resource = full.resource.clone().filter(|_| body);
        discovery::Resource { ttl, resource, ..full }
    };
    client.respond_delta(Endpoint, "1", vec![lives(Endpoint, "1", true)], &[]);
    client.accept_next();
    client.respond_delta(Cluster, "2", vec![lives(Cluster, "1", true)], &[]);
    client.accept_next();
    client.sent();
    client.pass(6);
    client.respond_delta(Endpoint, "3", vec![lives(Endpoint, "1", false)], &[]);
    assert_eq!((client.events(), plain(client.sent())), (vec![], vec!["Endpoint nonce=3".to_owned()]));
    client.pass(6);
    assert_eq!(client.events(), [Event::Expired { resource_type: Cluster, names: vec!["c".into()] }]);
    client.pass(6);
    assert_eq!(client.events(), [Event::Expired { resource_type: Endpoint, names: vec!["e".into()] }]);
    assert_eq!(client.reopen(), ["Endpoint +e", "Cluster"]);
    client.changed(Endpoint, "4", &["e=2"], &[]);
    client.accept_next();
    assert_eq!(client.engine.poll_timeout(), None, "without a lifetime it stays");
}

#[test]
fn requests_of_listeners_and_routes_leave_in_order() {
    let mut client = client();
    client.want_all(Listener);
    client.open();
    client.sent();
    client.changed(Listener, "1", &["l=1"], &[]);
    let update = client.update();
    client.engine.pause(RouteConfiguration);
    client.want(RouteConfiguration, &["r"]);
    client.engine.resume(RouteConfiguration);
    client.accept(&update);
    assert_eq!(plain(client.sent()), ["RouteConfiguration +r", "Listener nonce=1"]);
}

#[test]
fn a_virtual_host_that_does_not_exist_comes_without_a_body() {
    let mut client = client();
    client.want(VirtualHost, &["r/a"]);
    client.open();
    client.sent();
    let none = discovery::Resource { name: "r/a".into(), aliases: vec!["r/a".into()], ..Default::default() };
    client.respond_delta(VirtualHost, "1", vec![none, resource(VirtualHost, "r/seed", "1")], &["r/old"]);
    let update = client.accept_next();
    assert_eq!((update.resources[0].body.is_none(), names(&update)), (true, vec!["r/a", "r/seed"]));
    assert_eq!(update.removed, ["r/old"]);
}

#[test]
fn a_new_stream_waits_for_the_answer_to_what_an_earlier_one_brought() {
    let mut client = client();
    client.want_all(Cluster);
    client.want(Endpoint, &["e"]);
    client.open();
    client.sent();
    client.changed(Cluster, "1", &["a=1"], &[]);
    let update = client.update();
    assert_eq!(client.reopen(), ["Endpoint +e"]);
    client.accept(&update);
    assert_eq!(plain(client.sent()), ["Cluster have a=1"], "else the removal of a would never be told");
}
