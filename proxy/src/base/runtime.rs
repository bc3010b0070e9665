//! Runtime values: the layers flattened, the last one winning. Immutable; a change makes a new one.

use foldhash::HashMap;
use weft_config::{
    percent::{FractionalPercent, RuntimeFractionalPercent},
    runtime::RuntimeValue,
};

/// What a runtime key is worth, at one moment.
#[derive(Clone, Debug, Default)]
pub struct RuntimeSnapshot {
    values: HashMap<Box<str>, RuntimeValue>,
}

impl RuntimeSnapshot {
    /// Flattens layers, given from the first to the last.
    pub fn new<'a>(layers: impl IntoIterator<Item = &'a [(String, RuntimeValue)]>) -> Self {
        let values = layers.into_iter().flatten().map(|(key, value)| (key.as_str().into(), value.clone())).collect();
        Self { values }
    }

    pub fn get(&self, key: &str) -> Option<&RuntimeValue> {
        if self.values.is_empty() { None } else { self.values.get(key) }
    }

    /// A whole number, if the key has one.
    pub fn integer(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            RuntimeValue::Number(n) if *n >= 0.0 => Some(*n as u64),
            RuntimeValue::Text(text) => text.parse().ok(),
            _ => None,
        }
    }

    pub fn number(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            RuntimeValue::Number(n) => Some(*n),
            RuntimeValue::Text(text) => text.parse().ok(),
            _ => None,
        }
    }

    pub fn boolean(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            RuntimeValue::Bool(value) => Some(*value),
            RuntimeValue::Text(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// True for as many percent of `random` values as the key, or else `percent`, says.
    pub fn enables(&self, key: &str, percent: u64, random: u64) -> bool {
        random % 100 < self.integer(key).unwrap_or(percent)
    }

    /// True for the share of `random` values that the key, or else the default, says. A bare number counts out of 100.
    pub fn takes(&self, fraction: &RuntimeFractionalPercent, random: u64) -> bool {
        let key = if fraction.runtime_key.is_empty() { None } else { self.get(&fraction.runtime_key) };
        let share = match key {
            Some(RuntimeValue::Fraction { numerator, denominator }) => {
                FractionalPercent { numerator: *numerator, denominator: *denominator }
            }
            Some(RuntimeValue::Number(n)) if *n >= 0.0 => FractionalPercent { numerator: *n as u32, denominator: 100 },
            _ => fraction.default,
        };
        share.takes(random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_layers_win_and_fractions_follow() {
        let first = [("a".to_owned(), RuntimeValue::Number(100.0)), ("b".to_owned(), RuntimeValue::Text("7".into()))];
        let second = [("a".to_owned(), RuntimeValue::Number(0.0))];
        let runtime = RuntimeSnapshot::new([&first[..], &second[..]]);
        let fraction =
            |key: &str| RuntimeFractionalPercent { default: FractionalPercent::ALL, runtime_key: key.into() };
        assert!(!runtime.takes(&fraction("a"), 0));
        assert!(runtime.takes(&fraction("none"), 99));
        assert!(runtime.takes(&fraction(""), 99));
        assert_eq!(runtime.integer("b"), Some(7));
    }
}
