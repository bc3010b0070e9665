//! HTTP/2 and gRPC from both ends, reduced to what a measurement needs.
//!
//! Heads are sent as real peers do: in full into the HPACK table the first time, as indices afterwards. Nothing is
//! decoded, except that a response's status is looked at. Used by the load generator ([`Client`]) and the backend
//! ([`Server`]).

use super::{http1::BODY, wire::Session};
use std::collections::VecDeque;

/// What is exchanged on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A request without a body, a response of 128 bytes.
    Plain,
    /// gRPC: a message each way, and trailers.
    Unary,
    /// gRPC: a message up, [`MESSAGES`] down, and trailers.
    Streaming,
}

/// Of a server that streams.
pub const MESSAGES: usize = 100;

impl Shape {
    fn is_grpc(self) -> bool {
        self != Self::Plain
    }

    fn messages(self) -> usize {
        if self == Self::Streaming { MESSAGES } else { 1 }
    }
}

/// What goes before a message of gRPC: that it is not compressed, and its length.
const PREFIX: [u8; 5] = [0, 0, 0, 0, BODY.len() as u8];

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
    /// The peer's HPACK table has no room for our indices.
    has_no_table: bool,
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
                    if id == SETTING_TABLE_SIZE {
                        self.has_no_table = number(&setting[2..]) < 1024;
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

/// Adds the same that does not go into the table.
fn literal_aside(block: &mut Vec<u8>, index: u8, value: &[u8]) {
    const MOST: u8 = 15;
    if index < MOST {
        block.push(index);
    } else {
        block.extend_from_slice(&[MOST, index - MOST]);
    }
    block.push(value.len() as u8);
    block.extend_from_slice(value);
}

/// Appends a message of gRPC in a frame of its own.
fn message(out: &mut Vec<u8>, flags: u8, stream: u32) {
    let mut payload = [0; PREFIX.len() + BODY.len()];
    payload[..PREFIX.len()].copy_from_slice(&PREFIX);
    payload[PREFIX.len()..].copy_from_slice(BODY);
    put(out, DATA, flags, stream, &payload);
}

/// HPACK: a literal that goes into the table, name and all.
fn named(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    block.extend_from_slice(&[0x40, name.len() as u8]);
    block.extend_from_slice(name);
    block.push(value.len() as u8);
    block.extend_from_slice(value);
}

/// HPACK: `count` entries of the table, the oldest first, when those were the last that went in.
fn indices(block: &mut Vec<u8>, count: u8) {
    block.extend((0..count).rev().map(|i| 0x80 | (62 + i)));
}

/// The load generator's side.
pub struct Client {
    control: Control,
    shape: Shape,
    next: u32,
    received: usize,
    ended: usize,
}

impl Client {
    pub fn new(shape: Shape, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(PREFACE);
        Control::start(out);
        Self { control: Control::default(), shape, next: 1, received: 0, ended: 0 }
    }
}

impl super::Client for Client {
    fn begin(&mut self, out: &mut Vec<u8>) {
        // The method and http are in the static table.
        let is_grpc = self.shape.is_grpc();
        let mut block = vec![if is_grpc { 0x83 } else { 0x82 }, 0x86];
        if self.next > 1 {
            indices(&mut block, if is_grpc { 5 } else { 4 });
        } else {
            literal(&mut block, 4, if is_grpc { b"/bench.Echo/Call" } else { b"/small" });
            literal(&mut block, 1, b"bench.example");
            literal(&mut block, 58, b"weft-benches");
            if is_grpc {
                literal(&mut block, 31, b"application/grpc");
                named(&mut block, b"te", b"trailers");
            } else {
                literal(&mut block, 19, b"*/*");
            }
        }
        put(out, HEADERS, if is_grpc { END_HEADERS } else { END_HEADERS | END_STREAM }, self.next, &block);
        if is_grpc {
            message(out, END_STREAM, self.next);
        }
        self.next += 2;
    }
}

impl Session for Client {
    fn receive(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, usize), String> {
        let (mut used, mut ended) = (0, 0);
        while let Some((frame, size)) = frame(&input[used..]) {
            used += size;
            let is_end = frame.flags & END_STREAM != 0;
            let is_trailers = self.shape.is_grpc() && is_end;
            // A table size update may come before the status.
            if frame.kind == HEADERS && !is_trailers && !frame.payload.iter().take(4).any(|c| *c == STATUS_200) {
                return Err("not a 200".into());
            }
            if frame.kind == DATA {
                self.received += frame.payload.len();
            }
            if matches!(frame.kind, HEADERS | DATA) && is_end {
                ended += 1;
            }
            self.control.take(&frame, out)?;
        }
        self.ended += ended;
        // An error of gRPC has no messages.
        if self.received < self.ended * self.shape.messages() * BODY.len() {
            return Err("streams ended without their bodies".into());
        }
        Ok((used, ended))
    }
}

/// The backend's side.
pub struct Server {
    control: Control,
    shape: Shape,
    started: bool,
    indexed: bool,
    window: i64,
    /// Streams whose response waits for the window.
    waiting: VecDeque<u32>,
}

impl Server {
    pub fn new(shape: Shape) -> Self {
        Self {
            control: Control::default(),
            shape,
            started: false,
            indexed: false,
            window: FIRST_WINDOW,
            waiting: VecDeque::new(),
        }
    }

    /// Bytes of a response that count against the window.
    fn size(&self) -> i64 {
        let prefix = if self.shape.is_grpc() { PREFIX.len() } else { 0 };
        ((prefix + BODY.len()) * self.shape.messages()) as i64
    }

    fn respond(&mut self, stream: u32, out: &mut Vec<u8>) {
        let mut block = vec![STATUS_200];
        if self.shape.is_grpc() {
            // The trailer went in after the two of the head.
            if self.control.has_no_table {
                literal_aside(&mut block, 31, b"application/grpc");
                literal_aside(&mut block, 54, b"backend");
            } else if self.indexed {
                block.extend_from_slice(&[0x80 | 64, 0x80 | 63]);
            } else {
                literal(&mut block, 31, b"application/grpc");
                literal(&mut block, 54, b"backend");
            }
            put(out, HEADERS, END_HEADERS, stream, &block);
            for _ in 0..self.shape.messages() {
                message(out, 0, stream);
            }
            let mut trailers = Vec::new();
            if self.control.has_no_table {
                trailers.extend_from_slice(b"\x00\x0bgrpc-status\x010");
            } else if self.indexed {
                indices(&mut trailers, 1);
            } else {
                named(&mut trailers, b"grpc-status", b"0");
            }
            put(out, HEADERS, END_HEADERS | END_STREAM, stream, &trailers);
        } else {
            if self.control.has_no_table {
                literal_aside(&mut block, 31, b"text/plain");
                literal_aside(&mut block, 54, b"backend");
            } else if self.indexed {
                indices(&mut block, 3);
            } else {
                literal(&mut block, 31, b"text/plain");
                literal(&mut block, 54, b"backend");
                literal(&mut block, 28, BODY.len().to_string().as_bytes());
            }
            put(out, HEADERS, END_HEADERS, stream, &block);
            put(out, DATA, END_STREAM, stream, BODY);
        }
        self.indexed = true;
        self.window -= self.size();
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
                WINDOW_UPDATE if frame.stream == 0 => self.window += i64::from(number(frame.payload)),
                // A client that gave up does not end the measurement; it sees that itself.
                RESET => self.waiting.retain(|stream| *stream != frame.stream),
                _ => self.control.take(&frame, out)?,
            }
            if matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0 {
                self.waiting.push_back(frame.stream);
            }
        }
        let mut served = 0;
        while self.window >= self.size()
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
    use super::{super::Client as _, *};

    #[test]
    fn both_ends_understand_each_other() {
        for shape in [Shape::Plain, Shape::Unary, Shape::Streaming] {
            let (mut request, mut response) = (Vec::new(), Vec::new());
            let (mut client, mut server) = (Client::new(shape, &mut request), Server::new(shape));
            for _ in 0..3 {
                client.begin(&mut request);
            }
            let (used, served) = server.receive(&request, &mut response).unwrap();
            assert_eq!((used, served), (request.len(), 3));
            let (used, ended) = client.receive(&response, &mut request).unwrap();
            assert_eq!((used, ended), (response.len(), 3));
        }
    }

    #[test]
    fn responses_wait_for_the_window() {
        let (mut request, mut response) = (Vec::new(), Vec::new());
        let (mut client, mut server) = (Client::new(Shape::Plain, &mut request), Server::new(Shape::Plain));
        server.window = 0;
        request.truncate(PREFACE.len());
        client.begin(&mut request);
        assert_eq!(server.receive(&request, &mut response).unwrap(), (request.len(), 0));
        let mut update = Vec::new();
        put(&mut update, WINDOW_UPDATE, 0, 0, &1000u32.to_be_bytes());
        assert_eq!(server.receive(&update, &mut response).unwrap(), (update.len(), 1));
    }
}
