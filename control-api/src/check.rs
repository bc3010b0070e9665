//! Checks a message on the wire against the schema's constraints, as Envoy's generated validators do.
//!
//! Called for every bootstrap and every resource, from text or from a control plane, before it is decoded. It also
//! finds what the schema does not know, what is deprecated and what is refused by default, and follows every `Any`
//! whose type is known. Invariant: any bytes end in a verdict, with bounded depth; nothing stops at the first problem.

mod rules;

use crate::{
    encode::{self, EncodeOptions, is_typed_struct},
    problem::Problem,
    schema::{Enum, Field, Kind, Message, WellKnown, message, message_of_url},
    wire::{MAX_DEPTH, Parsed, Records, Wire, joined},
};
use rules::{Patterns, Scalar, allowed_range};
use std::{collections::HashSet, fmt::Write as _};

/// Envoy reads it without its constraints: `trust_bundles` alone will do.
const SPIFFE_VALIDATOR: &str = "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

/// What counts as a problem beyond the constraints.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// Refuse fields that the schema does not know (`--reject-unknown-dynamic-fields`); otherwise they are listed.
    pub reject_unknown: bool,
    /// Take fields that are refused by default (`envoy.features.enable_all_deprecated_features`).
    pub allow_disallowed: bool,
}

/// The verdict on a message.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// Everything that makes the message unacceptable.
    pub problems: Vec<Problem>,
    /// Fields that the schema does not know, unless they are problems.
    pub unknown: Vec<Problem>,
    /// Deprecated fields and enum values that are in use.
    pub deprecated: Vec<Problem>,
    /// Fields and messages in use that are marked as work in progress.
    pub work_in_progress: Vec<Problem>,
}

/// Checks `bytes` as the message `name`.
pub fn check(name: &str, bytes: &[u8], options: CheckOptions) -> Checked {
    let mut checker =
        Checker { options, path: String::new(), found: Checked::default(), patterns: Patterns::default(), depth: 0 };
    match message(name) {
        Some(message) => checker.message(message, bytes),
        None => checker.problem(format!("{name} is no message of the schema")),
    }
    checker.found
}

struct Checker {
    options: CheckOptions,
    path: String,
    found: Checked,
    patterns: Patterns,
    depth: usize,
}

impl Checker {
    fn problem(&mut self, about: impl Into<String>) {
        self.found.problems.push(Problem::new(self.path.clone(), about));
    }

    fn malformed(&mut self, message: Message) {
        self.problem(format!("is not a valid encoding of {message:?}"));
    }

    fn below<T>(&mut self, step: std::fmt::Arguments<'_>, check: impl FnOnce(&mut Self) -> T) -> T {
        let len = self.path.len();
        let _ = self.path.write_fmt(step);
        let result = check(self);
        self.path.truncate(len);
        result
    }

    fn at<T>(&mut self, name: &str, check: impl FnOnce(&mut Self) -> T) -> T {
        let len = self.path.len();
        if len > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        let result = check(self);
        self.path.truncate(len);
        result
    }

    fn message(&mut self, message: Message, bytes: &[u8]) {
        if self.depth >= MAX_DEPTH {
            return self.problem(format!("is nested deeper than {MAX_DEPTH} messages"));
        }
        let Ok(parsed) = Parsed::new(message, bytes) else { return self.malformed(message) };
        self.depth += 1;
        self.unknown(message, &parsed);
        match message.well_known() {
            Some(WellKnown::Any) => self.any(message, &parsed),
            Some(WellKnown::Duration) => self.duration(&parsed),
            _ => self.fields(message, &parsed),
        }
        self.depth -= 1;
    }

    fn unknown(&mut self, message: Message, parsed: &Parsed<'_>) {
        if parsed.unknown.is_empty() {
            return;
        }
        let numbers: Vec<String> = parsed.unknown.iter().map(u32::to_string).collect();
        let about = format!("has fields that {message:?} does not have: number {}", numbers.join(", "));
        let list = if self.options.reject_unknown { &mut self.found.problems } else { &mut self.found.unknown };
        list.push(Problem::new(self.path.clone(), about));
    }

