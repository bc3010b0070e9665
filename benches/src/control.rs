//! `weft-control` for what comes from a control plane, the same for every proxy: certificates that rotate, and configuration at scale.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Puts a file into the folder that it serves, whole at once: with that a push begins.
///
/// # Errors
/// It cannot be written.
pub fn put(folder: &Path, name: &str, text: &str) -> Result<(), String> {
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(folder.join(".next"), text))
        .and_then(|()| fs::rename(folder.join(".next"), folder.join(name)))
        .map_err(|e| format!("{}: {e}", folder.display()))
}

/// The control plane's process, killed when dropped.
pub struct Control {
    child: Child,
    log: PathBuf,
}

impl Control {
    /// Serves what is in `folder`; what it says goes to `log`.
    ///
    /// # Errors
    /// It cannot be executed, or does not serve in time.
    pub fn start(binary: &Path, at: SocketAddr, folder: &Path, log: &Path) -> Result<Self, String> {
        let file = File::create(log).map_err(|e| format!("{}: {e}", log.display()))?;
        let child = Command::new(binary)
            .args(["--verbose", "--listen", &at.to_string(), "--dir"])
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .map_err(|e| format!("{}: {e}", binary.display()))?;
        let control = Self { child, log: log.to_owned() };
        let begin = Instant::now();
        while TcpStream::connect(at).is_err() {
            if begin.elapsed() > PATIENCE {
                return Err(format!("{} does not serve", binary.display()));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(control)
    }

    /// How often something that it sent was taken.
    pub fn taken(&self) -> usize {
        fs::read_to_string(&self.log).unwrap_or_default().lines().filter(|line| line.contains(" took ")).count()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
