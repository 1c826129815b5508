//! Attention from files to files.

mod common;

use std::path::Path;

use common::{Part, fixture, headwise_on, listing, qkv, write};
use safetensors::SafeTensors;

fn out_of(path: &Path) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    headwise::safetensors::read_f32(&file, "out").map(|(data, shape)| (shape, data)).unwrap()
}

#[test]
fn a_run_verifies_and_matches_the_capture() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out.safetensors");
    let capture = fixture("smollm2_l18_prefill256.safetensors");
    let line = format!(
        "run --json --input {} --out {{}} --lse --weights --keep-inputs",
        capture.display()
    );
    let report = &headwise_on(&line, &out).objects(0)[0];
    assert_eq!((&report["mask"], &report["seq_q"]), (&"causal".into(), &256.into()));
    let report = &headwise_on("verify {} --json", &out).objects(0)[0];
    assert_eq!(report["mask"], "causal", "the file says how it was computed");
    assert!(report["lse"].is_object() && report["weights"].is_object());

    let ((shape, got), (_, answer)) = (out_of(&out), out_of(&capture));
    assert_eq!(shape, [1, 9, 256, 64]);
    assert!(got.iter().zip(&answer).all(|(x, y)| (x - y).abs() < 1e-4));
    assert_eq!(listing(directory.path()), ["out.safetensors"]);
}

fn write_npy(path: &Path, part: &Part) {
    let [a, b, c, d] = part.shape[..] else { panic!("{:?}", part.shape) };
    let header =
        format!("{{'descr': '<f8', 'fortran_order': False, 'shape': ({a}, {b}, {c}, {d}), }}\n");
    let length = (header.len() as u16).to_le_bytes();
    let data: Vec<u8> = part.floats().iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect();
    let bytes = [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), &data].concat();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn numpy_files_and_safetensors_give_the_same_bits() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for part in qkv() {
        write_npy(&at(&format!("{}.npy", part.name)), &part);
    }
    write(&at("qkv.safetensors"), &qkv(), &[]);
    let flags = "--causal --window-left 3 --key-lengths 7,4 --scale -0.5";
    let npy = format!("run --q {{}}/q.npy --k {{}}/k.npy --v {{}}/v.npy {flags}");
    let file = format!("run --input {{}}/qkv.safetensors {flags}");
    for (line, out) in
        [(&npy, "a.npy"), (&npy, "a.safetensors"), (&file, "b.npy"), (&file, "b.safetensors")]
    {
        let ran = headwise_on(&format!("{line} --out {{}}/{out}"), directory.path());
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
        assert!(ran.stdout.contains("causal + window-left 3 + key-lengths [7, 4]"));
    }
    let npy_out = |name| {
        let bytes = std::fs::read(at(name)).unwrap();
        let (header, data) = bytes.split_at(128);
        assert!(str::from_utf8(&header[8..]).is_ok_and(|text| text.contains("(2, 4, 5, 6)")));
        let floats = data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        floats.collect::<Vec<_>>()
    };
    let expected = out_of(&at("b.safetensors"));
    assert_eq!(expected.0, [2, 4, 5, 6]);
    assert_eq!(out_of(&at("a.safetensors")), expected);
    assert_eq!(npy_out("a.npy"), expected.1);
    assert_eq!(npy_out("b.npy"), expected.1);

    // An existing result is replaced whole.
    headwise_on(&format!("{file} --out {{}}/a.npy --json"), directory.path()).objects(0);
    assert_eq!(listing(directory.path()).len(), 4 + 4);

    // Such a mask has no name in the metadata, so the flags must say it again.
    let line = format!("{file} --out {{}}/c.safetensors --keep-inputs --json");
    headwise_on(&line, directory.path()).objects(0);
    headwise_on("verify {} --json", &at("c.safetensors")).refuses(&["metadata", "--window-left"]);
    headwise_on(&format!("verify {{}} --json {flags}"), &at("c.safetensors")).objects(0);
}

#[test]
fn no_part_of_a_file_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    write(&at("in.safetensors"), &qkv(), &[]);
    std::fs::create_dir(at("taken.npy")).unwrap();
    let before = listing(directory.path());
    for (out, parts) in [
        ("no/such/out.npy", ["cannot write", "out.npy"]),
        ("taken.npy", ["cannot write", "taken.npy"]),
        ("out.txt", ["--out", ".safetensors or .npy"]),
        ("out", ["--out", ".safetensors or .npy"]),
        ("out.npy --lse", ["--out", "--lse"]),
        ("out.npy --key-lengths 1,2,3", ["key_lengths", "3 lengths"]),
        ("out.npy --key-lengths 1,99", ["key_lengths", "99"]),
        ("out.npy --key-lengths 1,x", ["--key-lengths", "x"]),
        ("out.npy --mask-tensor m", ["--mask-tensor", "\"m\""]),
        ("out.npy --scale nan", ["--scale", "nan"]),
        ("out.npy --no-mask --causal", ["--no-mask", "--causal"]),
        ("out.npy --prefix x.", ["\"x.q\"", "missing"]),
    ] {
        let line = format!("run --input {{}}/in.safetensors --out {{}}/{out}");
        headwise_on(&line, directory.path()).refuses(&parts);
        assert_eq!(listing(directory.path()), before, "{out}");
    }
}

#[test]
fn nothing_to_see_gives_zeros() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for (seq_q, seq_kv) in [(5, 0), (0, 7), (0, 0)] {
        let parts = [
            Part::waves("q", &[2, 4, seq_q, 8]),
            Part::waves("k", &[2, 2, seq_kv, 8]),
            Part::waves("v", &[2, 2, seq_kv, 6]),
        ];
        write(&at("in.safetensors"), &parts, &[]);
        let flags = "--lse --weights --keep-inputs --causal --json";
        let line = format!("run --input {{}}/in.safetensors --out {{}}/out.safetensors {flags}");
        headwise_on(&line, directory.path()).objects(0);
        let (shape, data) = out_of(&at("out.safetensors"));
        assert_eq!(shape, [2, 4, seq_q, 6]);
        assert!(data.iter().all(|&x| x == 0.0));
        headwise_on("verify {} --json", &at("out.safetensors")).objects(0);
    }
}

#[test]
fn inputs_that_are_not_there() {
    let directory = tempfile::tempdir().unwrap();
    headwise_on("run --out {}/x.npy", directory.path()).refuses(&["--input"]);
    let line = "run --q {}/q.npy --k {}/k.npy --v {}/v.npy --out {}/x.npy";
    headwise_on(line, directory.path()).refuses(&["q.npy", "cannot read"]);
    std::fs::write(directory.path().join("q.npy"), "not an array").unwrap();
    headwise_on(line, directory.path()).refuses(&["q.npy", "numpy.save"]);
    assert_eq!(listing(directory.path()), ["q.npy"]);
}
