//! Resources out of a directory of YAML and JSON files, read again whenever they change.
//!
//! A file holds one resource (a map with `@type`) or several (`resources:`, a list of such maps). Files directly in the
//! directory are for every node. Those in a sub-directory are only for the nodes whose id, or else whose cluster, is its
//! name; there they take the place of resources of the same kind and name that are for everybody. Names that begin with
//! a dot are left out. Invariant: a file with problems changes nothing; what it held last goes on being served.

use super::{
    cache::SnapshotCache,
    snapshot::{Resource, Snapshot},
};
use crate::{
    CheckOptions, EncodeOptions, Message as _, Name as _, Problem, check, encode,
    envoy::service::discovery::v3::DiscoveryResponse, json, resource::ResourceType, text::Format, yaml,
};
use notify::{RecursiveMode, Watcher};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{sync::mpsc, time::timeout};

/// How long nothing must happen after a change before files are read: editors write in several steps.
const QUIET: Duration = Duration::from_millis(50);
/// A directory that never comes to rest is read this often.
const MOST: Duration = Duration::from_millis(500);

/// Files, each with what is wrong with it.
pub type Refused = Vec<(PathBuf, Vec<Problem>)>;

/// What came of reading the directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Files that are new, changed or gone, and had no problems.
    pub changed: Vec<PathBuf>,
    /// Files that are not taken, with everything that is wrong with them. A file is named once for each of its contents.
    pub refused: Refused,
    /// Resources that are served now.
    pub resources: usize,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    /// Constraints of the schema are not checked here.
    unchecked: bool,
    files: BTreeMap<PathBuf, File>,
    /// Names that are there twice, which were told already.
    told: Refused,
}

#[derive(Debug, Default)]
struct File {
    content: Vec<u8>,
    /// Of the last content that had no problems.
    resources: Vec<Named>,
}

#[derive(Clone, Debug)]
struct Named {
    kind: ResourceType,
    name: String,
    resource: Resource,
}

/// By group of nodes, the files of its resources.
type Owners<'a> = BTreeMap<(ResourceType, &'a str), (&'a Path, &'a Resource)>;

impl Directory {
    /// The directory at `root`, not read yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), unchecked: false, files: BTreeMap::new(), told: Vec::new() }
    }

    /// Leaves the schema's constraints to the clients, who then say for themselves what they refuse.
    #[must_use]
    pub fn unchecked(self) -> Self {
        Self { unchecked: true, ..self }
    }

    /// Reads what changed since the last time.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn read(&mut self) -> io::Result<Report> {
        let mut report = Report::default();
        let mut found = BTreeMap::new();
        for path in self.list()? {
            match std::fs::read(&path) {
                Ok(content) => drop(found.insert(path, content)),
                // It went away since it was listed.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => report.refused.push((path, vec![Problem::new("", e.to_string())])),
            }
        }
        let gone: Vec<PathBuf> = self.files.keys().filter(|path| !found.contains_key(*path)).cloned().collect();
        for path in gone {
            self.files.remove(&path);
            report.changed.push(path);
        }
        for (path, content) in found {
            if self.files.get(&path).is_some_and(|file| file.content == content) {
                continue;
            }
            let file = self.files.entry(path.clone()).or_default();
            match parse(&path, &content, self.unchecked) {
                Ok(resources) => {
                    file.resources = resources;
                    report.changed.push(path);
                }
                Err(problems) => report.refused.push((path, problems)),
            }
            file.content = content;
        }
        let (_, doubles) = self.groups();
        report.refused.extend(doubles.iter().filter(|double| !self.told.contains(double)).cloned());
        self.told = doubles;
        report.resources = self.files.values().map(|file| file.resources.len()).sum();
        Ok(report)
    }

    /// What each group of nodes gets: the group with the empty name is for all that have no other.
    pub fn snapshots(&self) -> BTreeMap<String, Snapshot> {
        let (groups, _) = self.groups();
        groups.into_iter().map(|(group, owners)| (group, snapshot(&owners))).collect()
    }

    /// Keeps `cache` as the directory says until the process ends; tells `on_report` of everything that was read, from
    /// the first time on.
    ///
    /// # Errors
    /// The directory cannot be read or watched.
    pub async fn feed(mut self, cache: &SnapshotCache, mut on_report: impl FnMut(&Report)) -> io::Result<()> {
        let (sender, mut events) = mpsc::unbounded_channel();
        let tell = move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| !event.kind.is_access()) {
                let _ = sender.send(());
            }
        };
        let mut watcher = notify::recommended_watcher(tell).map_err(io::Error::other)?;
        watcher.watch(&self.root, RecursiveMode::Recursive).map_err(io::Error::other)?;
        loop {
            let report = self.read()?;
            if !report.changed.is_empty() {
                cache.set_all(self.snapshots());
            }
            on_report(&report);
            if events.recv().await.is_none() {
                return Ok(());
            }
            let _ =
                timeout(MOST, async { while timeout(QUIET, events.recv()).await.is_ok_and(|e| e.is_some()) {} }).await;
            while events.try_recv().is_ok() {}
        }
    }

    /// The files, in order: those for everybody first.
    fn list(&self) -> io::Result<Vec<PathBuf>> {
        let (mut files, mut directories) = (Vec::new(), Vec::new());
        for path in entries(&self.root)? {
            if path.is_dir() {
                directories.push(path);
            } else if is_config(&path) {
                files.push(path);
            }
        }
        for directory in directories {
            files.extend(entries(&directory)?.into_iter().filter(|path| path.is_file() && is_config(path)));
        }
        Ok(files)
    }

    /// Resources by group, and the names that are there twice.
    fn groups(&self) -> (BTreeMap<String, Owners<'_>>, Refused) {
        let mut own: BTreeMap<String, Owners<'_>> = BTreeMap::from([(String::new(), Owners::new())]);
        let mut doubles: BTreeMap<PathBuf, Vec<Problem>> = BTreeMap::new();
        for (path, file) in &self.files {
            let group = match path.parent() {
                Some(parent) if parent != self.root => {
                    parent.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
                }
                _ => String::new(),
            };
            let owners = own.entry(group).or_default();
            for Named { kind, name, resource } in &file.resources {
                match owners.get(&(*kind, name.as_str())) {
                    Some((first, _)) => doubles.entry(path.clone()).or_default().push(Problem::new(
                        "",
                        format!(
                            "found the {} {name:?} a second time; it is in {} already",
                            kind.noun(),
                            first.display()
                        ),
                    )),
                    None => drop(owners.insert((*kind, name), (path, resource))),
                }
            }
        }
        let shared = own.get("").cloned().unwrap_or_default();
        for (group, owners) in &mut own {
            if !group.is_empty() {
                for (what, owner) in &shared {
                    owners.entry(*what).or_insert(*owner);
                }
            }
        }
        (own, doubles.into_iter().collect())
    }
}

