//! The constraints on single values: ranges, lengths, patterns, lists of allowed values.
//!
//! A rule is an encoded message of `validate.proto`, read in place; the numbers below are that file's. Only what the
//! schema uses is here, and a test holds that against the schema.

use crate::{
    schema::{EnumValue, Kind},
    wire::{Parsed, Records, Wire},
};
use regex::Regex;
use std::fmt::Display;

/// The value of a field that is no message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scalar<'a> {
    /// Whole numbers, enums and bools.
    Int(i128),
    Float(f64),
    Bytes(&'a [u8]),
}

impl<'a> Scalar<'a> {
    /// What a record holds for a field of `kind`.
    pub(super) fn of(kind: Kind, value: Wire<'a>) -> Self {
        match (kind, value) {
            (Kind::Int32 | Kind::Enum(_), Wire::Varint(n)) => Scalar::Int((n as i32).into()),
            (Kind::Int64, Wire::Varint(n)) => Scalar::Int((n as i64).into()),
            (Kind::Uint32, Wire::Varint(n)) => Scalar::Int((n as u32).into()),
            (Kind::Bool, Wire::Varint(n)) => Scalar::Int((n != 0).into()),
            (Kind::Sint32 | Kind::Sint64, Wire::Varint(n)) => Scalar::Int(((n >> 1) as i64 ^ -((n & 1) as i64)).into()),
            (Kind::Double, Wire::Fixed64(n)) => Scalar::Float(f64::from_bits(n)),
            (Kind::Float, Wire::Fixed32(n)) => Scalar::Float(f32::from_bits(n).into()),
            (Kind::Sfixed64, Wire::Fixed64(n)) => Scalar::Int((n as i64).into()),
            (Kind::Sfixed32, Wire::Fixed32(n)) => Scalar::Int((n as i32).into()),
            (_, Wire::Varint(n) | Wire::Fixed64(n)) => Scalar::Int(n.into()),
            (_, Wire::Fixed32(n)) => Scalar::Int(n.into()),
            (_, Wire::Bytes(bytes)) => Scalar::Bytes(bytes),
            (_, Wire::Group) => Scalar::Int(0),
        }
    }

    /// What an unset field of `kind` counts as.
    pub(super) fn default_of(kind: Kind) -> Self {
        match kind {
            Kind::Double | Kind::Float => Scalar::Float(0.0),
            Kind::String | Kind::Bytes | Kind::Message(_) => Scalar::Bytes(&[]),
            _ => Scalar::Int(0),
        }
    }

    /// A map key in a path.
    pub(super) fn as_key(self) -> String {
        match self {
            Scalar::Int(n) => n.to_string(),
            Scalar::Float(n) => n.to_string(),
            Scalar::Bytes(bytes) => format!("{:?}", String::from_utf8_lossy(bytes)),
        }
    }
}

