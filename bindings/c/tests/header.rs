//! The header is what the sources say. `HEADWISE_WRITE_HEADER=1 cargo test --test header` writes it.

use std::path::Path;

/// Without the sections that Rust's lints ask for: all of a C program is what they call unsafe, and
/// what it must know stands above them.
fn without_safety(header: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut skipping = false;
    for line in header.lines() {
        if line == "// # Safety" {
            skipping = true;
            kept.pop_if(|line| *line == "//");
        }
        skipping &= line.starts_with("//");
        if !skipping {
            kept.push(line);
        }
    }
    kept.join("\n") + "\n"
}

#[test]
fn the_header_is_that_of_the_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml"));
    let config = config.unwrap_or_else(|error| panic!("{error}"));
    let bindings = cbindgen::Builder::new().with_crate(root).with_config(config).generate();
    let mut generated = Vec::new();
    bindings.unwrap_or_else(|error| panic!("{error}")).write(&mut generated);
    let generated = without_safety(&String::from_utf8_lossy(&generated)).into_bytes();
    let path = root.join("include/headwise.h");
    if std::env::var_os("HEADWISE_WRITE_HEADER").is_some() {
        std::fs::write(&path, &generated).unwrap_or_else(|error| panic!("{error}"));
    }
    let stored = std::fs::read(&path).unwrap_or_default();
    assert!(
        generated == stored,
        "include/headwise.h is not what the sources say: run \
         HEADWISE_WRITE_HEADER=1 cargo test --test header"
    );
}
