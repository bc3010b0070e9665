//! Loads a bootstrap from a file, from text given on the command line, or from both.
//!
//! Called at start-up and by `--mode validate`. The result is checked against the schema's constraints; what it means
//! is [`crate::Bootstrap`]'s matter. Invariant: the text on the command line is merged over the file as protobuf
//! merges: messages field by field, lists one after the other, single values replaced.

use prost::Message as _;
use std::path::Path;
use weft_control_api::{
    CheckOptions, Checked, EncodeOptions, Encoded, Problem, add_later, check,
    envoy::config::bootstrap::v3::{Bootstrap, runtime_layer::LayerSpecifier},
    node::{self, Node},
    text::{self, Format},
};

const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";
/// Envoy's runtime key that takes what is deprecated for too long.
const TAKE_ALL_DEPRECATED: &str = "envoy.features.enable_all_deprecated_features";

/// Where a bootstrap comes from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sources<'a> {
    /// The file (`-c`).
    pub path: Option<&'a Path>,
    /// YAML text to merge over it (`--config-yaml`); empty counts as none.
    pub yaml: Option<&'a str>,
}

/// How strict to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// Only list fields that the schema does not know (`--allow-unknown-static-fields`).
    pub allow_unknown: bool,
}

/// A bootstrap that the schema agrees with.
#[derive(Debug)]
pub struct Loaded {
    /// On the wire.
    pub bytes: Vec<u8>,
    /// As protobuf.
    pub proto: Bootstrap,
    /// Fields that the schema does not know, left out.
    pub unknown: Vec<Problem>,
    /// Deprecated fields in use.
    pub deprecated: Vec<Problem>,
    /// Fields in use that are marked as work in progress.
    pub work_in_progress: Vec<Problem>,
    texts: Vec<Node>,
}

impl Loaded {
    /// Gives problems that were found in the bootstrap their places in the text.
    pub fn locate(&self, problems: &mut [Problem]) {
        node::locate(&self.texts, problems);
    }
}

/// Why a bootstrap is refused.
#[derive(Debug, Default)]
pub struct Refused {
    /// Everything that the schema finds wrong with it.
    pub problems: Vec<Problem>,
    /// What could be read of it nevertheless, for whoever wants to know what else is wrong.
    pub partial: Option<Box<Loaded>>,
}

/// Loads a bootstrap.
///
/// # Errors
/// Everything that is wrong with it: a file that cannot be read, text that is no YAML, fields that do not exist,
/// values that the schema forbids.
pub fn load(sources: Sources<'_>, options: LoadOptions) -> Result<Loaded, Refused> {
    let encode_options = EncodeOptions { allow_unknown: options.allow_unknown };
    let yaml = sources.yaml.filter(|text| !text.is_empty());
    let mut problems = Vec::new();
    if sources.path.is_none() && yaml.is_none() {
        problems.push(Problem::new("", "there is no configuration: give a file (-c) or text (--config-yaml)"));
    }
    let mut found = Vec::new();
    let mut take = |(part, more): (Option<Encoded>, Vec<Problem>)| {
        found.extend(part);
        problems.extend(more);
    };
    if let Some(path) = sources.path {
        take(read_file(path, encode_options));
    }
    if let Some(yaml) = yaml {
        take(text::read_partly(yaml.as_bytes(), Format::Yaml, BOOTSTRAP, encode_options));
    }
    // Only what was read as a whole is worth a second look.
    let whole = found.len() == usize::from(sources.path.is_some()) + usize::from(yaml.is_some());
    if whole { finish(found, problems, options) } else { Err(Refused { problems, partial: None }) }
}

fn read_file(path: &Path, options: EncodeOptions) -> (Option<Encoded>, Vec<Problem>) {
    let format = match Format::of(path) {
        Ok(format) => format,
        Err(problem) => return (None, vec![problem]),
    };
    match std::fs::read(path) {
        Ok(content) => text::read_partly(&content, format, BOOTSTRAP, options),
        Err(e) => (None, vec![Problem::new("", format!("cannot read {}: {e}", path.display()))]),
    }
}

fn finish(parts: Vec<Encoded>, mut problems: Vec<Problem>, options: LoadOptions) -> Result<Loaded, Refused> {
    let (mut bytes, mut unknown, mut texts) = (Vec::new(), Vec::new(), Vec::new());
    for mut part in parts {
        // Messages one after the other are, to protobuf, the later merged over the earlier.
        bytes.append(&mut part.bytes);
        unknown.append(&mut part.unknown);
        texts.extend(part.into_node());
    }

    let proto = Bootstrap::decode(&*bytes);
    let check_options = CheckOptions {
        reject_unknown: !options.allow_unknown,
        allow_disallowed: proto.as_ref().is_ok_and(takes_all_deprecated),
    };
    let Checked { problems: mut broken, unknown: mut more, mut deprecated, mut work_in_progress } =
        check(BOOTSTRAP, &bytes, check_options);
    for list in [&mut broken, &mut more, &mut deprecated, &mut work_in_progress] {
        node::locate(&texts, list);
    }
    add_later(&mut problems, broken);
    unknown.append(&mut more);
    let proto = match proto {
        Ok(proto) => proto,
        Err(e) => {
            if problems.is_empty() {
                problems.push(Problem::new("", format!("is no {BOOTSTRAP}: {e}")));
            }
            return Err(Refused { problems, partial: None });
        }
    };
    let loaded = Loaded { bytes, proto, unknown, deprecated, work_in_progress, texts };
    if problems.is_empty() { Ok(loaded) } else { Err(Refused { problems, partial: Some(Box::new(loaded)) }) }
}

