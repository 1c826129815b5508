use candle_core::{Result, Storage, Tensor};
use headwise_candle::{AttentionOptions, Borrowed, attention};

use crate::{elements, numbers};

/// Queries, keys and values as one projection leaves them, `[batch, seq, (4 + 2 + 2) * 16]`.
fn fused() -> Result<[Tensor; 3]> {
    let fused = numbers(&[2, 21, 8 * 16], 5)?.reshape((2, 21, 8, 16))?;
    let part = |first, heads| fused.narrow(2, first, heads)?.transpose(1, 2);
    Ok([part(0, 4)?, part(4, 2)?, part(6, 2)?])
}

#[test]
fn strides_say_where_things_lie() -> Result<()> {
    let [query, key, value] = fused()?;
    let options = AttentionOptions::new().causal();
    let out = attention(&query, &key, &value, options)?;
    let [q, k, v] = [&query, &key, &value].map(|tensor| tensor.contiguous());
    assert_eq!(elements(&out)?, elements(&attention(&q?, &k?, &v?, options)?)?);
    // Keys that all of a batch share, by a stride of 0.
    let one = |tensor: &Tensor| tensor.narrow(0, 1, 1)?.expand(tensor.shape());
    let (shared_key, shared_value) = (one(&key)?, one(&value)?);
    let out = attention(&query, &shared_key, &shared_value, options)?;
    let copied = [shared_key.contiguous()?, shared_value.contiguous()?];
    assert_eq!(elements(&out)?, elements(&attention(&query, &copied[0], &copied[1], options)?)?);
    Ok(())
}

#[test]
fn views_are_of_the_memory_that_candle_allocated() -> Result<()> {
    for tensor in fused()? {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { unreachable!("made on the CPU") };
        let memory = storage.as_slice::<f32>()?;
        let borrowed = Borrowed::new(&tensor)?;
        let view = borrowed.view::<f32>()?;
        for index in [[0, 0, 0], [0, 1, 3], [1, 1, 20]] {
            let steps: usize =
                index.iter().zip(layout.stride()).map(|(index, stride)| index * stride).sum();
            let expected = &memory[layout.start_offset() + steps..][..16];
            assert_eq!(view.row_slice(index).map(<[f32]>::as_ptr), Some(expected.as_ptr()));
        }
    }
    Ok(())
}

#[test]
fn heads_of_the_output_are_joined_without_a_copy() -> Result<()> {
    let [query, key, value] = fused()?;
    let out = attention(&query, &key, &value, AttentionOptions::new())?;
    assert_eq!(out.dims(), [2, 4, 21, 16]);
    let joined = out.transpose(1, 2)?;
    assert!(joined.is_contiguous());
    let joined = joined.flatten_from(2)?;
    let address = |tensor: &Tensor| match &*tensor.storage_and_layout().0 {
        Storage::Cpu(storage) => storage.as_slice::<f32>().map(<[f32]>::as_ptr),
        _ => unreachable!("computed on the CPU"),
    };
    assert_eq!(address(&joined)?, address(&out)?);
    Ok(())
}
