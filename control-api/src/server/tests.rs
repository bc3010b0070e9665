//! The server's stream logic and its directory, without sockets.

use super::{
    Directory, Resource, Service, Session, Snapshot, SnapshotCache,
    session::{Answer, Misuse, Request, Response},
};
use crate::{
    Message as _, Protocol, ResourceType,
    envoy::{
        config::{cluster::v3 as cluster, core::v3::Node},
        service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse},
    },
    google::rpc::Status,
};
use std::sync::Arc;

use ResourceType::{Cluster, Endpoint, Listener, RouteConfiguration};

/// A snapshot of resources by kind, name and content.
fn snapshot(resources: &[(ResourceType, &str, &'static str)]) -> Arc<Snapshot> {
    let of = |kind| {
        let own = resources.iter().filter(move |(k, ..)| *k == kind);
        own.map(|(_, name, body)| ((*name).to_owned(), Resource::new(*body)))
    };
    let kinds = ResourceType::ALL.into_iter();
    Arc::new(kinds.fold(Snapshot::default(), |snapshot, kind| snapshot.with(kind, of(kind))))
}

fn ask(session: &mut Session, kind: ResourceType, names: &[&str], nonce: &str) -> Option<Answer> {
    let names = names.iter().map(ToString::to_string).collect();
    let (type_url, response_nonce) = (kind.url().to_owned(), nonce.to_owned());
    let request = DiscoveryRequest { type_url, resource_names: names, response_nonce, ..Default::default() };
    session.on_request(Request::StateOfTheWorld(request)).expect("a good request")
}

/// The next response: its kind, nonce and contents.
fn told(session: &mut Session) -> Option<(ResourceType, String, Vec<String>)> {
    let Response::StateOfTheWorld(DiscoveryResponse { type_url, nonce, resources, .. }) = session.poll_response()?
    else {
        panic!("a response of the other protocol");
    };
    let text = |any: crate::Any| String::from_utf8(any.value).expect("text");
    Some((ResourceType::of_url(&type_url)?, nonce, resources.into_iter().map(text).collect()))
}

#[test]
fn names_that_are_added_are_sent_and_those_that_do_not_exist_are_waited_for() {
    let mut session = Session::new(Service::Aggregated, Protocol::StateOfTheWorld);
    session.set_snapshot(snapshot(&[(Endpoint, "a", "a1"), (Endpoint, "b", "b1")]));
    ask(&mut session, Endpoint, &["a", "none"], "");
    let (_, nonce, resources) = told(&mut session).expect("what exists");
    assert_eq!(resources, ["a1"]);
    assert_eq!(told(&mut session), None);
    ask(&mut session, Endpoint, &["a", "b", "none"], &nonce);
    let (_, nonce, resources) = told(&mut session).expect("what was added");
    assert_eq!(resources, ["b1"], "what it has need not be said again");
    ask(&mut session, Endpoint, &["a", "none"], &nonce);
    assert_eq!(told(&mut session), None);
    session.set_snapshot(snapshot(&[(Endpoint, "a", "a1"), (Endpoint, "b", "b2"), (Endpoint, "none", "n1")]));
    let (_, nonce, resources) = told(&mut session).expect("what came into being");
    assert_eq!(resources, ["n1"]);
    ask(&mut session, Endpoint, &["a", "b", "none"], &nonce);
    assert_eq!(told(&mut session).map(|t| t.2), Some(vec!["b2".to_owned()]), "what is subscribed to again");
}

#[test]
fn a_refusal_is_an_answer_and_is_not_answered_by_the_same_again() {
    let mut session = Session::new(Service::Single(Listener), Protocol::StateOfTheWorld);
    session.set_snapshot(snapshot(&[(Listener, "l", "bad")]));
    assert_eq!(ask(&mut session, Listener, &[], ""), None);
    let Some(Response::StateOfTheWorld(response)) = session.poll_response() else { panic!("no response") };
    let refused = Some(Status { message: "no good".to_owned(), ..Default::default() });
    let nack = DiscoveryRequest { response_nonce: response.nonce.clone(), error_detail: refused, ..Default::default() };
    let answer = session.on_request(Request::StateOfTheWorld(nack)).expect("a good request");
    let expected = Answer { kind: Listener, version: response.version_info, refused: Some("no good".to_owned()) };
    assert_eq!(answer, Some(expected));
    assert_eq!(told(&mut session), None);
    session.set_snapshot(snapshot(&[(Listener, "l", "good")]));
    assert_eq!(told(&mut session).map(|t| t.2), Some(vec!["good".to_owned()]));
    let other = DiscoveryRequest { type_url: Cluster.url().to_owned(), ..Default::default() };
    let refused = session.on_request(Request::StateOfTheWorld(other));
    assert_eq!(refused, Err(Misuse::WrongType(Cluster.url().to_owned())));
}

#[test]
fn nothing_is_sent_while_an_answer_is_owed_and_stale_answers_say_nothing() {
    let mut session = Session::new(Service::Aggregated, Protocol::StateOfTheWorld);
    session.set_snapshot(snapshot(&[(Cluster, "c", "1")]));
    ask(&mut session, Cluster, &[], "");
    let (_, first, _) = told(&mut session).expect("a first response");
    session.set_snapshot(snapshot(&[(Cluster, "c", "2")]));
    assert_eq!(told(&mut session), None);
    assert!(ask(&mut session, Cluster, &[], "another").is_none());
    assert_eq!(told(&mut session), None);
    assert!(ask(&mut session, Cluster, &[], &first).is_some());
    assert_eq!(told(&mut session).map(|t| t.2), Some(vec!["2".to_owned()]));
}

#[test]
fn a_cluster_that_routes_lead_to_goes_after_the_routes() {
    let mut session = Session::new(Service::Aggregated, Protocol::StateOfTheWorld);
    session.set_snapshot(snapshot(&[(Cluster, "old", "old"), (RouteConfiguration, "r", "to old")]));
    ask(&mut session, Cluster, &[], "");
    let (_, clusters, _) = told(&mut session).expect("clusters");
    ask(&mut session, Cluster, &[], &clusters);
    ask(&mut session, RouteConfiguration, &["r"], "");
    let (_, routes, _) = told(&mut session).expect("routes");
    ask(&mut session, RouteConfiguration, &["r"], &routes);
    assert_eq!(told(&mut session), None);

    session.set_snapshot(snapshot(&[(Cluster, "new", "new"), (RouteConfiguration, "r", "to new")]));
    let (kind, clusters, both) = told(&mut session).expect("clusters first");
    assert_eq!((kind, both), (Cluster, vec!["new".to_owned(), "old".to_owned()]));
    assert_eq!(told(&mut session), None, "routes wait until the clusters are taken");
    ask(&mut session, Cluster, &[], &clusters);
    let (kind, routes, _) = told(&mut session).expect("then routes");
    assert_eq!(kind, RouteConfiguration);
    assert_eq!(told(&mut session), None, "the old cluster stays until the routes are taken");
    ask(&mut session, RouteConfiguration, &["r"], &routes);
    let (kind, _, left) = told(&mut session).expect("then the old cluster goes");
    assert_eq!((kind, left), (Cluster, vec!["new".to_owned()]));
}

/// A client that asks for a kind and takes what it gets, until there is nothing more; gives what it got.
fn settle(
    session: &mut Session,
    mut asks: impl FnMut(ResourceType) -> Vec<&'static str>,
) -> Vec<(ResourceType, usize)> {
    let mut got = Vec::new();
    while let Some((kind, nonce, resources)) = told(session) {
        got.push((kind, resources.len()));
        ask(session, kind, &asks(kind), &nonce);
    }
    got
}

#[test]
fn what_a_refused_listener_does_not_stop_using_is_not_taken_away() {
    let mut session = Session::new(Service::Aggregated, Protocol::StateOfTheWorld);
    session.set_snapshot(snapshot(&[(Cluster, "old", "old"), (Listener, "l", "to old")]));
    ask(&mut session, Cluster, &[], "");
    ask(&mut session, Listener, &[], "");
    settle(&mut session, |_| vec![]);
    session.set_snapshot(snapshot(&[(Cluster, "new", "new"), (Listener, "l", "to new, wrongly")]));
    let (_, nonce, both) = told(&mut session).expect("clusters");
    assert_eq!(both.len(), 2);
    ask(&mut session, Cluster, &[], &nonce);
    let (_, response_nonce, _) = told(&mut session).expect("listeners");
    let error_detail = Some(Status { message: "no good".to_owned(), ..Default::default() });
    let type_url = Listener.url().to_owned();
    let nack = DiscoveryRequest { type_url, response_nonce, error_detail, ..Default::default() };
    session.on_request(Request::StateOfTheWorld(nack)).expect("a good request");
    assert_eq!(told(&mut session), None, "the listener that is in force leads to the old cluster");
    session.set_snapshot(snapshot(&[(Cluster, "new", "new"), (Listener, "l", "to new")]));
    assert_eq!(settle(&mut session, |_| vec![]), [(Listener, 1), (Cluster, 1)]);
}

#[test]
fn a_listener_that_goes_goes_before_its_cluster_and_that_before_its_endpoints() {
    let mut session = Session::new(Service::Aggregated, Protocol::Delta);
    session.set_snapshot(snapshot(&[(Cluster, "c", "c"), (Endpoint, "c", "e"), (Listener, "l", "l")]));
    let say = |session: &mut Session, kind: ResourceType, nonce: &str| {
        let (type_url, response_nonce) = (kind.url().to_owned(), nonce.to_owned());
        let names = if nonce.is_empty() { vec!["*".to_owned()] } else { vec![] };
        let request =
            DeltaDiscoveryRequest { type_url, response_nonce, resource_names_subscribe: names, ..Default::default() };
        session.on_request(Request::Delta(request)).expect("a good request");
    };
    let settle = |session: &mut Session| {
        let mut got = Vec::new();
        while let Some(Response::Delta(response)) = session.poll_response() {
            let kind = ResourceType::of_url(&response.type_url).expect("a known kind");
            got.push((kind, response.resources.len(), response.removed_resources.len()));
            say(session, kind, &response.nonce);
        }
        got
    };
    for kind in [Cluster, Endpoint, Listener] {
        say(&mut session, kind, "");
    }
    assert_eq!(settle(&mut session).len(), 3);
    session.set_snapshot(Arc::default());
    assert_eq!(settle(&mut session), [(Listener, 0, 1), (Cluster, 0, 1), (Endpoint, 0, 1)]);
}

#[test]
fn a_cluster_that_changed_has_its_endpoints_sent_again() {
    let cluster = |name: &str, seconds: i64, service_name: &str| {
        let eds = cluster::cluster::EdsClusterConfig { service_name: service_name.to_owned(), ..Default::default() };
        let connect_timeout = Some(crate::Duration { seconds, nanos: 0 });
        let (name, eds_cluster_config) = (name.to_owned(), Some(eds));
        let cluster = cluster::Cluster { name, connect_timeout, eds_cluster_config, ..Default::default() };
        (cluster.name.clone(), Resource::new(cluster.encode_to_vec()))
    };
    let snapshot = |of_a, of_b| {
        let endpoints = ["a", "b at home", "c"].map(|name| (name.to_owned(), Resource::new("hosts")));
        let clusters = [cluster("a", of_a, ""), cluster("b", of_b, "b at home")];
        Arc::new(Snapshot::default().with(Cluster, clusters).with(Endpoint, endpoints))
    };
    let names = |kind| if kind == Endpoint { vec!["a", "b at home", "c"] } else { vec![] };
    let mut session = Session::new(Service::Aggregated, Protocol::StateOfTheWorld);
    session.set_snapshot(snapshot(1, 1));
    ask(&mut session, Cluster, &[], "");
    ask(&mut session, Endpoint, &names(Endpoint), "");
    assert_eq!(settle(&mut session, names), [(Cluster, 2), (Endpoint, 3)]);
    session.set_snapshot(snapshot(2, 1));
    assert_eq!(settle(&mut session, names), [(Cluster, 2), (Endpoint, 1)]);
    session.set_snapshot(snapshot(3, 3));
    assert_eq!(settle(&mut session, names), [(Cluster, 2), (Endpoint, 2)]);
}

#[test]
fn names_without_end_end_the_stream() {
    let name = |i: usize| format!("{i}{}", "x".repeat(1 << 20));
    let ask = |i| DeltaDiscoveryRequest {
        type_url: Endpoint.url().to_owned(),
        resource_names_subscribe: vec![name(i)],
        ..Default::default()
    };
    let mut session = Session::new(Service::Aggregated, Protocol::Delta);
    let refused = (0..100).find(|i| session.on_request(Request::Delta(ask(*i))).is_err());
    assert_eq!(refused, Some(31));
    let mut session = Session::new(Service::Aggregated, Protocol::Delta);
    for i in 0..100 {
        let unsubscribe = (i > 0).then(|| name(i - 1)).into_iter().collect();
        let request = DeltaDiscoveryRequest { resource_names_unsubscribe: unsubscribe, ..ask(i) };
        session.on_request(Request::Delta(request)).expect("one name at a time");
    }
    let type_url = Endpoint.url().to_owned();
    let request = DiscoveryRequest { type_url, resource_names: (0..32).map(name).collect(), ..Default::default() };
    let refused =
        Session::new(Service::Aggregated, Protocol::StateOfTheWorld).on_request(Request::StateOfTheWorld(request));
    assert_eq!(refused, Err(Misuse::TooManyNames));
}

#[test]
fn delta_sends_what_changed_and_says_what_is_gone_or_was_never_there() {
    let mut session = Session::new(Service::Aggregated, Protocol::Delta);
    session.set_snapshot(snapshot(&[(Endpoint, "a", "a1"), (Endpoint, "b", "b1")]));
    let known = Resource::new("a1").version.to_string();
    let request = |subscribe: &[&str], nonce: &str| DeltaDiscoveryRequest {
        type_url: Endpoint.url().to_owned(),
        resource_names_subscribe: subscribe.iter().map(ToString::to_string).collect(),
        response_nonce: nonce.to_owned(),
        ..Default::default()
    };
    let say = |session: &mut Session, request| session.on_request(Request::Delta(request)).expect("a good request");
    let hear = |session: &mut Session| -> Option<(Vec<String>, Vec<String>, String)> {
        let Response::Delta(DeltaDiscoveryResponse { resources, removed_resources, nonce, .. }) =
            session.poll_response()?
        else {
            panic!("a response of the other protocol");
        };
        Some((resources.into_iter().map(|r| r.name).collect(), removed_resources, nonce))
    };
    let mut first = request(&["a", "b", "none"], "");
    first.initial_resource_versions.insert("a".to_owned(), known);
    say(&mut session, first);
    let (sent, removed, nonce) = hear(&mut session).expect("what the client does not have");
    assert_eq!((sent, removed), (vec!["b".to_owned()], vec!["none".to_owned()]));
    say(&mut session, request(&[], &nonce));
    assert_eq!(hear(&mut session), None);
    session.set_snapshot(snapshot(&[(Endpoint, "b", "b2")]));
    let (sent, removed, nonce) = hear(&mut session).expect("what changed");
    assert_eq!((sent, removed), (vec!["b".to_owned()], vec!["a".to_owned()]));
    say(&mut session, request(&["b"], &nonce));
    let (sent, removed, _) = hear(&mut session).expect("what was asked for again");
    assert_eq!((sent, removed), (vec!["b".to_owned()], vec![]));
}

#[test]
fn one_change_among_many_resources_is_one_resource_of_delta() {
    let many = |changed: Option<usize>| {
        let body = |i| if changed == Some(i) { "2" } else { "1" };
        let clusters = (0..10_000).map(|i| (format!("c{i}"), Resource::new(body(i))));
        Arc::new(Snapshot::default().with(Cluster, clusters))
    };
    let mut session = Session::new(Service::Aggregated, Protocol::Delta);
    session.set_snapshot(many(None));
    let first = DeltaDiscoveryRequest { type_url: Cluster.url().to_owned(), ..Default::default() };
    session.on_request(Request::Delta(first.clone())).expect("a good request");
    let Some(Response::Delta(all)) = session.poll_response() else { panic!("no response") };
    assert_eq!(all.resources.len(), 10_000);
    let ack = DeltaDiscoveryRequest { response_nonce: all.nonce, ..first };
    session.on_request(Request::Delta(ack)).expect("a good request");
    session.set_snapshot(many(Some(77)));
    let Some(Response::Delta(one)) = session.poll_response() else { panic!("no response") };
    assert_eq!(one.resources.iter().map(|r| &*r.name).collect::<Vec<_>>(), ["c77"]);
}

#[test]
fn a_directory_keeps_the_last_good_content_of_each_file() {
    let root = std::env::temp_dir().join(format!("weft-directory-{}", std::process::id()));
    std::fs::create_dir_all(root.join("n1")).expect("a directory");
    let write = |name: &str, text: &str| std::fs::write(root.join(name), text).expect("a file");
    let routes = |name: &str, domain: &str| {
        format!(
            "\"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration\nname: {name}\n\
             virtual_hosts: [{{name: v, domains: [{domain}]}}]\n"
        )
    };
    write("a.yaml", &routes("r", "everybody"));
    write("n1/b.yaml", &routes("r", "only-n1"));
    write("notes.txt", "not a resource");
    let mut directory = Directory::new(&root);
    let report = directory.read().expect("readable");
    assert_eq!((report.changed.len(), report.refused.len(), report.resources), (2, 0, 2));
    let body = |directory: &Directory, group: &str| {
        let all = directory.snapshots();
        let (_, resource) = all[group].of(RouteConfiguration).get("r").expect("there");
        String::from_utf8_lossy(&resource.body).into_owned()
    };
    assert!(body(&directory, "").contains("everybody") && body(&directory, "n1").contains("only-n1"));

    write(
        "a.yaml",
        "\"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration\nname: r\nvirtual_host: []\n",
    );
    let report = directory.read().expect("readable");
    let problem = report.refused[0].1[0].to_string();
    assert!(problem.starts_with("3:1: virtual_host: ") && problem.contains("virtual_hosts"), "{problem}");
    assert!(body(&directory, "").contains("everybody"));
    assert!(directory.read().expect("readable").refused.is_empty(), "told once");

    write("a.yaml", &routes("r", "again"));
    write("c.yaml", &routes("r", "twice"));
    let report = directory.read().expect("readable");
    assert_eq!(report.refused.len(), 1);
    assert!(report.refused[0].1[0].to_string().contains("a second time"));
    assert!(body(&directory, "").contains("again"));
    std::fs::remove_file(root.join("n1/b.yaml")).expect("it is there");
    directory.read().expect("readable");
    assert!(!directory.snapshots().contains_key("n1"));
    std::fs::remove_dir_all(&root).expect("it was made above");
}

#[test]
fn a_file_may_hold_several_documents_and_what_cannot_be_read_is_not_gone() {
    let root = std::env::temp_dir().join(format!("weft-documents-{}", std::process::id()));
    std::fs::create_dir_all(&root).expect("a directory");
    let routes = |name: &str| format!("\"@type\": {}\nname: {name}\n", RouteConfiguration.url());
    let list = format!("resources:\n- {}  name: c\n", routes("x").replace("name: x\n", ""));
    let file = root.join("all.yaml");
    std::fs::write(&file, format!("{}---\n{}---\n{list}", routes("a"), routes("b"))).expect("a file");
    std::fs::write(root.join("other.json"), "{\"resources\": []}").expect("a file");
    let mut directory = Directory::new(&root);
    let report = directory.read().expect("readable");
    assert_eq!((report.resources, report.refused), (3, vec![]));

    std::fs::write(&file, format!("{}---\n{}virtual_hosts: [{{}}]\n", routes("a"), routes("b"))).expect("a file");
    let report = directory.read().expect("readable");
    let problems: Vec<String> = report.refused[0].1.iter().map(ToString::to_string).collect();
    assert!(problems[0].starts_with("6:17: virtual_hosts[0].name: "), "{problems:?}");
    assert_eq!(report.resources, 3);

    std::fs::remove_file(&file).expect("it is there");
    std::os::unix::fs::symlink("nowhere", &file).expect("a link");
    let report = directory.read().expect("readable");
    assert_eq!((report.resources, report.refused.len()), (3, 1));
    assert_eq!(directory.read().expect("readable").refused, [], "told once");
    std::fs::remove_file(&file).expect("it is there");
    assert_eq!(directory.read().expect("readable").resources, 0);
    std::fs::remove_dir_all(&root).expect("it was made above");
}

#[test]
fn a_node_is_of_the_group_of_its_id_or_else_of_its_cluster() {
    let cache = SnapshotCache::new(SnapshotCache::by_id_and_cluster);
    for group in ["", "web", "n1"] {
        cache.set(group, Snapshot::default().with(Cluster, [(group.to_owned(), Resource::new("body"))]));
    }
    let group = |id: &str, cluster: &str| {
        let node = Node { id: id.to_owned(), cluster: cluster.to_owned(), ..Default::default() };
        let (name, _) =
            cache.snapshot(&node).of(Cluster).iter().next().map(|(n, r)| (n.to_string(), r.clone())).expect("one");
        name
    };
    let found = [("n1", "web"), ("n2", "web"), ("", "web"), ("n2", ""), ("", "")].map(|(id, of)| group(id, of));
    assert_eq!(found, ["n1", "web", "web", "", ""]);
}
