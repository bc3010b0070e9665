//! Prints a message on the wire as JSON, the way Envoy's admin API does.
//!
//! Called for `/config_dump` and whatever else shows messages. Fields have their original names, defaults are left out,
//! every `Any` whose type is known is shown as its content. Invariant: with `redact`, nothing that the schema marks as
//! sensitive comes out, however deep it lies, and no PEM private key from any field.

mod redact;
mod time;

use crate::{
    pem,
    schema::{Field, Kind, Message, WellKnown, message, message_of_url},
    wire::{MAX_DEPTH, Malformed, Parsed, Wire, joined},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Map, Number, Value};
use std::borrow::Cow;

/// What takes the place of sensitive text and bytes.
pub(crate) const REDACTED: &str = "[redacted]";

/// How to print.
#[derive(Clone, Copy, Debug, Default)]
pub struct PrintOptions {
    /// Hide what the schema marks as sensitive.
    pub redact: bool,
}

/// The message `name` as JSON.
///
/// # Errors
/// The bytes are no such message, or the schema has none of that name.
pub fn print(name: &str, bytes: &[u8], options: PrintOptions) -> Result<Value, Malformed> {
    let printer = Printer { options };
    printer.message(message(name).ok_or(Malformed)?, bytes, false, 0)
}

/// JSON with line breaks, indented by one space as Envoy's is.
pub fn pretty(value: &Value) -> String {
    let mut out = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, format);
    match serde::Serialize::serialize(value, &mut serializer) {
        Ok(()) => String::from_utf8(out).unwrap_or_default(),
        Err(_) => String::new(),
    }
}

struct Printer {
    options: PrintOptions,
}

impl Printer {
    /// `hidden`: a field above is sensitive.
    fn message(&self, message: Message, bytes: &[u8], hidden: bool, depth: usize) -> Result<Value, Malformed> {
        if depth > MAX_DEPTH {
            return Err(Malformed);
        }
        let parsed = Parsed::new(message, bytes)?;
        match message.well_known() {
            None => self.fields(message, &parsed, hidden, depth).map(Value::Object),
            Some(kind) => self.well_known(kind, message, &parsed, hidden, depth),
        }
    }

    fn fields(
        &self,
        message: Message,
        parsed: &Parsed<'_>,
        hidden: bool,
        depth: usize,
    ) -> Result<Map<String, Value>, Malformed> {
        let mut out = Map::new();
        for (field, values) in parsed.fields() {
            if let Some(value) = self.field(field, values, hidden || field.is_sensitive(), depth)? {
                out.insert(field.name().to_owned(), value);
            }
        }
        if self.options.redact && !hidden {
            redact::typed_struct(message, parsed, &mut out);
        }
        Ok(out)
    }

    /// The value of a field; `None` if it is its default, or hidden without a trace.
    fn field(
        &self,
        field: Field,
        values: &[(Field, Wire<'_>)],
        hidden: bool,
        depth: usize,
    ) -> Result<Option<Value>, Malformed> {
        let kind = field.kind();
        if let (true, Kind::Message(entry)) = (field.is_map(), kind) {
            return self.map(entry, values, hidden, depth).map(Some);
        }
        if field.is_repeated() {
            let mut items = Vec::with_capacity(values.len());
            for (_, value) in values {
                match (kind, value) {
                    (Kind::Message(m), Wire::Bytes(bytes)) => items.push(self.message(m, bytes, hidden, depth + 1)?),
                    _ => items.extend(self.scalar(kind, *value, hidden)),
                }
            }
            return Ok(Some(Value::Array(items)).filter(|v| v.as_array().is_some_and(|a| !a.is_empty())));
        }
        if let Kind::Message(m) = kind {
            return self.message(m, &joined(values), hidden, depth + 1).map(Some);
        }
        let Some((_, value)) = values.last() else { return Ok(None) };
        if !field.has_presence() && is_default(*value) {
            return Ok(None);
        }
        Ok(self.scalar(kind, *value, hidden))
    }

    /// Bytes without the private keys that stand in them by mistake, or beside their certificate.
    fn public<'b>(&self, bytes: &'b [u8]) -> Cow<'b, [u8]> {
        if self.options.redact { pem::without_keys(bytes) } else { bytes.into() }
    }

