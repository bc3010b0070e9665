//! Reads JSON text into a [`Node`] tree: RFC 8259, and what Envoy's reader takes beyond it (a comma after the last
//! element, single quotes, keys that are bare words).
//!
//! Invariant: any input ends in a tree within the limits of `node.rs` or in a problem with a place; never a panic.

use crate::{
    node::{Entry, MAX_DEPTH, MapBuilder, Node, NodeValue},
    problem::{Position, Problem},
};

/// The tree of a JSON text.
pub fn parse(text: &str) -> Result<Node, Problem> {
    let mut reader = Reader { text, at: 0, line: 1, line_start: 0 };
    let node = reader.value(0)?;
    reader.space();
    if reader.at < text.len() {
        return Err(reader.wrong("the end of the text"));
    }
    Ok(node)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    line: u32,
    line_start: usize,
}

impl Reader<'_> {
    fn position(&self) -> Position {
        let column = self.text.get(self.line_start..self.at).map_or(0, |s| s.chars().count());
        Position { line: self.line, column: u32::try_from(column).unwrap_or(u32::MAX).saturating_add(1) }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek() {
            self.at += 1;
            if self.text.as_bytes()[self.at - 1] == b'\n' {
                self.line = self.line.saturating_add(1);
                self.line_start = self.at;
            }
        }
    }

    fn wrong(&self, expected: &str) -> Problem {
        let found = match self.text.get(self.at..).and_then(|s| s.chars().next()) {
            Some(c) => format!("{c:?}"),
            None => "the end of the text".to_owned(),
        };
        Problem::at(self.position(), "", format!("is not JSON: found {found}, expected {expected}"))
    }

    fn take(&mut self, byte: u8) -> bool {
        self.space();
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn value(&mut self, depth: usize) -> Result<Node, Problem> {
        self.space();
        let position = self.position();
        if depth > MAX_DEPTH {
            return Err(Problem::at(position, "", format!("is nested deeper than {MAX_DEPTH} levels")));
        }
        let value = match self.peek() {
            Some(b'{') => self.map(depth)?,
            Some(b'[') => self.list(depth)?,
            Some(b'"' | b'\'') => NodeValue::String(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            _ => {
                let rest = &self.text.as_bytes()[self.at..];
                let words =
                    [("true", NodeValue::Bool(true)), ("false", NodeValue::Bool(false)), ("null", NodeValue::Null)];
                let Some((word, value)) = words.into_iter().find(|(word, _)| rest.starts_with(word.as_bytes())) else {
                    return Err(self.wrong("a value"));
                };
                self.at += word.len();
                value
            }
        };
        Ok(Node { position, value })
    }

    fn map(&mut self, depth: usize) -> Result<NodeValue, Problem> {
        self.at += 1;
        let mut entries = MapBuilder::default();
        while !self.take(b'}') {
            let position = self.position();
            let key = match self.peek() {
                Some(b'"' | b'\'') => self.string()?,
                Some(b'a'..=b'z' | b'A'..=b'Z' | b'_') => self.bare_key(),
                _ => return Err(self.wrong("a key in quotes or '}'")),
            };
            if !self.take(b':') {
                return Err(self.wrong("':'"));
            }
            let value = self.value(depth + 1)?;
            entries.set(Entry { position, key, value });
            if !self.take(b',') {
                if self.take(b'}') {
                    break;
                }
                return Err(self.wrong("',' or '}'"));
            }
        }
        Ok(NodeValue::Map(entries.finish()))
    }

    fn bare_key(&mut self) -> Box<str> {
        let start = self.at;
        while matches!(self.peek(), Some(b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'0'..=b'9')) {
            self.at += 1;
        }
        self.text[start..self.at].into()
    }

    fn list(&mut self, depth: usize) -> Result<NodeValue, Problem> {
        self.at += 1;
        let mut items = Vec::new();
        while !self.take(b']') {
            items.push(self.value(depth + 1)?);
            if !self.take(b',') {
                if self.take(b']') {
                    break;
                }
                return Err(self.wrong("',' or ']'"));
            }
        }
        Ok(NodeValue::List(items))
    }

    fn number(&mut self) -> Result<NodeValue, Problem> {
        let start = self.at;
        while matches!(self.peek(), Some(b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')) {
            self.at += 1;
        }
        let text = &self.text[start..self.at];
        let digits = text.strip_prefix('-').unwrap_or(text);
        let leading_zero = digits.len() > 1 && digits.starts_with('0') && digits.as_bytes()[1].is_ascii_digit();
        if leading_zero
            || digits.ends_with('.')
            || text.parse::<f64>().is_err()
            || !digits.starts_with(|c: char| c.is_ascii_digit())
        {
            self.at = start;
            let about = "is not JSON: what begins here as a number is none (text stands in quotes)";
            return Err(Problem::at(self.position(), "", about));
        }
        Ok(NodeValue::Number(text.into()))
    }

    /// A string; the next byte is its quote.
    fn string(&mut self) -> Result<Box<str>, Problem> {
        let bytes = self.text.as_bytes();
        let quote = bytes[self.at];
        self.at += 1;
        let start = self.at;
        let mut out = String::new();
        let mut copied = start;
        loop {
            match bytes.get(self.at) {
                Some(b) if *b == quote => {
                    // Both ends stand beside an ASCII byte.
                    out.push_str(&self.text[copied..self.at]);
                    self.at += 1;
                    return Ok(out.into_boxed_str());
                }
                Some(b'\\') => {
                    out.push_str(&self.text[copied..self.at]);
                    self.at += 1;
                    out.push(self.escape()?);
                    copied = self.at;
                }
                Some(b) if *b >= 0x20 => self.at += 1,
                _ => return Err(self.wrong("the end of the string")),
            }
        }
    }

    /// What follows a backslash.
    fn escape(&mut self) -> Result<char, Problem> {
        let c = match self.peek() {
            Some(c @ (b'"' | b'\\' | b'/' | b'\'')) => char::from(c),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode(),
            _ => return Err(self.wrong("an escape")),
        };
        self.at += 1;
        Ok(c)
    }

    /// `uXXXX`, or two of them that are a surrogate pair.
    fn unicode(&mut self) -> Result<char, Problem> {
        let high = self.hex()?;
        let code = if (0xd800..0xdc00).contains(&high) && self.text.as_bytes()[self.at..].starts_with(b"\\u") {
            self.at += 1;
            let low = self.hex()?;
            if !(0xdc00..0xe000).contains(&low) {
                return Err(self.wrong("the second half of a surrogate pair"));
            }
            0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00)
        } else {
            high
        };
        char::from_u32(code).ok_or_else(|| self.wrong("both halves of a surrogate pair"))
    }

    fn hex(&mut self) -> Result<u32, Problem> {
        let digits = self.text.get(self.at + 1..self.at + 5).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        match digits.and_then(|d| u32::from_str_radix(d, 16).ok()) {
            Some(code) => {
                self.at += 5;
                Ok(code)
            }
            None => Err(self.wrong("four hex digits")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_escapes_and_places() {
        let node = parse("{\n\t\"a\": [1, -2.5e3, true, null,],\n  b: {},\n 'b2': \"\\ud83d\\ude00\\/\\n\",}").unwrap();
        let NodeValue::List(items) = &node.get("a").unwrap().value else { panic!("a list") };
        assert_eq!(items[1].value, NodeValue::Number("-2.5e3".into()));
        assert_eq!(items[3].value, NodeValue::Null);
        assert_eq!(node.get("b2").unwrap().value, NodeValue::String("\u{1f600}/\n".into()));
        assert_eq!(node.get("b2").unwrap().position, Position { line: 4, column: 8 });
    }

    #[test]
    fn bad_texts_end_in_a_problem() {
        for text in [
            "",
            "{",
            "{\"a\"}",
            "[1 2]",
            "01",
            "1.",
            "--1",
            "\"\\x\"",
            "\"\\ud800\"",
            "\"a\nb\"",
            "{} x",
            "tru",
            "\"é",
            "\"\\u12é4\"",
        ] {
            assert!(parse(text).unwrap_err().position.is_some(), "{text}");
        }
        assert!(parse(&"[".repeat(1000)).unwrap_err().message.contains("deeper"));
    }
}
