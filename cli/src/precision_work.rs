//! Attention on narrower tensors, or with narrower products, beside the same on their numbers in `f32`.

use headwise::{
    Executor, Input, Int8, Isa, KvStorage, Outputs, Precision, Storage, Tensor, Workspace,
    attention_into, bf16, f16,
};

use crate::Result;
use crate::compare::Closeness;
use crate::shapes::{Dtype, PrecisionShape};
use crate::spot_check::closeness;
use crate::work::{AttentionWork, Problem, Way, Work};

/// The work of a shape.
pub(crate) fn precision_work(s: &PrecisionShape, isa: Isa) -> Result<Box<dyn Work>> {
    Ok(match s.dtype {
        Dtype::F32 => Box::new(PrecisionWork::<f32, f32>::new(s, isa)?),
        Dtype::F16 => Box::new(PrecisionWork::<f16, f16>::new(s, isa)?),
        Dtype::Bf16 => Box::new(PrecisionWork::<bf16, bf16>::new(s, isa)?),
        Dtype::Int8 => Box::new(PrecisionWork::<f32, Int8>::new(s, isa)?),
    })
}

/// Attention of queries of `Q` on keys and values of `K`.
struct PrecisionWork<Q: Storage, K: KvStorage> {
    /// What was asked, before a cache rounded it: of halves, which are what their callers compute with,
    /// the same as `wide`.
    asked: Option<Problem>,
    /// The same numbers in `f32`.
    wide: AttentionWork,
    query: Tensor<Q>,
    key: Tensor<K>,
    value: Tensor<K>,
    out: Tensor<Q>,
    precision: Precision,
    isa: Isa,
    workspace: Workspace,
}

fn rounded<T: KvStorage<Compute = f32>>(tensor: &Tensor) -> Result<Tensor<T>> {
    let [batch, heads, seq, dim] = tensor.shape();
    let mut rounded = Tensor::zeros([batch, heads, seq, dim + T::EXTRA])?;
    let rows = rounded.data_mut().chunks_exact_mut(dim + T::EXTRA);
    tensor.data().chunks_exact(dim).zip(rows).for_each(|(row, to)| T::write_row(row, to));
    Ok(rounded)
}

fn widened<T: KvStorage<Compute = f32>>(tensor: &Tensor<T>) -> Result<Tensor> {
    let input: Input<'_, f32> = T::input(tensor.view());
    let [batch, heads, seq, dim] = input.shape();
    let mut wide = Tensor::zeros([batch, heads, seq, dim])?;
    for (n, row) in wide.data_mut().chunks_exact_mut(dim).enumerate() {
        input.read_row([n / seq / heads, n / seq % heads, n % seq], row);
    }
    Ok(wide)
}

impl<Q: Storage<Compute = f32>, K: KvStorage<Compute = f32>> PrecisionWork<Q, K> {
    fn new(s: &PrecisionShape, isa: Isa) -> Result<Self> {
        let asked = Problem::synthetic(&s.attention)?;
        let (query, key, value) =
            (rounded::<Q>(&asked.query)?, rounded::<K>(&asked.key)?, rounded::<K>(&asked.value)?);
        let wide = Problem {
            query: widened(&query)?,
            key: widened(&key)?,
            value: widened(&value)?,
            ..asked
        };
        let wide = AttentionWork::new(wide, isa)?;
        let out = Tensor::zeros(wide.out().shape())?;
        let asked = (K::EXTRA > 0).then_some(asked);
        let (precision, workspace) = (s.precision, Workspace::new());
        Ok(Self { asked, wide, query, key, value, out, precision, isa, workspace })
    }
}

impl<Q: Storage<Compute = f32>, K: KvStorage<Compute = f32>> Work for PrecisionWork<Q, K> {
    fn run(&mut self, way: Way, executor: &dyn Executor) -> Result<()> {
        if way == Way::Without {
            return self.wide.run(Way::Fused, executor);
        }
        let options = self.wide.problem().options().precision(self.precision);
        let options = options.isa(self.isa).executor(executor);
        let [key, value] = [&self.key, &self.value].map(|x| K::input(x.view()));
        let outputs = Outputs::new(Q::output(self.out.view_mut()));
        let query = Q::input(self.query.view());
        attention_into(query, key, value, &options, outputs, &mut self.workspace)?;
        Ok(())
    }

    fn operands(&self) -> Vec<&[u8]> {
        vec![K::as_bytes(self.key.data()), K::as_bytes(self.value.data())]
    }

    fn closeness(&self) -> Result<Option<Closeness>> {
        let asked = self.asked.as_ref().unwrap_or(self.wide.problem());
        Ok(Some(closeness(asked, &widened(&self.out)?, ROWS)))
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

    /// A cache of integers is compared with what was asked, its numbers with the same in `f32`.
    #[test]
    fn as_close_as_integers_allow() -> Result<()> {
        let Shape::Precision(mut shape) = select(None, Some("decode-4k-int8"))?[0] else {
            panic!()
        };
        shape.attention.seq_kv = 300;
        let mut work = PrecisionWork::<f32, Int8>::new(&shape, Isa::widest())?;
        work.run(Way::Fused, &Serial)?;
        work.run(Way::Without, &Serial)?;
        assert_eq!(&work.out, work.wide.out());
        let Some(close) = work.closeness()? else { panic!() };
        assert!(close.cosine > 0.9999, "{close:?}");
        assert!(close.relative_l1 < 0.015 && close.relative_l1 > 0.001, "{close:?}");
        Ok(())
    }
}
