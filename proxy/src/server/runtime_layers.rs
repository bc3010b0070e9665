//! The runtime's layers as the server keeps them: what each says, and the one that the admin API may change.

use crate::{admin::RuntimeDump, base::RuntimeSnapshot};
use std::collections::BTreeMap;
use weft_config::runtime::{RuntimeLayer, RuntimeSource, RuntimeValue};

/// All layers, from the first to the last.
pub struct RuntimeLayers {
    layers: Vec<Layer>,
}

struct Layer {
    name: String,
    is_admin: bool,
    values: Vec<(String, RuntimeValue)>,
}

impl RuntimeLayers {
    /// The layers of a bootstrap; those that come from elsewhere begin empty.
    pub fn new(configured: &[RuntimeLayer]) -> Self {
        let layer = |layer: &RuntimeLayer| Layer {
            name: layer.name.clone(),
            is_admin: matches!(layer.source, RuntimeSource::Admin),
            values: match &layer.source {
                RuntimeSource::Static(values) => values.clone(),
                _ => Vec::new(),
            },
        };
        Self { layers: configured.iter().map(layer).collect() }
    }

    pub fn snapshot(&self) -> RuntimeSnapshot {
        RuntimeSnapshot::new(self.layers.iter().map(|layer| layer.values.as_slice()))
    }

    /// Sets values of the admin layer; an empty one removes its key.
    ///
    /// # Errors
    /// There is no admin layer.
    pub fn modify(&mut self, changes: &[(String, String)]) -> Result<(), String> {
        let layer = self.layers.iter_mut().find(|layer| layer.is_admin).ok_or("No admin layer specified")?;
        for (key, text) in changes {
            layer.values.retain(|(k, _)| k != key);
            if !text.is_empty() {
                layer.values.push((key.clone(), parse(text)));
            }
        }
        Ok(())
    }

    pub fn dump(&self) -> RuntimeDump {
        let mut entries: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (at, layer) in self.layers.iter().enumerate() {
            for (key, value) in &layer.values {
                let texts = entries.entry(key).or_insert_with(|| vec![String::new(); self.layers.len()]);
                texts[at] = value.text();
            }
        }
        RuntimeDump {
            layers: self.layers.iter().map(|layer| layer.name.clone()).collect(),
            entries: entries.into_iter().map(|(key, texts)| (key.to_owned(), texts)).collect(),
        }
    }

    /// (layers, keys, keys of the admin layer), for stats.
    pub fn counts(&self) -> (u64, u64, u64) {
        let keys = self.dump().entries.len();
        let overrides =
            self.layers.iter().filter(|layer| layer.is_admin).map(|layer| layer.values.len()).sum::<usize>();
        (self.layers.len() as u64, keys as u64, overrides as u64)
    }
}

fn parse(text: &str) -> RuntimeValue {
    match (text.parse::<f64>(), text) {
        (Ok(number), _) => RuntimeValue::Number(number),
        (_, "true") => RuntimeValue::Bool(true),
        (_, "false") => RuntimeValue::Bool(false),
        _ => RuntimeValue::Text(text.to_owned()),
    }
}
