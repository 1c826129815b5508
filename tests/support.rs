//! README's table of what is supported says neither more nor less than the sources and the tests.

use std::collections::BTreeSet;
use std::fs::read_to_string;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &Path) -> String {
    read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The cells of the table under the heading.
fn table() -> Vec<Vec<String>> {
    let readme = text(&root().join("README.md"));
    let rows = readme.lines().skip_while(|line| *line != "## What is supported");
    let rows = rows.skip_while(|line| !line.starts_with('|')).skip(2);
    let rows = rows.take_while(|row| row.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().into()).collect())
        .collect()
}

/// What stands between backticks.
fn names(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Who runs a call, and how: nothing of what is computed.
const SETTINGS: [&str; 5] = ["isa", "executor", "max_threads", "algorithm", "redirect"];

/// Calls of their own.
const CALLS: [&str; 3] = ["onnx::attention", "merge_states", "attention_cascade_into"];

/// The methods that give a changed `self`, of the options and of the outputs.
fn methods() -> BTreeSet<String> {
    let sources = ["src/attention.rs", "kernels/src/outputs.rs"];
    let source = sources.map(|path| text(&root().join(path))).concat();
    let heads = source.split("#[must_use]").skip(1).filter_map(|rest| {
        let (_, head) = rest.split_once("pub fn ")?;
        let end = head.find(|c: char| !c.is_alphanumeric() && c != '_')?;
        Some(head[..end].to_string())
    });
    heads.filter(|name| name != "new" && !SETTINGS.contains(&name.as_str())).collect()
}

/// The files of the tests of this name, with what they share.
fn files(name: &str) -> Vec<PathBuf> {
    let tests = root().join("tests");
    let alone = tests.join(format!("{name}.rs"));
    if alone.exists() {
        return vec![alone];
    }
    let entries = tests.join(name).read_dir().unwrap_or_else(|error| panic!("{name}: {error}"));
    entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect()
}

#[test]
fn every_method_has_a_row_and_every_row_a_method() {
    let rows = table();
    assert!(rows.len() > 5 && rows.iter().all(|row| row.len() == 5), "{rows:?}");
    let asked: Vec<&str> = rows.iter().flat_map(|row| names(&row[1])).collect();
    let listed: BTreeSet<String> = asked.iter().map(|name| name.to_string()).collect();
    assert_eq!(asked.len(), listed.len(), "a name stands in two rows: {asked:?}");
    let mut there = methods();
    there.extend(CALLS.map(String::from));
    assert_eq!(listed, there, "README's table, and what there is");
}

#[test]
fn every_row_has_a_test_that_there_is() {
    for row in table() {
        let shown: Vec<&str> = names(&row[4]).collect();
        assert!(!shown.is_empty(), "{row:?}");
        for test in shown {
            let Some((file, name)) = test.split_once("::") else { panic!("{test}") };
            let head = format!("#[test]\nfn {name}(");
            let found = files(file).iter().any(|path| text(path).contains(&head));
            assert!(found, "there is no test {test}");
        }
    }
}

/// All that can be asked for is asked for by some test.
#[test]
fn every_method_is_called_by_a_test() {
    let shared = files("common").into_iter().chain(
        root().join("tests").read_dir().into_iter().flatten().flatten().map(|entry| entry.path()),
    );
    let sources = shared.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let all: String = sources.map(|path| text(&path)).collect();
    for name in methods() {
        assert!(all.contains(&format!(".{name}(")), "no test calls {name}");
    }
}
