//! Which proxies take part, and how each is started: one worker, no access log.

use std::{
    env, fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

/// Where every proxy listens and where the backends are; the files in `configs/` say the same, and what differs.
pub const HTTP1: SocketAddr = local(28080);
pub const HTTP2: SocketAddr = local(28081);
pub const MTLS: SocketAddr = local(28082);
pub const MTLS_ONCE: SocketAddr = local(28083);
pub const MTLS_DEFAULT_GROUPS: SocketAddr = local(28084);
pub const ROTATION: SocketAddr = local(28085);
pub const ROTATION_CONTROL: SocketAddr = local(28086);
pub const TCP_SMALL: SocketAddr = local(28087);
pub const TCP_BULK: SocketAddr = local(28088);
pub const HTTP1_BACKEND: SocketAddr = local(28090);
pub const HTTP2_BACKEND: SocketAddr = local(28091);
pub const MTLS_BACKEND: SocketAddr = local(28092);
pub const SOURCE: SocketAddr = local(28093);

const fn local(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

pub struct Peer {
    pub name: &'static str,
    pub version: String,
    pub command: Vec<String>,
    /// It speaks HTTP/2 on both sides.
    pub http2: bool,
    /// What starts it with mTLS, if that is measured of it.
    pub mtls: Option<Vec<String>>,
    /// What starts it with certificates from a control plane.
    pub rotation: Option<Vec<String>>,
    /// What starts it for TCP, if that is measured of it.
    pub tcp: Option<Vec<String>>,
}

/// All that are installed, Weft first; and the names of those that are not. `baseline` is another Weft, `mtls` the
/// configuration for mTLS.
pub fn find(weft: &Path, baseline: Option<&Path>, configs: &Path, mtls: &Path) -> (Vec<Peer>, Vec<String>) {
    let baseline = baseline.map(|path| ("baseline", Some(path.to_path_buf()), "envoy.yaml", true));
    let candidates = [
        ("weft", Some(weft.to_path_buf()), "envoy.yaml", true),
        ("envoy", envoy(), "envoy.yaml", true),
        ("haproxy", in_path("haproxy"), "haproxy.cfg", true),
        ("nginx", in_path("nginx"), "nginx.conf", false),
    ];
    let (mut peers, mut missing) = (Vec::new(), Vec::new());
    for (name, binary, config, http2) in candidates.into_iter().chain(baseline) {
        let Some(binary) = binary.filter(|path| path.exists()) else {
            missing.push(name.to_owned());
            continue;
        };
        let binary = binary.display().to_string();
        let command = |config: &Path| {
            let arguments: &[&str] = match name {
                "weft" | "baseline" => &["--concurrency", "1", "-l", "error", "-c"],
                "envoy" => &["--concurrency", "1", "-l", "error", "--disable-hot-restart", "-c"],
                "haproxy" => &["-db", "-f"],
                _ => &["-c"],
            };
            let config = config.display().to_string();
            let words = std::iter::once(binary.as_str()).chain(arguments.iter().copied()).chain([config.as_str()]);
            words.map(str::to_owned).collect()
        };
        let version = match name {
            // Weft says Envoy's version, for those who ask an Envoy for it.
            "weft" | "baseline" => env!("CARGO_PKG_VERSION").to_owned(),
            "envoy" => version(&binary, "--version"),
            _ => version(&binary, "-v"),
        };
        let is_one_of_us = matches!(name, "weft" | "baseline" | "envoy");
        let mtls = is_one_of_us.then(|| command(mtls));
        let rotation = is_one_of_us.then(|| command(&configs.join("rotation.yaml")));
        let tcp = match name {
            "haproxy" => Some(command(&configs.join("tcp.cfg"))),
            _ => is_one_of_us.then(|| command(&configs.join("tcp.yaml"))),
        };
        peers.push(Peer { name, version, command: command(&configs.join(config)), http2, mtls, rotation, tcp });
    }
    (peers, missing)
}

/// The Envoy that the tests run too: `ENVOY`, or the one in the virtual environment `WEFT_VENV`.
fn envoy() -> Option<PathBuf> {
    if let Some(path) = env::var_os("ENVOY") {
        return Some(path.into());
    }
    let venv = env::var_os("WEFT_VENV").map_or_else(|| PathBuf::from(".venv"), PathBuf::from);
    let pythons = fs::read_dir(venv.join("lib")).ok()?;
    pythons.flatten().map(|python| python.path().join("site-packages/envoy/_bin/envoy")).find(|path| path.exists())
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian keeps servers where not everybody's PATH looks.
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|path| path.exists())
}

/// The first thing in what `binary` says of itself that looks like a version.
fn version(binary: &str, flag: &str) -> String {
    let Ok(output) = Command::new(binary).arg(flag).output() else { return String::new() };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let words = text.split(|c: char| c.is_whitespace() || c == '/');
    words
        .map(|word| word.split_once('-').map_or(word, |(version, _)| version).trim_start_matches('v'))
        .find(|word| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit()))
        .unwrap_or_default()
        .to_owned()
}
