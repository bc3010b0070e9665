//! Encodes a configuration text as a protobuf message: proto3's JSON mapping, with the latitude of Envoy's parser.
//!
//! Called for bootstraps, files of resources and the reference control plane's directory. Beyond the standard mapping
//! Envoy (and so this) takes: enum names in any case, enum numbers and bools as text, a repeated field written as its
//! only element, `Duration`, `Timestamp`, `FieldMask` and wrappers as plain messages, null wherever a field may be
//! unset. Invariant: all problems are reported at once, each with its path and its place in the text.

mod scalar;
mod typed_struct;
mod well_known;

pub use typed_struct::open_typed_struct;
pub(crate) use typed_struct::{is_typed_struct, open};
pub use well_known::snake_case;

use crate::{
    node::{self, Entry, Node, NodeValue},
    print::REDACTED,
    problem::{Position, Problem},
    schema::{Field, Kind, Message, WellKnown, message, message_of_url},
    wire::{put_nested, put_tag},
};
use std::fmt::Write as _;

/// How strict to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct EncodeOptions {
    /// Leave fields out that the schema does not know, and only list them (`--allow-unknown-static-fields`).
    pub allow_unknown: bool,
}

/// A text as protobuf.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// The message on the wire.
    pub bytes: Vec<u8>,
    /// The unknown fields that were left out.
    pub unknown: Vec<Problem>,
    node: Option<Node>,
}

impl Encoded {
    /// A message that did not come from text.
    pub fn from_wire(bytes: Vec<u8>) -> Self {
        Self { bytes, unknown: Vec::new(), node: None }
    }

    /// Gives problems that were found in `bytes` their places in the text.
    pub fn locate(&self, problems: &mut [Problem]) {
        node::locate(self.node.as_slice(), problems);
    }

    /// The text's tree, if the message came from text.
    pub fn into_node(self) -> Option<Node> {
        self.node
    }
}

/// Encodes `node` as the message `name`.
///
/// # Errors
/// Everything in the text that `name` has no place for.
pub fn encode(node: Node, name: &str, options: EncodeOptions) -> Result<Encoded, Vec<Problem>> {
    let (encoded, problems) = encode_partly(node, name, options);
    if problems.is_empty() { Ok(encoded) } else { Err(problems) }
}

/// Encodes `node` as [`encode`] does, without what there is no place for: so that what is wrong with the rest can be
/// said at the same time.
pub fn encode_partly(node: Node, name: &str, options: EncodeOptions) -> (Encoded, Vec<Problem>) {
    let (bytes, unknown, problems) = match message(name) {
        Some(message) => encode_message(&node, message, options),
        None => {
            let about = format!("{name} is no message of the schema");
            (Vec::new(), Vec::new(), vec![Problem::at(node.position, "", about)])
        }
    };
    (Encoded { bytes, unknown, node: Some(node) }, problems)
}

/// The message on the wire, the unknown fields that were left out, and what is wrong.
fn encode_message(node: &Node, message: Message, options: EncodeOptions) -> (Vec<u8>, Vec<Problem>, Vec<Problem>) {
    let mut encoder = Encoder {
        options,
        path: String::new(),
        problems: Vec::new(),
        unknown: Vec::new(),
        out: Vec::with_capacity(1024),
        depth: 0,
        is_sensitive: false,
    };
    encoder.message(message, node);
    (encoder.out, encoder.unknown, encoder.problems)
}

struct Encoder {
    options: EncodeOptions,
    path: String,
    problems: Vec<Problem>,
    unknown: Vec<Problem>,
    out: Vec<u8>,
    depth: usize,
    /// A field above is one that nobody may see: problems do not repeat what stands there.
    is_sensitive: bool,
}

impl Encoder {
    fn problem(&mut self, position: Position, message: impl Into<String>) {
        self.problems.push(Problem::at(position, self.path.clone(), message));
    }

    /// What a node is, for a problem's text.
    fn found(&self, node: &Node) -> String {
        match &node.value {
            NodeValue::Null => "null".to_owned(),
            NodeValue::List(_) => "a list".to_owned(),
            NodeValue::Map(_) => "a map".to_owned(),
            NodeValue::Number(_) if self.is_sensitive => format!("a number, {REDACTED}"),
            NodeValue::String(_) if self.is_sensitive => format!("a text, {REDACTED}"),
            // Whatever it is here, elsewhere it may be a key.
            NodeValue::String(text) if text.contains("-----BEGIN ") => "a PEM text".to_owned(),
            NodeValue::Bool(value) => value.to_string(),
            NodeValue::Number(text) => text.to_string(),
            NodeValue::String(text) => {
                let short: String = text.chars().take(64).collect();
                if short.len() < text.len() { format!("{short:?}...") } else { format!("{short:?}") }
            }
        }
    }

