//! HPACK (RFC 7541): heads as they are on the wire.
//!
//! [`Decoder`] gives fields as they are used (`HeaderName`, `HeaderValue`), names that are known without a copy; [`Encoder`]
//! writes into the connection's output. Both keep a table that the other side keeps too, so a block is either worked
//! through to its end or the connection is over. Invariant: neither table ever exceeds what was agreed upon.

mod decoder;
mod encoder;
mod huffman;
mod static_table;

#[cfg(test)]
mod tests;

pub(super) use decoder::Decoder;
pub(super) use encoder::Encoder;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

/// The size of both tables before anything is agreed upon, and the most that the encoder uses.
pub(super) const DEFAULT_TABLE_SIZE: usize = 4096;
/// What an entry of a table costs beside its name and value.
const OVERHEAD: usize = 32;
/// Entries of the static table; dynamic ones come after it.
const STATIC: usize = 61;

/// A field of a decoded block.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Field {
    Pseudo(Pseudo, Bytes),
    Header(HeaderName, HeaderValue),
    /// No name or value of HTTP. The message is malformed; the connection lives.
    Malformed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pseudo {
    Method,
    Scheme,
    Authority,
    Path,
    Protocol,
    Status,
}

/// The block is not HPACK: the tables are no longer the same on both sides.
#[derive(Debug, PartialEq)]
pub(super) struct Broken;

impl Pseudo {
    fn from_name(name: &[u8]) -> Option<Self> {
        Some(match name {
            b":method" => Self::Method,
            b":scheme" => Self::Scheme,
            b":authority" => Self::Authority,
            b":path" => Self::Path,
            b":protocol" => Self::Protocol,
            b":status" => Self::Status,
            _ => return None,
        })
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Method => ":method",
            Self::Scheme => ":scheme",
            Self::Authority => ":authority",
            Self::Path => ":path",
            Self::Protocol => ":protocol",
            Self::Status => ":status",
        }
    }
}

/// An integer whose first byte has `prefix` (below eight) bits for it (RFC 7541 section 5.1), and the rest of `input`.
fn integer(input: &[u8], prefix: u32) -> Result<(usize, &[u8]), Broken> {
    let mask = (1_u8 << prefix) - 1;
    let (first, mut rest) = input.split_first().ok_or(Broken)?;
    let mut value = usize::from(first & mask);
    if value < usize::from(mask) {
        return Ok((value, rest));
    }
    for shift in [0, 7, 14, 21] {
        let (byte, after) = rest.split_first().ok_or(Broken)?;
        rest = after;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok((value, rest));
        }
    }
    Err(Broken)
}

/// Writes `value` behind the bits of `first`.
fn put_integer(out: &mut Vec<u8>, first: u8, prefix: u32, value: usize) {
    let mask = (1_usize << prefix) - 1;
    if value < mask {
        out.push(first | value as u8);
        return;
    }
    out.push(first | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}
