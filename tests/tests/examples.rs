//! The example configurations are good: for Weft, and for the Envoy that they are written for.

use std::{
    path::{Path, PathBuf},
    process::Command,
};
use weft_control_api::server::Directory;
use weft_tests::tools;

fn directory() -> PathBuf {
    tools::repository().join("config/examples")
}

fn examples() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory()).expect("there are examples");
    let files = entries.map(|entry| entry.expect("it can be listed").path()).filter(|path| path.is_file());
    let mut names: Vec<PathBuf> = files.map(|path| PathBuf::from(path.file_name().expect("a file"))).collect();
    names.sort();
    assert!(names.len() >= 10, "{names:?}");
    names
}

/// What a proxy that refuses an example says.
fn refused(proxy: &Path) -> Vec<String> {
    let validate = |name: &PathBuf| {
        let mut command = Command::new(proxy);
        command.current_dir(directory()).arg("-c").arg(name).args(["--mode", "validate", "-l", "error"]);
        let output = command.output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let is_good = output.status.success() && said.contains(&format!("configuration '{}' OK", name.display()));
        (!is_good).then(|| format!("{}: {said}", name.display()))
    };
    examples().iter().filter_map(validate).collect()
}

#[test]
fn weft_takes_every_example() {
    assert_eq!(refused(&tools::binary("weft")), Vec::<String>::new());
}

#[test]
fn envoy_takes_every_example() {
    let Some(envoy) = tools::envoy() else { return };
    assert_eq!(refused(&envoy), Vec::<String>::new());
}

#[test]
fn resources_in_files_are_good() {
    let report = Directory::new(directory().join("files")).read().expect("it can be read");
    assert_eq!((report.refused, report.resources), (Vec::new(), 4));
}
