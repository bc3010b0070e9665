//! Runtime layers: named values that configuration refers to, given in the bootstrap, on disk, over the admin API or
//! over RTDS. A later layer wins over an earlier one.

use crate::{ConfigSource, Context};
use weft_control_api::{
    Struct, Value,
    envoy::config::bootstrap::v3::{self as pb, runtime_layer},
    value::Kind,
};

/// One layer.
#[derive(Clone, Debug, PartialEq)]
pub struct RuntimeLayer {
    pub name: String,
    pub source: RuntimeSource,
}

/// Where a layer's values come from.
#[derive(Clone, Debug, PartialEq)]
pub enum RuntimeSource {
    /// Keys with their values; nested maps became keys with dots.
    Static(Vec<(String, RuntimeValue)>),
    Disk {
        symlink_root: String,
        subdirectory: String,
        /// Looks into a directory named as the service cluster.
        append_service_cluster: bool,
    },
    /// What was set over the admin API.
    Admin,
    Rtds {
        /// The resource.
        name: String,
        source: ConfigSource,
    },
}

/// A value of a runtime key.
#[derive(Clone, Debug, PartialEq)]
pub enum RuntimeValue {
    Number(f64),
    Bool(bool),
    Text(String),
    /// A `FractionalPercent`: out of 100, 10 000 or 1 000 000.
    Fraction {
        numerator: u32,
        denominator: u32,
    },
}

impl RuntimeValue {
    /// The value as the admin API shows it.
    pub fn text(&self) -> String {
        match self {
            Self::Number(n) => n.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Text(text) => text.clone(),
            Self::Fraction { numerator, denominator } => {
                let name = match denominator {
                    10_000 => "TEN_THOUSAND",
                    1_000_000 => "MILLION",
                    _ => "HUNDRED",
                };
                format!("{{\"numerator\":{numerator},\"denominator\":\"{name}\"}}")
            }
        }
    }
}

/// Reads the layers of a bootstrap.
pub fn layers(pb: pb::LayeredRuntime, cx: &mut Context) -> Vec<RuntimeLayer> {
    let pb::LayeredRuntime { layers } = pb;
    let mut admin_layers = 0;
    let mut names: Vec<String> = Vec::new();
    cx.elements("layers", layers, |cx, pb| {
        let pb::RuntimeLayer { name, layer_specifier } = pb;
        if names.contains(&name) {
            cx.problem_at("name", format!("found {name:?}, which an earlier layer has"));
        }
        names.push(name.clone());
        let source = match cx.required("layer_specifier", layer_specifier)? {
            runtime_layer::LayerSpecifier::StaticLayer(values) => {
                RuntimeSource::Static(cx.field("static_layer", |cx| flatten(values, cx)))
            }
            runtime_layer::LayerSpecifier::DiskLayer(runtime_layer::DiskLayer {
                symlink_root,
                subdirectory,
                append_service_cluster,
            }) => RuntimeSource::Disk { symlink_root, subdirectory, append_service_cluster },
            runtime_layer::LayerSpecifier::AdminLayer(runtime_layer::AdminLayer {}) => {
                admin_layers += 1;
                if admin_layers > 1 {
                    cx.problem_at("admin_layer", "is there twice, allowed: one");
                }
                RuntimeSource::Admin
            }
            runtime_layer::LayerSpecifier::RtdsLayer(runtime_layer::RtdsLayer { name, rtds_config }) => {
                cx.field("rtds_layer", |cx| {
                    let source = cx.required("rtds_config", rtds_config)?;
                    let source = cx.field("rtds_config", |cx| ConfigSource::from_proto(source, cx))?;
                    Some(RuntimeSource::Rtds { name, source })
                })?
            }
        };
        Some(RuntimeLayer { name, source })
    })
}

/// The keys and values of a layer, by key.
pub fn flatten(values: Struct, cx: &mut Context) -> Vec<(String, RuntimeValue)> {
    let mut out = Vec::new();
    for (key, value) in values.fields {
        walk(key, value, &mut out, cx);
    }
    out.sort_by(|a, b| a.0.cmp(&b.0));
    out
}

