//! What the command says of the machine.

mod common;

use std::io::Read;
use std::process::Stdio;

use common::{command, headwise};

#[test]
fn one_object() {
    let objects = headwise(["info", "--json", "--threads", "2"]).objects(0);
    let [info] = &objects[..] else { panic!("{objects:?}") };
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(info["threads"], 2);
    let isas = info["available_isas"].as_array().unwrap();
    assert!(isas.contains(&info["isa"]) && isas.contains(&"portable".into()));
    for rate in ["peak_gflops", "peak_gflops_1_thread", "read_gbps", "read_gbps_1_thread"] {
        assert!(info[rate].as_f64().unwrap() > 0.0, "{rate}");
    }
    for may_be_unknown in ["processor", "caches", "page_bytes", "transparent_huge_pages"] {
        assert!(info.get(may_be_unknown).is_some(), "{may_be_unknown}");
    }
}

#[test]
fn a_forced_isa_is_the_one() {
    let info = &headwise(["info", "--json", "--isa", "portable"]).objects(0)[0];
    assert_eq!(info["isa"], "portable");
    let output = command().args(["info", "--json"]).env("HEADWISE_ISA", "portable").output();
    let info = &common::Ran::from(output.unwrap()).objects(0)[0];
    assert_eq!(info["isa"], "portable");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child =
        command().arg("info").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Measuring takes the command longer than closing takes us.
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));
}
