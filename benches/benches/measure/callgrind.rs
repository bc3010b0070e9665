//! Runs the present program again under callgrind, which counts the instructions of its function `measured`.

use std::{env, fs, process::Command};

/// Instructions in all, with these arguments; `None` without valgrind.
///
/// # Panics
/// The program fails.
pub fn count(arguments: &[&str]) -> Option<u64> {
    let out = env::temp_dir().join(format!("weft-callgrind-{}{}", std::process::id(), arguments.concat()));
    let status = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet", "--collect-atstart=no", "--toggle-collect=*measured*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(env::current_exe().ok()?)
        .args(arguments)
        .status()
        .ok()?;
    assert!(status.success(), "the measured program failed");
    let text = fs::read_to_string(&out).expect("callgrind writes its result");
    let _ = fs::remove_file(&out);
    text.lines().find_map(|line| line.strip_prefix("totals: "))?.trim().parse().ok()
}
