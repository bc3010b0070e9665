//! `weft-control`: serves a directory of resources over xDS.

use clap::Parser;
use std::{io::Write as _, path::PathBuf, process::ExitCode, sync::Arc};
use tokio::signal::unix::{SignalKind, signal};
use weft_control_api::server::{Directory, Event, Listener, Report, SnapshotCache, serve};

/// Serves a directory of YAML and JSON resources over xDS: ADS and each discovery service by itself, state of the world
/// and delta. The directory is watched; a change reaches clients at once.
///
/// A file holds one resource (a map with "@type") or several (a list of such maps under "resources"). Files directly in
/// DIR are for every node; those in DIR/NAME are only for nodes whose id, or else whose cluster, is NAME, and there take
/// the place of resources of the same kind and name. A file with mistakes is reported and changes nothing.
#[derive(Parser)]
#[command(name = "weft-control", version)]
struct Options {
    /// The directory of resources.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Where clients connect to: HOST:PORT, or unix:PATH.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:18000")]
    listen: String,
    /// Also report what clients take, not only what they refuse.
    #[arg(long, short)]
    verbose: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.map_err(|e| e.to_string()).and_then(|runtime| runtime.block_on(run(options))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("weft-control: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<(), String> {
    let dir = options.dir.display().to_string();
    let verbose = options.verbose;
    let cache = SnapshotCache::new(SnapshotCache::by_id_and_cluster).with_events(move |event| report(&event, verbose));
    let cache = Arc::new(cache);
    let listener =
        Listener::bind(&options.listen).await.map_err(|e| format!("cannot listen at {}: {e}", options.listen))?;
    let address = listener.address();
    let mut first = true;
    let feed = Directory::new(options.dir).feed(&cache, |read| {
        tell(read);
        if std::mem::take(&mut first) {
            say(&format!("serving {} resources of {dir} at {address}", read.resources));
        }
    });
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    let end = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    tokio::select! {
        fed = feed => fed.map_err(|e| format!("{dir}: {e}")),
        served = serve(listener, cache.clone(), std::future::pending()) => served.map_err(|e| e.to_string()),
        () = end => Ok(()),
    }
}

fn tell(read: &Report) {
    for file in &read.changed {
        say(&format!("{}: taken", file.display()));
    }
    for (file, problems) in &read.refused {
        for problem in problems {
            say(&format!("{}:{problem}", file.display()));
        }
        say(&format!("{}: refused, its last good content is served on", file.display()));
    }
}

fn report(event: &Event, verbose: bool) {
    match event {
        Event::Nacked { node, kind, version, message } => {
            say(&format!("node {node:?} refused {} resources, version {version}: {message}", kind.noun()));
        }
        Event::Acked { node, kind, version } if verbose => {
            say(&format!("node {node:?} took {} resources, version {version}", kind.noun()));
        }
        Event::Connected { node, peer } if verbose => say(&format!("node {node:?} connected from {peer}")),
        Event::Disconnected { node, peer } if verbose => say(&format!("node {node:?} at {peer} disconnected")),
        _ => {}
    }
}

/// Writes a line; whoever closed the terminal does not want it.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
