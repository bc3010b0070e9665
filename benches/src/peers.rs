//! Which proxies take part, and how each is started: no access log, as many threads as a group says.

use crate::row::Group;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The name that stands for no proxy.
pub const DIRECT: &str = "direct";
pub const WEFT: &str = "weft";
pub const ENVOY: &str = "envoy";
/// Another Weft.
pub const BASELINE: &str = "baseline";

pub struct Peer {
    pub name: &'static str,
    pub version: String,
    binary: PathBuf,
}

/// Where their files come from and go to.
pub struct Folders {
    pub configs: PathBuf,
    pub certificates: PathBuf,
    pub results: PathBuf,
}

/// All that are installed, Weft first; and the names of those that are not. `ours` is where this program lies, and the hyper proxy
/// beside it; `baseline` is another Weft.
pub fn find(weft: &Path, ours: &Path, baseline: Option<&Path>) -> (Vec<Peer>, Vec<&'static str>) {
    let candidates = [
        (WEFT, Some(weft.to_path_buf())),
        (ENVOY, envoy()),
        ("haproxy", in_path("haproxy")),
        ("nginx", in_path("nginx")),
        ("hyper", Some(ours.with_file_name("weft-bench-hyper"))),
    ];
    let baseline = baseline.map(|path| (BASELINE, Some(path.to_path_buf())));
    let (mut peers, mut missing) = (Vec::new(), Vec::new());
    for (name, binary) in candidates.into_iter().chain(baseline) {
        let Some(binary) = binary.filter(|path| path.exists()) else {
            missing.push(name);
            continue;
        };
        let version = match name {
            // Weft says Envoy's version, for those who ask an Envoy for it.
            WEFT | BASELINE => env!("CARGO_PKG_VERSION").to_owned(),
            ENVOY => version(&binary, "--version"),
            "hyper" => "1".to_owned(),
            _ => version(&binary, "-v"),
        };
        peers.push(Peer { name, version, binary });
    }
    (peers, missing)
}

impl Peer {
    /// What starts it for a group, with its configuration written; `None` if it cannot do the work.
    ///
    /// # Errors
    /// The configuration cannot be written.
    pub fn command(&self, group: &Group, folders: &Folders) -> Result<Option<Vec<String>>, String> {
        let named = if self.name == BASELINE { WEFT } else { self.name };
        let Some((_, file)) = group.files.iter().find(|(name, _)| *name == named) else { return Ok(None) };
        let mut command = vec![self.binary.display().to_string()];
        let mut say = |words: &[&str]| command.extend(words.iter().map(|word| (*word).to_owned()));
        let workers = group.workers.to_string();
        match named {
            WEFT => say(&["--concurrency", &workers, "-l", "error", "-c"]),
            ENVOY => say(&["--concurrency", &workers, "-l", "error", "--disable-hot-restart", "-c"]),
            "haproxy" => say(&["-db", "-f"]),
            "nginx" => say(&["-c"]),
            _ => {
                say(&["--threads", &workers, "--certificates", &folders.certificates.display().to_string()]);
                say(&file.split(' ').collect::<Vec<_>>());
                return Ok(Some(command));
            }
        }
        say(&[&render(group, file, folders)?.display().to_string()]);
        Ok(Some(command))
    }
}

/// Writes a file of `configs/` with what differs from run to run put in, and says where.
fn render(group: &Group, file: &str, folders: &Folders) -> Result<PathBuf, String> {
    let (from, to) = (folders.configs.join(file), folders.results.join(format!("{}-{file}", group.name)));
    let text = fs::read_to_string(&from).map_err(|e| format!("{}: {e}", from.display()))?;
    // More room for connections costs memory, idle: only those have it who need it.
    let connections = if group.name.starts_with("idle") { "11000" } else { "4096" };
    let text = text
        .replace("FOLDER", &folders.certificates.display().to_string())
        .replace("WORKERS", &group.workers.to_string())
        .replace("CONNECTIONS", connections);
    fs::write(&to, text).map_err(|e| format!("{}: {e}", to.display()))?;
    Ok(to)
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

/// A program where programs are.
pub fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian keeps servers where not everybody's PATH looks.
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|path| path.exists())
}

/// The first thing in what `binary` says of itself that looks like a version.
fn version(binary: &Path, flag: &str) -> String {
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
