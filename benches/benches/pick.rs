//! What it costs to pick a host among ten thousand, in instructions: `cargo bench -p weft-benches --bench pick`; with
//! `-- --check` it fails where a pick costs more than [`MOST`]. `-- --update` says how long one endpoint's change takes.
//!
//! The program runs itself under callgrind, once for each case, and counts what is below [`measured`] only: the numbers
//! are the same on every machine of one architecture, whatever else it does.
#![allow(clippy::print_stdout)] // the table is what this program is for

#[path = "measure/callgrind.rs"]
mod callgrind;

use std::{env, process::ExitCode, rc::Rc, sync::Arc, time::Instant};
use weft_config::{Context, load_balancing::PolicyKind, metadata::Metadata};
use weft_control_api::{EncodeOptions, Message as _, encode, envoy::config::cluster::v3 as pb, yaml};
use weft_proxy::{
    observe::stats::Registry,
    snapshot::secrets::SecretStore,
    upstream::{Cluster, ClusterTable, LbContext, MetadataMatch, Names, ThreadCluster, Upstreams},
};

/// Two hundred nanoseconds, at three instructions a nanosecond.
const MOST: u64 = 600;
const HOSTS: usize = 10_000;
/// Picks in one measurement.
const ROUNDS: u64 = 1_000;

/// The cluster's fields, and whether weights differ.
const CASES: [(&str, &str, bool); 9] = [
    ("round robin", "", false),
    ("round robin, weights", "", true),
    ("least request", "lb_policy: LEAST_REQUEST,", false),
    ("least request, weights", "lb_policy: LEAST_REQUEST,", true),
    ("random", "lb_policy: RANDOM,", false),
    ("ring hash", "lb_policy: RING_HASH, ring_hash_lb_config: {minimum_ring_size: 1000000},", true),
    ("maglev", "lb_policy: MAGLEV,", false),
    ("subset", "lb_subset_config: {subset_selectors: [{keys: [group, half]}]},", false),
    ("localities", "common_lb_config: {locality_weighted_lb_config: {}},", false),
];

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    if let ["--case", case] = words[..] {
        run(case.parse().expect("a number"));
        return ExitCode::SUCCESS;
    }
    if words.contains(&"--update") {
        CASES.iter().for_each(update);
        return ExitCode::SUCCESS;
    }
    let mut missed = false;
    println!("{:24}{:>14}", "instructions a pick", "10000 hosts");
    for (i, (name, ..)) in CASES.iter().enumerate() {
        let Some(count) = count(i) else {
            println!("skipped: there is no valgrind");
            return ExitCode::SUCCESS;
        };
        missed |= count > MOST;
        println!("{name:24}{count:>14}{}", if count > MOST { "  missed" } else { "" });
    }
    if words.contains(&"--check") && missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Instructions a pick takes; `None` without valgrind.
fn count(case: usize) -> Option<u64> {
    callgrind::count(&["--case", &case.to_string()]).map(|total| total / ROUNDS)
}

fn run(case: usize) {
    let cluster = compiled(&CASES[case]);
    let upstreams = Upstreams::new(Registry::new(), false);
    upstreams.apply(&table(&cluster));
    let cluster = upstreams.clusters().remove(0);
    let wanted = wanted();
    // All hosts were picked before, and lists by weight are made.
    (0..100_000).for_each(|i| pick(&cluster, i, wanted.as_ref()));
    measured(&cluster, wanted.as_ref());
}

#[inline(never)]
fn measured(cluster: &Rc<ThreadCluster>, wanted: Option<&MetadataMatch>) {
    (0..ROUNDS).for_each(|i| pick(cluster, i, wanted));
}

fn pick(cluster: &Rc<ThreadCluster>, i: u64, wanted: Option<&MetadataMatch>) {
    let hash = Some(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let context = LbContext { hash, metadata_match: wanted, ..LbContext::default() };
    std::hint::black_box(cluster.choose_host(&context)).expect("a host");
}

/// What requests want of metadata: a hundredth of the hosts.
fn wanted() -> Option<MetadataMatch> {
    let values = serde_json::json!({"group": "7", "half": "1"});
    let wanted: Metadata = [("envoy.lb".to_owned(), values.as_object().cloned().expect("an object"))].into();
    MetadataMatch::compile(&wanted, None)
}

/// How long it takes to compile, and to take over the change of one endpoint's weight, on the control thread and on a worker.
fn update(case: &(&str, &str, bool)) {
    let cluster = compiled(case);
    let upstreams = Upstreams::new(Registry::new(), false);
    upstreams.apply(&table(&cluster));
    let mut assignment = cluster.info.config.load_assignment.clone();
    assignment.localities[0].endpoints[5].load_balancing_weight += 1;
    let start = Instant::now();
    let next = cluster.with_assignment(&assignment);
    let made = start.elapsed();
    let table = table(&next);
    let start = Instant::now();
    upstreams.apply(&table);
    let taken = start.elapsed();
    let start = Instant::now();
    pick(&upstreams.clusters()[0], 3, wanted().as_ref());
    println!("{:24} made in {made:?}, taken over in {taken:?}, first pick in {:?}", case.0, start.elapsed());
}

fn compiled((_, fields, weights): &(&str, &str, bool)) -> Arc<Cluster> {
    let endpoint = |i: usize| {
        let weight = if *weights { i % 10 + 1 } else { 1 };
        format!(
            "{{load_balancing_weight: {weight}, metadata: {{filter_metadata: {{envoy.lb: {{group: '{}', half: '{}'}}}}}}, endpoint: \
             {{address: {{socket_address: {{address: 10.{}.{}.{}, port_value: 80}}}}}}}}",
            i % 100,
            i % 2,
            i / 65536,
            i / 256 % 256,
            i % 256
        )
    };
    let locality = |zone: usize| {
        let range = (0..HOSTS).filter(|i| i % 4 == zone).map(endpoint).collect::<Vec<_>>().join(", ");
        format!("{{locality: {{zone: z{zone}}}, load_balancing_weight: {}, lb_endpoints: [{range}]}}", zone + 1)
    };
    let localities = (0..4).map(locality).collect::<Vec<_>>().join(", ");
    let text = format!("{{name: u, {fields} load_assignment: {{cluster_name: u, endpoints: [{localities}]}}}}");
    let node = yaml::parse(&text).expect("YAML");
    let encoded = encode(node, "envoy.config.cluster.v3.Cluster", EncodeOptions::default()).expect("a cluster");
    let p = pb::Cluster::decode(&*encoded.bytes).expect("a cluster");
    let mut cx = Context::new();
    let read = weft_config::Cluster::from_proto(p, &mut cx);
    let (config, _) = cx.finish(read).expect("no problems");
    assert!(!matches!(config.load_balancing.policy.kind, PolicyKind::ClusterProvided));
    let id = Names::default().intern("u");
    Cluster::compile(id, Arc::new(config), None, None, false, &SecretStore::default(), &mut Context::new())
}

fn table(cluster: &Arc<Cluster>) -> ClusterTable {
    let mut names = Names::default();
    names.intern("u");
    ClusterTable::new([cluster.clone()], Arc::new(names))
}
