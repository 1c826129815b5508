//! Measurements: that there are all of them and that they agree with each other, not what they
//! say: another program may take the processor from any of them.

mod common;

use common::{command, headwise};
use headwise::Isa;

const FIELDS: [&str; 28] = [
    "suite",
    "shape",
    "dtype",
    "isa",
    "threads",
    "algorithm",
    "batch",
    "q_heads",
    "kv_heads",
    "seq_q",
    "seq_kv",
    "head_dim",
    "value_dim",
    "group",
    "cache",
    "causal",
    "samples",
    "median_ms",
    "best_ms",
    "gflops",
    "peak_gflops",
    "pct_peak",
    "pct_peak_computed",
    "gbps",
    "read_gbps",
    "pct_read",
    "fork_join_us",
    "pct_busy",
];

fn bench(line: &str) -> common::Ran {
    headwise(["bench", "--samples", "2"].into_iter().chain(line.split(' ')))
}

#[test]
fn every_field_is_there() {
    let objects = bench("--json --shape minilm-32 --isa portable --threads 2").objects(0);
    let [record] = &objects[..] else { panic!("{objects:?}") };
    for field in FIELDS {
        assert!(!record[field].is_null(), "{field} in {record}");
    }
    assert_eq!(record["isa"], "portable");
    assert_eq!((&record["threads"], &record["samples"]), (&2.into(), &2.into()));
    assert_eq!((&record["algorithm"], &record["suite"]), (&"fused".into(), &"prefill".into()));
    let number = |field: &str| record[field].as_f64().unwrap();
    assert!(number("best_ms") <= number("median_ms"));
    let flops = 2.0 * 12.0 * 32.0 * 32.0 * 64.0;
    assert!((number("gflops") * number("median_ms") * 1e6 / flops - 1.0).abs() < 1e-9);
    let share = 100.0 * number("gflops") / number("peak_gflops");
    assert!((number("pct_peak") - share).abs() < 1e-9);
    assert_eq!((&record["group"], &record["cache"]), (&1.into(), &"dense".into()));
    assert!(record["times_bound"].is_null() && record["page_size"].is_null());
}

/// The bound is that of all bytes or of all operations at this run's rates, and a fork and join.
#[test]
fn steps_stand_beside_their_bound() {
    let line =
        "--json --shape decode-512 --seq-q 1,5 --group 2 --cache ring,paged,dense --page-size 24";
    let objects = bench(line).objects(0);
    assert_eq!(objects.len(), 6);
    for record in &objects {
        let number = |field: &str| record[field].as_f64().unwrap();
        let (seq_q, keys) = (number("seq_q"), 512.0);
        let bytes = 4.0 * 2.0 * 128.0 * (8.0 * keys + 16.0 * seq_q);
        let pairs = seq_q * keys - seq_q * (seq_q - 1.0) / 2.0;
        let flops = 4.0 * 16.0 * 128.0 * pairs;
        let rates = (bytes / number("read_gbps")).max(flops / number("peak_gflops")) / 1e6;
        let bound = rates + number("fork_join_us") / 1e3;
        assert!((number("times_bound") * bound / number("median_ms") - 1.0).abs() < 1e-9);
        assert_eq!(record["causal"], seq_q > 1.0);
    }
    let caches: Vec<_> = objects.iter().map(|o| (&o["cache"], &o["page_size"])).collect();
    let of_one = [("ring", ().into()), ("paged", 24.into()), ("dense", ().into())]
        .map(|(cache, size): (_, serde_json::Value)| (cache.into(), size));
    let expected: Vec<_> = of_one.iter().chain(&of_one).map(|(c, s)| (c, s)).collect();
    assert_eq!(caches, expected);
}

#[test]
fn axes_of_a_suite() {
    let list = |line: &str| headwise(["bench", "--list"].into_iter().chain(line.split(' ')));
    let objects = list("--json --suite decode --group 1,3 --cache contiguous").objects(0);
    let heads: Vec<_> = objects.iter().filter_map(|o| o["q_heads"].as_u64()).collect();
    assert_eq!(heads, [8, 24, 8, 24, 8, 24, 32, 96, 8, 24]);
    assert!(objects.iter().all(|object| object["cache"] == "contiguous"));
    let sweep = list("--json --suite sweep").objects(0);
    assert_eq!(sweep.len(), 31);
    let default = headwise(["bench", "--list", "--json"]).objects(0);
    assert!(default.iter().all(|object| object["suite"] != "sweep"));
}

