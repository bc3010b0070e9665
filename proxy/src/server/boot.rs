//! From the command line to a serving proxy, and `--mode validate`.

use super::{
    cli::{Exit, Mode, Options},
    control, logging,
};
use crate::{
    base::RuntimeSnapshot,
    observe::access_log::LogWriter,
    snapshot::{Origin, Store},
};
use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use weft_config::{Bootstrap, Context, LoadOptions, Loaded, Problem, Sources, runtime::RuntimeSource};
use weft_control_api::CheckOptions;

/// A bootstrap that was read, with the flags merged in.
pub struct Boot {
    pub loaded: Loaded,
    pub bootstrap: Bootstrap,
    /// Paths of cosmetic fields that have no effect.
    pub ignored: Vec<String>,
}

/// Runs the proxy as the options say; returns when it ends.
pub fn run(options: Options) -> ExitCode {
    if let Err(why) = logging::start(&options.log) {
        complain(&why);
        return ExitCode::FAILURE;
    }
    let path = options.config.config_path.clone();
    let file = path.as_deref().map(|p| p.display().to_string()).unwrap_or_else(|| "--config-yaml".into());
    let boot = match read(&options) {
        Ok(boot) => boot,
        Err(problems) => return refuse(&file, &problems),
    };
    if options.config.mode == Mode::Validate {
        return match validate(&options, &boot) {
            Ok(()) => {
                say(&format!("configuration '{file}' OK"));
                ExitCode::SUCCESS
            }
            Err(mut problems) => {
                boot.loaded.locate(&mut problems);
                refuse(&file, &problems)
            }
        };
    }
    match control::run(options, boot) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problems) => refuse(&file, &problems),
    }
}

/// Prints why the process ends before it began, and ends it.
pub fn exit(exit: &Exit) -> ExitCode {
    if exit.code == 0 {
        say(exit.text.trim_end_matches('\n'))
    } else {
        complain(exit.text.trim_end_matches('\n'))
    }
    ExitCode::from(exit.code)
}

/// Reads the bootstrap and lets the flags overwrite its node.
pub fn read(options: &Options) -> Result<Boot, Vec<Problem>> {
    let sources = Sources { path: options.config.config_path.as_deref(), yaml: options.config.config_yaml.as_deref() };
    let loaded = weft_config::load(sources, LoadOptions { allow_unknown: options.config.allow_unknown_static_fields })?;
    let mut cx = Context::new();
    let read = Bootstrap::from_proto(loaded.proto.clone(), &mut cx);
    let (mut bootstrap, ignored) = cx.finish(read).map_err(|mut problems| {
        loaded.locate(&mut problems);
        problems
    })?;
    let node = &mut bootstrap.node;
    if !options.node.service_cluster.is_empty() {
        node.cluster = options.node.service_cluster.clone();
    }
    if !options.node.service_node.is_empty() {
        node.id = options.node.service_node.clone();
    }
    if !options.node.service_zone.is_empty() {
        node.locality.zone = options.node.service_zone.clone();
    }
    let missing = bootstrap.missing_identity();
    if missing.is_empty() { Ok(Boot { loaded, bootstrap, ignored }) } else { Err(missing) }
}

/// Compiles everything that is static, without binding anything; gives all problems.
fn validate(options: &Options, boot: &Boot) -> Result<(), Vec<Problem>> {
    let writer = LogWriter::start(Duration::from_secs(10))
        .map_err(|e| vec![Problem::new("", format!("no thread for logs: {e}"))])?;
    let mut store = store(options, boot, 1, writer);
    load_static(&mut store, boot, false)
}

/// An empty store for this bootstrap.
pub fn store(options: &Options, boot: &Boot, workers: usize, writer: LogWriter) -> Store {
    let layers = boot.bootstrap.runtime_layers.iter().filter_map(|layer| match &layer.source {
        RuntimeSource::Static(values) => Some(values.as_slice()),
        _ => None,
    });
    let runtime = Arc::new(RuntimeSnapshot::new(layers));
    let check =
        CheckOptions { reject_unknown: options.config.reject_unknown_dynamic_fields, ..CheckOptions::default() };
    Store::new(workers, writer, runtime, boot.bootstrap.cluster_manager.upstream_bind.clone(), check)
}

/// Puts the static resources into the store; gives the problems of all of them.
pub fn load_static(store: &mut Store, boot: &Boot, bind: bool) -> Result<(), Vec<Problem>> {
    let resources = &boot.bootstrap.static_resources;
    let mut problems = Vec::new();
    let mut take = |kind: &str, index: usize, result: Result<bool, Vec<Problem>>| {
        let below = |mut problem: Problem| {
            let dot = if problem.path.is_empty() { "" } else { "." };
            problem.path = format!("static_resources.{kind}[{index}]{dot}{}", problem.path);
            problem
        };
        problems.extend(result.err().unwrap_or_default().into_iter().map(below));
    };
    for (i, cluster) in resources.clusters.iter().enumerate() {
        take("clusters", i, store.set_cluster(&cluster.bytes, Origin::Static));
    }
    for (i, listener) in resources.listeners.iter().enumerate() {
        take("listeners", i, store.set_listener(&listener.bytes, Origin::Static, bind));
    }
    for (i, _) in resources.secrets.iter().enumerate() {
        take("secrets", i, Err(vec![Problem::new("", "is not supported")]));
    }
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// The address that stands for this host: that of the interface which leads outside, else loopback.
pub fn local_address() -> IpAddr {
    // Nothing is sent: connecting a datagram socket only asks the kernel for the route.
    let ask = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    ask().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

fn refuse(file: &str, problems: &[Problem]) -> ExitCode {
    let mut text = format!("error initializing configuration '{file}':");
    for problem in problems {
        let _ = write!(text, "\n  {problem}");
    }
    tracing::error!(target: "main", "{text}");
    ExitCode::FAILURE
}

/// The answer of `--mode validate` is the program's output.
#[allow(clippy::print_stdout)]
fn say(text: &str) {
    println!("{text}");
}

#[allow(clippy::print_stderr)]
fn complain(text: &str) {
    eprintln!("{text}");
}
