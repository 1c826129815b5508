use candle_core::{DType, Result, Tensor};
use headwise_candle::headwise::{self, View};
use headwise_candle::{AttentionOptions, Precision, Scale, attention, attention_with_lse};

use crate::{distance, elements, numbers, plain};

/// Batch, heads of queries and of keys, queries, keys, head_dim, value_dim.
const SHAPES: [[usize; 7]; 4] = [
    [1, 4, 4, 7, 7, 16, 16],
    [2, 6, 2, 33, 130, 64, 48],
    [1, 9, 3, 1, 300, 64, 64],
    [3, 8, 1, 129, 129, 40, 40],
];

fn inputs(
    [batch, q_heads, kv_heads, seq_q, seq_kv, dim, value_dim]: [usize; 7],
) -> Result<[Tensor; 3]> {
    Ok([
        numbers(&[batch, q_heads, seq_q, dim], 1)?,
        numbers(&[batch, kv_heads, seq_kv, dim], 2)?,
        numbers(&[batch, kv_heads, seq_kv, value_dim], 3)?,
    ])
}

#[test]
fn as_candle_computes_it() -> Result<()> {
    // On candle's side halves are rounded after each of the three steps, and within products.
    let tolerances =
        [(DType::F32, 2e-6), (DType::F64, 1e-7), (DType::F16, 2e-2), (DType::BF16, 6e-2)];
    for shape in SHAPES {
        for (dtype, tolerance) in tolerances {
            let [query, key, value] = inputs(shape)?.map(|tensor| tensor.to_dtype(dtype));
            let (query, key, value) = (query?, key?, value?);
            let causal = plain::causal(shape[3], shape[4], &query)?;
            for (options, bias) in
                [(AttentionOptions::new(), None), (AttentionOptions::new().causal(), Some(&causal))]
            {
                let out = attention(&query, &key, &value, options)?;
                assert_eq!(out.dtype(), dtype);
                let expected = plain::attention([&query, &key, &value], bias)?;
                let distance = distance(&out, &expected)?;
                assert!(distance <= tolerance, "{shape:?} of {dtype:?}: {distance}");
            }
        }
    }
    Ok(())
}

#[test]
fn to_the_bits_of_slices() -> Result<()> {
    for shape in SHAPES {
        let [query, key, value] = inputs(shape)?;
        let sinks = vec![0.3; shape[1]];
        let plain = AttentionOptions::new();
        for options in [
            plain.causal().return_lse(),
            plain.scale(Scale::Value(0.2)).softcap(5.0).return_lse(),
            plain.window(Some(9), Some(2)).sinks(&sinks).return_lse(),
            plain.alibi(headwise_candle::Alibi::Standard).causal().return_lse(),
            plain.precision(Precision::Fast).return_lse(),
        ] {
            let (out, lse) = attention_with_lse(&query, &key, &value, options)?;
            assert_eq!(elements(&out)?, elements(&attention(&query, &key, &value, options)?)?);
            let data = [elements(&query)?, elements(&key)?, elements(&value)?];
            let dims = |tensor: &Tensor| -> [usize; 4] { tensor.dims().try_into().unwrap() };
            let view = |data, tensor| View::bhsd(data, dims(tensor)).unwrap();
            let expected = headwise::attention(
                view(&data[0], &query),
                view(&data[1], &key),
                view(&data[2], &value),
                &options,
            )
            .unwrap();
            assert_eq!(elements(&out)?, expected.out.data());
            assert_eq!(lse.dims(), [shape[0], shape[1], shape[3]]);
            assert_eq!(elements(&lse)?, expected.lse.unwrap().data());
        }
    }
    Ok(())
}

#[test]
fn halves_beside_floats_are_the_same_numbers() -> Result<()> {
    let [query, key, value] = inputs(SHAPES[1])?;
    let (narrow_key, narrow_value) = (key.to_dtype(DType::F16)?, value.to_dtype(DType::BF16)?);
    let options = AttentionOptions::new().causal();
    let out = attention(&query, &narrow_key, &narrow_value, options)?;
    let (key, value) = (narrow_key.to_dtype(DType::F32)?, narrow_value.to_dtype(DType::F32)?);
    assert_eq!(elements(&out)?, elements(&attention(&query, &key, &value, options)?)?);
    Ok(())
}

#[test]
fn calls_from_within_a_pool_and_of_no_tokens() -> Result<()> {
    let [query, key, value] = inputs(SHAPES[3])?;
    let expected = elements(&attention(&query, &key, &value, AttentionOptions::new())?)?;
    std::thread::scope(|scope| {
        let call = || elements(&attention(&query, &key, &value, AttentionOptions::new())?);
        let calls: Vec<_> = (0..4).map(|_| scope.spawn(call)).collect();
        for call in calls {
            assert_eq!(call.join().unwrap()?, expected);
        }
        Ok::<_, candle_core::Error>(())
    })?;
    let none = query.narrow(2, 0, 0)?;
    assert_eq!(attention(&none, &key, &value, AttentionOptions::new())?.dims(), [3, 8, 0, 40]);
    Ok(())
}
