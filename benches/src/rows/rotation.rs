//! Certificates that rotate under load: a control plane pushes one after the other while kept connections are busy.
//!
//! The control plane is `weft-control` for every proxy, over SDS; a push begins when the file that it serves is renamed into
//! place. A measurement in which any request or handshake fails is an error.

use crate::{
    bench::Bench,
    control::{Control, put},
    load::{self, Plan},
    ports,
    row::{Group, How, Load, MS, Rounds, Row},
    talk::{
        http1::{Client, Exchange},
        tls::Secure,
    },
};
use rustls::{
    ClientConfig, ClientConnection, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

const CONNECTIONS: usize = 500;
/// Requests a second on all of them.
const RATE: f64 = 2_500.0;
const EVERY: Duration = Duration::from_secs(5);
/// How long a new certificate is waited for.
const PATIENCE: Duration = Duration::from_secs(4);

pub const ROTATION: Group = Group {
    name: "rotation",
    files: &[("weft", "rotation.yaml"), ("envoy", "rotation.yaml")],
    workers: 1,
    rounds: Rounds::All,
    how: How::ByItself(rotations),
    rows: &[Row {
        name: "rotation",
        title: "500 mTLS connections under load, certificates rotate",
        load: Load::Own,
        figures: &[MS.unit("ms from push to first handshake with it").floor(1.0)],
    }],
};

/// As many rotations of each proxy as there are rounds.
fn rotations(bench: &mut Bench, group: &'static Group) -> Result<(), String> {
    let folder = bench.folders.results.join("rotation");
    let rotations = bench.lengths.rounds;
    for which in 0..bench.peers.len() {
        let peer = &bench.peers[which];
        let name = peer.name;
        let Some(command) = peer.command(group, &bench.folders)? else { continue };
        println!("{name}: {rotations} rotations under load");
        match rotate(bench, name, &command, &folder, rotations) {
            Ok(late) => late.into_iter().for_each(|ms| bench.add(name, &group.rows[0], "ms", ms)),
            Err(why) => bench.fail(name, group.name, &why),
        }
    }
    Ok(())
}

/// Milliseconds until each certificate was served.
fn rotate(bench: &Bench, name: &str, command: &[String], folder: &Path, rotations: usize) -> Result<Vec<f64>, String> {
    let renew = || -> Result<CertificateDer<'static>, String> {
        let (chain, key) = bench.files.renewed()?;
        let leaf = CertificateDer::from_pem_slice(chain.as_bytes()).map_err(|e| e.to_string())?;
        push(folder, &chain, &key, &bench.files.authority)?;
        Ok(leaf)
    };
    renew()?;
    let _control =
        Control::start(&bench.control, ports::ROTATION_CONTROL, folder, &bench.folders.results.join("control.log"))?;
    let _process = bench.start(name, command)?;
    let client = bench.ends.client.clone();
    // The first certificate may still be on its way.
    let begin = Instant::now();
    while let Err(why) = served(&client) {
        if begin.elapsed() > PATIENCE {
            return Err(format!("it does not serve: {why}"));
        }
    }
    let plan = Plan {
        to: ports::ROTATION,
        connections: CONNECTIONS,
        depth: 1,
        once: false,
        warm: Duration::ZERO,
        length: EVERY * (rotations as u32 + 1),
    };
    let open = |_: &mut Vec<u8>| Secure::client(&client, |_| Client::new(Exchange::Small));
    thread::scope(|scope| {
        let load = scope.spawn(|| load::open::open(&plan, RATE, &open, &|| Duration::ZERO));
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
    })
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
    put(folder, "secrets.yaml", &text)
}

/// Makes a connection with a request in it, and gives the certificate that the proxy presented.
fn served(config: &Arc<ClientConfig>) -> Result<CertificateDer<'static>, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let socket = TcpStream::connect(ports::ROTATION).map_err(|e| text(&e))?;
    let name = ServerName::try_from("bench.example").map_err(|e| text(&e))?;
    let connection = ClientConnection::new(config.clone(), name).map_err(|e| text(&e))?;
    let mut stream = StreamOwned::new(connection, socket);
    stream.write_all(&Exchange::Small.request()).map_err(|e| text(&e))?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).map_err(|e| text(&e))?;
    if &answer != b"HTTP/1.1 200" {
        return Err(format!("not a 200: {}", String::from_utf8_lossy(&answer)));
    }
    let leaf = stream.conn.peer_certificates().and_then(<[_]>::first).ok_or("no certificate")?;
    Ok(leaf.clone().into_owned())
}
