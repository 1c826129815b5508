//! The extents of a call, by PyTorch's rules: axes in front are broadcast, heads too, or shared by
//! groups where that is asked for.

use pyo3::PyResult;

use crate::array::{MAX_NDIM, Strided, check_size};
use crate::error;

/// The extents that all results of a call have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame {
    batch: [usize; MAX_NDIM],
    /// Axes before heads, positions and elements.
    lead: usize,
    /// Whether there is an axis of heads to be seen.
    shows_heads: bool,
    pub(crate) q_heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) seq_q: usize,
    pub(crate) seq_kv: usize,
    pub(crate) value_dim: usize,
}

impl Frame {
    /// Of a query, key and value with as many axes as any of them has. With `grouped` heads of the
    /// query share those of the key.
    pub(crate) fn new(inputs: &mut [Strided; 3], grouped: bool) -> PyResult<Self> {
        const NAMES: [&str; 3] = ["query", "key", "value"];
        for (name, input) in NAMES.into_iter().zip(inputs.iter()) {
            if input.ndim() < 2 {
                let expected = "at least two axes, positions and elements";
                return Err(error::value(name, format_args!("{:?}", input.shape()), expected));
            }
        }
        let shown = inputs.iter().map(Strided::ndim).max().unwrap_or(0);
        let ndim = shown.max(3);
        for (name, input) in NAMES.into_iter().zip(inputs.iter_mut()) {
            *input = input.with_ndim(name, ndim)?;
        }
        let [query, key, value] = *inputs;
        let lead = ndim - 3;
        let mut batch = [1; MAX_NDIM];
        for (axis, all) in batch.iter_mut().enumerate().take(lead) {
            let extents = [query, key, value].map(|input| input.shape()[axis]);
            *all = common(extents, |name, got, all| {
                error::value(name, format_args!("axis {axis} of {got}"), format_args!("{all} or 1"))
            })?;
        }
        let [q, k, v] = [query, key, value].map(|input| input.extent_from_last(3));
        let kv_heads = common([k, k, v], |name, got, all| {
            error::value(name, format_args!("{got} heads"), format_args!("{all}, as the key"))
        })?;
        let (q_heads, kv_heads) = match (grouped, q, kv_heads) {
            (false, 1, _) => (kv_heads, kv_heads),
            (false, q, kv) if kv != 1 && kv != q => {
                let expected =
                    format!("{q} as the query, or 1; with enable_gqa=True heads share a key");
                return Err(error::value("key", format_args!("{kv} heads"), expected));
            }
            (_, q, kv) => (q, kv),
        };
        let this = Self {
            batch,
            lead,
            shows_heads: shown > 2,
            q_heads,
            kv_heads,
            seq_q: query.extent_from_last(2),
            seq_kv: key.extent_from_last(2),
            value_dim: value.extent_from_last(1),
        };
        // What all of them are stretched to.
        let widest = query.extent_from_last(1).max(this.value_dim);
        let seq = this.seq_q.max(this.seq_kv);
        check_size("query", &this.shape(q_heads.max(kv_heads), &[seq, widest]))?;
        Ok(this)
    }

    /// Of queries to a cache, `[sequences, heads, positions, elements]`.
    pub(crate) fn of_cache(
        query: &Strided,
        [kv_heads, seq_kv, value_dim]: [usize; 3],
    ) -> PyResult<Self> {
        let [batch, q_heads, seq_q, _] = *query.shape() else {
            let expected = "four axes: sequences, heads, positions, elements";
            return Err(error::value("query", format_args!("{:?}", query.shape()), expected));
        };
        let mut this = Self {
            batch: [1; MAX_NDIM],
            lead: 1,
            shows_heads: true,
            q_heads,
            kv_heads,
            seq_q,
            seq_kv,
            value_dim,
        };
        this.batch[0] = batch;
        Ok(this)
    }

    /// The axes before heads, positions and elements.
    pub(crate) fn batch(&self) -> &[usize] {
        &self.batch[..self.lead]
    }

    /// As the kernels count them, all in one.
    pub(crate) fn batch_size(&self) -> usize {
        self.batch().iter().product()
    }

    /// The axes that inputs are on: those before the last three, and the last three.
    pub(crate) fn ndim(&self) -> usize {
        self.lead + 3
    }

    /// Whether an axis of heads is to be seen.
    pub(crate) fn shows_heads(&self) -> bool {
        self.shows_heads
    }

    /// The shape of a result: `heads` and what comes after them.
    pub(crate) fn shape(&self, heads: usize, rest: &[usize]) -> Vec<usize> {
        let heads = self.shows_heads.then_some(heads);
        self.batch().iter().copied().chain(heads).chain(rest.iter().copied()).collect()
    }
}

/// The extent that the others are stretched to: of each 1, or the same.
fn common(
    extents: [usize; 3],
    refuse: impl Fn(&str, usize, usize) -> pyo3::PyErr,
) -> PyResult<usize> {
    let all = extents.into_iter().find(|&extent| extent != 1).unwrap_or(1);
    let names = ["query", "key", "value"];
    match names.into_iter().zip(extents).find(|&(_, extent)| extent != 1 && extent != all) {
        Some((name, extent)) => Err(refuse(name, extent, all)),
        None => Ok(all),
    }
}
