//! `key_log`: connections' secrets in a file of NSS' format, for debugging. Only for those whose addresses are meant.

use crate::base::Address;
use std::{
    fmt,
    fs::{File, OpenOptions},
    io::Write as _,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    sync::{Arc, Mutex, PoisonError},
};
use weft_config::{Context, address::CidrRange, tls::KeyLog};

/// The file, and whose secrets go there.
pub struct KeyLogFile {
    file: Mutex<File>,
    local: Vec<CidrRange>,
    remote: Vec<CidrRange>,
}

impl KeyLogFile {
    /// Opens the file for appending; nobody but its owner can read it. `None` if a problem was reported.
    pub fn open(config: &KeyLog, cx: &mut Context) -> Option<Arc<Self>> {
        match OpenOptions::new().create(true).append(true).mode(0o600).open(&config.path) {
            Ok(file) => {
                tracing::warn!(target: "config", "secrets of TLS connections are written to {}", config.path);
                Some(Arc::new(Self {
                    file: Mutex::new(file),
                    local: config.local.clone(),
                    remote: config.remote.clone(),
                }))
            }
            Err(e) => {
                cx.problem_at("path", format!("found {:?}, which cannot be opened: {e}", config.path));
                None
            }
        }
    }

    /// True if connections between these addresses are meant.
    pub fn takes(&self, local: &Address, remote: &Address) -> bool {
        let within = |ranges: &[CidrRange], ip: Option<IpAddr>| {
            ranges.is_empty() || ip.is_some_and(|ip| ranges.iter().any(|range| range.contains(ip)))
        };
        within(&self.local, local.ip().map(|ip| ip.ip())) && within(&self.remote, remote.ip().map(|ip| ip.ip()))
    }
}

impl fmt::Debug for KeyLogFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyLogFile").finish_non_exhaustive()
    }
}

impl rustls::KeyLog for KeyLogFile {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        let line = format!("{label} {} {}\n", hex(client_random), hex(secret));
        // Debugging goes without what cannot be written.
        let _ = self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
    }
}

fn hex(bytes: &[u8]) -> String {
    crate::base::certificate::hex(bytes)
}
