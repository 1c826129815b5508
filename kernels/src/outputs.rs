//! Where the results go: the output, and on request what else there is to know of a row's scores
//! and weights. All of it is checked against the problem before anything runs; behind that border
//! the kernels trust every shape and index.
//!
//! The memory may be uninitialised: it is written through raw pointers, and read only where this
//! call wrote it before.

use std::ops::{Range, RangeFull};

use crate::element::Element;
use crate::error::{Error, Result};
use crate::problem::{Dims, Problem, check_unit_inner_stride, shape_error, value_error};
use crate::storage::Output;
use crate::view::{Shape, Strides, ViewMut};

/// The index of [`Outputs::with_top_k`] where a row sees fewer keys than are asked for.
pub const NO_KEY: u32 = u32::MAX;

/// How far a score has come when [`Outputs::with_scores`] takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// `scale * q . k`.
    Scaled,
    /// Behind the softcap, before anything is added; without a softcap the same.
    Capped,
    /// Behind all biases and terms: what the softmax sees.
    Final,
}

/// Which query heads, or which queries, an output has rows of.
///
/// ```
/// use headwise_kernels::Pick;
///
/// let last_two = Pick::from(6..8);
/// let some = Pick::from(&[0, 3, 7][..]);
/// # let _ = (last_two, some, Pick::from(..));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pick<'a> {
    /// All of them.
    All,
    /// Those of a range.
    Range(Range<usize>),
    /// Those of a list, which must ascend.
    List(&'a [usize]),
}

impl From<RangeFull> for Pick<'_> {
    fn from(_: RangeFull) -> Self {
        Self::All
    }
}

impl From<Range<usize>> for Pick<'_> {
    fn from(range: Range<usize>) -> Self {
        Self::Range(range)
    }
}

impl<'a> From<&'a [usize]> for Pick<'a> {
    fn from(list: &'a [usize]) -> Self {
        Self::List(list)
    }
}

impl Pick<'_> {
    /// How many of `extent` are picked.
    fn count(&self, extent: usize) -> usize {
        match self {
            Self::All => extent,
            Self::Range(range) => range.len(),
            Self::List(list) => list.len(),
        }
    }

    /// The place of `index` among those picked.
    fn place(&self, index: usize) -> Option<usize> {
        match self {
            Self::All => Some(index),
            Self::Range(range) => range.contains(&index).then(|| index - range.start),
            Self::List(list) => list.binary_search(&index).ok(),
        }
    }

    fn check(&self, argument: &'static str, extent: usize) -> Result<()> {
        let (fits, end) = match self {
            Self::All => (true, 0),
            Self::Range(range) => (range.start <= range.end, range.end),
            Self::List(list) => {
                let ascends = list.is_sorted_by(|a, b| a < b);
                (ascends, list.last().map_or(0, |&last| last.saturating_add(1)))
            }
        };
        if fits && end <= extent {
            return Ok(());
        }
        value_error(argument, self, format!("ascending indices below {extent}"))
    }
}

/// Where the results go: the output, and on request more. Each costs what it says and no memory
/// beyond its own.
#[derive(Debug)]
pub struct Outputs<'a, T> {
    pub(crate) out: Output<'a, T>,
    pub(crate) lse: Option<ViewMut<'a, T>>,
    pub(crate) weights: Option<Picked<'a, T>>,
    pub(crate) scores: Option<(Stage, Picked<'a, T>)>,
    pub(crate) column_sums: Option<ColumnSums<'a, T>>,
    pub(crate) top_k: Option<TopK<'a, T>>,
}

impl<'a, T: Element> Outputs<'a, T> {
    /// The output alone, `[batch, q_heads, seq_q, value_dim]`, in any [`Storage`](crate::Storage) that is
    /// computed in `T`.
    pub fn new(out: impl Into<Output<'a, T>>) -> Self {
        Self {
            out: out.into(),
            lse: None,
            weights: None,
            scores: None,
            column_sums: None,
            top_k: None,
        }
    }

    /// Also the log-sum-exp of each row, natural logarithm, `[batch, q_heads, seq_q, 1]`.
    #[must_use]
    pub fn with_lse(mut self, lse: ViewMut<'a, T>) -> Self {
        self.lse = Some(lse);
        self
    }

    /// Also the attention weights, `[batch, q_heads, seq_q, seq_kv]`: `exp(score - lse)`, 0 where a
    /// key is hidden. A second pass over the scores, as have all outputs that follow.
    #[must_use]
    pub fn with_weights(self, weights: ViewMut<'a, T>) -> Self {
        self.with_weights_of(.., .., weights)
    }

