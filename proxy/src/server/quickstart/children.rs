//! The proxies of the mesh: child processes that do not outlive this one.

use super::run_directory;
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tokio::signal::unix::{SignalKind, signal};

/// So long a child has to end after it was asked to.
const GRACE: Duration = Duration::from_secs(5);
/// A look at the children, should a signal be missed.
const LOOK: Duration = Duration::from_millis(250);

/// The running proxies.
#[derive(Debug)]
pub struct Children(Vec<(String, Child)>);

impl Children {
    /// Starts `program` as each of the nodes; logs go to files.
    pub fn start(program: &Path, dir: &Path, nodes: &[&str]) -> Result<Self, String> {
        let run = run_directory(dir);
        let mut children = Self(Vec::new());
        for node in nodes {
            let log = run.join(format!("{node}.log"));
            let file = File::create(&log).map_err(|e| format!("cannot write {}: {e}", log.display()))?;
            let also = file.try_clone().map_err(|e| format!("cannot write {}: {e}", log.display()))?;
            let mut command = Command::new(program);
            command
                .arg("-c")
                .arg(run.join(format!("{node}.yaml")))
                .args(["--concurrency", "1", "--disable-hot-restart"])
                .stdin(Stdio::null())
                .stdout(also)
                .stderr(file)
                // The terminal's ctrl-C is for the parent, which ends them in order.
                .process_group(0);
            // SAFETY: between fork and exec only a system call is made.
            unsafe {
                command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?));
            }
            let child = command.spawn().map_err(|e| format!("cannot run {}: {e}", program.display()))?;
            children.0.push(((*node).to_owned(), child));
        }
        Ok(children)
    }

    /// Waits until one of them ends, which none should; says which, with the end of its log.
    pub async fn one_ended(&mut self) -> String {
        let mut signals = signal(SignalKind::child()).ok();
        loop {
            for (node, child) in &mut self.0 {
                if let Ok(Some(status)) = child.try_wait() {
                    return format!("{node} ended: {status}");
                }
            }
            let changed = async {
                match &mut signals {
                    Some(signals) => drop(signals.recv().await),
                    None => std::future::pending().await,
                }
            };
            let _ = tokio::time::timeout(LOOK, changed).await;
        }
    }

    /// Asks all to end, and waits for it.
    pub async fn stop(&mut self) {
        self.ask();
        let begin = Instant::now();
        while begin.elapsed() < GRACE && self.0.iter_mut().any(|(_, child)| matches!(child.try_wait(), Ok(None))) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.0.iter_mut().for_each(|(_, child)| drop(child.kill()));
    }

    fn ask(&mut self) {
        for (_, child) in &mut self.0 {
            // One that was waited for may have given its number to another process.
            if let (Ok(None), Some(pid)) = (child.try_wait(), i32::try_from(child.id()).ok().and_then(Pid::from_raw)) {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.ask();
    }
}

/// The last lines of a node's log.
pub fn end_of_log(dir: &Path, node: &str) -> String {
    let text = fs::read_to_string(run_directory(dir).join(format!("{node}.log"))).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(8).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