#[test]
fn a_table_of_axes() {
    let ran = bench("--shape sweep-4k --seq-kv 64 --group 1,2 --cache paged,ring");
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 5);
    assert!(["group  cache", "x bound"].iter().all(|title| lines[0].contains(title)));
    assert!(!lines[0].contains("seq_q"));
    assert!(lines[1].contains("    1  paged/16") && lines[4].contains("    2  ring"));
}

#[test]
fn axes_that_make_no_sense() {
    bench("--seq-q 2").refuses(&["--seq-q", "minilm-32", "--suite decode"]);
    bench("--shape bert-128 --cache ring").refuses(&["--cache", "bert-128", "prefill"]);
    bench("--shape decode-4k --page-size 16").refuses(&["--page-size", "--cache paged"]);
    bench("--shape decode-4k --cache paged --page-size 0").refuses(&["--page-size", "0"]);
    bench("--shape decode-4k --cache lists").refuses(&["--cache", "lists", "contiguous"]);
    bench("--shape decode-512 --seq-q 513").refuses(&["--seq-q", "512 keys"]);
    bench("--shape decode-512 --cache ring --algorithm unfused").refuses(&["caches"]);
}

/// What a mask skips is neither useful nor computed.
#[test]
fn masks_count_what_is_computed() {
    let of =
        |shape: &str| bench(&format!("--json --suite masks --shape {shape}")).objects(0).remove(0);
    let window = of("window-8k-d64");
    assert_eq!((&window["window_left"], &window["document"]), (&511.into(), &().into()));
    assert_eq!(of("documents-8k-d64")["document"], 512);
    let share = |field: &str| window[field].as_f64().unwrap();
    let ratio = share("pct_peak_computed") / share("pct_peak");
    assert!((1.0..1.2).contains(&ratio), "{ratio}");
}

#[test]
fn threads_are_busy() {
    // More threads than there may be cores.
    for threads in [1, 3] {
        let line = format!("--json --shape vit-197 --threads {threads}");
        let record = &bench(&line).objects(0)[0];
        assert_eq!(record["threads"], threads);
        let share = record["pct_busy"].as_f64().unwrap();
        assert!(share > 0.0 && share <= 100.0, "{record}");
    }
}

#[test]
fn small_calls() {
    let objects = bench("--json --suite call --threads 2").objects(0);
    let said: Vec<_> = objects.iter().map(|o| (&o["shape"], &o["threads"])).collect();
    let expected = [("call-1x1", 1), ("bert-128-again", 2), ("bert-128-idle", 2)]
        .map(|(shape, threads)| (shape.into(), threads.into()));
    assert_eq!(said, expected.iter().map(|(s, t)| (s, t)).collect::<Vec<_>>());
    // Nobody waits for anybody.
    assert!(objects[0]["pct_busy"].as_f64().unwrap() > 99.9);
}

#[test]
fn both_algorithms_side_by_side() {
    let objects = bench("--json --suite decode --shape decode-cross --algorithm both").objects(0);
    let [fused, unfused] = &objects[..] else { panic!("{objects:?}") };
    assert_eq!((&fused["algorithm"], &unfused["algorithm"]), (&"fused".into(), &"unfused".into()));
    let ratio = unfused["median_ms"].as_f64().unwrap() / fused["median_ms"].as_f64().unwrap();
    assert!((fused["vs_unfused"].as_f64().unwrap() / ratio - 1.0).abs() < 1e-9);
    assert!(unfused["vs_unfused"].is_null());
    let alone = bench("--json --shape minilm-32 --algorithm unfused").objects(0);
    assert_eq!((alone.len(), &alone[0]["algorithm"]), (1, &"unfused".into()));
}

#[test]
fn softmax_counts_bytes() {
    for shape in ["softmax-4096x128", "softmax-4096x128-into"] {
        let record = &bench(&format!("--json --shape {shape}")).objects(0)[0];
        assert!(record["gbps"].as_f64().unwrap() > 0.0 && record["gflops"].is_null());
        assert_eq!((&record["rows"], &record["length"]), (&4096.into(), &128.into()));
    }
}

#[test]
fn layers_count_projections_and_attention() {
    let objects = bench("--json --suite layer --shape layer-1x32x384 --algorithm both").objects(0);
    let [record] = &objects[..] else { panic!("{objects:?}") };
    assert_eq!((&record["suite"], &record["algorithm"]), (&"layer".into(), &"fused".into()));
    for (field, size) in [("batch", 1), ("seq", 32), ("embed_dim", 384), ("heads", 12)] {
        assert_eq!(record[field], size, "{field} in {record}");
    }
    let number = |field: &str| record[field].as_f64().unwrap();
    let flops = 4.0 * 2.0 * 32.0 * 384.0 * 384.0 + 4.0 * 12.0 * 32.0 * 32.0 * 32.0;
    assert!((number("gflops") * number("median_ms") * 1e6 / flops - 1.0).abs() < 1e-9);
    let bytes = 4.0 * 4.0 * 384.0 * 384.0;
    assert!((number("gbps") * number("median_ms") * 1e6 / bytes - 1.0).abs() < 1e-9);
}

