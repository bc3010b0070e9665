//! `weft-control` under test: a directory of resources and the process that serves it.

use crate::{tools, until};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// The file of rate limits.
const LIMITS: &str = "limits.yaml";

/// A control plane; its directory goes away with it.
pub struct Control {
    child: Child,
    root: PathBuf,
    address: String,
}

impl Control {
    /// Starts one that serves these files, and waits until it does.
    ///
    /// # Panics
    /// It does not start; the message holds what it said.
    pub fn start(files: &[(&str, &str)]) -> Self {
        Self::start_at("127.0.0.1:0", files)
    }

    /// The same at an address.
    ///
    /// # Panics
    /// It does not start; the message holds what it said.
    pub fn start_at(listen: &str, files: &[(&str, &str)]) -> Self {
        Self::launch(listen, files, None, None)
    }

    /// One that serves rate limits, those of this YAML text, counted in a Redis at a URL or by itself.
    ///
    /// # Panics
    /// It does not start; the message holds what it said.
    pub fn with_limits(limits: &str, redis: Option<&str>) -> Self {
        let control = Self::launch("127.0.0.1:0", &[], Some(limits), redis);
        control.wait_for_line(&["serving", "rate limits in"]);
        control
    }

    fn launch(listen: &str, files: &[(&str, &str)], limits: Option<&str>, redis: Option<&str>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("weft-control-{}-{n}", std::process::id()));
        std::fs::create_dir_all(root.join("resources")).expect("a directory");
        for (name, content) in files {
            write(&root.join("resources"), name, content);
        }
        let log = File::create(root.join("log")).expect("a log file");
        if let Some(limits) = limits {
            write(&root.join("limits"), LIMITS, limits);
        }
        let mut command = Command::new(tools::binary("weft-control"));
        command.args(["--verbose", "--listen", listen, "--dir"]).arg(root.join("resources"));
        if limits.is_some() {
            command.arg("--rate-limits").arg(root.join("limits").join(LIMITS));
        }
        command.args(redis.iter().flat_map(|url| ["--redis", url]));
        let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("weft-control starts");
        let mut control = Self { child, root, address: String::new() };
        control.address = until("weft-control to serve", || {
            let log = control.log();
            let address = log.lines().find(|l| l.starts_with("serving "))?.rsplit_once(" at ")?.1.to_owned();
            Some(address)
        });
        control
    }

    /// Where it listens, as it says.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The port of its TCP address.
    ///
    /// # Panics
    /// It listens at a socket file.
    pub fn port(&self) -> u16 {
        self.address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a TCP address")
    }

    /// Puts a file in place, whole at once.
    pub fn write(&self, name: &str, content: &str) {
        write(&self.root.join("resources"), name, content);
    }

    /// Changes its rate limits.
    pub fn write_limits(&self, content: &str) {
        write(&self.root.join("limits"), LIMITS, content);
    }

    /// The directory of its resources.
    pub fn resources(&self) -> PathBuf {
        self.root.join("resources")
    }

    /// Bytes of memory that it holds.
    pub fn resident(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap_or(0) << 10
    }

    /// Asks it to end (SIGTERM), and waits until it did.
    ///
    /// # Panics
    /// It does not.
    pub fn terminate(mut self) -> ExitStatus {
        let sent = Command::new("kill").arg(self.child.id().to_string()).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill");
        until("weft-control to end", || self.child.try_wait().expect("it is our child"))
    }

    /// Everything that it said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }

    /// Waits until it says a line with all of `words`.
    ///
    /// # Panics
    /// It never does.
    pub fn wait_for_line(&self, words: &[&str]) -> String {
        until(&format!("weft-control to say {words:?}"), || {
            self.log().lines().find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
        })
    }
}

fn write(root: &Path, name: &str, content: &str) {
    let path = root.join(name);
    let directory = path.parent().expect("it is below the root");
    std::fs::create_dir_all(directory).expect("a directory");
    // Moved into place: a half of it is never read.
    let whole = directory.join(format!(".{}", path.file_name().expect("a file").to_string_lossy()));
    std::fs::write(&whole, content).expect("a file");
    std::fs::rename(&whole, &path).expect("it is moved");
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("weft-control said:\n{}", self.log());
        }
        let _ = std::fs::remove_dir_all(&self.root);
    }
}
