//! What tests run: the project's own binaries, and what `make tools` fetched.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

/// The repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests is a directory of the repository")
}

/// One of the project's binaries.
///
/// # Panics
/// It was not built: only the tests of this package can ask.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this test's own path");
    // target/PROFILE/deps/TEST
    let profile = test.ancestors().nth(2).expect("a target directory");
    let binary = profile.join(format!("{name}-under-test"));
    assert!(binary.is_file(), "{} is not there", binary.display());
    binary
}

fn venv() -> PathBuf {
    std::env::var_os("WEFT_VENV").map_or_else(|| repository().join(".venv"), PathBuf::from)
}

/// The real Envoy.
pub fn envoy() -> Option<PathBuf> {
    let libraries = std::fs::read_dir(venv().join("lib")).ok();
    let found = libraries.into_iter().flatten().flatten().find_map(|python| {
        let binary = python.path().join("site-packages/envoy/_bin/envoy");
        binary.is_file().then_some(binary)
    });
    if found.is_none() {
        skipped("there is no Envoy (make tools)");
    }
    found
}

/// Python with grpcio and the like.
pub fn python() -> Option<PathBuf> {
    let python = venv().join("bin/python");
    let works = |python: &Path| {
        Command::new(python).args(["-c", "import grpc, h2"]).output().is_ok_and(|output| output.status.success())
    };
    if python.is_file() && works(&python) {
        return Some(python);
    }
    skipped("there is no Python with grpcio (make tools)");
    None
}

/// True if system calls can be watched.
pub fn strace() -> bool {
    // Where tracing is forbidden it is there and cannot do anything.
    let works = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    let works = works.is_ok_and(|output| output.status.success());
    if !works {
        skipped("there is no strace, or it may not trace");
    }
    works
}

/// The conformance test of HTTP/2.
pub fn h2spec() -> Option<PathBuf> {
    let found = Some(venv().join("bin/h2spec")).filter(|path| path.is_file());
    if found.is_none() {
        skipped("there is no h2spec (make tools)");
    }
    found
}

/// SPIRE's server and agent.
pub fn spire() -> Option<(PathBuf, PathBuf)> {
    let [server, agent] = ["spire-server", "spire-agent"].map(|name| venv().join("bin").join(name));
    let found = (server.is_file() && agent.is_file()).then_some((server, agent));
    if found.is_none() {
        skipped("there is no SPIRE (make tools)");
    }
    found
}

/// Says that a test cannot run here, past the test runner, which keeps to itself what tests print.
pub fn skipped(why: &str) {
    let test = std::thread::current();
    let _ = writeln!(std::io::stderr(), "skipped: {}: {why}", test.name().unwrap_or_default());
}
