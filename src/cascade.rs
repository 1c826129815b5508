//! Cascade attention: a prefix that all sequences of a cache share is read once for all of them.
//!
//! ```text
//! prefix = attention of all queries, as one sequence's, to the shared pages      once
//! own    = attention of each sequence's queries to what lies behind them
//! out    = merge(prefix, own)
//! ```

use crate::kv_cache::PageTables;
use crate::{
    AttentionOptions, Error, Input, Isa, KvStorage, KvView, Outputs, Result, Shape, State,
    StateMut, View, ViewMut, Workspace, attention_cached_into, merge_states_into,
};

/// Reusable memory of [`attention_cascade_into`]: two states of all queries, and what the kernels need.
/// It grows to what a call needs and keeps that; a call that finds enough allocates nothing.
#[derive(Debug, Default, Clone)]
pub struct CascadeWorkspace {
    states: Workspace,
    kernels: Workspace,
    /// Where each sequence's own keys begin.
    starts: Vec<usize>,
}

impl CascadeWorkspace {
    /// An empty workspace; the first call will allocate.
    pub fn new() -> Self {
        Self::default()
    }
}

/// [`attention_cached_into`](crate::attention_cached_into) for sequences that begin alike, as forks of a
/// prompt do: the keys in pages that all of them share ([`KvView::shared_prefix`]) are read once for all
/// queries, not once for each sequence. Where nothing is shared the call is the ordinary one.
///
/// The result is the same up to rounding; its bits depend on how much is shared. A causal mask, a
/// scale, a softcap, sinks and scales of values are possible, for other masks and terms a query's place among the keys of
/// the prefix would count. As many query tokens as come last see only what lies behind the prefix, so
/// that the prefix ends before them.
///
/// Queries are `[sequences, q_heads, seq_q, head_dim]`, evenly spaced over sequences and tokens as
/// [`View::fold_batch`] has it, or packed, `[1, q_heads, tokens, head_dim]`, with
/// [`AttentionOptions::query_offsets`]. `into` has their shape, with `value_dim`.
///
/// ```
/// use headwise::kv_cache::{KvShape, PagedCapacity, TableBuffer};
/// use headwise::{
///     AttentionOptions, CascadeWorkspace, NewTokens, PagedCache, StateMut, View, ViewMut,
///     attention_cascade_into,
/// };
///
/// let shape = KvShape { kv_heads: 1, head_dim: 4, value_dim: 4 };
/// let capacity =
///     PagedCapacity { pages: 8, page_size: 4, sequences: 2, pages_per_sequence: 4 };
/// let mut cache = PagedCache::new(shape, capacity)?;
/// let prompt = [0.5_f32; 8 * 4];
/// let rows = View::bshd(&prompt, [1, 1, 8, 4])?;
/// let first = cache.create()?;
/// cache.append(&[first], &NewTokens::new(rows, rows))?;
/// let second = cache.fork(first)?;
/// // A token for each, and the two queries that go with them.
/// let tokens = View::bshd(&prompt, [2, 1, 1, 4])?;
/// cache.append(&[first, second], &NewTokens::new(tokens, tokens))?;
/// let mut tables = TableBuffer::new();
/// let view = cache.view(&[first, second], &mut tables)?;
/// assert_eq!(view.shared_prefix(), 8);
/// let (mut out, mut lse) = ([0.0; 2 * 4], [0.0; 2]);
/// let into = StateMut {
///     out: ViewMut::bshd(&mut out, [2, 1, 1, 4])?,
///     lse: ViewMut::bshd(&mut lse, [2, 1, 1, 1])?,
/// };
/// let options = AttentionOptions::new().causal();
/// attention_cascade_into(tokens, &view, &options, into, &mut CascadeWorkspace::new())?;
/// assert!(out.iter().all(|x| (x - 0.5).abs() < 1e-6));
/// # Ok::<(), headwise::Error>(())
/// ```
///
/// # Errors
/// As [`attention_cached_into`](crate::attention_cached_into); [`Error::Value`] with options that a
/// shared prefix cannot have, [`Error::Stride`] where queries are not evenly spaced.
pub fn attention_cascade_into<'t, K: KvStorage<Compute = f32>>(
    query: impl Into<Input<'t, f32>>,
    cache: &KvView<'_, K>,
    options: &AttentionOptions<'_>,
    into: StateMut<'_>,
    workspace: &mut CascadeWorkspace,
) -> Result<Isa> {
    let query = query.into();
    let shared = shared(query.shape()[2], cache, options);
    let kernels = &mut workspace.kernels;
    if shared == 0 {
        let outputs = Outputs::new(into.out).with_lse(into.lse);
        return attention_cached_into(query, cache, options, outputs, kernels);
    }
    let of_prefix = options.of_shared_prefix()?;
    let folded = query.fold_batch().ok_or_else(|| Error::Stride {
        argument: "query",
        got: format!("{:?} for shape {:?}", query.strides(), query.shape()),
        expected: "rows evenly spaced over sequences and tokens, as in memory of the order batch, \
                   seq, heads, dim"
            .into(),
    })?;
    let rows = Rows::new(query.shape(), cache.value().shape()[3])?;
    let (first, second) = rows.memory(&mut workspace.states)?;

    let pages = shared.div_ceil(cache.page_size());
    let prefix = PageTables {
        table: &cache.tables().table[..pages],
        offsets: &[0, pages],
        lengths: &[shared],
        starts: &[0],
    };
    let prefix = KvView::new(cache.key(), cache.value(), prefix)?;
    let outputs = rows.folded().outputs(first)?;
    attention_cached_into(folded, &prefix, &of_prefix, outputs, kernels)?;

    workspace.starts.clear();
    workspace.starts.extend(cache.tables().starts.iter().map(|&start| start.max(shared)));
    let own = PageTables { starts: &workspace.starts, ..cache.tables() };
    let own = KvView::new(cache.key(), cache.value(), own)?;
    attention_cached_into(query, &own, options, rows.outputs(second)?, kernels)?;
    merge_states_into(&[rows.state(first)?, rows.state(second)?], into, options.settings())
}

