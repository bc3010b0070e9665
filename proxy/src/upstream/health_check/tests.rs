//! What checks come to, check by check.

use super::*;
use weft_config::cluster::TcpHealthCheck;

fn check(unhealthy: u32, healthy: u32) -> HealthCheck {
    let second = Duration::from_secs(1);
    HealthCheck {
        timeout: second,
        intervals: Intervals {
            initial_jitter: Duration::ZERO,
            jitter: Duration::ZERO,
            jitter_percent: 0,
            healthy: second,
            unhealthy: second * 2,
            unhealthy_edge: second * 3,
            healthy_edge: second * 4,
            no_traffic: second * 5,
            no_traffic_healthy: second * 6,
        },
        unhealthy_threshold: unhealthy,
        healthy_threshold: healthy,
        alt_port: None,
        reuse_connection: true,
        kind: HealthCheckKind::Tcp(TcpHealthCheck::default()),
    }
}

const GOOD: Checked = Checked::Good { degraded: false };

#[test]
fn thresholds_count_in_a_row() {
    use Transition::{Changed, Pending, Unchanged};
    let (check, state, mut session) = (check(2, 3), HostState::default(), Session::default());
    state.health.set(HealthFlags::FAILED_ACTIVE_HC);
    let mut take = |result| {
        let transition = session.checked(result, &check, &state);
        (transition, state.health.get().has(HealthFlags::FAILED_ACTIVE_HC))
    };
    // The first one decides.
    assert_eq!(take(GOOD), (Changed, false));
    assert_eq!(take(Checked::Unreachable), (Pending, false));
    assert_eq!(take(GOOD), (Unchanged, false));
    assert_eq!(take(Checked::TimedOut), (Pending, false));
    assert_eq!(take(Checked::Bad { retriable: true }), (Changed, true));
    assert_eq!(
        [take(GOOD), take(GOOD), take(Checked::Unreachable)],
        [(Pending, true), (Pending, true), (Unchanged, true)]
    );
    assert_eq!([take(GOOD), take(GOOD), take(GOOD)], [(Pending, true), (Pending, true), (Changed, false)]);
    // The host's own word needs no other.
    assert_eq!(take(Checked::Bad { retriable: false }), (Changed, true));
}

#[test]
fn degraded_hosts_are_told_apart() {
    let (check, state, mut session) = (check(1, 1), HostState::default(), Session::default());
    let mut take = |degraded| session.checked(Checked::Good { degraded }, &check, &state);
    assert_eq!([take(true), take(true)], [Transition::Changed, Transition::Unchanged]);
    assert_eq!([take(false), take(false)], [Transition::Changed, Transition::Unchanged]);
}

#[test]
fn intervals_follow_what_happened() {
    let intervals = check(1, 1).intervals;
    let mut rng = fastrand::Rng::with_seed(1);
    let mut seconds = |good, transition, traffic| interval(&intervals, good, transition, traffic, &mut rng).as_secs();
    let (unchanged, pending) = (Transition::Unchanged, Transition::Pending);
    assert_eq!([seconds(true, unchanged, true), seconds(false, unchanged, true)], [1, 2]);
    assert_eq!([seconds(false, pending, true), seconds(true, pending, true)], [3, 4]);
    assert_eq!([seconds(false, unchanged, false), seconds(true, pending, false)], [5, 6]);
}

#[test]
fn patterns_follow_one_another() {
    let patterns = |all: &[&str]| all.iter().map(|p| p.as_bytes().to_vec()).collect::<Vec<_>>();
    assert!(has_all(b"one two", &patterns(&["one", "two"])) && has_all(b"x", &[]));
    assert!(!has_all(b"two one", &patterns(&["one", "two"])) && !has_all(b"aa", &patterns(&["aa", "a"])));
}