    /// Runs `write` with `step` at the end of the path.
    fn below<T>(&mut self, step: std::fmt::Arguments<'_>, write: impl FnOnce(&mut Self) -> T) -> T {
        let len = self.path.len();
        let _ = self.path.write_fmt(step);
        let result = write(self);
        self.path.truncate(len);
        result
    }

    /// Runs `write` one field deeper.
    fn field<T>(&mut self, name: &str, write: impl FnOnce(&mut Self) -> T) -> T {
        let len = self.path.len();
        if len > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        let result = write(self);
        self.path.truncate(len);
        result
    }

    /// Writes a length-delimited record that `write` fills.
    fn nested(&mut self, number: u32, write: impl FnOnce(&mut Self)) {
        let mut out = std::mem::take(&mut self.out);
        put_nested(&mut out, number, |out| {
            std::mem::swap(&mut self.out, out);
            write(self);
            std::mem::swap(&mut self.out, out);
        });
        self.out = out;
    }

    /// Writes the content of a message.
    fn message(&mut self, message: Message, node: &Node) {
        if self.depth >= crate::wire::MAX_DEPTH {
            return self.problem(node.position, "is nested too deep");
        }
        self.depth += 1;
        match (message.well_known(), &node.value) {
            (Some(kind), _) => self.well_known(kind, message, node),
            (None, NodeValue::Map(entries)) => self.fields(message, entries, false),
            (None, _) => {
                // What stands in place of a message that holds secrets is likely one of them.
                let was_sensitive = self.is_sensitive;
                self.is_sensitive |= message.fields().any(Field::is_sensitive);
                self.problem(node.position, format!("found {}, allowed: a map ({message:?})", self.found(node)));
                self.is_sensitive = was_sensitive;
            }
        }
        self.depth -= 1;
    }

    /// Writes the fields of a plain message. `in_any`: one entry is the type URL.
    fn fields(&mut self, message: Message, entries: &[Entry], in_any: bool) {
        let mut members: Vec<Option<&str>> = vec![None; message.oneofs().len()];
        for Entry { position, key, value } in entries {
            if in_any && &**key == "@type" {
                continue;
            }
            let Some(field) = message.field_by_name(key) else {
                let (about, is_near) = unknown_field(message, key);
                // What is no misspelt name may be a value that went astray.
                let shown = if self.is_sensitive && !is_near { REDACTED } else { key };
                self.field(shown, |e| {
                    let problem = Problem::at(*position, e.path.clone(), about);
                    if e.options.allow_unknown { e.unknown.push(problem) } else { e.problems.push(problem) }
                });
                continue;
            };
            let was_sensitive = self.is_sensitive;
            self.is_sensitive |= field.is_sensitive();
            self.field(field.name(), |e| {
                let is_set = !matches!(value.value, NodeValue::Null) || takes_null(field);
                if let Some(member) = field.oneof().filter(|_| is_set).and_then(|i| members.get_mut(i))
                    && let Some(other) = member.replace(field.name())
                {
                    return e.problem(*position, format!("cannot be set together with {other}: only one of them"));
                }
                e.value(field, value);
            });
            self.is_sensitive = was_sensitive;
        }
    }

    /// Writes the value of a field: any number of records.
    fn value(&mut self, field: Field, node: &Node) {
        match (&node.value, field.kind()) {
            (NodeValue::Null, _) if !takes_null(field) => {}
            (NodeValue::Map(entries), Kind::Message(entry)) if field.is_map() => self.map(field, entry, entries),
            (_, _) if field.is_map() => {
                self.problem(node.position, format!("found {}, allowed: a map", self.found(node)));
            }
            (NodeValue::List(items), _) if field.is_repeated() => {
                let mut all = Vec::with_capacity(items.len());
                flatten(field, items, &mut all);
                let items = || all.iter().enumerate();
                if field.is_packed() {
                    self.nested(field.number(), |e| {
                        for (i, item) in items() {
                            e.below(format_args!("[{i}]"), |e| e.scalar(field.kind(), item));
                        }
                    });
                } else {
                    for (i, item) in items() {
                        self.below(format_args!("[{i}]"), |e| e.single(field, item));
                    }
                }
            }
            _ if field.is_repeated() => self.below(format_args!("[0]"), |e| e.single(field, node)),
            _ => self.single(field, node),
        }
    }