fn snapshot(owners: &Owners<'_>) -> Snapshot {
    let mut kinds: BTreeMap<ResourceType, Vec<(String, Resource)>> = BTreeMap::new();
    for ((kind, name), (_, resource)) in owners {
        kinds.entry(*kind).or_default().push(((*name).to_owned(), (*resource).clone()));
    }
    kinds.into_iter().fold(Snapshot::default(), |snapshot, (kind, resources)| snapshot.with(kind, resources))
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

fn is_config(path: &Path) -> bool {
    path.extension().is_some_and(|e| ["yaml", "yml", "json"].iter().any(|known| e.eq_ignore_ascii_case(known)))
}

/// The resources of a file.
fn parse(path: &Path, content: &[u8], unchecked: bool) -> Result<Vec<Named>, Vec<Problem>> {
    let text = std::str::from_utf8(content).map_err(|_| vec![Problem::new("", "is not UTF-8")])?;
    let tree = match Format::of(path) {
        Ok(Format::Yaml) => yaml::parse(text),
        _ => json::parse(text),
    }
    .map_err(|problem| vec![problem])?;
    let one = tree.get("@type").is_some();
    if !one && tree.get("resources").is_none() {
        let about = "holds no resource; allowed: a map with \"@type\", or a list of such maps under \"resources\"";
        return Err(vec![Problem::new("", about)]);
    }
    let options = EncodeOptions::default();
    let (encoded, resources) = if one {
        let encoded = encode(tree, "google.protobuf.Any", options)?;
        let any = crate::Any::decode(&*encoded.bytes).map_err(|e| vec![Problem::new("", e.to_string())])?;
        (encoded, vec![any])
    } else {
        let encoded = encode(tree, &DiscoveryResponse::full_name(), options)?;
        let response = DiscoveryResponse::decode(&*encoded.bytes).map_err(|e| vec![Problem::new("", e.to_string())])?;
        (encoded, response.resources)
    };
    let (mut named, mut problems) = (Vec::new(), Vec::new());
    for (i, any) in resources.into_iter().enumerate() {
        let at = if one { String::new() } else { format!("resources[{i}]") };
        let Some(kind) = ResourceType::of_url(&any.type_url) else {
            let allowed: Vec<&str> = ResourceType::ALL.iter().map(|kind| kind.message()).collect();
            let about = format!("found {}, allowed: {}", any.type_url, allowed.join(", "));
            problems.push(Problem::new(below(&at, "@type"), about));
            continue;
        };
        let found = match unchecked {
            true => Vec::new(),
            false => check(kind.message(), &any.value, CheckOptions::default()).problems,
        };
        let is_good = found.is_empty();
        problems.extend(found.into_iter().map(|p| Problem { path: below(&at, &p.path), ..p }));
        match kind.name_of(&any.value) {
            Ok(name) if !name.is_empty() && is_good => {
                named.push(Named { kind, name, resource: Resource::new(any.value) });
            }
            Ok(name) if name.is_empty() => {
                let field = if kind == ResourceType::Endpoint { "cluster_name" } else { "name" };
                problems.push(Problem::new(below(&at, field), "is not set; a resource that is served needs a name"));
            }
            _ => {}
        }
    }
    if problems.is_empty() {
        return Ok(named);
    }
    encoded.locate(&mut problems);
    Err(problems)
}

fn below(at: &str, path: &str) -> String {
    match (at, path) {
        ("", path) => path.to_owned(),
        (at, "") => at.to_owned(),
        (at, path) => format!("{at}.{path}"),
    }
}
