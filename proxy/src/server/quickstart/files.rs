//! The files of the mesh: written once, from then on the user's.

use super::{NODES, ports::Ports, run_directory};
use std::{fs, io, path::Path};

/// What every proxy is started with.
const BOOTSTRAP: &str = include_str!("../../../../config/quickstart/bootstrap.yaml");

/// The resources, by path.
const RESOURCES: [(&str, &str); 10] = [
    ("endpoints.yaml", include_str!("../../../../config/quickstart/endpoints.yaml")),
    ("gateway/listeners.yaml", include_str!("../../../../config/quickstart/gateway/listeners.yaml")),
    ("gateway/routes.yaml", include_str!("../../../../config/quickstart/gateway/routes.yaml")),
    ("gateway/clusters.yaml", include_str!("../../../../config/quickstart/gateway/clusters.yaml")),
    ("sidecar-a/listeners.yaml", include_str!("../../../../config/quickstart/sidecar-a/listeners.yaml")),
    ("sidecar-a/routes.yaml", include_str!("../../../../config/quickstart/sidecar-a/routes.yaml")),
    ("sidecar-a/clusters.yaml", include_str!("../../../../config/quickstart/sidecar-a/clusters.yaml")),
    ("sidecar-b/listeners.yaml", include_str!("../../../../config/quickstart/sidecar-b/listeners.yaml")),
    ("sidecar-b/routes.yaml", include_str!("../../../../config/quickstart/sidecar-b/routes.yaml")),
    ("sidecar-b/clusters.yaml", include_str!("../../../../config/quickstart/sidecar-b/clusters.yaml")),
];

/// Writes the bootstraps, and the resources if they are not there yet: what the user changed stays.
///
/// # Errors
/// The directory cannot be written to, or was written for other ports.
pub fn write(dir: &Path, ports: &Ports) -> io::Result<()> {
    let run = run_directory(dir);
    fs::create_dir_all(&run)?;
    check_ports(&run.join("port"), ports)?;
    for node in NODES {
        let admin = format!("{}-admin", node);
        let text = BOOTSTRAP.replace("${node}", node).replace("${admin}", &ports.of(&admin).to_string());
        fs::write(run.join(format!("{node}.yaml")), ports.fill(&text))?;
    }
    for (name, template) in RESOURCES {
        let path = dir.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        if !path.exists() {
            fs::write(path, ports.fill(template))?;
        }
    }
    Ok(())
}

/// The files name ports, so a directory belongs to one number.
fn check_ports(path: &Path, ports: &Ports) -> io::Result<()> {
    let own = ports.base().to_string();
    match fs::read_to_string(path) {
        Ok(port) if port.trim() == own => Ok(()),
        Ok(port) => {
            let port = port.trim();
            let about = format!("its files are for --port {port}, not {own}; start with that, or with another --dir");
            Err(io::Error::other(about))
        }
        Err(_) => fs::write(path, own),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_control_api::server::Directory;

    fn temporary(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("weft-quickstart-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn what_is_written_is_good_and_what_was_edited_stays() {
        let dir = temporary("files");
        let ports = Ports::new(10_000).unwrap();
        write(&dir, &ports).unwrap();
        let report = Directory::new(&dir).read().unwrap();
        assert_eq!(report.refused, []);
        assert_eq!(report.changed.len(), RESOURCES.len());
        for (name, _) in RESOURCES {
            assert!(!fs::read_to_string(dir.join(name)).unwrap().contains("${"), "{name} has a name left");
        }
        for node in NODES {
            let path = run_directory(&dir).join(format!("{node}.yaml"));
            let sources = weft_config::Sources { path: Some(&path), yaml: None };
            assert!(weft_config::load(sources, weft_config::LoadOptions::default()).is_ok(), "{node}");
        }

        fs::write(dir.join("endpoints.yaml"), "edited").unwrap();
        write(&dir, &ports).unwrap();
        assert_eq!(fs::read_to_string(dir.join("endpoints.yaml")).unwrap(), "edited");
        assert!(write(&dir, &Ports::new(20_000).unwrap()).unwrap_err().to_string().contains("--port 10000"));
        fs::remove_dir_all(&dir).unwrap();
    }
}
