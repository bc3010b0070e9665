//! What was measured, said three ways: the table, the goals, and every value of every round.

mod goals;
mod table;

use crate::{bench::Bench, machine::Machine, peers::DIRECT};
use serde_json::{Map, Value, json};
use std::{fs, path::Path};

/// The lines of the README between which the table is.
const BEGIN: &str = "<!-- made by `make bench` -->";
const END: &str = "<!-- end of what `make bench` makes -->";

pub struct Report<'a> {
    pub machine: &'a Machine,
    pub bench: &'a Bench,
}

impl Report<'_> {
    /// Every value of every round.
    pub fn raw(&self) -> Value {
        let samples = &self.bench.samples;
        let peers = &self.bench.peers;
        let names = peers.iter().map(|peer| peer.name).chain([DIRECT]);
        let of = |name| samples.all(name).map(|(key, values)| (key.to_owned(), json!(values))).collect::<Map<_, _>>();
        let values: Map<String, Value> = names.map(|name| (name.to_owned(), Value::Object(of(name)))).collect();
        let versions: Map<String, Value> =
            peers.iter().map(|peer| (peer.name.to_owned(), json!(peer.version))).collect();
        json!({
            "machine": self.machine.to_string(),
            "rounds": self.bench.lengths.rounds,
            "versions": versions,
            "notes": self.bench.notes,
            "values": values,
        })
    }

    /// Puts the table into the README, and the values where they are kept.
    ///
    /// # Errors
    /// The README has no place for it; a file cannot be written.
    pub fn publish(&self, readme: &Path, values: &Path) -> Result<(), String> {
        let text = fs::read_to_string(readme).map_err(|e| format!("{}: {e}", readme.display()))?;
        let (before, rest) = text.split_once(BEGIN).ok_or(format!("{}: no {BEGIN}", readme.display()))?;
        let (_, after) = rest.split_once(END).ok_or(format!("{}: no {END}", readme.display()))?;
        let text = format!("{before}{BEGIN}\n{}\n{END}{after}", self.table().trim_end());
        fs::write(readme, text).map_err(|e| format!("{}: {e}", readme.display()))?;
        fs::write(values, format!("{:#}\n", self.raw())).map_err(|e| format!("{}: {e}", values.display()))
    }
}
