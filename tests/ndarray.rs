//! Views of `ndarray` arrays in any memory order give the bits of contiguous copies.
#![cfg(feature = "ndarray")]

mod common;

use common::case::{Case, Dims};
use common::{bits, result_bits};
use headwise::{
    AttentionOptions, Error, Isa, Outputs, Result, View, ViewMut, Workspace, attention,
    attention_into,
};
use ndarray::{Array4, ArrayView4, Axis, s};

fn run(q: ArrayView4<'_, f32>, k: ArrayView4<'_, f32>, v: ArrayView4<'_, f32>) -> [Vec<u64>; 3] {
    let run = || -> Result<_> {
        let options = AttentionOptions::new().causal().return_lse().return_weights();
        attention(q.try_into()?, k.try_into()?, v.try_into()?, &options)
    };
    result_bits(&run().unwrap_or_else(|error| panic!("{error}")))
}

fn arrays() -> [Array4<f32>; 3] {
    let inputs =
        Case::plain(Dims { batch: 2, kv_heads: 3, ..Dims::single(17, 17, 24, 24) }, 61).inputs();
    [&inputs.query, &inputs.key, &inputs.value].map(|tensor| {
        let array = Array4::from_shape_vec(tensor.shape, tensor.dense());
        array.unwrap_or_else(|error| panic!("{error}"))
    })
}

/// `array` with its axes in memory order `order`, seen in the usual order again.
fn stored_as(array: &Array4<f32>, order: [usize; 4]) -> (Array4<f32>, [usize; 4]) {
    let stored = array.view().permuted_axes(order).as_standard_layout().into_owned();
    let mut back = [0; 4];
    order.into_iter().enumerate().for_each(|(at, axis)| back[axis] = at);
    (stored, back)
}

#[test]
fn permuted_axes() {
    let [q, k, v] = arrays();
    let expected = run(q.view(), k.view(), v.view());
    for order in [[0, 2, 1, 3], [1, 0, 2, 3], [2, 0, 1, 3], [2, 1, 0, 3], [1, 2, 0, 3]] {
        let [q, k, v] = [&q, &k, &v].map(|array| stored_as(array, order));
        let got = run(
            q.0.view().permuted_axes(q.1),
            k.0.view().permuted_axes(k.1),
            v.0.view().permuted_axes(v.1),
        );
        assert_eq!(expected, got, "{order:?}");
    }
}

#[test]
fn reversed_and_sliced() {
    let [q, k, v] = arrays();
    let expected = {
        let [q, k, v] = [&q, &k, &v]
            .map(|array| array.slice(s![..;-1, .., ..;-1, ..]).as_standard_layout().into_owned());
        run(q.view(), k.view(), v.view())
    };
    let [mut q2, mut k2, mut v2] = [&q, &k, &v].map(Array4::clone);
    for array in [&mut q2, &mut k2, &mut v2] {
        array.invert_axis(Axis(0));
        array.invert_axis(Axis(2));
        assert!(array.strides()[0] < 0 && array.strides()[2] < 0);
    }
    assert_eq!(expected, run(q2.view(), k2.view(), v2.view()));

    let part = s![1.., .., 3..15;2, 4..20];
    let [a, b, c] = [&q, &k, &v].map(|array| array.slice(part).as_standard_layout().into_owned());
    let expected = run(a.view(), b.view(), c.view());
    assert_eq!(expected, run(q.slice(part), k.slice(part), v.slice(part)));
}

#[test]
fn broadcast_arrays() {
    let [q, k, v] = arrays();
    let (k, v) = (k.slice(s![..1, ..1, .., ..]), v.slice(s![..1, ..1, .., ..]));
    let shape = [2, 3, 17, 24];
    let (Some(k), Some(v)) = (k.broadcast(shape), v.broadcast(shape)) else { unreachable!() };
    let [dense_k, dense_v] = [&k, &v].map(|array| array.as_standard_layout().into_owned());
    assert_eq!(run(q.view(), dense_k.view(), dense_v.view()), run(q.view(), k, v));
}

#[test]
fn outputs_in_any_order() -> Result<()> {
    let [q, k, v] = arrays();
    let options = AttentionOptions::new().isa(Isa::Portable);
    let views = || -> Result<[View<'_, f32>; 3]> {
        Ok([q.view().try_into()?, k.view().try_into()?, v.view().try_into()?])
    };
    let [query, key, value] = views()?;
    let expected = attention(query, key, value, &options)?;
    let mut out = Array4::from_elem([17, 2, 3, 24], f32::NAN);
    out.invert_axis(Axis(0));
    let view: ViewMut<'_, f32> = out.view_mut().permuted_axes([1, 2, 0, 3]).try_into()?;
    attention_into(query, key, value, &options, Outputs::new(view), &mut Workspace::new())?;
    let got = out.view().permuted_axes([1, 2, 0, 3]).as_standard_layout().into_owned();
    assert_eq!(bits(expected.out.data()), bits(got.as_slice().unwrap_or_default()));
    Ok(())
}

#[test]
fn a_last_axis_that_is_not_contiguous_is_refused() {
    let [q, k, v] = arrays();
    let square = q.slice(s![.., .., .., ..17]).permuted_axes([0, 1, 3, 2]);
    let part = s![.., .., .., ..17];
    let result = (|| -> Result<_> {
        let options = AttentionOptions::new();
        attention(square.try_into()?, k.slice(part).try_into()?, v.view().try_into()?, &options)
    })();
    assert!(matches!(result, Err(Error::Stride { argument: "query", .. })), "{result:?}");
}
