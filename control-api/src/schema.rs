//! The schema: every message, field, enum and constraint of Envoy 1.40's API, read in place from one blob.
//!
//! The encoder, the checker and the printer walk it. Opening it costs nothing: the blob is part of the binary, needs
//! no relocation, and its pages come in when they are touched. Invariant: the blob is written by our own build script
//! from the checked-in schema, so indices inside it are trusted; names and numbers from outside are looked up.

use std::cmp::Ordering;
use weft_types::{TABLES as BLOB, layout::*};

/// A message type.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Message(u16);

/// A field of a message.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Field(u32);

/// A oneof of a message; a proto3 `optional` is none.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Oneof(u32);

/// An enum type.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Enum(u16);

/// A value of an enum.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct EnumValue(u32);

/// The type of a field's value, or of one element if the field is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Double,
    Float,
    Int64,
    Uint64,
    Int32,
    Fixed64,
    Fixed32,
    Bool,
    String,
    Message(Message),
    Bytes,
    Uint32,
    Enum(Enum),
    Sfixed32,
    Sfixed64,
    Sint32,
    Sint64,
}

/// The messages whose text form is not that of a plain message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum WellKnown {
    Any,
    Struct,
    Value,
    ListValue,
    Duration,
    Timestamp,
    FieldMask,
    /// `BoolValue` to `BytesValue`: one field, number 1.
    Wrapper,
}

/// The message with this full name: `envoy.config.cluster.v3.Cluster`.
pub fn message(full_name: &str) -> Option<Message> {
    search(word(4 * MESSAGE_COUNT) as usize, |i| text(word(record(MESSAGES, MESSAGE, i))).cmp(full_name))
        .map(|i| Message(i as u16))
}

/// The message that a type URL names: what follows its last slash.
pub fn message_of_url(type_url: &str) -> Option<Message> {
    message(type_url.rsplit_once('/')?.1)
}

/// The enum with this full name.
pub fn enumeration(full_name: &str) -> Option<Enum> {
    search(word(4 * ENUM_COUNT) as usize, |i| text(word(record(ENUMS, ENUM, i))).cmp(full_name)).map(|i| Enum(i as u16))
}

/// Every message, by full name.
pub fn messages() -> impl Iterator<Item = Message> {
    (0..word(4 * MESSAGE_COUNT)).map(|i| Message(i as u16))
}

// === impl Message ===

impl Message {
    fn at(self) -> usize {
        record(MESSAGES, MESSAGE, usize::from(self.0))
    }

    /// `envoy.config.cluster.v3.Cluster`.
    pub fn full_name(self) -> &'static str {
        text(word(self.at()))
    }

    /// Its fields by number.
    pub fn fields(self) -> impl ExactSizeIterator<Item = Field> {
        let start = word(self.at() + 4);
        (start..start + u32::from(half(self.at() + 14))).map(Field)
    }

    /// The field with this number.
    pub fn field(self, number: u32) -> Option<Field> {
        let start = word(self.at() + 4);
        search(usize::from(half(self.at() + 14)), |i| Field(start + i as u32).number().cmp(&number))
            .map(|i| Field(start + i as u32))
    }

    /// The field with this original name or JSON name.
    pub fn field_by_name(self, name: &str) -> Option<Field> {
        let (fields, names) = (word(self.at() + 4), word(self.at() + 8));
        let named = |i: usize| {
            let place = half(record(NAMES, NAME, names as usize + i));
            (Field(fields + u32::from(place / 2)), place % 2 == 1)
        };
        search(usize::from(half(self.at() + 16)), |i| {
            let (field, json) = named(i);
            if json { field.json_name() } else { field.name() }.cmp(name)
        })
        .map(|i| named(i).0)
    }

    /// Its oneofs.
    pub fn oneofs(self) -> impl ExactSizeIterator<Item = Oneof> {
        let start = u32::from(half(self.at() + 12));
        (start..start + u32::from(half(self.at() + 18))).map(Oneof)
    }

    /// True for the entry type of a map field: key is field 1, value field 2.
    pub fn is_map_entry(self) -> bool {
        half(self.at() + 20) & MAP_ENTRY != 0
    }

    /// True if its constraints do not count.
    pub fn is_unvalidated(self) -> bool {
        half(self.at() + 20) & UNVALIDATED != 0
    }

    /// True if it is deprecated.
    pub fn is_deprecated(self) -> bool {
        half(self.at() + 20) & DEPRECATED != 0
    }

    /// True if it, or its file, is marked as work in progress.
    pub fn is_work_in_progress(self) -> bool {
        half(self.at() + 20) & WORK_IN_PROGRESS != 0
    }

    /// Which of the messages with a text form of their own it is.
    pub fn well_known(self) -> Option<WellKnown> {
        Some(match half(self.at() + 22) {
            0 => return None,
            1 => WellKnown::Any,
            2 => WellKnown::Struct,
            3 => WellKnown::Value,
            4 => WellKnown::ListValue,
            5 => WellKnown::Duration,
            6 => WellKnown::Timestamp,
            7 => WellKnown::FieldMask,
            _ => WellKnown::Wrapper,
        })
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.full_name())
    }
}

