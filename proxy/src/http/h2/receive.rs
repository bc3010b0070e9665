//! What comes in on a connection: frames out of bytes, and what each means to the connection and its streams.
//!
//! DATA are handed on as they come, whatever the size of their frame; all other frames are taken whole. Where RFC 9113
//! leaves a choice between the end of a stream and of the connection, it is what nghttp2 does.

use super::{
    core::{Core, Fatal},
    error,
    frame::{Code, FrameHead, HEAD, MAX_FRAME, MAX_WINDOW, PREFACE, flag, kind, number, put_ping, setting},
    head::Incoming,
    streams::Over,
};
use crate::{base::ResetReason, http::kept};
use bytes::{Buf, Bytes, BytesMut};
use http::StatusCode;
use std::time::Instant;

/// CONTINUATION frames that a head may take, whatever its limit.
const CONTINUATIONS: usize = 8;
/// Informational heads that may wait to be taken.
const INFORMATIONAL: usize = 16;
/// Pieces below this size are copied out of the buffer that they came in, which each would hold on to.
const SMALL: usize = 512;
/// Entries that a SETTINGS frame may have (nghttp2's limit).
const MOST_SETTINGS: usize = 32;

/// Where in the stream of bytes the connection is.
pub(super) struct Input {
    /// Bytes of the preface still to come.
    preface: usize,
    got_settings: bool,
    data: Option<Data>,
    block: Option<Block>,
}

/// A DATA frame under way.
#[derive(Clone, Copy)]
struct Data {
    stream: u32,
    /// `None`: nobody wants it.
    key: Option<u32>,
    left: usize,
    padding: usize,
    end: bool,
}

/// A head that goes on in CONTINUATION frames.
struct Block {
    head: FrameHead,
    fragment: BytesMut,
    frames: usize,
}

/// What the owner of a connection has to see to.
#[expect(clippy::large_enum_variant, reason = "taken apart where it is returned")]
pub(super) enum Step {
    /// More bytes are needed.
    More,
    /// A request began: its stream and head. A server's only.
    Request(u32, Incoming, bool),
    /// A stream that is one too many was begun.
    TooMany(u32),
    /// The upstream's head broke HTTP's rules. A client's only.
    Malformed,
}

impl Input {
    pub fn new(client: bool) -> Self {
        Self { preface: if client { 0 } else { PREFACE.len() }, got_settings: false, data: None, block: None }
    }
}

type Received = Result<Option<Step>, Fatal>;

const fn fatal<T>(code: Code) -> Result<T, Fatal> {
    Err(Fatal::Error(code))
}

impl Core {
    /// Takes frames out of `input` until there is something to see to, or no more.
    pub fn receive(&mut self, input: &mut BytesMut) -> Result<Step, Fatal> {
        if self.input.preface > 0 {
            let expected = &PREFACE[PREFACE.len() - self.input.preface..];
            let n = expected.len().min(input.len());
            if input[..n] != expected[..n] {
                return fatal(Code::PROTOCOL_ERROR);
            }
            input.advance(n);
            self.input.preface -= n;
        }
        loop {
            if let Some(data) = self.input.data {
                if input.is_empty() && data.left + data.padding > 0 {
                    return Ok(Step::More);
                }
                self.data_piece(data, input)?;
                continue;
            }
            let Some(head) = input.first_chunk() else { return Ok(Step::More) };
            let head = FrameHead::parse(head);
            self.check(head)?;
            if head.kind == kind::DATA {
                // The length of the padding comes with the head.
                let padded = head.has(flag::PADDED) && head.length > 0;
                if input.len() < HEAD + usize::from(padded) {
                    return Ok(Step::More);
                }
                let padding = if padded { Some(input[HEAD]) } else { None };
                self.count(head, head.length <= padding.map_or(0, |padding| 1 + usize::from(padding)))?;
                self.begin_data(head, padding)?;
                input.advance(HEAD + usize::from(padded));
                continue;
            }
            if input.len() < HEAD + head.length {
                return Ok(Step::More);
            }
            self.count(head, head.length == 0)?;
            let step = self.frame(head, &input[HEAD..HEAD + head.length]);
            input.advance(HEAD + head.length);
            if let Some(step) = step? {
                return Ok(step);
            }
        }
    }

