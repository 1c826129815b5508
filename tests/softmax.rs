//! The softmax kernel against f64: rows of any length, views of any strides, in place or not, on
//! every instruction set.

mod common;

use common::executors::{Never, Scoped, TooOften};
use common::strided::{Layout, Strided};
use common::{Rng, bits, for_all};
use headwise::{
    Executor, Isa, Serial, Settings, Shape, Strides, View, ViewMut, Workspace, softmax_in_place,
    softmax_into,
};
use proptest::prelude::*;
use proptest::sample::select;

fn on(isa: Isa, executor: &dyn Executor) -> Settings<'_> {
    Settings::default().with_isa(isa).with_executor(executor)
}

/// Softmax of dense data, row by row.
fn softmax(data: &[f32], shape: Shape, scale: f32, settings: &Settings<'_>) -> Vec<f32> {
    let mut out = vec![7.0; data.len()];
    let isa = View::bhsd(data, shape).and_then(|input| {
        let output = ViewMut::bhsd(&mut out, shape)?;
        softmax_into(input, output, scale, settings, &mut Workspace::new())
    });
    assert_eq!(isa.ok(), settings.isa);
    out
}

/// One row on each instruction set.
fn each(row: &[f32], scale: f32, test: impl Fn(&[f32], Isa)) {
    for isa in Isa::available() {
        test(&softmax(row, [1, 1, 1, row.len()], scale, &on(isa, &Serial)), isa);
    }
}

/// A score `scale * x` is rounded once and the maximum taken away once more: `4 u |score|`. Then
/// the exponential, the sum over `n` in partial sums, the quotient.
fn assert_softmax(got: &[f32], row: &[f32], scale: f32, what: &str) {
    let scores: Vec<f64> = row.iter().map(|&x| f64::from(x) * f64::from(scale)).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let magnitude =
        scores.iter().filter(|&&x| x > max - 150.0).fold(0.0, |m: f64, x| m.max(x.abs()));
    let sum: f64 = scores.iter().map(|x| (x - max).exp()).sum();
    let u = f64::from(f32::EPSILON) / 2.0;
    let delta = (4.0 * u * (magnitude + 150.0)).exp_m1();
    let relative = 2.0 * (delta + 2.5e-7) + (row.len() as f64 / 16.0 + 16.0) * u;
    for (i, (got, score)) in got.iter().zip(&scores).enumerate() {
        let expected = (score - max).exp() / sum;
        let error = (f64::from(*got) - expected).abs();
        let bound = relative * expected + 1e-37;
        assert!(error <= bound, "{i}: {got} for {expected}, bound {bound:e}; {what}");
    }
    let total: f64 = got.iter().map(|&x| f64::from(x)).sum();
    assert!(row.is_empty() || (total - 1.0).abs() < 1e-4, "sum {total}; {what}");
}

#[test]
fn rows_of_any_length() {
    for len in (0..=100).chain([255, 256, 257, 1000, 70_000]) {
        let mut rng = Rng(len as u64);
        for (spread, scale) in [(1.0, 1.0), (5.0, -0.7), (100.0, 1.0), (1.0, 30.0), (1.0, 0.0)] {
            let row: Vec<f32> = rng.normals(len).iter().map(|x| x * spread).collect();
            each(&row, scale, |got, isa| {
                let what = format!("{len} elements, spread {spread}, scale {scale} on {isa}");
                assert_softmax(got, &row, scale, &what);
            });
        }
    }
}

/// Ordinary rows come out to a few units in the last place.
#[test]
fn ordinary_rows_are_accurate() {
    let row = Rng(3).normals(1000);
    let max = row.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = row.iter().map(|&x| f64::from(x - max).exp()).sum();
    each(&row, 1.0, |got, isa| {
        for (got, x) in got.iter().zip(&row) {
            let expected = f64::from(x - max).exp() / sum;
            assert!((f64::from(*got) / expected - 1.0).abs() < 2e-6, "{got}, {expected} on {isa}");
        }
    });
}

#[test]
fn rows_of_special_numbers() {
    const INF: f32 = f32::INFINITY;
    for len in [1_usize, 3, 17, 64, 65, 200] {
        let finite = Rng(len as u64).normals(len);
        let at = len / 2;
        let with = |x: f32| {
            let mut row = finite.clone();
            row[at] = x;
            row
        };
        for bad in [f32::NAN, -f32::NAN, INF] {
            each(&with(bad), 1.0, |got, isa| {
                assert!(got.iter().all(|x| x.is_nan()), "{bad} in {len} on {isa}: {got:?}");
            });
        }
        each(&with(INF), -1.0, |got, isa| {
            let fine = len == 1 || got.iter().sum::<f32>() > 0.999;
            assert!(got[at].to_bits() == 0 && fine, "hidden in {len} on {isa}: {got:?}");
        });
        each(&vec![-INF; len], 1.0, |got, isa| {
            assert!(got.iter().all(|x| x.to_bits() == 0), "nothing in {len} on {isa}: {got:?}");
        });
        each(&vec![f32::MIN; len], 1.0, |got, isa| {
            assert_softmax(got, &vec![0.0; len], 1.0, &format!("lowest, {len} on {isa}"));
        });
        let mut huge = vec![-3e38; len];
        huge[at] = 3e38;
        each(&huge, 1.0, |got, isa| {
            let alone = got.iter().enumerate().all(|(i, &x)| x == f32::from(u8::from(i == at)));
            assert!(alone, "huge in {len} on {isa}: {got:?}");
        });
        each(&with(f32::MAX), 0.0, |got, isa| {
            assert_softmax(got, &vec![0.0; len], 1.0, &format!("scale 0, {len} on {isa}"));
        });
    }
}

