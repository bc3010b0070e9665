//! The control thread: owns the store, publishes snapshots to the workers, discovers hosts, serves the admin API, handles signals.

use super::{
    boot::{self, Boot},
    cli::{Mode, Options},
    discovery::Discoveries,
    file_watch,
    health_checks::HealthChecks,
    host_weights::HostWeights,
    load_reports,
    on_demand::OnDemand,
    outliers::Outliers,
    resident,
    runtime::Runtime,
    secret_files::SecretFiles,
    worker::{Message, Worker, WorkerOptions},
    xds::Xds,
};
use crate::{
    admin::{Admin, AdminSocket, State, StatsSettings},
    http::request_headers::LocalInfo,
    listener::GlobalLimit,
    observe::{
        access_log::{AccessLogs, LogWriter},
        stats::{ClusterManagerStats, ListenerManagerStats, Registry, ServerStats},
        stats_text::Bounds,
        tags::TagExtractors,
    },
    snapshot::{Store, secrets::Updated},
    transport::tls::stats::{ClientSocketFactoryStats, ServerSocketFactoryStats},
    upstream::{ClusterId, Upstreams},
};
use http::HeaderValue;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
};
use weft_config::{Context, Problem, access_log::AccessLog};
use weft_control_api::{Message as _, ResourceType, envoy::config::accesslog::v3 as accesslog};

/// The server while it runs. Lives on the control thread.
pub struct Control {
    pub options: Options,
    pub boot: Boot,
    pub registry: Registry,
    pub store: RefCell<Store>,
    pub workers: RefCell<Vec<Worker>>,
    pub concurrency: usize,
    pub log_writer: LogWriter,
    pub runtime: RefCell<Runtime>,
    pub stats_settings: StatsSettings,
    pub stats: Stats,
    pub state: Cell<State>,
    pub health_check_failed: Cell<bool>,
    pub start: Instant,
    pub start_time: std::time::SystemTime,
    /// This thread's clusters: their stats show before there is traffic, and gRPC clients go through them.
    pub upstreams: Rc<Upstreams>,
    pub discoveries: Discoveries,
    pub host_weights: HostWeights,
    pub outliers: Outliers,
    pub health_checks: HealthChecks,
    pub xds: Xds,
    pub on_demand: OnDemand,
    pub secret_files: SecretFiles,
    /// Where contexts that secrets changed are counted.
    context_stats: RefCell<BTreeMap<Updated, Counted>>,
    pub quit: Notify,
    /// Something asks for a new snapshot.
    pub republish: Notify,
    /// Clusters whose hosts changed their health, which workers are to be told.
    changed_health: RefCell<Vec<ClusterId>>,
    /// A graceful drain is under way; after the drain time the listeners stop (true: inbound ones only).
    pub stop_later: Cell<Option<bool>>,
}

/// Where a context is counted.
enum Counted {
    Server(Arc<ServerSocketFactoryStats>),
    Client(Arc<ClientSocketFactoryStats>),
}

/// What the control thread alone counts.
pub struct Stats {
    pub server: Arc<ServerStats>,
    pub listeners: Arc<ListenerManagerStats>,
    pub clusters: Arc<ClusterManagerStats>,
}

