//! WebSocket from both ends: the upgrade, then small messages that come back as they are.
//!
//! Used by the load generator ([`Client`]) and the backend ([`Server`]). The accept key is computed by neither: no proxy looks at it.

use super::wire::Session;
use memchr::memmem;

const UPGRADE: &[u8] = b"GET /chat HTTP/1.1\r\nhost: bench.example\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
      sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCHING: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
      sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A text message's payload.
const MESSAGE: [u8; 32] = [b'w'; 32];
const TEXT: u8 = 0x81;
const MASKED: u8 = 0x80;
/// A mask of zeroes leaves the payload as it is.
const MASK: [u8; 4] = [0; 4];
const HEAD: usize = 2;

/// The load generator's side: the first exchange is the upgrade, each after that a message.
#[derive(Default)]
pub struct Client {
    asked: bool,
    is_open: bool,
}

impl super::Client for Client {
    fn begin(&mut self, out: &mut Vec<u8>) {
        if self.asked {
            out.extend_from_slice(&[TEXT, MASKED | MESSAGE.len() as u8]);
            out.extend_from_slice(&MASK);
            out.extend_from_slice(&MESSAGE);
        } else {
            out.extend_from_slice(UPGRADE);
            self.asked = true;
        }
    }
}

impl Session for Client {
    fn receive(&mut self, input: &[u8], _: &mut Vec<u8>) -> Result<(usize, usize), String> {
        if !self.is_open {
            let Some(head) = memmem::find(input, b"\r\n\r\n").map(|at| at + 4) else { return Ok((0, 0)) };
            if !input.starts_with(b"HTTP/1.1 101 ") {
                return Err(format!("not a 101: {}", String::from_utf8_lossy(&input[..head.min(200)])));
            }
            self.is_open = true;
            return Ok((head, 1));
        }
        const WHOLE: usize = HEAD + MESSAGE.len();
        let ended = input.len() / WHOLE;
        Ok((ended * WHOLE, ended))
    }
}

/// The backend's side.
#[derive(Default)]
pub struct Server {
    is_open: bool,
}

impl Session for Server {
    fn receive(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, usize), String> {
        if !self.is_open {
            let Some(head) = memmem::find(input, b"\r\n\r\n").map(|at| at + 4) else { return Ok((0, 0)) };
            out.extend_from_slice(SWITCHING);
            self.is_open = true;
            return Ok((head, 1));
        }
        const WHOLE: usize = HEAD + MASK.len() + MESSAGE.len();
        let served = input.len() / WHOLE;
        for message in input.chunks_exact(WHOLE) {
            out.extend_from_slice(&[TEXT, MESSAGE.len() as u8]);
            out.extend_from_slice(&message[HEAD + MASK.len()..]);
        }
        Ok((served * WHOLE, served))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Client as _, *};

    #[test]
    fn both_ends_understand_each_other() {
        let (mut client, mut server) = (Client::default(), Server::default());
        for _ in 0..3 {
            let (mut up, mut down) = (Vec::new(), Vec::new());
            client.begin(&mut up);
            assert_eq!(server.receive(&up, &mut down).unwrap(), (up.len(), 1));
            assert_eq!(client.receive(&down[..down.len() - 1], &mut up).unwrap(), (0, 0));
            assert_eq!(client.receive(&down, &mut up).unwrap(), (down.len(), 1));
        }
    }
}