/// How many positions are shared, those of the queries apart.
fn shared<K>(queries: usize, cache: &KvView<'_, K>, options: &AttentionOptions<'_>) -> usize {
    let lengths = cache.tables().lengths.iter().enumerate();
    let before = |(sequence, &length): (usize, &usize)| {
        let queries = options.queries_of(sequence).unwrap_or(queries);
        length.saturating_sub(queries)
    };
    lengths.map(before).min().unwrap_or(0).min(cache.shared_prefix())
}

/// The shape of a state whose memory has the order batch, seq, heads, dim.
#[derive(Clone, Copy)]
struct Rows {
    out: Shape,
    lse: Shape,
    /// Elements of each.
    counts: [usize; 2],
}

impl Rows {
    /// Of queries of this shape.
    fn new([batch, heads, seq, _]: Shape, value_dim: usize) -> Result<Self> {
        let (out, lse) = ([batch, heads, seq, value_dim], [batch, heads, seq, 1]);
        let count = |shape: Shape| shape.iter().try_fold(1_usize, |n, &len| n.checked_mul(len));
        match (count(out), count(lse)) {
            (Some(n), Some(rows)) => Ok(Self { out, lse, counts: [n, rows] }),
            _ => Err(Error::Overflow {
                argument: "query",
                got: format!("{out:?} as the shape of the output"),
                expected: "an amount of memory that can be had".into(),
            }),
        }
    }

    /// Those of a batch as one entry's.
    fn folded(self) -> Self {
        let fold = |[batch, heads, seq, dim]: Shape| [1, heads, batch * seq, dim];
        Self { out: fold(self.out), lse: fold(self.lse), ..self }
    }

    /// Room for two states.
    fn memory(self, workspace: &mut Workspace) -> Result<(&mut [f32], &mut [f32])> {
        let [out, lse] = self.counts;
        let one = out.saturating_add(lse);
        Ok(workspace.first(one.saturating_mul(2))?.split_at_mut(one))
    }

    fn outputs(self, memory: &mut [f32]) -> Result<Outputs<'_, f32>> {
        let (out, lse) = memory.split_at_mut(self.counts[0]);
        let lse = ViewMut::bshd(lse, self.lse)?;
        Ok(Outputs::new(ViewMut::bshd(out, self.out)?).with_lse(lse))
    }

    fn state(self, memory: &[f32]) -> Result<State<'_>> {
        let (out, lse) = memory.split_at(self.counts[0]);
        Ok(State { out: View::bshd(out, self.out)?, lse: View::bshd(lse, self.lse)? })
    }
}
