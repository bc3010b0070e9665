//! An open loop: a fixed rate, whether or not the answers come.
//!
//! A request's latency counts from when it was due, not from when a connection was free for it: what waits behind a slow
//! response is not left out.

use super::{Load, Open, Outcome, Plan};
use crate::talk::Client;
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// How long is waited for what is still out when the time is over.
const PATIENCE: Duration = Duration::from_secs(2);

/// Sends `rate` requests a second, evenly, whether or not the answers come. Gives the latencies too, sorted.
///
/// # Errors
/// A connection that failed, a response that was not a 200.
pub fn open<C: Client>(
    plan: &Plan,
    rate: f64,
    open: Open<'_, C>,
    cpu: &dyn Fn() -> Duration,
) -> Result<(Outcome, Vec<Duration>), String> {
    // The default slack of 50 us would be in every latency.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    let mut load = Load::connect(plan, open)?;
    let interval = Duration::from_secs_f64(1.0 / rate);
    let start = Instant::now();
    let (warm, end) = (start + plan.warm, start + plan.warm + plan.length);
    let mut next = start;
    let mut waiting = VecDeque::new();
    let mut free: VecDeque<usize> = (0..plan.connections).collect();
    let mut due = vec![start; plan.connections];
    let mut latencies = Vec::new();
    let mut requests = 0;
    let mut spent = None;
    let mut ready = Vec::new();
    loop {
        let now = Instant::now();
        if spent.is_none() && now >= warm {
            spent = Some(cpu());
        }
        while next <= now && next < end {
            waiting.push_back(next);
            next += interval;
        }
        while !waiting.is_empty()
            && let Some(token) = free.pop_front()
            && let Some(at) = waiting.pop_front()
        {
            due[token] = at;
            load.begin(token, 1)?;
        }
        let over = next >= end;
        if over && (free.len() == plan.connections || now >= end + PATIENCE) {
            break;
        }
        let timeout = if over { PATIENCE } else { next.saturating_duration_since(Instant::now()) };
        ready.extend(load.readiness.wait(Some(timeout)).map_err(|e| e.to_string())?);
        for token in ready.drain(..) {
            if load.connections[token].receive()? == 0 {
                continue;
            }
            if due[token] >= warm {
                requests += 1;
                latencies.push(due[token].elapsed());
            }
            free.push_back(token);
        }
    }
    let now = Instant::now();
    // What never came counts with the time it has waited so far.
    latencies.extend(waiting.iter().map(|at| now - *at));
    let out = (0..plan.connections).filter(|token| !free.contains(token));
    latencies.extend(out.map(|token| now - due[token]));
    latencies.sort_unstable();
    let cpu = cpu() - spent.unwrap_or_default();
    Ok((Outcome { requests, elapsed: now - warm, cpu }, latencies))
}
