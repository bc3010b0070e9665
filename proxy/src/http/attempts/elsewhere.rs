//! Where the tries of a request go: a retry to another host or priority, as far as its policy says so and there is one.

use crate::{
    observe::StreamInfo,
    upstream::{Host, LbContext, PriorityLoads, RetryContext, ThreadCluster, ThreadHost},
};
use std::rc::Rc;
use weft_config::route::{RetryHostPredicate, RetryPolicy};

/// What was tried already, where the policy asks.
#[derive(Default)]
pub(super) struct Elsewhere {
    /// The priorities of the hosts that were tried.
    tried: Vec<u32>,
    excluded: Vec<bool>,
    loads: Option<PriorityLoads>,
}

impl Elsewhere {
    /// The host for the next try.
    pub fn choose(
        &mut self,
        cluster: &ThreadCluster,
        policy: &RetryPolicy,
        context: LbContext<'_>,
        info: &StreamInfo,
    ) -> Option<Rc<ThreadHost>> {
        if policy.priority.is_none() && policy.host_predicates.is_empty() {
            return cluster.choose_host(&context);
        }
        if let Some(previous) = &policy.priority {
            self.update(cluster, previous.update_frequency);
        }
        let attempted = &info.upstream.attempted;
        let should_select_another = |host: &Host| {
            policy.host_predicates.iter().any(|predicate| match predicate {
                RetryHostPredicate::PreviousHosts => attempted.contains(&host.address),
                RetryHostPredicate::OmitCanary => host.is_canary(),
                RetryHostPredicate::OmitLabels(unwanted) => host.has_labels(unwanted),
            })
        };
        let retry = RetryContext {
            should_select_another: &should_select_another,
            max_attempts: policy.host_selection_max_attempts,
            loads: self.loads.as_ref(),
        };
        let is_retry = info.attempt_count > 1;
        let host = cluster.choose_host(&LbContext { retry: is_retry.then_some(retry), ..context })?;
        if policy.priority.is_some() {
            self.tried.push(host.host().priority);
        }
        Some(host)
    }

    /// Leaves the priorities out that were tried, after every `frequency` tries.
    fn update(&mut self, cluster: &ThreadCluster, frequency: u32) {
        if self.tried.is_empty() || !self.tried.len().is_multiple_of(frequency as usize) {
            return;
        }
        let highest = self.tried.iter().max().map_or(0, |highest| *highest as usize);
        self.excluded.resize(self.excluded.len().max(highest + 1), false);
        for priority in &self.tried {
            self.excluded[*priority as usize] = true;
        }
        self.loads = cluster.loads_without(&mut self.excluded);
        if !self.excluded.contains(&true) {
            // No other is left: it begins anew.
            self.tried.clear();
        }
    }
}
