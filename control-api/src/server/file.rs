//! One file of resources: its text as resources that are good by the schema, or everything that is wrong with it.
//!
//! Called by [`Directory`](super::Directory). A file holds one resource (a map with `@type`) or several (`resources:`, a
//! list of such maps, as in a response of Envoy's API); a YAML file may hold several documents of either form.

use super::snapshot::Resource;
use crate::{
    Any, CheckOptions, EncodeOptions, Message as _, Name as _, Problem, check, encode,
    envoy::service::discovery::v3::DiscoveryResponse, json, node::Node, resource::ResourceType, text::Format, yaml,
};
use std::path::Path;

/// A resource and what it is called.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub kind: ResourceType,
    pub name: String,
    pub resource: Resource,
}

/// The resources of the file `path`, whose content this is; `unchecked`: the schema's constraints are not looked at.
///
/// # Errors
/// Everything that is wrong with it, with places.
pub(super) fn parse(path: &Path, content: &[u8], unchecked: bool) -> Result<Vec<Named>, Vec<Problem>> {
    let text = std::str::from_utf8(content).map_err(|_| vec![Problem::new("", "is not UTF-8")])?;
    let documents = match Format::of(path) {
        Ok(Format::Yaml) => yaml::parse_all(text),
        _ => json::parse(text).map(|document| vec![document]),
    };
    let (mut all, mut problems) = (Vec::new(), Vec::new());
    for document in documents.map_err(|problem| vec![problem])? {
        match resources(document, unchecked) {
            Ok(resources) => all.extend(resources),
            Err(found) => problems.extend(found),
        }
    }
    if problems.is_empty() { Ok(all) } else { Err(problems) }
}

/// The resources of a document.
fn resources(document: Node, unchecked: bool) -> Result<Vec<Named>, Vec<Problem>> {
    let one = document.get("@type").is_some();
    if !one && document.get("resources").is_none() {
        let about = "holds no resource; allowed: a map with \"@type\", or a list of such maps under \"resources\"";
        return Err(vec![Problem::at(document.position, "", about)]);
    }
    let message = if one { Any::full_name() } else { DiscoveryResponse::full_name() };
    let encoded = encode(document, &message, EncodeOptions::default())?;
    let undecodable = |e: prost::DecodeError| vec![Problem::new("", e.to_string())];
    let resources = if one {
        vec![Any::decode(&*encoded.bytes).map_err(undecodable)?]
    } else {
        DiscoveryResponse::decode(&*encoded.bytes).map_err(undecodable)?.resources
    };
    let (mut all, mut problems) = (Vec::new(), Vec::new());
    for (i, any) in resources.into_iter().enumerate() {
        let at = if one { String::new() } else { format!("resources[{i}]") };
        match named(any, unchecked) {
            Ok(resource) => all.push(resource),
            Err(found) => problems.extend(found.into_iter().map(|p| Problem { path: below(&at, &p.path), ..p })),
        }
    }
    if problems.is_empty() {
        return Ok(all);
    }
    encoded.locate(&mut problems);
    Err(problems)
}

fn named(any: Any, unchecked: bool) -> Result<Named, Vec<Problem>> {
    let Some(kind) = ResourceType::of_url(&any.type_url) else {
        let allowed: Vec<&str> = ResourceType::ALL.iter().map(|kind| kind.url()).collect();
        let about = format!("found {:?}, allowed: {}", any.type_url, allowed.join(", "));
        return Err(vec![Problem::new("@type", about)]);
    };
    let mut problems = match unchecked {
        true => Vec::new(),
        false => check(kind.message(), &any.value, CheckOptions::default()).problems,
    };
    let name = kind.name_of(&any.value).unwrap_or_default();
    let field = if kind == ResourceType::Endpoint { "cluster_name" } else { "name" };
    if name.is_empty() && !problems.iter().any(|problem| problem.path == field) {
        problems.push(Problem::new(field, "is not set; a resource that is served needs a name"));
    }
    if problems.is_empty() { Ok(Named { kind, name, resource: Resource::new(any.value) }) } else { Err(problems) }
}

fn below(at: &str, path: &str) -> String {
    match (at, path) {
        ("", path) => path.to_owned(),
        (at, "") => at.to_owned(),
        (at, path) => format!("{at}.{path}"),
    }
}
