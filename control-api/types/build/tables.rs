//! Writes the schema tables: one blob with every message, field, enum and constraint of the schema, which
//! `weft_control_api::schema` reads in place. `src/layout.rs` is the layout.

use crate::layout::*;
use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor,
    ReflectMessage, Value, prost::Message as _,
};
use std::collections::HashMap;

/// The blob for a FileDescriptorSet.
pub fn tables(set: &[u8]) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let pool = DescriptorPool::decode(set)?;
    let mut messages: Vec<MessageDescriptor> = pool.all_messages().collect();
    messages.sort_by(|a, b| a.full_name().cmp(b.full_name()));
    let mut enums: Vec<EnumDescriptor> = pool.all_enums().collect();
    enums.sort_by(|a, b| a.full_name().cmp(b.full_name()));
    let mut tables = Tables {
        message_ids: ids(messages.iter().map(|m| m.full_name()))?,
        enum_ids: ids(enums.iter().map(|e| e.full_name()))?,
        pool: vec![0, 0],
        ..Tables::default()
    };
    tables.offsets.insert(Vec::new(), 0);
    for message in &messages {
        tables.message(message)?;
    }
    for e in &enums {
        tables.enumeration(e)?;
    }
    Ok(tables.finish(messages.len(), enums.len()))
}

fn ids<'a>(names: impl Iterator<Item = &'a str>) -> Result<HashMap<String, u16>, std::num::TryFromIntError> {
    names.enumerate().map(|(i, name)| Ok((name.to_owned(), u16::try_from(i)?))).collect()
}

/// The messages with a text form of their own; `Message::well_known` knows their places in this list, from 1.
const WELL_KNOWN: [&str; 16] = [
    "google.protobuf.Any",
    "google.protobuf.Struct",
    "google.protobuf.Value",
    "google.protobuf.ListValue",
    "google.protobuf.Duration",
    "google.protobuf.Timestamp",
    "google.protobuf.FieldMask",
    "google.protobuf.BoolValue",
    "google.protobuf.Int32Value",
    "google.protobuf.Int64Value",
    "google.protobuf.UInt32Value",
    "google.protobuf.UInt64Value",
    "google.protobuf.FloatValue",
    "google.protobuf.DoubleValue",
    "google.protobuf.StringValue",
    "google.protobuf.BytesValue",
];

#[derive(Default)]
struct Tables {
    message_ids: HashMap<String, u16>,
    enum_ids: HashMap<String, u16>,
    sections: [Vec<u8>; 6],
    pool: Vec<u8>,
    offsets: HashMap<Vec<u8>, u32>,
}

type Result2 = Result<(), Box<dyn std::error::Error>>;

impl Tables {
    fn message(&mut self, message: &MessageDescriptor) -> Result2 {
        let mut fields: Vec<FieldDescriptor> = message.fields().collect();
        fields.sort_by_key(FieldDescriptor::number);
        // prost-reflect shows a proto3 `optional` as a oneof of its own; in the text it is none.
        let oneofs: Vec<_> = message.oneofs().filter(|o| !o.is_synthetic()).collect();

        let mut names: Vec<(String, u16)> = Vec::new();
        for (i, field) in fields.iter().enumerate() {
            let i = u16::try_from(i)? * 2;
            names.push((field.name().to_owned(), i));
            if field.json_name() != field.name() {
                names.push((field.json_name().to_owned(), i + 1));
            }
        }
        names.sort();

        let options = message.options();
        let mut flags = 0;
        let file = message.parent_file().options();
        for (set, flag) in [
            (message.is_map_entry(), MAP_ENTRY),
            (is_set(&options, "validate.disabled") || is_set(&options, "validate.ignored"), UNVALIDATED),
            (flag_of(&options, "deprecated"), DEPRECATED),
            (
                in_progress(&options, "xds.annotations.v3.message_status")
                    || in_progress(&file, "xds.annotations.v3.file_status")
                    || in_progress(&file, "udpa.annotations.file_status"),
                WORK_IN_PROGRESS,
            ),
        ] {
            flags |= if set { flag } else { 0 };
        }
        let well_known =
            WELL_KNOWN.iter().position(|n| *n == message.full_name()).map_or(Ok(0), |i| u16::try_from(i + 1))?;

        let name = self.text(message.full_name().as_bytes())?;
        let starts = [self.len(FIELDS, FIELD)?, self.len(NAMES, NAME)?];
        let first_oneof = u16::try_from(self.len(ONEOFS, ONEOF)?)?;
        let out = &mut self.sections[MESSAGES];
        for word in [name, starts[0], starts[1]] {
            out.extend(word.to_le_bytes());
        }
        for half in [
            first_oneof,
            u16::try_from(fields.len())?,
            u16::try_from(names.len())?,
            u16::try_from(oneofs.len())?,
            flags,
            well_known,
        ] {
            out.extend(half.to_le_bytes());
        }

        for (_, place) in names {
            self.sections[NAMES].extend(place.to_le_bytes());
        }
        for oneof in &oneofs {
            let name = self.text(oneof.name().as_bytes())?;
            let required = if is_set(&oneof.options(), "validate.required") { REQUIRED } else { 0 };
            let first = oneof.fields().map(|f| f.number()).min().unwrap_or_default();
            let out = &mut self.sections[ONEOFS];
            out.extend(name.to_le_bytes());
            out.extend(required.to_le_bytes());
            out.extend(u16::try_from(first).unwrap_or(u16::MAX).to_le_bytes());
        }
        for field in &fields {
            let oneof = field
                .containing_oneof()
                .and_then(|o| oneofs.iter().position(|other| *other == o))
                .map_or(Ok(NONE), u16::try_from)?;
            self.field(field, oneof)?;
        }
        Ok(())
    }

