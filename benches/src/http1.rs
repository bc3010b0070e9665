//! HTTP/1.1 from both ends: one request, one small response, again and again on one connection.
//!
//! Used by the load generator ([`Client`]) and the backend ([`Server`]).

use crate::wire::Session;
use memchr::memmem;

pub const REQUEST: &[u8] =
    b"GET /small HTTP/1.1\r\nhost: bench.example\r\nuser-agent: weft-benches\r\naccept: */*\r\n\r\n";

/// What every response carries, over both protocols.
pub const BODY: &[u8; 128] = &[b'w'; 128];

fn response() -> Vec<u8> {
    let mut text = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nserver: backend\r\ncontent-length: {}\r\n\r\n",
        BODY.len()
    )
    .into_bytes();
    text.extend_from_slice(BODY);
    text
}

/// The load generator's side.
#[derive(Default)]
pub struct Client;

impl Client {
    pub fn begin(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(REQUEST);
    }
}

impl Session for Client {
    fn receive(&mut self, input: &[u8], _: &mut Vec<u8>) -> Result<(usize, usize), String> {
        let Some(head) = memmem::find(input, b"\r\n\r\n").map(|at| at + 4) else { return Ok((0, 0)) };
        if !input.starts_with(b"HTTP/1.1 200 ") {
            return Err(format!("not a 200: {}", String::from_utf8_lossy(&input[..head.min(200)])));
        }
        let length = content_length(&input[..head]).ok_or("a response without content-length")?;
        let whole = head + length;
        Ok(if input.len() < whole { (0, 0) } else { (whole, 1) })
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
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
    response: Vec<u8>,
}

impl Default for Server {
    fn default() -> Self {
        Self { response: response() }
    }
}

impl Session for Server {
    fn receive(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, usize), String> {
        let (mut used, mut served) = (0, 0);
        for end in memmem::find_iter(input, b"\r\n\r\n") {
            used = end + 4;
            served += 1;
            out.extend_from_slice(&self.response);
        }
        Ok((used, served))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_understand_each_other() {
        let (mut request, mut response) = (Vec::new(), Vec::new());
        Client.begin(&mut request);
        assert_eq!(Server::default().receive(&request, &mut response).unwrap(), (request.len(), 1));
        assert_eq!(Client.receive(&response, &mut request).unwrap(), (response.len(), 1));
        assert_eq!(Client.receive(&response[..response.len() - 1], &mut request).unwrap(), (0, 0));
    }

    #[test]
    fn another_status_ends_the_measurement() {
        let text = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
        assert!(Client.receive(text, &mut Vec::new()).unwrap_err().contains("503"));
    }
}