#[test]
fn terms_are_measured_beside_none() {
    let line = "--json --suite terms --shape gpt2-1k-alibi --algorithm both";
    let objects = bench(line).objects(0);
    let [record] = &objects[..] else { panic!("{objects:?}") };
    assert_eq!((&record["suite"], &record["term"]), (&"terms".into(), &"alibi".into()));
    assert!(record["pct_term"].as_f64().unwrap() > -100.0 && record["vs_unfused"].is_null());
    bench("--suite terms --algorithm unfused").refuses(&["--algorithm", "terms"]);
}

#[test]
fn padding_is_measured_beside_none_and_poisoned() {
    let objects = bench("--json --shape bert-b8-left").objects(0);
    let [record] = &objects[..] else { panic!("{objects:?}") };
    assert_eq!((&record["suite"], &record["padding"]["left"]), (&"poison".into(), &5.into()));
    assert!(record["pct_padding"].as_f64().unwrap() > -100.0 && record["pct_term"].is_null());
    assert!(record["times_poisoned"].as_f64().unwrap() > 0.0);
    bench("--suite poison --algorithm unfused").refuses(&["--algorithm", "padding"]);
}

#[test]
fn a_list_measures_nothing() {
    let objects = headwise(["bench", "--list", "--json", "--suite", "decode"]).objects(0);
    let names: Vec<_> = objects.iter().filter_map(|object| object["shape"].as_str()).collect();
    assert_eq!(names, ["decode-512", "decode-4k", "decode-32k", "decode-b4", "decode-cross"]);
    let listed = &headwise(["bench", "--list", "--json", "--shape", "minilm-32"]).objects(0)[0];
    assert_eq!(listed["flops"], 2.0 * 12.0 * 32.0 * 32.0 * 64.0);
    let measured = &bench("--json --shape minilm-32").objects(0)[0];
    let extents = ["batch", "q_heads", "kv_heads", "seq_q", "seq_kv", "head_dim", "value_dim"];
    for field in ["suite", "shape", "dtype", "causal"].iter().chain(&extents) {
        assert!(
            !listed[field].is_null() && listed[field] == measured[field],
            "{field} in {listed}"
        );
    }
    assert!(listed["median_ms"].is_null());
    let text = headwise(["bench", "--list"]);
    assert_eq!((text.code, text.stderr.as_str()), (Some(0), ""));
    assert!(text.stdout.starts_with("suite") && text.stdout.contains("layer-1x512x768"));
    headwise(["bench", "--list", "--samples", "2"]).refuses(&["--list", "--samples"]);
}

#[test]
fn a_table_for_people() {
    let ran = bench("--shape minilm-32 --algorithm both");
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[0].contains("vs unfused"));
    let cells: Vec<_> = lines[1].split_whitespace().rev().take(4).collect();
    assert!(cells[..3] == ["-"; 3] && cells[3].ends_with('x'));
}

#[test]
fn what_there_is_not() {
    bench("--shape bert").refuses(&["--shape", "\"bert\"", "bert-128", "decode-512"]);
    bench("--suite decode --shape bert-128").refuses(&["--shape", "decode-512"]);
    bench("--suite train").refuses(&["--suite", "train"]);
    bench("--suite softmax --algorithm unfused").refuses(&["--algorithm", "softmax"]);
    bench("--suite layer --algorithm unfused").refuses(&["--algorithm", "layers"]);
    bench("--shape minilm-32 --isa nonsense").refuses(&["--isa", "nonsense"]);
    bench("--shape minilm-32 --threads 0").refuses(&["--threads", "0"]);
    headwise(["bench", "--samples", "0"]).refuses(&["--samples"]);
    headwise(["measure"]).refuses(&["measure"]);
    for isa in Isa::ALL.into_iter().filter(|isa| !isa.is_available()) {
        bench(&format!("--shape minilm-32 --isa {isa}")).refuses(&["isa", isa.name()]);
    }
    let output = command().arg("info").env("HEADWISE_ISA", "nonsense").output().unwrap();
    common::Ran::from(output).refuses(&["HEADWISE_ISA", "nonsense"]);
}
