//! Fused attention in `f32` against the plain three steps in `f64`, around the edges of tiles,
//! key blocks and splits.

use headwise::{AttentionOptions, Isa, Result, View, attention};

const _: () = assert!(cfg!(target_feature = "simd128"));

const HEADS: usize = 2;

/// Numbers in [-1, 1), the same on every machine.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// The largest difference between both results.
fn difference([seq_q, seq_kv, dim]: [usize; 3], causal: bool) -> Result<f64> {
    let [q, k, v] = [(seq_q, 1), (seq_kv, 2), (seq_kv, 3)]
        .map(|(rows, seed)| (rows, numbers(HEADS * rows * dim, seed)));
    let wide =
        [&q, &k, &v].map(|(rows, x)| (*rows, x.iter().map(|&x| x.into()).collect::<Vec<f64>>()));
    let mut options = AttentionOptions::new();
    let mut exact = AttentionOptions::<f64>::new();
    if causal {
        (options, exact) = (options.causal(), exact.causal());
    }
    let [q, k, v] = [&q, &k, &v].map(|(rows, x)| View::bhsd(x, [1, HEADS, *rows, dim]));
    let got = attention(q?, k?, v?, &options)?;
    let [q, k, v] = wide.each_ref().map(|(rows, x)| View::bhsd(x, [1, HEADS, *rows, dim]));
    let expected = attention(q?, k?, v?, &exact)?;
    assert_eq!(got.isa, Isa::Portable);
    let pairs = got.out.data().iter().zip(expected.out.data());
    Ok(pairs.map(|(&got, expected)| (f64::from(got) - expected).abs()).fold(0.0, f64::max))
}

fn main() -> Result<()> {
    let mut passed = 0;
    for seq_q in [1, 8, 47, 49, 100] {
        for seq_kv in [7, 64, 65, 130, 2100] {
            for (dim, causal) in [(16, false), (33, true), (64, true)] {
                let difference = difference([seq_q, seq_kv, dim], causal)?;
                assert!(difference < 1e-5, "{difference:e}: {seq_q} x {seq_kv}, {dim}, {causal}");
                passed += 1;
            }
        }
    }
    println!("{passed} passed, 0 failed");
    Ok(())
}
