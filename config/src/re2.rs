//! Regular expressions with RE2's syntax and meaning, as Envoy runs them: over bytes (Latin-1), not over characters.
//!
//! A pattern is translated, piece by piece, into the syntax of the `regex` crate with Unicode off. What RE2 refuses is
//! refused; what it reads differently (`[a&&b]`, `{`, `\Q..\E`, octal escapes, `\s` without `\v`) keeps RE2's meaning.

use regex::bytes::{Regex, RegexBuilder};
use std::fmt::Write as _;

/// The most repetitions that RE2 takes.
const MOST_REPETITIONS: u32 = 1000;
/// Bytes that a compiled expression may take.
const MOST_MEMORY: usize = 4 << 20;

/// Compiles `pattern`; if `whole`, it must match all of its input.
///
/// # Errors
/// Says what RE2 would not take.
pub fn compile(pattern: &str, whole: bool) -> Result<Regex, String> {
    let translated = Translation { rest: pattern.as_bytes(), out: String::with_capacity(pattern.len() + 8) }.run()?;
    let translated = if whole { format!(r"\A(?:{translated})\z") } else { translated };
    RegexBuilder::new(&translated).unicode(false).size_limit(MOST_MEMORY).build().map_err(|e| match e {
        regex::Error::CompiledTooBig(_) => "it compiles to more than 4 MiB".to_owned(),
        other => {
            let text = other.to_string();
            text.lines().last().unwrap_or_default().trim_start_matches("error: ").trim().to_owned()
        }
    })
}

struct Translation<'p> {
    rest: &'p [u8],
    out: String,
}

