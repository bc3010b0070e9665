//! `weft-control`: serves a directory of resources over xDS.

use clap::Parser;
use std::{fmt, io::Write as _, path::PathBuf, process::ExitCode, sync::Arc};
use tokio::signal::unix::{SignalKind, signal};
use weft_control_api::server::{
    Directory, Event, Listener, RateLimitService, Read, RedisAddress, Report, SnapshotCache, feed_limits,
    serve_with_limits,
};

/// Serves a directory of YAML and JSON resources over xDS: ADS and each discovery service by itself, state of the world
/// and delta. The directory is watched; a change reaches clients at once.
///
/// A file (.yaml, .yml or .json) holds one resource (a map with "@type") or several (a list of such maps under
/// "resources", or YAML documents). Files directly in DIR are for every node; those in DIR/NAME are only for nodes whose
/// id, or else whose cluster, is NAME, and there take the place of resources of the same kind and name. Names that begin
/// with a dot are left out. A file with mistakes is reported and changes nothing: what it held before is served on. What
/// a client refuses is reported with the client's reason, and stays that client's affair.
///
/// For example, DIR/hello.yaml:
///
///   "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
///   name: hello
///   virtual_hosts:
///   - name: all
///     domains: ["*"]
///     routes: [{match: {prefix: /}, direct_response: {status: 200}}]
///
/// With --rate-limits it is a rate limit service too (envoy.service.ratelimit.v3), for Weft's and Envoy's ratelimit filters.
/// PLACE is a YAML file, or a directory of such files, each a domain with its limits, as envoyproxy/ratelimit reads them:
///
///   domain: shop
///   descriptors:
///   - {key: remote_address, rate_limit: {unit: minute, requests_per_unit: 100}}
///   - key: plan
///     value: free
///     descriptors:
///     - {key: user, rate_limit: {unit: hour, requests_per_unit: 50}}
///
/// Also known: unlimited, name and replaces within rate_limit, shadow_mode beside it, and values that end with *. Counts are
/// kept in this process, or with --redis in a Redis that several instances share; while that cannot be asked, questions are
/// answered with an error, and the filter's failure mode decides.
///
/// Whoever can connect can read everything: listen where only your proxies are.
#[derive(Parser)]
#[command(name = "weft-control", version, verbatim_doc_comment)]
struct Options {
    /// The directory of resources; may be left out beside --rate-limits.
    #[arg(long, value_name = "DIR", required_unless_present = "rate_limits")]
    dir: Option<PathBuf>,
    /// Serve rate limits, those of this YAML file or directory.
    #[arg(long, value_name = "PLACE")]
    rate_limits: Option<PathBuf>,
    /// Count in this Redis: redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE].
    #[arg(long, value_name = "URL", requires = "rate_limits", env = "WEFT_CONTROL_REDIS", hide_env_values = true)]
    redis: Option<String>,
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
    let verbose = options.verbose;
    let cache = SnapshotCache::new(SnapshotCache::by_id_and_cluster).with_events(move |event| report(&event, verbose));
    let cache = Arc::new(cache);
    let listener =
        Listener::bind(&options.listen).await.map_err(|e| format!("cannot listen at {}: {e}", options.listen))?;
    let address = listener.address();
    let limits = match (&options.rate_limits, &options.redis) {
        (None, _) => None,
        (Some(_), None) => Some(RateLimitService::embedded()),
        (Some(_), Some(url)) => {
            let redis = RedisAddress::parse(url).map_err(|why| format!("--redis: {why}"))?;
            Some(RateLimitService::redis(redis, |line| say(&plain(line))))
        }
    };
    let limits = limits.map(Arc::new);
    let feed = async {
        let Some(dir) = options.dir else { return std::future::pending().await };
        let name = dir.display().to_string();
        let mut first = true;
        let fed = Directory::new(dir).feed(&cache, |read| {
            tell(read);
            if std::mem::take(&mut first) {
                say(&format!("serving {} resources of {name} at {address}", read.resources));
            }
        });
        fed.await.map_err(|e| format!("{name}: {e}"))
    };
    let feed_limits = async {
        let (Some(place), Some(limits)) = (options.rate_limits, &limits) else { return std::future::pending().await };
        let name = place.display().to_string();
        feed_limits(place, limits, |read| tell_limits(&read, &name, &address)).await.map_err(|e| format!("{name}: {e}"))
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    let end = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    tokio::select! {
        fed = feed => fed,
        fed = feed_limits => fed,
        served = serve_with_limits(listener, cache.clone(), limits.clone(), std::future::pending()) => {
            served.map_err(|e| e.to_string())
        }
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
        say(&format!("{}: refused; what it held before, if anything, is served on", file.display()));
    }
}

fn tell_limits(read: &Read, place: &str, address: &str) {
    match read {
        Read::Taken { domains, limits } => {
            say(&format!("serving {limits} rate limits in {domains} domains of {place} at {address}"));
        }
        Read::Refused(files) => {
            for (file, problems) in files {
                for problem in problems {
                    say(&format!("{}:{problem}", file.display()));
                }
            }
            say(&format!("{place}: refused; the rate limits that held before, if any, hold on"));
        }
    }
}

fn report(event: &Event, verbose: bool) {
    match event {
        Event::Nacked { node, kind, version, message } => {
            let (node, message) = (Node(node), plain(message));
            say(&format!("node {node} refused {} resources, version {version}: {message}", kind.noun()));
        }
        Event::Acked { node, kind, version } if verbose => {
            say(&format!("node {} took {} resources, version {version}", Node(node), kind.noun()));
        }
        Event::Connected { node, peer } if verbose => say(&format!("node {} connected from {peer}", Node(node))),
        Event::Disconnected { node, peer } if verbose => say(&format!("node {} at {peer} disconnected", Node(node))),
        _ => {}
    }
}

/// What a client calls itself, quoted, and not at any length.
struct Node<'a>(&'a str);

impl fmt::Display for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &self.0[..self.0.floor_char_boundary(256)])
    }
}

/// What a client says, so that it can neither pass for a line of ours nor control a terminal.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.trim_end().chars() {
        match c {
            '\n' => plain.push_str("\n    "),
            c if c.is_control() => plain.extend(c.escape_default()),
            c => plain.push(c),
        }
    }
    plain
}

/// Writes a line; whoever closed the terminal does not want it.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_say_stays_within_its_line() {
        assert_eq!(plain("no good: é\nnode \"b\" took it\x1b[2J\r\n"), "no good: é\n    node \"b\" took it\\u{1b}[2J");
        assert_eq!(Node("a\n\x1b").to_string(), r#""a\n\u{1b}""#);
        assert_eq!(Node(&"é".repeat(1000)).to_string().chars().count(), 130);
    }
}
