//! Attention on tensors of half the width, beside the same on their numbers in `f32`.

use headwise::{Executor, Isa, Outputs, Storage, Tensor, Workspace, attention_into, bf16, f16};

use crate::Result;
use crate::compare::Closeness;
use crate::shapes::{Dtype, PrecisionShape};
use crate::spot_check::closeness;
use crate::work::{AttentionWork, Problem, Way, Work};

/// The work of a shape.
pub(crate) fn precision_work(s: &PrecisionShape, isa: Isa) -> Result<Box<dyn Work>> {
    Ok(match s.dtype {
        Dtype::F32 => Box::new(PrecisionWork::<f32>::new(s, isa)?),
        Dtype::F16 => Box::new(PrecisionWork::<f16>::new(s, isa)?),
        Dtype::Bf16 => Box::new(PrecisionWork::<bf16>::new(s, isa)?),
    })
}

/// Attention on tensors of `S`.
struct PrecisionWork<S: Storage> {
    /// The same numbers in `f32`.
    wide: AttentionWork,
    query: Tensor<S>,
    key: Tensor<S>,
    value: Tensor<S>,
    out: Tensor<S>,
    isa: Isa,
    workspace: Workspace,
}

fn rounded<S: Storage<Compute = f32>>(tensor: &Tensor) -> Result<Tensor<S>> {
    Ok(Tensor::new(tensor.data().iter().map(|&x| S::round(x)).collect(), tensor.shape())?)
}

fn widened<S: Storage<Compute = f32>>(tensor: &Tensor<S>) -> Result<Tensor> {
    Ok(Tensor::widened(tensor.data(), tensor.shape())?)
}

impl<S: Storage<Compute = f32>> PrecisionWork<S> {
    fn new(s: &PrecisionShape, isa: Isa) -> Result<Self> {
        let Problem { query, key, value, scale, causal } = Problem::synthetic(&s.attention)?;
        let (query, key, value) = (rounded(&query)?, rounded(&key)?, rounded(&value)?);
        let wide = Problem {
            query: widened::<S>(&query)?,
            key: widened::<S>(&key)?,
            value: widened::<S>(&value)?,
            scale,
            causal,
        };
        let wide = AttentionWork::new(wide, isa)?;
        let out = Tensor::zeros(wide.out().shape())?;
        Ok(Self { wide, query, key, value, out, isa, workspace: Workspace::new() })
    }
}

impl<S: Storage<Compute = f32>> Work for PrecisionWork<S> {
    fn run(&mut self, way: Way, executor: &dyn Executor) -> Result<()> {
        if way == Way::Without {
            return self.wide.run(Way::Fused, executor);
        }
        let options = self.wide.problem().options().isa(self.isa).executor(executor);
        let [query, key, value] = [&self.query, &self.key, &self.value].map(|x| S::input(x.view()));
        let outputs = Outputs::new(S::output(self.out.view_mut()));
        attention_into(query, key, value, &options, outputs, &mut self.workspace)?;
        Ok(())
    }

    fn operands(&self) -> Vec<&[u8]> {
        vec![S::as_bytes(self.key.data()), S::as_bytes(self.value.data())]
    }

    fn closeness(&self) -> Result<Option<Closeness>> {
        Ok(Some(closeness(self.wide.problem(), &widened(&self.out)?, ROWS)))
    }
}

/// Rows that are compared with the reference.
const ROWS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::{Shape, select};
    use headwise::Serial;

    /// Both ways compute the same problem, and the narrow one is as close as its rounding allows.
    #[test]
    fn as_close_as_one_rounding() -> Result<()> {
        for (name, bits) in [("llama-2k-f16", 11), ("llama-2k-bf16", 8)] {
            let Shape::Precision(mut shape) = select(None, Some(name))?[0] else { panic!() };
            (shape.attention.seq_q, shape.attention.seq_kv) = (20, 50);
            let mut work = precision_work(&shape, Isa::widest())?;
            work.run(Way::Fused, &Serial)?;
            work.run(Way::Without, &Serial)?;
            let Some(close) = work.closeness()? else { panic!() };
            let unit = 0.5_f64.powi(bits);
            assert!(close.relative_l1 < 0.6 * unit && close.relative_l1 > 0.1 * unit, "{close:?}");
            assert!(close.cosine > 1.0 - unit, "{close:?}");
        }
        Ok(())
    }
}
