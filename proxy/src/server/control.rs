//! The control thread: owns the store, publishes snapshots to the workers, handles signals.

use super::{
    boot::{self, Boot},
    cli::Options,
    worker::{Message, Worker, WorkerOptions},
};
use crate::{
    http::request_headers::LocalInfo,
    observe::{access_log::LogWriter, stats::Registry},
    snapshot::Store,
};
use http::HeaderValue;
use std::{sync::Arc, time::Duration};
use tokio::signal::unix::{SignalKind, signal};
use weft_config::Problem;

/// The server while it runs.
pub struct Control {
    pub options: Options,
    pub boot: Boot,
    pub registry: Registry,
    pub store: Store,
    pub workers: Vec<Worker>,
    pub log_writer: LogWriter,
}

/// Serves until a signal ends it.
///
/// # Errors
/// What is wrong with the static configuration, with its place in the text.
pub fn run(options: Options, boot: Boot) -> Result<(), Vec<Problem>> {
    let internal = |e: std::io::Error| vec![Problem::new("", e.to_string())];
    let interval = Duration::from_millis(u64::from(options.log.file_flush_interval_msec));
    let log_writer = LogWriter::start(interval).map_err(internal)?;
    let concurrency = options.process.concurrency.map_or_else(default_concurrency, |n| n.max(1) as usize);
    let mut store = boot::store(&options, &boot, concurrency, log_writer.clone());
    boot::load_static(&mut store, &boot, true).map_err(|mut problems| {
        boot.loaded.locate(&mut problems);
        problems
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .map_err(internal)?;
    let registry = Registry::new();
    let control = Control { options, boot, registry, store, workers: Vec::new(), log_writer };
    runtime.block_on(serve(control, concurrency)).map_err(internal)
}

async fn serve(mut control: Control, concurrency: usize) -> std::io::Result<()> {
    let node = &control.boot.bootstrap.node;
    let header = |text: &str| HeaderValue::try_from(text).ok().filter(|v| !v.is_empty());
    let options = WorkerOptions {
        registry: control.registry.clone(),
        local: Arc::new(LocalInfo {
            address: boot::local_address(),
            node_id: header(&node.id),
            service_cluster: header(&node.cluster),
        }),
        drain_time: Duration::from_secs(u64::from(control.options.restart.drain_time_s)),
    };
    let snapshot = Arc::new(control.store.snapshot());
    for index in 0..concurrency {
        control.workers.push(Worker::start(index, options.clone(), snapshot.clone())?);
    }
    tracing::info!(target: "main", "serving with {concurrency} workers");
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut usr1 = signal(SignalKind::user_defined1())?;
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            _ = usr1.recv() => {
                control.log_writer.reopen();
                super::logging::reopen();
            }
        }
    }
    tracing::warn!(target: "main", "caught a signal to end");
    control.shut_down();
    Ok(())
}

impl Control {
    /// Makes what the store holds the truth of all workers.
    pub fn publish(&self) {
        let snapshot = Arc::new(self.store.snapshot());
        self.workers.iter().for_each(|worker| worker.send(Message::Publish(snapshot.clone())));
    }

    fn shut_down(&mut self) {
        self.workers.drain(..).for_each(Worker::stop);
        self.log_writer.flush();
    }
}

/// The CPUs that the cgroup allows, else those of the machine.
fn default_concurrency() -> usize {
    let quota = std::fs::read_to_string("/sys/fs/cgroup/cpu.max").ok().and_then(|text| {
        let (quota, period) = text.trim().split_once(' ')?;
        let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
        Some((quota / period).ceil() as usize)
    });
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    quota.map_or(cores, |quota| quota.clamp(1, cores))
}