// === impl Field ===

impl Field {
    fn at(self) -> usize {
        record(FIELDS, FIELD, self.0 as usize)
    }

    /// The original name: `stat_prefix`.
    pub fn name(self) -> &'static str {
        text(word(self.at()))
    }

    /// The JSON name: `statPrefix`.
    pub fn json_name(self) -> &'static str {
        text(word(self.at() + 4))
    }

    /// The field number.
    pub fn number(self) -> u32 {
        word(self.at() + 8)
    }

    /// Its `validate.rules`, an encoded `validate.FieldRules`; empty if there are none.
    pub fn rules(self) -> &'static [u8] {
        bytes(word(self.at() + 12))
    }

    /// The type of its value or elements; a map's is its entry message.
    pub fn kind(self) -> Kind {
        let type_id = half(self.at() + 16);
        match half(self.at() + 22) {
            1 => Kind::Double,
            2 => Kind::Float,
            3 => Kind::Int64,
            4 => Kind::Uint64,
            5 => Kind::Int32,
            6 => Kind::Fixed64,
            7 => Kind::Fixed32,
            8 => Kind::Bool,
            9 => Kind::String,
            12 => Kind::Bytes,
            13 => Kind::Uint32,
            14 => Kind::Enum(Enum(type_id)),
            15 => Kind::Sfixed32,
            16 => Kind::Sfixed64,
            17 => Kind::Sint32,
            18 => Kind::Sint64,
            _ => Kind::Message(Message(type_id)),
        }
    }

    /// The oneof it is a member of, by its place in [`Message::oneofs`].
    pub fn oneof(self) -> Option<usize> {
        Some(half(self.at() + 18)).filter(|i| *i != NONE).map(usize::from)
    }

    fn flag(self, flag: u16) -> bool {
        half(self.at() + 20) & flag != 0
    }

    /// True for repeated fields, maps among them.
    pub fn is_repeated(self) -> bool {
        self.flag(REPEATED)
    }

    /// True for maps.
    pub fn is_map(self) -> bool {
        self.flag(MAP)
    }

    /// True if its elements go into one length-delimited record.
    pub fn is_packed(self) -> bool {
        self.flag(PACKED)
    }

    /// True if being set to its default differs from being unset: messages, members of a oneof, `optional`.
    pub fn has_presence(self) -> bool {
        self.flag(PRESENCE)
    }

    /// True if it is deprecated.
    pub fn is_deprecated(self) -> bool {
        self.flag(DEPRECATED)
    }

    /// True if it must not be shown (`udpa.annotations.sensitive`).
    pub fn is_sensitive(self) -> bool {
        self.flag(SENSITIVE)
    }

    /// True if it is deprecated for so long that Envoy refuses it unless told otherwise.
    pub fn is_disallowed(self) -> bool {
        self.flag(DISALLOWED)
    }

    /// True if it is marked as work in progress.
    pub fn is_work_in_progress(self) -> bool {
        self.flag(WORK_IN_PROGRESS)
    }
}

impl std::fmt::Debug for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

// === impl Oneof ===

impl Oneof {
    /// Its name: `cluster_discovery_type`.
    pub fn name(self) -> &'static str {
        text(word(record(ONEOFS, ONEOF, self.0 as usize)))
    }

    /// True if one of its members must be set.
    pub fn is_required(self) -> bool {
        half(record(ONEOFS, ONEOF, self.0 as usize) + 4) & REQUIRED != 0
    }
}

// === impl Enum ===

impl Enum {
    fn at(self) -> usize {
        record(ENUMS, ENUM, usize::from(self.0))
    }

    /// Its full name.
    pub fn full_name(self) -> &'static str {
        text(word(self.at()))
    }

    /// Its values by number; names for the same number stand in the schema's order.
    pub fn values(self) -> impl ExactSizeIterator<Item = EnumValue> {
        let start = word(self.at() + 4);
        (start..start + u32::from(half(self.at() + 8))).map(EnumValue)
    }

    /// The value with this number.
    pub fn value(self, number: i32) -> Option<EnumValue> {
        self.values().find(|v| v.number() == number)
    }

    /// The value with this name.
    pub fn value_by_name(self, name: &str) -> Option<EnumValue> {
        self.values().find(|v| v.name() == name)
    }
}

