//! `weft quickstart`: a small mesh on this machine, in one command.
//!
//! One process is the control plane and the two services; the gateway and the sidecars are children that run the same
//! binary with a bootstrap that names the control plane. What the mesh is told to do stands in files that the control
//! plane watches. Sidecars and the gateway speak mTLS with each other; it issues their certificates. Invariant: whatever ends this process ends its children.

mod children;
mod files;
mod guide;
mod identity;
mod ports;
mod service;

use super::cli;
use children::Children;
use identity::Authority;
use ports::Ports;
use service::Service;
use std::{io::Write as _, path::Path, process::ExitCode, sync::Arc, time::Duration};
use tokio::signal::unix::{SignalKind, signal};
use weft_control_api::server::{Directory, Event, Listener, Report, SnapshotCache, serve};

/// The proxies by their node ids, the gateway first.
const NODES: [&str; 3] = ["gateway", "sidecar-a", "sidecar-b"];
/// So long may the proxies take until they serve.
const START: Duration = Duration::from_secs(20);

/// Runs the mesh until a signal ends it.
pub fn run(options: &cli::Quickstart) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(|e| e.to_string()).and_then(|runtime| runtime.block_on(mesh(options))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "weft quickstart: {why}");
            ExitCode::FAILURE
        }
    }
}

async fn mesh(options: &cli::Quickstart) -> Result<(), String> {
    let ports = Ports::new(options.port)?;
    ports.check_free()?;
    let dir = options.dir.as_path();
    files::write(dir, &ports).map_err(|e| format!("cannot write to {}: {e}", dir.display()))?;

    let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| e.to_string())?;
    let cache = Arc::new(SnapshotCache::new(SnapshotCache::by_id_and_cluster).with_events(|event| tell_event(&event)));
    let listener = Listener::bind(&ports.address("control")).await.map_err(|e| format!("the control plane: {e}"))?;
    let services = [
        Service::bind("service-a", &ports.address("a-service"), &ports.address("a-outbound"), Some("service-b"))
            .await?,
        Service::bind("service-b", &ports.address("b-service"), &ports.address("b-outbound"), None).await?,
    ];
    let program = match &options.proxy {
        Some(program) => program.clone(),
        None => std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?,
    };

    let authority = Authority::new()?;
    authority.issue(&cache)?;
    let mut first = true;
    // What a proxy can see for itself is said by the proxy, and shown by its admin API.
    let feed = Directory::new(dir).unchecked().feed(&cache, |report| {
        // Everything is new the first time.
        tell_report(report, !std::mem::take(&mut first));
    });
    let mut children = Children::start(&program, dir, &NODES)?;
    let ready = guide::show_when_ready(dir, &ports);
    let [a, b] = services;
    tokio::select! {
        fed = feed => fed.map_err(|e| format!("{}: {e}", dir.display())),
        served = serve(listener, cache.clone(), std::future::pending()) => served.map_err(|e| e.to_string()),
        () = a.serve() => Ok(()),
        () = b.serve() => Ok(()),
        failed = authority.keep_issuing(&cache) => Err(failed),
        ended = children.one_ended() => Err(ended),
        failed = ready => Err(failed),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }?;
    say("stopping");
    children.stop().await;
    Ok(())
}

/// Says what came of an edit.
fn tell_report(report: &Report, with_changes: bool) {
    for file in report.changed.iter().filter(|_| with_changes) {
        say(&format!("{}: taken", file.display()));
    }
    for (file, problems) in &report.refused {
        for problem in problems {
            say(&format!("{}:{problem}", file.display()));
        }
        say(&format!("{}: refused, its last good content stays in use", file.display()));
    }
}

fn tell_event(event: &Event) {
    if let Event::Nacked { node, kind, message, .. } = event {
        say(&format!("{node}: refused {} resources, what was there stays in use:\n  {message}", kind.noun()));
    }
}

/// Where the files of the bootstraps and the logs are; the control plane leaves it out.
fn run_directory(dir: &Path) -> std::path::PathBuf {
    dir.join(".run")
}

/// Writes a line; whoever closed the terminal does not want it.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
