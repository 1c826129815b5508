//! A call: what came in, computed without Python, and what goes out.

use std::cell::RefCell;

use headwise::{Element, Scale, Workspace, attention_into};
use pyo3::PyResult;

use crate::array::{Compute, DType, Memory, Operand, Sink, Stored, Stretch, Strided, with_stored};
use crate::error;
use crate::extra::Extra;
use crate::frame::Frame;
use crate::held::Held;
use crate::kv_cache::AnyView;
use crate::options::Options;
use crate::threads::{self, Pool};
use crate::wants::Wants;

/// What queries attend to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source<'a> {
    /// Keys and values.
    Dense(&'a Strided, &'a Strided),
    Cache(&'a AnyView<'a>),
}

/// A call whose shapes fit each other.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) query: Strided,
    pub(crate) source: Source<'a>,
    pub(crate) frame: Frame,
    pub(crate) options: &'a Options<'a>,
    pub(crate) wants: &'a Wants,
    pub(crate) out: Option<Strided>,
    /// Whether positions stand before heads, in inputs and in the output.
    pub(crate) bshd: bool,
}

/// What a call gives. There is no output where the caller's memory was written to.
#[derive(Debug, Default)]
pub(crate) struct Results {
    pub(crate) out: Option<Memory>,
    pub(crate) lse: Option<Memory>,
    pub(crate) weights: Option<Memory>,
    pub(crate) scores: Option<Memory>,
    pub(crate) column_sums: Option<Memory>,
    pub(crate) top_k: Option<(Memory, Memory)>,
    pub(crate) isa: &'static str,
}

thread_local! {
    /// Scratch of calls from this thread.
    static WORKSPACE: RefCell<Workspace> = RefCell::new(Workspace::new());
}

impl Call<'_> {
    /// Computes it.
    ///
    /// # Safety
    /// The arrays must be there until it is done, the output be nobody else's, and nobody may write
    /// to the inputs meanwhile.
    pub(crate) unsafe fn run(&self) -> PyResult<Results> {
        with_stored!("query", self.query.dtype, S => {
            // SAFETY: the caller's promise; the dtype is that of `S`.
            unsafe { self.run_as::<S>() }
        })
    }

    unsafe fn run_as<S: Stored>(&self) -> PyResult<Results> {
        let (frame, stretch) = (&self.frame, Stretch { batch: self.frame.batch(), heads: None });
        let heads = |heads| Stretch { heads: Some(heads), ..stretch };
        // SAFETY: the caller's promise.
        let mut query = unsafe { Operand::<S>::plain(self.query, heads(frame.q_heads)) }?;
        let scale = self.options.scale.map(|scale| self.scale_of(scale, &mut query)).transpose()?;
        // SAFETY: the caller's promise.
        let held = unsafe { Held::<'_, S::Compute>::new(self.options, frame) }?;
        let options = held.options(self.options, scale)?;
        let mut results = Extra::<S>::new(frame, self.wants, self.weights_width())?;
        let (memory, place) = self.place_of_output::<S>()?;
        // SAFETY: the caller's promise, or new memory.
        let mut sink = unsafe { Sink::<S>::new(place) }?;
        let outputs = results.outputs(S::output(sink.view()?), self.wants)?;
        let query = S::input(query.view()?);
        let pool = Pool(threads::pool()?);
        let options = options.executor(&pool);
        let isa = WORKSPACE.with_borrow_mut(|workspace| match self.source {
            Source::Dense(key, value) => {
                // SAFETY: the caller's promise.
                let (key, value) = unsafe {
                    (
                        Operand::<S>::plain(*key, heads(frame.kv_heads))?,
                        Operand::<S>::plain(*value, heads(frame.kv_heads))?,
                    )
                };
                let (key, value) = (S::input(key.view()?), S::input(value.view()?));
                attention_into(query, key, value, &options, outputs, workspace).map_err(error::of)
            }
            Source::Cache(cache) => {
                S::Compute::cached(query, cache, &options, outputs, workspace).map_err(error::of)
            }
        })?;
        sink.finish();
        let mut results = results.finish()?;
        results.out = memory.map(|memory| if self.bshd { memory.heads_swapped() } else { memory });
        results.isa = isa.name();
        Ok(results)
    }

    /// The factor on scores, which the kernels take in single precision: of doubles it goes to a copy
    /// of the query where that would round it.
    fn scale_of<S: Stored>(&self, scale: f64, query: &mut Operand<S>) -> PyResult<Scale> {
        let single = scale as f32;
        if S::DTYPE != DType::F64 || f64::from(single) == scale || !scale.is_finite() {
            return Ok(Scale::Value(single));
        }
        query.update(|x| S::round(S::Compute::from_f64(x.widen().to_f64() * scale)))?;
        Ok(Scale::One)
    }

    /// The keys that weights and scores have a column for.
    fn weights_width(&self) -> usize {
        let longest = |ends: &[usize]| {
            ends.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().unwrap_or(0)
        };
        match &self.options.ragged {
            Some((_, key)) => longest(key),
            None => self.frame.seq_kv,
        }
    }

    /// Where the output goes: as the query lies, positions before heads or after them.
    fn place_of_output<S: Stored>(&self) -> PyResult<(Option<Memory>, Strided)> {
        let frame = &self.frame;
        let shape = frame.shape(frame.q_heads, &[frame.seq_q, frame.value_dim]);
        let (memory, place) = match self.out {
            Some(out) => {
                let swapped = if self.bshd { out.heads_swapped() } else { out };
                self.check_out(&out, &swapped, &shape)?;
                (None, swapped)
            }
            None => {
                let memory = Memory::new(S::DTYPE, &shape, self.bshd || self.query_is_bshd())?;
                let place = memory.place();
                (Some(memory), place)
            }
        };
        Ok((memory, place.with_ndim("out", frame.ndim())?))
    }

    /// Whether the query's heads lie within its positions.
    fn query_is_bshd(&self) -> bool {
        let [.., heads, seq, _] = *self.query.shape() else { return false };
        let [.., of_heads, of_seq, _] = *self.query.strides() else { return false };
        self.frame.shows_heads() && heads > 1 && seq > 1 && of_heads.abs() < of_seq.abs()
    }

    fn check_out(&self, out: &Strided, swapped: &Strided, shape: &[usize]) -> PyResult<()> {
        if out.dtype != self.query.dtype {
            let got = format_args!("elements of {}", out.dtype).to_string();
            return Err(error::kind(
                "out",
                got,
                format_args!("{}, as the query", self.query.dtype),
            ));
        }
        if swapped.shape() != shape {
            let mut expected = shape.to_vec();
            if self.bshd && expected.len() > 2 {
                let ndim = expected.len();
                expected.swap(ndim - 3, ndim - 2);
            }
            let got = format!("{:?}", out.shape());
            return Err(error::value("out", got, format_args!("{expected:?}")));
        }
        let dense = match self.source {
            Source::Dense(key, value) => [Some(("key", *key)), Some(("value", *value))],
            Source::Cache(_) => [None, None],
        };
        let masks = [
            ("mask", &self.options.mask),
            ("packed_mask", &self.options.packed_mask),
            ("bias", &self.options.bias),
        ];
        let masks = masks.into_iter().filter_map(|(n, array)| Some((n, array.as_ref()?.place)));
        let inputs = dense.into_iter().flatten().chain(masks).chain([("query", self.query)]);
        for (name, input) in inputs {
            if out.overlaps(&input) {
                let got = format!("memory that overlaps that of {name}");
                return Err(error::value("out", got, "memory of its own"));
            }
        }
        Ok(())
    }
}
