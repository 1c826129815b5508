//! What is timed: inputs, outputs and scratch made once, so that a run is the kernel alone.

use headwise::{
    Algorithm, AttentionOptions, Isa, Outputs, Scale, Settings, Tensor, Workspace, attention_into,
    softmax_in_place, softmax_into,
};

use crate::Result;
use crate::inputs::Normal;
use crate::shapes::{AttentionShape, Shape, SoftmaxShape};

/// Something to run again and again, on the rayon pool that the caller is in.
pub trait Work: Send {
    /// Runs it once.
    ///
    /// # Errors
    /// Where the library refuses the call.
    fn run(&mut self, algorithm: Algorithm) -> Result<()>;

    /// The useful floating-point operations of a run, where they are counted.
    fn flops(&self) -> Option<f64>;

    /// The bytes that a run must move: of attention keys and values, of softmax input and output.
    fn bytes(&self) -> f64;

    /// The memory whose reading bounds a run from below: the bandwidth is measured on it.
    fn operands(&self) -> Vec<&[f32]>;
}

/// The work of a row of the table.
///
/// # Errors
/// Where the tensors do not fit the machine.
pub fn prepare(shape: &Shape, isa: Isa) -> Result<Box<dyn Work>> {
    Ok(match shape {
        Shape::Prefill(shape) | Shape::Decode(shape) => {
            Box::new(AttentionWork::synthetic(shape, isa)?)
        }
        Shape::Softmax(shape) => Box::new(SoftmaxWork::new(shape, isa)?),
    })
}

/// The inputs of an attention call. Masks other than the causal one are not timed.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) query: Tensor,
    pub(crate) key: Tensor,
    pub(crate) value: Tensor,
    pub(crate) scale: Scale,
    /// Bottom-right.
    pub(crate) causal: bool,
}

impl Problem {
    /// The options that say what to compute.
    pub(crate) fn options(&self) -> AttentionOptions<'static> {
        let options = AttentionOptions::new().scale(self.scale);
        if self.causal { options.causal() } else { options }
    }

    /// Twice the visible query-key pairs times the length of a key and a value.
    fn flops(&self) -> f64 {
        let [batch, q_heads, seq_q, head_dim] = self.query.shape();
        let [_, _, seq_kv, value_dim] = self.value.shape();
        let row =
            |i: usize| if self.causal { (i + 1 + seq_kv).saturating_sub(seq_q) } else { seq_kv };
        let pairs: usize = (0..seq_q).map(row).sum();
        2.0 * pairs as f64 * (batch * q_heads) as f64 * (head_dim + value_dim) as f64
    }
}

/// Attention into outputs that are reused.
pub(crate) struct AttentionWork {
    problem: Problem,
    isa: Isa,
    out: Tensor,
    workspace: Workspace,
}

impl AttentionWork {
    pub(crate) fn new(problem: Problem, isa: Isa) -> Result<Self> {
        let [batch, q_heads, seq_q, _] = problem.query.shape();
        let out = Tensor::zeros([batch, q_heads, seq_q, problem.value.shape()[3]])?;
        Ok(Self { problem, isa, out, workspace: Workspace::new() })
    }

    pub(crate) fn synthetic(s: &AttentionShape, isa: Isa) -> Result<Self> {
        let mut normal = Normal::new(1);
        let kv = [s.batch, s.kv_heads, s.seq_kv, s.head_dim];
        let problem = Problem {
            query: normal.tensor([s.batch, s.q_heads, s.seq_q, s.head_dim])?,
            key: normal.tensor(kv)?,
            value: normal.tensor(kv)?,
            scale: Scale::InvSqrtHeadDim,
            causal: s.causal,
        };
        Self::new(problem, isa)
    }

    pub(crate) fn problem(&self) -> &Problem {
        &self.problem
    }

    /// What the last run left.
    pub(crate) fn out(&self) -> &Tensor {
        &self.out
    }
}

impl Work for AttentionWork {
    fn run(&mut self, algorithm: Algorithm) -> Result<()> {
        let Self { problem, isa, out, workspace } = self;
        let options = problem.options().isa(*isa).algorithm(algorithm);
        let (q, k, v) = (problem.query.view(), problem.key.view(), problem.value.view());
        attention_into(q, k, v, &options, Outputs::new(out.view_mut()), workspace)?;
        Ok(())
    }

    fn flops(&self) -> Option<f64> {
        Some(self.problem.flops())
    }

    fn bytes(&self) -> f64 {
        self.operands().iter().map(|data| size_of_val(*data)).sum::<usize>() as f64
    }

    fn operands(&self) -> Vec<&[f32]> {
        vec![self.problem.key.data(), self.problem.value.data()]
    }
}

/// Softmax of the rows of a tensor.
struct SoftmaxWork {
    input: Tensor,
    /// `None`: in place. The input then changes from run to run, the work does not.
    output: Option<Tensor>,
    isa: Isa,
    workspace: Workspace,
}

impl SoftmaxWork {
    fn new(shape: &SoftmaxShape, isa: Isa) -> Result<Self> {
        let extents = [1, 1, shape.rows, shape.length];
        let input = Normal::new(1).tensor(extents)?;
        let output = (!shape.in_place).then(|| Tensor::zeros(extents)).transpose()?;
        Ok(Self { input, output, isa, workspace: Workspace::new() })
    }
}

impl Work for SoftmaxWork {
    fn run(&mut self, algorithm: Algorithm) -> Result<()> {
        let settings = Settings { isa: Some(self.isa), algorithm, ..Settings::default() };
        let workspace = &mut self.workspace;
        match &mut self.output {
            None => softmax_in_place(self.input.view_mut(), 1.0, &settings, workspace)?,
            Some(output) => {
                softmax_into(self.input.view(), output.view_mut(), 1.0, &settings, workspace)?
            }
        };
        Ok(())
    }

    fn flops(&self) -> Option<f64> {
        None
    }

    fn bytes(&self) -> f64 {
        2.0 * size_of_val(self.input.data()) as f64
    }

    fn operands(&self) -> Vec<&[f32]> {
        vec![self.input.data()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(seq_q: usize, seq_kv: usize, causal: bool) -> Result<Problem> {
        Ok(Problem {
            query: Tensor::zeros([2, 4, seq_q, 8])?,
            key: Tensor::zeros([2, 2, seq_kv, 8])?,
            value: Tensor::zeros([2, 2, seq_kv, 3])?,
            scale: Scale::One,
            causal,
        })
    }

    #[test]
    fn only_visible_pairs_count() -> Result<()> {
        let heads_and_dims = 2.0 * 8.0 * 11.0;
        assert_eq!(problem(5, 7, false)?.flops(), heads_and_dims * 35.0);
        assert_eq!(problem(5, 7, true)?.flops(), heads_and_dims * (3 + 4 + 5 + 6 + 7) as f64);
        assert_eq!(problem(3, 2, true)?.flops(), heads_and_dims * 3.0);
        Ok(())
    }

    #[test]
    fn bytes_of_keys_and_values() -> Result<()> {
        let work = AttentionWork::new(problem(5, 7, false)?, Isa::Portable)?;
        assert_eq!(work.bytes(), (4 * 2 * 2 * 7 * (8 + 3)) as f64);
        Ok(())
    }
}