impl std::fmt::Debug for Enum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.full_name())
    }
}

impl EnumValue {
    fn at(self) -> usize {
        record(VALUES, VALUE, self.0 as usize)
    }

    /// Its name: `ROUND_ROBIN`.
    pub fn name(self) -> &'static str {
        text(word(self.at()))
    }

    /// Its number.
    pub fn number(self) -> i32 {
        word(self.at() + 4) as i32
    }

    /// True if it is deprecated.
    pub fn is_deprecated(self) -> bool {
        half(self.at() + 8) & DEPRECATED != 0
    }

    /// True if it is deprecated for so long that Envoy refuses it unless told otherwise.
    pub fn is_disallowed(self) -> bool {
        half(self.at() + 8) & DISALLOWED != 0
    }
}

// === reading the blob ===

fn word(at: usize) -> u32 {
    u32::from_le_bytes([BLOB[at], BLOB[at + 1], BLOB[at + 2], BLOB[at + 3]])
}

fn half(at: usize) -> u16 {
    u16::from_le_bytes([BLOB[at], BLOB[at + 1]])
}

fn record(section: usize, size: usize, index: usize) -> usize {
    word(4 * section) as usize + size * index
}

fn bytes(offset: u32) -> &'static [u8] {
    let at = word(4 * POOL) as usize + offset as usize;
    &BLOB[at + 2..at + 2 + usize::from(half(at))]
}

fn text(offset: u32) -> &'static str {
    // The build script wrote it from a `str`.
    std::str::from_utf8(bytes(offset)).expect("names in the schema tables are UTF-8")
}

/// Binary search over `len` records.
fn search(len: usize, compare: impl Fn(usize) -> Ordering) -> Option<usize> {
    let (mut low, mut high) = (0, len);
    while low < high {
        let middle = usize::midpoint(low, high);
        match compare(middle) {
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
            Ordering::Equal => return Some(middle),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_back() {
        let mut count = 0;
        for m in messages() {
            count += 1;
            assert_eq!(message(m.full_name()), Some(m));
            for field in m.fields() {
                assert_eq!(m.field(field.number()), Some(field));
                assert_eq!(m.field_by_name(field.name()), Some(field), "{m:?}.{field:?}");
                assert_eq!(m.field_by_name(field.json_name()), Some(field));
                if let Kind::Enum(e) = field.kind() {
                    assert_eq!(enumeration(e.full_name()), Some(e));
                }
                assert!(field.oneof().is_none_or(|i| i < m.oneofs().len()));
            }
        }
        assert!(count > 1800);
        assert_eq!(message("envoy.config.cluster.v3.Clutter"), None);
    }

    #[test]
    fn facts_of_some_messages() {
        let hcm = message("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager").unwrap();
        let prefix = hcm.field_by_name("statPrefix").unwrap();
        assert_eq!((prefix.name(), prefix.number(), prefix.kind()), ("stat_prefix", 2, Kind::String));
        assert!(!prefix.rules().is_empty());
        let specifier = hcm.oneofs().nth(hcm.field_by_name("rds").unwrap().oneof().unwrap()).unwrap();
        assert_eq!((specifier.name(), specifier.is_required()), ("route_specifier", true));

        let tls = message("envoy.extensions.transport_sockets.tls.v3.TlsCertificate").unwrap();
        assert!(tls.field_by_name("private_key").unwrap().is_sensitive());
        let node = message("envoy.config.core.v3.Node").unwrap();
        assert!(node.field_by_name("dynamic_parameters").unwrap().is_map());
        assert_eq!(
            message_of_url("type.googleapis.com/google.protobuf.Any").unwrap().well_known(),
            Some(WellKnown::Any)
        );
        assert_eq!(message("google.protobuf.StringValue").unwrap().well_known(), Some(WellKnown::Wrapper));
        assert!(messages().any(|m| m.fields().any(|f| f.is_disallowed() && f.is_deprecated())));
        assert!(messages().any(Message::is_work_in_progress));
    }

    #[test]
    fn every_root_that_has_a_rust_type_is_in_the_tables() {
        for root in include_str!("../types/schema/roots.txt").lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let found = match root.strip_suffix('*') {
                Some(prefix) => messages().any(|m| m.full_name().starts_with(prefix)),
                None => message(root).is_some(),
            };
            assert!(found, "{root}");
        }
    }
}
