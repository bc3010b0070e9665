//! HTTP/1.1 from both ends: one exchange after the other on one connection, bodies of any size.
//!
//! Used by the load generator ([`Client`]) and the backend ([`Server`]). The path says how long the response's body is.

use super::wire::Session;
use memchr::memmem;

/// What every small response carries, whatever the protocol.
pub const BODY: &[u8; 128] = &[b'w'; 128];

/// What a client asks for again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// No body in the request, 128 bytes in the response.
    Small,
    /// So many bytes in the response, of [`SIZES`].
    Download(usize),
    /// So many bytes in the request, 128 in the response.
    Upload(usize),
}

pub const KIB_64: usize = 64 << 10;
pub const MIB: usize = 1 << 20;

/// The bodies that the backend has, by path.
const SIZES: [(&str, usize); 3] = [("/small", BODY.len()), ("/64k", KIB_64), ("/1m", MIB)];

impl Exchange {
    /// The whole request.
    pub fn request(self) -> Vec<u8> {
        let (method, path, length) = match self {
            Self::Small => ("GET", "/small", 0),
            Self::Download(size) => {
                let path = SIZES.iter().find(|(_, has)| *has == size).map_or("/none", |(path, _)| path);
                ("GET", path, 0)
            }
            Self::Upload(size) => ("POST", "/small", size),
        };
        let mut text =
            format!("{method} {path} HTTP/1.1\r\nhost: bench.example\r\nuser-agent: weft-benches\r\naccept: */*\r\n");
        if length > 0 {
            text += &format!("content-length: {length}\r\n");
        }
        text += "\r\n";
        let mut request = text.into_bytes();
        request.resize(request.len() + length, b'w');
        request
    }
}

/// Whether a head is here, whole; else how much of a body is still to come.
#[derive(Default)]
enum Place {
    #[default]
    Head,
    Body(usize),
}

/// The load generator's side.
pub struct Client {
    request: Vec<u8>,
    place: Place,
}

impl Client {
    pub fn new(exchange: Exchange) -> Self {
        Self { request: exchange.request(), place: Place::Head }
    }

    /// A small exchange whose request has so many header lines more.
    pub fn with_lines(count: usize) -> Self {
        let mut request = Exchange::Small.request();
        request.truncate(request.len() - 2);
        for i in 0..count {
            request.extend_from_slice(format!("x-bench-line-{i:02}: the value of a header line\r\n").as_bytes());
        }
        request.extend_from_slice(b"\r\n");
        Self { request, place: Place::Head }
    }
}

impl super::Client for Client {
    fn begin(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.request);
    }
}

impl Session for Client {
    fn receive(&mut self, input: &[u8], _: &mut Vec<u8>) -> Result<(usize, usize), String> {
        let (mut used, mut ended) = (0, 0);
        loop {
            let rest = &input[used..];
            match &mut self.place {
                Place::Head => {
                    let Some(head) = memmem::find(rest, b"\r\n\r\n").map(|at| at + 4) else { return Ok((used, ended)) };
                    if !rest.starts_with(b"HTTP/1.1 200 ") {
                        return Err(format!("not a 200: {}", String::from_utf8_lossy(&rest[..head.min(200)])));
                    }
                    let length = content_length(&rest[..head]).ok_or("a response without content-length")?;
                    used += head;
                    self.place = Place::Body(length);
                }
                Place::Body(left) => {
                    let taken = rest.len().min(*left);
                    used += taken;
                    *left -= taken;
                    if *left > 0 {
                        return Ok((used, ended));
                    }
                    ended += 1;
                    self.place = Place::Head;
                }
            }
        }
    }
}

pub fn content_length(head: &[u8]) -> Option<usize> {
    head.split(|c| *c == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked(15)?;
        if !name.eq_ignore_ascii_case(b"content-length:") {
            return None;
        }
        std::str::from_utf8(value).ok()?.trim().parse().ok()
    })
}

/// The backend's side.
pub struct Server {
    /// By path, whole; `x-backend` in their heads says which backend it is.
    responses: Vec<(&'static str, Vec<u8>)>,
    place: Place,
    /// The path of the request whose body is still coming.
    path: usize,
}

impl Default for Server {
    fn default() -> Self {
        Self::named("")
    }
}

impl Server {
    /// One that says its name, if it has one.
    pub fn named(name: &str) -> Self {
        let name = if name.is_empty() { String::new() } else { format!("x-backend: {name}\r\n") };
        let responses = SIZES.map(|(path, size)| {
            let mut response = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nserver: backend\r\n{name}content-length: {size}\r\n\r\n",
            )
            .into_bytes();
            response.resize(response.len() + size, b'w');
            (path, response)
        });
        Self { responses: responses.into(), place: Place::Head, path: 0 }
    }
}

impl Session for Server {
    fn receive(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, usize), String> {
        let (mut used, mut served) = (0, 0);
        loop {
            let rest = &input[used..];
            match &mut self.place {
                Place::Head => {
                    let Some(head) = memmem::find(rest, b"\r\n\r\n").map(|at| at + 4) else {
                        return Ok((used, served));
                    };
                    let path = rest[..head].split(|c| *c == b' ').nth(1).unwrap_or_default();
                    // Any other path is a small one.
                    self.path = self.responses.iter().position(|(has, _)| has.as_bytes() == path).unwrap_or(0);
                    used += head;
                    self.place = Place::Body(content_length(&rest[..head]).unwrap_or(0));
                }
                Place::Body(left) => {
                    let taken = rest.len().min(*left);
                    used += taken;
                    *left -= taken;
                    if *left > 0 {
                        return Ok((used, served));
                    }
                    out.extend_from_slice(&self.responses[self.path].1);
                    served += 1;
                    self.place = Place::Head;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Client as _, *};

    #[test]
    fn both_ends_understand_each_other() {
        for exchange in [Exchange::Small, Exchange::Download(KIB_64), Exchange::Download(MIB), Exchange::Upload(KIB_64)]
        {
            let (mut request, mut response) = (Vec::new(), Vec::new());
            let mut client = Client::new(exchange);
            client.begin(&mut request);
            assert_eq!(Server::default().receive(&request, &mut response).unwrap(), (request.len(), 1));
            // In two pieces, as a socket may give it.
            let (used, ended) = client.receive(&response[..response.len() - 1], &mut request).unwrap();
            assert_eq!(ended, 0);
            assert_eq!(client.receive(&response[used..], &mut request).unwrap(), (response.len() - used, 1));
            let size = if let Exchange::Download(size) = exchange { size } else { BODY.len() };
            assert!(response.len() > size && response.len() < size + 200);
        }
    }

    #[test]
    fn another_status_ends_the_measurement() {
        let text = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
        assert!(Client::new(Exchange::Small).receive(text, &mut Vec::new()).unwrap_err().contains("503"));
    }
}
