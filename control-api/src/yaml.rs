//! Reads YAML text into a [`Node`] tree, with the scalars of Envoy's reader (yaml-cpp, then JSON, then protobuf).
//!
//! A plain scalar is null, a bool (`true`, `yes`, `on`, `y` ...), a whole number (decimal, hex, octal) or else text;
//! the encoder turns text into the field's type, so `1.5` is a number where a number is wanted. A quoted scalar is
//! text. An entry whose key has the tag `!ignore` is left out: it is a place to write anchors at. Of several documents
//! the first counts. Invariant: any input ends in a tree within the limits of `node.rs` or in a problem; never a panic.

use crate::{
    node::{Entry, MAX_DEPTH, MAX_NODES, MapBuilder, Node, NodeValue},
    problem::{Position, Problem},
};
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};
use std::{borrow::Cow, collections::HashMap};

/// The tree of a YAML text.
pub fn parse(text: &str) -> Result<Node, Problem> {
    Reader::new(text).document()?.ok_or_else(|| Problem::at(START, "", EMPTY))
}

/// The trees of all documents of a YAML text, apart from empty ones.
///
/// # Errors
/// It is no YAML, or there is none.
pub fn parse_all(text: &str) -> Result<Vec<Node>, Problem> {
    let mut reader = Reader::new(text);
    let mut all = Vec::new();
    while let Some(node) = reader.document()? {
        if node.value != NodeValue::Null {
            all.push(node);
        }
    }
    if all.is_empty() { Err(Problem::at(START, "", EMPTY)) } else { Ok(all) }
}

const START: Position = Position { line: 1, column: 1 };
const EMPTY: &str = "the text is empty";

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    /// By anchor id: the node and how many nodes it has.
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
    end: Position,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        Self { parser: Parser::new_from_str(text), anchors: HashMap::new(), nodes: 0, end: START }
    }

    fn next(&mut self) -> Result<(Event<'a>, Position), Problem> {
        match self.parser.next_event() {
            Some(Ok((event, Span { start, .. }))) => {
                self.end = position(&start);
                Ok((event, self.end))
            }
            Some(Err(error)) => Err(not_yaml(&error)),
            None => Ok((Event::StreamEnd, self.end)),
        }
    }

    /// The next document; `None` at the end of the text.
    fn document(&mut self) -> Result<Option<Node>, Problem> {
        loop {
            match self.next()? {
                (Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing, _) => {}
                (Event::StreamEnd, _) => return Ok(None),
                (event, at) => return self.node(event, at, 0).map(Some),
            }
        }
    }

    fn node(&mut self, event: Event<'a>, position: Position, depth: usize) -> Result<Node, Problem> {
        if depth > MAX_DEPTH {
            return Err(Problem::at(position, "", format!("is nested deeper than {MAX_DEPTH} levels")));
        }
        let before = self.nodes;
        self.count(1, position)?;
        let (anchor, value) = match event {
            Event::Alias(id) => {
                let Some((node, size)) = self.anchors.get(&id) else {
                    return Err(Problem::at(position, "", "an alias stands inside its own anchor"));
                };
                let size = *size;
                within(self.nodes + size, position)?;
                self.nodes += size;
                return Ok(node.clone());
            }
            Event::Scalar(text, style, anchor, tag) => (anchor, scalar(text, style, tag.as_deref())),
            Event::SequenceStart(anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break,
                        (event, at) => items.push(self.node(event, at, depth + 1)?),
                    }
                }
                (anchor, NodeValue::List(items))
            }
            Event::MappingStart(anchor, _) => (anchor, NodeValue::Map(self.map(depth)?)),
            _ => return Err(Problem::at(position, "", "the text ends in the middle of a value")),
        };
        let node = Node { position, value };
        if anchor != 0 {
            // What an alias will copy is a copy itself, and counts.
            let size = self.nodes - before;
            self.count(size, position)?;
            self.anchors.insert(anchor, (node.clone(), size));
        }
        Ok(node)
    }

    fn map(&mut self, depth: usize) -> Result<Vec<Entry>, Problem> {
        let mut entries = MapBuilder::default();
        let mut merges = Vec::new();
        loop {
            let (key, position) = match self.next()? {
                (Event::MappingEnd, _) => break,
                found => found,
            };
            let (ignored, plain) = match &key {
                Event::Scalar(_, style, _, tag) => (
                    tag.as_ref().is_some_and(|t| t.handle == "!" && t.suffix == "ignore"),
                    *style == ScalarStyle::Plain,
                ),
                _ => (false, false),
            };
            let key = match key {
                Event::Scalar(text, _, 0, _) => text.into_owned().into_boxed_str(),
                event => match self.node(event, position, depth + 1)?.value {
                    NodeValue::String(text) | NodeValue::Number(text) => text,
                    NodeValue::Bool(value) => value.to_string().into(),
                    NodeValue::Null => "null".into(),
                    NodeValue::List(_) | NodeValue::Map(_) => {
                        return Err(Problem::at(position, "", "found a list or map as a key, which must be text"));
                    }
                },
            };
            let (event, at) = self.next()?;
            let value = self.node(event, at, depth + 1)?;
            if ignored {
                continue;
            }
            if plain && *key == *"<<" {
                merges.push(value);
                continue;
            }
            entries.set(Entry { position, key, value });
        }
        let mut entries = entries.finish();
        for merge in merges {
            self.merge(&mut entries, merge)?;
        }
        Ok(entries)
    }

    /// A merge key: the entries of a map, or of each map of a list, that are not there yet.
    fn merge(&mut self, entries: &mut Vec<Entry>, from: Node) -> Result<(), Problem> {
        match from.value {
            NodeValue::Map(found) => {
                for entry in found {
                    if entries.iter().all(|e| e.key != entry.key) {
                        entries.push(entry);
                    }
                }
                Ok(())
            }
            NodeValue::List(maps) if maps.iter().all(|m| matches!(m.value, NodeValue::Map(_))) => {
                maps.into_iter().try_for_each(|map| self.merge(entries, map))
            }
            _ => Err(Problem::at(from.position, "", "found no map for the merge key \"<<\"")),
        }
    }

    fn count(&mut self, more: usize, position: Position) -> Result<(), Problem> {
        self.nodes += more;
        within(self.nodes, position)
    }
}

