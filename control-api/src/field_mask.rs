//! Keeps only some fields of a message: `google.protobuf.FieldMask` on the wire, for `/config_dump?mask=`.
//!
//! A path goes through singular message fields and ends anywhere; at an `Any` it goes on in its content.

use crate::{
    problem::Problem,
    schema::{Kind, Message, WellKnown, message, message_of_url},
    wire::{Malformed, Parsed, Records, Wire, put_bytes, put_tag, put_varint},
};
use std::collections::BTreeMap;

/// Which fields to keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldMask {
    /// By field name; an empty mask below keeps the whole field.
    fields: BTreeMap<String, FieldMask>,
}

impl FieldMask {
    /// Reads `a.b,c`.
    pub fn parse(text: &str) -> Self {
        let mut mask = Self::default();
        for path in text.split(',').filter(|p| !p.is_empty()) {
            let mut at = &mut mask;
            let mut steps = path.split('.').peekable();
            while let Some(step) = steps.next() {
                let known = at.fields.get(step).is_some_and(|below| below.fields.is_empty());
                let below = at.fields.entry(step.to_owned()).or_default();
                if known {
                    // A shorter path already keeps all of it.
                    break;
                }
                if steps.peek().is_none() {
                    below.fields.clear();
                }
                at = below;
            }
        }
        mask
    }

    /// True if it names no field.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// The message `name` with only the fields of the mask.
    ///
    /// # Errors
    /// A path of the mask leads nowhere in that message, or the bytes are no such message.
    pub fn trim(&self, name: &str, bytes: &[u8]) -> Result<Vec<u8>, Problem> {
        let message = message(name).ok_or_else(|| Problem::new("", format!("{name} is no message of the schema")))?;
        self.fits(message, "")?;
        let mut out = Vec::new();
        self.copy(message, bytes, &mut out)
            .map_err(|Malformed| Problem::new("", format!("is not a valid encoding of {name}")))?;
        Ok(out)
    }

    fn fits(&self, message: Message, path: &str) -> Result<(), Problem> {
        for (name, below) in &self.fields {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let Some(field) = message.fields().find(|f| f.name() == name) else {
                return Err(Problem::new(path, format!("is not a field of {message:?}")));
            };
            match field.kind() {
                _ if below.fields.is_empty() => {}
                // What an `Any` holds is known only when it is there.
                Kind::Message(m) if !field.is_repeated() && m.well_known() == Some(WellKnown::Any) => {}
                Kind::Message(m) if !field.is_repeated() => below.fits(m, &path)?,
                _ => return Err(Problem::new(path, "is no single message, so a path cannot go through it")),
            }
        }
        Ok(())
    }

    fn copy(&self, message: Message, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
        if message.well_known() == Some(WellKnown::Any) {
            return self.copy_any(message, bytes, out);
        }
        for record in Records(bytes) {
            let (number, value) = record?;
            let Some(field) = message.field(number) else { continue };
            let Some(below) = self.fields.get(field.name()) else { continue };
            match (field.kind(), value) {
                (Kind::Message(inner), Wire::Bytes(bytes)) if !below.fields.is_empty() => {
                    let mut kept = Vec::new();
                    below.copy(inner, bytes, &mut kept)?;
                    put_bytes(out, number, &kept);
                }
                (_, Wire::Bytes(bytes)) => put_bytes(out, number, bytes),
                (_, Wire::Varint(n)) => {
                    put_varint(out, u64::from(number) << 3);
                    put_varint(out, n);
                }
                (_, Wire::Fixed64(n)) => {
                    put_varint(out, u64::from(number) << 3 | 1);
                    out.extend(n.to_le_bytes());
                }
                (_, Wire::Fixed32(n)) => {
                    put_varint(out, u64::from(number) << 3 | 5);
                    out.extend(n.to_le_bytes());
                }
                (_, Wire::Group) => {}
            }
        }
        Ok(())
    }

    fn copy_any(&self, message: Message, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
        let parsed = Parsed::new(message, bytes)?;
        let (Some(Wire::Bytes(url)), Some(value_field)) = (parsed.last(1), message.field(2)) else { return Ok(()) };
        put_bytes(out, 1, url);
        let inner = std::str::from_utf8(url).ok().and_then(message_of_url);
        if let (Some(inner), Some(Wire::Bytes(value))) = (inner, parsed.last(2)) {
            let mut kept = Vec::new();
            self.copy(inner, value, &mut kept)?;
            put_tag(out, value_field);
            put_varint(out, kept.len() as u64);
            out.extend(kept);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EncodeOptions, PrintOptions, encode, print, yaml};

    const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";

    fn trimmed(mask: &str) -> Result<String, Problem> {
        let text = "node: {id: a, cluster: c, locality: {zone: z, region: r}}\nheader_prefix: x\n\
            static_resources: {clusters: [{name: k}]}\n\
            default_regex_engine: {name: '', typed_config: {'@type': type.googleapis.com/envoy.config.core.v3.Node, id: i, cluster: c}}";
        let bytes = encode(yaml::parse(text).unwrap(), BOOTSTRAP, EncodeOptions::default()).unwrap().bytes;
        let bytes = FieldMask::parse(mask).trim(BOOTSTRAP, &bytes)?;
        Ok(print(BOOTSTRAP, &bytes, PrintOptions::default()).unwrap().to_string())
    }

    #[test]
    fn only_what_the_mask_names_stays() {
        for (mask, json) in [
            ("node.id", r#"{"node":{"id":"a"}}"#),
            ("node.id,node.locality.zone", r#"{"node":{"id":"a","locality":{"zone":"z"}}}"#),
            ("node.locality,node.locality.zone", r#"{"node":{"locality":{"region":"r","zone":"z"}}}"#),
            ("node.locality.zone,node.locality", r#"{"node":{"locality":{"region":"r","zone":"z"}}}"#),
            (
                "static_resources.clusters,header_prefix",
                r#"{"static_resources":{"clusters":[{"name":"k"}]},"header_prefix":"x"}"#,
            ),
            (
                "default_regex_engine.typed_config.id",
                r#"{"default_regex_engine":{"typed_config":{"@type":"type.googleapis.com/envoy.config.core.v3.Node","id":"i"}}}"#,
            ),
            ("", "{}"),
        ] {
            assert_eq!(trimmed(mask).unwrap(), json, "{mask}");
        }
        for mask in ["nope", "node.nope", "static_resources.clusters.name", "header_prefix.x"] {
            assert!(trimmed(mask).is_err(), "{mask}");
        }
    }
}
