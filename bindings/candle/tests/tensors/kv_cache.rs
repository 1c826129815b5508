use candle_core::{DType, Result, Tensor};
use headwise_candle::headwise::Int8;
use headwise_candle::{
    AttentionOptions, Frequencies, KvCache, KvShape, Options, Rope, RopeLayout, RopeScaling,
    attention, rotate,
};

use crate::{distance, elements, numbers};

const SHAPE: KvShape = KvShape { kv_heads: 2, head_dim: 16, value_dim: 24 };
const BATCH: usize = 2;

/// Queries, keys and values of a whole sequence, transposed from `[batch, seq, heads, dim]`.
fn sequence(tokens: usize) -> Result<[Tensor; 3]> {
    let tensor = |heads, dim, seed| numbers(&[BATCH, tokens, heads, dim], seed)?.transpose(1, 2);
    Ok([tensor(6, 16, 1)?, tensor(2, 16, 2)?, tensor(2, 24, 3)?])
}

#[test]
fn chunk_by_chunk_to_the_bits_of_concatenated_tensors() -> Result<()> {
    let [query, key, value] = sequence(40)?;
    let options = AttentionOptions::new().causal();
    let whole = attention(&query, &key, &value, options)?;
    let mut cache = KvCache::new(SHAPE, BATCH, 40, DType::F32)?;
    let (mut seen, mut past): (usize, Option<[Tensor; 2]>) = (0, None);
    for tokens in [17, 1, 1, 20, 1] {
        let part = |tensor: &Tensor| tensor.narrow(2, seen, tokens);
        let (query, key, value) = (part(&query)?, part(&key)?, part(&value)?);
        cache.append(&key, &value)?;
        let out = cache.attention(&query, options)?;
        let all = match &past {
            None => [key, value],
            Some([k, v]) => [Tensor::cat(&[k, &key], 2)?, Tensor::cat(&[v, &value], 2)?],
        };
        assert_eq!(elements(&out)?, elements(&attention(&query, &all[0], &all[1], options)?)?);
        assert_eq!(elements(&out)?, elements(&part(&whole)?)?);
        (seen, past) = (seen + tokens, Some(all));
        assert_eq!(cache.len(), seen);
    }
    Ok(())
}

#[test]
fn what_is_forgotten_has_no_influence() -> Result<()> {
    let [query, key, value] = sequence(30)?;
    let mut cache = KvCache::new(SHAPE, BATCH, 10, DType::F32)?;
    assert!(cache.is_empty());
    assert!(cache.append(&key, &value).is_err(), "more than there is room for");
    cache.reserve(64)?;
    assert_eq!((cache.capacity(), cache.len()), (64, 0));
    cache.append(&key, &value)?;
    cache.truncate(12)?;
    assert!(cache.truncate(13).is_err());
    let last = |tensor: &Tensor| tensor.narrow(2, 12, 1);
    cache.append(&last(&key)?, &last(&value)?)?;
    let first = |tensor: &Tensor| tensor.narrow(2, 0, 13);
    let options = AttentionOptions::new().causal();
    let out = cache.attention(&last(&query)?, options)?;
    let expected = attention(&last(&query)?, &first(&key)?, &first(&value)?, options)?;
    assert_eq!(elements(&out)?, elements(&expected)?);
    cache.reset();
    assert!(cache.is_empty());
    cache.append(&first(&key)?, &first(&value)?)?;
    let out = cache.attention(&last(&query)?, options)?;
    assert_eq!(elements(&out)?, elements(&expected)?);
    Ok(())
}

#[test]
fn halves_are_rounded_once() -> Result<()> {
    let [query, key, value] = sequence(21)?;
    for dtype in [DType::F16, DType::BF16] {
        let mut cache = KvCache::new(SHAPE, BATCH, 21, dtype)?;
        cache.append(&key, &value)?;
        let mask = numbers(&[21, 21], 9)?;
        let options = Options::new(AttentionOptions::new().causal()).bias(&mask);
        let out = cache.attention(&query, options)?;
        let (key, value) = (key.to_dtype(dtype)?, value.to_dtype(dtype)?);
        assert_eq!(elements(&out)?, elements(&attention(&query, &key, &value, options)?)?);
        let narrow = cache.attention(&query.to_dtype(dtype)?, options)?;
        assert_eq!(narrow.dtype(), dtype);
    }
    Ok(())
}

