//! The command line: Envoy's flags, so that what starts Envoy today starts Weft unchanged.
//!
//! Called by the binary. A flag that has no meaning here is accepted, and `--help` says so. Wrong usage ends the
//! process with exit code 1, as Envoy's does.

use crate::{
    base::drain::Pace,
    server::{
        log_format::DEFAULT_FORMAT,
        logging::{ComponentLevels, Level},
    },
};
use clap::{ArgAction, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use serde_json::{Value, json};
use std::{ffi::OsString, path::PathBuf, time::Duration};

/// What a hot restart's parent and child must agree on; shown by `--hot-restart-version`.
pub const HOT_RESTART_VERSION: &str = "11.104";

/// The version of the API that is spoken: Envoy's.
pub const API_VERSION: (u32, u32, u32) = (1, 40, 0);

/// How a configuration written for Envoy is run.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "weft",
    disable_version_flag = true,
    about = "A service-mesh data plane that speaks Envoy's API.",
    args_conflicts_with_subcommands = true,
    args_override_self = false
)]
pub struct Options {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub config: ConfigOptions,
    #[command(flatten)]
    pub log: LogOptions,
    #[command(flatten)]
    pub node: NodeOptions,
    #[command(flatten)]
    pub restart: RestartOptions,
    #[command(flatten)]
    pub process: ProcessOptions,

    /// Prints the version and exits
    #[arg(long)]
    version: bool,
}

/// What `weft` does when it does not run one configuration.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Runs a small mesh on this machine: control plane, gateway, sidecars and services
    Quickstart(Quickstart),
}

/// `weft quickstart`.
#[derive(Clone, Debug, Args)]
pub struct Quickstart {
    /// Where the mesh's configuration is written, to be edited; what is there already is kept
    #[arg(long, value_name = "DIR", default_value = "weft-quickstart")]
    pub dir: PathBuf,
    /// The gateway's port; the 23 after it are used, too
    #[arg(long, value_name = "PORT", default_value_t = 10_000)]
    pub port: u16,
    /// Runs the mesh on another proxy that takes Envoy's flags: Envoy
    #[arg(long, value_name = "PROGRAM")]
    pub proxy: Option<PathBuf>,
}

/// Where configuration comes from and how strictly it is read.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Configuration")]
pub struct ConfigOptions {
    /// Path to the bootstrap: YAML, JSON or binary protobuf (.pb), by its ending
    #[arg(short = 'c', long, value_name = "PATH")]
    pub config_path: Option<PathBuf>,
    /// Inline YAML, merged over the contents of --config-path
    #[arg(long, value_name = "YAML")]
    pub config_yaml: Option<String>,
    /// serve: run; validate: check the configuration and exit; init_only: exit when initialized
    #[arg(long, value_name = "MODE", default_value = "serve")]
    pub mode: Mode,
    /// Lets static configuration hold unknown fields
    #[arg(long, alias = "allow-unknown-fields")]
    pub allow_unknown_static_fields: bool,
    /// Refuses dynamic configuration that holds unknown fields
    #[arg(long)]
    pub reject_unknown_dynamic_fields: bool,
    /// Neither counts nor logs unknown fields of dynamic configuration
    #[arg(long)]
    pub ignore_unknown_dynamic_fields: bool,
    /// Does not log deprecated fields
    #[arg(long)]
    pub skip_deprecated_logs: bool,
    /// A SPIFFE Workload API, unix:///PATH or tcp://IP:PORT: secrets whose source is gRPC to the cluster spiffe_workload_api
    /// are asked for there, by the names default, ROOTCA and ALL, or by SPIFFE ID
    #[arg(long, value_name = "URI", env = "SPIFFE_ENDPOINT_SOCKET")]
    pub spiffe_endpoint_socket: Option<String>,
    /// Accepted, has no meaning yet: extensions that are not to be used, with commas
    #[arg(long, value_name = "NAMES", default_value = "")]
    pub disable_extensions: String,
}

