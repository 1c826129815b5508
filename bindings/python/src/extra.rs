//! The results beside the output.

use std::marker::PhantomData;

use headwise::{NO_KEY, Output, Outputs, Pick, ViewMut};
use pyo3::PyResult;

use crate::array::{Compute, DType, Memory, Stored, computed, filled};
use crate::call::Results;
use crate::error;
use crate::frame::Frame;
use crate::wants::{Picked, SumsBy, Wants};

/// Them, in the type that is computed in.
pub(crate) struct Extra<S: Stored> {
    frame: Frame,
    width: usize,
    results: Results,
    /// The largest keys, as the kernels write them.
    keys: Vec<u32>,
    stored: PhantomData<S>,
}

impl<S: Stored> Extra<S> {
    pub(crate) fn new(frame: &Frame, wants: &Wants, width: usize) -> PyResult<Self> {
        let count = |picked: &Picked, all| picked.as_ref().map_or(all, Vec::len);
        let new = |heads: usize, rest: &[usize]| {
            Memory::new(computed::<S>(), &frame.shape(heads, rest), false)
        };
        let picked = |(heads, queries): &(Picked, Picked)| {
            new(count(heads, frame.q_heads), &[count(queries, frame.seq_q), width])
        };
        let mut results = Results::default();
        if wants.lse {
            results.lse = Some(new(frame.q_heads, &[frame.seq_q])?);
        }
        if wants.weights {
            results.weights = Some(picked(&wants.weights_of)?);
        }
        if wants.scores.is_some() {
            results.scores = Some(picked(&wants.scores_of)?);
        }
        if let Some(by) = wants.column_sums {
            results.column_sums = Some(new(sums_heads(frame, by), &[width])?);
        }
        let mut keys = Vec::new();
        if let Some(k) = wants.top_k {
            if k > width {
                return Err(error::value(
                    "top_k",
                    k,
                    format_args!("at most {width}, the keys there are"),
                ));
            }
            let shape = frame.shape(frame.q_heads, &[frame.seq_q, k]);
            let memory = Memory::new(DType::I64, &shape, false)?;
            keys = filled(NO_KEY, memory.place().count())?;
            results.top_k = Some((memory, new(frame.q_heads, &[frame.seq_q, k])?));
        }
        let stored = PhantomData;
        Ok(Self { frame: *frame, width, results, keys, stored })
    }

    /// The library's outputs.
    pub(crate) fn outputs<'a>(
        &'a mut self,
        out: Output<'a, S::Compute>,
        wants: &'a Wants,
    ) -> PyResult<Outputs<'a, S::Compute>> {
        let (f, width, batch) = (&self.frame, self.width, self.frame.batch_size());
        let count = |picked: &Picked, all| picked.as_ref().map_or(all, Vec::len);
        let mut outputs = Outputs::new(out);
        if let Some(lse) = &mut self.results.lse {
            outputs = outputs.with_lse(dense(lse, [batch, f.q_heads, f.seq_q, 1])?);
        }
        if let Some(weights) = &mut self.results.weights {
            let (heads, queries) = &wants.weights_of;
            let shape = [batch, count(heads, f.q_heads), count(queries, f.seq_q), width];
            let view = dense(weights, shape)?;
            outputs = outputs.with_weights_of(pick(heads), pick(queries), view);
        }
        if let (Some(scores), Some(stage)) = (&mut self.results.scores, wants.scores) {
            let (heads, queries) = &wants.scores_of;
            let shape = [batch, count(heads, f.q_heads), count(queries, f.seq_q), width];
            let view = dense(scores, shape)?;
            outputs = outputs.with_scores_of(stage, pick(heads), pick(queries), view);
        }
        if let (Some(sums), Some(by)) = (&mut self.results.column_sums, wants.column_sums) {
            outputs = outputs.with_column_sums(dense(sums, [batch, sums_heads(f, by), 1, width])?);
        }
        if let (Some((_, weights)), Some(k)) = (&mut self.results.top_k, wants.top_k) {
            let shape = [batch, f.q_heads, f.seq_q, k];
            let keys = ViewMut::bhsd(&mut self.keys, shape).map_err(error::of)?;
            outputs = outputs.with_top_k(keys, dense(weights, shape)?);
        }
        Ok(outputs)
    }

    /// What is there after the call.
    pub(crate) fn finish(mut self) -> PyResult<Results> {
        if let Some((memory, _)) = &mut self.results.top_k {
            let mut keys = self.keys.iter();
            let place = memory.place();
            let width = place.shape().last().copied().unwrap_or(0);
            place.for_each_row(|row| {
                for (nth, &key) in keys.by_ref().take(width).enumerate() {
                    let key = if key == NO_KEY { -1 } else { i64::from(key) };
                    // SAFETY: the memory is ours, dense and aligned, and nobody else has it.
                    unsafe { row.cast::<i64>().add(nth).write(key) };
                }
            });
        }
        Ok(self.results)
    }
}

fn sums_heads(frame: &Frame, by: SumsBy) -> usize {
    match by {
        SumsBy::QueryHead => frame.q_heads,
        SumsBy::KvHead => frame.kv_heads,
    }
}

fn pick(picked: &Picked) -> Pick<'_> {
    picked.as_deref().map_or(Pick::All, Pick::from)
}

/// All of a dense memory of elements of `T`, to write.
fn dense<T: Compute>(memory: &mut Memory, shape: [usize; 4]) -> PyResult<ViewMut<'_, T>> {
    let place = memory.place();
    let [_, heads, seq, dim] = shape.map(|extent| extent.max(1) as isize);
    let strides = [heads * seq * dim, seq * dim, dim, 1];
    assert!(place.dtype == T::DTYPE && place.count() == shape.iter().product::<usize>());
    // SAFETY: it was allocated for as many elements of `T`, and is borrowed as long as the view; the
    // view goes to `Outputs` alone, where it is written first.
    unsafe { ViewMut::from_raw_parts(place.data.cast(), shape, strides) }.map_err(error::of)
}
