//! The example configurations are good: for Weft, and for the Envoy that they are written for.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use weft_control_api::server::{Directory, RateLimits};
use weft_tests::{certificate_matrix::Authority, tools};

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

/// The examples with the certificates that some of them name; goes away with the test.
struct Copy(PathBuf);

impl Copy {
    fn new(name: &str) -> Self {
        let copy = std::env::temp_dir().join(format!("weft-examples-{name}-{}", std::process::id()));
        for part in ["", "files"] {
            fs::create_dir_all(copy.join(part)).expect("a directory");
            for entry in fs::read_dir(directory().join(part)).expect("there are examples") {
                let path = entry.expect("it can be listed").path();
                if path.is_file() {
                    fs::copy(&path, copy.join(part).join(path.file_name().expect("a file"))).expect("a copy");
                }
            }
        }
        let certs = copy.join("certs");
        fs::create_dir_all(&certs).expect("a directory");
        let authority = Authority::root("clients");
        fs::write(certs.join("clients-ca.pem"), &authority.pem).expect("it is written");
        for name in ["api", "wildcard"] {
            let issued = authority.leaf(|_| {});
            let put = |ending: &str, label: &str, der: &[u8]| {
                let pem = format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der));
                fs::write(certs.join(format!("{name}.{ending}")), pem).expect("it is written");
            };
            put("pem", "CERTIFICATE", &issued.chain[0]);
            put("key", "PRIVATE KEY", &issued.key);
        }
        Self(copy)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a proxy that refuses an example says.
fn refused(proxy: &Path, name: &str) -> Vec<String> {
    let copy = Copy::new(name);
    let validate = |name: &PathBuf| {
        let mut command = Command::new(proxy);
        command.current_dir(&copy.0).arg("-c").arg(name).args(["--mode", "validate", "-l", "error"]);
        let output = command.output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let is_good = output.status.success() && said.contains(&format!("configuration '{}' OK", name.display()));
        (!is_good).then(|| format!("{}: {said}", name.display()))
    };
    examples().iter().filter_map(validate).collect()
}

#[test]
fn weft_takes_every_example() {
    assert_eq!(refused(&tools::binary("weft"), "weft"), Vec::<String>::new());
}

#[test]
fn envoy_takes_every_example() {
    let Some(envoy) = tools::envoy() else { return };
    assert_eq!(refused(&envoy, "envoy"), Vec::<String>::new());
}

#[test]
fn resources_in_files_are_good() {
    let report = Directory::new(directory().join("files")).read().expect("it can be read");
    assert_eq!((report.refused, report.resources), (Vec::new(), 4));
}

#[test]
fn limits_are_good() {
    let text = fs::read_to_string(directory().join("limits/shop.yaml")).expect("it is there");
    let mut limits = RateLimits::default();
    assert_eq!(limits.add(&text).map(|()| limits.size()), Ok((1, 4)));
}
