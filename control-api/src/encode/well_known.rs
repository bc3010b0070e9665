//! The messages whose text form is not a map of their fields: `Duration`, `Struct`, `Any`, wrappers and their like.

use super::Encoder;
use crate::{
    node::{Entry, Node, NodeValue},
    schema::{Message, WellKnown},
    wire::{put_bytes, put_varint},
};

/// The most seconds that a `Duration` holds, either way: ten thousand years.
const MAX_SECONDS: i64 = 315_576_000_000;

impl Encoder {
    pub(super) fn well_known(&mut self, kind: WellKnown, message: Message, node: &Node) {
        match (kind, &node.value) {
            (WellKnown::Any, _) => self.any(node),
            (WellKnown::Struct, NodeValue::Map(entries)) => self.structure(message, entries),
            (WellKnown::Struct, _) => {
                self.problem(node.position, format!("found {}, allowed: a map", self.found(node)))
            }
            (WellKnown::ListValue, NodeValue::List(items)) => self.list(message, items),
            (WellKnown::ListValue, _) => {
                self.problem(node.position, format!("found {}, allowed: a list", self.found(node)))
            }
            (WellKnown::Value, _) => self.any_value(message, node),
            (WellKnown::Wrapper, NodeValue::Map(entries)) => self.fields(message, entries, false),
            (WellKnown::Wrapper, _) => {
                if let Some(field) = message.field(1) {
                    self.single(field, node);
                }
            }
            (WellKnown::Duration | WellKnown::Timestamp | WellKnown::FieldMask, NodeValue::Map(entries)) => {
                self.fields(message, entries, false);
            }
            (WellKnown::Duration, NodeValue::String(text)) => match duration(text) {
                Ok(time) => self.time(time),
                Err(why) => self.problem(node.position, format!("found {}, {why}", self.found(node))),
            },
            (WellKnown::Duration, _) => {
                self.problem(node.position, format!("found {}, allowed: a duration as \"1.5s\"", self.found(node)));
            }
            (WellKnown::Timestamp, NodeValue::String(text)) => match timestamp(text) {
                Some(time) => self.time(time),
                None => {
                    let about = format!("found {}, allowed: a time as \"2026-01-31T12:00:00Z\"", self.found(node));
                    self.problem(node.position, about);
                }
            },
            (WellKnown::Timestamp, _) => {
                let about = format!("found {}, allowed: a time as \"2026-01-31T12:00:00Z\"", self.found(node));
                self.problem(node.position, about);
            }
            (WellKnown::FieldMask, NodeValue::String(text)) => {
                for path in text.split(',').filter(|p| !p.is_empty()) {
                    put_bytes(&mut self.out, 1, snake_case(path).as_bytes());
                }
            }
            (WellKnown::FieldMask, _) => {
                self.problem(node.position, format!("found {}, allowed: field paths as \"a.b,c\"", self.found(node)));
            }
        }
    }

    fn time(&mut self, (seconds, nanos): (i64, i32)) {
        for (number, value) in [(1_u64, seconds), (2, i64::from(nanos))] {
            if value != 0 {
                put_varint(&mut self.out, number << 3);
                put_varint(&mut self.out, value as u64);
            }
        }
    }

    fn structure(&mut self, message: Message, entries: &[Entry]) {
        if let Some(field) = message.field(1)
            && let crate::schema::Kind::Message(entry) = field.kind()
        {
            self.map(field, entry, entries);
        }
    }

    fn list(&mut self, message: Message, items: &[Node]) {
        let Some(field) = message.field(1) else { return };
        for (i, item) in items.iter().enumerate() {
            self.below(format_args!("[{i}]"), |e| e.single(field, item));
        }
    }

    /// Writes a `Value`: 1 null, 2 number, 3 text, 4 bool, 5 map, 6 list.
    fn any_value(&mut self, message: Message, node: &Node) {
        match &node.value {
            NodeValue::Null => self.out.extend([1 << 3, 0]),
            NodeValue::Bool(value) => self.out.extend([4 << 3, u8::from(*value)]),
            NodeValue::Number(_) => {
                self.out.push(2 << 3 | 1);
                self.scalar(crate::schema::Kind::Double, node);
            }
            NodeValue::String(text) => put_bytes(&mut self.out, 3, text.as_bytes()),
            NodeValue::Map(_) | NodeValue::List(_) => {
                let number = if matches!(node.value, NodeValue::Map(_)) { 5 } else { 6 };
                if let Some(crate::schema::Kind::Message(inner)) = message.field(number).map(|f| f.kind()) {
                    self.nested(number, |e| e.message(inner, node));
                }
            }
        }
    }
}

