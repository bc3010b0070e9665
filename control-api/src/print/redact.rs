//! Hides what is sensitive inside a `TypedStruct`: a message that stands there as plain JSON.

use super::REDACTED;
use crate::{
    encode::is_typed_struct,
    schema::{Field, Kind, Message, WellKnown, message_of_url},
    wire::{Parsed, Wire},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Map, Value};

/// If `message` is a `TypedStruct` of a known type, hides what that type marks as sensitive in its printed form `out`.
pub(super) fn typed_struct(message: Message, parsed: &Parsed<'_>, out: &mut Map<String, Value>) {
    if !is_typed_struct(message.full_name()) {
        return;
    }
    if let (Some(Wire::Bytes(url)), Some(value)) = (parsed.last(1), out.get_mut("value"))
        && let Some(inner) = std::str::from_utf8(url).ok().and_then(message_of_url)
    {
        hide(inner, value, false);
    }
}

fn hide(message: Message, value: &mut Value, hidden: bool) {
    let message = match (message.well_known(), value.get("@type").and_then(Value::as_str)) {
        (Some(WellKnown::Any), Some(url)) => match message_of_url(url) {
            Some(inner) => inner,
            None => return,
        },
        _ => message,
    };
    match (message.well_known(), value) {
        (None, Value::Object(fields)) => {
            fields.retain(|name, value| match message.field_by_name(name) {
                Some(field) => field_value(field, value, hidden || field.is_sensitive()),
                None => true,
            });
        }
        (_, value) if hidden => blank(value),
        _ => {}
    }
}

/// Hides in the value of a field; false if nothing of it may stay.
fn field_value(field: Field, value: &mut Value, hidden: bool) -> bool {
    match value {
        Value::Array(items) if field.is_repeated() => {
            items.retain_mut(|item| single(field.kind(), item, hidden));
            true
        }
        Value::Object(entries) if field.is_map() => {
            let Kind::Message(entry) = field.kind() else { return true };
            let Some(value) = entry.field(2) else { return true };
            entries.retain(|_, item| single(value.kind(), item, hidden));
            true
        }
        value => single(field.kind(), value, hidden),
    }
}

fn single(kind: Kind, value: &mut Value, hidden: bool) -> bool {
    match kind {
        Kind::Message(message) => hide(message, value, hidden),
        Kind::String if hidden => *value = REDACTED.into(),
        Kind::Bytes if hidden => *value = BASE64_STANDARD.encode(REDACTED).into(),
        _ => return !hidden,
    }
    true
}

/// Hides every text in a value that no schema describes.
fn blank(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(blank),
        Value::Object(entries) => entries.values_mut().for_each(blank),
        Value::String(text) => REDACTED.clone_into(text),
        other => *other = Value::Null,
    }
}
