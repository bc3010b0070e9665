//! What the admin API sees of the server: plain data, and commands. Implemented by the server on the control thread.

use crate::{
    base::{Address, RuntimeSnapshot},
    observe::{stats::Registry, stats_text::Bounds, tags::TagExtractors},
    upstream::Cluster,
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use weft_control_api::{Any, envoy::config::core::v3::Node};

/// The server as the admin API knows it. Everything happens on one thread; nothing here may wait.
pub trait ServerView {
    fn info(&self) -> ServerInfo;
    fn registry(&self) -> &Registry;
    fn stats_settings(&self) -> &StatsSettings;
    /// Brings stats up to date that are only computed when someone looks: uptime, memory.
    fn refresh_stats(&self);
    /// In the order in which they were added; those that are active.
    fn listeners(&self) -> Vec<ListenerStatus>;
    /// Those that are active.
    fn clusters(&self) -> Vec<Arc<Cluster>>;
    fn config_dump(&self) -> ConfigDump;
    /// What initialization still waits for.
    fn unready_targets(&self) -> Vec<UnreadyTargets>;
    /// Every certificate that is presented is past its end.
    fn is_identity_expired(&self) -> bool;
    /// A certificate that was presented was withdrawn by its source, and none took its place.
    fn is_identity_withdrawn(&self) -> bool;
    /// `admin.v3.Certificate`s as JSON.
    fn certificates(&self) -> Vec<serde_json::Value>;
    fn runtime(&self) -> RuntimeDump;
    fn runtime_snapshot(&self) -> Arc<RuntimeSnapshot>;
    /// Sets values of the admin layer; an empty value removes one.
    ///
    /// # Errors
    /// There is no admin layer.
    fn modify_runtime(&self, changes: &[(String, String)]) -> Result<(), String>;
    /// Components of the log with their levels.
    fn log_levels(&self) -> Vec<(&'static str, &'static str)>;
    /// Sets the level of a component, or of all; false if there is no such component. The level is one of Envoy's.
    fn set_log_level(&self, component: Option<&str>, level: &str) -> bool;
    fn command(&self, command: Command);
}

/// What the admin API tells the server to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Ends the process.
    Quit,
    /// Health checks fail from now on, connections drain.
    FailHealthCheck,
    PassHealthCheck,
    DrainListeners {
        /// Only listeners whose `traffic_direction` is `INBOUND`.
        inbound_only: bool,
        /// Lets the drain time pass before listeners are closed.
        graceful: bool,
        /// Tells connections to go, but closes no listener.
        skip_exit: bool,
    },
    /// Opens access logs anew.
    ReopenLogs,
}

/// `/server_info`.
#[derive(Clone, Debug)]
pub struct ServerInfo {
    /// Revision, API version, state of the source, kind of build, what else.
    pub version: String,
    pub state: State,
    pub uptime: Duration,
    /// Since the first of all hot restarts.
    pub uptime_all_epochs: Duration,
    pub hot_restart_version: String,
    /// `admin.v3.CommandLineOptions`.
    pub command_line_options: serde_json::Value,
    /// As control planes see it.
    pub node: Node,
}

/// How far the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    Live,
    Draining,
    PreInitializing,
    Initializing,
}

impl State {
    /// As `/ready` prints it. The order of the variants is the number that `server.state` shows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Draining => "DRAINING",
            Self::PreInitializing => "PRE_INITIALIZING",
            Self::Initializing => "INITIALIZING",
        }
    }
}

/// How stats are printed.
pub struct StatsSettings {
    pub tags: TagExtractors,
    pub bounds: Bounds,
}

/// `/listeners`.
#[derive(Clone, Debug)]
pub struct ListenerStatus {
    pub name: String,
    /// What it is bound to: the first address, then the additional ones.
    pub addresses: Vec<Address>,
}

/// `/init_dump`: one who waits, and for whom.
#[derive(Clone, Debug)]
pub struct UnreadyTargets {
    pub name: String,
    pub targets: Vec<String>,
}

/// `/runtime`.
#[derive(Clone, Debug, Default)]
pub struct RuntimeDump {
    /// Names, from the first to the last.
    pub layers: Vec<String>,
    /// Keys, with the text in each layer (empty: not there).
    pub entries: Vec<(String, Vec<String>)>,
}

/// All accepted configuration, and what was refused last.
#[derive(Clone, Debug, Default)]
pub struct ConfigDump {
    /// `envoy.config.bootstrap.v3.Bootstrap`.
    pub bootstrap: Option<Resource>,
    pub clusters: VersionedResources,
    pub listeners: Vec<DynamicListener>,
    /// The last accepted version of LDS.
    pub listeners_version: String,
    pub static_listeners: Vec<Resource>,
    /// `None`: no connection manager was ever configured, so Envoy has no such part.
    pub routes: Option<VersionedResources>,
    /// Scopes of routes, one for each connection manager that has them.
    pub scoped_routes: Vec<ScopedRoutes>,
    pub secrets: VersionedResources,
    /// HTTP filters over ECDS; empty: no such part.
    pub extension_configs: Vec<DynamicResource>,
}

/// The scopes of a connection manager.
#[derive(Clone, Debug)]
pub struct ScopedRoutes {
    pub name: String,
    /// `None`: they stand in the connection manager.
    pub version_info: Option<String>,
    pub scopes: Vec<Any>,
    pub last_updated: SystemTime,
}

/// Resources of one type.
#[derive(Clone, Debug, Default)]
pub struct VersionedResources {
    /// The last accepted version, for the types that have one for all.
    pub version_info: String,
    pub fixed: Vec<Resource>,
    pub active: Vec<DynamicResource>,
    pub warming: Vec<DynamicResource>,
}

/// A resource as it came.
#[derive(Clone, Debug)]
pub struct Resource {
    pub name: String,
    pub config: Any,
    pub last_updated: SystemTime,
}

/// A resource that a control plane gave.
#[derive(Clone, Debug)]
pub struct DynamicResource {
    pub version_info: String,
    /// `None`: none was ever accepted.
    pub resource: Option<Resource>,
    /// The last update of it was refused.
    pub error: Option<UpdateFailure>,
}

/// A listener that a control plane gave, in its states.
#[derive(Clone, Debug, Default)]
pub struct DynamicListener {
    pub name: String,
    /// With its version.
    pub active: Option<(String, Resource)>,
    pub warming: Option<(String, Resource)>,
    pub draining: Option<(String, Resource)>,
    pub error: Option<UpdateFailure>,
}

/// An update that was refused.
#[derive(Clone, Debug)]
pub struct UpdateFailure {
    pub failed_configuration: Option<Any>,
    pub last_update_attempt: SystemTime,
    pub details: String,
    pub version_info: String,
}
