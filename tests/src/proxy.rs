//! A proxy under test: started on a bootstrap, asked over its admin API, killed when dropped.

use crate::{get, tools, until};
use std::{
    fs::File,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// Which proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Weft,
    /// The real Envoy, at this path.
    Envoy(PathBuf),
}

/// A process; its files go away with it.
pub struct Proxy {
    child: Child,
    directory: PathBuf,
    admin: SocketAddr,
}

const ADMIN: &str = "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}";

impl Proxy {
    /// Starts a proxy and waits until it is ready. The bootstrap needs no admin section.
    ///
    /// # Panics
    /// It does not get ready; the message holds its log.
    pub fn start(kind: &Kind, bootstrap: &str) -> Self {
        Self::start_with(kind, bootstrap, &[])
    }

    /// The same with more arguments.
    ///
    /// # Panics
    /// It does not get ready.
    pub fn start_with(kind: &Kind, bootstrap: &str, arguments: &[&str]) -> Self {
        let proxy = Self::begin(kind, bootstrap, arguments);
        until("the proxy to be ready", || {
            proxy.assert_alive();
            get(proxy.admin, "/ready").filter(|r| r.status == 200).map(drop)
        });
        proxy
    }

    /// Starts a proxy and waits for its admin API only.
    ///
    /// # Panics
    /// It ends before that.
    pub fn begin(kind: &Kind, bootstrap: &str, arguments: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("weft-test-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory for the proxy");
        let (config, address) = (directory.join("bootstrap.yaml"), directory.join("admin"));
        std::fs::write(&config, bootstrap).expect("the bootstrap is written");
        let log = File::create(directory.join("log")).expect("a log file");
        let binary = match kind {
            Kind::Weft => tools::binary("weft"),
            Kind::Envoy(path) => path.clone(),
        };
        let mut command = Command::new(binary);
        command.arg("-c").arg(&config).args(["--config-yaml", ADMIN, "--admin-address-path"]).arg(&address);
        command.args(["--disable-hot-restart", "-l", "info"]);
        if !arguments.contains(&"--concurrency") {
            command.args(["--concurrency", "1"]);
        }
        // Access logs are written at once.
        command.args(["--file-flush-interval-msec", "20"]).args(arguments);
        let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("the proxy starts");
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut proxy = Self { child, directory, admin: unknown };
        proxy.admin = until("the admin address", || {
            proxy.assert_alive();
            std::fs::read_to_string(&address).ok()?.trim().parse().ok()
        });
        proxy
    }

    fn assert_alive(&self) {
        // A zombie still has its directory in /proc, but no executable.
        let exe = format!("/proc/{}/exe", self.child.id());
        assert!(std::fs::read_link(exe).is_ok(), "the proxy ended:\n{}", self.log());
    }

    /// Where the admin API is.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The body of a page of the admin API.
    ///
    /// # Panics
    /// There is no answer.
    pub fn page(&self, path: &str) -> String {
        get(self.admin, path).unwrap_or_else(|| panic!("no answer to {path}")).text()
    }

    /// How many descriptors it has open whose name begins with `kind` (`pipe:`, `socket:`; all if empty).
    ///
    /// # Panics
    /// It does not run.
    pub fn descriptors(&self, kind: &str) -> usize {
        let all = std::fs::read_dir(format!("/proc/{}/fd", self.id())).expect("it runs").flatten();
        let links = all.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with(kind)).count()
    }

    /// A counter or gauge; `None` if there is none of that name.
    pub fn stat(&self, name: &str) -> Option<u64> {
        let text = self.page("/stats");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))?;
        line.parse().ok()
    }

    /// Waits until a counter or gauge has a value.
    ///
    /// # Panics
    /// It never has.
    pub fn wait_for_stat(&self, name: &str, value: u64) {
        until(&format!("{name} to be {value}"), || (self.stat(name) == Some(value)).then_some(()));
    }

    /// What it wrote to its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// The lines of the access log that begin with `LOG `; waits for as many as `count`.
    pub fn log_lines(&self, count: usize) -> Vec<String> {
        until("the log", || {
            let log = self.log();
            let lines: Vec<_> = log.lines().filter(|line| line.starts_with("LOG ")).map(str::to_owned).collect();
            (lines.len() >= count).then_some(lines)
        })
    }

    /// A file of the proxy's own directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name: `TERM`.
    ///
    /// # Panics
    /// It cannot be sent.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It goes on.
    pub fn wait(mut self) -> ExitStatus {
        until("the proxy to end", || self.child.try_wait().expect("a child of ours"))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the proxy's log:\n{}", self.log());
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
