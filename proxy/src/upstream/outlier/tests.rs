//! The detector on a clock of its own.

use super::*;
use crate::upstream::{
    HostSet,
    host::tests::{assignment, endpoint, rules},
};
use weft_config::{Context, endpoint::HealthStatus};
use weft_control_api::envoy::config::cluster::v3 as pb;

/// A detector over `count` hosts, with this configuration.
fn detector(count: u16, change: impl FnOnce(&mut pb::OutlierDetection)) -> (Detector, Vec<Arc<Host>>) {
    let mut p = pb::OutlierDetection { max_ejection_percent: Some(100), ..pb::OutlierDetection::default() };
    change(&mut p);
    let config = OutlierDetection::read(p, &mut Context::new());
    let mut detector = Detector::new(config, Arc::default(), Arc::default(), fastrand::Rng::with_seed(7));
    let endpoints = (0..count).map(|port| endpoint(port, 1, HealthStatus::Unknown)).collect();
    let set = HostSet::build(&assignment(vec![endpoints]), &rules(false), None);
    let hosts: Vec<_> = set.hosts().cloned().collect();
    detector.follow(hosts.iter());
    (detector, hosts)
}

fn report(host: &Host, report: Report, times: u32) {
    let monitor = host.state.outlier().expect("the detector made one");
    (0..times).for_each(|_| monitor.report(report));
}

fn ejected(hosts: &[Arc<Host>]) -> Vec<bool> {
    hosts.iter().map(|host| is_ejected(&host.state)).collect()
}

#[test]
fn a_run_of_failures_ejects_and_time_brings_back() {
    let (mut detector, hosts) = detector(3, |_| {});
    let (start, runtime) = (Instant::now(), RuntimeSnapshot::default());
    let seconds = Duration::from_secs;
    report(&hosts[1], Report::Status(500), 4);
    report(&hosts[1], Report::Status(200), 1);
    report(&hosts[1], Report::Status(500), 4);
    assert!(!detector.look(start, &runtime));
    report(&hosts[1], Report::Failed, 1);
    assert!(detector.look(start, &runtime));
    assert_eq!(ejected(&hosts), [false, true, false]);
    assert!(!detector.tick(start + seconds(29), &runtime));
    assert!(detector.tick(start + seconds(30), &runtime));
    assert_eq!(ejected(&hosts), [false; 3]);
    report(&hosts[1], Report::TimedOut, 5);
    assert!(detector.look(start + seconds(31), &runtime));
    assert_eq!((detector.stats.ejections_enforced_total.get(), detector.stats.ejections_active.get()), (2, 1));
}

#[test]
fn who_fails_again_soon_is_out_for_longer() {
    let (mut detector, hosts) = detector(2, |_| {});
    let (start, runtime) = (Instant::now(), RuntimeSnapshot::default());
    let seconds = Duration::from_secs;
    let mut now = start;
    for times in 1..=3 {
        report(&hosts[0], Report::Status(500), 5);
        assert!(detector.look(now, &runtime));
        assert!(!detector.tick(now + seconds(30 * times - 1), &runtime));
        now += seconds(30 * times);
        let Ejections { times: before, .. } = detector.hosts[&Arc::as_ptr(&hosts[0].state)];
        assert_eq!(u64::from(before), times);
        assert!(detector.tick(now, &runtime));
        // The tick that brings it back is one in peace already.
        detector.hosts.values_mut().for_each(|host| host.times = u32::try_from(times).expect("small"));
    }
}

#[test]
fn no_more_hosts_than_allowed() {
    let (mut detector, hosts) = detector(4, |p| p.max_ejection_percent = Some(50));
    let (now, runtime) = (Instant::now(), RuntimeSnapshot::default());
    hosts.iter().for_each(|host| report(host, Report::Status(503), 5));
    assert!(detector.look(now, &runtime));
    assert_eq!(ejected(&hosts).iter().filter(|ejected| **ejected).count(), 2);
    assert_eq!(detector.stats.ejections_detected_consecutive_5xx.get(), 4);
    // Those that answer with 503 are gateways that failed, too.
    assert_eq!(detector.stats.ejections_overflow.get(), 4);
}

#[test]
fn local_failures_count_apart_where_that_is_asked_for() {
    let (mut detector, hosts) = detector(3, |p| p.split_external_local_origin_errors = true);
    let (now, runtime) = (Instant::now(), RuntimeSnapshot::default());
    report(&hosts[0], Report::Failed, 4);
    report(&hosts[0], Report::Connected, 1);
    report(&hosts[0], Report::Failed, 4);
    report(&hosts[1], Report::TimedOut, 5);
    report(&hosts[2], Report::Status(500), 4);
    report(&hosts[2], Report::Failed, 1);
    assert!(detector.look(now, &runtime));
    assert_eq!(ejected(&hosts), [false, true, false]);
}

#[test]
fn rates_are_compared_every_interval() {
    let (mut detector, hosts) = detector(6, |p| {
        p.consecutive_5xx = Some(1000);
        p.success_rate_stdev_factor = Some(1000);
    });
    let (now, runtime) = (Instant::now(), RuntimeSnapshot::default());
    for (i, host) in hosts.iter().enumerate() {
        let bad = if i == 4 { 60 } else { i as u32 };
        report(host, Report::Status(500), bad);
        report(host, Report::Status(200), 120 - bad);
    }
    assert!(detector.tick(now, &runtime));
    assert_eq!(ejected(&hosts), [false, false, false, false, true, false]);
    let rate = || hosts[0].state.outlier().map(|monitor| monitor.success_rate(false));
    assert_eq!(rate(), Some(100.0));
    assert!(detector.summary.get(false).0 > 50.0 && detector.summary.get(true).0 < 0.0);
    // Nothing came since.
    assert!(!detector.tick(now + Duration::from_secs(10), &runtime));
    assert_eq!((rate(), detector.summary.get(false).0), (Some(-1.0), -1.0));
}

#[test]
fn enough_failures_of_a_share_eject() {
    let (mut detector, hosts) = detector(5, |p| {
        p.consecutive_5xx = Some(1000);
        p.enforcing_success_rate = Some(0);
        p.enforcing_failure_percentage = Some(100);
        p.failure_percentage_threshold = Some(40);
    });
    let (now, runtime) = (Instant::now(), RuntimeSnapshot::default());
    for (i, host) in hosts.iter().enumerate() {
        let bad = if i == 2 { 20 } else { 0 };
        report(host, Report::Status(500), bad);
        report(host, Report::Status(200), 50 - bad);
    }
    assert!(detector.tick(now, &runtime));
    assert_eq!(ejected(&hosts), [false, false, true, false, false]);
}

#[test]
fn a_good_check_brings_back() {
    for asked in [None, Some(false)] {
        let (mut detector, hosts) = detector(2, |p| p.successful_active_health_check_uneject_host = asked);
        report(&hosts[0], Report::Status(500), 5);
        assert!(detector.look(Instant::now(), &RuntimeSnapshot::default()));
        assert_eq!(detector.was_good(&hosts[0].state), asked.is_none());
        assert_eq!(ejected(&hosts), [asked.is_some(), false]);
    }
}

#[test]
fn hosts_that_leave_count_no_longer() {
    let (mut detector, hosts) = detector(2, |_| {});
    report(&hosts[0], Report::Status(500), 5);
    assert!(detector.look(Instant::now(), &RuntimeSnapshot::default()));
    detector.follow(hosts[1..].iter());
    assert_eq!(detector.stats.ejections_active.get(), 0);
}
