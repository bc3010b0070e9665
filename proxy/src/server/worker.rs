//! A worker: one thread with a runtime of its own, its share of every listener, its pools.

use crate::{
    base::{Drain, drain::Pace},
    http::{
        Thread,
        demand::{Demand, Demands, Wanted},
        request_headers::LocalInfo,
    },
    listener::{GlobalLimit, Listener, Listeners},
    observe::stats::Registry,
    snapshot::Snapshot,
    upstream::{Cluster, Upstreams},
};
use std::{io, sync::Arc, thread, time::Duration};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What the control thread tells its workers.
#[derive(Clone)]
pub enum Message {
    Publish(Arc<Snapshot>),
    /// Hosts of these clusters changed their health.
    Health(Arc<[Arc<Cluster>]>),
    /// Listeners stop accepting; true: only inbound ones.
    StopListeners {
        inbound_only: bool,
    },
    /// Connections end when they can.
    Drain {
        inbound_only: bool,
    },
    /// What requests waited for is there, or is known not to be.
    Demanded {
        wanted: Wanted,
        is_there: bool,
    },
    /// `/healthcheck/fail` and `/healthcheck/ok`.
    HealthCheck {
        failed: bool,
    },
}

/// The control thread's end of one worker.
pub struct Worker {
    sender: UnboundedSender<Message>,
    thread: thread::JoinHandle<()>,
}

/// What every worker is given.
#[derive(Clone)]
pub struct WorkerOptions {
    pub registry: Registry,
    pub local: Arc<LocalInfo>,
    pub drain_time: Duration,
    pub drain_pace: Pace,
    /// Bytes that a connection to an internal listener holds in each direction.
    pub internal_buffer: usize,
    /// For the downstream connections of all workers together.
    pub global_limit: Arc<GlobalLimit>,
    /// Where workers ask for what is not there.
    pub demands: UnboundedSender<Demand>,
}

impl Worker {
    /// Starts a worker with the snapshot that it begins with.
    pub fn start(index: usize, options: WorkerOptions, snapshot: Arc<Snapshot>) -> io::Result<Self> {
        let (sender, receiver) = unbounded_channel();
        let thread = thread::Builder::new().name(format!("wrk:worker_{index}")).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .enable_time()
                .build_local(tokio::runtime::LocalOptions::default());
            match runtime {
                Ok(runtime) => runtime.block_on(run(index, options, snapshot, receiver)),
                Err(error) => tracing::error!(target: "main", "worker {index} cannot start: {error}"),
            }
        })?;
        Ok(Self { sender, thread })
    }

    pub fn send(&self, message: Message) {
        // A worker that is gone has nothing left to be told.
        let _ = self.sender.send(message);
    }

    /// Ends the worker: its connections are closed.
    pub fn stop(self) {
        drop(self.sender);
        let _ = self.thread.join();
    }
}

async fn run(index: usize, options: WorkerOptions, snapshot: Arc<Snapshot>, mut messages: UnboundedReceiver<Message>) {
    let upstreams = Upstreams::new(options.registry.clone(), false);
    upstreams.internals().set_buffer(options.internal_buffer);
    let thread = Thread::new(
        index,
        upstreams,
        options.registry,
        options.local,
        Drain::paced(options.drain_pace),
        snapshot.runtime.clone(),
        Demands::new(index, options.demands),
    );
    let listeners = Listeners::new(thread.clone(), options.drain_time, options.global_limit);
    apply(&thread, &listeners, &snapshot);
    while let Some(message) = messages.recv().await {
        match message {
            Message::Publish(snapshot) => apply(&thread, &listeners, &snapshot),
            Message::Health(clusters) => thread.upstreams.update(&clusters),
            Message::StopListeners { inbound_only } => listeners.stop_accepting(takes(inbound_only)),
            Message::Drain { inbound_only } => listeners.drain(takes(inbound_only)),
            Message::Demanded { wanted, is_there } => thread.demands.answer(&wanted, is_there),
            Message::HealthCheck { failed } => thread.health_check_failed.set(failed),
        }
    }
}

fn takes(inbound_only: bool) -> impl Fn(&Listener) -> bool {
    move |listener| !inbound_only || listener.facts.is_inbound
}

/// Clusters first, then routes, then listeners: nothing refers to what is not there yet.
fn apply(thread: &Thread, listeners: &std::rc::Rc<Listeners>, snapshot: &Snapshot) {
    thread.upstreams.apply(&snapshot.clusters);
    thread.upstreams.set_runtime(&snapshot.runtime);
    thread.set_runtime(snapshot.runtime.clone());
    thread.set_routes(snapshot.routes.clone());
    listeners.apply(&snapshot.listeners);
}