/// The tensor as rows of integers keep it.
fn quantized(x: &Tensor) -> Result<Tensor> {
    let dim = x.dim(3)?;
    let mut numbers = elements(x)?;
    for row in numbers.chunks_exact_mut(dim) {
        let mut stored = vec![Int8::default(); dim + Int8::SCALE];
        Int8::quantize(row, &mut stored).map_err(candle_core::Error::wrap)?;
        Int8::dequantize(&stored, row).map_err(candle_core::Error::wrap)?;
    }
    Tensor::from_vec(numbers, x.shape(), x.device())
}

#[test]
fn integers_have_the_bits_of_their_numbers() -> Result<()> {
    let [query, key, value] = sequence(21)?;
    let mut cache = KvCache::quantized(SHAPE, BATCH, 5)?;
    assert!(cache.append(&key, &value).is_err());
    cache.reserve(21)?;
    cache.append(&key, &value)?;
    let options = AttentionOptions::new().causal();
    let expected = attention(&query, &quantized(&key)?, &quantized(&value)?, options)?;
    assert_eq!(elements(&cache.attention(&query, options)?)?, elements(&expected)?);
    let far = distance(&expected, &attention(&query, &key, &value, options)?)?;
    assert!(0.0 < far && far < 0.1, "{far}");
    let narrow = cache.attention(&query.to_dtype(DType::BF16)?, options)?;
    assert_eq!((narrow.dtype(), cache.len()), (DType::BF16, 21));
    Ok(())
}

/// candle's own rotation, half-split or interleaved, of a contiguous tensor from `start` on.
fn candle_rotation(layout: RopeLayout, x: &Tensor, start: usize) -> Result<Tensor> {
    let (seq, dim) = (x.dim(2)?, x.dim(3)?);
    let theta = |i: usize| 10_000_f32.powf(-2.0 * i as f32 / dim as f32);
    let angles = |f: fn(f32) -> f32| {
        let angle = |n: usize| f((start + n / (dim / 2)) as f32 * theta(n % (dim / 2)));
        let table: Vec<f32> = (0..seq * dim / 2).map(angle).collect();
        Tensor::from_vec(table, (seq, dim / 2), x.device())
    };
    let (cos, sin) = (angles(f32::cos)?, angles(f32::sin)?);
    match layout {
        RopeLayout::HalfSplit => candle_nn::rotary_emb::rope(&x.contiguous()?, &cos, &sin),
        RopeLayout::Interleaved => candle_nn::rotary_emb::rope_i(&x.contiguous()?, &cos, &sin),
    }
}

#[test]
fn rotated_as_candle_rotates() -> Result<()> {
    let [query, key, value] = sequence(30)?;
    let frequencies =
        Frequencies::new(16, 10_000.0, RopeScaling::Unscaled).map_err(candle_core::Error::wrap)?;
    for layout in [RopeLayout::HalfSplit, RopeLayout::Interleaved] {
        let rope = Rope::new(layout, &frequencies, 30).map_err(candle_core::Error::wrap)?;
        let mut cache = KvCache::new(SHAPE, BATCH, 30, DType::F32)?;
        let options = AttentionOptions::new().causal();
        for (start, tokens) in [(0, 25), (25, 5)] {
            let part = |tensor: &Tensor| tensor.narrow(2, start, tokens);
            let query = rotate(&part(&query)?, &rope, start)?;
            cache.append_rotated(&part(&key)?, &part(&value)?, &rope)?;
            let out = cache.attention(&query, options)?;
            let rotated_key = candle_rotation(layout, &key.narrow(2, 0, start + tokens)?, 0)?;
            let seen_values = value.narrow(2, 0, start + tokens)?;
            let plain = attention(&query, &rotated_key, &seen_values, options)?;
            assert!(distance(&out, &plain)? <= 2e-6);
        }
        let rotated = rotate(&query, &rope, 0)?;
        assert!(distance(&rotated, &candle_rotation(layout, &query, 0)?)? <= 1e-5);
        let late = rotate(&query.narrow(2, 0, 10)?, &rope, 20)?;
        let expected = candle_rotation(layout, &query.narrow(2, 0, 10)?, 20)?;
        assert!(distance(&late, &expected)? <= 1e-5);
        let half = query.to_dtype(DType::BF16)?;
        let rounded = rotate(&half.to_dtype(DType::F32)?, &rope, 0)?.to_dtype(DType::BF16)?;
        assert_eq!(elements(&rotate(&half, &rope, 0)?)?, elements(&rounded)?);
        assert!(rotate(&query, &rope, 1).is_err(), "beyond the table");
    }
    Ok(())
}
