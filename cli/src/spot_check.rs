//! A result too large to check whole, checked on rows spread over it against the `f64` reference.

use headwise::oracle::reference::{self, Dense};
use headwise::{Scale, Tensor};

use crate::compare::{Closeness, Distance, distance};
use crate::work::Problem;

/// Compares about `rows` rows of `out`, at least one of each head, with the reference.
pub(crate) fn spot_check(problem: &Problem, out: &Tensor, rows: usize) -> Distance {
    let (got, answer) = sample(problem, out, rows);
    distance(&got, &answer, problem.value.shape()[3])
}

/// How close these rows are as a whole.
pub(crate) fn closeness(problem: &Problem, out: &Tensor, rows: usize) -> Closeness {
    let (got, answer) = sample(problem, out, rows);
    Closeness::of(&got, &answer)
}

/// The rows, and what they should be.
fn sample(problem: &Problem, out: &Tensor, rows: usize) -> (Vec<f32>, Vec<f64>) {
    let [batch, q_heads, seq_q, head_dim] = problem.query.shape();
    let [_, kv_heads, seq_kv, value_dim] = problem.value.shape();
    let scale = match problem.scale {
        Scale::Value(scale) => scale.into(),
        Scale::One => 1.0,
        _ => 1.0 / (head_dim as f64).sqrt(),
    };
    let per_head = (rows / (batch * q_heads).max(1)).clamp(1, seq_q.max(1)).min(seq_q);
    let sample: Vec<usize> = (0..per_head).map(|r| (2 * r + 1) * seq_q / (2 * per_head)).collect();

    let (mut got, mut answer) = (Vec::new(), Vec::new());
    for head in 0..batch * q_heads {
        let kv_head = head / q_heads * kv_heads + head % q_heads / (q_heads / kv_heads);
        let kv_rows = kv_head * seq_kv..(kv_head + 1) * seq_kv;
        let row = |tensor: &Tensor, index: usize| {
            let width = tensor.shape()[3];
            tensor.data()[index * width..][..width].to_vec()
        };
        let wide = |tensor: &Tensor, rows: &mut dyn Iterator<Item = usize>| -> Vec<f64> {
            rows.flat_map(|index| row(tensor, index)).map(f64::from).collect()
        };
        let mut queries = sample.iter().map(|i| head * seq_q + i);
        let dense = Dense {
            batch: 1,
            q_heads: 1,
            kv_heads: 1,
            seq_q: per_head,
            seq_kv,
            head_dim,
            value_dim,
            query: &wide(&problem.query, &mut queries.clone()),
            key: &wide(&problem.key, &mut kv_rows.clone()),
            value: &wide(&problem.value, &mut kv_rows.clone()),
            scale,
        };
        let visible = |i: usize, j: usize| !problem.causal || j + seq_q <= sample[i] + seq_kv;
        answer
            .extend(reference::attention(dense, |_, _, i, j| visible(i, j), |_, _, _, _| 0.0).out);
        got.extend(queries.by_ref().flat_map(|index| row(out, index)));
    }
    (got, answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Result;
    use crate::inputs::Normal;

    #[test]
    fn right_results_pass_and_wrong_rows_show() -> Result<()> {
        let mut normal = Normal::new(3);
        let mut problem = Problem {
            query: normal.tensor([2, 4, 9, 8])?,
            key: normal.tensor([2, 2, 11, 8])?,
            value: normal.tensor([2, 2, 11, 5])?,
            scale: Scale::InvSqrtHeadDim,
            causal: true,
        };
        for causal in [true, false] {
            problem.causal = causal;
            let (q, k, v) = (problem.query.view(), problem.key.view(), problem.value.view());
            let out = headwise::attention(q, k, v, &problem.options())?.out;
            assert!(spot_check(&problem, &out, 1).max_relative < 1e-5);
            assert!(spot_check(&problem, &out, 1000).max_relative < 1e-5);
            let off = Tensor::new(out.data().iter().map(|x| x * 1.01).collect(), out.shape())?;
            assert!(spot_check(&problem, &off, 1).max_relative > 1e-3);
        }
        Ok(())
    }
}
