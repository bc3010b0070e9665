//! Scalars of a text on the wire: numbers, bools, text, bytes, enums.

use super::{Encoder, nearest};
use crate::{
    node::{Node, NodeValue},
    schema::{Enum, Kind},
    wire::put_varint,
};
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

impl Encoder {
    /// Writes a scalar without its tag; a problem leaves the content out.
    pub(super) fn scalar(&mut self, kind: Kind, node: &Node) {
        if node.value == NodeValue::Null {
            // An element of a list, which Envoy's parser makes the default, or a `NullValue`.
            let len = match kind {
                Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => 8,
                Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => 4,
                _ => 1,
            };
            return self.out.resize(self.out.len() + len, 0);
        }
        let zigzag = |n: i64| ((n << 1) ^ (n >> 63)) as u64;
        match kind {
            Kind::Int32 => {
                self.integer(node, i32::MIN.into(), i32::MAX.into(), |out, n| put_varint(out, n as i64 as u64))
            }
            Kind::Int64 => {
                self.integer(node, i64::MIN.into(), i64::MAX.into(), |out, n| put_varint(out, n as i64 as u64))
            }
            Kind::Uint32 => self.integer(node, 0, u32::MAX.into(), |out, n| put_varint(out, n as u64)),
            Kind::Uint64 => self.integer(node, 0, u64::MAX.into(), |out, n| put_varint(out, n as u64)),
            Kind::Sint32 => {
                self.integer(node, i32::MIN.into(), i32::MAX.into(), |out, n| put_varint(out, zigzag(n as i64)));
            }
            Kind::Sint64 => {
                self.integer(node, i64::MIN.into(), i64::MAX.into(), |out, n| put_varint(out, zigzag(n as i64)));
            }
            Kind::Fixed32 => self.integer(node, 0, u32::MAX.into(), |out, n| out.extend((n as u32).to_le_bytes())),
            Kind::Fixed64 => self.integer(node, 0, u64::MAX.into(), |out, n| out.extend((n as u64).to_le_bytes())),
            Kind::Sfixed32 => {
                self.integer(node, i32::MIN.into(), i32::MAX.into(), |out, n| out.extend((n as i32).to_le_bytes()));
            }
            Kind::Sfixed64 => {
                self.integer(node, i64::MIN.into(), i64::MAX.into(), |out, n| out.extend((n as i64).to_le_bytes()));
            }
            Kind::Double => {
                if let Some(n) = self.float(node) {
                    self.out.extend(n.to_le_bytes());
                }
            }
            Kind::Float => {
                if let Some(n) = self.float(node) {
                    if n.is_finite() && n.abs() > f64::from(f32::MAX) {
                        let about = format!("found {}, which is out of range for a float", self.found(node));
                        return self.problem(node.position, about);
                    }
                    self.out.extend((n as f32).to_le_bytes());
                }
            }
            Kind::Bool => match &node.value {
                NodeValue::Bool(value) => self.out.push(u8::from(*value)),
                NodeValue::String(text) if matches!(&**text, "true" | "false") => {
                    self.out.push(u8::from(&**text == "true"))
                }
                _ => self.problem(node.position, format!("found {}, allowed: true, false", self.found(node))),
            },
            Kind::String => match &node.value {
                NodeValue::String(text) => self.text(text.as_bytes()),
                NodeValue::Bool(_) | NodeValue::Number(_) => {
                    self.problem(
                        node.position,
                        format!("found {}, allowed: text (put it in quotes)", self.found(node)),
                    );
                }
                _ => self.problem(node.position, format!("found {}, allowed: text", self.found(node))),
            },
            Kind::Bytes => {
                let NodeValue::String(text) = &node.value else {
                    return self
                        .problem(node.position, format!("found {}, allowed: bytes in base64", self.found(node)));
                };
                match STANDARD.decode(&**text).or_else(|_| URL_SAFE.decode(&**text)) {
                    Ok(bytes) => self.text(&bytes),
                    // Where it breaks off would tell a character.
                    Err(_) if self.is_sensitive => self.problem(node.position, "is not base64"),
                    Err(e) => self.problem(node.position, format!("is not base64: {e}")),
                }
            }
            Kind::Enum(e) => self.enumeration(e, node),
            Kind::Message(m) => self.problem(node.position, format!("{m:?} is no scalar")),
        }
    }

    /// Writes a length and content.
    pub(super) fn text(&mut self, bytes: &[u8]) {
        put_varint(&mut self.out, bytes.len() as u64);
        self.out.extend_from_slice(bytes);
    }

    fn integer(&mut self, node: &Node, min: i128, max: i128, put: impl FnOnce(&mut Vec<u8>, i128)) {
        let text = match &node.value {
            NodeValue::Number(text) | NodeValue::String(text) => &**text,
            _ => {
                let about = format!("found {}, allowed: a whole number from {min} to {max}", self.found(node));
                return self.problem(node.position, about);
            }
        };
        match whole(text) {
            Some(n) if (min..=max).contains(&n) => put(&mut self.out, n),
            _ => {
                let about = format!("found {}, allowed: a whole number from {min} to {max}", self.found(node));
                self.problem(node.position, about);
            }
        }
    }

    fn float(&mut self, node: &Node) -> Option<f64> {
        let parsed = match &node.value {
            NodeValue::String(text) if &**text == "NaN" => Some(f64::NAN),
            NodeValue::String(text) if &**text == "Infinity" => Some(f64::INFINITY),
            NodeValue::String(text) if &**text == "-Infinity" => Some(f64::NEG_INFINITY),
            // Rust also reads "inf" and "nan"; JSON does not.
            NodeValue::Number(text) | NodeValue::String(text) if is_number(text) => {
                text.parse().ok().filter(|n: &f64| n.is_finite())
            }
            _ => None,
        };
        if parsed.is_none() {
            self.problem(node.position, format!("found {}, allowed: a number", self.found(node)));
        }
        parsed
    }

    fn enumeration(&mut self, e: Enum, node: &Node) {
        let text = match &node.value {
            NodeValue::Number(text) | NodeValue::String(text) => &**text,
            _ => "",
        };
        let named = e.value_by_name(text).or_else(|| e.values().find(|v| v.name().eq_ignore_ascii_case(text)));
        if let Some(number) = named.map(|v| v.number()).or_else(|| i32::try_from(whole(text)?).ok()) {
            return put_varint(&mut self.out, i64::from(number) as u64);
        }
        let mut about = format!("found {}, ", self.found(node));
        if let Some(near) = nearest(text, e.values().map(|v| v.name())) {
            about += &format!("did you mean {near}? ");
        }
        about += "allowed: ";
        about += &e.values().map(|v| v.name()).collect::<Vec<_>>().join(", ");
        self.problem(node.position, about);
    }
}

/// True for what JSON calls a number, and `.5` and `+5`, which Envoy takes where text stands for a number.
fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'))
}

/// A whole number, which may be written as `1.0` or `1e3`.
fn whole(text: &str) -> Option<i128> {
    if !is_number(text) {
        return None;
    }
    match text.parse() {
        Ok(n) => Some(n),
        Err(_) => {
            let n: f64 = text.parse().ok()?;
            (n.fract() == 0.0 && n.abs() < 1e19).then_some(n as i128)
        }
    }
}
