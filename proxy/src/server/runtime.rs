//! The runtime layers: what each holds now, and the flattened values that are handed to everyone else.
//!
//! Owned by the control thread. A change of a layer (the admin API, RTDS, files) makes a new [`RuntimeSnapshot`]; who holds the old
//! one is not disturbed.

use crate::{
    admin::RuntimeDump,
    base::RuntimeSnapshot,
    observe::{
        stats::{Registry, RuntimeStats},
        stats_text::six_digits,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use weft_config::{
    ConfigSource,
    runtime::{RuntimeLayer, RuntimeSource, RuntimeValue, text_value},
};
use weft_control_api::{
    EncodeOptions, Message as _,
    envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType},
    text::{self, Format},
};

/// Directories below a layer's own are followed this deep.
const MAX_DEPTH: usize = 16;

/// The layers, from the first to the last, and what they come to.
pub struct Runtime {
    layers: Vec<Layer>,
    snapshot: Arc<RuntimeSnapshot>,
    stats: Arc<RuntimeStats>,
    /// Feature flags that were named and are none of ours; logged once each.
    unknown: BTreeSet<String>,
}

struct Layer {
    name: String,
    kind: Kind,
    values: Vec<(String, RuntimeValue)>,
    /// Values as they were written, where they came as text.
    texts: BTreeMap<String, String>,
}

enum Kind {
    Static,
    /// Files below a directory. `is_there`: the directory existed when it was read last.
    Disk {
        root: PathBuf,
        directory: PathBuf,
        is_there: bool,
    },
    Admin,
    /// A resource; `is_settled` once it came, or was waited for long enough.
    Rtds {
        name: String,
        source: ConfigSource,
        is_settled: bool,
    },
}

impl Runtime {
    /// Builds the layers of a bootstrap and reads those on disk.
    pub fn new(layers: &[RuntimeLayer], service_cluster: &str, registry: &Registry) -> Self {
        let layers = layers.iter().map(|layer| Layer::new(layer, service_cluster)).collect();
        let mut runtime =
            Self { layers, snapshot: Arc::default(), stats: registry.attach("runtime"), unknown: BTreeSet::new() };
        // So that they show, and count as written, from the start.
        runtime.stats.deprecated_feature_seen_since_process_start.set(0);
        runtime.reload();
        runtime
    }

    /// The values as they are now.
    pub fn snapshot(&self) -> Arc<RuntimeSnapshot> {
        self.snapshot.clone()
    }

    /// Directories whose entries are to be watched: when one of them changes, [`Runtime::reload`] is called.
    pub fn watched(&self) -> Vec<PathBuf> {
        let root = |layer: &Layer| match &layer.kind {
            Kind::Disk { root, .. } => root.parent().map(Path::to_owned),
            _ => None,
        };
        self.layers.iter().filter_map(root).collect()
    }

    /// The resources to ask for over RTDS, and where.
    pub fn rtds(&self) -> impl Iterator<Item = (&str, &ConfigSource)> {
        self.layers.iter().filter_map(|layer| match &layer.kind {
            Kind::Rtds { name, source, .. } => Some((name.as_str(), source)),
            _ => None,
        })
    }

    /// True once every RTDS resource came, or was waited for long enough.
    pub fn is_settled(&self) -> bool {
        self.layers.iter().all(|layer| !matches!(layer.kind, Kind::Rtds { is_settled: false, .. }))
    }

    /// Sets what the RTDS resource `name` holds. `None`: it did not come in time, and what there was stays.
    pub fn set_rtds(&mut self, name: &str, values: Option<Vec<(String, RuntimeValue)>>) {
        for layer in &mut self.layers {
            if let Kind::Rtds { name: resource, is_settled, .. } = &mut layer.kind
                && resource == name
            {
                *is_settled = true;
                if let Some(values) = &values {
                    layer.values.clone_from(values);
                }
            }
        }
        if values.is_some() {
            self.reload();
        }
    }

    /// Sets values of the admin layer; an empty value removes one.
    ///
    /// # Errors
    /// There is no admin layer.
    pub fn modify(&mut self, changes: &[(String, String)]) -> Result<(), String> {
        let admin = self.layers.iter_mut().find(|layer| matches!(layer.kind, Kind::Admin));
        let layer = admin.ok_or("No admin layer specified")?;
        for (key, text) in changes {
            layer.values.retain(|(known, _)| known != key);
            layer.texts.remove(key);
            if !text.is_empty() {
                layer.set_text(key.clone(), text.clone());
            }
        }
        self.reload();
        Ok(())
    }

    /// Reads files anew and flattens all layers.
    pub fn reload(&mut self) {
        let (mut failed, mut on_disk) = (false, 0);
        for layer in &mut self.layers {
            let Kind::Disk { directory, is_there, .. } = &mut layer.kind else { continue };
            *is_there = directory.is_dir();
            if *is_there {
                on_disk += 1;
            }
            let directory = directory.clone();
            if let Err(error) = layer.read_directory(&directory) {
                tracing::warn!(target: "runtime", "cannot read the runtime layer {:?}: {error}", layer.name);
                failed = true;
            }
        }
        self.snapshot = Arc::new(RuntimeSnapshot::new(self.layers.iter().map(|layer| layer.values.as_slice())));
        self.warn_of_features();

        let stats = &self.stats;
        if failed {
            stats.load_error.inc()
        } else {
            stats.load_success.inc()
        }
        if on_disk > 1 {
            stats.override_dir_exists.inc()
        } else {
            stats.override_dir_not_exists.inc()
        }
        let keys: BTreeSet<&str> = self.shown().flat_map(Layer::keys).collect();
        stats.num_keys.set(keys.len() as u64);
        stats.num_layers.set(self.shown().count() as u64);
        let overrides = self.layers.iter().any(|layer| matches!(layer.kind, Kind::Admin) && !layer.values.is_empty());
        stats.admin_overrides_active.set(overrides.into());
    }

    /// For `/runtime`.
    pub fn dump(&self) -> RuntimeDump {
        let layers: Vec<&Layer> = self.shown().collect();
        let mut entries: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (i, layer) in layers.iter().enumerate() {
            for (key, value) in &layer.values {
                let texts = entries.entry(key).or_insert_with(|| vec![String::new(); layers.len()]);
                texts[i] = layer.text(key, value);
            }
        }
        RuntimeDump {
            layers: layers.iter().map(|layer| layer.name.clone()).collect(),
            entries: entries.into_iter().map(|(key, texts)| (key.to_owned(), texts)).collect(),
        }
    }

    /// All but those whose directory is not there.
    fn shown(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().filter(|layer| !matches!(layer.kind, Kind::Disk { is_there: false, .. }))
    }

    /// Says which of Envoy's feature flags are named that change nothing here.
    fn warn_of_features(&mut self) {
        let is_flag =
            |key: &str| key.starts_with("envoy.reloadable_features.") || key.starts_with("envoy.restart_features.");
        let flags: Vec<String> =
            self.layers.iter().flat_map(Layer::keys).filter(|key| is_flag(key)).map(str::to_owned).collect();
        for flag in flags {
            if !self.unknown.contains(&flag) {
                tracing::warn!(target: "runtime", "{flag} has no meaning here");
                self.unknown.insert(flag);
            }
        }
    }
}

impl Layer {
    fn new(layer: &RuntimeLayer, service_cluster: &str) -> Self {
        let mut values = Vec::new();
        let kind = match &layer.source {
            RuntimeSource::Static(fixed) => {
                values.clone_from(fixed);
                Kind::Static
            }
            RuntimeSource::Disk { symlink_root, subdirectory, append_service_cluster } => {
                let mut directory = Path::new(symlink_root).join(subdirectory.trim_start_matches('/'));
                if *append_service_cluster {
                    directory.push(service_cluster);
                }
                Kind::Disk { root: symlink_root.into(), directory, is_there: false }
            }
            RuntimeSource::Admin => Kind::Admin,
            RuntimeSource::Rtds { name, source } => {
                Kind::Rtds { name: name.clone(), source: source.clone(), is_settled: false }
            }
        };
        Self { name: layer.name.clone(), kind, values, texts: BTreeMap::new() }
    }

    fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.iter().map(|(key, _)| key.as_str())
    }

    fn text(&self, key: &str, value: &RuntimeValue) -> String {
        match (self.texts.get(key), value) {
            (Some(text), _) => text.clone(),
            (None, RuntimeValue::Number(n)) => six_digits(*n),
            (None, value) => value.text(),
        }
    }

    fn set_text(&mut self, key: String, text: String) {
        let value = fraction(&text).unwrap_or_else(|| text_value(text.clone()));
        self.texts.insert(key.clone(), text);
        self.values.push((key, value));
    }

    fn read_directory(&mut self, directory: &Path) -> io::Result<()> {
        self.values.clear();
        self.texts.clear();
        if !directory.is_dir() {
            return Ok(());
        }
        let mut files = Vec::new();
        walk(directory, "", MAX_DEPTH, &mut files)?;
        files.sort();
        for (key, text) in files {
            self.set_text(key, text);
        }
        Ok(())
    }
}

