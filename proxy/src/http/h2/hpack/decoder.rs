//! From a block to its fields. The table holds fields ready for use, so that an index costs two reference counts.

use super::{Broken, DEFAULT_TABLE_SIZE, Field, OVERHEAD, Pseudo, STATIC, huffman, integer, static_table::FIELDS};
use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue};
use std::collections::VecDeque;

/// Values that only one message holds are cut out of pieces of this size.
const PIECE: usize = 2048;

/// The table of one direction.
pub(in crate::http::h2) struct Decoder {
    /// The newest first.
    entries: VecDeque<Entry>,
    size: usize,
    /// What the encoder said it uses.
    max: usize,
    /// What we allow.
    limit: usize,
    piece: BytesMut,
    name: Vec<u8>,
    value: Vec<u8>,
}

struct Entry {
    field: Field,
    size: usize,
}

/// The name of a literal.
enum Name {
    Pseudo(Pseudo),
    Header(HeaderName),
    Malformed,
}

impl Decoder {
    /// `limit`: the table size that our SETTINGS name.
    pub fn new(limit: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            size: 0,
            max: DEFAULT_TABLE_SIZE,
            // Until the peer has read our SETTINGS, the default holds.
            limit: limit.max(DEFAULT_TABLE_SIZE),
            piece: BytesMut::new(),
            name: Vec::new(),
            value: Vec::new(),
        }
    }

    /// The peer has read our SETTINGS.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Gives back what is kept for speed alone.
    pub fn rest(&mut self) {
        self.piece = BytesMut::new();
        self.name = Vec::new();
        self.value = Vec::new();
    }

    /// Decodes a whole block and gives each field to `take`.
    pub fn decode(&mut self, mut block: &[u8], mut take: impl FnMut(Field)) -> Result<(), Broken> {
        while let Some(0x20..=0x3f) = block.first() {
            let (max, rest) = integer(block, 5)?;
            if max > self.limit {
                return Err(Broken);
            }
            self.max = max;
            self.evict(0);
            block = rest;
        }
        while let Some(first) = block.first() {
            if first & 0x80 != 0 {
                let (index, rest) = integer(block, 7)?;
                block = rest;
                take(self.field(index)?.clone());
            } else if first & 0x40 != 0 {
                let (name, size, rest) = self.literal_name(block, 6)?;
                let (field, value, rest) = self.literal(name, rest, true)?;
                block = rest;
                self.insert(field.clone(), size + value + OVERHEAD);
                take(field);
            } else if first & 0x20 != 0 {
                // A size update belongs at the beginning.
                return Err(Broken);
            } else {
                let (name, _, rest) = self.literal_name(block, 4)?;
                let (field, _, rest) = self.literal(name, rest, false)?;
                block = rest;
                take(field);
            }
        }
        Ok(())
    }

    fn field(&self, index: usize) -> Result<&Field, Broken> {
        let index = index.checked_sub(1).ok_or(Broken)?;
        match index.checked_sub(STATIC) {
            None => FIELDS.get(index).ok_or(Broken),
            Some(index) => self.entries.get(index).map(|entry| &entry.field).ok_or(Broken),
        }
    }

    /// The name of the literal at the beginning of `block`, how long it is, and what comes after it.
    fn literal_name<'b>(&mut self, block: &'b [u8], prefix: u32) -> Result<(Name, usize, &'b [u8]), Broken> {
        let (index, rest) = integer(block, prefix)?;
        if index > 0 {
            let (name, size) = match self.field(index)? {
                Field::Pseudo(pseudo, _) => (Name::Pseudo(*pseudo), pseudo.as_str().len()),
                Field::Header(name, _) => (Name::Header(name.clone()), name.as_str().len()),
                // Of such a name no length is known any more. Its message was malformed, and so is this one.
                Field::Malformed => (Name::Malformed, 0),
            };
            return Ok((name, size, rest));
        }
        let (name, rest) = string(rest, &mut self.name)?;
        let known = match name.first() {
            None => Name::Malformed,
            Some(b':') => Pseudo::from_name(name).map_or(Name::Malformed, Name::Pseudo),
            Some(_) => HeaderName::from_lowercase(name).map_or(Name::Malformed, Name::Header),
        };
        Ok((known, name.len(), rest))
    }

    /// The field, the length of its value, and what comes after it.
    fn literal<'b>(&mut self, name: Name, block: &'b [u8], stays: bool) -> Result<(Field, usize, &'b [u8]), Broken> {
        let (value, rest) = string(block, &mut self.value)?;
        let length = value.len();
        let value = match (length, stays) {
            (0, _) => Bytes::new(),
            (_, true) => Bytes::copy_from_slice(value),
            (_, false) => cut(&mut self.piece, value),
        };
        let field = match name {
            Name::Pseudo(pseudo) => Field::Pseudo(pseudo, value),
            Name::Header(name) => {
                HeaderValue::from_maybe_shared(value).map_or(Field::Malformed, |value| Field::Header(name, value))
            }
            Name::Malformed => Field::Malformed,
        };
        Ok((field, length, rest))
    }

    fn insert(&mut self, field: Field, size: usize) {
        self.evict(size);
        if size <= self.max {
            self.size += size;
            self.entries.push_front(Entry { field, size });
        }
    }

    /// Makes room for `size` bytes, as far as that is possible.
    fn evict(&mut self, size: usize) {
        while self.size + size > self.max {
            let Some(entry) = self.entries.pop_back() else { return };
            self.size -= entry.size;
        }
    }

    #[cfg(test)]
    pub(super) fn table(&self) -> (usize, usize) {
        (self.entries.len(), self.size)
    }
}

/// A string, taken from `block` or decoded into `scratch`, and what comes after it.
fn string<'s, 'b: 's>(block: &'b [u8], scratch: &'s mut Vec<u8>) -> Result<(&'s [u8], &'b [u8]), Broken> {
    let huffman = block.first().is_some_and(|first| first & 0x80 != 0);
    let (length, rest) = integer(block, 7)?;
    let (string, rest) = rest.split_at_checked(length).ok_or(Broken)?;
    if !huffman {
        return Ok((string, rest));
    }
    scratch.clear();
    huffman::decode(string, scratch)?;
    Ok((scratch, rest))
}

/// A copy of `value` that shares its allocation with its neighbours.
fn cut(piece: &mut BytesMut, value: &[u8]) -> Bytes {
    if value.len() > PIECE / 4 {
        return Bytes::copy_from_slice(value);
    }
    if piece.capacity() < value.len() {
        // Takes the old piece again if nobody holds a part of it any more.
        piece.reserve(PIECE);
    }
    piece.extend_from_slice(value);
    piece.split().freeze()
}
