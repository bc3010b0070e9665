//! The protobuf wire format: records in and out, and a message sorted by field.
//!
//! The checker and the printer read with it, the encoder writes with it. Invariant: reading any bytes ends in records
//! or in `Malformed`, never a panic; nothing is allocated by what a length claims.

use crate::schema::{Field, Kind, Message};

/// The deepest nesting of messages that is followed.
pub const MAX_DEPTH: usize = 100;

/// The most unknown fields that are told apart in one message.
pub const MAX_UNKNOWN: usize = 16;

/// Bytes that are no protobuf message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The value of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
    /// A group, which no field of the schema is: its content was skipped.
    Group,
}

/// The records of a message in order.
pub struct Records<'a>(pub &'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<(u32, Wire<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = self.record();
        if record.is_err() {
            self.0 = &[];
        }
        Some(record)
    }
}

impl<'a> Records<'a> {
    fn record(&mut self) -> Result<(u32, Wire<'a>), Malformed> {
        let (number, kind) = self.tag()?;
        let value = match kind {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                Wire::Bytes(self.bytes(len)?)
            }
            3 => {
                self.skip_group(number)?;
                Wire::Group
            }
            5 => Wire::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(Malformed),
        };
        Ok((number, value))
    }

    fn tag(&mut self) -> Result<(u32, u64), Malformed> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| Malformed)?;
        if number == 0 || number >= 1 << 29 {
            return Err(Malformed);
        }
        Ok((number, tag & 7))
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for (i, byte) in self.0.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                self.0 = &self.0[i + 1..];
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.bytes(N)?.try_into().map_err(|_| Malformed)
    }

    fn skip_group(&mut self, group: u32) -> Result<(), Malformed> {
        let mut open = vec![group];
        while let Some(&innermost) = open.last() {
            if open.len() > MAX_DEPTH {
                return Err(Malformed);
            }
            let (number, kind) = self.tag()?;
            match kind {
                0 => _ = self.varint()?,
                1 => _ = self.bytes(8)?,
                2 => {
                    let len = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                    self.bytes(len)?;
                }
                3 => open.push(number),
                4 if number == innermost => _ = open.pop(),
                5 => _ = self.bytes(4)?,
                _ => return Err(Malformed),
            }
        }
        Ok(())
    }
}

/// The elements of a packed record of `kind`.
pub fn unpack(kind: Kind, bytes: &[u8]) -> impl Iterator<Item = Result<Wire<'_>, Malformed>> {
    let mut rest = Records(bytes);
    std::iter::from_fn(move || {
        if rest.0.is_empty() {
            return None;
        }
        let element = match kind {
            Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => rest.array().map(|b| Wire::Fixed64(u64::from_le_bytes(b))),
            Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => rest.array().map(|b| Wire::Fixed32(u32::from_le_bytes(b))),
            _ => rest.varint().map(Wire::Varint),
        };
        if element.is_err() {
            rest.0 = &[];
        }
        Some(element)
    })
}

/// The number of the wire type that values of `kind` have.
fn wire_type(kind: Kind) -> u32 {
    match kind {
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => 1,
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => 5,
        Kind::String | Kind::Bytes | Kind::Message(_) => 2,
        _ => 0,
    }
}

/// True if a record with this value can be of `field`; otherwise parsers treat it as unknown.
fn fits(field: Field, value: Wire<'_>) -> bool {
    let wanted = wire_type(field.kind());
    match value {
        Wire::Varint(_) => wanted == 0,
        Wire::Fixed64(_) => wanted == 1,
        Wire::Bytes(_) => wanted == 2 || field.is_repeated(),
        Wire::Fixed32(_) => wanted == 5,
        Wire::Group => false,
    }
}

/// A message's records, grouped by field as a protobuf parser would take them.
#[derive(Debug, Default)]
pub struct Parsed<'a> {
    /// By field number; packed records are taken apart; the losers of a oneof are gone.
    values: Vec<(Field, Wire<'a>)>,
    /// The numbers of the records that are no field's, each once; no more than [`MAX_UNKNOWN`].
    pub unknown: Vec<u32>,
}

impl<'a> Parsed<'a> {
    /// Reads `bytes` as a `message`.
    pub fn new(message: Message, bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut parsed = Parsed::default();
        let mut sorted = true;
        for record in Records(bytes) {
            let (number, value) = record?;
            let field = match parsed.values.last() {
                Some((last, _)) if last.number() == number => Some(*last),
                _ => message.field(number),
            };
            match (field, value) {
                (Some(field), value) if fits(field, value) => {
                    sorted &= parsed.values.last().is_none_or(|(last, _)| last.number() <= number);
                    match value {
                        Wire::Bytes(packed) if wire_type(field.kind()) != 2 => {
                            for element in unpack(field.kind(), packed) {
                                parsed.values.push((field, element?));
                            }
                        }
                        value => parsed.values.push((field, value)),
                    }
                }
                _ if parsed.unknown.len() == MAX_UNKNOWN || parsed.unknown.contains(&number) => {}
                _ => parsed.unknown.push(number),
            }
        }
        parsed.settle_oneofs();
        if !sorted {
            parsed.values.sort_by_key(|(field, _)| field.number());
        }
        Ok(parsed)
    }

