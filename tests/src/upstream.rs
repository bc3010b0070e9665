//! A scripted server behind the proxy: HTTP/1.1, one thread a connection.

use crate::PATIENCE;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

/// A request as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The request line.
    pub line: String,
    /// In the order in which they came, names as they were written.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Seen {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

/// What it answers.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A status, more headers, and a body with its length.
    Message(u16, Vec<(String, String)>, Vec<u8>),
    /// These bytes; the connection goes on.
    Raw(Vec<u8>),
    /// These bytes, then the end of the connection.
    Close(Vec<u8>),
}

impl Reply {
    /// 200 with a text.
    pub fn text(text: &str) -> Self {
        Self::Message(200, Vec::new(), text.as_bytes().to_vec())
    }
}

/// A server; its threads end with the process.
pub struct Upstream {
    port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Upstream {
    /// Starts a server that answers as `reply` says.
    ///
    /// # Panics
    /// There is no port.
    pub fn start(reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let (reply, all) = (Arc::new(reply), seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (reply, all) = (reply.clone(), all.clone());
                std::thread::spawn(move || {
                    let _ = serve(&stream, &*reply, &all);
                });
            }
        });
        Self { port, seen }
    }

    /// A server that answers 200 with `name`.
    pub fn named(name: &'static str) -> Self {
        Self::start(move |_| Reply::text(name))
    }

    /// Where it listens at 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The requests so far; they are forgotten.
    ///
    /// # Panics
    /// A connection's thread did.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().expect("no thread panicked"))
    }
}

fn serve(stream: &TcpStream, reply: &dyn Fn(&Seen) -> Reply, all: &Mutex<Vec<Seen>>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut writer = stream;
    loop {
        let line = line(&mut reader)?;
        let mut headers = Vec::new();
        loop {
            let line = self::line(&mut reader)?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        let mut seen = Seen { line, headers, body: Vec::new() };
        if let Some(length) = seen.header("content-length") {
            seen.body = vec![0; length.parse().ok()?];
            reader.read_exact(&mut seen.body).ok()?;
        } else if seen.header("transfer-encoding").is_some() {
            loop {
                let size = usize::from_str_radix(self::line(&mut reader)?.split(';').next()?, 16).ok()?;
                let mut chunk = vec![0; size];
                reader.read_exact(&mut chunk).ok()?;
                seen.body.append(&mut chunk);
                if size == 0 {
                    while !self::line(&mut reader)?.is_empty() {}
                    break;
                }
                self::line(&mut reader)?;
            }
        }
        all.lock().ok()?.push(seen.clone());
        let (bytes, goes_on) = match reply(&seen) {
            Reply::Raw(bytes) => (bytes, true),
            Reply::Close(bytes) => (bytes, false),
            Reply::Message(status, headers, body) => {
                let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                let head = format!("HTTP/1.1 {status} OK\r\ncontent-length: {}\r\n{lines}\r\n", body.len());
                ([head.into_bytes(), body].concat(), true)
            }
        };
        writer.write_all(&bytes).ok()?;
        if !goes_on {
            return None;
        }
    }
}

fn line(reader: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    let n = reader.read_line(&mut line).ok()?;
    (n > 0).then(|| line.trim_end_matches(['\r', '\n']).to_owned())
}
