//! Certificates that rotate under load: a control plane pushes one after the other while kept connections are busy.
//!
//! The control plane is `weft-control` for every proxy, over SDS; a push begins when the file that it serves is renamed into
//! place. A measurement in which any request or handshake fails is an error.

use crate::{
    Bench, http1,
    load::{self, Plan},
    peer,
    samples::Measure,
    tls::Secure,
};
use rustls::{
    ClientConfig, ClientConnection, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

pub const CONNECTIONS: usize = 500;
/// Requests a second on all of them.
const RATE: f64 = 2_500.0;
const EVERY: Duration = Duration::from_secs(5);
/// How long a new certificate is waited for.
const PATIENCE: Duration = Duration::from_secs(4);

impl Bench {
    /// As many rotations of each proxy as there are rounds.
    pub fn rotations(&mut self) -> Result<(), String> {
        let folder = self.results.join("rotation");
        let renew = || -> Result<CertificateDer<'static>, String> {
            let (chain, key) = self.files.renewed()?;
            let leaf = CertificateDer::from_pem_slice(chain.as_bytes()).map_err(|e| e.to_string())?;
            push(&folder, &chain, &key, &self.files.authority)?;
            Ok(leaf)
        };
        let rotations = self.lengths.rounds;
        let mut samples = Vec::new();
        for peer in &self.peers {
            let Some(command) = &peer.rotation else { continue };
            println!("{}: {rotations} rotations under load", peer.name);
            renew()?;
            let _control = Control::start(&self.control, &folder)?;
            let _process = self.process(peer, command)?;
            let client = self.ends.client.clone();
            // The first certificate may still be on its way.
            let begin = Instant::now();
            while let Err(why) = served(&client) {
                if begin.elapsed() > PATIENCE {
                    return Err(format!("{} does not serve: {why}", peer.name));
                }
            }
            let plan = Plan {
                to: peer::ROTATION,
                connections: CONNECTIONS,
                depth: 1,
                once: false,
                warm: Duration::ZERO,
                length: EVERY * (rotations as u32 + 1),
            };
            let late = thread::scope(|scope| {
                let load = scope
                    .spawn(|| load::open(&plan, RATE, &|_| Secure::client(&client, http1::Client), &|| Duration::ZERO));
                let mut late = Vec::new();
                let mut next = Instant::now() + EVERY / 2;
                for _ in 0..rotations {
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                    next += EVERY;
                    let begin = Instant::now();
                    let wanted = renew()?;
                    while served(&client)? != wanted {
                        if begin.elapsed() > PATIENCE {
                            return Err("a new certificate is not served".to_owned());
                        }
                    }
                    late.push(begin.elapsed().as_secs_f64() * 1e3);
                }
                load.join().map_err(|_| "the load generator panicked")?.map(|_| late)
            });
            samples.push((peer.name, late.map_err(|e| format!("{}: {e}", peer.name))?));
        }
        for (name, late) in samples {
            late.into_iter().for_each(|ms| self.samples.add(name, Measure::Rotation, ms));
        }
        Ok(())
    }
}

/// Puts a certificate, its key and the authority where the control plane serves them from.
fn push(folder: &Path, chain: &str, key: &str, authority: &Path) -> Result<(), String> {
    const SECRET: &str = "\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    let authority = fs::read_to_string(authority).map_err(|e| e.to_string())?;
    let text = format!(
        "resources:\n- {{{SECRET}, name: identity, tls_certificate: {{certificate_chain: {{inline_string: {chain:?}}}, \
         private_key: {{inline_string: {key:?}}}}}}}\n- {{{SECRET}, name: trust, validation_context: {{trusted_ca: \
         {{inline_string: {authority:?}}}}}}}\n"
    );
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(folder.join(".next"), text))
        .and_then(|()| fs::rename(folder.join(".next"), folder.join("secrets.yaml")))
        .map_err(|e| format!("{}: {e}", folder.display()))
}

/// Makes a connection with a request in it, and gives the certificate that the proxy presented.
fn served(config: &Arc<ClientConfig>) -> Result<CertificateDer<'static>, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let socket = TcpStream::connect(peer::ROTATION).map_err(|e| text(&e))?;
    let name = ServerName::try_from("bench.example").map_err(|e| text(&e))?;
    let connection = ClientConnection::new(config.clone(), name).map_err(|e| text(&e))?;
    let mut stream = StreamOwned::new(connection, socket);
    stream.write_all(http1::REQUEST).map_err(|e| text(&e))?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).map_err(|e| text(&e))?;
    if &answer != b"HTTP/1.1 200" {
        return Err(format!("not a 200: {}", String::from_utf8_lossy(&answer)));
    }
    let leaf = stream.conn.peer_certificates().and_then(<[_]>::first).ok_or("no certificate")?;
    Ok(leaf.clone().into_owned())
}

/// The control plane's process, killed when dropped.
struct Control(Child);

impl Control {
    fn start(binary: &PathBuf, folder: &Path) -> Result<Self, String> {
        let child = Command::new(binary)
            .args(["--listen", &peer::ROTATION_CONTROL.to_string(), "--dir"])
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("{}: {e}", binary.display()))?;
        let control = Self(child);
        let begin = Instant::now();
        while TcpStream::connect(peer::ROTATION_CONTROL).is_err() {
            if begin.elapsed() > PATIENCE {
                return Err(format!("{} does not serve", binary.display()));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(control)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
