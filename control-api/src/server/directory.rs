//! Resources out of a directory of YAML and JSON files, read again whenever they change.
//!
//! What is in a file: see `file`. Files directly in the directory are for every node. Those in a sub-directory are only for the nodes whose id, or else whose cluster, is its
//! name; there they take the place of resources of the same kind and name that are for everybody. Names that begin with
//! a dot are left out. Invariant: a file with problems changes nothing; what it held last goes on being served.

use super::{
    cache::SnapshotCache,
    file::{self, Named},
    snapshot::{Resource, Snapshot},
    watch::Watch,
};
use crate::{Problem, resource::ResourceType};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

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

#[derive(Debug)]
struct File {
    /// As it was read last, or why it could not be.
    content: Result<Vec<u8>, String>,
    /// Of the last content that had no problems.
    resources: Vec<Named>,
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
        let found = self.list()?;
        // What is in a directory that cannot be read is not gone.
        let is_there = |path: &Path| found.contains_key(path) || path.parent().is_some_and(|p| found.contains_key(p));
        let gone: Vec<PathBuf> = self.files.keys().filter(|path| !is_there(path)).cloned().collect();
        for path in gone {
            self.files.remove(&path);
            report.changed.push(path);
        }
        for (path, content) in found {
            if self.files.get(&path).is_some_and(|file| file.content == content) {
                continue;
            }
            let parsed = match &content {
                Ok(content) => file::parse(&path, content, self.unchecked),
                Err(why) => Err(vec![Problem::new("", why)]),
            };
            let empty = File { content: Ok(Vec::new()), resources: Vec::new() };
            let file = self.files.entry(path.clone()).or_insert(empty);
            file.content = content;
            match parsed {
                Ok(resources) => {
                    file.resources = resources;
                    report.changed.push(path);
                }
                Err(problems) => report.refused.push((path, problems)),
            }
        }
        let (_, doubles) = self.groups();
        report.refused.extend(doubles.iter().filter(|double| !self.told.contains(double)).cloned());
        self.told = doubles;
        report.resources = self.resources();
        Ok(report)
    }

    /// What each group of nodes gets: the group with the empty name is for all that have no other.
    pub fn snapshots(&self) -> BTreeMap<String, Snapshot> {
        let (groups, _) = self.groups();
        groups.into_iter().map(|(group, owners)| (group, snapshot(&owners))).collect()
    }

    /// Keeps `cache` as the directory says until the process ends; tells `on_report` of everything that was read, from
    /// the first time on. A directory that goes away later is waited for; what it held is served on.
    ///
    /// # Errors
    /// The directory cannot be read or watched to begin with.
    pub async fn feed(mut self, cache: &SnapshotCache, mut on_report: impl FnMut(&Report)) -> io::Result<()> {
        let mut watch = Watch::start(&self.root)?;
        let mut is_lost: Option<String> = None;
        on_report(&self.bring(cache)?);
        loop {
            watch.change(&self.root, is_lost.is_some()).await;
            match self.bring(cache) {
                Ok(report) => {
                    is_lost = None;
                    on_report(&report);
                }
                Err(e) if is_lost.as_ref() == Some(&e.to_string()) => {}
                Err(e) => {
                    let resources = self.resources();
                    let refused = vec![(self.root.clone(), vec![Problem::new("", e.to_string())])];
                    is_lost = Some(e.to_string());
                    on_report(&Report { refused, resources, ..Report::default() });
                }
            }
        }
    }

    fn bring(&mut self, cache: &SnapshotCache) -> io::Result<Report> {
        let report = self.read()?;
        if !report.changed.is_empty() {
            cache.set_all(self.snapshots());
        }
        Ok(report)
    }

    fn resources(&self) -> usize {
        self.files.values().map(|file| file.resources.len()).sum()
    }

    /// The files with what is in them, and the directories that cannot be read.
    fn list(&self) -> io::Result<BTreeMap<PathBuf, Result<Vec<u8>, String>>> {
        let mut found = BTreeMap::new();
        for path in entries(&self.root)? {
            if !path.is_dir() {
                found.extend(content(path));
                continue;
            }
            match entries(&path) {
                Ok(inner) => found.extend(inner.into_iter().filter_map(content)),
                // It went away since it was listed.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => drop(found.insert(path, Err(e.to_string()))),
            }
        }
        Ok(found)
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

/// What is in a file of resources, or why it cannot be read; `None` for everything else.
fn content(path: PathBuf) -> Option<(PathBuf, Result<Vec<u8>, String>)> {
    let extension = path.extension()?;
    if !["yaml", "yml", "json"].iter().any(|known| extension.eq_ignore_ascii_case(known)) {
        return None;
    }
    let content = match std::fs::metadata(&path) {
        // A pipe would be waited for, a directory is none of ours.
        Ok(file) if !file.is_file() => return None,
        Ok(_) => std::fs::read(&path),
        Err(e) => Err(e),
    };
    match content {
        // It went away since it was listed, unless it is a link that leads nowhere.
        Err(e) if e.kind() == io::ErrorKind::NotFound && std::fs::symlink_metadata(&path).is_err() => None,
        content => Some((path, content.map_err(|e| e.to_string()))),
    }
}
