//! A client of HTTP/1.1 that hides nothing: it sends the bytes it is given and reads responses as they come.

use crate::PATIENCE;
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
};

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// In the order in which they came, names as they were written.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// All values of a header.
    pub fn values(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection.
pub struct Client {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Client {
    /// Connects; `None` if that is refused.
    pub fn connect(address: impl ToSocketAddrs) -> Option<Self> {
        let stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Self { stream, read: Vec::new() })
    }

    /// Sends bytes as they are. False if the connection is closed.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Sends a request without a body and reads the response.
    pub fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Option<Response> {
        let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let host = if headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("host")) { "" } else { "host: test\r\n" };
        self.send(format!("GET {path} HTTP/1.1\r\n{host}{lines}\r\n"));
        self.response()
    }

    /// Reads a response (to something else than HEAD); `None` if the connection ends before it does.
    pub fn response(&mut self) -> Option<Response> {
        let head = self.until(b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut lines = head.trim_end().split("\r\n");
        let status: u16 = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers: Vec<(String, String)> =
            lines.filter_map(|l| l.split_once(':')).map(|(n, v)| (n.to_owned(), v.trim().to_owned())).collect();
        let mut response = Response { status, headers, body: Vec::new() };
        if (100..200).contains(&status) || status == 204 || status == 304 {
            return Some(response);
        }
        response.body = if response.header("transfer-encoding").is_some_and(|v| v.contains("chunked")) {
            self.chunks()?
        } else if let Some(length) = response.header("content-length") {
            self.exactly(length.parse().ok()?)?
        } else {
            self.rest()
        };
        Some(response)
    }

    /// Reads a response without a body: to HEAD, or of a tunnel.
    pub fn head(&mut self) -> Option<String> {
        self.until(b"\r\n\r\n").map(|head| String::from_utf8_lossy(&head).into_owned())
    }

    /// Everything until the connection ends (or nothing comes for too long).
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.read);
        let _ = self.stream.read_to_end(&mut rest);
        rest
    }

    /// True if the other side closes the connection and sends nothing before.
    pub fn is_closed(&mut self) -> bool {
        self.read.is_empty() && matches!(self.fill(), Ok(0) | Err(_))
    }

    /// The socket itself.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Exactly so many bytes.
    pub fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.read.len() < length {
            self.fill().ok().filter(|n| *n > 0)?;
        }
        Some(self.read.drain(..length).collect())
    }

    fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.until(b"\r\n")?;
            let size = String::from_utf8_lossy(&line);
            let size = usize::from_str_radix(size.trim().split(';').next()?, 16).ok()?;
            if size == 0 {
                // Trailers, if any, and the empty line.
                while self.until(b"\r\n")?.len() > 2 {}
                return Some(body);
            }
            body.extend(self.exactly(size)?);
            self.exactly(2)?;
        }
    }

    fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.read.windows(end.len()).position(|w| w == end) {
                return Some(self.read.drain(..at + end.len()).collect());
            }
            self.fill().ok().filter(|n| *n > 0)?;
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 16 * 1024];
        let n = self.stream.read(&mut buffer)?;
        self.read.extend_from_slice(&buffer[..n]);
        Ok(n)
    }
}

/// One request on a connection of its own; `None` if there is no whole response.
pub fn get(address: SocketAddr, path: &str) -> Option<Response> {
    Client::connect(address)?.get(path, &[("connection", "close")])
}

/// The same at a port of 127.0.0.1.
pub fn at(port: u16, path: &str) -> Option<Response> {
    get(SocketAddr::from(([127, 0, 0, 1], port)), path)
}