    /// A value that is no message; `None` if it is hidden without a trace.
    fn scalar(&self, kind: Kind, value: Wire<'_>, hidden: bool) -> Option<Value> {
        if hidden && self.options.redact {
            return match kind {
                Kind::String => Some(REDACTED.into()),
                Kind::Bytes => Some(BASE64_STANDARD.encode(REDACTED).into()),
                _ => None,
            };
        }
        Some(match (kind, value) {
            (Kind::Bool, Wire::Varint(n)) => (n != 0).into(),
            (Kind::Int32, Wire::Varint(n)) => (n as i32).into(),
            (Kind::Uint32, Wire::Varint(n)) => (n as u32).into(),
            (Kind::Int64, Wire::Varint(n)) => (n as i64).to_string().into(),
            (Kind::Sint32, Wire::Varint(n)) => ((n >> 1) as i32 ^ -((n & 1) as i32)).into(),
            (Kind::Sint64, Wire::Varint(n)) => ((n >> 1) as i64 ^ -((n & 1) as i64)).to_string().into(),
            (Kind::Sfixed64, Wire::Fixed64(n)) => (n as i64).to_string().into(),
            (Kind::Sfixed32, Wire::Fixed32(n)) => (n as i32).into(),
            (Kind::Double, Wire::Fixed64(n)) => float(f64::from_bits(n)),
            // By way of text, so that 0.1 stays 0.1.
            (Kind::Float, Wire::Fixed32(n)) => float(f32::from_bits(n).to_string().parse().unwrap_or(f64::NAN)),
            (Kind::Enum(e), Wire::Varint(n)) => match e.value(n as i32) {
                Some(_) if e.full_name() == "google.protobuf.NullValue" => Value::Null,
                Some(value) => value.name().into(),
                None => (n as i32).into(),
            },
            (_, Wire::Varint(n) | Wire::Fixed64(n)) => n.to_string().into(),
            (_, Wire::Fixed32(n)) => n.into(),
            (Kind::String, Wire::Bytes(bytes)) => String::from_utf8_lossy(&self.public(bytes)).into(),
            (_, Wire::Bytes(bytes)) => BASE64_STANDARD.encode(self.public(bytes)).into(),
            (_, Wire::Group) => Value::Null,
        })
    }