    fn field(&mut self, field: &FieldDescriptor, oneof: u16) -> Result2 {
        let options = field.options();
        let mut flags = 0;
        for (set, flag) in [
            (field.cardinality() == Cardinality::Repeated, REPEATED),
            (field.is_map(), MAP),
            (field.is_packed(), PACKED),
            (field.supports_presence(), PRESENCE),
            (flag_of(&options, "deprecated"), DEPRECATED),
            (is_set(&options, "udpa.annotations.sensitive"), SENSITIVE),
            (is_set(&options, "envoy.annotations.disallowed_by_default"), DISALLOWED),
            (in_progress(&options, "xds.annotations.v3.field_status"), WORK_IN_PROGRESS),
        ] {
            flags |= if set { flag } else { 0 };
        }
        let (kind, type_id) = match field.kind() {
            Kind::Double => (1, 0),
            Kind::Float => (2, 0),
            Kind::Int64 => (3, 0),
            Kind::Uint64 => (4, 0),
            Kind::Int32 => (5, 0),
            Kind::Fixed64 => (6, 0),
            Kind::Fixed32 => (7, 0),
            Kind::Bool => (8, 0),
            Kind::String => (9, 0),
            Kind::Message(m) => (11, self.message_ids[m.full_name()]),
            Kind::Bytes => (12, 0),
            Kind::Uint32 => (13, 0),
            Kind::Enum(e) => (14, self.enum_ids[e.full_name()]),
            Kind::Sfixed32 => (15, 0),
            Kind::Sfixed64 => (16, 0),
            Kind::Sint32 => (17, 0),
            Kind::Sint64 => (18, 0),
        };
        let rules = match extension(&options, "validate.rules") {
            Some(Value::Message(rules)) => self.text(&rules.encode_to_vec())?,
            _ => 0,
        };
        let name = self.text(field.name().as_bytes())?;
        let json = self.text(field.json_name().as_bytes())?;
        let out = &mut self.sections[FIELDS];
        for word in [name, json, field.number(), rules] {
            out.extend(word.to_le_bytes());
        }
        for half in [type_id, oneof, flags, kind] {
            out.extend(half.to_le_bytes());
        }
        Ok(())
    }

    fn enumeration(&mut self, e: &EnumDescriptor) -> Result2 {
        let mut values: Vec<_> = e.values().collect();
        values.sort_by_key(|v| v.number());
        let name = self.text(e.full_name().as_bytes())?;
        let start = self.len(VALUES, VALUE)?;
        let flags = if flag_of(&e.options(), "deprecated") { DEPRECATED } else { 0 };
        let out = &mut self.sections[ENUMS];
        out.extend(name.to_le_bytes());
        out.extend(start.to_le_bytes());
        out.extend(u16::try_from(values.len())?.to_le_bytes());
        out.extend(flags.to_le_bytes());
        for value in values {
            let options = value.options();
            let mut flags = if flag_of(&options, "deprecated") { DEPRECATED } else { 0 };
            if is_set(&options, "envoy.annotations.disallowed_by_default_enum") {
                flags |= DISALLOWED;
            }
            let name = self.text(value.name().as_bytes())?;
            let out = &mut self.sections[VALUES];
            out.extend(name.to_le_bytes());
            out.extend(value.number().to_le_bytes());
            out.extend(flags.to_le_bytes());
            out.extend(0_u16.to_le_bytes());
        }
        Ok(())
    }

    fn len(&self, section: usize, record: usize) -> Result<u32, std::num::TryFromIntError> {
        u32::try_from(self.sections[section].len() / record)
    }

    fn text(&mut self, text: &[u8]) -> Result<u32, std::num::TryFromIntError> {
        if let Some(offset) = self.offsets.get(text) {
            return Ok(*offset);
        }
        let offset = u32::try_from(self.pool.len())?;
        self.pool.extend(u16::try_from(text.len())?.to_le_bytes());
        self.pool.extend(text);
        self.offsets.insert(text.to_owned(), offset);
        Ok(offset)
    }

    fn finish(self, messages: usize, enums: usize) -> Vec<u8> {
        let mut words = [0_usize; ENUM_COUNT + 1];
        let mut offset = words.len() * 4;
        let records = [MESSAGE, FIELD, NAME, ONEOF, ENUM, VALUE];
        for (i, (section, record)) in self.sections.iter().zip(records).enumerate() {
            assert_eq!(section.len() % record, 0, "section {i} holds whole records");
            words[i] = offset;
            offset += section.len();
        }
        words[POOL] = offset;
        words[MESSAGE_COUNT] = messages;
        words[ENUM_COUNT] = enums;
        let mut out: Vec<u8> = words.iter().flat_map(|w| (*w as u32).to_le_bytes()).collect();
        for section in self.sections.iter().chain([&self.pool]) {
            out.extend(section);
        }
        out
    }
}

/// The value of an extension, if the options have it.
fn extension(options: &DynamicMessage, name: &str) -> Option<Value> {
    let extension = options.descriptor().parent_pool().get_extension_by_name(name)?;
    options.has_extension(&extension).then(|| options.get_extension(&extension).into_owned())
}

/// An extension of type bool.
fn is_set(options: &DynamicMessage, name: &str) -> bool {
    matches!(extension(options, name), Some(Value::Bool(true)))
}

/// A standard option of type bool.
fn flag_of(options: &DynamicMessage, name: &str) -> bool {
    options.get_field_by_name(name).is_some_and(|v| matches!(*v, Value::Bool(true)))
}

/// A status annotation that says `work_in_progress`.
fn in_progress(options: &DynamicMessage, name: &str) -> bool {
    match extension(options, name) {
        Some(Value::Message(status)) => flag_of(&status, "work_in_progress"),
        _ => false,
    }
}
