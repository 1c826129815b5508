use candle_core::{DType, Device, Result, Tensor};
use headwise_candle::{AttentionOptions, Options, attention};

use crate::{distance, elements, numbers, plain};

fn inputs() -> Result<[Tensor; 3]> {
    Ok([numbers(&[2, 4, 9, 16], 1)?, numbers(&[2, 2, 12, 16], 2)?, numbers(&[2, 2, 12, 16], 3)?])
}

/// Every third key is hidden, another one from each row on; at least one is seen.
fn visible(shape: &[usize]) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let mask: Vec<u8> = (0..count).map(|i| u8::from((i + i / 12) % 3 != 0)).collect();
    Tensor::from_vec(mask, shape, &Device::Cpu)
}

/// 0 and minus infinity.
fn additive(visible: &Tensor) -> Result<Tensor> {
    let zeros = visible.zeros_like()?.to_dtype(DType::F32)?;
    visible.where_cond(&zeros, &(&zeros + f64::NEG_INFINITY)?)
}

#[test]
fn booleans_of_every_rank_hide_as_minus_infinity_does() -> Result<()> {
    let [query, key, value] = inputs()?;
    for shape in [
        &[12][..],
        &[9, 12],
        &[4, 9, 12],
        &[4, 1, 12],
        &[2, 1, 1, 12],
        &[2, 1, 9, 12],
        &[2, 4, 9, 12],
    ] {
        let mask = visible(shape)?;
        let bias = additive(&mask)?;
        let plain_options = Options::new(AttentionOptions::new());
        let out = attention(&query, &key, &value, plain_options.mask(&mask))?;
        let expected = plain::attention([&query, &key, &value], Some(&bias))?;
        assert!(distance(&out, &expected)? <= 2e-6, "{shape:?}");
        let added = attention(&query, &key, &value, plain_options.bias(&bias))?;
        assert!(distance(&added, &expected)? <= 2e-6, "{shape:?}");
    }
    Ok(())
}

#[test]
fn masks_are_read_by_their_strides() -> Result<()> {
    let [query, key, value] = inputs()?;
    let mask = visible(&[2, 9, 3, 14])?.narrow(3, 1, 12)?.narrow(2, 1, 1)?.transpose(1, 2)?;
    let expanded = mask.expand((2, 4, 9, 12))?;
    let copied = expanded.contiguous()?;
    let call =
        |mask| attention(&query, &key, &value, Options::new(AttentionOptions::new()).mask(mask));
    let expected = elements(&call(&copied)?)?;
    assert_eq!(elements(&call(&mask)?)?, expected);
    assert_eq!(elements(&call(&expanded)?)?, expected);
    Ok(())
}

#[test]
fn masks_join_the_options() -> Result<()> {
    let [query, key, value] = inputs()?;
    let bias = numbers(&[4, 9, 12], 7)?;
    let mask = visible(&[9, 12])?;
    let options = Options::new(AttentionOptions::new().causal()).mask(&mask).bias(&bias);
    let out = attention(&query, &key, &value, options)?;
    let all =
        bias.broadcast_add(&additive(&mask)?)?.broadcast_add(&plain::causal(9, 12, &query)?)?;
    assert!(distance(&out, &plain::attention([&query, &key, &value], Some(&all))?)? <= 2e-6);
    // Half the bytes, and the same numbers.
    let half = bias.to_dtype(DType::F16)?;
    let wide = half.to_dtype(DType::F32)?;
    let plain_options = Options::new(AttentionOptions::new());
    let out = attention(&query, &key, &value, plain_options.bias(&half))?;
    let expected = attention(&query, &key, &value, plain_options.bias(&wide))?;
    assert_eq!(elements(&out)?, elements(&expected)?);
    Ok(())
}

#[test]
fn doubles_take_masks_and_options_too() -> Result<()> {
    let [query, key, value] = inputs()?.map(|tensor| tensor.to_dtype(DType::F64));
    let (query, key, value) = (query?, key?, value?);
    let (mask, bias) = (visible(&[9, 12])?, numbers(&[9, 12], 7)?.to_dtype(DType::F64)?);
    let options = Options::new(AttentionOptions::new().causal()).mask(&mask).bias(&bias);
    let out = attention(&query, &key, &value, options)?;
    let hidden = additive(&mask)?.to_dtype(DType::F64)?;
    let all = ((bias + hidden)? + plain::causal(9, 12, &query)?)?;
    assert!(distance(&out, &plain::attention([&query, &key, &value], Some(&all))?)? <= 1e-7);
    Ok(())
}
