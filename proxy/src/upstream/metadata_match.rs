//! What a route, a weighted cluster or a request wants of the metadata of hosts (`metadata_match`, in `envoy.lb`).
//!
//! Compiled with the route; the subset balancer looks hosts up by it. Invariant: criteria are in the order of their keys.

use foldhash::quality::FixedState;
use serde_json::{Map, Value};
use std::hash::{BuildHasher, Hash, Hasher};
use weft_config::metadata::Metadata;

/// The name under which metadata is for load balancing.
const NAMESPACE: &str = "envoy.lb";
/// The key whose value is a list of alternatives, where the cluster looks at such.
const FALLBACK_LIST: &str = "fallback_list";

/// Metadata that a host must have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetadataMatch {
    criteria: Vec<Criterion>,
    /// The criteria with each of the alternatives, if there are any: to be tried in turn.
    alternatives: Option<Vec<Vec<Criterion>>>,
}

/// A key and the value that is wanted of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Criterion {
    pub key: Box<str>,
    pub value: MatchValue,
}

/// A value with its hash.
#[derive(Clone, Debug)]
pub struct MatchValue {
    value: Value,
    hash: u64,
}

impl MetadataMatch {
    /// The criteria in `metadata`, of which `over` has the last word; `None` if there are none.
    pub fn compile(metadata: &Metadata, over: Option<&Metadata>) -> Option<Self> {
        let mut values = Map::new();
        for part in [Some(metadata), over].into_iter().flatten() {
            values.extend(part.get(NAMESPACE).into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
        }
        // That there is metadata, if only an empty one, is something to go by.
        let is_set = [Some(metadata), over].into_iter().flatten().any(|part| part.contains_key(NAMESPACE));
        is_set.then(|| Self::new(values))
    }

    /// The same with what the request's own metadata says, if it says anything.
    pub fn with_dynamic(of_route: Option<&Self>, dynamic: &crate::observe::stream_info::Metadata) -> Option<Self> {
        let own = dynamic.get(NAMESPACE)?;
        let route = of_route.into_iter().flat_map(|m| &m.criteria);
        let mut values: Map<String, Value> = route.map(|c| (c.key.to_string(), c.value.value.clone())).collect();
        values.extend(own.iter().map(|(k, v)| (k.clone(), v.clone())));
        Some(Self::new(values))
    }

    fn new(values: Map<String, Value>) -> Self {
        let alternatives = values.get(FALLBACK_LIST).and_then(Value::as_array).map(|list| {
            let merged = |alternative: &Value| {
                let mut values = values.clone();
                values.remove(FALLBACK_LIST);
                values.extend(alternative.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
                criteria(values)
            };
            match list.as_slice() {
                [] => vec![merged(&Value::Null)],
                list => list.iter().map(merged).collect(),
            }
        });
        Self { criteria: criteria(values), alternatives }
    }

    pub fn criteria(&self) -> &[Criterion] {
        &self.criteria
    }

    /// See [`MetadataMatch::alternatives`]'s field: `None` if the request gives none.
    pub fn alternatives(&self) -> Option<&[Vec<Criterion>]> {
        self.alternatives.as_deref()
    }
}

fn criteria(values: Map<String, Value>) -> Vec<Criterion> {
    let mut all: Vec<_> =
        values.into_iter().map(|(key, value)| Criterion { key: key.into(), value: MatchValue::new(value) }).collect();
    all.sort_by(|a, b| a.key.cmp(&b.key));
    all
}

impl MatchValue {
    pub fn new(value: Value) -> Self {
        let mut hasher = FixedState::default().build_hasher();
        hash(&value, &mut hasher);
        Self { hash: hasher.finish(), value }
    }

    pub fn value(&self) -> &Value {
        &self.value
    }
}

fn hash(value: &Value, hasher: &mut impl Hasher) {
    std::mem::discriminant(value).hash(hasher);
    match value {
        Value::Null => {}
        Value::Bool(value) => value.hash(hasher),
        Value::Number(number) => number.as_f64().map(f64::to_bits).hash(hasher),
        Value::String(text) => text.hash(hasher),
        Value::Array(list) => list.iter().for_each(|value| hash(value, hasher)),
        // Without the order of its keys.
        Value::Object(fields) => fields.len().hash(hasher),
    }
}

impl PartialEq for MatchValue {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.value == other.value
    }
}

impl Eq for MatchValue {}

impl Hash for MatchValue {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn metadata(values: Value) -> Metadata {
        [(NAMESPACE.to_owned(), values.as_object().cloned().unwrap())].into()
    }

    #[test]
    fn the_more_specific_wins() {
        let route = metadata(json!({"v": "1", "stage": "prod"}));
        let merged = MetadataMatch::compile(&route, Some(&metadata(json!({"v": "2"})))).unwrap();
        let text: Vec<_> = merged.criteria().iter().map(|c| format!("{}={}", c.key, c.value.value())).collect();
        assert_eq!(text, ["stage=\"prod\"", "v=\"2\""]);
        assert_eq!(MetadataMatch::compile(&Metadata::new(), None), None);
        let dynamic = [("envoy.lb".into(), json!({"v": 3.0}).as_object().cloned().unwrap())].into_iter().collect();
        let merged = MetadataMatch::with_dynamic(Some(&merged), &dynamic).unwrap();
        assert_eq!(merged.criteria()[1].value.value(), &json!(3.0));
    }

    #[test]
    fn alternatives() {
        let with = |list: Value| {
            let all = MetadataMatch::compile(&metadata(json!({"a": "1", "fallback_list": list})), None).unwrap();
            let key = |c: &Criterion| format!("{}={}", c.key, c.value.value());
            all.alternatives().map(|a| a.iter().map(|list| list.iter().map(key).collect()).collect::<Vec<Vec<_>>>())
        };
        assert_eq!(with(json!([{"v": "2"}, {"a": "3"}])).unwrap(), [vec!["a=\"1\"", "v=\"2\""], vec!["a=\"3\""]]);
        assert_eq!(with(json!([])).unwrap(), [["a=\"1\""]]);
        assert_eq!(with(json!("no")), None);
    }
}