    /// What can be said of a frame by its head.
    fn check(&self, head: FrameHead) -> Result<(), Fatal> {
        if head.length > MAX_FRAME || !head.length_fits() {
            return fatal(Code::FRAME_SIZE_ERROR);
        }
        if !self.input.got_settings && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            return fatal(Code::PROTOCOL_ERROR);
        }
        match &self.input.block {
            Some(block) if head.kind != kind::CONTINUATION || head.stream != block.head.stream => {
                fatal(Code::PROTOCOL_ERROR)
            }
            _ => Ok(()),
        }
    }

    /// Counts a frame; `empty`: it carries nothing.
    fn count(&mut self, head: FrameHead, empty: bool) -> Result<(), Fatal> {
        self.frames += 1;
        if !self.budget.received(head, empty, &self.stats) {
            return Err(self.kill(ResetReason::ConnectionTermination, error::INBOUND_FLOOD));
        }
        Ok(())
    }

    fn frame(&mut self, head: FrameHead, payload: &[u8]) -> Received {
        match head.kind {
            kind::HEADERS => return self.headers(head, payload),
            kind::CONTINUATION => return self.continuation(head, payload),
            kind::PRIORITY => {
                if head.stream == 0 {
                    return fatal(Code::PROTOCOL_ERROR);
                }
                if number(payload) & 0x7fff_ffff == head.stream {
                    self.stream_error(head.stream, Code::PROTOCOL_ERROR);
                }
            }
            kind::RST_STREAM => self.reset_received(head.stream, Code(number(payload)))?,
            kind::SETTINGS => self.settings(head, payload)?,
            kind::PUSH_PROMISE => return fatal(Code::PROTOCOL_ERROR),
            kind::PING => {
                if head.stream != 0 {
                    return fatal(Code::PROTOCOL_ERROR);
                }
                if head.has(flag::ACK) {
                    self.pong = payload.first_chunk().copied();
                } else {
                    put_ping(self.out.buf(), flag::ACK, payload);
                    self.out.frame(true);
                    self.check_waiting()?;
                }
            }
            kind::GOAWAY => self.goaway_received(head, number(payload) & 0x7fff_ffff)?,
            kind::WINDOW_UPDATE => self.window_update(head.stream, number(payload) & 0x7fff_ffff)?,
            _ => {}
        }
        Ok(None)
    }

    /// True if this stream was never begun.
    fn is_idle(&self, id: u32) -> bool {
        if self.client { id.is_multiple_of(2) || id >= self.last } else { id.is_multiple_of(2) || id > self.last }
    }

    /// True while a head has begun, and not ended.
    pub fn is_in_head(&self) -> bool {
        self.input.block.is_some()
    }

    /// Counts a reset that the client sent or brought about: both begin work and throw it away.
    fn count_reset(&mut self) {
        if !self.client && !self.budget.reset(Instant::now()) {
            self.too_many_resets = true;
        }
    }

    /// Resets a stream that need not be known, because of what the peer did.
    fn stream_error(&mut self, id: u32, code: Code) {
        self.count_reset();
        match self.streams.find(id) {
            Some(key) => self.reset(key, code, Over::Messaging),
            None => self.put_reset(id, code),
        }
    }

    // DATA

    fn begin_data(&mut self, head: FrameHead, padding: Option<u8>) -> Result<(), Fatal> {
        let id = head.stream;
        if id == 0 || self.is_idle(id) {
            return fatal(Code::PROTOCOL_ERROR);
        }
        let before = usize::from(padding.is_some());
        let padding = padding.map_or(0, usize::from);
        let Some(left) = head.length.checked_sub(before + padding) else { return fatal(Code::PROTOCOL_ERROR) };
        if !self.receive_window.received(head.length) {
            return fatal(Code::FLOW_CONTROL_ERROR);
        }
        let (mut key, closed) = (self.streams.find(id), self.is_closed());
        if let Some(known) = key {
            let stream = &mut self.streams[known];
            if matches!(stream.over, Some(Over::Remote(_))) {
                return fatal(Code::STREAM_CLOSED);
            } else if stream.over.is_some() || closed {
                key = None;
            } else if stream.got_end || !stream.got_head {
                return fatal(if stream.got_end { Code::STREAM_CLOSED } else { Code::PROTOCOL_ERROR });
            } else if !stream.receive.received(head.length) {
                self.count_reset();
                self.reset(known, Code::FLOW_CONTROL_ERROR, Over::Local);
                key = None;
            } else if stream.promised.is_some_and(|promised| {
                let n = left as u64;
                n > promised || (head.has(flag::END_STREAM) && n < promised)
            }) {
                self.count_reset();
                self.reset(known, Code::PROTOCOL_ERROR, Over::Messaging);
                key = None;
            } else if let Some(promised) = &mut stream.promised {
                *promised -= left as u64;
            }
        } else if self.remembers(id) {
            return fatal(Code::STREAM_CLOSED);
        }
        self.release_window(key, before);
        self.input.data = Some(Data { stream: id, key, left, padding, end: head.has(flag::END_STREAM) });
        Ok(())
    }

    /// Takes what is there of a DATA frame.
    fn data_piece(&mut self, mut data: Data, input: &mut BytesMut) -> Result<(), Fatal> {
        let n = data.left.min(input.len());
        // It may have been reset or given up since its beginning.
        let key = data.key.filter(|key| self.streams[*key].id == data.stream && self.streams[*key].over.is_none());
        match key {
            Some(key) if n > 0 && !self.streams[key].unwanted => {
                let stream = &mut self.streams[key];
                stream.unread += n;
                let piece = if n < SMALL { Bytes::copy_from_slice(&input[..n]) } else { input.split_to(n).freeze() };
                input.advance(if n < SMALL { n } else { 0 });
                keep(&mut stream.received, piece);
                stream.receiver.wake();
            }
            _ => {
                input.advance(n);
                self.release_window(key, n);
            }
        }
        data.left -= n;
        let n = data.padding.min(input.len());
        input.advance(n);
        self.release_window(key, n);
        data.padding -= n;
        self.input.data = Some(data).filter(|data| data.left + data.padding > 0);
        if let (None, Some(key), true) = (&self.input.data, key, data.end) {
            self.got_end(key);
        }
        Ok(())
    }

    fn got_end(&mut self, key: u32) {
        let stream = &mut self.streams[key];
        stream.got_end = true;
        stream.receiver.wake();
        self.tidy(key);
    }

    /// Bytes of a stream were handed on, or are not worth it.
    pub fn release_window(&mut self, key: Option<u32>, n: usize) {
        if n == 0 {
            return;
        }
        if let Some(key) = key {
            let stream = &mut self.streams[key];
            if !stream.got_end
                && stream.over.is_none()
                && let Some(more) = stream.receive.release(n)
            {
                let id = stream.id;
                self.put_window_update(id, more);
            }
        }
        self.release_connection(n);
    }

    /// The same for the connection's window alone.
    pub fn release_connection(&mut self, n: usize) {
        if let Some(more) = self.receive_window.release(n) {
            self.put_window_update(0, more);
        }
    }

    fn put_window_update(&mut self, id: u32, more: u32) {
        if !self.is_closed() {
            super::frame::put_number(self.out.buf(), kind::WINDOW_UPDATE, id, more);
            self.out.frame(false);
        }
    }

    // HEADERS

    fn headers(&mut self, head: FrameHead, mut payload: &[u8]) -> Received {
        if head.stream == 0 {
            return fatal(Code::PROTOCOL_ERROR);
        }
        if head.has(flag::PADDED) {
            let Some((padding, rest)) = payload.split_first() else { return fatal(Code::FRAME_SIZE_ERROR) };
            let Some(length) = rest.len().checked_sub(usize::from(*padding)) else {
                return fatal(Code::PROTOCOL_ERROR);
            };
            payload = &rest[..length];
        }
        let mut itself = false;
        if head.has(flag::PRIORITY) {
            let Some((priority, rest)) = payload.split_at_checked(5) else { return fatal(Code::FRAME_SIZE_ERROR) };
            itself = number(priority) & 0x7fff_ffff == head.stream;
            payload = rest;
        }
        if itself {
            return fatal(Code::PROTOCOL_ERROR);
        }
        if head.has(flag::END_HEADERS) {
            return self.block(head, payload);
        }
        self.input.block = Some(Block { head, fragment: BytesMut::from(payload), frames: 0 });
        Ok(None)
    }

    fn continuation(&mut self, head: FrameHead, payload: &[u8]) -> Received {
        let most = CONTINUATIONS + (self.head_limits.0 as usize * 1024).div_ceil(MAX_FRAME);
        let Some(block) = &mut self.input.block else { return fatal(Code::PROTOCOL_ERROR) };
        block.frames += 1;
        if block.frames > most {
            return fatal(Code::ENHANCE_YOUR_CALM);
        }
        block.fragment.extend_from_slice(payload);
        if !head.has(flag::END_HEADERS) {
            return Ok(None);
        }
        match self.input.block.take() {
            Some(block) => self.block(block.head, &block.fragment),
            None => Ok(None),
        }
    }

    /// A whole head. It is decoded whoever it is for: the table needs it.
    fn block(&mut self, head: FrameHead, block: &[u8]) -> Received {
        let mut incoming = Incoming::new(self.head_limits.0, self.head_limits.1);
        if self.decoder.decode(block, |field| incoming.take(field)).is_err() {
            return fatal(Code::COMPRESSION_ERROR);
        }
        let (id, end) = (head.stream, head.has(flag::END_STREAM));
        if self.is_idle(id) {
            if self.client || id.is_multiple_of(2) {
                return fatal(Code::PROTOCOL_ERROR);
            }
            return Ok(self.begin(id, incoming, end));
        }
        let Some(key) = self.streams.find(id) else {
            if self.remembers(id) {
                return fatal(Code::STREAM_CLOSED);
            }
            // It was reset by us, or never was: left out by a peer that went on to a higher one.
            return if self.skipped || id < self.first { fatal(Code::PROTOCOL_ERROR) } else { Ok(None) };
        };
        let stream = &self.streams[key];
        if matches!(stream.over, Some(Over::Remote(_))) {
            return fatal(Code::STREAM_CLOSED);
        }
        if stream.over.is_some() || self.is_closed() {
            return Ok(None);
        }
        if stream.got_end {
            return fatal(Code::STREAM_CLOSED);
        }
        if self.client && !stream.got_head {
            return Ok(self.response(key, incoming, end));
        }
        self.trailers(key, incoming, end);
        Ok(None)
    }

    /// A new stream of the client's.
    fn begin(&mut self, id: u32, incoming: Incoming, end: bool) -> Option<Step> {
        match self.last {
            0 => self.first = id,
            last => self.skipped |= id > last + 2,
        }
        if self.is_closed() || self.goaway_sent.is_some_and(|last| id > last) {
            self.last = id;
            return None;
        }
        self.last = id;
        self.budget.opened += 1;
        if self.open >= self.max_streams {
            return Some(Step::TooMany(id));
        }
        Some(Step::Request(id, incoming, end))
    }

    /// Makes the stream of a request that is to be served; `refs` will be held on its key.
    pub fn accept(&mut self, id: u32, end: bool, length: Option<u64>, refs: u8) -> u32 {
        let key = self.reserve(refs);
        self.opened(key, id);
        let stream = &mut self.streams[key];
        stream.got_head = true;
        stream.got_end = end;
        stream.promised = length;
        key
    }

    fn response(&mut self, key: u32, incoming: Incoming, end: bool) -> Option<Step> {
        let too_large = incoming.is_too_large();
        let Some((head, length)) = incoming.response().filter(|(head, _)| {
            // RFC 9113 section 8.6: there is no 101 in HTTP/2.
            !(end && head.status.is_informational()) && head.status != StatusCode::SWITCHING_PROTOCOLS
        }) else {
            self.reset(key, Code::PROTOCOL_ERROR, Over::Messaging);
            return Some(Step::Malformed);
        };
        if too_large || !self.response_fits(&head.headers) {
            if too_large {
                self.stats.header_list_size_too_large.inc();
            }
            self.reset(key, Code::INTERNAL_ERROR, Over::TooLarge);
            return None;
        }
        let stream = &mut self.streams[key];
        if head.status.is_informational() {
            if stream.informational.len() < INFORMATIONAL {
                stream.informational.push_back(head);
            }
        } else {
            let bodiless = stream.is_head_request || matches!(head.status.as_u16(), 204 | 304);
            stream.promised = length.filter(|_| !bodiless);
            stream.got_head = true;
            if end && stream.promised.is_some_and(|length| length > 0) {
                self.reset(key, Code::PROTOCOL_ERROR, Over::Messaging);
                return None;
            }
            stream.response = Some(head);
        }
        stream.receiver.wake();
        if end {
            self.got_end(key);
        }
        None
    }

    fn response_fits(&self, headers: &http::HeaderMap) -> bool {
        // `:status` counts too.
        if headers.len() + 1 > self.head_limits.1 as usize {
            self.stats.header_overflow.inc();
        } else if super::head::size(headers) + 10 > self.head_limits.0 as usize * 1024 {
            self.stats.header_list_size_too_large.inc();
        } else {
            return true;
        }
        false
    }

    fn trailers(&mut self, key: u32, incoming: Incoming, end: bool) {
        let too_large = incoming.is_too_large();
        let missing = self.streams[key].promised.is_some_and(|promised| promised > 0);
        let trailers = incoming.trailers().filter(|_| end && !missing);
        match trailers {
            None => self.reset(key, Code::PROTOCOL_ERROR, Over::Messaging),
            Some(_) if too_large => self.reset(key, Code::INTERNAL_ERROR, Over::TooLarge),
            Some(trailers) => {
                if !trailers.is_empty() {
                    self.streams[key].got_trailers = Some(Box::new(trailers));
                }
                self.got_end(key);
            }
        }
    }

    // The rest

    fn reset_received(&mut self, id: u32, code: Code) -> Result<(), Fatal> {
        if id == 0 || self.is_idle(id) {
            return fatal(Code::PROTOCOL_ERROR);
        }
        self.stats.rx_reset.inc();
        self.count_reset();
        if let Some(key) = self.streams.find(id) {
            self.ended(key, Over::Remote(code));
        }
        Ok(())
    }

    fn settings(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream != 0 {
            return fatal(Code::PROTOCOL_ERROR);
        }
        if head.has(flag::ACK) {
            self.settings_acked = true;
            self.decoder.set_limit(self.hpack_table_size);
            return Ok(());
        }
        if self.client && !self.input.got_settings {
            // What the server does not limit has no limit.
            self.peer_streams = usize::MAX;
        }
        self.input.got_settings = true;
        if payload.len() > MOST_SETTINGS * 6 {
            return fatal(Code::ENHANCE_YOUR_CALM);
        }
        let mut window = None;
        for entry in payload.chunks_exact(6) {
            let (id, value) = (u16::from_be_bytes([entry[0], entry[1]]), number(&entry[2..]));
            match id {
                setting::HEADER_TABLE_SIZE => self.set_encoder_limit(value),
                setting::ENABLE_PUSH if value > u32::from(!self.client) => return fatal(Code::PROTOCOL_ERROR),
                setting::MAX_CONCURRENT_STREAMS => self.peer_streams = value as usize,
                setting::INITIAL_WINDOW_SIZE if i64::from(value) > MAX_WINDOW => {
                    return fatal(Code::FLOW_CONTROL_ERROR);
                }
                // It concerns all streams: once a frame is enough.
                setting::INITIAL_WINDOW_SIZE => window = Some(value),
                // Larger frames than all peers take would only make other streams wait: the value is not used.
                setting::MAX_FRAME_SIZE if !(MAX_FRAME..1 << 24).contains(&(value as usize)) => {
                    return fatal(Code::PROTOCOL_ERROR);
                }
                setting::ENABLE_CONNECT_PROTOCOL if value > 1 => return fatal(Code::PROTOCOL_ERROR),
                _ => {}
            }
        }
        window.map_or(Ok(()), |size| self.set_peer_window(size))?;
        super::frame::put_head(self.out.buf(), 0, kind::SETTINGS, flag::ACK, 0);
        self.out.frame(true);
        self.check_waiting()?;
        Ok(())
    }

    /// The windows of all streams change with the first size of theirs.
    fn set_peer_window(&mut self, size: u32) -> Result<(), Fatal> {
        let change = i64::from(size) - self.peer_window;
        if change == 0 {
            return Ok(());
        }
        self.peer_window = size.into();
        for key in self.streams.keys() {
            let stream = &mut self.streams[key];
            stream.window += change;
            if stream.window > MAX_WINDOW {
                return fatal(Code::FLOW_CONTROL_ERROR);
            }
            if change > 0 {
                self.line_up(key);
            }
        }
        Ok(())
    }

    fn window_update(&mut self, id: u32, more: u32) -> Result<(), Fatal> {
        if id == 0 {
            if more == 0 {
                return fatal(Code::PROTOCOL_ERROR);
            }
            self.window += i64::from(more);
            return if self.window > MAX_WINDOW { fatal(Code::FLOW_CONTROL_ERROR) } else { Ok(()) };
        }
        if self.is_idle(id) {
            return fatal(Code::PROTOCOL_ERROR);
        }
        let Some(key) = self.streams.find(id) else { return Ok(()) };
        let stream = &mut self.streams[key];
        if stream.over.is_some() {
            return Ok(());
        }
        stream.window += i64::from(more);
        if more == 0 || stream.window > MAX_WINDOW {
            if more == 0 {
                // Of the connection, as in Envoy: else a client could have its requests reset by us, at no cost to itself.
                return fatal(Code::PROTOCOL_ERROR);
            }
            self.count_reset();
            self.reset(key, Code::FLOW_CONTROL_ERROR, Over::Local);
            return Ok(());
        }
        self.line_up(key);
        Ok(())
    }

    fn goaway_received(&mut self, head: FrameHead, last: u32) -> Result<(), Fatal> {
        if head.stream != 0 {
            return fatal(Code::PROTOCOL_ERROR);
        }
        self.goaway = Some(self.goaway.map_or(last, |before| before.min(last)));
        if self.client {
            for key in self.streams.keys() {
                let stream = &self.streams[key];
                if stream.id > last || (stream.id == 0 && stream.waits.is_some()) {
                    self.ended(key, Over::Refused);
                }
            }
        }
        Ok(())
    }
}

/// Adds a piece to those that wait.
fn keep(received: &mut std::collections::VecDeque<Bytes>, piece: Bytes) {
    if received.is_empty() {
        // It is about to be taken.
        return received.push_back(piece);
    }
    let (before, last) = kept::join(received.pop_back(), piece);
    received.extend(before.into_iter().chain([last]));
}
