//! When names are asked for, and what comes of the answers. Time is the runtime's, and paused.

use super::*;
use crate::upstream::{ClusterId, host::tests::endpoint};
use std::collections::VecDeque;
use tokio::time::Instant;
use weft_config::{
    address::SocketAddress,
    endpoint::{HealthStatus, LocalityLbEndpoints},
};

#[derive(Default)]
struct Script {
    answers: RefCell<VecDeque<Result<Answer, NoAnswer>>>,
    asked: RefCell<Vec<Instant>>,
}

impl Resolve for Rc<Script> {
    fn resolve(&self, _: &str, _: DnsLookupFamily) -> Resolving {
        self.asked.borrow_mut().push(Instant::now());
        // The last one stands for all that follow.
        let mut answers = self.answers.borrow_mut();
        let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
        Box::pin(async move { answer.unwrap_or(Err(NoAnswer)) })
    }
}

fn answer(addresses: &[&str], ttl: u64) -> Result<Answer, NoAnswer> {
    let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
    Ok(Answer { addresses, ttl: Duration::from_secs(ttl) })
}

fn dns() -> Dns {
    Dns {
        refresh_rate: Duration::from_secs(5),
        jitter: Duration::ZERO,
        failure_refresh_rate: None,
        respect_ttl: false,
        min_refresh_rate: Duration::ZERO,
        lookup_family: DnsLookupFamily::Auto,
        resolver: None,
    }
}

/// Runs discovery for 20 s; gives the addresses of each update, and the seconds at which questions were asked.
fn run(discovery: Discovery, answers: &[Result<Answer, NoAnswer>]) -> (Vec<Vec<String>>, Vec<u64>) {
    let mut host = endpoint(80, 1, HealthStatus::Unknown);
    if let Address::Socket(SocketAddress { host, .. }) = &mut host.address {
        *host = "svc.test".into();
    }
    let locality = LocalityLbEndpoints { endpoints: vec![host], ..LocalityLbEndpoints::default() };
    let mut config = crate::upstream::pool::tests::config(|_| {});
    config.discovery = discovery;
    config.load_assignment.localities = vec![locality];
    let script = Rc::new(Script::default());
    script.answers.borrow_mut().extend(answers.iter().cloned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let found = Rc::new(RefCell::new(Vec::new()));
    let local = tokio::task::LocalSet::new();
    let start = local.block_on(&runtime, async {
        let start = Instant::now();
        let cluster = Cluster::compile(
            ClusterId(0),
            Arc::new(config),
            None,
            None,
            false,
            &crate::transport::tls::secrets::NoSecrets,
            &mut weft_config::Context::new(),
        );
        let (told, last) = (found.clone(), RefCell::new(cluster.clone()));
        let on_found = move |found: Found| {
            assert!(found.is_warm);
            // What a host was before, it stays.
            let next = last.borrow().with_assignment(&found.assignment);
            told.borrow_mut().push(next.hosts.hosts().map(|host| host.address.to_string()).collect());
            *last.borrow_mut() = next;
        };
        let discovery = DnsDiscovery::start(&cluster, Rc::new(script.clone()), &Registry::new(), on_found);
        tokio::time::sleep(Duration::from_secs(20)).await;
        drop(discovery);
        start
    });
    let asked = script.asked.borrow().iter().map(|at| at.duration_since(start).as_secs()).collect();
    (found.take(), asked)
}

#[test]
fn every_address_is_a_host() {
    let answers = [
        answer(&["10.0.0.1", "10.0.0.2"], 9),
        answer(&["10.0.0.2", "10.0.0.1"], 9),
        answer(&["::1"], 9),
        answer(&[], 0),
    ];
    let (found, asked) = run(Discovery::StrictDns(Box::new(dns())), &answers);
    assert_eq!(found, [vec!["10.0.0.1:80", "10.0.0.2:80"], vec!["[::1]:80"], vec![]]);
    assert_eq!(asked, [0, 5, 10, 15]);
}

#[test]
fn the_last_good_answer_stands() {
    let answers = [answer(&["10.0.0.1"], 9), Err(NoAnswer), Err(NoAnswer)];
    assert_eq!(run(Discovery::StrictDns(Box::new(dns())), &answers).0, [["10.0.0.1:80"]]);
    let none = run(Discovery::StrictDns(Box::new(dns())), &[Err(NoAnswer)]).0;
    assert_eq!(none, [Vec::<String>::new()]);
}

#[test]
fn a_logical_host_has_one_address_and_does_not_go() {
    let answers = [answer(&["10.0.0.2", "10.0.0.1"], 9), answer(&["10.0.0.1"], 9), answer(&[], 0)];
    assert_eq!(run(Discovery::LogicalDns(Box::new(dns())), &answers).0, [["10.0.0.2:80"], ["10.0.0.1:80"]]);
}

#[test]
fn ttls_count_when_they_are_to() {
    let ttl = Dns { respect_ttl: true, min_refresh_rate: Duration::from_secs(3), ..dns() };
    let answers = [answer(&["10.0.0.1"], 7), answer(&["10.0.0.1"], 1), answer(&["10.0.0.1"], 60)];
    assert_eq!(run(Discovery::StrictDns(Box::new(ttl)), &answers).1, [0, 7, 10]);
}

#[test]
fn failures_back_off() {
    let failing = Dns { failure_refresh_rate: Some((Duration::from_secs(1), Duration::from_secs(4))), ..dns() };
    let (_, asked) = run(Discovery::StrictDns(Box::new(failing)), &[Err(NoAnswer)]);
    assert!(asked.len() > 5 && asked.windows(2).all(|two| two[1] - two[0] <= 4), "{asked:?}");
}