#[test]
fn a_nan_stays_in_its_row() {
    let data = Rng(9).normals(5 * 33);
    let mut bad = data.clone();
    bad[2 * 33 + 7] = f32::NAN;
    for isa in Isa::available() {
        let [clean, bad] = [&data, &bad].map(|x| softmax(x, [1, 5, 1, 33], 1.0, &on(isa, &Serial)));
        for row in 0..5 {
            let at = row * 33..(row + 1) * 33;
            if row == 2 {
                assert!(bad[at].iter().all(|x| x.is_nan()), "{isa}");
            } else {
                assert_eq!(bits(&clean[at.clone()]), bits(&bad[at]), "row {row} on {isa}");
            }
        }
    }
}

/// Strides of a tensor whose axes lie in memory in any order, `gap` elements apart at least.
fn permuted(shape: Shape, order: [usize; 4], gap: usize) -> (Strides, usize) {
    let (mut strides, mut step) = ([0; 4], gap);
    for axis in order {
        strides[axis] = step as isize;
        step *= shape[axis].max(1);
    }
    (strides, step)
}

fn backwards(shape: Shape, strides: &mut Strides, flip: [bool; 4]) -> usize {
    let mut offset = 0;
    for axis in (0..4).filter(|&axis| flip[axis]) {
        offset += (shape[axis].max(1) - 1) * strides[axis].unsigned_abs();
        strides[axis] = -strides[axis];
    }
    offset
}

fn layout() -> impl Strategy<Value = ([usize; 4], usize, [bool; 4])> {
    (Just([0, 1, 2, 3]).prop_shuffle(), 1..3_usize, any::<[bool; 4]>())
}

fn in_layout(dense: &[f32], shape: Shape, layout: ([usize; 4], usize, [bool; 4])) -> Strided<f32> {
    let (mut strides, len) = permuted(shape, layout.0, layout.1);
    let offset = backwards(shape, &mut strides, layout.2);
    let mut tensor = Strided { data: vec![7.5e8; len], offset, shape, strides };
    tensor.indices().into_iter().zip(dense).for_each(|(at, &x)| tensor.data[at] = x);
    tensor
}

/// Any strides, inner ones that are not 1 or negative among them, and in place: the same bits.
#[test]
fn any_layout_and_in_place() {
    let shape = prop::array::uniform3(1..5_usize);
    let len = select(vec![1_usize, 2, 7, 16, 33, 70, 300]);
    let scale = select(vec![1.0_f32, -2.0, 0.0, 0.125]);
    let problems = (shape, len, scale, any::<u64>());
    for_all(300, (problems, layout(), layout()), |((outer, len, scale, seed), a, b)| {
        let shape = [outer[0], outer[1], outer[2], len];
        let dense = Rng(seed).normals(shape.iter().product());
        let input = in_layout(&dense, shape, a);
        for isa in Isa::available() {
            let settings = on(isa, &Serial);
            let expected = bits(&softmax(&dense, shape, scale, &settings));
            let what = format!("{shape:?}, {a:?} to {b:?}, scale {scale}, seed {seed} on {isa}");
            let mut output = in_layout(&vec![7.0; dense.len()], shape, b);
            let mut workspace = Workspace::new();
            let result =
                softmax_into(input.view(), output.view_mut(), scale, &settings, &mut workspace);
            assert_eq!(result, Ok(isa));
            assert_eq!(expected, bits(&output.dense()), "{what}");
            let mut both = input.clone();
            let result = softmax_in_place(both.view_mut(), scale, &settings, &mut workspace);
            assert_eq!(result, Ok(isa));
            assert_eq!(expected, bits(&both.dense()), "in place, {what}");
            for tensor in [output, both] {
                assert!(tensor.gaps().iter().all(|&x| x == 7.5e8), "gaps written, {what}");
            }
        }
    });
}

/// One row read many times.
#[test]
fn broadcast_inputs() {
    let row = Rng(5).normals(40);
    let input = Strided::new(&row, [1, 1, 1, 40], Layout::Bhsd, 0.0);
    for isa in Isa::available() {
        let settings = on(isa, &Serial);
        let expected = softmax(&row, input.shape, 1.0, &settings);
        let mut out = vec![0.0; 240];
        let result = View::strided(&row, 0, [2, 3, 1, 40], [0, 0, 0, 1]).and_then(|input| {
            let out = ViewMut::bhsd(&mut out, [2, 3, 1, 40])?;
            softmax_into(input, out, 1.0, &settings, &mut Workspace::new())
        });
        assert_eq!(result, Ok(isa));
        assert!(out.chunks(40).all(|row| row == expected), "{isa}");
    }
}

#[test]
fn any_number_of_threads() {
    let shape = [3, 4, 50, 300];
    let data = Rng(6).normals(shape.iter().product());
    let executors: [&dyn Executor; 5] = [&Scoped(2), &Scoped(3), &Scoped(7), &Never, &TooOften];
    for isa in Isa::available() {
        let expected = softmax(&data, shape, 1.0, &on(isa, &Serial));
        for executor in executors {
            let got = softmax(&data, shape, 1.0, &on(isa, executor));
            assert!(bits(&expected) == bits(&got), "{} threads on {isa}", executor.threads());
        }
    }
}

#[test]
fn empty_views() {
    for shape in [[0, 1, 2, 3], [1, 0, 2, 3], [1, 1, 0, 3], [1, 2, 3, 0]] {
        assert!(softmax(&[], shape, 1.0, &on(Isa::Portable, &Serial)).is_empty(), "{shape:?}");
    }
}