    /// Writes one record of a field.
    fn single(&mut self, field: Field, node: &Node) {
        let start = self.out.len();
        match field.kind() {
            // A null element of a list stands for the empty message.
            Kind::Message(m) if node.value == NodeValue::Null && m.well_known() != Some(WellKnown::Value) => {
                self.nested(field.number(), |_| {});
            }
            Kind::Message(m) => self.nested(field.number(), |e| e.message(m, node)),
            kind => {
                put_tag(&mut self.out, field);
                let content = self.out.len();
                self.scalar(kind, node);
                let is_refused = self.out.len() == content;
                let is_default = self.out[content..].iter().all(|b| *b == 0);
                if is_refused || is_default && !field.has_presence() && !field.is_repeated() {
                    self.out.truncate(start);
                }
            }
        }
    }

    fn map(&mut self, field: Field, entry: Message, entries: &[Entry]) {
        let (Some(key_field), Some(value_field)) = (entry.field(1), entry.field(2)) else { return };
        for Entry { position, key, value } in entries {
            self.below(format_args!("[{key:?}]"), |e| {
                e.nested(field.number(), |e| {
                    let key = Node { position: *position, value: NodeValue::String(key.clone()) };
                    e.single(key_field, &key);
                    e.value(value_field, value);
                });
            });
        }
    }

    /// Writes the content of an `Any`.
    fn any(&mut self, node: &Node) {
        let NodeValue::Map(entries) = &node.value else {
            return self.problem(node.position, format!("found {}, allowed: a map with \"@type\"", self.found(node)));
        };
        if entries.is_empty() {
            return;
        }
        let url = match node.get("@type").map(|n| (&n.value, n.position)) {
            Some((NodeValue::String(url), at)) => (&**url, at),
            Some((_, at)) => return self.problem(at, "the value of \"@type\" is not text"),
            None => return self.problem(node.position, "has no \"@type\", which says what message it holds"),
        };
        let message = match url.0.rsplit_once('/') {
            None | Some(("", _)) => {
                let about =
                    format!("found @type {:?}, allowed: a type URL, as type.googleapis.com/package.Message", url.0);
                return self.problem(url.1, about);
            }
            Some(_) => message_of_url(url.0),
        };
        let Some(message) = message else {
            return self
                .problem(url.1, format!("found @type {:?}, which is not supported: no such message is known", url.0));
        };
        crate::wire::put_bytes(&mut self.out, 1, url.0.as_bytes());
        let start = self.out.len();
        self.nested(2, |e| match message.well_known() {
            None => e.fields(message, entries, true),
            Some(_) => {
                for Entry { position, key, value } in entries {
                    match &**key {
                        "@type" => {}
                        "value" => e.field("value", |e| e.message(message, value)),
                        key => {
                            let about = format!("is not known: beside @type {:?} only \"value\" is", url.0);
                            e.field(key, |e| e.problem(*position, about));
                        }
                    }
                }
            }
        });
        // An empty value is left out, as protobuf leaves it out.
        if self.out.len() - start == 2 {
            self.out.truncate(start);
        }
    }
}

/// True if null is a value of the field, not its absence.
fn takes_null(field: Field) -> bool {
    match field.kind() {
        Kind::Message(m) => m.well_known() == Some(WellKnown::Value) && !field.is_repeated(),
        Kind::Enum(e) => e.full_name() == "google.protobuf.NullValue" && !field.is_repeated(),
        _ => false,
    }
}

/// The elements of a repeated field; lists inside the list count as their elements, as Envoy's parser takes them.
fn flatten<'a>(field: Field, items: &'a [Node], all: &mut Vec<&'a Node>) {
    let is_list = match field.kind() {
        Kind::Message(m) => matches!(m.well_known(), Some(WellKnown::Value | WellKnown::ListValue)),
        _ => false,
    };
    for item in items {
        match &item.value {
            NodeValue::List(inner) if !is_list => flatten(field, inner, all),
            _ => all.push(item),
        }
    }
}

/// What is wrong with a key; true if a field's name is close.
fn unknown_field(message: Message, key: &str) -> (String, bool) {
    let mut about = format!("is not a field of {message:?}");
    let names = message.fields().map(Field::name);
    let near = nearest(key, names);
    if let Some(near) = near {
        let _ = write!(about, "; did you mean {near:?}?");
    }
    (about, near.is_some())
}

/// The name that is written most like `word`, if one is close.
fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    if word.len() > 128 {
        return None;
    }
    names
        .map(|name| (distance(&word, &name.to_ascii_lowercase()), name))
        .filter(|(distance, name)| *distance <= 1 + name.len().min(word.len()) / 4)
        .min()
        .map(|(_, name)| name)
}

/// How many letters to add, drop or change (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let change = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = change.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