impl ConfigOptions {
    /// Where a SPIFFE Workload API is. A variable that is set to nothing says nothing.
    pub fn workload_api(&self) -> Option<&str> {
        self.spiffe_endpoint_socket.as_deref().filter(|endpoint| !endpoint.is_empty())
    }
}

/// The application log.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Log")]
pub struct LogOptions {
    /// trace, debug, info, warning, error, critical or off
    #[arg(short = 'l', long, value_name = "LEVEL", default_value = "info")]
    pub log_level: Level,
    /// Levels of components, with commas: upstream:debug,config:trace
    #[arg(long, value_name = "LEVELS", default_value = "")]
    pub component_log_level: ComponentLevels,
    /// Writes the log to this file instead of the standard error
    #[arg(long, value_name = "PATH")]
    pub log_path: Option<PathBuf>,
    /// Pattern of a log line, in spdlog's syntax
    #[arg(long, value_name = "FORMAT", default_value = DEFAULT_FORMAT)]
    pub log_format: String,
    /// Escapes control characters in log messages
    #[arg(long)]
    pub log_format_escaped: bool,
    /// Accepted; has no meaning: every component has its level already
    #[arg(long)]
    pub enable_fine_grain_logging: bool,
    /// Accepted; has no meaning: there are no stack traces in the log
    #[arg(long)]
    pub log_stacktrace_single_entry: bool,
    /// Longest time that access logs wait in memory before they are written
    #[arg(long, value_name = "MSEC", default_value_t = 10_000)]
    pub file_flush_interval_msec: u32,
    /// Access logs are written when so much waits in memory
    #[arg(long, value_name = "KB", default_value_t = 64)]
    pub file_flush_min_size_kb: u32,
}

impl LogOptions {
    /// `--file-flush-min-size-kb`, in bytes.
    pub fn flush_size(&self) -> usize {
        (self.file_flush_min_size_kb as usize).saturating_mul(1024)
    }
}

/// Who this proxy says it is; each goes over the bootstrap's `node`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Node")]
pub struct NodeOptions {
    /// node.cluster
    #[arg(long, value_name = "NAME", default_value = "")]
    pub service_cluster: String,
    /// node.id
    #[arg(long, value_name = "NAME", default_value = "")]
    pub service_node: String,
    /// node.locality.zone
    #[arg(long, value_name = "NAME", default_value = "")]
    pub service_zone: String,
}

/// Drains and hot restarts.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Drain and hot restart")]
pub struct RestartOptions {
    /// How long connections of a removed listener, or of a hot restart's parent, drain
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub drain_time_s: u32,
    /// gradual: more and more connections over the drain time; immediate: all at once
    #[arg(long, value_name = "STRATEGY", default_value = "gradual")]
    pub drain_strategy: DrainStrategy,
    /// Accepted, has no meaning yet: when a hot restart's parent is ended
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    pub parent_shutdown_time_s: u32,
    /// Accepted, has no meaning yet: the number of this restart
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub restart_epoch: u32,
    /// Accepted, has no meaning yet: tells several proxies of one host apart
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub base_id: u32,
    /// Accepted, has no meaning yet: a file to write the base id to
    #[arg(long, value_name = "PATH", default_value = "")]
    pub base_id_path: String,
    /// Accepted, has no meaning yet: chooses a free base id
    #[arg(long)]
    pub use_dynamic_base_id: bool,
    /// Accepted, has no meaning yet: no hot restart
    #[arg(long)]
    pub disable_hot_restart: bool,
    /// Accepted, has no meaning yet: starts even if the hot restart's parent is gone
    #[arg(long)]
    pub skip_hot_restart_on_no_parent: bool,
    /// Accepted, has no meaning yet: does not take the parent's stats over
    #[arg(long)]
    pub skip_hot_restart_parent_stats: bool,
    /// Accepted, has no meaning yet: the socket of hot restarts
    #[arg(long, value_name = "PATH", default_value = "@envoy_domain_socket")]
    pub socket_path: String,
    /// Accepted, has no meaning yet: the mode of that socket, octal
    #[arg(long, value_name = "MODE", default_value = "600")]
    pub socket_mode: String,
    /// Prints the hot restart compatibility version and exits
    #[arg(long)]
    hot_restart_version: bool,
}