fn within(nodes: usize, position: Position) -> Result<(), Problem> {
    if nodes <= MAX_NODES {
        return Ok(());
    }
    Err(Problem::at(position, "", format!("the text makes more than {MAX_NODES} values, aliases expanded")))
}

fn position(marker: &Marker) -> Position {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Position { line: number(marker.line()).max(1), column: number(marker.col()).saturating_add(1) }
}

fn not_yaml(error: &ScanError) -> Problem {
    Problem::at(position(error.marker()), "", format!("is not YAML: {}", error.info()))
}

fn scalar(text: Cow<'_, str>, style: ScalarStyle, tag: Option<&Tag>) -> NodeValue {
    let quoted = style != ScalarStyle::Plain || tag.is_some_and(|t| t.is_yaml_core_schema() && t.suffix == "str");
    if quoted {
        return NodeValue::String(text.into());
    }
    if matches!(&*text, "" | "~" | "null" | "Null" | "NULL") {
        return NodeValue::Null;
    }
    if let Some(value) = boolean(&text) {
        return NodeValue::Bool(value);
    }
    match integer(&text) {
        // Larger ones are text in Envoy too: protobuf takes text for numbers, and JSON's have 53 bits.
        Some(n) if i32::try_from(n).is_ok() => NodeValue::Number(n.to_string().into()),
        Some(n) => NodeValue::String(n.to_string().into()),
        None => NodeValue::String(text.into()),
    }
}

fn boolean(text: &str) -> Option<bool> {
    if text.len() > 5 {
        return None;
    }
    let rest = text.get(1..)?;
    let one_case = text.bytes().all(|b| b.is_ascii_lowercase())
        || text.as_bytes()[0].is_ascii_uppercase()
            && (rest.bytes().all(|b| b.is_ascii_lowercase()) || rest.bytes().all(|b| b.is_ascii_uppercase()));
    if !one_case {
        return None;
    }
    match &*text.to_ascii_lowercase() {
        "true" | "yes" | "on" | "y" => Some(true),
        "false" | "no" | "off" | "n" => Some(false),
        _ => None,
    }
}

