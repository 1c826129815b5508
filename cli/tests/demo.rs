//! The command without arguments: what a newcomer runs first.

mod common;

use common::headwise;

#[test]
fn every_capture_passes() {
    let objects = headwise(["--json"]).objects(0);
    let (summary, rows) = objects.split_last().unwrap();
    assert_eq!(summary["kind"], "summary");
    assert_eq!((&summary["checks"], &summary["failed"]), (&6.into(), &0.into()));
    let captures: Vec<_> = rows.iter().map(|row| row["capture"].as_str().unwrap()).collect();
    let expected =
        ["minilm-l4", "smollm2-l18", "smollm2-l18-decode", "whisper-l0-cross", "dot-product"];
    assert_eq!(captures[..5], expected);
    assert_eq!(captures[5..], ["long-8k"]);
    for row in rows {
        assert_eq!(row["pass"], true, "{row}");
        assert_eq!(row["isa"], summary["isa"]);
        assert!(row["out_error"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["pct_peak"].as_f64().unwrap() > 0.0, "{row}");
    }
    assert!(rows[..4].iter().all(|row| row["lse_error"].is_f64()));
    assert!(rows[4]["weights_error"].is_f64());
    assert_eq!(rows[1]["mask"], "causal");
    assert_eq!((&rows[2]["seq_q"], &rows[2]["seq_kv"]), (&1.into(), &257.into()));
}

#[test]
fn a_table_for_people() {
    let ran = headwise(["demo", "--threads", "1"]);
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 1 + 1 + 6 + 1, "{}", ran.stdout);
    assert!(lines[0].starts_with("headwise ") && lines[0].contains(", 1 thread, FMA peak"));
    assert!(lines[2].contains("MiniLM") && lines[2].ends_with("pass"), "{}", lines[2]);
    assert!(lines[8].to_lowercase().contains(if ran.code == Some(0) { "pass" } else { "fail" }));
}