impl Translation<'_> {
    fn run(mut self) -> Result<String, String> {
        // Whether what was read last is a repetition, which cannot be repeated.
        let mut repeated = false;
        while let Some(byte) = self.next() {
            let was_repeated = std::mem::replace(&mut repeated, false);
            match byte {
                b'*' | b'+' | b'?' => {
                    if was_repeated {
                        return Err(format!("bad repetition operator before {:?}", byte as char));
                    }
                    self.out.push(byte as char);
                    self.lazy();
                    repeated = true;
                }
                b'{' => match repetition(self.rest)? {
                    Some(length) if was_repeated => {
                        return Err(format!("bad repetition operator {{{}", text(&self.rest[..length])));
                    }
                    Some(length) => {
                        let _ = write!(self.out, "{{{}", text(&self.rest[..length]));
                        self.rest = &self.rest[length..];
                        self.lazy();
                        repeated = true;
                    }
                    None => self.literal(b'{'),
                },
                b'.' | b'^' | b'$' | b'|' | b')' => self.out.push(byte as char),
                b'(' => self.group()?,
                b'[' => self.class()?,
                b'\\' => self.escape()?,
                other => self.literal(other),
            }
        }
        Ok(self.out)
    }

    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn take(&mut self, text: &[u8]) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// The `?` that makes a repetition take as little as it can.
    fn lazy(&mut self) {
        if self.take(b"?") {
            self.out.push('?');
        }
    }

    fn literal(&mut self, byte: u8) {
        if byte.is_ascii_alphanumeric() {
            self.out.push(byte as char);
        } else {
            let _ = write!(self.out, r"\x{byte:02X}");
        }
    }

    /// After `(`. Names of groups are dropped: groups are used by their number.
    fn group(&mut self) -> Result<(), String> {
        if !self.take(b"?") {
            self.out.push('(');
            return Ok(());
        }
        if self.take(b"P<") || self.take(b"<") {
            let end = memchr(b'>', self.rest).filter(|end| *end > 0).ok_or("bad named capture group")?;
            if !self.rest[..end].iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_') {
                return Err(format!("bad named capture group: {}", text(&self.rest[..end])));
            }
            self.rest = &self.rest[end + 1..];
            self.out.push('(');
            return Ok(());
        }
        self.out.push_str("(?");
        loop {
            match self.next() {
                Some(flag @ (b'i' | b'm' | b's' | b'U' | b'-')) => self.out.push(flag as char),
                Some(end @ (b':' | b')')) => {
                    self.out.push(end as char);
                    return Ok(());
                }
                _ => return Err("bad perl operator: after (? come flags out of imsU, : or P<name>".into()),
            }
        }
    }

    /// After a backslash that is not in a class.
    fn escape(&mut self) -> Result<(), String> {
        let rest = self.rest;
        match self.next().ok_or("trailing \\")? {
            b'Q' => {
                let end = self.rest.windows(2).position(|two| two == br"\E");
                let (quoted, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
                self.rest = rest.get(2..).unwrap_or_default();
                quoted.iter().for_each(|byte| self.literal(*byte));
            }
            b'C' => self.out.push_str("(?s:.)"),
            b'A' => self.out.push_str(r"\A"),
            b'z' => self.out.push_str(r"\z"),
            b'b' => self.out.push_str(r"\b"),
            b'B' => self.out.push_str(r"\B"),
            name @ (b'd' | b'D' | b's' | b'S' | b'w' | b'W' | b'p' | b'P') => {
                let set = self.named_set(name)?;
                let _ = write!(self.out, "[{set}]");
            }
            _ => {
                self.rest = rest;
                let byte = self.escaped_byte()?;
                let _ = write!(self.out, r"\x{byte:02X}");
            }
        }
        Ok(())
    }

    /// After `[`.
    fn class(&mut self) -> Result<(), String> {
        const MISSING: &str = "missing ]";
        self.out.push('[');
        if self.take(b"^") {
            self.out.push('^');
        }
        let mut first = true;
        loop {
            if !std::mem::replace(&mut first, false) && self.take(b"]") {
                self.out.push(']');
                return Ok(());
            }
            if self.rest.starts_with(b"[:")
                && let Some(end) = self.rest.windows(2).position(|two| two == b":]")
            {
                let name = text(&self.rest[2..end]);
                const NAMES: [&str; 14] = [
                    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
                    "upper", "word", "xdigit",
                ];
                if !NAMES.contains(&name.trim_start_matches('^')) {
                    return Err(format!("invalid character class range: [:{name}:]"));
                }
                let _ = write!(self.out, "[:{name}:]");
                self.rest = &self.rest[end + 2..];
                continue;
            }
            if let [b'\\', name @ (b'd' | b'D' | b's' | b'S' | b'w' | b'W' | b'p' | b'P'), ..] = self.rest {
                self.rest = &self.rest[2..];
                let set = self.named_set(*name)?;
                self.out.push_str(&set);
                continue;
            }
            let low = self.class_byte().ok_or(MISSING)??;
            let mut high = low;
            if self.rest.first() == Some(&b'-') && self.rest.get(1).is_some_and(|next| *next != b']') {
                self.rest = &self.rest[1..];
                high = self.class_byte().ok_or(MISSING)??;
            }
            if high < low {
                return Err(format!("invalid character class range: {}-{}", low as char, high as char));
            }
            let _ = write!(self.out, r"\x{low:02X}-\x{high:02X}");
        }
    }

    fn class_byte(&mut self) -> Option<Result<u8, String>> {
        match self.next()? {
            b'\\' => Some(self.escaped_byte()),
            byte => Some(Ok(byte)),
        }
    }

    /// After a backslash: one byte.
    fn escaped_byte(&mut self) -> Result<u8, String> {
        let octal = |byte: Option<&u8>| byte.filter(|b| (b'0'..=b'7').contains(*b)).map(|b| u32::from(b - b'0'));
        let first = self.next().ok_or("trailing \\")?;
        let bad = || Err(format!("invalid escape sequence: \\{}", first as char));
        match first {
            // A single digit other than 0 would be a backreference.
            b'1'..=b'7' if octal(self.rest.first()).is_none() => bad(),
            b'0'..=b'7' => {
                let mut value = u32::from(first - b'0');
                for _ in 0..2 {
                    let Some(digit) = octal(self.rest.first()) else { break };
                    value = value * 8 + digit;
                    self.rest = &self.rest[1..];
                }
                u8::try_from(value).or_else(|_| bad())
            }
            b'x' => {
                let braced = self.take(b"{");
                let digits = self.rest.iter().take_while(|b| b.is_ascii_hexdigit()).count();
                let digits = if braced { digits } else { digits.min(2) };
                let value = u8::from_str_radix(text(self.rest.get(..digits).unwrap_or_default()), 16);
                self.rest = &self.rest[digits..];
                match value {
                    Ok(value) if !braced && digits == 2 => Ok(value),
                    Ok(value) if braced && self.take(b"}") => Ok(value),
                    _ => bad(),
                }
            }
            b'a' => Ok(0x07),
            b'f' => Ok(0x0C),
            b'n' => Ok(b'\n'),
            b'r' => Ok(b'\r'),
            b't' => Ok(b'\t'),
            b'v' => Ok(0x0B),
            punctuation if punctuation.is_ascii() && !punctuation.is_ascii_alphanumeric() => Ok(punctuation),
            _ => bad(),
        }
    }

    /// What `\d` and its kin, `\p` and `\P` stand for, as the inside of a class.
    fn named_set(&mut self, name: u8) -> Result<String, String> {
        let set = match name {
            b'd' => "0-9",
            b'D' => r"\x00-\x2F\x3A-\xFF",
            b's' => r"\t\n\x0C\r\x20",
            b'S' => r"\x00-\x08\x0B\x0E-\x1F\x21-\xFF",
            b'w' => "0-9A-Za-z_",
            b'W' => r"\x00-\x2F\x3A-\x40\x5B-\x5E\x60\x7B-\xFF",
            _ => return self.property(name == b'P'),
        };
        Ok(set.to_owned())
    }

    /// After `\p` or `\P`: the characters up to U+00FF that have a Unicode property.
    fn property(&mut self, mut negated: bool) -> Result<String, String> {
        let name = match self.next() {
            Some(b'{') => {
                let end = memchr(b'}', self.rest).ok_or("invalid character class range")?;
                let name = text(&self.rest[..end]).to_owned();
                self.rest = &self.rest[end + 1..];
                name
            }
            Some(letter) if letter.is_ascii_uppercase() => (letter as char).to_string(),
            _ => return Err("invalid character class range after \\p".into()),
        };
        let name = match name.strip_prefix('^') {
            Some(name) => {
                negated = !negated;
                name
            }
            None => &name,
        };
        let invalid = || format!("invalid character class range: \\p{{{name}}}");
        // Long names are scripts, and never have a prefix.
        let query = match name.len() {
            _ if name == "Any" => r"\A(?s:.)\z".to_owned(),
            1 | 2 => format!(r"\A\p{{{name}}}\z"),
            _ if name.starts_with("Is") => return Err(invalid()),
            _ => format!(r"\A\p{{sc={name}}}\z"),
        };
        let property = regex::Regex::new(&query).map_err(|_| invalid())?;
        let mut set = String::new();
        for byte in 0..=u8::MAX {
            if property.is_match((byte as char).encode_utf8(&mut [0; 4])) != negated {
                let _ = write!(set, r"\x{byte:02X}");
            }
        }
        // A class that nothing is in.
        Ok(if set.is_empty() { r"&&\x00&&\x01".to_owned() } else { set })
    }
}