/// Serves until a signal or the admin API ends it.
///
/// # Errors
/// What is wrong with the static configuration, with its place in the text.
pub fn run(options: Options, boot: Boot) -> Result<(), Vec<Problem>> {
    let internal = |e: io::Error| vec![Problem::new("", e.to_string())];
    let interval = Duration::from_millis(u64::from(options.log.file_flush_interval_msec));
    let log_writer = LogWriter::start(interval, options.log.flush_size()).map_err(internal)?;
    let concurrency = options.process.concurrency.map_or_else(super::cpus::usable, |n| n.max(1) as usize);
    let mut store = boot::store(&options, &boot, concurrency, log_writer.clone());
    boot::load_static(&mut store, &boot, true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .map_err(internal)?;
    runtime.block_on(async move {
        let control = Control::new(options, boot, store, log_writer, concurrency);
        control.serve().await
    })
}

impl Control {
    fn new(options: Options, boot: Boot, store: Store, log_writer: LogWriter, concurrency: usize) -> Rc<Self> {
        let registry = Registry::new();
        registry.set_matcher(boot.bootstrap.stats.matcher.clone());
        let stats = Stats {
            server: registry.attach("server"),
            listeners: registry.attach("listener_manager"),
            clusters: registry.attach("cluster_manager"),
        };
        Rc::new(Self {
            runtime: RefCell::new(Runtime::new(
                &boot.bootstrap.runtime_layers,
                &boot.bootstrap.node.cluster,
                &registry,
            )),
            stats_settings: StatsSettings {
                tags: TagExtractors::new(&boot.bootstrap.stats, &options.process.stats_tag),
                bounds: Bounds::new(&boot.bootstrap.stats.histogram_buckets),
            },
            upstreams: Upstreams::new(registry.clone(), true),
            discoveries: Discoveries::default(),
            host_weights: HostWeights::default(),
            outliers: Outliers::default(),
            health_checks: HealthChecks::default(),
            xds: Xds::default(),
            on_demand: OnDemand::default(),
            secret_files: SecretFiles::default(),
            context_stats: RefCell::default(),
            options,
            boot,
            registry,
            store: RefCell::new(store),
            workers: RefCell::default(),
            concurrency,
            log_writer,
            stats,
            state: Cell::new(State::Initializing),
            health_check_failed: Cell::new(false),
            start: Instant::now(),
            start_time: std::time::SystemTime::now(),
            quit: Notify::new(),
            republish: Notify::new(),
            changed_health: RefCell::default(),
            stop_later: Cell::new(None),
        })
    }

    async fn serve(self: Rc<Self>) -> Result<(), Vec<Problem>> {
        let internal = |e: io::Error| vec![Problem::new("", e.to_string())];
        self.start_admin()?;
        self.stats.server.concurrency.set(self.concurrency as u64);
        self.count_static();
        let control = self.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = control.initialize().await {
                tracing::error!(target: "main", "workers cannot be started: {error}");
                control.quit.notify_one();
            }
        });
        self.wait_for_end().await.map_err(internal)?;
        self.shut_down();
        Ok(())
    }

    /// Clusters first, then listeners, then the workers: nothing is accepted before it is known where it may go.
    async fn initialize(self: &Rc<Self>) -> io::Result<()> {
        let dynamic = self.boot.bootstrap.dynamic_resources.clone();
        self.watch_runtime();
        tokio::task::spawn_local(SecretFiles::run(self.clone()));
        self.settle();
        self.until(|| self.runtime.borrow().is_settled()).await;
        if let Some(cds) = &dynamic.cds {
            self.xds.subscribe_all(self, ResourceType::Cluster, cds);
        }
        let has_cds = || dynamic.cds.is_none() || self.xds.has_answered(ResourceType::Cluster);
        self.until(|| has_cds() && self.store.borrow().clusters.warming().is_empty()).await;
        if let Some(lds) = &dynamic.lds {
            self.xds.subscribe_all(self, ResourceType::Listener, lds);
        }
        let has_lds = || dynamic.lds.is_none() || self.xds.has_answered(ResourceType::Listener);
        self.until(|| has_lds() && self.store.borrow().warming_listeners.is_empty()).await;
        if self.options.config.mode == Mode::InitOnly {
            tracing::info!(target: "main", "all that was to be initialized is");
            self.quit.notify_one();
            return Ok(());
        }
        self.start_workers()?;
        OnDemand::start(self);
        if let Some(api) = self.boot.bootstrap.cluster_manager.load_stats.clone() {
            tokio::task::spawn_local(load_reports::run(self.clone(), api));
        }
        self.state.set(State::Live);
        self.stats.server.live.set(1);
        self.stats.server.initialization_time_ms.record(self.start.elapsed().as_millis() as u64);
        self.stats.listeners.workers_started.set(1);
        tracing::info!(target: "main", "starting main dispatch loop");
        self.flush_stats();
        resident::give_back();
        Ok(())
    }

    /// Reads the runtime layers on disk again whenever a directory that holds them changes.
    fn watch_runtime(self: &Rc<Self>) {
        let directories = self.runtime.borrow().watched();
        if directories.is_empty() {
            return;
        }
        let control = self.clone();
        tokio::task::spawn_local(async move {
            let changed = Rc::new(Notify::new());
            let _watches: Vec<_> =
                directories.iter().filter_map(|directory| file_watch::watch(directory, changed.clone())).collect();
            loop {
                changed.notified().await;
                control.runtime.borrow_mut().reload();
                control.publish();
            }
        });
    }

    async fn until(&self, done: impl Fn() -> bool) {
        while !done() {
            self.xds.progress.notified().await;
        }
    }

    /// Something came that others may have waited for.
    pub fn settle(self: &Rc<Self>) {
        self.store.borrow_mut().settle();
        self.publish();
        self.xds.progress.notify_one();
    }

    /// Counts what an update changed.
    pub fn count_changes(&self, kind: ResourceType, added: u64, modified: u64, removed: u64) {
        let (listeners, clusters) = (&self.stats.listeners, &self.stats.clusters);
        match kind {
            ResourceType::Cluster => {
                clusters.cluster_added.add(added);
                clusters.cluster_modified.add(modified);
                clusters.cluster_removed.add(removed);
            }
            ResourceType::Listener => {
                listeners.listener_added.add(added);
                listeners.listener_modified.add(modified);
                let in_place = std::mem::take(&mut self.store.borrow_mut().in_place_updates);
                listeners.listener_in_place_updated.add(in_place);
                listeners.listener_create_success.add((added + modified) * self.concurrency as u64);
                listeners.listener_removed.add(removed);
            }
            _ => {}
        }
    }

    /// Counts the contexts that secrets changed.
    fn count_contexts(&self) {
        let mut stats = self.context_stats.borrow_mut();
        for updated in std::mem::take(&mut self.store.borrow_mut().updated_contexts) {
            let attach = || match &updated {
                Updated::Server(prefix) => {
                    Counted::Server(self.registry.attach(&format!("{prefix}.server_ssl_socket_factory")))
                }
                Updated::Client(prefix) => {
                    Counted::Client(self.registry.attach(&format!("{prefix}.client_ssl_socket_factory")))
                }
            };
            match stats.entry(updated.clone()).or_insert_with(attach) {
                Counted::Server(stats) => stats.ssl_context_update_by_sds.inc(),
                Counted::Client(stats) => stats.ssl_context_update_by_sds.inc(),
            }
        }
    }

    fn start_admin(self: &Rc<Self>) -> Result<(), Vec<Problem>> {
        let Some(admin) = &self.boot.bootstrap.admin else { return Ok(()) };
        let Some(address) = &admin.address else { return Ok(()) };
        let mut cx = Context::at("admin");
        let logs: Vec<AccessLog> = cx.elements("access_log", admin.access_log.clone(), |cx, bytes| {
            let proto = accesslog::AccessLog::decode(&*bytes).map_err(|e| cx.problem(e.to_string())).ok()?;
            AccessLog::from_proto(proto, cx)
        });
        let logs = AccessLogs::compile("access_log", &logs, &self.log_writer, &mut cx);
        let (logs, _) = cx.finish(Some(logs))?;
        let socket = AdminSocket::bind(address).map_err(|e| vec![Problem::new("admin.address", e.to_string())])?;
        let path = &self.options.process.admin_address_path;
        if !path.is_empty()
            && let Err(error) = std::fs::write(path, socket.address().to_string())
        {
            tracing::error!(target: "main", "cannot write the admin address to {path}: {error}");
        }
        let server = Admin::new(self.clone(), admin.allow_paths.clone(), logs);
        tokio::task::spawn_local(server.serve(socket));
        Ok(())
    }

    fn start_workers(&self) -> io::Result<()> {
        let node = &self.boot.bootstrap.node;
        let header = |text: &str| HeaderValue::try_from(text).ok().filter(|v| !v.is_empty());
        let options = WorkerOptions {
            registry: self.registry.clone(),
            local: Arc::new(LocalInfo {
                address: boot::local_address(self.options.process.local_address_ip_version),
                node_id: header(&node.id),
                service_cluster: header(&node.cluster),
            }),
            drain_time: self.options.drain_time(),
            drain_pace: self.options.drain_pace(),
            internal_buffer: self.boot.bootstrap.internal_listener.map_or(0, |p| p.buffer_size as usize),
            demands: self.on_demand.sender.clone(),
            global_limit: GlobalLimit::new(self.boot.bootstrap.overload.max_downstream_connections),
        };
        self.store.borrow_mut().serve();
        let snapshot = Arc::new(self.store.borrow().snapshot());
        let mut workers = self.workers.borrow_mut();
        for index in 0..self.concurrency {
            workers.push(Worker::start(index, options.clone(), snapshot.clone())?);
        }
        Ok(())
    }

    /// Ends an interval of the histograms every now and then.
    fn flush_stats(self: &Rc<Self>) {
        let Some(interval) = self.boot.bootstrap.stats_flush_interval else { return };
        let registry = self.registry.clone();
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(interval).await;
                registry.flush();
            }
        });
    }

    fn count_static(&self) {
        let store = self.store.borrow();
        let listeners = (store.listeners.len() + store.warming_listeners.len()) as u64;
        self.stats.listeners.listener_added.add(listeners);
        self.stats.listeners.listener_create_success.add(listeners * self.concurrency as u64);
        self.stats.clusters.cluster_added.add(store.all_clusters().count() as u64);
        store.unknown_fields.set(0);
        // Once for the whole bootstrap, however many there are.
        self.stats.server.static_unknown_fields.add(u64::from(!self.boot.loaded.unknown.is_empty()));
    }

    /// Makes what the store holds the truth of this thread and all workers.
    pub fn publish(self: &Rc<Self>) {
        let snapshot = {
            let mut store = self.store.borrow_mut();
            store.runtime = self.runtime.borrow().snapshot();
            Arc::new(store.snapshot())
        };
        self.upstreams.set_runtime(&snapshot.runtime);
        self.upstreams.apply(&snapshot.clusters);
        let touched = self.store.borrow_mut().clusters.take_touched();
        self.discoveries.follow(self, &touched);
        self.host_weights.follow(self, &touched);
        self.outliers.follow(self, &touched);
        self.health_checks.follow(self, &touched);
        self.xds.follow(self);
        self.secret_files.follow(self);
        self.count_contexts();
        let stats = &self.stats;
        stats.listeners.total_listeners_active.set(snapshot.listeners.len() as u64);
        let store = self.store.borrow();
        stats.clusters.active_clusters.set(store.clusters.in_force().len() as u64);
        stats.clusters.warming_clusters.set(store.clusters.warming().len() as u64);
        stats.listeners.total_listeners_warming.set(store.warming_listeners.len() as u64);
        drop(store);
        self.tell_workers(&Message::Publish(snapshot));
        self.on_demand.published(self);
    }

    /// Hosts of a cluster changed their health: all threads pick by that from now on. Changes that come together are told
    /// together.
    pub fn health_changed(self: &Rc<Self>, cluster: ClusterId) {
        let mut changed = self.changed_health.borrow_mut();
        if changed.contains(&cluster) {
            return;
        }
        changed.push(cluster);
        if changed.len() == 1 {
            let control = self.clone();
            tokio::task::spawn_local(async move {
                let changed = control.changed_health.take();
                let mut store = control.store.borrow_mut();
                let clusters: Arc<[_]> = changed.into_iter().filter_map(|id| store.refresh_health(id)).collect();
                drop(store);
                control.upstreams.update(&clusters);
                control.tell_workers(&Message::Health(clusters));
            });
        }
    }

    pub fn tell_workers(&self, message: &Message) {
        self.workers.borrow().iter().for_each(|worker| worker.send(message.clone()));
    }

    /// Stops the listeners: their sockets are closed, their connections told to end.
    pub fn stop_listeners(&self, inbound_only: bool) {
        let store = self.store.borrow();
        let stopped = store.listeners.iter().filter(|(_, entry)| !inbound_only || entry.value.facts.is_inbound);
        let stopped = stopped.map(|(_, entry)| entry.value.sockets.close()).count() as u64;
        self.stats.listeners.listener_stopped.add(stopped);
        self.tell_workers(&Message::StopListeners { inbound_only });
    }

    async fn wait_for_end(self: &Rc<Self>) -> io::Result<()> {
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let mut usr1 = signal(SignalKind::user_defined1())?;
        loop {
            tokio::select! {
                _ = term.recv() => tracing::warn!(target: "main", "caught ENVOY_SIGTERM"),
                _ = int.recv() => tracing::warn!(target: "main", "caught SIGINT"),
                () = self.quit.notified() => {}
                () = self.republish.notified() => {
                    self.after_command();
                    continue;
                }
                _ = usr1.recv() => {
                    self.reopen_logs();
                    continue;
                }
            }
            return Ok(());
        }
    }

    /// What a command of the admin API began.
    fn after_command(self: &Rc<Self>) {
        self.publish();
        if let Some(inbound_only) = self.stop_later.take() {
            let (control, after) = (self.clone(), self.options.drain_time());
            tokio::task::spawn_local(async move {
                tokio::time::sleep(after).await;
                control.stop_listeners(inbound_only);
            });
        }
    }

    pub fn reopen_logs(&self) {
        self.log_writer.reopen();
        super::logging::reopen();
    }

    fn shut_down(&self) {
        tracing::info!(target: "main", "shutting down server instance");
        self.workers.borrow_mut().drain(..).for_each(Worker::stop);
        self.log_writer.flush();
    }
}
