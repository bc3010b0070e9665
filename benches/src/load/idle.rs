//! Connections that have had one exchange and then say nothing: what is kept for them is what a proxy is asked about.

use crate::talk::http1::{Exchange, content_length};
use memchr::memmem;
use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

/// The connections, open until this is dropped.
#[derive(Default)]
pub struct Idle {
    plain: Vec<TcpStream>,
    secure: Vec<StreamOwned<ClientConnection, TcpStream>>,
}

impl Idle {
    pub fn len(&self) -> usize {
        self.plain.len() + self.secure.len()
    }

    /// Opens connections to `to` until there are `count`, one after the other so that the proxy needs few to its backend.
    ///
    /// # Errors
    /// A connection that failed, a response that was not a 200.
    pub fn grow(&mut self, count: usize, to: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> Result<(), String> {
        let request = Exchange::Small.request();
        while self.len() < count {
            let stream = TcpStream::connect(to).map_err(|e| format!("connection {}: {e}", self.len()))?;
            stream.set_nodelay(true).map_err(|e| e.to_string())?;
            match tls {
                None => {
                    let mut stream = stream;
                    exchange(&mut stream, &request)?;
                    self.plain.push(stream);
                }
                Some(config) => {
                    let name = ServerName::try_from("bench.example").map_err(|e| e.to_string())?;
                    let connection = ClientConnection::new(config.clone(), name).map_err(|e| e.to_string())?;
                    let mut stream = StreamOwned::new(connection, stream);
                    exchange(&mut stream, &request)?;
                    self.secure.push(stream);
                }
            }
        }
        Ok(())
    }
}

fn exchange(stream: &mut (impl Read + Write), request: &[u8]) -> Result<(), String> {
    stream.write_all(request).map_err(|e| e.to_string())?;
    let mut answer = [0; 2048];
    let mut filled = 0;
    loop {
        match stream.read(&mut answer[filled..]).map_err(|e| e.to_string())? {
            0 => return Err("the connection was closed".into()),
            n => filled += n,
        }
        let got = &answer[..filled];
        let Some(head) = memmem::find(got, b"\r\n\r\n").map(|at| at + 4) else { continue };
        if !got.starts_with(b"HTTP/1.1 200 ") {
            return Err(format!("not a 200: {}", String::from_utf8_lossy(&got[..head])));
        }
        if filled == head + content_length(&got[..head]).ok_or("a response without content-length")? {
            return Ok(());
        }
    }
}
