//! From fields to a block. What is the same from message to message goes into the table and is an index from then on.
//!
//! The table's text lies in one buffer. A field is looked for at one place, which a hash of its two ends and lengths
//! names: a field that is not found there is sent as a literal, so a collision costs bytes and never a search.

use super::{DEFAULT_TABLE_SIZE, OVERHEAD, STATIC, huffman, put_integer, static_table};
use std::collections::VecDeque;

/// Places to look for fields, for names.
const PLACES: usize = 128;
/// Strings that are sent once are not worth being encoded below this length.
const HUFFMAN_FROM: usize = 64;

/// The table of one direction.
pub(in crate::http::h2) struct Encoder {
    /// The oldest first.
    entries: VecDeque<Entry>,
    /// The text of all entries, name before value.
    text: Vec<u8>,
    /// How much text was dropped from the beginning of `text` so far.
    dropped: u64,
    size: usize,
    max: usize,
    /// The smallest size, and the last, since the peer was told one.
    resized: Option<(usize, usize)>,
    /// Entries that were ever made; the last one's number.
    made: u32,
    fields: Option<Box<[u32; PLACES]>>,
    names: Option<Box<[u32; PLACES]>>,
}

struct Entry {
    at: u64,
    name: u32,
    value: u32,
}

impl Default for Encoder {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            text: Vec::new(),
            dropped: 0,
            size: 0,
            max: DEFAULT_TABLE_SIZE,
            resized: None,
            made: 0,
            fields: None,
            names: None,
        }
    }
}

/// What becomes of a field that is in no table.
#[derive(Clone, Copy, PartialEq)]
enum Keep {
    /// It goes into the table.
    Yes,
    /// It differs from message to message.
    No,
    /// No one on the way may put it into a table either.
    Never,
}

impl Encoder {
    /// The table size that the peer allows.
    pub fn set_limit(&mut self, limit: usize) {
        let max = limit.min(DEFAULT_TABLE_SIZE);
        if max == self.max && self.resized.is_none() {
            return;
        }
        let least = self.resized.map_or(max, |(least, _)| least.min(max));
        self.resized = Some((least, max));
        self.max = max;
        self.evict(0);
    }

    /// Begins a block.
    pub fn begin(&mut self, out: &mut Vec<u8>) {
        let Some((least, last)) = self.resized.take() else { return };
        if least < last {
            put_integer(out, 0x20, 5, least);
        }
        put_integer(out, 0x20, 5, last);
    }

    pub fn status(&mut self, out: &mut Vec<u8>, status: &str) {
        let index = match status {
            "200" => 8,
            "204" => 9,
            "206" => 10,
            "304" => 11,
            "400" => 12,
            "404" => 13,
            "500" => 14,
            _ => return self.put(out, b":status", status.as_bytes(), Keep::Yes, Some(8)),
        };
        out.push(0x80 | index);
    }

    pub fn method(&mut self, out: &mut Vec<u8>, method: &str) {
        match method {
            "GET" => out.push(0x82),
            "POST" => out.push(0x83),
            _ => self.put(out, b":method", method.as_bytes(), Keep::Yes, Some(2)),
        }
    }

    pub fn scheme(&mut self, out: &mut Vec<u8>, scheme: &[u8]) {
        match scheme {
            b"http" => out.push(0x86),
            b"https" => out.push(0x87),
            _ => self.put(out, b":scheme", scheme, Keep::Yes, Some(6)),
        }
    }

    pub fn path(&mut self, out: &mut Vec<u8>, path: &[u8]) {
        match path {
            b"/" => out.push(0x84),
            _ => self.put(out, b":path", path, Keep::No, Some(4)),
        }
    }

    pub fn authority(&mut self, out: &mut Vec<u8>, authority: &[u8]) {
        self.put(out, b":authority", authority, Keep::Yes, Some(1));
    }

    pub fn protocol(&mut self, out: &mut Vec<u8>, protocol: &[u8]) {
        self.put(out, b":protocol", protocol, Keep::Yes, None);
    }

    /// A header line.
    pub fn header(&mut self, out: &mut Vec<u8>, name: &http::HeaderName, value: &http::HeaderValue) {
        let keep = if value.is_sensitive() { Keep::Never } else { Keep::Yes };
        self.put(out, name.as_str().as_bytes(), value.as_bytes(), keep, None);
    }