/// The process itself.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Process")]
pub struct ProcessOptions {
    /// Number of worker threads; the cgroup's CPU quota, else the cores, if not given
    #[arg(long, value_name = "N")]
    pub concurrency: Option<u32>,
    /// Accepted; has no meaning: only CPUs that this process may run on are counted anyway
    #[arg(long)]
    pub cpuset_threads: bool,
    /// A file to write the admin API's address to
    #[arg(long, value_name = "PATH", default_value = "")]
    pub admin_address_path: String,
    /// v4 or v6: the family of the address that this proxy calls its own
    #[arg(long, value_name = "VERSION", default_value = "v4")]
    pub local_address_ip_version: IpVersion,
    /// A tag of all stats, name:value; may be given several times
    #[arg(long, value_name = "TAG", action = ArgAction::Append, value_parser = stats_tag)]
    pub stats_tag: Vec<(String, String)>,
    /// Accepted; has no meaning: there are no such locks
    #[arg(long)]
    pub enable_mutex_tracing: bool,
    /// Accepted, has no meaning yet: lets the process dump core
    #[arg(long)]
    pub enable_core_dump: bool,
}

/// What is done with the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Mode {
    Serve,
    Validate,
    InitOnly,
}

/// How connections are told to go while draining.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DrainStrategy {
    Gradual,
    Immediate,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IpVersion {
    V4,
    V6,
}

/// The process is to end before it began: text to print, and the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    pub text: String,
    /// Where it goes: to the standard error, or to the standard output.
    pub to_stderr: bool,
    pub code: u8,
}

impl Options {
    /// Reads a command line; the first argument is the program's name.
    pub fn parse_from_args(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, Exit> {
        let matches = Self::command().try_get_matches_from(args);
        let options = matches.and_then(|matches| Self::from_arg_matches(&matches)).map_err(|error| Exit {
            text: error.render().to_string(),
            to_stderr: error.use_stderr(),
            code: u8::from(error.use_stderr()),
        })?;
        if options.version {
            return Err(Exit { text: format!("\nweft  version: {}\n\n", version()), to_stderr: false, code: 0 });
        }
        if options.restart.hot_restart_version {
            return Err(Exit { text: format!("{}\n", options.hot_restart_version()), to_stderr: true, code: 0 });
        }
        options.check()?;
        Ok(options)
    }

    fn check(&self) -> Result<(), Exit> {
        let problem = |text: &str| Err(Exit { text: format!("error: {text}\n"), to_stderr: true, code: 1 });
        if u32::from_str_radix(&self.restart.socket_mode, 8).is_err() {
            return problem(&format!("invalid socket-mode '{}'", self.restart.socket_mode));
        }
        if self.restart.use_dynamic_base_id && self.restart.restart_epoch > 0 {
            return problem("cannot use --restart-epoch with --use-dynamic-base-id");
        }
        if self.log.enable_fine_grain_logging && !self.log.component_log_level.is_empty() {
            return problem("--component-log-level will not work with --enable-fine-grain-logging");
        }
        if self.config.reject_unknown_dynamic_fields && self.config.ignore_unknown_dynamic_fields {
            return problem("cannot use --ignore-unknown-dynamic-fields with --reject-unknown-dynamic-fields");
        }
        Ok(())
    }

    /// What `/hot_restart_version` and `/server_info` say.
    pub fn hot_restart_version(&self) -> &'static str {
        if self.restart.disable_hot_restart { "disabled" } else { HOT_RESTART_VERSION }
    }

