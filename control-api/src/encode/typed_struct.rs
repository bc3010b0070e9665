//! `TypedStruct`: a message written as a `Struct` beside its type, for control planes that do not have the type.

use super::{EncodeOptions, encode_message};
use crate::{
    node::{Entry, MAX_DEPTH, Node, NodeValue},
    problem::{Position, Problem},
    schema::{WellKnown, message_of_url},
    wire::{Malformed, Records, Wire},
};
use prost_types::Any;

/// True for the messages that hold another one as a `Struct`: `type_url` is field 1, `value` is field 2.
pub(crate) fn is_typed_struct(full_name: &str) -> bool {
    matches!(full_name, "xds.type.v3.TypedStruct" | "udpa.type.v1.TypedStruct")
}

/// The message that a `TypedStruct` describes; any other `Any` as it is.
///
/// # Errors
/// What is wrong with the `Struct` as that message, or that its type is not known. Paths start at the `Struct`.
pub fn open_typed_struct(any: Any, options: EncodeOptions) -> Result<Any, Vec<Problem>> {
    match message_of_url(&any.type_url) {
        Some(outer) if is_typed_struct(outer.full_name()) => open(&any.value, options),
        _ => Ok(any),
    }
}

/// [`open_typed_struct`] for an encoded `TypedStruct`.
pub(crate) fn open(bytes: &[u8], options: EncodeOptions) -> Result<Any, Vec<Problem>> {
    let one = |about: String| vec![Problem::new("", about)];
    let (mut type_url, mut value) = ("", &[][..]);
    for record in Records(bytes) {
        match record {
            Ok((1, Wire::Bytes(url))) => type_url = std::str::from_utf8(url).map_err(|e| one(e.to_string()))?,
            Ok((2, Wire::Bytes(bytes))) => value = bytes,
            Ok(_) => {}
            Err(Malformed) => return Err(one("is not a valid encoding of a TypedStruct".to_owned())),
        }
    }
    let Some(message) = message_of_url(type_url) else {
        return Err(one(format!("found type_url {type_url:?}, which is not supported: no such message is known")));
    };
    let tree = structure(value, 0).map_err(|Malformed| one("is not a valid encoding of a Struct".to_owned()))?;
    let tree = match (message.well_known(), tree.value) {
        // Those whose text form is no map stand below `value`, as in an `Any`.
        (Some(kind), NodeValue::Map(entries)) if kind != WellKnown::Struct => {
            entries.into_iter().find(|e| *e.key == *"value").map_or(node(NodeValue::Null), |e| e.value)
        }
        (_, value) => node(value),
    };
    let (value, _, mut problems) = encode_message(&tree, message, options);
    if problems.is_empty() {
        return Ok(Any { type_url: type_url.to_owned(), value });
    }
    problems.iter_mut().for_each(|p| p.position = None);
    Err(problems)
}

fn node(value: NodeValue) -> Node {
    Node { position: Position { line: 0, column: 0 }, value }
}

/// A `Struct`: field 1 holds entries of key 1 and value 2.
fn structure(bytes: &[u8], depth: usize) -> Result<Node, Malformed> {
    let mut entries = crate::node::MapBuilder::default();
    for record in Records(bytes) {
        let (1, Wire::Bytes(entry)) = record? else { continue };
        let (mut key, mut found) = ("", NodeValue::Null);
        for record in Records(entry) {
            match record? {
                (1, Wire::Bytes(text)) => key = std::str::from_utf8(text).map_err(|_| Malformed)?,
                (2, Wire::Bytes(bytes)) => found = value(bytes, depth + 1)?,
                _ => {}
            }
        }
        entries.set(Entry { position: Position { line: 0, column: 0 }, key: key.into(), value: node(found) });
    }
    Ok(node(NodeValue::Map(entries.finish())))
}

/// A `Value`: 1 null, 2 number, 3 text, 4 bool, 5 map, 6 list.
fn value(bytes: &[u8], depth: usize) -> Result<NodeValue, Malformed> {
    if depth > MAX_DEPTH {
        return Err(Malformed);
    }
    let mut found = NodeValue::Null;
    for record in Records(bytes) {
        match record? {
            (2, Wire::Fixed64(bits)) => found = NodeValue::Number(f64::from_bits(bits).to_string().into()),
            (3, Wire::Bytes(text)) => {
                found = NodeValue::String(std::str::from_utf8(text).map_err(|_| Malformed)?.into());
            }
            (4, Wire::Varint(n)) => found = NodeValue::Bool(n != 0),
            (5, Wire::Bytes(bytes)) => found = structure(bytes, depth + 1)?.value,
            (6, Wire::Bytes(bytes)) => {
                let mut items = Vec::new();
                for record in Records(bytes) {
                    if let (1, Wire::Bytes(item)) = record? {
                        items.push(node(value(item, depth + 1)?));
                    }
                }
                found = NodeValue::List(items);
            }
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{encode, print, yaml};

    fn opened(text: &str) -> Result<Any, Vec<Problem>> {
        let text = format!("{{'@type': type.googleapis.com/xds.type.v3.TypedStruct, {text}}}");
        let any = encode(yaml::parse(&text).unwrap(), "google.protobuf.Any", EncodeOptions::default()).unwrap().bytes;
        open_typed_struct(prost::Message::decode(&*any).unwrap(), EncodeOptions::default())
    }

    #[test]
    fn the_described_message_comes_out() {
        let any = opened(
            "type_url: type.googleapis.com/envoy.config.cluster.v3.Cluster, \
             value: {name: a, connect_timeout: 1.5s, per_connection_buffer_limit_bytes: 7, health_checks: [{timeout: 1s}]}",
        )
        .unwrap();
        let shown = print("envoy.config.cluster.v3.Cluster", &any.value, Default::default()).unwrap();
        assert_eq!(
            shown.to_string(),
            r#"{"name":"a","connect_timeout":"1.500s","per_connection_buffer_limit_bytes":7,"health_checks":[{"timeout":"1s"}]}"#
        );
        let any = opened("type_url: type.googleapis.com/google.protobuf.Duration, value: {value: 2s}").unwrap();
        assert_eq!(any.value, [8, 2]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let problems =
            opened("type_url: type.googleapis.com/envoy.config.cluster.v3.Cluster, value: {nope: 1}").unwrap_err();
        assert_eq!(problems[0].path, "nope");
        assert_eq!(problems[0].position, None);
        assert!(opened("type_url: type.googleapis.com/no.Such, value: {}").is_err());
    }
}
