//! mTLS on both sides of a proxy: requests on kept connections, and connections that are made for one request.
//!
//! Each proxy gets a process of its own for it, so that the measurements without TLS are of one that has no certificate.

use crate::{
    Bench, CONNECTIONS,
    http1::Client,
    load::{self, Plan},
    peer,
    report::DIRECT,
    samples::Measure,
    tls::{Ends, Secure},
};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// Handshakes at a time.
const HANDSHAKES: usize = 16;

/// One of the measurements.
pub struct Case {
    pub name: &'static str,
    pub to: SocketAddr,
    once: bool,
    hybrid: bool,
    cpu: Measure,
    rate: Option<Measure>,
}

pub const CASES: [Case; 4] = [
    Case {
        name: "mTLS, kept",
        to: peer::MTLS,
        once: false,
        hybrid: false,
        cpu: Measure::CpuMtls,
        rate: Some(Measure::RateMtls),
    },
    Case {
        name: "mTLS, new",
        to: peer::MTLS,
        once: true,
        hybrid: false,
        cpu: Measure::CpuNew,
        rate: Some(Measure::RateNew),
    },
    Case {
        name: "mTLS, new on both sides",
        to: peer::MTLS_ONCE,
        once: true,
        hybrid: false,
        cpu: Measure::CpuNewBoth,
        rate: None,
    },
    Case {
        name: "mTLS, new with default groups",
        to: peer::MTLS_DEFAULT_GROUPS,
        once: true,
        hybrid: true,
        cpu: Measure::CpuNewDefault,
        rate: None,
    },
];

impl Case {
    pub fn plan(&self, warm: Duration, length: Duration) -> Plan {
        let connections = if self.once { HANDSHAKES } else { CONNECTIONS };
        Plan { to: self.to, connections, depth: 1, once: self.once, warm, length }
    }

    /// What opens its connections.
    pub fn open(&self, ends: &Ends) -> impl Fn(&mut Vec<u8>) -> Secure<Client> + use<> {
        let config = if self.hybrid { &ends.hybrid_client } else { &ends.client }.clone();
        move |_| Secure::client(&config, Client)
    }
}

/// Writes the configuration with the certificates of `folder`, and says where.
///
/// # Errors
/// It cannot be written.
pub fn configure(configs: &Path, folder: &Path, results: &Path) -> Result<PathBuf, String> {
    let (from, to) = (configs.join("mtls.yaml"), results.join("mtls.yaml"));
    let text = fs::read_to_string(&from).map_err(|e| format!("{}: {e}", from.display()))?;
    let text = text.replace("FOLDER", &folder.display().to_string());
    fs::write(&to, text).map_err(|e| format!("{}: {e}", to.display()))?;
    Ok(to)
}

impl Bench {
    /// One round of it.
    pub fn mtls(&mut self, round: usize) -> Result<(), String> {
        for which in self.order(round) {
            let Some(index) = which else {
                for case in CASES.iter().filter(|case| case.rate.is_some()) {
                    self.case(DIRECT, case, peer::MTLS_BACKEND, &|| Duration::ZERO)?;
                }
                continue;
            };
            let peer = &self.peers[index];
            let Some(command) = &peer.mtls else { continue };
            let process = self.process(peer, command)?;
            let name = peer.name;
            for case in &CASES {
                self.case(name, case, case.to, &|| process.cpu())?;
            }
        }
        Ok(())
    }

    fn case(&mut self, name: &str, case: &Case, to: SocketAddr, cpu: &dyn Fn() -> Duration) -> Result<(), String> {
        let plan = Plan { to, ..case.plan(self.lengths.warm, self.lengths.closed) };
        let outcome =
            load::closed(&plan, &case.open(&self.ends), cpu).map_err(|e| format!("{name}, {}: {e}", case.name))?;
        self.add(name, &outcome, case.cpu, case.rate);
        Ok(())
    }
}
