//! HTTP/2 without TLS from both ends, reduced to what a measurement needs.
//!
//! Heads are sent as real peers do: in full into the HPACK table the first time, as indices afterwards. Nothing is
//! decoded, except that a response's status is looked at. Used by the load generator ([`Client`]) and the backend
//! ([`Server`]).

use crate::{http1::BODY, wire::Session};
use std::collections::VecDeque;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD: usize = 9;
const FIRST_WINDOW: i64 = 65_535;
const BIG_WINDOW: u32 = 1 << 30;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

const SETTING_TABLE_SIZE: u16 = 1;

/// HPACK: `:status: 200` out of the static table.
const STATUS_200: u8 = 0x88;

struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'a [u8],
}

/// The first whole frame of `input` and its size.
fn frame(input: &[u8]) -> Option<(Frame<'_>, usize)> {
    let head: &[u8; FRAME_HEAD] = input.first_chunk()?;
    let size = FRAME_HEAD + u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let payload = input.get(FRAME_HEAD..size)?;
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
    Some((Frame { kind: head[3], flags: head[4], stream, payload }, size))
}

fn put(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

fn number(payload: &[u8]) -> u32 {
    payload.first_chunk().map_or(0, |b| u32::from_be_bytes(*b) & 0x7fff_ffff)
}

/// What both ends do with the connection itself.
#[derive(Default)]
struct Control {
    received: u32,
}

impl Control {
    fn start(out: &mut Vec<u8>) {
        put(out, SETTINGS, 0, 0, &[]);
        put(out, WINDOW_UPDATE, 0, 0, &BIG_WINDOW.to_be_bytes());
    }

    fn take(&mut self, frame: &Frame<'_>, out: &mut Vec<u8>) -> Result<(), String> {
        match frame.kind {
            SETTINGS if frame.flags & ACK == 0 => {
                for setting in frame.payload.chunks_exact(6) {
                    let id = u16::from_be_bytes([setting[0], setting[1]]);
                    if id == SETTING_TABLE_SIZE && number(&setting[2..]) < 1024 {
                        return Err("the peer's HPACK table is too small for our indices".into());
                    }
                }
                put(out, SETTINGS, ACK, 0, &[]);
            }
            PING if frame.flags & ACK == 0 => put(out, PING, ACK, 0, frame.payload),
            DATA => {
                self.received += frame.payload.len() as u32;
                if self.received > BIG_WINDOW / 2 {
                    put(out, WINDOW_UPDATE, 0, 0, &self.received.to_be_bytes());
                    self.received = 0;
                }
            }
            RESET => return Err(format!("stream {} was reset: {}", frame.stream, number(frame.payload))),
            GOAWAY => return Err(format!("the peer said goaway: {}", number(&frame.payload[4..]))),
            _ => {}
        }
        Ok(())
    }
}

/// Adds a header line that goes into the table. `index`: of its name in the static table.
fn literal(block: &mut Vec<u8>, index: u8, value: &[u8]) {
    block.extend_from_slice(&[0x40 | index, value.len() as u8]);
    block.extend_from_slice(value);
}

/// The load generator's side.
pub struct Client {
    control: Control,
    next: u32,
}

impl Client {
    pub fn new(out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(PREFACE);
        Control::start(out);
        Self { control: Control::default(), next: 1 }
    }

    pub fn begin(&mut self, out: &mut Vec<u8>) {
        // GET and http are in the static table.
        let mut block = vec![0x82, 0x86];
        if self.next == 1 {
            literal(&mut block, 4, b"/small");
            literal(&mut block, 1, b"bench.example");
            literal(&mut block, 58, b"weft-benches");
            literal(&mut block, 19, b"*/*");
        } else {
            // The last that was put in is 62.
            block.extend_from_slice(&[0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62]);
        }
        put(out, HEADERS, END_HEADERS | END_STREAM, self.next, &block);
        self.next += 2;
    }
}

impl Session for Client {
    fn receive(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, usize), String> {
        let (mut used, mut ended) = (0, 0);
        while let Some((frame, size)) = frame(&input[used..]) {
            used += size;
            // A table size update may come before the status.
            if frame.kind == HEADERS && !frame.payload.iter().take(4).any(|c| *c == STATUS_200) {
                return Err("not a 200".into());
            }
            if matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0 {
                ended += 1;
            }
            self.control.take(&frame, out)?;
        }
        Ok((used, ended))
    }
}

/// The backend's side.
pub struct Server {
    control: Control,
    started: bool,
    indexed: bool,
    window: i64,
    /// Streams whose response waits for the window.
    waiting: VecDeque<u32>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            control: Control::default(),
            started: false,
            indexed: false,
            window: FIRST_WINDOW,
            waiting: VecDeque::new(),
        }
    }
}

impl Server {
    fn respond(&mut self, stream: u32, out: &mut Vec<u8>) {
        let mut block = vec![STATUS_200];
        if self.indexed {
            block.extend_from_slice(&[0x80 | 64, 0x80 | 63, 0x80 | 62]);
        } else {
            literal(&mut block, 31, b"text/plain");
            literal(&mut block, 54, b"backend");
            literal(&mut block, 28, BODY.len().to_string().as_bytes());
            self.indexed = true;
        }
        put(out, HEADERS, END_HEADERS, stream, &block);
        put(out, DATA, END_STREAM, stream, BODY);
        self.window -= BODY.len() as i64;
    }
}

impl Session for Server {
    fn receive(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, usize), String> {
        let mut used = 0;
        if !self.started {
            if input.len() < PREFACE.len() {
                return Ok((0, 0));
            }
            if !input.starts_with(PREFACE) {
                return Err("not HTTP/2".into());
            }
            used = PREFACE.len();
            self.started = true;
            Control::start(out);
        }
        while let Some((frame, size)) = frame(&input[used..]) {
            used += size;
            match frame.kind {
                // Requests have no body.
                HEADERS => self.waiting.push_back(frame.stream),
                WINDOW_UPDATE if frame.stream == 0 => self.window += i64::from(number(frame.payload)),
                _ => self.control.take(&frame, out)?,
            }
        }
        let mut served = 0;
        while self.window >= BODY.len() as i64
            && let Some(stream) = self.waiting.pop_front()
        {
            self.respond(stream, out);
            served += 1;
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
        let (mut client, mut server) = (Client::new(&mut request), Server::default());
        for _ in 0..3 {
            client.begin(&mut request);
        }
        let (used, served) = server.receive(&request, &mut response).unwrap();
        assert_eq!((used, served), (request.len(), 3));
        let (used, ended) = client.receive(&response, &mut request).unwrap();
        assert_eq!((used, ended), (response.len(), 3));
    }

    #[test]
    fn responses_wait_for_the_window() {
        let (mut request, mut response) = (Vec::new(), Vec::new());
        let (mut client, mut server) = (Client::new(&mut request), Server::default());
        server.window = 0;
        request.truncate(PREFACE.len());
        client.begin(&mut request);
        assert_eq!(server.receive(&request, &mut response).unwrap(), (request.len(), 0));
        let mut update = Vec::new();
        put(&mut update, WINDOW_UPDATE, 0, 0, &1000u32.to_be_bytes());
        assert_eq!(server.receive(&update, &mut response).unwrap(), (update.len(), 1));
    }
}