/// The length of `n}`, `n,}` or `n,m}`; `None` if it is none, so that the brace stands for itself.
fn repetition(rest: &[u8]) -> Result<Option<usize>, String> {
    let Some(end) = memchr(b'}', rest) else { return Ok(None) };
    let inside = text(&rest[..end]);
    let (low, high) = inside.split_once(',').unwrap_or((inside, inside));
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if !is_number(low) || !(high.is_empty() || is_number(high)) {
        return Ok(None);
    }
    let number = |digits: &str| digits.parse().unwrap_or(u32::MAX);
    let low = number(low);
    let high = if high.is_empty() { low } else { number(high) };
    if low > MOST_REPETITIONS || high > MOST_REPETITIONS || high < low {
        return Err(format!("invalid repetition size: {{{inside}}}"));
    }
    Ok(Some(end + 1))
}

fn memchr(byte: u8, text: &[u8]) -> Option<usize> {
    text.iter().position(|b| *b == byte)
}

/// Pieces of a pattern that are used as text are ASCII, or are refused for not being that.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or("\u{FFFD}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: impl AsRef<[u8]>) -> bool {
        compile(pattern, true).unwrap().is_match(text.as_ref())
    }

    #[test]
    fn bytes_not_characters() {
        assert!(!matches("a.b", "a\u{e9}b") && matches("a..b", "a\u{e9}b"));
        assert!(matches("a\u{e9}b", "a\u{e9}b") && !matches("a[\u{e9}]b", "a\u{e9}b"));
        assert!(matches(r"a\xE9b", b"a\xe9b") && matches(r"a\pLb", b"a\xe9b") && !matches(r"a\PLb", b"a\xe9b"));
        assert!(!matches(r"\d", "\u{660}") && !matches(r"a\wb", "a\u{431}b"));
        assert!(matches(r"a\b.*", "a\u{e9}b"));
    }

    #[test]
    fn what_rust_reads_differently() {
        assert!(matches("[a&&b]+", "a&b") && matches("[[a]]", "a]") && matches(r"[\d-z]+", "1-z"));
        assert!(matches("{", "{") && matches("a{,2}b", "a{,2}b") && matches("a{2}?", "aa"));
        assert!(matches(r"a\Q.*\Eb", "a.*b") && matches(r"\07", b"\x07") && matches(r"\101", "A"));
        assert!(!matches(r"\s", b"\x0b") && matches(r"[\s]", " ") && matches(r"[^\S]", "\t"));
        assert!(matches("[]a]+", "a]") && !matches("[^]a]", "]") && matches("[a-]+", "a-"));
        assert!(matches("(?P<n>a)(?<m>b)", "ab") && matches("(?i:A)b", "ab") && matches(r"\p{^Greek}", "a"));
        assert!(!matches(r"\p{Greek}", "a") && !matches("a$", "a\n") && matches("[[:alpha:]]+", "aB"));
    }

    #[test]
    fn what_re2_refuses() {
        for bad in [
            "(",
            "a**",
            "a+*",
            "a{2}*",
            "a{1001}",
            "a{3,2}",
            "(?=a)",
            "(?<!a)b",
            r"\1",
            r"\x{100}",
            r"\u0041",
            "(?x) a",
            "(?u)a",
            "[[:foo:]]",
            "[a--b]",
            "[z-a]",
            "[a",
            r"\p{IsGreek}",
            r"\p{Letter}",
            r"\Z",
            "\\",
            "[a-\\d]",
            "(?P=n)",
            "(?>a)",
            "\\\u{e9}",
        ] {
            assert!(compile(bad, true).is_err(), "{bad}");
        }
    }
}