fn walk(key: String, value: Value, out: &mut Vec<(String, RuntimeValue)>, cx: &mut Context) {
    let value = match value.kind {
        Some(Kind::NumberValue(n)) => RuntimeValue::Number(n),
        Some(Kind::BoolValue(value)) => RuntimeValue::Bool(value),
        Some(Kind::StringValue(text)) => text_value(text),
        Some(Kind::StructValue(map)) => match fraction(&map) {
            Some(fraction) => fraction,
            None => {
                for (inner, value) in map.fields {
                    walk(format!("{key}.{inner}"), value, out, cx);
                }
                return;
            }
        },
        Some(Kind::NullValue(_) | Kind::ListValue(_)) | None => {
            cx.problem(format!("the value of {key:?} is a list or null, allowed: text, a number, true, false, a map"));
            return;
        }
    };
    out.push((key, value));
}

/// Text that says a number counts as one: that is how numbers with a point come out of YAML. Text that says a bool
/// stays text, in Envoy too.
pub fn text_value(text: String) -> RuntimeValue {
    let trimmed = text.trim();
    if trimmed.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.')) {
        trimmed.parse().map_or(RuntimeValue::Text(text), RuntimeValue::Number)
    } else {
        RuntimeValue::Text(text)
    }
}

/// A map with a numerator or a denominator is one value, not a level of keys.
fn fraction(map: &Struct) -> Option<RuntimeValue> {
    let (numerator, denominator) = (map.fields.get("numerator"), map.fields.get("denominator"));
    numerator.or(denominator)?;
    let number = |value: Option<&Value>| match value.and_then(|v| v.kind.as_ref()) {
        Some(Kind::NumberValue(n)) => *n,
        _ => 0.0,
    };
    let denominator = match denominator.and_then(|v| v.kind.as_ref()) {
        Some(Kind::StringValue(name)) => match &**name {
            "TEN_THOUSAND" => 10_000,
            "MILLION" => 1_000_000,
            _ => 100,
        },
        Some(Kind::NumberValue(1.0)) => 10_000,
        Some(Kind::NumberValue(2.0)) => 1_000_000,
        _ => 100,
    };
    // A float becomes the nearest number that fits.
    Some(RuntimeValue::Fraction { numerator: number(numerator) as u32, denominator })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(kind: Kind) -> Value {
        Value { kind: Some(kind) }
    }

    fn map(entries: impl IntoIterator<Item = (&'static str, Kind)>) -> Struct {
        Struct { fields: entries.into_iter().map(|(k, v)| (k.to_owned(), value(v))).collect() }
    }

    #[test]
    fn maps_become_keys_with_dots() {
        let percent =
            map([("numerator", Kind::NumberValue(5.0)), ("denominator", Kind::StringValue("MILLION".into()))]);
        let inner = map([("b", Kind::StringValue("true".into())), ("c", Kind::StringValue("1.5".into()))]);
        let layer = map([
            ("x.y", Kind::StringValue("text".into())),
            ("a", Kind::StructValue(inner)),
            ("p", Kind::StructValue(percent)),
        ]);
        let mut cx = Context::new();
        let flat = flatten(layer, &mut cx);
        assert!(!cx.has_problems());
        assert_eq!(
            flat,
            [
                ("a.b".to_owned(), RuntimeValue::Text("true".into())),
                ("a.c".to_owned(), RuntimeValue::Number(1.5)),
                ("p".to_owned(), RuntimeValue::Fraction { numerator: 5, denominator: 1_000_000 }),
                ("x.y".to_owned(), RuntimeValue::Text("text".into())),
            ]
        );
        let mut cx = Context::new();
        flatten(map([("l", Kind::ListValue(Default::default()))]), &mut cx);
        assert!(cx.has_problems());
    }
}
