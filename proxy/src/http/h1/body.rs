//! The body of a message as it comes off the wire: by length, in chunks, until the connection closes, or raw.
//!
//! Sans-I/O: [`BodyDecoder::decode`] takes from the front of the read buffer, without copying.
//! A chunk-size line must end in CRLF; a chunk's data may be followed by any CRs before its LF,
//! as Envoy allows.

use super::{
    details::{BadMessage, CODEC_ERROR, HEADERS_TOO_LARGE},
    fields,
    outbox::COPY_BELOW,
};
use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

/// The longest chunk-size line with its extensions.
const MAX_CHUNK_LINE: usize = 60 * 1024;
/// The longest trailer section, and the most fields in it.
const MAX_TRAILERS: usize = 60 * 1024;
const MAX_TRAILER_FIELDS: usize = 100;

/// A piece of a decoded body.
#[derive(Debug, PartialEq)]
pub(super) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

/// Where in a body the connection is.
#[derive(Debug)]
pub(super) struct BodyDecoder {
    state: State,
    keep_trailers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Done,
    Length(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    /// Ends with the connection; `true` if that is how the message says it ends.
    Open(bool),
}

impl BodyDecoder {
    fn new(state: State) -> Self {
        Self { state, keep_trailers: false }
    }

    pub fn none() -> Self {
        Self::new(State::Done)
    }

    pub fn length(length: u64) -> Self {
        Self::new(if length == 0 { State::Done } else { State::Length(length) })
    }

    /// `keep_trailers`: they are given on; else they are checked and dropped.
    pub fn chunked(keep_trailers: bool) -> Self {
        Self { state: State::ChunkSize, keep_trailers }
    }

    pub fn until_close() -> Self {
        Self::new(State::Open(true))
    }

    /// After an upgrade, or within a CONNECT tunnel.
    pub fn raw() -> Self {
        Self::new(State::Open(false))
    }

    pub fn is_end(&self) -> bool {
        self.state == State::Done
    }

    pub fn is_until_close(&self) -> bool {
        self.state == State::Open(true)
    }

    /// True for the bytes of a tunnel.
    pub fn is_raw(&self) -> bool {
        self.state == State::Open(false)
    }

    /// What is still to come, if it was declared.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Done => Some(0),
            State::Length(n) => Some(n),
            _ => None,
        }
    }

    /// How many of the bytes that come next are the body's and nothing else; `None`: whatever comes. 0 where that is not known.
    pub fn plain(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::Open(_) => None,
            _ => Some(0),
        }
    }

    /// `n` bytes of the [`BodyDecoder::plain`] ones were read by other means.
    pub fn skip(&mut self, n: u64) {
        if let State::Length(left) = self.state {
            let left = left.saturating_sub(n);
            self.state = if left == 0 { State::Done } else { State::Length(left) };
        }
    }

    /// The next piece in `buf`, or `None` if more must be read first.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Piece>, BadMessage> {
        loop {
            match self.state {
                State::Done => return Ok(Some(Piece::End)),
                _ if buf.is_empty() => return Ok(None),
                State::Length(left) => {
                    let (data, left) = take(buf, left);
                    self.state = if left == 0 { State::Done } else { State::Length(left) };
                    return Ok(Some(Piece::Data(data)));
                }
                State::ChunkData(left) => {
                    let (data, left) = take(buf, left);
                    self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData(left) };
                    return Ok(Some(Piece::Data(data)));
                }
                State::Open(_) => return Ok(Some(Piece::Data(buf.split().freeze()))),
                State::ChunkSize => {
                    let Some(end) = memchr::memchr(b'\n', buf) else {
                        chunk_size(buf)?;
                        return if buf.len() > MAX_CHUNK_LINE { Err(CODEC_ERROR) } else { Ok(None) };
                    };
                    if end > MAX_CHUNK_LINE || buf[..end].last() != Some(&b'\r') {
                        return Err(CODEC_ERROR);
                    }
                    let line = &buf[..end - 1];
                    if memchr::memchr(b'\r', line).is_some() {
                        return Err(CODEC_ERROR);
                    }
                    let size = chunk_size(line)?.ok_or(CODEC_ERROR)?;
                    buf.advance(end + 1);
                    self.state = if size == 0 { State::Trailers } else { State::ChunkData(size) };
                }
                State::ChunkEnd => {
                    let crs = buf.iter().take_while(|c| **c == b'\r').count();
                    match buf.get(crs) {
                        Some(b'\n') => buf.advance(crs + 1),
                        None if crs < MAX_CHUNK_LINE => return Ok(None),
                        _ => return Err(CODEC_ERROR),
                    }
                    self.state = State::ChunkSize;
                }
                State::Trailers => return self.trailers(buf),
            }
        }
    }

    fn trailers(&mut self, buf: &mut BytesMut) -> Result<Option<Piece>, BadMessage> {
        let mut at = 0;
        loop {
            let Some(n) = memchr::memchr(b'\n', &buf[at..]) else {
                return if buf.len() >= MAX_TRAILERS { Err(HEADERS_TOO_LARGE) } else { Ok(None) };
            };
            let line = &buf[at..at + n];
            at += n + 1;
            if line.is_empty() || line == b"\r" {
                break;
            }
        }
        if at > MAX_TRAILERS {
            return Err(HEADERS_TOO_LARGE);
        }
        if at <= 2 {
            buf.advance(at);
            self.state = State::Done;
            return Ok(Some(Piece::End));
        }
        let block = buf.split_to(at).freeze();
        let mut trailers = HeaderMap::new();
        fields::parse(&block, 0, MAX_TRAILER_FIELDS, None, |name, value, _| {
            trailers.try_append(name, value).map(|_| ()).map_err(|_| HEADERS_TOO_LARGE)
        })?;
        self.state = State::Done;
        Ok(Some(if self.keep_trailers { Piece::Trailers(trailers) } else { Piece::End }))
    }
}

/// A piece below [`COPY_BELOW`] is copied: a part of the read buffer in it would keep all of that from being used again.
fn take(buf: &mut BytesMut, left: u64) -> (Bytes, u64) {
    let n = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
    let data = if n < COPY_BELOW {
        let data = Bytes::copy_from_slice(&buf[..n]);
        buf.advance(n);
        data
    } else {
        buf.split_to(n).freeze()
    };
    (data, left - n as u64)
}

/// The number at the front of a chunk-size line; `None` if the line is empty so far.
fn chunk_size(line: &[u8]) -> Result<Option<u64>, BadMessage> {
    let mut size: Option<u64> = None;
    for c in line {
        let digit = match c {
            b'0'..=b'9' => c - b'0',
            b'a'..=b'f' => c - b'a' + 10,
            b'A'..=b'F' => c - b'A' + 10,
            b' ' | b'\t' | b';' | b'\r' if size.is_some() => break,
            _ => return Err(CODEC_ERROR),
        };
        let so_far = size.unwrap_or(0);
        if so_far > u64::MAX >> 4 {
            return Err(CODEC_ERROR);
        }
        size = Some(so_far << 4 | u64::from(digit));
    }
    Ok(size)
}