    /// Also the weights of some query heads and some queries, `[batch, heads picked, queries picked,
    /// seq_kv]`, the same bits as among all of them. Tiles of 48 rows (a row is a query of a head)
    /// in which none is picked are left out.
    ///
    /// ```
    /// use headwise_kernels::{Outputs, ViewMut};
    ///
    /// // Heads 0 and 3 of 4, the last 2 of 8 queries, 16 keys.
    /// let (mut out, mut weights) = ([0.0_f32; 4 * 8], [0.0_f32; 2 * 2 * 16]);
    /// let outputs = Outputs::new(ViewMut::bhsd(&mut out, [1, 4, 8, 1])?).with_weights_of(
    ///     &[0, 3][..],
    ///     6..8,
    ///     ViewMut::bhsd(&mut weights, [1, 2, 2, 16])?,
    /// );
    /// # let _ = outputs;
    /// # Ok::<(), headwise_kernels::Error>(())
    /// ```
    #[must_use]
    pub fn with_weights_of(
        mut self,
        heads: impl Into<Pick<'a>>,
        queries: impl Into<Pick<'a>>,
        weights: ViewMut<'a, T>,
    ) -> Self {
        self.weights = Some(Picked::new(heads, queries, weights));
        self
    }

    /// Also the scores, at the stage that is named, in natural units, `[batch, q_heads, seq_q,
    /// seq_kv]`; -inf where a key is hidden, at every stage (by a term of the caller's, in the final
    /// one). Of the stages one.
    #[must_use]
    pub fn with_scores(self, stage: Stage, scores: ViewMut<'a, T>) -> Self {
        self.with_scores_of(stage, .., .., scores)
    }

    /// Also the scores of some query heads and some queries, picked as by
    /// [`Outputs::with_weights_of`].
    #[must_use]
    pub fn with_scores_of(
        mut self,
        stage: Stage,
        heads: impl Into<Pick<'a>>,
        queries: impl Into<Pick<'a>>,
        scores: ViewMut<'a, T>,
    ) -> Self {
        self.scores = Some((stage, Picked::new(heads, queries, scores)));
        self
    }

    /// Also the sum of each key's weights over the queries, `[batch, heads, 1, seq_kv]`: by query
    /// head where `heads` is `q_heads`, over the whole group where it is `kv_heads`. What decides
    /// which keys a cache may forget.
    ///
    /// The sums are added up in one order whatever the threads, for which a kv head is one thread's:
    /// at most `batch * kv_heads` of them share the call.
    ///
    /// ```
    /// use headwise_kernels::{Outputs, ViewMut};
    ///
    /// let (mut out, mut sums) = ([0.0_f32; 4 * 8], [0.0_f32; 2 * 16]);
    /// // 4 query heads on 2 kv heads, 8 queries, 16 keys: one sum for each key of a kv head.
    /// let outputs = Outputs::new(ViewMut::bhsd(&mut out, [1, 4, 8, 1])?)
    ///     .with_column_sums(ViewMut::bhsd(&mut sums, [1, 2, 1, 16])?);
    /// # let _ = outputs;
    /// # Ok::<(), headwise_kernels::Error>(())
    /// ```
    #[must_use]
    pub fn with_column_sums(mut self, sums: ViewMut<'a, T>) -> Self {
        self.column_sums = Some(ColumnSums { view: sums });
        self
    }

    /// Also the `k` keys of the largest weights of each row, largest first and the smaller index
    /// first among equal ones, both `[batch, q_heads, seq_q, k]` with `k` from 1 to `seq_kv`. A row
    /// that sees fewer keys has [`NO_KEY`] and a weight of 0 in the places left over.
    ///
    /// ```
    /// use headwise_kernels::{Outputs, ViewMut};
    ///
    /// let mut out = [0.0_f32; 4 * 8];
    /// let (mut keys, mut weights) = ([0_u32; 4 * 8 * 3], [0.0_f32; 4 * 8 * 3]);
    /// let outputs = Outputs::new(ViewMut::bhsd(&mut out, [1, 4, 8, 1])?).with_top_k(
    ///     ViewMut::bhsd(&mut keys, [1, 4, 8, 3])?,
    ///     ViewMut::bhsd(&mut weights, [1, 4, 8, 3])?,
    /// );
    /// # let _ = outputs;
    /// # Ok::<(), headwise_kernels::Error>(())
    /// ```
    #[must_use]
    pub fn with_top_k(mut self, keys: ViewMut<'a, u32>, weights: ViewMut<'a, T>) -> Self {
        self.top_k = Some(TopK { keys, weights });
        self
    }

