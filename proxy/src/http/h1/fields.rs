//! Header and trailer lines: from bytes to names and values.
//!
//! Used by the head parser and the chunked body. What is accepted is what Envoy's Balsa parser accepts: folded
//! lines, bare LF, and lone CRs (which are dropped); a line without a colon, white space before it, or a control
//! character anywhere is an error.

use super::details::{BadMessage, CODEC_ERROR, INVALID_CHARACTERS, TOO_MANY_HEADERS};
use bytes::Bytes;
use http::{
    HeaderName, HeaderValue,
    header::{CONTENT_LENGTH, TRANSFER_ENCODING},
};
use std::ops::Range;

/// Walks the lines of `block` from `start` to the empty line, calling `visit` with each and where its value stands; returns how many bytes of
/// names and values there were as Envoy counts them (three more a line).
///
/// `names`, if given, takes the names as they are spelled.
pub(super) fn parse(
    block: &Bytes,
    start: usize,
    max: usize,
    mut names: Option<&mut Vec<Bytes>>,
    mut visit: impl FnMut(HeaderName, HeaderValue, Range<usize>) -> Result<(), BadMessage>,
) -> Result<u64, BadMessage> {
    let mut size = 0;
    let mut count = 0;
    let mut at = start;
    while let Some((line, next)) = logical_line(block, at) {
        if line == at {
            break;
        }
        let (name, value, spelled, at_value) = field(block, at, line).ok_or_else(|| whose(&block[start..]))?;
        count += 1;
        if count > max {
            return Err(TOO_MANY_HEADERS);
        }
        size += (name.as_str().len() + value.len() + 3) as u64;
        if let Some(names) = names.as_deref_mut() {
            names.push(block.slice(spelled));
        }
        visit(name, value, at_value)?;
        at = next;
    }
    Ok(size.max(3))
}

/// The end of the line at `at` without its terminator, with continuation lines, and where the next one begins.
fn logical_line(block: &[u8], at: usize) -> Option<(usize, usize)> {
    let mut next = at + memchr::memchr(b'\n', block.get(at..)?)? + 1;
    let empty = next - at == 1 || (next - at == 2 && block[at] == b'\r');
    if empty {
        return Some((at, next));
    }
    while matches!(block.get(next), Some(b' ' | b'\t')) {
        next += memchr::memchr(b'\n', &block[next..])? + 1;
    }
    Some((next - 1, next))
}

type Field = (HeaderName, HeaderValue, Range<usize>, Range<usize>);

fn field(block: &Bytes, start: usize, end: usize) -> Option<Field> {
    let colon = start + memchr::memchr(b':', &block[start..end])?;
    let name = HeaderName::from_bytes(&block[start..colon]).ok()?;
    let (mut from, mut to) = (colon + 1, end);
    while from < to && is_space(block[from]) {
        from += 1;
    }
    while from < to && is_space(block[to - 1]) {
        to -= 1;
    }
    let value = match HeaderValue::from_maybe_shared(block.slice(from..to)) {
        Ok(value) => value,
        // A folded value or a lone CR: the line breaks go, the white space stays.
        Err(_) => {
            // Who else reads a framing header may read it up to there, or past it.
            if matches!(name, CONTENT_LENGTH | TRANSFER_ENCODING) && has_lone_cr(&block[from..to]) {
                return None;
            }
            let joined: Vec<u8> = block[from..to].iter().copied().filter(|c| !matches!(c, b'\r' | b'\n')).collect();
            HeaderValue::from_maybe_shared(Bytes::from(joined)).ok()?
        }
    };
    Some((name, value, start..colon, from..to))
}

fn has_lone_cr(value: &[u8]) -> bool {
    memchr::memchr_iter(b'\r', value).any(|at| value.get(at + 1) != Some(&b'\n'))
}

fn is_space(c: u8) -> bool {
    matches!(c, b' ' | b'\t' | b'\r' | b'\n')
}

/// Characters that are nowhere allowed in a head.
pub(super) fn is_forbidden(c: u8) -> bool {
    (c < b' ' && !matches!(c, b'\t' | b'\r' | b'\n')) || c == 0x7f
}

/// Which error an unacceptable block is.
fn whose(block: &[u8]) -> BadMessage {
    if block.iter().any(|c| is_forbidden(*c)) { INVALID_CHARACTERS } else { CODEC_ERROR }
}

/// True if `list` (values of a comma-separated header) has `token`, in any case.
pub(super) fn has_token(list: &[u8], token: &str) -> bool {
    tokens(list).any(|t| t.eq_ignore_ascii_case(token.as_bytes()))
}

/// The trimmed, non-empty elements of a comma-separated list.
pub(super) fn tokens(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|c| *c == b',').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty())
}

/// Appends `value` to a list as Envoy joins repeated headers. `raw` gives the same bytes without copying, unless they
/// had to be mended.
pub(super) fn join(list: &mut Option<Bytes>, value: &HeaderValue, raw: impl FnOnce() -> Bytes) {
    let value = value.as_bytes();
    *list = Some(match list.take() {
        None => Some(raw()).filter(|raw| raw.len() == value.len()).unwrap_or_else(|| Bytes::copy_from_slice(value)),
        Some(first) => [&first[..], b",", value].concat().into(),
    });
}
