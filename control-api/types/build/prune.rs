//! Keeps of a FileDescriptorSet only the messages, enums and services that the roots reach.

use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};
use std::collections::{BTreeMap, BTreeSet};

/// Decodes `schema` and drops every top-level message and enum that no root reaches. A root is a full message name,
/// or a package prefix followed by `.*` (its services are kept too).
pub fn prune(schema: &[u8], roots: &str) -> Result<FileDescriptorSet, Box<dyn std::error::Error>> {
    let mut set = FileDescriptorSet::decode(schema)?;

    // Every name (nested too) leads to the top-level message or enum that holds it, with the names that one refers to.
    let mut owner: BTreeMap<String, String> = BTreeMap::new();
    let mut refers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in &set.file {
        for message in &file.message_type {
            let top = format!(".{}.{}", file.package(), message.name());
            let mut names = BTreeSet::new();
            collect(message, &top, &top, &mut owner, &mut names);
            refers.insert(top, names);
        }
        for e in &file.enum_type {
            let top = format!(".{}.{}", file.package(), e.name());
            owner.insert(top.clone(), top);
        }
    }

    let mut keep = BTreeSet::new();
    let mut todo: Vec<String> = Vec::new();
    let mut packages = Vec::new();
    for root in roots.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let before = todo.len();
        if let Some(package) = root.strip_suffix(".*") {
            let prefix = format!(".{package}.");
            todo.extend(refers.keys().filter(|n| n.starts_with(&prefix)).cloned());
            packages.push(package.to_owned());
        } else if refers.contains_key(&format!(".{root}")) {
            todo.push(format!(".{root}"));
        }
        if todo.len() == before {
            return Err(format!("schema/roots.txt: {root} names nothing in the schema").into());
        }
    }
    let in_packages = |f: &FileDescriptorProto| {
        packages.iter().any(|p| f.package() == p || f.package().starts_with(&format!("{p}.")))
    };
    for file in set.file.iter().filter(|f| in_packages(f)) {
        for method in file.service.iter().flat_map(|s| &s.method) {
            todo.extend([method.input_type().to_owned(), method.output_type().to_owned()]);
        }
    }
    while let Some(name) = todo.pop() {
        let Some(top) = owner.get(&name).cloned() else { continue };
        if keep.insert(top.clone()) {
            todo.extend(refers.get(&top).into_iter().flatten().cloned());
        }
    }

    for file in &mut set.file {
        file.extension.clear();
        file.source_code_info = None;
        let package = file.package().to_owned();
        if package == "google.protobuf" {
            continue; // prost maps the well-known types to its own, but wants to see them
        }
        file.message_type.retain(|m| keep.contains(&format!(".{package}.{}", m.name())));
        file.enum_type.retain(|e| keep.contains(&format!(".{package}.{}", e.name())));
        if !packages.iter().any(|p| package == *p || package.starts_with(&format!("{p}."))) {
            file.service.clear();
        }
    }
    set.file.retain(|f| !f.message_type.is_empty() || !f.enum_type.is_empty() || !f.service.is_empty());
    Ok(set)
}

fn collect(
    message: &DescriptorProto,
    name: &str,
    top: &str,
    owner: &mut BTreeMap<String, String>,
    refers: &mut BTreeSet<String>,
) {
    owner.insert(name.to_owned(), top.to_owned());
    refers.extend(message.field.iter().filter_map(|f| f.type_name.clone()));
    for e in &message.enum_type {
        owner.insert(format!("{name}.{}", e.name()), top.to_owned());
    }
    for nested in &message.nested_type {
        collect(nested, &format!("{name}.{}", nested.name()), top, owner, refers);
    }
}