/// The patterns that this check has met, compiled.
#[derive(Default)]
pub(super) struct Patterns(Vec<(&'static str, Option<Regex>)>);

impl Patterns {
    fn matches(&mut self, pattern: &'static str, text: &str) -> bool {
        let known = self.0.iter().position(|(p, _)| *p == pattern).unwrap_or_else(|| {
            self.0.push((pattern, Regex::new(pattern).ok()));
            self.0.len() - 1
        });
        // A test compiles every pattern of the schema.
        self.0[known].1.as_ref().is_some_and(|regex| regex.is_match(text))
    }
}

/// What is wrong with `value` by rule `number` of a `FieldRules`, if anything is.
pub(super) fn broken(
    number: u32,
    rule: &'static [u8],
    kind: Kind,
    value: Scalar<'_>,
    patterns: &mut Patterns,
) -> Option<String> {
    match (number, value) {
        (1 | 2, Scalar::Float(n)) => {
            let bound = |wire| match wire {
                Wire::Fixed32(bits) => Some(f64::from(f32::from_bits(bits))),
                Wire::Fixed64(bits) => Some(f64::from_bits(bits)),
                _ => None,
            };
            allowed_range(rule, 2, &n, bound, f64::to_string).map(|allowed| format!("found {n}, allowed: {allowed}"))
        }
        (3..=12, Scalar::Int(n)) => {
            if n == 0 && flag(rule, 8) {
                return None;
            }
            let bound = |wire| match Scalar::of(kind, wire) {
                Scalar::Int(n) => Some(n),
                _ => None,
            };
            allowed_range(rule, 2, &n, bound, i128::to_string).map(|allowed| format!("found {n}, allowed: {allowed}"))
        }
        (13, Scalar::Int(n)) => {
            let wanted = Records(rule).find_map(|r| match r {
                Ok((1, Wire::Varint(wanted))) => Some(i128::from(wanted != 0)),
                _ => None,
            })?;
            (n != wanted).then(|| format!("found {}, allowed: {}", n != 0, wanted != 0))
        }
        (14, Scalar::Bytes(bytes)) => string(rule, std::str::from_utf8(bytes).ok()?, patterns),
        (15, Scalar::Bytes(bytes)) => length(rule, bytes.len(), &[(13, 2, 3)], "bytes"),
        (16, Scalar::Int(n)) => enumeration(rule, kind, n),
        _ => None,
    }
}

/// The bounds of a rule, if `value` is outside of them: `lt`, `lte`, `gt` and `gte` are numbered from `first`.
/// A lower bound above the upper one allows what is outside.
pub(super) fn allowed_range<T: PartialOrd>(
    rule: &'static [u8],
    first: u32,
    value: &T,
    bound: impl Fn(Wire<'static>) -> Option<T>,
    show: impl Fn(&T) -> String,
) -> Option<String> {
    let (mut low, mut high) = (None, None);
    for record in Records(rule) {
        let Ok((number, wire)) = record else { continue };
        let Some(side) = number.checked_sub(first).filter(|side| *side < 4) else { continue };
        let Some(limit) = bound(wire) else { continue };
        match side {
            0 => high = Some((limit, false)),
            1 => high = Some((limit, true)),
            2 => low = Some((limit, false)),
            _ => low = Some((limit, true)),
        }
    }
    let above = low.as_ref().is_none_or(|(limit, equal)| value > limit || *equal && value == limit);
    let below = high.as_ref().is_none_or(|(limit, equal)| value < limit || *equal && value == limit);
    let outside = matches!((&low, &high), (Some((low, _)), Some((high, _))) if low > high);
    if if outside { above || below } else { above && below } {
        return None;
    }
    let mut allowed = Vec::new();
    if let Some((limit, equal)) = &low {
        allowed.push(format!("{} {}", if *equal { "at least" } else { "more than" }, show(limit)));
    }
    if let Some((limit, equal)) = &high {
        allowed.push(format!("{} {}", if *equal { "at most" } else { "less than" }, show(limit)));
    }
    Some(allowed.join(if outside { " or " } else { " and " }))
}

/// The seconds and nanoseconds of a `Duration`.
pub(super) fn duration(parsed: &Parsed<'_>) -> (i64, i64) {
    let number = |n| match parsed.last(n) {
        Some(Wire::Varint(value)) => value as i64,
        _ => 0,
    };
    (number(1), number(2))
}

/// A bound that is a `Duration`.
pub(super) fn duration_bound(wire: Wire<'_>) -> Option<(i64, i64)> {
    let Wire::Bytes(bytes) = wire else { return None };
    let mut found = (0, 0);
    for record in Records(bytes) {
        match record {
            Ok((1, Wire::Varint(seconds))) => found.0 = seconds as i64,
            Ok((2, Wire::Varint(nanos))) => found.1 = nanos as i64,
            _ => {}
        }
    }
    Some(found)
}

/// `1.5s`.
pub(super) fn show_duration(seconds: i64, nanos: i64) -> String {
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    let fraction = format!("{:09}", nanos.unsigned_abs());
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{}{point}{fraction}s", seconds.unsigned_abs())
}

fn enumeration(rule: &'static [u8], kind: Kind, n: i128) -> Option<String> {
    let Kind::Enum(e) = kind else { return None };
    let value = i32::try_from(n).ok().and_then(|n| e.value(n));
    if value.is_none() && flag(rule, 2) {
        let names: Vec<&str> = e.values().map(|v| v.name()).collect();
        return Some(format!("found {n}, allowed: {}", names.join(", ")));
    }
    let is_refused =
        |n: i128| Records(rule).any(|r| matches!(r, Ok((4, Wire::Varint(no))) if i128::from(no as i32) == n));
    is_refused(n).then(|| {
        let is_allowed = |v: &EnumValue| !is_refused(v.number().into()) && !v.is_disallowed();
        let names: Vec<&str> = e.values().filter(is_allowed).map(EnumValue::name).collect();
        format!("found {}, allowed: {}", value.map_or("", EnumValue::name), names.join(", "))
    })
}

fn string(rule: &'static [u8], text: &str, patterns: &mut Patterns) -> Option<String> {
    // 26: an empty text is as good as none.
    if text.is_empty() && flag(rule, 26) {
        return None;
    }
    if let Some(about) = length(rule, text.chars().count(), &[(19, 2, 3)], "characters") {
        return Some(if text.is_empty() {
            "is empty, allowed: text of at least 1 character".to_owned()
        } else {
            about
        });
    }
    if let Some(about) = length(rule, text.len(), &[(20, 4, 5)], "bytes") {
        return Some(about);
    }
    let not = |what: &dyn Display| Some(format!("found {text:?}, allowed: {what}"));
    let mut allowed = Vec::new();
    let mut well_known = 0;
    let mut strict = true;
    for record in Records(rule) {
        match record {
            Ok((25, Wire::Varint(n))) => strict = n != 0,
            Ok((24, Wire::Varint(n))) => well_known = n,
            Ok((number, Wire::Bytes(bytes))) => {
                let Ok(wanted) = std::str::from_utf8(bytes) else { continue };
                match number {
                    1 if text != wanted => return not(&format_args!("{wanted:?}")),
                    6 if !patterns.matches(wanted, text) => return not(&format_args!("text that matches {wanted}")),
                    7 if !text.starts_with(wanted) => return not(&format_args!("text that starts with {wanted:?}")),
                    8 if !text.ends_with(wanted) => return not(&format_args!("text that ends with {wanted:?}")),
                    9 if !text.contains(wanted) => return not(&format_args!("text that contains {wanted:?}")),
                    23 if text.contains(wanted) => return not(&format_args!("text without {wanted:?}")),
                    10 => allowed.push(wanted),
                    11 if text == wanted => return not(&"any other text"),
                    _ => {}
                }
            }
            _ => {}
        }
    }
    if !allowed.is_empty() && !allowed.contains(&text) {
        return not(&format_args!("{}", allowed.join(", ")));
    }
    match (well_known, strict) {
        (0, _) => None,
        (_, false) if text.contains(['\0', '\n', '\r']) => not(&"text without NUL, CR and LF"),
        (1, true) if !is_header_name(text) => not(&"the name of an HTTP header"),
        (2, true) if text.bytes().any(|b| b < 0x20 && b != b'\t' || b == 0x7f) => {
            not(&"text without control characters")
        }
        _ => None,
    }
}

fn is_header_name(text: &str) -> bool {
    let name = text.strip_prefix(':').unwrap_or(text);
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+,-.^_|~`".contains(&b))
}

/// Checks a length by the rules with these numbers: exactly, at least, at most.
fn length(rule: &[u8], len: usize, numbers: &[(u32, u32, u32)], unit: &str) -> Option<String> {
    let len = len as u64;
    for record in Records(rule) {
        let Ok((number, Wire::Varint(limit))) = record else { continue };
        for (exactly, at_least, at_most) in numbers {
            let (bad, word) = match number {
                n if n == *exactly => (len != limit, "exactly"),
                n if n == *at_least => (len < limit, "at least"),
                n if n == *at_most => (len > limit, "at most"),
                _ => continue,
            };
            if bad {
                return Some(format!("found {len} {unit}, allowed: {word} {limit}"));
            }
        }
    }
    None
}

fn flag(rule: &[u8], number: u32) -> bool {
    Records(rule).any(|record| matches!(record, Ok((n, Wire::Varint(1))) if n == number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Message, message, messages};

    /// The names of all rules in an encoded rules message, with those of nested ones after a point.
    fn names(rules: Message, bytes: &[u8], prefix: &str, found: &mut std::collections::BTreeSet<String>) {
        for (field, values) in Parsed::new(rules, bytes).unwrap().fields() {
            match (field.kind(), values[0].1) {
                (Kind::Message(m), Wire::Bytes(inner)) if m.full_name().starts_with("validate.") => {
                    let deeper = if matches!(field.name(), "items" | "keys" | "values") { "" } else { field.name() };
                    names(m, inner, deeper, found);
                    found.insert(format!("{prefix} {}", field.name()));
                }
                _ => _ = found.insert(format!("{prefix} {}", field.name())),
            }
        }
    }

    #[test]
    fn every_rule_of_the_schema_is_implemented() {
        let mut found = std::collections::BTreeSet::new();
        let rules = message("validate.FieldRules").unwrap();
        for field in messages().flat_map(Message::fields) {
            names(rules, field.rules(), "", &mut found);
        }
        let number = "const? lt lte gt gte ignore_empty";
        let known = |rule: &str| match rule.split_once(' ').unwrap() {
            ("", _) => true,
            ("message", r) => "required skip".contains(r),
            ("repeated", r) => "min_items max_items unique items ignore_empty".contains(r),
            ("map", r) => "min_pairs max_pairs keys values ignore_empty".contains(r),
            ("any", r) => r == "required",
            ("duration", r) => "required lt lte gt gte".contains(r),
            ("bool", r) => r == "const",
            ("enum", r) => "defined_only not_in".contains(r),
            ("bytes", r) => "len min_len max_len".contains(r),
            ("string", r) => "const len min_len max_len len_bytes min_bytes max_bytes pattern prefix suffix contains \
                not_contains in not_in well_known_regex strict ignore_empty"
                .contains(r),
            ("float" | "double", r) => r != "ignore_empty" && number.contains(r),
            (_, r) => number.contains(r),
        };
        let unknown: Vec<_> = found.iter().filter(|rule| !known(rule)).collect();
        assert!(found.len() > 40 && unknown.is_empty(), "{unknown:?}");
    }

    #[test]
    fn every_pattern_compiles() {
        for field in messages().flat_map(Message::fields) {
            for record in Records(field.rules()) {
                let Ok((14, Wire::Bytes(rule))) = record else { continue };
                for record in Records(rule) {
                    if let Ok((6, Wire::Bytes(pattern))) = record {
                        assert!(Regex::new(std::str::from_utf8(pattern).unwrap()).is_ok(), "{field:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn durations_are_shown_as_text() {
        assert_eq!(show_duration(1, 500_000_000), "1.5s");
        assert_eq!(show_duration(0, -1), "-0.000000001s");
        assert_eq!(show_duration(3, 0), "3s");
    }
}