    fn fields(&mut self, message: Message, parsed: &Parsed<'_>) {
        let ruled = !message.is_unvalidated() && message.full_name() != SPIFFE_VALIDATOR;
        let mut set = Vec::new();
        let mut present = parsed.fields().peekable();
        for field in message.fields() {
            let values = present.next_if(|(f, _)| *f == field).map_or(&[][..], |(_, values)| values);
            let rules = if ruled { field.rules() } else { &[] };
            if values.is_empty() {
                // A member of a oneof is bound by its rules only if it is the one that is set.
                if !rules.is_empty() && field.oneof().is_none() {
                    self.absent(field, rules);
                }
                continue;
            }
            set.extend(field.oneof());
            self.at(field.name(), |c| {
                c.status(message, field);
                c.present(field, values, rules);
            });
        }
        for (i, oneof) in message.oneofs().enumerate().filter(|(_, o)| ruled && o.is_required()) {
            if !set.contains(&i) {
                let members: Vec<&str> = message.fields().filter(|f| f.oneof() == Some(i)).map(Field::name).collect();
                self.problem(format!("{} is required: one of {}", oneof.name(), members.join(", ")));
            }
        }
    }

    /// Notes what the schema says about using a field at all.
    fn status(&mut self, message: Message, field: Field) {
        if field.is_disallowed() && !self.options.allow_disallowed {
            self.problem("is deprecated and refused by default");
        } else if field.is_deprecated() {
            let about = format!("is deprecated ({message:?}.{})", field.name());
            self.found.deprecated.push(Problem::new(self.path.clone(), about));
        }
        let unfinished = match field.kind() {
            Kind::Message(m) => m.is_work_in_progress() && !message.is_work_in_progress(),
            _ => false,
        };
        if field.is_work_in_progress() || unfinished {
            self.found.work_in_progress.push(Problem::new(self.path.clone(), "is marked as work in progress"));
        }
    }

    /// The constraints of a field that is not there.
    fn absent(&mut self, field: Field, rules: &'static [u8]) {
        let required = Rules(rules).message().required || Rules(rules).is_required_kind();
        if required {
            return self.at(field.name(), |c| c.problem("is required"));
        }
        if field.is_repeated() {
            self.at(field.name(), |c| c.count(0, rules));
        } else if !field.has_presence() {
            let empty = Scalar::default_of(field.kind());
            self.at(field.name(), |c| c.scalar(field.kind(), empty, rules));
        }
    }