/// True if the static runtime of the bootstrap takes what is deprecated for too long.
fn takes_all_deprecated(bootstrap: &Bootstrap) -> bool {
    use weft_control_api::value::Kind;
    let mut taken = false;
    for layer in bootstrap.layered_runtime.iter().flat_map(|runtime| &runtime.layers) {
        if let Some(LayerSpecifier::StaticLayer(layer)) = &layer.layer_specifier
            && let Some(value) = layer.fields.get(TAKE_ALL_DEPRECATED)
        {
            taken = matches!(value.kind, Some(Kind::BoolValue(true)));
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_yaml(yaml: &str) -> Result<Loaded, Vec<Problem>> {
        load(Sources { path: None, yaml: Some(yaml) }, LoadOptions::default()).map_err(|refused| refused.problems)
    }

    /// A file with this content that lives as long as the value.
    struct File(std::path::PathBuf);

    impl File {
        fn new(name: &str, content: &[u8]) -> Self {
            let path = std::env::temp_dir().join(format!("weft-load-{}-{name}", std::process::id()));
            std::fs::write(&path, content).unwrap();
            Self(path)
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn text_is_merged_over_the_file() {
        let file = File::new(
            "base.yaml",
            b"node: {id: a, cluster: c}\nstatic_resources:\n  clusters: [{name: one}]\nstats_flush_on_admin: true\n",
        );
        let yaml = "node: {id: b}\nstatic_resources:\n\n\n\n\n  clusters: [{name: two}]\n";
        let loaded = load(Sources { path: Some(&file.0), yaml: Some(yaml) }, LoadOptions::default()).unwrap();
        let node = loaded.proto.node.as_ref().unwrap();
        assert_eq!((&*node.id, &*node.cluster), ("b", "c"));
        let names: Vec<_> = loaded.proto.static_resources.iter().flat_map(|s| &s.clusters).map(|c| &*c.name).collect();
        assert_eq!(names, ["one", "two"]);

        let mut problems = ["static_resources.clusters[1].name", "static_resources.clusters[0].name"]
            .map(|path| Problem::new(path, "x"));
        loaded.locate(&mut problems);
        assert_eq!(problems.map(|p| p.position.unwrap().line), [7, 3]);
    }

    #[test]
    fn formats_by_extension() {
        let wire = load_yaml("node: {id: a}").unwrap().bytes;
        for (name, content, ok) in [
            ("a.yaml", &b"node: {id: a}"[..], true),
            ("a.YML", b"node: {id: a}", true),
            ("a.json", b"{\"node\": {\"id\": \"a\"}}", true),
            ("a.conf", b"{\"node\": {\"id\": \"a\"}}", true),
            ("b.conf", b"node: {id: a}", false),
            ("a.pb", &wire, true),
            ("b.pb", b"\xff\xff\xff", false),
            ("a.pb_text", b"node { id: \"a\" }", false),
            ("c.yaml", b"\xff", false),
        ] {
            let file = File::new(name, content);
            let loaded = load(Sources { path: Some(&file.0), yaml: None }, LoadOptions::default());
            assert_eq!(loaded.is_ok(), ok, "{name}: {loaded:?}");
            assert!(loaded.is_err() || loaded.is_ok_and(|l| l.proto.node.unwrap().id == "a"));
        }
    }

    #[test]
    fn nothing_to_load_is_a_problem() {
        for sources in [
            Sources::default(),
            Sources { path: None, yaml: Some("") },
            Sources { path: Some(Path::new("/nonexistent/envoy.yaml")), yaml: None },
        ] {
            assert_eq!(load(sources, LoadOptions::default()).unwrap_err().problems.len(), 1);
        }
    }

    #[test]
    fn constraints_and_unknown_fields() {
        let found = load_yaml("static_resources: {clusters: [{name: '', connect_timeout: 0s}]}").unwrap_err();
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|p| p.position.is_some()));
        assert!(load_yaml("nope: 1").is_err());
        // What is no field, what is no value and what the schema forbids, at once.
        let found = load_yaml("nope: 1\nnode: {id: [x]}\nstatic_resources: {clusters: [{name: ''}]}").unwrap_err();
        let paths: Vec<_> = found.iter().map(|p| &*p.path).collect();
        assert_eq!(paths, ["nope", "node.id", "static_resources.clusters[0].name"]);
        let sources = Sources { path: None, yaml: Some("nope: 1\nnode: {also: 2}") };
        assert_eq!(load(sources, LoadOptions { allow_unknown: true }).unwrap().unknown.len(), 2);
    }

    #[test]
    fn runtime_takes_what_is_refused_by_default() {
        let listener = "static_resources: {listeners: [{filter_chains: [{filters: [{name: h, typed_config: {'@type': \
            type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: p, \
            route_config: {virtual_hosts: [{name: v, domains: ['*'], rate_limits: [{actions: [{dynamic_metadata: {descriptor_key: a, \
            metadata_key: {key: k, path: [{key: z}]}}}]}]}]}}}]}]}]}\n";
        let with = |value: &str| {
            load_yaml(&format!(
                "{listener}layered_runtime: {{layers: [{{name: s, static_layer: {{{TAKE_ALL_DEPRECATED}: {value}}}}}]}}"
            ))
        };
        assert!(load_yaml(listener).unwrap_err()[0].path.ends_with("actions[0].dynamic_metadata"));
        assert!(with("true").is_ok());
        assert!(with("'true'").is_err() && with("false").is_err());
    }
}
