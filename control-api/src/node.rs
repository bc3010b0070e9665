//! A configuration text as a tree: what the YAML and the JSON reader give and the encoder takes.
//!
//! Every node knows its place in the text, so that a problem found later, by field path, still gets its line.

use crate::problem::{Position, Problem};
use std::collections::HashMap;

/// The deepest nesting that is read.
pub const MAX_DEPTH: usize = 100;
/// The most nodes that one text may make, aliases expanded.
pub const MAX_NODES: usize = 2_000_000;

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where it starts.
    pub position: Position,
    /// What it is.
    pub value: NodeValue,
}

/// What a text can say.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum NodeValue {
    Null,
    Bool(bool),
    /// A number as it was written, in JSON's notation.
    Number(Box<str>),
    String(Box<str>),
    List(Vec<Node>),
    /// In the order of the text; keys are unique, the last of equal ones counts.
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Where the key starts.
    pub position: Position,
    /// The key's text.
    pub key: Box<str>,
    /// What it leads to.
    pub value: Node,
}

impl Node {
    /// The value of `key`, if this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|e| &e.value)
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            NodeValue::Map(entries) => entries.iter().find(|e| *e.key == *key),
            _ => None,
        }
    }
}

/// A map under construction: the last of equal keys counts.
#[derive(Default)]
pub(crate) struct MapBuilder {
    entries: Vec<Entry>,
    /// Where each key stands; used once there are too many keys to look at each.
    places: HashMap<Box<str>, usize>,
}

impl MapBuilder {
    pub(crate) fn set(&mut self, entry: Entry) {
        let old = if self.entries.len() < 16 {
            self.entries.iter().position(|e| e.key == entry.key)
        } else {
            if self.places.is_empty() {
                self.places.extend(self.entries.iter().enumerate().map(|(i, e)| (e.key.clone(), i)));
            }
            self.places.get(&entry.key).copied()
        };
        if let Some(old) = old.and_then(|i| self.entries.get_mut(i)) {
            *old = entry;
            return;
        }
        if !self.places.is_empty() {
            self.places.insert(entry.key.clone(), self.entries.len());
        }
        self.entries.push(entry);
    }

    pub(crate) fn finish(self) -> Vec<Entry> {
        self.entries
    }
}

/// Gives the problems that have no place one, by their paths. Of several texts, the later ones were merged over the
/// earlier ones: their repeated fields follow those of the earlier ones. A path that a text does not hold gets the
/// place of its nearest parent.
pub fn locate(texts: &[Node], problems: &mut [Problem]) {
    for problem in problems.iter_mut().filter(|p| p.position.is_none()) {
        problem.position = find(texts, &problem.path);
    }
}

fn find(texts: &[Node], path: &str) -> Option<Position> {
    let mut nodes: Vec<&Node> = texts.iter().collect();
    let mut position = nodes.last()?.position;
    for step in Steps(path) {
        let mut place = None;
        let mut next = Vec::with_capacity(nodes.len());
        match step {
            Step::Index(mut index) => {
                for node in &nodes {
                    match &node.value {
                        NodeValue::List(items) if index < items.len() => {
                            place = Some(items[index].position);
                            next.push(&items[index]);
                            break;
                        }
                        NodeValue::List(items) => index -= items.len(),
                        // A repeated field may be written as its only element.
                        _ if index == 0 => next.push(*node),
                        _ => index -= 1,
                    }
                }
            }
            Step::Name(name) => {
                for node in &nodes {
                    let camel = camel_case(name);
                    if let Some(entry) = node.entry(name).or_else(|| node.entry(&camel)) {
                        place = Some(entry.position);
                        next.push(&entry.value);
                    }
                }
            }
            Step::Key(key) => {
                for node in &nodes {
                    if let Some(entry) = node.entry(&key) {
                        place = Some(entry.position);
                        next.push(&entry.value);
                    }
                }
            }
        }
        position = place.unwrap_or(position);
        if next.is_empty() {
            break;
        }
        nodes = next;
    }
    Some(position)
}

enum Step<'a> {
    Name(&'a str),
    Index(usize),
    Key(String),
}

/// The steps of a field path: `a.b[2].c["k"]`.
struct Steps<'a>(&'a str);

impl<'a> Iterator for Steps<'a> {
    type Item = Step<'a>;

    fn next(&mut self) -> Option<Step<'a>> {
        let rest = self.0.strip_prefix('.').unwrap_or(self.0);
        if rest.is_empty() {
            return None;
        }
        if let Some(quoted) = rest.strip_prefix("[\"") {
            let mut key = String::new();
            let mut chars = quoted.char_indices();
            while let Some((i, c)) = chars.next() {
                match c {
                    '"' => {
                        self.0 = quoted[i + 1..].strip_prefix(']').unwrap_or_default();
                        return Some(Step::Key(key));
                    }
                    '\\' => key.extend(chars.next().map(|(_, c)| c)),
                    c => key.push(c),
                }
            }
            self.0 = "";
            return Some(Step::Key(key));
        }
        if let Some(index) = rest.strip_prefix('[') {
            let (index, after) = index.split_once(']').unwrap_or((index, ""));
            self.0 = after;
            return Some(index.parse().map_or_else(|_| Step::Key(index.to_owned()), Step::Index));
        }
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        self.0 = &rest[end..];
        Some(Step::Name(&rest[..end]))
    }
}

/// `stat_prefix` as `statPrefix`.
fn camel_case(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for c in name.chars() {
        if c == '_' {
            upper = true;
        } else {
            out.push(if upper { c.to_ascii_uppercase() } else { c });
            upper = false;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    fn line(texts: &[Node], path: &str) -> u32 {
        let mut problems = [Problem::new(path, "x")];
        locate(texts, &mut problems);
        problems[0].position.unwrap().line
    }

    #[test]
    fn paths_lead_to_lines() {
        let base = yaml::parse("a:\n  bC:\n  - x: 1\n  - x: 2\nm:\n  k\"q: 5\n").unwrap();
        assert_eq!(line(std::slice::from_ref(&base), "a.b_c[1].x"), 4);
        assert_eq!(line(std::slice::from_ref(&base), "a.b_c[1].missing.deeper"), 4);
        assert_eq!(line(std::slice::from_ref(&base), r#"m["k\"q"]"#), 6);
        assert_eq!(line(std::slice::from_ref(&base), ""), 1);
        assert_eq!(line(std::slice::from_ref(&base), "a]["), 1);

        let over = yaml::parse("\n\n\n\n\n\n\n\na:\n  b_c:\n  - x: 3\n").unwrap();
        let both = [base, over];
        assert_eq!(line(&both, "a.b_c[0].x"), 3);
        assert_eq!(line(&both, "a.b_c[2].x"), 11);
        assert_eq!(line(&both, "a"), 9);
    }
}