    /// `--drain-time-s`.
    pub fn drain_time(&self) -> Duration {
        Duration::from_secs(self.restart.drain_time_s.into())
    }

    /// `--drain-strategy`.
    pub fn drain_pace(&self) -> Pace {
        match self.restart.drain_strategy {
            DrainStrategy::Gradual => Pace::Gradual(self.drain_time()),
            DrainStrategy::Immediate => Pace::Immediate,
        }
    }

    /// `admin.v3.CommandLineOptions` for `/server_info`. `concurrency` is the number of workers in fact.
    pub fn to_json(&self, concurrency: u32) -> Value {
        let Self { config, log, node, restart, process, .. } = self;
        let path = |path: &Option<PathBuf>| path.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
        let disabled: Vec<&str> = config.disable_extensions.split(',').filter(|name| !name.is_empty()).collect();
        let tags: Vec<String> = process.stats_tag.iter().map(|(name, value)| format!("{name}:{value}")).collect();
        json!({
            "base_id": restart.base_id.to_string(),
            "concurrency": concurrency,
            "config_path": path(&config.config_path),
            "config_yaml": config.config_yaml.as_deref().unwrap_or_default(),
            "allow_unknown_static_fields": config.allow_unknown_static_fields,
            "admin_address_path": process.admin_address_path,
            "local_address_ip_version": match process.local_address_ip_version {
                IpVersion::V4 => "v4",
                IpVersion::V6 => "v6",
            },
            "log_level": log.log_level.name(),
            "component_log_level": log.component_log_level.text(),
            "log_format": log.log_format,
            "log_path": path(&log.log_path),
            "service_cluster": node.service_cluster,
            "service_node": node.service_node,
            "service_zone": node.service_zone,
            "file_flush_interval": milliseconds(log.file_flush_interval_msec),
            "drain_time": format!("{}s", restart.drain_time_s),
            "parent_shutdown_time": format!("{}s", restart.parent_shutdown_time_s),
            "mode": match config.mode {
                Mode::Serve => "Serve",
                Mode::Validate => "Validate",
                Mode::InitOnly => "InitOnly",
            },
            "disable_hot_restart": restart.disable_hot_restart,
            "enable_mutex_tracing": process.enable_mutex_tracing,
            "restart_epoch": restart.restart_epoch,
            "cpuset_threads": process.cpuset_threads,
            "reject_unknown_dynamic_fields": config.reject_unknown_dynamic_fields,
            "log_format_escaped": log.log_format_escaped,
            "disabled_extensions": disabled,
            "ignore_unknown_dynamic_fields": config.ignore_unknown_dynamic_fields,
            "use_dynamic_base_id": restart.use_dynamic_base_id,
            "base_id_path": restart.base_id_path,
            "drain_strategy": match restart.drain_strategy {
                DrainStrategy::Gradual => "Gradual",
                DrainStrategy::Immediate => "Immediate",
            },
            "enable_fine_grain_logging": log.enable_fine_grain_logging,
            "socket_path": restart.socket_path,
            "socket_mode": u32::from_str_radix(&restart.socket_mode, 8).unwrap_or_default(),
            "enable_core_dump": process.enable_core_dump,
            "stats_tag": tags,
            "skip_hot_restart_on_no_parent": restart.skip_hot_restart_on_no_parent,
            "skip_hot_restart_parent_stats": restart.skip_hot_restart_parent_stats,
            "skip_deprecated_logs": config.skip_deprecated_logs,
            "file_flush_min_size": log.file_flush_min_size_kb,
            "log_stacktrace_single_entry": log.log_stacktrace_single_entry,
        })
    }
}

/// What was built: revision, version of the API, state of the source, kind of build, Weft's version. Tools take it apart
/// at the slashes and compare the second part with the Envoys they know.
pub fn version() -> String {
    let (major, minor, patch) = API_VERSION;
    format!("{}/{major}.{minor}.{patch}/Clean/{}/weft-{}", revision(), build_type(), env!("CARGO_PKG_VERSION"))
}