    fn put(&mut self, out: &mut Vec<u8>, name: &[u8], value: &[u8], keep: Keep, known: Option<u8>) {
        let place = place(name, value);
        if let Some(number) = self.fields.as_ref().map(|fields| fields[place])
            && let Some((index, its_name, its_value)) = self.entry(number)
            && its_name == name
            && its_value == value
            && keep != Keep::Never
        {
            return put_integer(out, 0x80, 7, index);
        }
        let name_place = self::place(name, b"");
        let in_table = self.names.as_ref().map(|names| names[name_place]).and_then(|number| {
            self.entry(number).filter(|(_, its_name, _)| *its_name == name).map(|(index, _, _)| index)
        });
        let keep = match keep {
            Keep::Yes if known.is_none() => worth(name, value, in_table.is_some()),
            keep => keep,
        };
        let size = name.len() + value.len() + OVERHEAD;
        let keep = if keep == Keep::Yes && size > self.max / 4 * 3 { Keep::No } else { keep };
        let index = known.map(usize::from).or(in_table).or_else(|| {
            let name = std::str::from_utf8(name).ok()?;
            static_table::index_of(name).map(usize::from)
        });
        let (first, prefix) = match keep {
            Keep::Yes => (0x40, 6),
            Keep::No => (0, 4),
            Keep::Never => (0x10, 4),
        };
        put_integer(out, first, prefix, index.unwrap_or(0));
        if index.is_none() {
            string(out, name, true);
        }
        string(out, value, keep == Keep::Yes);
        if keep == Keep::Yes {
            self.insert(name, value, size);
            let number = self.made;
            self.fields.get_or_insert_with(|| Box::new([0; PLACES]))[place] = number;
            self.names.get_or_insert_with(|| Box::new([0; PLACES]))[name_place] = number;
        }
    }

    /// Index, name and value of the entry with this number, if it is still there.
    fn entry(&self, number: u32) -> Option<(usize, &[u8], &[u8])> {
        let age = self.made.wrapping_sub(number) as usize;
        let entry = self.entries.get(self.entries.len().checked_sub(age + 1)?)?;
        let at = (entry.at - self.dropped) as usize;
        let (name, value) =
            self.text[at..at + entry.name as usize + entry.value as usize].split_at(entry.name as usize);
        Some((STATIC + 1 + age, name, value))
    }

    fn insert(&mut self, name: &[u8], value: &[u8], size: usize) {
        self.evict(size);
        let at = self.dropped + self.text.len() as u64;
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(value);
        self.size += size;
        self.made = self.made.wrapping_add(1);
        self.entries.push_back(Entry { at, name: name.len() as u32, value: value.len() as u32 });
    }

    fn evict(&mut self, size: usize) {
        while self.size + size > self.max {
            let Some(entry) = self.entries.pop_front() else { break };
            self.size -= entry.name as usize + entry.value as usize + OVERHEAD;
        }
        let first = self.entries.front().map_or(self.dropped + self.text.len() as u64, |entry| entry.at);
        let unused = (first - self.dropped) as usize;
        if unused > DEFAULT_TABLE_SIZE {
            self.text.drain(..unused);
            self.dropped = first;
        }
    }
}

fn string(out: &mut Vec<u8>, string: &[u8], stays: bool) {
    if stays || string.len() >= HUFFMAN_FROM {
        let length = huffman::encoded_len(string);
        if length < string.len() {
            put_integer(out, 0x80, 7, length);
            return huffman::encode(string, out);
        }
    }
    put_integer(out, 0, 7, string.len());
    out.extend_from_slice(string);
}

/// Whether a header line is likely to come again as it is. `known`: its name is in the table.
fn worth(name: &[u8], value: &[u8], known: bool) -> Keep {
    match name {
        b"authorization" | b"proxy-authorization" => Keep::Never,
        b"cookie" if value.len() < 20 => Keep::Never,
        b"age" | b"content-length" | b"etag" | b"if-modified-since" | b"if-none-match" | b"last-modified"
        | b"location" | b"set-cookie" => Keep::No,
        // For its name alone.
        b"x-request-id" | b"traceparent" | b"x-forwarded-for" if known => Keep::No,
        _ => Keep::Yes,
    }
}

/// Where to look for a field: both ends and the lengths of its strings tell most apart.
fn place(name: &[u8], value: &[u8]) -> usize {
    let mixed = ends(name).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ ends(value);
    (mixed.wrapping_mul(0xd6e8_feb8_6659_fd93) >> (64 - PLACES.ilog2())) as usize
}

fn ends(b: &[u8]) -> u64 {
    let length = (b.len() as u64) << 56;
    if let (Some(first), Some(last)) = (b.first_chunk::<8>(), b.last_chunk::<8>()) {
        return u64::from_le_bytes(*first).rotate_left(7) ^ u64::from_le_bytes(*last).wrapping_mul(3) ^ length;
    }
    if let (Some(first), Some(last)) = (b.first_chunk::<4>(), b.last_chunk::<4>()) {
        return (u64::from(u32::from_le_bytes(*first)) << 24 | u64::from(u32::from_le_bytes(*last))) ^ length;
    }
    b.iter().fold(length, |all, byte| all.rotate_left(8) ^ u64::from(*byte))
}
