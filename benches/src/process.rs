//! A proxy's process: started, measured from /proc, and killed when dropped.

use crate::talk::http1;
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const START_PATIENCE: Duration = Duration::from_secs(60);
/// How often a proxy that is starting is asked.
const ASK_EVERY: Duration = Duration::from_micros(200);

pub struct Process {
    child: Child,
    /// From before it was executed to the whole of the first response that went through it.
    pub start: Duration,
}

/// Resident memory in bytes.
#[derive(Clone, Copy)]
pub struct Memory {
    pub rss: u64,
    /// Shared pages in proportion.
    pub pss: u64,
}

impl Process {
    /// Starts a proxy and waits until it has served one request at `address`. Its errors go to `log`.
    ///
    /// # Errors
    /// It cannot be executed, it ends, or it does not serve in time.
    pub fn start(command: &[String], address: SocketAddr, log: &Path) -> Result<Self, String> {
        let log_file = File::create(log).map_err(|e| format!("{}: {e}", log.display()))?;
        let since = Instant::now();
        let child = Command::new(&command[0])
            .args(&command[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file)
            .spawn()
            .map_err(|e| format!("{}: {e}", command[0]))?;
        let mut process = Self { child, start: Duration::ZERO };
        loop {
            if ask(address).is_ok() {
                process.start = since.elapsed();
                return Ok(process);
            }
            if let Ok(Some(status)) = process.child.try_wait() {
                return Err(format!("{} ended ({status}), see {}", command[0], log.display()));
            }
            if since.elapsed() > START_PATIENCE {
                return Err(format!("{} does not serve, see {}", command[0], log.display()));
            }
            thread::sleep(ASK_EVERY);
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// CPU time so far, user and system, of all its threads; in nanoseconds' precision, unlike `/proc/PID/stat`.
    pub fn cpu(&self) -> Duration {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.child.id())) else { return Duration::ZERO };
        let nanoseconds = tasks.flatten().filter_map(|task| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanoseconds.sum())
    }

    /// # Errors
    /// The kernel does not say.
    pub fn memory(&self) -> Result<Memory, String> {
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
            kib.map(|kib| kib * 1024).ok_or(format!("{path}: no {name}"))
        };
        Ok(Memory { rss: value("Rss:")?, pss: value("Pss:")? })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request on a connection of its own.
fn ask(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(&http1::Exchange::Small.request())?;
    let mut answer = [0; 4096];
    let mut filled = 0;
    loop {
        let n = stream.read(&mut answer[filled..])?;
        filled += n;
        if n == 0 || !answer.starts_with(b"HTTP/1.1 200 ") {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if answer[..filled].ends_with(http1::BODY) {
            return Ok(());
        }
    }
}