/// The source's commit, zeros if the build was not told (`WEFT_REVISION`).
pub fn revision() -> &'static str {
    option_env!("WEFT_REVISION")
        .filter(|revision| !revision.is_empty())
        .unwrap_or("0000000000000000000000000000000000000000")
}

/// `RELEASE` or `DEBUG`.
pub const fn build_type() -> &'static str {
    if cfg!(debug_assertions) { "DEBUG" } else { "RELEASE" }
}

/// A number of milliseconds as protobuf's JSON writes a duration.
fn milliseconds(ms: u32) -> String {
    match (ms / 1000, ms % 1000) {
        (s, 0) => format!("{s}s"),
        (s, ms) => format!("{s}.{ms:03}s"),
    }
}

fn stats_tag(text: &str) -> Result<(String, String), String> {
    let misformatted = || format!("misformatted stats-tag '{text}'");
    let (name, value) = text.split_once(':').ok_or_else(misformatted)?;
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(format!("{}: the name must be alphanumeric", misformatted()));
    }
    if value.is_empty() || value.contains('.') {
        return Err(format!("{}: the value must not be empty or contain '.'", misformatted()));
    }
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, Exit> {
        Options::parse_from_args(std::iter::once(&"weft").chain(args))
    }

    #[test]
    fn flags_as_envoy_has_them() {
        let options = parse(&[
            "-c",
            "a.yaml",
            "--concurrency=2",
            "-l",
            "warn",
            "--drain-strategy",
            "immediate",
            "--mode",
            "init_only",
            "--stats-tag",
            "a:b",
            "--component-log-level",
            "http:debug,pool:off",
            "--file-flush-interval-msec",
            "1500",
            "--allow-unknown-fields",
        ])
        .expect("these are valid");
        assert_eq!(options.config.mode, Mode::InitOnly);
        assert_eq!(options.log.log_level, Level::Warning);
        assert!(options.config.allow_unknown_static_fields);
        let json = options.to_json(2);
        assert_eq!(json["log_level"], "warning");
        assert_eq!(json["component_log_level"], "http:debug,pool:off");
        assert_eq!(json["file_flush_interval"], "1.500s");
        assert_eq!(json["stats_tag"][0], "a:b");
        assert_eq!(json["drain_time"], "600s");
    }

    #[test]
    fn wrong_usage_ends_with_1_and_information_with_0() {
        for args in [
            &["--no-such-flag"][..],
            &["-l", "nope"],
            &["--mode", "nope"],
            &["--drain-strategy", "nope"],
            &["--concurrency", "x"],
            &["--component-log-level", "nope:debug"],
            &["--component-log-level", "http"],
            &["--stats-tag", "a.b:c"],
            &["--socket-mode", "9"],
            &["positional"],
            &["--restart-epoch", "1", "--use-dynamic-base-id"],
            &["--enable-fine-grain-logging", "--component-log-level", "http:debug"],
        ] {
            assert_eq!(parse(args).err().map(|exit| exit.code), Some(1), "{args:?}");
        }
        for args in [&["--version"][..], &["--help"], &["--hot-restart-version"]] {
            assert_eq!(parse(args).err().map(|exit| exit.code), Some(0), "{args:?}");
        }
        let version = parse(&["--version"]).expect_err("the version is printed").text;
        assert!(version.starts_with("\nweft  version: 0000000000000000000000000000000000000000/1.40.0"), "{version}");
        assert_eq!(parse(&["--hot-restart-version", "--disable-hot-restart"]).expect_err("printed").text, "disabled\n");
    }

    #[test]
    fn quickstart_is_a_command() {
        let options = parse(&["quickstart", "--dir", "/x"]).expect("valid");
        let Some(Command::Quickstart(quickstart)) = options.command else { panic!("no command") };
        assert_eq!((quickstart.dir, quickstart.port), (PathBuf::from("/x"), 10_000));
    }
}
