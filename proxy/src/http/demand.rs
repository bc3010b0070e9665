//! What requests and connections wait for that the control thread has to ask for: clusters (ODCDS) and virtual hosts (VHDS).
//!
//! A worker asks once for all that wait for the same thing. The answer comes in order with the snapshots: once it is there, so
//! is what was asked for.

use foldhash::HashMap;
use std::{cell::RefCell, future::Future, sync::Arc};
use tokio::sync::{mpsc::UnboundedSender, oneshot};
use weft_config::config_source::ConfigSource;

/// Something that may come on demand.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wanted {
    Cluster(String),
    /// The name of a route configuration, and a host in lower case.
    VirtualHost(String, String),
    /// A scope's route configuration, by name.
    Routes(String),
}

/// A worker's question.
#[derive(Debug)]
pub struct Demand {
    pub wanted: Wanted,
    /// Where clusters are to be asked for; virtual hosts are where their route configuration says.
    pub source: Option<Arc<ConfigSource>>,
    pub worker: usize,
}

/// One worker's questions.
pub struct Demands {
    worker: usize,
    sender: UnboundedSender<Demand>,
    waiting: RefCell<HashMap<Wanted, Vec<oneshot::Sender<bool>>>>,
}

impl Demands {
    pub fn new(worker: usize, sender: UnboundedSender<Demand>) -> Self {
        Self { worker, sender, waiting: RefCell::default() }
    }

    /// Asks, and waits: true if it is there now. There is no end to it but the answer.
    pub fn ask(&self, wanted: Wanted, source: Option<&Arc<ConfigSource>>) -> impl Future<Output = bool> + use<> {
        let (answer, wait) = oneshot::channel();
        let mut waiting = self.waiting.borrow_mut();
        let queue = waiting.entry(wanted.clone()).or_default();
        // Those that gave up need no answer.
        queue.retain(|waiter| !waiter.is_closed());
        if queue.is_empty() {
            // The control thread lives as long as its workers.
            let _ = self.sender.send(Demand { wanted, source: source.cloned(), worker: self.worker });
        }
        queue.push(answer);
        async move { wait.await.unwrap_or(false) }
    }

    /// The control thread's answer to all that wait.
    pub fn answer(&self, wanted: &Wanted, is_there: bool) {
        for waiter in self.waiting.borrow_mut().remove(wanted).into_iter().flatten() {
            let _ = waiter.send(is_there);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[test]
    fn many_wait_for_one_question() {
        let (sender, mut questions) = tokio::sync::mpsc::unbounded_channel();
        let demands = Demands::new(3, sender);
        let wanted = Wanted::Cluster("c".into());
        let [mut first, mut second] = [(); 2].map(|()| Box::pin(demands.ask(wanted.clone(), None)));
        assert_eq!(questions.try_recv().map(|q| (q.wanted, q.worker)), Ok((wanted.clone(), 3)));
        assert!(questions.try_recv().is_err());
        assert_eq!((&mut first).now_or_never(), None);
        demands.answer(&wanted, true);
        assert_eq!(((&mut first).now_or_never(), (&mut second).now_or_never()), (Some(true), Some(true)));
        // Whoever comes later asks again.
        drop(demands.ask(wanted.clone(), None));
        assert!(questions.try_recv().is_ok());
    }
}
