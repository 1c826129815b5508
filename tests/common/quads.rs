//! What `Precision::Fast` says it computes: queries and keys rounded to integers of eight bits, step by step as
//! `docs/numerics.md` has it, in scalar `f32`.

use headwise::{Scale, bf16};

use super::case::Inputs;
use super::strided::{Layout, Strided};

/// Keys that share a mean, and of how many keys one counts for it.
const SPLIT: usize = 2048;
const SAMPLE: usize = 32;
/// The largest magnitude below which a row is one of zeros.
const LEAST: f32 = 1e-30;

/// Whether keys are rounded without the mean that they share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Smoothing {
    On,
    Off,
}

fn largest(row: &[f32]) -> f32 {
    row.iter().fold(0.0, |most, x| most.max(x.abs()))
}

/// A row in integers, and their scale.
fn integers(row: &[f32], shift: f32) -> (Vec<f64>, f64) {
    let most = largest(row);
    let inverse = if most < LEAST { 0.0 } else { 127.0 / most };
    let one = |x: &f32| f64::from(x.mul_add(inverse, shift).round_ties_even() - shift);
    (row.iter().map(one).collect(), f64::from(most / 127.0))
}

fn mean(rows: &[&[f32]]) -> Vec<f32> {
    let part = 1.0 / rows.len() as f32;
    let sum = |d: usize| rows.iter().fold(0.0_f32, |sum, row| sum + row[d]);
    (0..rows[0].len()).map(|d| sum(d) * part).collect()
}

/// The rows of a tensor, of one head after the other.
fn heads(tensor: &Strided<f32>) -> Vec<Vec<Vec<f32>>> {
    let [_, _, seq, dim] = tensor.shape;
    let dense = tensor.dense();
    let rows: Vec<Vec<f32>> = dense.chunks(dim).map(<[f32]>::to_vec).collect();
    rows.chunks(seq.max(1)).map(<[Vec<f32>]>::to_vec).collect()
}

/// A problem with queries rounded to integers, on keys and values that are stored so.
pub fn rounded_query(inputs: &Inputs<f32>) -> Inputs<f64> {
    let mut query = Vec::new();
    for row in heads(&inputs.query).iter().flatten() {
        let (numbers, of_row) = integers(row, 0.0);
        query.extend(numbers.iter().map(|x| of_row * x));
    }
    let mut wide = inputs.map(f64::from);
    wide.query = Strided::new(&query, inputs.query.shape, Layout::Bhsd, f64::NAN);
    wide
}

/// How far an output may be off, where the products of a block's `weights` and of the scales of its values'
/// rows are rounded to multiples of a 255th of the largest: the values' integers are up to 127.
pub fn rounding_of_weights(weights: &[f64], values: &[(f64, Vec<f64>)], column: usize) -> f64 {
    let of_block = |(weights, values): (&[f64], &[(f64, Vec<f64>)])| {
        let products = weights.iter().zip(values).map(|(weight, (scale, _))| weight * scale);
        let most = products.fold(0.0, f64::max);
        let integers = weights.iter().zip(values).map(|(&weight, (scale, row))| {
            if weight > 0.0 && *scale > 0.0 { (row[column] / scale).abs() } else { 0.0 }
        });
        most / 510.0 * integers.sum::<f64>()
    };
    weights.chunks(128).zip(values.chunks(128)).map(of_block).sum()
}

/// A problem of twice the width whose dot products are those of the rounded numbers: `query . mean` and
/// `query' . rest'`, where a key has a mean. With `pairs` values are rounded to `bf16`.
pub fn rounded(inputs: &Inputs<f32>, smoothing: Smoothing, pairs: bool) -> Inputs<f64> {
    let scale = inputs.scale_factor();
    let mut query = Vec::new();
    for row in heads(&inputs.query).iter().flatten() {
        let (numbers, of_row) = integers(row, 0.0);
        query.extend(row.iter().map(|&x| scale * f64::from(x)));
        query.extend(numbers.iter().map(|x| scale * of_row * x));
    }
    let mut key = Vec::new();
    for head in heads(&inputs.key) {
        for split in head.chunks(SPLIT) {
            let sample: Vec<&[f32]> = split.iter().step_by(SAMPLE).map(Vec::as_slice).collect();
            let mean = mean(&sample);
            for row in split {
                let rest: Vec<f32> = row.iter().zip(&mean).map(|(x, mean)| x - mean).collect();
                let has_mean = smoothing == Smoothing::On && largest(&rest) < largest(row);
                let (numbers, of_row) = integers(if has_mean { &rest } else { row }, 128.0);
                let mean = mean.iter().map(|&x| if has_mean { x.into() } else { 0.0 });
                key.extend(mean);
                key.extend(numbers.iter().map(|x| of_row * x));
            }
        }
    }
    let mut wide = inputs.map(f64::from);
    let doubled = |[batch, heads, seq, dim]: [usize; 4]| [batch, heads, seq, 2 * dim];
    wide.query = Strided::new(&query, doubled(inputs.query.shape), Layout::Bhsd, f64::NAN);
    wide.key = Strided::new(&key, doubled(inputs.key.shape), Layout::Bhsd, f64::NAN);
    wide.scale = Scale::One;
    if pairs {
        wide.value = inputs.value.map(|x| bf16::from_f32(x).to_f64());
    }
    wide
}