    /// The same with the output elsewhere, and where it was to go: perhaps memory that nothing has
    /// written yet.
    #[must_use]
    pub fn redirect<'b>(self, out: impl Into<Output<'b, T>>) -> (Outputs<'b, T>, Output<'a, T>)
    where
        'a: 'b,
    {
        let Self { out: before, lse, weights, scores, column_sums, top_k } = self;
        (Outputs { out: out.into(), lse, weights, scores, column_sums, top_k }, before)
    }

    /// Checks that the outputs fit the problem.
    pub(crate) fn check(&self, problem: &Problem<'_, T>) -> Result<()> {
        let dims = problem.dims();
        if self.column_sums.is_some() && problem.mask.is_ragged() {
            return value_error(
                "column_sums",
                "the sums of a ragged batch",
                "a call for each sequence, since sequences have their own keys".into(),
            );
        }
        let rows = |inner| [dims.batch, dims.q_heads, dims.seq_q, inner];
        expect_layout("out", (self.out.shape(), self.out.strides()), rows(dims.value_dim))?;
        if let Some(lse) = &self.lse {
            expect("lse", lse, rows(1))?;
        }
        if let Some(weights) = &self.weights {
            weights.check(["weights", "weights' heads", "weights' queries"], dims)?;
        }
        if let Some((_, scores)) = &self.scores {
            scores.check(["scores", "scores' heads", "scores' queries"], dims)?;
        }
        if let Some(sums) = &self.column_sums {
            sums.check(dims)?;
        }
        self.top_k.as_ref().map_or(Ok(()), |top_k| top_k.check(dims))
    }

    /// Writes what there is of a problem without rows, for which the outputs were checked.
    pub(crate) fn without_rows(&self, dims: &Dims) {
        let Some(sums) = self.column_sums.as_ref().filter(|sums| !sums.view.is_empty()) else {
            return;
        };
        for head in 0..dims.batch * dims.kv_heads {
            // SAFETY: they were checked, and nobody else is at work.
            unsafe { sums.clear(head / dims.kv_heads, head % dims.kv_heads, dims) };
        }
    }

    /// Whether something is wanted that a row's sums do not give.
    pub(crate) fn want_second_pass(&self) -> bool {
        let Self { out: _, lse: _, weights, scores, column_sums, top_k } = self;
        weights.is_some() || scores.is_some() || column_sums.is_some() || top_k.is_some()
    }

    /// Whether anything is to be known of a row's weights beside its output.
    pub(crate) fn want_weights(&self, [_, head, query]: [usize; 3]) -> bool {
        self.column_sums.is_some()
            || self.top_k.is_some()
            || self.weights.as_ref().is_some_and(|picked| picked.has(head, query))
    }

    /// The stage at which a row's scores are wanted.
    pub(crate) fn wanted_scores(&self, [_, head, query]: [usize; 3]) -> Option<Stage> {
        let (stage, picked) = self.scores.as_ref()?;
        picked.has(head, query).then_some(*stage)
    }
}

fn expect<T>(argument: &'static str, view: &ViewMut<'_, T>, shape: Shape) -> Result<()> {
    expect_layout(argument, (view.shape(), view.strides()), shape)
}

fn expect_layout(
    argument: &'static str,
    (got, strides): (Shape, Strides),
    shape: Shape,
) -> Result<()> {
    if got != shape {
        return shape_error(argument, got, format!("{shape:?}"));
    }
    check_unit_inner_stride(argument, shape, strides)
}

/// Rows of `seq_kv` numbers, of some heads and queries.
#[derive(Debug)]
pub(crate) struct Picked<'a, T> {
    heads: Pick<'a>,
    queries: Pick<'a>,
    view: ViewMut<'a, T>,
}

impl<'a, T: Element> Picked<'a, T> {
    fn new(heads: impl Into<Pick<'a>>, queries: impl Into<Pick<'a>>, view: ViewMut<'a, T>) -> Self {
        Self { heads: heads.into(), queries: queries.into(), view }
    }

