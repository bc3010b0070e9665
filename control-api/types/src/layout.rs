//! The layout of the schema tables: what `build/tables.rs` writes and `weft_control_api::schema` reads.
//!
//! Everything is little-endian and unaligned. A text is an offset into the pool, where two bytes of length precede it;
//! offset 0 is the empty text. Both sides compile this file, so they cannot disagree.

/// The header is of `u32`: first where each section starts, in this order.
pub const MESSAGES: usize = 0;
pub const FIELDS: usize = 1;
pub const NAMES: usize = 2;
pub const ONEOFS: usize = 3;
pub const ENUMS: usize = 4;
pub const VALUES: usize = 5;
pub const POOL: usize = 6;
/// Then how many messages and enums there are.
pub const MESSAGE_COUNT: usize = 7;
pub const ENUM_COUNT: usize = 8;

/// Message: name u32, first field u32, first name u32, first oneof u16, fields u16, names u16, oneofs u16, flags u16,
/// well-known u16. Sorted by name.
pub const MESSAGE: usize = 24;
/// Field: name u32, JSON name u32, number u32, rules u32, type u16, oneof u16, flags u16, kind u16. A message's
/// fields stand together, sorted by number.
pub const FIELD: usize = 24;
/// Name: a `u16`, twice the field's place in its message, plus one for the JSON name. Sorted by text.
pub const NAME: usize = 2;
/// Oneof: name u32, flags u16, number of the first member field u16.
pub const ONEOF: usize = 8;
/// Enum: name u32, first value u32, values u16, flags u16. Sorted by name.
pub const ENUM: usize = 12;
/// Value: name u32, number i32, flags u16, unused u16. Sorted by number; the first of a number is its name.
pub const VALUE: usize = 12;

/// No oneof.
pub const NONE: u16 = u16::MAX;

pub const MAP_ENTRY: u16 = 1;
pub const UNVALIDATED: u16 = 2;

pub const REPEATED: u16 = 1;
pub const MAP: u16 = 2;
pub const PACKED: u16 = 4;
pub const PRESENCE: u16 = 8;
pub const SENSITIVE: u16 = 64;
pub const DISALLOWED: u16 = 128;

pub const REQUIRED: u16 = 1;

/// Of messages, fields, enums and values.
pub const DEPRECATED: u16 = 32;
/// Of messages and fields.
pub const WORK_IN_PROGRESS: u16 = 256;