    fn map(
        &self,
        entry: Message,
        values: &[(Field, Wire<'_>)],
        hidden: bool,
        depth: usize,
    ) -> Result<Value, Malformed> {
        let (key, value) = (entry.field(1).ok_or(Malformed)?, entry.field(2).ok_or(Malformed)?);
        let mut out = Vec::with_capacity(values.len());
        for (_, bytes) in values {
            let Wire::Bytes(bytes) = bytes else { continue };
            let parsed = Parsed::new(entry, bytes)?;
            let default = default_of(key.kind());
            let text = match self.scalar(key.kind(), parsed.last(1).unwrap_or(default), false) {
                Some(Value::String(text)) => text,
                Some(other) => other.to_string(),
                None => String::new(),
            };
            let shown = match (value.kind(), parsed.values(value)) {
                (Kind::Message(m), found) => Some(self.message(m, &joined(found), hidden, depth + 1)?),
                (kind, []) => self.scalar(kind, default_of(kind), hidden),
                (kind, found) => found.last().and_then(|(_, last)| self.scalar(kind, *last, hidden)),
            };
            out.extend(shown.map(|shown| (text, shown)));
        }
        // The wire has no order of its own for maps.
        out.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(Value::Object(out.into_iter().collect()))
    }

    fn well_known(
        &self,
        kind: WellKnown,
        message: Message,
        parsed: &Parsed<'_>,
        hidden: bool,
        depth: usize,
    ) -> Result<Value, Malformed> {
        Ok(match kind {
            WellKnown::Any => return self.any(parsed, hidden, depth),
            WellKnown::Struct | WellKnown::ListValue => {
                let field = message.field(1).ok_or(Malformed)?;
                let empty = if field.is_map() { Value::Object(Map::new()) } else { Value::Array(Vec::new()) };
                self.field(field, parsed.values(field), hidden, depth)?.unwrap_or(empty)
            }
            WellKnown::Value => match parsed.fields().last() {
                Some((field, values)) => self.field(field, values, hidden, depth)?.unwrap_or(Value::Null),
                None => Value::Null,
            },
            WellKnown::Wrapper => {
                let field = message.field(1).ok_or(Malformed)?;
                let value = parsed.last(1).unwrap_or(default_of(field.kind()));
                self.scalar(field.kind(), value, hidden).unwrap_or(Value::Null)
            }
            WellKnown::Duration => {
                let (seconds, nanos) = time::parts(parsed);
                time::duration(seconds, nanos).into()
            }
            WellKnown::Timestamp => {
                let (seconds, nanos) = time::parts(parsed);
                time::timestamp(seconds, nanos).into()
            }
            WellKnown::FieldMask => {
                let field = message.field(1).ok_or(Malformed)?;
                let paths = parsed.values(field).iter().filter_map(|(_, path)| match path {
                    Wire::Bytes(path) => Some(camel_case(&String::from_utf8_lossy(path))),
                    _ => None,
                });
                paths.collect::<Vec<_>>().join(",").into()
            }
        })
    }

    fn any(&self, parsed: &Parsed<'_>, hidden: bool, depth: usize) -> Result<Value, Malformed> {
        let bytes = |number| match parsed.last(number) {
            Some(Wire::Bytes(bytes)) => bytes,
            _ => &[],
        };
        let (url, value) = (String::from_utf8_lossy(bytes(1)), bytes(2));
        let mut out = Map::new();
        if url.is_empty() {
            return Ok(Value::Object(out));
        }
        out.insert("@type".to_owned(), url.as_ref().into());
        let content = message_of_url(&url).map(|m| (m, self.message(m, value, hidden, depth + 1)));
        match content {
            Some((m, Ok(Value::Object(fields)))) if m.well_known().is_none() => out.extend(fields),
            Some((_, Ok(value))) => _ = out.insert("value".to_owned(), value),
            Some((_, Err(Malformed))) => {
                // What cannot be read may hold anything.
                out.extend(self.scalar(Kind::Bytes, Wire::Bytes(value), true).map(|v| ("value".to_owned(), v)));
            }
            None => out.extend(self.scalar(Kind::Bytes, Wire::Bytes(value), hidden).map(|v| ("value".to_owned(), v))),
        }
        Ok(Value::Object(out))
    }
}

fn is_default(value: Wire<'_>) -> bool {
    match value {
        Wire::Varint(n) | Wire::Fixed64(n) => n == 0,
        Wire::Fixed32(n) => n == 0,
        Wire::Bytes(bytes) => bytes.is_empty(),
        Wire::Group => true,
    }
}

fn default_of(kind: Kind) -> Wire<'static> {
    match kind {
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => Wire::Fixed64(0),
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => Wire::Fixed32(0),
        Kind::String | Kind::Bytes | Kind::Message(_) => Wire::Bytes(&[]),
        _ => Wire::Varint(0),
    }
}

/// A number without needless `.0`; what JSON has no number for is text.
fn float(n: f64) -> Value {
    if n.is_nan() {
        "NaN".into()
    } else if n.is_infinite() {
        if n > 0.0 { "Infinity" } else { "-Infinity" }.into()
    } else if n.fract() == 0.0 && n.abs() < 1e15 {
        (n as i64).into()
    } else {
        Number::from_f64(n).map_or(Value::Null, Value::Number)
    }
}

/// `stat_prefix` as `statPrefix`.
fn camel_case(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut upper = false;
    for c in path.chars() {
        match c {
            '_' => upper = true,
            c => {
                out.push(if upper { c.to_ascii_uppercase() } else { c });
                upper = false;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests;