    fn present(&mut self, field: Field, values: &[(Field, Wire<'_>)], rules: &'static [u8]) {
        match field.kind() {
            Kind::Message(entry) if field.is_map() => self.map(entry, values, rules),
            Kind::Message(message) if field.is_repeated() => {
                self.count(values.len(), rules);
                let items = Rules(Rules(rules).repeated().items);
                for (i, (_, value)) in values.iter().enumerate() {
                    if let Wire::Bytes(bytes) = value {
                        self.below(format_args!("[{i}]"), |c| c.nested(message, bytes, items));
                    }
                }
            }
            Kind::Message(message) => self.nested(message, &joined(values), Rules(rules)),
            kind if field.is_repeated() => {
                self.count(values.len(), rules);
                let repeated = Rules(rules).repeated();
                for (i, (_, value)) in values.iter().enumerate() {
                    self.below(format_args!("[{i}]"), |c| c.used(kind, Scalar::of(kind, *value), repeated.items));
                }
                if repeated.unique {
                    self.unique(values);
                }
            }
            kind => {
                if let Some((_, value)) = values.last() {
                    self.used(kind, Scalar::of(kind, *value), rules);
                }
            }
        }
    }

    /// A scalar that is there.
    fn used(&mut self, kind: Kind, value: Scalar<'_>, rules: &'static [u8]) {
        if let Kind::Enum(e) = kind {
            self.enum_status(e, value);
        }
        self.scalar(kind, value, rules);
    }

    /// A message in a field with `rules`.
    fn nested(&mut self, message: Message, bytes: &[u8], rules: Rules) {
        for (number, rule) in rules.kinds() {
            match (number, message.well_known()) {
                (21, _) => {
                    if let Ok(parsed) = Parsed::new(message, bytes) {
                        self.duration_range(&parsed, rule);
                    }
                }
                (1..=16, Some(WellKnown::Wrapper)) => {
                    if let (Some(inner), Ok(parsed)) = (message.field(1), Parsed::new(message, bytes)) {
                        let kind = inner.kind();
                        let value = parsed.last(1).map_or_else(|| Scalar::default_of(kind), |v| Scalar::of(kind, v));
                        self.scalar(kind, value, rules.0);
                    }
                }
                _ => {}
            }
        }
        if !rules.message().skip {
            self.message(message, bytes);
        }
    }

    fn map(&mut self, entry: Message, values: &[(Field, Wire<'_>)], rules: &'static [u8]) {
        self.count(values.len(), rules);
        let [key_rules, value_rules] = Rules(rules).entries();
        let (Some(key_field), Some(value_field)) = (entry.field(1), entry.field(2)) else { return };
        for (_, value) in values {
            let Wire::Bytes(bytes) = value else { continue };
            let Ok(parsed) = Parsed::new(entry, bytes) else {
                self.malformed(entry);
                continue;
            };
            let kind = key_field.kind();
            let key = parsed.last(1).map_or_else(|| Scalar::default_of(kind), |v| Scalar::of(kind, v));
            self.below(format_args!("[{}]", key.as_key()), |c| {
                c.scalar(kind, key, key_rules);
                match parsed.values(value_field) {
                    [] if matches!(value_field.kind(), Kind::Message(_)) => {}
                    [] => c.scalar(value_field.kind(), Scalar::default_of(value_field.kind()), value_rules),
                    found => c.present(value_field, found, value_rules),
                }
            });
        }
    }

    fn any(&mut self, message: Message, parsed: &Parsed<'_>) {
        let url = match parsed.last(1) {
            Some(Wire::Bytes(url)) => std::str::from_utf8(url),
            _ => Ok(""),
        };
        let Ok(url) = url else { return self.malformed(message) };
        let value = match parsed.last(2) {
            Some(Wire::Bytes(value)) => value,
            _ => &[],
        };
        if let Some(inner) = message_of_url(url) {
            if inner.well_known().is_some() {
                self.at("value", |c| c.message(inner, value));
            } else {
                self.message(inner, value);
                if is_typed_struct(inner.full_name()) {
                    self.at("value", |c| c.typed_struct(value));
                }
            }
        }
    }

    /// The message that a `TypedStruct` describes, if its type is known.
    fn typed_struct(&mut self, bytes: &[u8]) {
        match encode::open(bytes, EncodeOptions { allow_unknown: !self.options.reject_unknown }) {
            Ok(any) => {
                if let Some(inner) = message_of_url(&any.type_url) {
                    self.message(inner, &any.value);
                }
            }
            // A type that is not known has no path: whoever uses the message says so.
            Err(problems) => {
                for problem in problems.into_iter().filter(|p| !p.path.is_empty()) {
                    self.at(&problem.path, |c| c.problem(problem.message));
                }
            }
        }
    }

    fn duration(&mut self, parsed: &Parsed<'_>) {
        let (seconds, nanos) = rules::duration(parsed);
        let agree = seconds == 0 || nanos == 0 || (seconds < 0) == (nanos < 0);
        if seconds.unsigned_abs() > 315_576_000_000 || nanos.unsigned_abs() > 999_999_999 || !agree {
            let about = format!("found {seconds} s and {nanos} ns, which is out of a duration's range");
            self.problem(about);
        }
    }

    fn duration_range(&mut self, parsed: &Parsed<'_>, rule: &'static [u8]) {
        let value = rules::duration(parsed);
        if let Some(allowed) =
            allowed_range(rule, 3, &value, rules::duration_bound, |(s, n)| rules::show_duration(*s, *n))
        {
            self.problem(format!("found {}, allowed: {allowed}", rules::show_duration(value.0, value.1)));
        }
    }

    fn count(&mut self, count: usize, rules: &'static [u8]) {
        let found = Rules(rules).repeated();
        if found.ignore_empty && count == 0 {
            return;
        }
        if (count as u64) < found.min {
            self.problem(format!("found {count}, allowed: at least {}", found.min));
        }
        if count as u64 > found.max {
            self.problem(format!("found {count}, allowed: at most {}", found.max));
        }
    }

    fn unique(&mut self, values: &[(Field, Wire<'_>)]) {
        let mut seen = HashSet::with_capacity(values.len());
        for (i, (_, value)) in values.iter().enumerate() {
            if !seen.insert(value) {
                self.below(format_args!("[{i}]"), |c| c.problem("is there twice, allowed: each value once"));
            }
        }
    }

    fn scalar(&mut self, kind: Kind, value: Scalar<'_>, rules: &'static [u8]) {
        if let (Kind::String, Scalar::Bytes(bytes)) = (kind, value)
            && std::str::from_utf8(bytes).is_err()
        {
            return self.problem("is not UTF-8");
        }
        for (number, rule) in Rules(rules).kinds() {
            if let Some(about) = rules::broken(number, rule, kind, value, &mut self.patterns) {
                self.problem(about);
            }
        }
    }

    /// Notes what the schema says about using the values of an enum.
    fn enum_status(&mut self, e: Enum, value: Scalar<'_>) {
        let Scalar::Int(number) = value else { return };
        let Some(value) = i32::try_from(number).ok().and_then(|n| e.value(n)) else { return };
        if value.is_disallowed() && !self.options.allow_disallowed {
            self.problem(format!("found {}, which is deprecated and refused by default", value.name()));
        } else if value.is_deprecated() {
            let about = format!("{} is deprecated ({e:?})", value.name());
            self.found.deprecated.push(Problem::new(self.path.clone(), about));
        }
    }
}

/// An encoded `validate.FieldRules` of the schema.
#[derive(Clone, Copy)]
struct Rules(&'static [u8]);

struct MessageRules {
    required: bool,
    skip: bool,
}

struct RepeatedRules {
    min: u64,
    max: u64,
    unique: bool,
    ignore_empty: bool,
    /// The rules of each element.
    items: &'static [u8],
}

impl Rules {
    /// The rules for each kind of value, by their number in `FieldRules`.
    fn kinds(self) -> impl Iterator<Item = (u32, &'static [u8])> {
        Records(self.0).filter_map(|record| match record {
            Ok((number, Wire::Bytes(rule))) => Some((number, rule)),
            _ => None,
        })
    }

    fn message(self) -> MessageRules {
        let mut found = MessageRules { required: false, skip: false };
        for (_, rule) in self.kinds().filter(|(number, _)| *number == 17) {
            found.skip |= flag(rule, 1);
            found.required |= flag(rule, 2);
        }
        found
    }

    /// True if a rule on an `Any`, a `Duration` or a `Timestamp` says that it must be there.
    fn is_required_kind(self) -> bool {
        self.kinds().any(|(number, rule)| matches!(number, 20..=22) && flag(rule, 1))
    }

    /// Of a repeated field or a map.
    fn repeated(self) -> RepeatedRules {
        let mut found = RepeatedRules { min: 0, max: u64::MAX, unique: false, ignore_empty: false, items: &[] };
        for (kind, rule) in self.kinds().filter(|(number, _)| matches!(number, 18 | 19)) {
            for record in Records(rule) {
                match (kind, record) {
                    (_, Ok((1, Wire::Varint(n)))) => found.min = n,
                    (_, Ok((2, Wire::Varint(n)))) => found.max = n,
                    (18, Ok((3, Wire::Varint(n)))) => found.unique = n != 0,
                    (18, Ok((4, Wire::Bytes(items)))) => found.items = items,
                    (18, Ok((5, Wire::Varint(n)))) | (19, Ok((6, Wire::Varint(n)))) => found.ignore_empty = n != 0,
                    _ => {}
                }
            }
        }
        found
    }

    /// Of a map's keys and values.
    fn entries(self) -> [&'static [u8]; 2] {
        let mut found: [&[u8]; 2] = [&[], &[]];
        for (_, rule) in self.kinds().filter(|(number, _)| *number == 19) {
            for record in Records(rule) {
                match record {
                    Ok((4, Wire::Bytes(keys))) => found[0] = keys,
                    Ok((5, Wire::Bytes(values))) => found[1] = values,
                    _ => {}
                }
            }
        }
        found
    }
}

/// Field `number` of `rule`, a bool.
fn flag(rule: &[u8], number: u32) -> bool {
    Records(rule).any(|record| matches!(record, Ok((n, Wire::Varint(1))) if n == number))
}

#[cfg(test)]
mod tests;
