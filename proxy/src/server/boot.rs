//! From the command line to a serving proxy, and `--mode validate`.

use super::{
    cli::{Exit, IpVersion, Mode, Options},
    control, logging,
    xds::workload,
};
use crate::{
    base::RuntimeSnapshot,
    observe::access_log::LogWriter,
    snapshot::{Origin, Store},
    upstream::LocalZone,
};
use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use weft_config::{
    Bootstrap, Context, LoadOptions, Loaded, Problem, Refused, Sources, add_later, runtime::RuntimeSource,
};
use weft_control_api::{CheckOptions, workload::CLUSTER};

/// A bootstrap that was read, with the flags merged in.
pub struct Boot {
    pub loaded: Loaded,
    pub bootstrap: Bootstrap,
    /// Paths of cosmetic fields that have no effect.
    pub ignored: Vec<String>,
}

/// Runs the proxy as the options say; returns when it ends.
pub fn run(options: Options) -> ExitCode {
    let validates = options.config.mode == Mode::Validate;
    if let Err(why) = logging::start(&options.log, validates) {
        complain(&why);
        return ExitCode::FAILURE;
    }
    let file = options.config.config_path.as_deref().map(|p| p.display().to_string()).unwrap_or_default();
    let ended = read(&options).and_then(|boot| {
        note(&options, &boot);
        if !validates {
            return control::run(options, boot);
        }
        validate(&options, &boot)?;
        say(&format!("configuration '{file}' OK"));
        Ok(())
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(problems) => {
            let text = refusal(&file, problems);
            // The answer to the question, whatever the log level; a server that does not start says so in its log.
            if validates {
                complain(&text)
            } else {
                tracing::error!(target: "main", "{text}")
            }
            ExitCode::FAILURE
        }
    }
}

/// Prints why the process ends before it began, and ends it.
pub fn exit(exit: &Exit) -> ExitCode {
    let text = exit.text.trim_end_matches('\n');
    if exit.to_stderr {
        complain(text)
    } else {
        say(text)
    }
    ExitCode::from(exit.code)
}

/// Reads the bootstrap and lets the flags overwrite its node.
///
/// # Errors
/// Everything that is wrong with it, its static resources included.
pub fn read(options: &Options) -> Result<Boot, Vec<Problem>> {
    let sources = Sources { path: options.config.config_path.as_deref(), yaml: options.config.config_yaml.as_deref() };
    let loaded = weft_config::load(sources, LoadOptions { allow_unknown: options.config.allow_unknown_static_fields });
    let (loaded, mut problems) = match loaded {
        Ok(loaded) => (loaded, Vec::new()),
        Err(Refused { problems, partial: Some(loaded) }) => (*loaded, problems),
        Err(Refused { problems, partial: None }) => return Err(problems),
    };
    let mut cx = Context::new();
    let Some(mut bootstrap) = Bootstrap::from_proto(loaded.proto.clone(), &mut cx) else {
        add_later(&mut problems, cx.finish::<()>(None).err().unwrap_or_default());
        loaded.locate(&mut problems);
        return Err(problems);
    };
    // What is wrong with a flag has no place in the text.
    let mut of_flags = Vec::new();
    if let Some(endpoint) = options.config.workload_api() {
        let clusters = &mut bootstrap.static_resources.clusters;
        match (workload::cluster(endpoint), clusters.iter().position(|own| own.name == CLUSTER)) {
            (Ok(_), Some(i)) => {
                let message = format!(
                    "found {CLUSTER:?}, which is the name of the cluster that --spiffe-endpoint-socket or \
                     SPIFFE_ENDPOINT_SOCKET makes: one of them has to go"
                );
                add_later(&mut problems, [Problem::new(format!("static_resources.clusters[{i}].name"), message)]);
            }
            (Ok(cluster), None) => clusters.push(cluster),
            (Err(why), _) => of_flags.push(Problem::new("--spiffe-endpoint-socket", why)),
        }
    }
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
    let ignored = match cx.finish(Some(())) {
        Ok(((), ignored)) => ignored,
        Err(more) => {
            add_later(&mut problems, more);
            Vec::new()
        }
    };
    add_later(&mut problems, missing);
    let boot = Boot { loaded, bootstrap, ignored };
    if problems.is_empty() && of_flags.is_empty() {
        return Ok(boot);
    }
    // What is wrong with the static resources is said with the rest, at once.
    add_later(&mut problems, validate(options, &boot).err().unwrap_or_default());
    boot.loaded.locate(&mut problems);
    problems.extend(of_flags);
    Err(problems)
}

/// Compiles everything that is static, without binding anything; gives all problems.
fn validate(options: &Options, boot: &Boot) -> Result<(), Vec<Problem>> {
    let writer = LogWriter::start(Duration::from_secs(10), options.log.flush_size())
        .map_err(|e| vec![Problem::new("", format!("no thread for logs: {e}"))])?;
    let mut store = store(options, boot, 1, writer);
    load_static(&mut store, boot, false)
}

/// Says what the bootstrap has that is taken, but better were not there.
fn note(options: &Options, boot: &Boot) {
    let Boot { loaded, ignored, .. } = boot;
    for problem in &loaded.unknown {
        tracing::warn!(target: "config", "unknown field, ignored: {problem}");
    }
    for problem in loaded.deprecated.iter().filter(|_| !options.config.skip_deprecated_logs) {
        tracing::warn!(target: "config", "deprecated: {problem}");
    }
    for problem in &loaded.work_in_progress {
        tracing::warn!(target: "config", "{problem}");
    }
    for path in ignored {
        tracing::info!(target: "config", "has no effect: {path}");
    }
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
    let mut store = Store::new(workers, writer, runtime, boot.bootstrap.cluster_manager.upstream_bind.clone(), check);
    let mut clusters = boot.bootstrap.static_resources.clusters.iter();
    store.secrets.has_workload_api =
        options.config.workload_api().is_some() || clusters.any(|cluster| cluster.name == CLUSTER);
    let local = &boot.bootstrap.cluster_manager.local_cluster_name;
    store.zone = (!local.is_empty()).then(|| {
        let weft_config::bootstrap::Locality { region, zone, sub_zone } = boot.bootstrap.node.locality.clone();
        let locality = weft_config::endpoint::Locality { region, zone, sub_zone };
        Arc::new(LocalZone { cluster: local.clone(), locality })
    });
    store.allows_internal_listeners = boot.bootstrap.internal_listener.is_some();
    store
}

/// Puts the static resources into the store.
///
/// # Errors
/// The problems of all of them, with their places in the text.
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
    for (i, secret) in resources.secrets.iter().enumerate() {
        take("secrets", i, store.set_static_secret(&secret.bytes));
    }
    for (i, cluster) in resources.clusters.iter().enumerate() {
        let result = store.set_cluster(&cluster.bytes, Origin::Static);
        if result.is_err() {
            // That it is not there is the cluster's own problem, not that of each route to it.
            store.refused_clusters.insert(cluster.name.clone());
        }
        take("clusters", i, result);
    }
    for (i, listener) in resources.listeners.iter().enumerate() {
        take("listeners", i, store.set_listener(&listener.bytes, Origin::Static, bind));
    }
    boot.loaded.locate(&mut problems);
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// The address that stands for this host: that of the interface which leads outside, else loopback.
pub fn local_address(version: IpVersion) -> IpAddr {
    let (any, outside, loopback): (IpAddr, IpAddr, IpAddr) = match version {
        IpVersion::V4 => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into(), Ipv4Addr::LOCALHOST.into()),
        IpVersion::V6 => (
            Ipv6Addr::UNSPECIFIED.into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
            Ipv6Addr::LOCALHOST.into(),
        ),
    };
    // Nothing is sent: connecting a datagram socket only asks the kernel for the route.
    let ask = || {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((outside, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    ask().unwrap_or(loopback)
}

/// What is wrong with a configuration, a line each, in the order of the text.
fn refusal(file: &str, mut problems: Vec<Problem>) -> String {
    problems.sort_by_key(|problem| problem.position);
    let mut text = format!("error initializing configuration '{file}':");
    for problem in &problems {
        let _ = write!(text, "\n  {problem}");
    }
    text
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