    fn check(&self, [argument, heads, queries]: [&'static str; 3], dims: &Dims) -> Result<()> {
        self.heads.check(heads, dims.q_heads)?;
        self.queries.check(queries, dims.seq_q)?;
        let [heads, queries] = [self.heads.count(dims.q_heads), self.queries.count(dims.seq_q)];
        expect(argument, &self.view, [dims.batch, heads, queries, dims.seq_kv])
    }

    fn has(&self, head: usize, query: usize) -> bool {
        self.heads.place(head).is_some() && self.queries.place(query).is_some()
    }

    /// Writes the numbers of the keys from `first` on, if the row is picked.
    ///
    /// # Safety
    /// The outputs must have been checked against a problem that has the row and the keys, and
    /// nobody else may use the row meanwhile.
    pub(crate) unsafe fn write(
        &self,
        [batch, head, query]: [usize; 3],
        first: usize,
        numbers: impl Iterator<Item = T>,
    ) {
        let (Some(head), Some(query)) = (self.heads.place(head), self.queries.place(query)) else {
            return;
        };
        let row = self.view.row(batch, head, query);
        for (n, number) in numbers.enumerate() {
            // SAFETY: the caller's promise: the row has seq_kv contiguous elements.
            unsafe { row.add(first + n).write(number) };
        }
    }
}

/// A sum for each key, by query head or by kv head.
#[derive(Debug)]
pub(crate) struct ColumnSums<'a, T> {
    view: ViewMut<'a, T>,
}

impl<T: Element> ColumnSums<'_, T> {
    fn check(&self, dims: &Dims) -> Result<()> {
        let [batch, seq_kv] = [dims.batch, dims.seq_kv];
        let heads = self.view.shape()[1];
        if heads == dims.q_heads || heads == dims.kv_heads {
            return expect("column_sums", &self.view, [batch, heads, 1, seq_kv]);
        }
        let [q, kv] = [dims.q_heads, dims.kv_heads];
        let expected = format!("[{batch}, {q} or {kv}, 1, {seq_kv}]");
        shape_error("column_sums", self.view.shape(), expected)
    }

    /// The rows of sums that a kv head has.
    fn rows(&self, kv_head: usize, dims: &Dims) -> Range<usize> {
        let each = self.view.shape()[1] / dims.kv_heads;
        kv_head * each..(kv_head + 1) * each
    }

    /// Sets the sums of a kv head to zero.
    ///
    /// # Safety
    /// The outputs must have been checked against a problem of these extents, which has the head,
    /// and nobody else may use the head's sums meanwhile.
    pub(crate) unsafe fn clear(&self, batch: usize, kv_head: usize, dims: &Dims) {
        for head in self.rows(kv_head, dims) {
            let row = self.view.row(batch, head, 0);
            // SAFETY: the caller's promise: the row has seq_kv contiguous elements.
            (0..dims.seq_kv).for_each(|key| unsafe { row.add(key).write(T::default()) });
        }
    }

    /// Adds numbers of query head `head` to the sums of the keys from `first` on.
    ///
    /// # Safety
    /// As [`ColumnSums::clear`], which must have come before; the keys must exist.
    pub(crate) unsafe fn add(
        &self,
        (batch, head): (usize, usize),
        dims: &Dims,
        first: usize,
        numbers: &[T],
    ) {
        let row = head * self.view.shape()[1] / dims.q_heads;
        let sums = self.view.row(batch, row, 0).wrapping_add(first);
        // SAFETY: the caller's promise: initialised, and nobody else's meanwhile.
        let sums = unsafe { std::slice::from_raw_parts_mut(sums, numbers.len()) };
        sums.iter_mut().zip(numbers).for_each(|(sum, &x)| *sum = T::sum(*sum, x));
    }
}

/// The keys of the largest weights of each row.
#[derive(Debug)]
pub(crate) struct TopK<'a, T> {
    keys: ViewMut<'a, u32>,
    weights: ViewMut<'a, T>,
}

