//! Rotated queries.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use headwise::Rope;
use headwise::kv_cache::{Positions, QkTransform};

use crate::borrowed::{dtype, on_cpu};
use crate::computed::{Computed, Number};
use crate::output::HeadsLast;
use crate::{error, graph};

const NAME: &str = "headwise-rotate";

/// Queries `[batch, heads, seq, head_dim]` rotated by their positions, of which the first is `start`, in `f32` and
/// rounded once; [`KvCache::append_rotated`](crate::KvCache::append_rotated) does the same to keys.
///
/// # Errors
/// As [`attention`](crate::attention), and where the table of `rope` ends before a position.
pub fn rotate(query: &Tensor, rope: &Rope, start: usize) -> Result<Tensor> {
    on_cpu("query", query)?;
    let out = query.apply_op1_no_bwd(&Rotate { rope, start })?;
    graph::record1(NAME, query, out)?.transpose(1, 2)
}

struct Rotate<'a> {
    rope: &'a Rope,
    start: usize,
}

impl Rotate<'_> {
    fn run(&self, storage: &CpuStorage, layout: &Layout) -> Result<HeadsLast<f32>> {
        let query = f32::operand("query", storage, layout)?;
        let mut out = HeadsLast::zeros(query.shape())?;
        QkTransform::new()
            .rope(self.rope)
            .apply_into(query, Positions::From(self.start), out.view_mut()?)
            .map_err(error::from_headwise)?;
        Ok(out)
    }
}

impl CustomOp1 for Rotate<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        fn rounded<S: Number + headwise::Storage<Compute = f32>>(
            rows: HeadsLast<f32>,
        ) -> (CpuStorage, Shape) {
            rows.map(S::round).into_storage()
        }
        let rows = self.run(storage, layout)?;
        Ok(match storage {
            CpuStorage::F16(_) => rounded::<half::f16>(rows),
            CpuStorage::BF16(_) => rounded::<half::bf16>(rows),
            CpuStorage::F32(_) => rows.into_storage(),
            other => return error::dtype("query", dtype(other), "F32, F16 or BF16"),
        })
    }
}
