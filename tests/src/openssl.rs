//! A TLS client that was not written for this: `openssl s_client`, and what it says of a connection.

use std::{
    io::{Read as _, Write as _},
    process::{Command, Stdio},
};

/// What one connection came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handshake {
    pub protocol: Option<String>,
    pub cipher: Option<String>,
    pub alpn: Option<String>,
    /// Of the server's certificate.
    pub subject: Option<String>,
    pub resumed: bool,
    /// The number of the alert that came.
    pub alert: Option<u8>,
    /// The status of the response, if a request was sent and answered.
    pub status: Option<u16>,
}

/// Connects with these arguments, sends a request for `/` over HTTP/1.1, and reads until the server is done. `None` if there
/// is no openssl.
pub fn s_client(port: u16, arguments: &[&str]) -> Option<Handshake> {
    // With TLS 1.3 the request may cross the server's refusal on its way: then the server's reset overtakes the alert. Whoever
    // ends without a word is asked again.
    let mut asked = (0..4).map(|_| once(port, arguments));
    let silent =
        |handshake: &Handshake| handshake.protocol.is_some() && handshake.alert.is_none() && handshake.status.is_none();
    asked.find(|handshake| !handshake.as_ref().is_some_and(silent)).unwrap_or_else(|| once(port, arguments))
}

fn once(port: u16, arguments: &[&str]) -> Option<Handshake> {
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-ign_eof"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    let mut input = child.stdin.take()?;
    // A server that ends the handshake closes the pipe too.
    let _ = input.write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    let (mut out, mut errors) = (child.stdout.take()?, child.stderr.take()?);
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = errors.read_to_end(&mut text);
        text
    });
    let mut text = Vec::new();
    let _ = out.read_to_end(&mut text);
    drop(input);
    let _ = child.wait();
    text.extend(reader.join().unwrap_or_default());
    Some(read(&String::from_utf8_lossy(&text)))
}

/// Version of the program, for tests that say why they are skipped.
pub fn version() -> Option<String> {
    let output = Command::new("openssl").arg("version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn read(text: &str) -> Handshake {
    let after = |start: &str| text.lines().find_map(|line| Some(line.trim().strip_prefix(start)?.trim().to_owned()));
    let negotiated = after("New, ").or(after("Reused, ")).unwrap_or_default();
    let parts: Vec<&str> = negotiated.split(", Cipher is ").collect();
    let (protocol, cipher) = match &parts[..] {
        [protocol, cipher] if *cipher != "(NONE)" => (Some((*protocol).to_owned()), Some((*cipher).to_owned())),
        _ => (None, None),
    };
    let alert = text.split("SSL alert number ").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    Handshake {
        protocol,
        cipher,
        alpn: after("ALPN protocol: "),
        subject: after("subject=").map(|subject| subject.replace(' ', "")),
        resumed: after("Reused, ").is_some(),
        alert,
        // What the program prints of tickets may stand on the same line.
        status: text.split("HTTP/1.1 ").nth(1).and_then(|rest| rest.get(..3)?.parse().ok()),
    }
}
