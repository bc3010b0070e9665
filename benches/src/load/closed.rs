//! A closed loop: as much as goes, on kept connections or on ever new ones.

use super::{Load, Outcome, Plan};
use crate::talk::Client;
use std::time::{Duration, Instant};

/// How long a first response is waited for when the time is over.
const PATIENCE: Duration = Duration::from_secs(5);

/// Keeps `plan.depth` requests out on each connection, or one on each of ever new connections. `cpu` reads the CPU time of the process
/// under load, when what counts begins and when it ends.
///
/// # Errors
/// A connection that failed, a response that was not a 200.
pub fn closed<C: Client>(plan: &Plan, open: super::Open<'_, C>, cpu: &dyn Fn() -> Duration) -> Result<Outcome, String> {
    let mut load = Load::connect(plan, open)?;
    for token in 0..plan.connections {
        load.begin(token, plan.depth)?;
    }
    let mut ready = Vec::new();
    let mut start = Instant::now();
    let mut spent = plan.warm.is_zero().then(cpu);
    let mut end = start + if spent.is_some() { plan.length } else { plan.warm };
    let mut requests = 0;
    loop {
        ready.extend(load.readiness.wait(Some(Duration::from_secs(1))).map_err(|e| e.to_string())?);
        for token in ready.drain(..) {
            let ended = load.connections[token].receive()?;
            requests += ended as u64;
            if plan.once && ended > 0 {
                load.renew(token, plan, open)?;
            }
            load.begin(token, ended)?;
        }
        let now = Instant::now();
        if now < end {
            continue;
        }
        if requests == 0 {
            if now < end + PATIENCE {
                continue;
            }
            return Err("no response".into());
        }
        match spent {
            // Warm: from here on it counts.
            None => (start, end, spent, requests) = (now, now + plan.length, Some(cpu()), 0),
            Some(spent) => return Ok(Outcome { requests, elapsed: now - start, cpu: cpu() - spent }),
        }
    }
}