impl<T: Element> TopK<'_, T> {
    fn check(&self, dims: &Dims) -> Result<()> {
        let k = self.weights.shape()[3];
        if k == 0 || k > dims.seq_kv {
            return value_error(
                "top_k",
                format_args!("{k} keys for each row"),
                format!("from 1 to the {} that there are", dims.seq_kv),
            );
        }
        if dims.seq_kv > NO_KEY as usize {
            return Err(Error::Overflow {
                argument: "top_k",
                got: format!("an index among {} keys", dims.seq_kv),
                expected: format!("at most {NO_KEY} keys"),
            });
        }
        let shape = [dims.batch, dims.q_heads, dims.seq_q, k];
        expect("top_k's weights", &self.weights, shape)?;
        expect("top_k's keys", &self.keys, shape)
    }

    fn row(&self, [batch, head, query]: [usize; 3]) -> (*mut u32, *mut T) {
        (self.keys.row(batch, head, query), self.weights.row(batch, head, query))
    }

    /// Takes up the weights of the keys from `first` on, -0.0 where one is hidden. `held` is how
    /// many keys the row has so far: at first none.
    ///
    /// # Safety
    /// The outputs must have been checked against a problem that has the row and the keys, and
    /// nobody else may use the row meanwhile; `held` must be what earlier calls made of it.
    pub(crate) unsafe fn offer(
        &self,
        at: [usize; 3],
        held: &mut usize,
        first: usize,
        weights: &[T],
    ) {
        /// Weights that are compared at once.
        const RUN: usize = 16;
        let (runs, rest) = weights.as_chunks::<RUN>();
        for (n, run) in runs.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                // Most runs have nothing above the least of k.
                let open = *held < self.weights.shape()[3] || {
                    let least = self.least(at);
                    run.iter().fold(false, |any, &weight| any | (weight > least))
                };
                if open {
                    self.insert(at, held, first + n * RUN, run);
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.insert(at, held, first + runs.len() * RUN, rest) };
    }

    /// The smallest weight of a row that has k.
    ///
    /// # Safety
    /// As [`TopK::offer`].
    unsafe fn least(&self, at: [usize; 3]) -> T {
        // SAFETY: the caller's promise: k >= 1 elements, all written.
        unsafe { self.row(at).1.add(self.weights.shape()[3] - 1).read() }
    }

    /// Puts weights where they belong, one by one.
    ///
    /// # Safety
    /// As [`TopK::offer`].
    unsafe fn insert(&self, at: [usize; 3], held: &mut usize, first: usize, weights: &[T]) {
        let k = self.weights.shape()[3];
        let (keys, best) = self.row(at);
        // SAFETY: the caller's promise.
        let mut least = if *held == k { unsafe { self.least(at) } } else { T::default() };
        for (key, &weight) in (first..).zip(weights) {
            let is_full = *held == k;
            // What is hidden is not above 0. A row with a NaN is nothing else: its first k keys are
            // as good as any.
            let is_hidden = || weight == T::default() && weight.to_f64().is_sign_negative();
            let is_wanted = if is_full { weight > least } else { !is_hidden() };
            if !is_wanted {
                continue;
            }
            let mut place = if is_full { k - 1 } else { *held };
            // SAFETY: the caller's promise: rows of k >= 1 elements, of which the first `held` are
            // written; `place` only falls, and what moves up is below k.
            unsafe {
                while place > 0 && weight > best.add(place - 1).read() {
                    best.add(place).write(best.add(place - 1).read());
                    keys.add(place).write(keys.add(place - 1).read());
                    place -= 1;
                }
                best.add(place).write(weight);
                keys.add(place).write(key as u32);
                *held = (*held + 1).min(k);
                least = best.add(*held - 1).read();
            }
        }
    }

    /// Fills the places behind the `held` keys that the row has.
    ///
    /// # Safety
    /// As [`TopK::offer`].
    pub(crate) unsafe fn finish(&self, at: [usize; 3], held: usize) {
        let (keys, best) = self.row(at);
        for place in held..self.weights.shape()[3] {
            // SAFETY: the caller's promise: rows of k elements.
            unsafe {
                keys.add(place).write(NO_KEY);
                best.add(place).write(T::default());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_place_what_they_have() {
        let list = [1, 4, 6];
        let picks = [Pick::from(..), Pick::from(2..5), Pick::from(&list[..]), Pick::from(3..3)];
        let all: [Vec<usize>; 4] = [(0..8).collect(), vec![2, 3, 4], list.to_vec(), vec![]];
        for (pick, picked) in picks.into_iter().zip(all) {
            assert_eq!(pick.check("pick", 8), Ok(()));
            assert_eq!(pick.count(8), picked.len());
            for index in 0..8 {
                assert_eq!(pick.place(index), picked.iter().position(|&x| x == index), "{pick:?}");
            }
        }
    }

    #[test]
    fn picks_beyond_the_extent_or_out_of_order_are_refused() {
        let ends = usize::MAX..usize::MAX;
        #[allow(clippy::reversed_empty_ranges)]
        let backwards = 5..2;
        let lists: [&[usize]; 4] = [&[0, 8], &[3, 3], &[4, 1], &[usize::MAX]];
        let picks = lists.into_iter().map(Pick::from);
        for pick in picks.chain([Pick::from(0..9), Pick::from(ends), Pick::from(backwards)]) {
            let refused = pick.check("pick", 8);
            assert!(matches!(refused, Err(Error::Value { argument: "pick", .. })), "{pick:?}");
        }
    }
}