/// A whole number as C's `strtoll` with base 0 reads it.
fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if !digits.as_bytes().first()?.is_ascii_digit() {
        return None;
    }
    let magnitude = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) if !hex.starts_with('+') => i128::from_str_radix(hex, 16),
        Some(_) => return None,
        None if digits.len() > 1 && digits.starts_with('0') => i128::from_str_radix(digits, 8),
        None => digits.parse(),
    }
    .ok()?;
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> NodeValue {
        let node = parse(&format!("k: {text}\n")).unwrap();
        node.get("k").unwrap().value.clone()
    }

    #[test]
    fn scalars_are_envoys() {
        for text in ["true", "yes", "On", "Y", "TRUE"] {
            assert_eq!(value(text), NodeValue::Bool(true), "{text}");
        }
        assert_eq!(value("tRue"), NodeValue::String("tRue".into()));
        assert_eq!(value("'yes'"), NodeValue::String("yes".into()));
        for (text, number) in [("12", "12"), ("0x10", "16"), ("010", "8"), ("-3", "-3"), ("+4", "4")] {
            assert_eq!(value(text), NodeValue::Number(number.into()));
        }
        for text in ["08", "1.5", "1_000", "12345678901", "0x", "\"7\""] {
            assert_eq!(value(text), NodeValue::String(text.trim_matches('"').into()));
        }
        for text in ["", "~", "null", "NULL"] {
            assert_eq!(value(text), NodeValue::Null);
        }
        assert_eq!(value("|\n  12\n"), NodeValue::String("12\n".into()));
    }

    #[test]
    fn anchors_merge_keys_ignored_entries_and_double_keys() {
        let node =
            parse("!ignore shared: &s {a: 1, b: 2}\nx: *s\ny:\n  <<: *s\n  b: 3\nz: 1\nz: 2\n---\nsecond: document\n")
                .unwrap();
        assert_eq!(node.get("shared"), None);
        assert_eq!(node.get("second"), None);
        assert_eq!(node.get("x").unwrap().get("a").unwrap().value, NodeValue::Number("1".into()));
        assert_eq!(node.get("y").unwrap().get("a").unwrap().value, NodeValue::Number("1".into()));
        assert_eq!(node.get("y").unwrap().get("b").unwrap().value, NodeValue::Number("3".into()));
        assert_eq!(node.get("z").unwrap().value, NodeValue::Number("2".into()));
    }

    #[test]
    fn documents_are_told_apart() {
        let all = parse_all("# first\na: 1\n---\n---\na: 2\n...\n").unwrap();
        let values: Vec<_> = all.iter().map(|node| node.get("a").unwrap().value.clone()).collect();
        assert_eq!(values, [NodeValue::Number("1".into()), NodeValue::Number("2".into())]);
        assert_eq!(all[1].position.line, 5);
        assert!(parse_all("# nothing\n").is_err() && parse_all("---\n---\n").is_err());
        assert_eq!(parse_all("a: 1\n---\nb: [\n").unwrap_err().position.unwrap().line, 4);
    }

    #[test]
    fn bad_texts_end_in_a_problem_with_a_place() {
        for text in ["a: [b", "a: b: c", "", "{", "a: *nope", "? [x]\n: y", "&a [*a]", "a: 'x"] {
            let problem = parse(text).unwrap_err();
            assert!(problem.position.is_some(), "{text}");
        }
        assert_eq!(parse("a: 1\nb: [x\n").unwrap_err().position.unwrap().line, 3);
    }

    #[test]
    fn bombs_are_refused() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for i in 1..12 {
            let alias = format!("*a{}", i - 1);
            bomb += &format!("a{i}: &a{i} [{}]\n", [&*alias; 10].join(","));
        }
        assert!(parse(&bomb).unwrap_err().message.contains("values"));
        let deep = format!("{}{}", "[".repeat(150), "]".repeat(150));
        assert!(parse(&deep).unwrap_err().message.contains("deeper"));
    }
}
