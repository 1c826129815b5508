//! The instruction set that is asked for is the one that runs, by option and by `HEADWISE_ISA`.

mod common;

use std::process::Command;

use common::case::{Case, Dims};
use common::result_bits;
use headwise::{Algorithm, AttentionOptions, Error, Isa, attention};

const NAMES: &str = "avx512bf16, avx512, avx2, neon, portable";

#[test]
fn a_forced_instruction_set_runs() {
    let inputs = Case::plain(Dims::single(33, 100, 64, 40), 31).inputs();
    let runs: Vec<_> = Isa::available()
        .map(|isa| {
            let result = inputs.run(isa);
            assert_eq!(result.isa, isa);
            let unfused = inputs.options().isa(isa).algorithm(Algorithm::Unfused);
            assert_eq!(inputs.run_with(&unfused).isa, isa);
            (isa, result_bits(&result))
        })
        .collect();
    // Exponentials and multiply-adds are rounded differently, so the last bits tell them apart.
    for (n, (a, a_bits)) in runs.iter().enumerate() {
        for (b, b_bits) in &runs[..n] {
            // One of these is the other with more for halves: tests/bf16_pairs.rs tells them apart.
            let same = [Isa::Avx512, Isa::Avx512Bf16].contains(a) && *b == Isa::Avx512Bf16;
            assert_eq!(a_bits[0] == b_bits[0], same, "{a} and {b}");
        }
    }
}

#[test]
fn the_widest_is_the_first_that_is_available_and_pays() {
    let available: Vec<Isa> = Isa::available().collect();
    assert_eq!(available.iter().find(|isa| isa.pays()), Some(&Isa::widest()));
    assert!(Isa::ALL.into_iter().all(|isa| isa.pays() || isa == Isa::Avx512Bf16));
    assert!(available.contains(&Isa::Portable));
    assert!(available.iter().all(|isa| isa.is_available() && isa.check() == Ok(*isa)));
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        assert_eq!(Isa::Avx2.is_available(), avx2);
    }
}

#[test]
fn names_are_parsed_exactly() {
    for isa in Isa::ALL {
        assert_eq!(isa.name().parse(), Ok(isa));
        assert_eq!(isa.to_string(), isa.name());
    }
    for name in ["", "AVX2", "avx-512", "sse2", " avx2"] {
        let Err(error) = name.parse::<Isa>() else { panic!("{name:?} is no name") };
        let message = error.to_string();
        assert!(matches!(error, Error::IsaName { .. }), "{message}");
        assert_eq!(message, format!("isa: {name:?}, expected one of {NAMES}"));
    }
}

#[test]
fn an_unavailable_one_is_an_error() {
    for isa in Isa::ALL.into_iter().filter(|isa| !isa.is_available()) {
        let x = [1.0_f32; 4];
        let options = AttentionOptions::new().isa(isa);
        let result =
            headwise::View::bhsd(&x, [1, 1, 2, 2]).and_then(|x| attention(x, x, x, &options));
        assert!(matches!(result, Err(Error::IsaUnavailable { .. })), "{result:?}");
    }
    let error = Error::IsaUnavailable { requested: Isa::Avx512, available: "portable".into() };
    assert_eq!(error.to_string(), "isa: avx512 is not available here, expected one of portable");
}

/// In this variable the parent says what its child is to find.
const EXPECTED: &str = "HEADWISE_TEST_EXPECTED";

/// Runs in the child processes of the next test; nothing to do without one.
#[test]
fn child() {
    let Ok(expected) = std::env::var(EXPECTED) else { return };
    let inputs = Case::plain(Dims::single(9, 20, 16, 16), 32).inputs();
    let (q, k, v) = (inputs.query.view(), inputs.key.view(), inputs.value.view());
    let found = match attention(q, k, v, &AttentionOptions::new()) {
        Ok(result) => result.isa.to_string(),
        Err(error) => error.to_string(),
    };
    assert_eq!(found, expected);
    // An option goes before the variable, even before a wrong one.
    let forced = attention(q, k, v, &AttentionOptions::new().isa(Isa::Portable));
    assert!(forced.is_ok_and(|result| result.isa == Isa::Portable));
    println!("the child found what it should");
}

#[test]
fn the_environment_variable_chooses() {
    let name_error = |name: &str| format!("HEADWISE_ISA: {name:?}, expected one of {NAMES}");
    let mut expectations: Vec<(Option<&str>, String)> =
        Isa::available().map(|isa| (Some(isa.name()), isa.to_string())).collect();
    for isa in Isa::ALL.into_iter().filter(|isa| !isa.is_available()) {
        let error = isa.check().err().map(|error| error.to_string());
        expectations.push((Some(isa.name()), error.unwrap_or_default()));
    }
    expectations.push((None, Isa::widest().to_string()));
    expectations.push((Some("sse9"), name_error("sse9")));
    expectations.push((Some(""), name_error("")));
    for (variable, expected) in expectations {
        let program = std::env::current_exe().unwrap_or_else(|error| panic!("{error}"));
        let mut command = Command::new(program);
        command.args(["--exact", "child", "--nocapture"]).env(EXPECTED, &expected);
        match variable {
            Some(name) => command.env("HEADWISE_ISA", name),
            None => command.env_remove("HEADWISE_ISA"),
        };
        let output = command.output().unwrap_or_else(|error| panic!("{error}"));
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && stdout.contains("found what it should"),
            "{variable:?}, expected {expected:?}\n{stdout}\n{stderr}"
        );
    }
}