/// Files below a directory: the way to them, with dots, and what they hold without comments.
fn walk(directory: &Path, prefix: &str, depth: usize, out: &mut Vec<(String, String)>) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the directories are too deep"));
    }
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let key = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
        // Links are followed: that is how whole trees are switched at once.
        let path = entry.path();
        let kind = std::fs::metadata(&path)?;
        if kind.is_dir() {
            walk(&path, &key, depth - 1, out)?;
        } else if kind.is_file() {
            let text = std::fs::read_to_string(&path)?;
            let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
            out.push((key, lines.join("\n").trim_end().to_owned()));
        }
    }
    Ok(())
}

/// `{numerator: 5, denominator: MILLION}`.
fn fraction(text: &str) -> Option<RuntimeValue> {
    text.trim_start().strip_prefix('{')?;
    let name = "envoy.type.v3.FractionalPercent";
    let encoded = text::read(text.as_bytes(), Format::Yaml, name, EncodeOptions::default()).ok()?;
    let FractionalPercent { numerator, denominator } = FractionalPercent::decode(&encoded.bytes[..]).ok()?;
    let denominator = match DenominatorType::try_from(denominator).ok()? {
        DenominatorType::Hundred => 100,
        DenominatorType::TenThousand => 10_000,
        DenominatorType::Million => 1_000_000,
    };
    Some(RuntimeValue::Fraction { numerator, denominator })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str, source: RuntimeSource) -> RuntimeLayer {
        RuntimeLayer { name: name.to_owned(), source }
    }

    fn stat(registry: &Registry, name: &str) -> u64 {
        let mut found = 0;
        registry.visit(&mut |full, stat| match stat {
            crate::observe::stats::StatRef::Gauge(gauge) if full == name => found = gauge.get(),
            crate::observe::stats::StatRef::Counter(counter) if full == name => found = counter.get(),
            _ => {}
        });
        found
    }

    #[test]
    fn the_admin_layer_overrides_and_gives_back() {
        let registry = Registry::new();
        let fixed = vec![
            ("my.frac".to_owned(), RuntimeValue::Number(100.0)),
            ("my.flag".to_owned(), RuntimeValue::Bool(true)),
            ("big".to_owned(), RuntimeValue::Number(1e7)),
        ];
        let layers = [layer("s", RuntimeSource::Static(fixed)), layer("adm", RuntimeSource::Admin)];
        let mut runtime = Runtime::new(&layers, "", &registry);
        let before = runtime.snapshot();
        let changes = [("my.frac", "0"), ("new", "{numerator: 5, denominator: MILLION}")];
        let changes = changes.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(runtime.modify(&changes), Ok(()));
        assert_eq!((before.integer("my.frac"), runtime.snapshot().integer("my.frac")), (Some(100), Some(0)));
        let fraction = RuntimeValue::Fraction { numerator: 5, denominator: 1_000_000 };
        assert_eq!(runtime.snapshot().get("new"), Some(&fraction));
        let dump = runtime.dump();
        assert_eq!(dump.layers, ["s", "adm"]);
        assert_eq!(dump.entries[0], ("big".to_owned(), vec!["1e+07".to_owned(), String::new()]));
        assert_eq!(dump.entries[2], ("my.frac".to_owned(), vec!["100".to_owned(), "0".to_owned()]));
        let counts = ["num_keys", "num_layers", "admin_overrides_active", "load_success"];
        assert_eq!(counts.map(|name| stat(&registry, &format!("runtime.{name}"))), [4, 2, 1, 2]);
        assert_eq!(runtime.modify(&[("my.frac".to_owned(), String::new())]), Ok(()));
        assert_eq!(runtime.snapshot().integer("my.frac"), Some(100));
        assert!(Runtime::new(&layers[..1], "", &registry).modify(&changes).is_err());
    }

    #[test]
    fn files_are_keys() {
        let root = std::env::temp_dir().join(format!("weft-runtime-{}", std::process::id()));
        std::fs::create_dir_all(root.join("sub/cl/deep")).expect("a directory");
        std::fs::write(root.join("sub/cl/deep/k"), "# why\n  5 \n").expect("a file");
        let disk = |subdirectory: &str| RuntimeSource::Disk {
            symlink_root: root.display().to_string(),
            subdirectory: subdirectory.to_owned(),
            append_service_cluster: true,
        };
        let registry = Registry::new();
        let mut runtime = Runtime::new(&[layer("d", disk("sub")), layer("none", disk("no"))], "cl", &registry);
        assert_eq!(runtime.snapshot().integer("deep.k"), Some(5));
        assert_eq!(runtime.dump().layers, ["d"]);
        assert_eq!(runtime.dump().entries, [("deep.k".to_owned(), vec!["  5".to_owned()])]);
        std::fs::write(root.join("sub/cl/other"), "true").expect("a file");
        runtime.reload();
        assert_eq!(runtime.snapshot().boolean("other"), Some(true));
        std::fs::remove_dir_all(&root).expect("it was made above");
    }
}
