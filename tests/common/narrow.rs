//! Keys and values that are stored in less than `f32`.

use headwise::kv_cache::KvView;
use headwise::{AttentionOptions, Int8, Isa, KvStorage, Result, Storage, View, attention_cached};

use super::Rng;
use super::case::Inputs;
use super::strided::{Layout, Strided};

/// Queries, keys and values rounded to `S`, and the inputs with the same numbers.
pub fn rounded<S: Storage<Compute = f32>>(inputs: &Inputs<f32>) -> ([Strided<S>; 3], Inputs<f32>) {
    let narrow = [&inputs.query, &inputs.key, &inputs.value].map(|tensor| tensor.map(S::round));
    let mut wide = inputs.map(|x| x);
    [wide.query, wide.key, wide.value] = narrow.each_ref().map(|tensor| tensor.map(S::widen));
    (narrow, wide)
}

/// A tensor rounded to integers, in a layout of its own, and its numbers in the same.
pub fn integers(tensor: &Strided<f32>, layout: Layout) -> (Strided<Int8>, Strided<f32>) {
    let [batch, heads, seq, dim] = tensor.shape;
    let mut numbers = tensor.dense();
    let mut bytes = vec![Int8::default(); batch * heads * seq * (dim + Int8::SCALE)];
    for (numbers, stored) in numbers.chunks_mut(dim).zip(bytes.chunks_mut(dim + Int8::SCALE)) {
        Int8::write_row(numbers, stored);
        assert_eq!(Int8::dequantize(stored, numbers), Ok(()));
    }
    let shape = [batch, heads, seq, dim + Int8::SCALE];
    (
        Strided::new(&bytes, shape, layout, Int8(77)),
        Strided::new(&numbers, tensor.shape, layout, f32::NAN),
    )
}

/// Decodes and prefills from three sequences' cache in `S` and from one of the same numbers in `f32`, to the
/// same bits on every instruction set.
pub fn same_from_caches<S: KvStorage<Compute = f32>>(
    narrow: &KvView<'_, S>,
    wide: &KvView<'_>,
    what: &str,
) -> Result<()> {
    let head_dim = wide.key().shape()[3];
    for (seq_q, heads) in [(1, 2), (1, 8), (1, 20), (5, 6), (30, 2)] {
        let mut rng = Rng(seq_q as u64);
        let query: Vec<f32> = (0..3 * heads * seq_q * head_dim).map(|_| rng.normal()).collect();
        let query = View::bshd(&query, [3, heads, seq_q, head_dim])?;
        for isa in Isa::available() {
            let options = AttentionOptions::new().isa(isa).causal().return_lse();
            let got = attention_cached(query, narrow, &options)?;
            let expected = attention_cached(query, wide, &options)?;
            assert!(got == expected, "{} {what}, {seq_q} queries on {isa}", S::NAME);
        }
    }
    Ok(())
}

/// That an error's message has these parts.
pub fn named<T>(result: Result<T>, parts: &[&str]) {
    let text = result.err().map_or_else(String::new, |error| error.to_string());
    assert!(parts.iter().all(|part| text.contains(part)), "{text:?} has not {parts:?}");
}
