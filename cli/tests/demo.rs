//! The command without arguments: what a newcomer runs first.

mod common;

use common::headwise;
use serde_json::Value;

#[test]
fn every_check_passes() {
    let objects = headwise(["--json"]).objects(0);
    let (summary, rows) = objects.split_last().unwrap();
    assert_eq!(summary["kind"], "summary");
    let checks: Vec<_> = rows.iter().filter(|row| row["kind"] == "check").collect();
    assert_eq!((&summary["checks"], &summary["failed"]), (&17.into(), &0.into()));
    assert_eq!(checks.len(), 17);
    for row in &checks {
        assert_eq!(row["pass"], true, "{row}");
        assert_eq!(row["isa"], summary["isa"]);
    }
    let of = |field: &str| -> Vec<_> { checks.iter().filter_map(|r| r[field].as_str()).collect() };
    let captures =
        ["minilm-l4", "smollm2-l18", "smollm2-l18-decode", "whisper-l0-cross", "dot-product"];
    assert_eq!(of("capture")[..5], captures);
    assert_eq!(of("capture")[5..], ["long-8k"]);
    let forms = ["self-attention", "multi-head", "cross-attention", "cross-multi-head"];
    assert_eq!(of("form")[0], "dot-product");
    assert_eq!(of("form")[1..], forms);
    assert_eq!(of("model"), ["rxnmapper-albert"; 6]);
    captures_are_measured(&checks[..6]);
    forms_and_model_are_judged(&checks[6..]);
    reactions_are_mapped(rows);
}

fn captures_are_measured(rows: &[&Value]) {
    for row in rows {
        assert!(row["out_error"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["pct_peak"].as_f64().unwrap() > 0.0, "{row}");
    }
    assert!(rows[..4].iter().all(|row| row["lse_error"].is_f64()));
    assert!(rows[4]["weights_error"].is_f64());
    assert_eq!(rows[1]["mask"], "causal");
    assert_eq!((&rows[2]["seq_q"], &rows[2]["seq_kv"]), (&1.into(), &257.into()));
}

fn forms_and_model_are_judged(rows: &[&Value]) {
    let (forms, model) = rows.split_at(5);
    for row in forms {
        for error in ["out_error", "weights_error"] {
            let error = row[error].as_f64().unwrap();
            assert!(error > 0.0 && error <= row["allowed"].as_f64().unwrap(), "{row}");
        }
    }
    assert_eq!((&forms[4]["q_heads"], &forms[4]["seq_kv"]), (&6.into(), &375.into()));
    for row in model {
        assert!(row["error"].as_f64().unwrap() <= row["allowed"].as_f64().unwrap(), "{row}");
    }
}

fn reactions_are_mapped(rows: &[Value]) {
    let of = |kind: &str| rows.iter().filter(|row| row["kind"] == kind).collect::<Vec<_>>();
    let reactions = of("reaction");
    assert_eq!(reactions.len(), 3);
    for row in reactions {
        let (smiles, mapped) = (row["smiles"].as_str().unwrap(), row["mapped"].as_str().unwrap());
        assert!(smiles.contains(">>") && mapped.contains("[C:1]"), "{row}");
    }
    let [timing] = of("timing")[..] else { panic!("one time") };
    assert!(timing["median_ms"].as_f64().unwrap() > 0.0, "{timing}");
}

#[test]
fn tables_for_people() {
    let ran = headwise(["demo", "--threads", "1"]);
    let lines: Vec<_> = ran.stdout.lines().collect();
    let [captures, forms, model, maps] = [1 + 1 + 6, 1 + 1 + 5, 1 + 1 + 6 + 1, 1 + 1 + 2 * 3];
    assert_eq!(lines.len(), captures + forms + model + maps + 1 + 1, "{}", ran.stdout);
    assert!(lines[0].starts_with("headwise ") && lines[0].contains(", 1 thread, FMA peak"));
    assert!(lines[2].contains("MiniLM") && lines[2].ends_with("pass"), "{}", lines[2]);
    assert!(lines[captures + 3].starts_with("SelfAttention"), "{}", ran.stdout);
    assert!(lines[captures + forms + model - 1].starts_with("forward pass: "), "{}", ran.stdout);
    let verdict = if ran.code == Some(0) { "pass" } else { "fail" };
    assert!(lines.last().unwrap().to_lowercase().starts_with(verdict));
}