/// Seconds and nanoseconds of `1.5s`.
fn duration(text: &str) -> Result<(i64, i32), &'static str> {
    let number = text.strip_suffix('s').ok_or("allowed: seconds with an \"s\" at the end, as \"1.5s\"")?;
    let (negative, number) = number.strip_prefix('-').map_or((false, number), |n| (true, n));
    let (whole, fraction) = number.split_once('.').map_or((number, None), |(w, f)| (w, Some(f)));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) {
        return Err("allowed: a number of seconds, as \"1.5s\"");
    }
    let seconds: i64 = whole.parse().ok().filter(|s| *s <= MAX_SECONDS).ok_or("allowed: up to 315576000000s")?;
    let nanos = match fraction {
        None => 0,
        Some(fraction) if digits(fraction) && fraction.len() <= 9 => {
            format!("{fraction:0<9}").parse().map_err(|_| "allowed: up to nine digits after the point")?
        }
        Some(_) => return Err("allowed: up to nine digits after the point"),
    };
    Ok(if negative { (-seconds, -nanos) } else { (seconds, nanos) })
}

/// Seconds since 1970 and nanoseconds of an RFC 3339 time.
fn timestamp(text: &str) -> Option<(i64, i32)> {
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let mark = |at: usize, marks: &[u8]| text.as_bytes().get(at).filter(|b| marks.contains(b)).map(|_| ());
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    for (at, marks) in [(4, &b"-"[..]), (7, b"-"), (10, b"Tt"), (13, b":"), (16, b":")] {
        mark(at, marks)?;
    }
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_of = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let month_days = days_of.get(usize::try_from(month).ok()?.checked_sub(1)?)?;
    if year < 1 || !(1..=*month_days).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut nanos = 0;
    if let Some(after) = rest.strip_prefix('.') {
        let len = after.bytes().take_while(u8::is_ascii_digit).count();
        if len == 0 || len > 9 {
            return None;
        }
        nanos = format!("{:0<9}", &after[..len]).parse().ok()?;
        rest = &after[len..];
    }
    let offset = match rest.as_bytes() {
        b"Z" | b"z" => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let two = |a: &u8, b: &u8| {
                (a.is_ascii_digit() && b.is_ascii_digit()).then(|| i64::from(a - b'0') * 10 + i64::from(b - b'0'))
            };
            let seconds = two(h1, h2)? * 3600 + two(m1, m2)? * 60;
            if *sign == b'+' { seconds } else { -seconds }
        }
        _ => return None,
    };
    // Days before the year, counted from the year 1; 719162 of them lie before 1970.
    let before = year - 1;
    let days = before * 365 + before / 4 - before / 100 + before / 400 - 719_162
        + days_of.iter().take(usize::try_from(month).ok()? - 1).sum::<i64>()
        + day
        - 1;
    Some((days * 86_400 + hour * 3600 + minute * 60 + second - offset, nanos))
}

/// `statPrefix.aB` as `stat_prefix.a_b`.
pub fn snake_case(path: &str) -> String {
    let mut out = String::with_capacity(path.len() + 4);
    for c in path.chars() {
        if c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("1.5s"), Ok((1, 500_000_000)));
        assert_eq!(duration("-0.25s"), Ok((0, -250_000_000)));
        assert_eq!(duration("0s"), Ok((0, 0)));
        for text in ["1", "s", ".5s", "1.s", "100ms", "1.0000000001s", "315576000001s", "+1s", "1e3s", "--1s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn timestamps() {
        assert_eq!(timestamp("1970-01-01T00:00:00Z"), Some((0, 0)));
        assert_eq!(timestamp("2024-02-29T12:30:00.5+02:00"), Some((1_709_202_600, 500_000_000)));
        assert_eq!(timestamp("0001-01-01T00:00:00Z"), Some((-62_135_596_800, 0)));
        for text in [
            "",
            "2023-02-29T00:00:00Z",
            "2024-01-01",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00é",
        ] {
            assert_eq!(timestamp(text), None, "{text}");
        }
    }
}
