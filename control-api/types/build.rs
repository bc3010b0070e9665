//! Turns the checked-in schema (`schema/envoy-1.40.binpb`, a FileDescriptorSet with `validate.rules`) into Rust
//! types for the roots that `schema/roots.txt` names, and into the compact tables that `src/layout.rs` describes.
//! Needs no protoc.

use std::{env, fs, path::PathBuf};

#[path = "src/layout.rs"]
mod layout;
#[path = "build/prune.rs"]
mod prune;
#[path = "build/tables.rs"]
mod tables;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=schema");
    println!("cargo::rerun-if-changed=src/layout.rs");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let schema = fs::read("schema/envoy-1.40.binpb")?;
    let roots = fs::read_to_string("schema/roots.txt")?;

    fs::write(out.join("schema.bin"), tables::tables(&schema)?)?;

    let set = prune::prune(&schema, &roots)?;
    let mut config = prost_build::Config::new();
    config.out_dir(&out).include_file("types.rs").enable_type_names().type_name_domain(["."], "type.googleapis.com");
    config.compile_fds(set)?;
    Ok(())
}