    /// Of the members of a oneof the last one counts, and of that one only what came after any other.
    fn settle_oneofs(&mut self) {
        let mut settled = Vec::new();
        let mut i = self.values.len();
        while i > 0 {
            i -= 1;
            let (winner, _) = self.values[i];
            let Some(oneof) = winner.oneof().filter(|oneof| !settled.contains(oneof)) else { continue };
            settled.push(oneof);
            let rival = |(field, _): &(Field, Wire<'a>)| field.oneof() == Some(oneof) && *field != winner;
            if let Some(last) = self.values[..i].iter().rposition(rival) {
                let mut at = 0;
                self.values.retain(|(field, _)| {
                    at += 1;
                    at - 1 > last || field.oneof() != Some(oneof)
                });
                i = i.min(self.values.len());
            }
        }
    }

    /// Every field that is there, by number, with its values in order: one or more.
    pub fn fields(&self) -> impl Iterator<Item = (Field, &[(Field, Wire<'a>)])> {
        self.values.chunk_by(|(a, _), (b, _)| a == b).filter_map(|run| Some((run.first()?.0, run)))
    }

    /// The values of one field; empty if it is not there.
    pub fn values(&self, field: Field) -> &[(Field, Wire<'a>)] {
        let start = self.values.partition_point(|(f, _)| f.number() < field.number());
        let rest = &self.values[start..];
        &rest[..rest.partition_point(|(f, _)| f.number() == field.number())]
    }

    /// The last value of field `number`.
    pub fn last(&self, number: u32) -> Option<Wire<'a>> {
        self.values.iter().rev().find(|(f, _)| f.number() == number).map(|(_, value)| *value)
    }
}

/// The bytes of a singular message field: several records are one message in pieces.
pub fn joined<'a>(values: &[(Field, Wire<'a>)]) -> std::borrow::Cow<'a, [u8]> {
    match values {
        [(_, Wire::Bytes(bytes))] => (*bytes).into(),
        pieces => pieces
            .iter()
            .filter_map(|(_, piece)| match piece {
                Wire::Bytes(bytes) => Some(*bytes),
                _ => None,
            })
            .collect::<Vec<_>>()
            .concat()
            .into(),
    }
}

// === writing ===

/// Appends a varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends the tag of `field`, which is not packed.
pub fn put_tag(out: &mut Vec<u8>, field: Field) {
    put_varint(out, u64::from(field.number()) << 3 | u64::from(wire_type(field.kind())));
}

/// Appends a length-delimited record.
pub fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a length-delimited record that `write` fills.
pub fn put_nested<T>(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    put_varint(out, u64::from(number) << 3 | 2);
    let start = out.len();
    out.push(0);
    let result = write(out);
    let len = out.len() - start - 1;
    if len < 0x80 {
        out[start] = len as u8;
    } else {
        let mut prefix = Vec::with_capacity(10);
        put_varint(&mut prefix, len as u64);
        out.splice(start..=start, prefix);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::message;

    #[test]
    fn records_of_any_bytes_end() {
        for seed in 0..2000_u64 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let bytes: Vec<u8> = (0..rng.usize(..64)).map(|_| rng.u8(..)).collect();
            let _ = Parsed::new(message("envoy.config.cluster.v3.Cluster").unwrap(), &bytes);
            assert!(Records(&bytes).count() <= bytes.len());
        }
    }

    #[test]
    fn the_last_member_of_a_oneof_wins() {
        // Address: socket_address = 1, pipe = 2, envoy_internal_address = 3.
        let address = message("envoy.config.core.v3.Address").unwrap();
        let mut bytes = Vec::new();
        for number in [1, 2, 1, 3, 3] {
            put_bytes(&mut bytes, number, b"");
        }
        let parsed = Parsed::new(address, &bytes).unwrap();
        let found: Vec<_> = parsed.fields().map(|(f, values)| (f.number(), values.len())).collect();
        assert_eq!(found, [(3, 2)]);
    }

    #[test]
    fn long_records_get_long_lengths() {
        for len in [0, 1, 127, 128, 20_000] {
            let mut out = Vec::new();
            put_nested(&mut out, 1, |out| out.resize(out.len() + len, 7));
            assert_eq!(Records(&out).next(), Some(Ok((1, Wire::Bytes(&vec![7; len])))));
        }
    }
}
