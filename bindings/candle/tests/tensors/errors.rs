use candle_core::{DType, Device, Result, Tensor, Var};
use headwise_candle::{
    AttentionOptions, Borrowed, KvCache, KvShape, Options, attention, attention_with_lse,
};

use crate::numbers;

/// The message of an error, which has to have every one of the words.
fn says<T>(result: Result<T>, words: &[&str]) {
    let message = match result {
        Ok(_) => panic!("no error, expected {words:?}"),
        Err(error) => error.to_string(),
    };
    for word in words {
        assert!(message.contains(word), "{message:?} has no {word:?}");
    }
}

fn call(query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor> {
    attention(query, key, value, AttentionOptions::new())
}

#[test]
fn what_does_not_fit_is_named() -> Result<()> {
    let x = numbers(&[2, 4, 6, 8], 1)?;
    says(call(&x, &x, &x.squeeze(0)?.narrow(0, 0, 1)?.squeeze(0)?), &["value", "rank 4"]);
    says(call(&x.to_dtype(DType::U32)?, &x, &x), &["query", "U32", "F32"]);
    says(call(&x, &x.to_dtype(DType::I64)?, &x), &["key", "I64", "F32"]);
    says(call(&x, &x.to_dtype(DType::F64)?, &x), &["key", "F64", "F32"]);
    says(call(&x.to_dtype(DType::F64)?, &x, &x), &["key", "F32", "F64", "query"]);
    says(call(&x, &x.narrow(1, 0, 3)?, &x.narrow(1, 0, 3)?), &["heads that divides"]);
    says(call(&x, &x, &x.narrow(2, 0, 5)?), &["value"]);
    let dim_first = numbers(&[2, 4, 8, 6], 1)?.transpose(2, 3)?;
    says(call(&x, &dim_first, &x), &["key", "contiguous"]);
    says(Borrowed::new(&x)?.view::<f64>(), &["F32", "F64"]);
    Ok(())
}

#[test]
fn masks_that_do_not_fit_are_named() -> Result<()> {
    let x = numbers(&[2, 4, 6, 8], 1)?;
    let plain = Options::new(AttentionOptions::new());
    let mask = Tensor::ones((6, 6), DType::U8, &Device::Cpu)?;
    let with_mask = |mask: &Tensor| attention(&x, &x, &x, plain.mask(mask));
    let with_bias = |bias: &Tensor| attention(&x, &x, &x, plain.bias(bias));
    says(with_mask(&(&mask * 2.0)?), &["mask", "0 and 1"]);
    says(with_mask(&mask.to_dtype(DType::F32)?), &["mask", "F32", "U8"]);
    says(with_mask(&mask.narrow(1, 0, 5)?), &["mask", "5"]);
    says(with_mask(&mask.reshape((1, 1, 1, 6, 6))?), &["mask", "last axes"]);
    says(with_bias(&mask), &["bias", "U8", "F32"]);
    let wide = mask.to_dtype(DType::F64)?;
    says(with_bias(&wide), &["bias", "F64", "F32"]);
    Ok(())
}

#[test]
fn caches_refuse_and_stay_as_they_were() -> Result<()> {
    let shape = KvShape { kv_heads: 2, head_dim: 8, value_dim: 8 };
    says(KvCache::new(shape, 1, 16, DType::F64), &["F64", "F32, F16 or BF16"]);
    says(KvCache::new(shape, 1, 0, DType::F32), &["capacity"]);
    let mut cache = KvCache::new(shape, 1, 4, DType::F32)?;
    let rows = numbers(&[1, 2, 3, 8], 1)?;
    cache.append(&rows, &rows)?;
    says(cache.append(&rows, &rows), &["capacity", "3 needed, 1 free"]);
    says(cache.append(&rows, &rows.narrow(2, 0, 1)?), &["value"]);
    says(cache.append(&rows.to_dtype(DType::F64)?, &rows), &["key", "F64"]);
    says(cache.attention(&rows.to_dtype(DType::F64)?, AttentionOptions::new()), &["query", "F64"]);
    says(cache.attention(&numbers(&[2, 2, 1, 8], 1)?, AttentionOptions::new()), &["batch"]);
    assert_eq!(cache.len(), 3);
    Ok(())
}

#[test]
fn gradients_are_refused_where_they_are_asked_for() -> Result<()> {
    let variable = Var::from_tensor(&numbers(&[1, 2, 3, 8], 1)?)?;
    let x = numbers(&[1, 2, 3, 8], 2)?;
    let expected = call(&variable.as_detached_tensor(), &x, &x)?;
    let out = call(&x, &variable, &x)?;
    says(out.sum_all()?.backward().map(drop), &["backward is not supported", "headwise"]);
    let (out, _) = attention_with_lse(&variable, &x, &x, AttentionOptions::new())?;
    assert_eq!(out.flatten_all()?.to_vec1::<f32>()?, expected.flatten_all()?.to_vec1::<f32>()?);
    says(out.sum_all()?.backward().map(drop), &["backward is not supported", "headwise"]);
    let mut cache =
        KvCache::new(KvShape { kv_heads: 2, head_dim: 8, value_dim: 8 }, 1, 4, DType::F32)?;
    cache.append(&x, &x)?;
    let out = cache.attention(&variable, AttentionOptions::new())?;
    says(out.sum_all()?.backward().map(drop), &["backward is not supported", "headwise"]);
    Ok(())
}
