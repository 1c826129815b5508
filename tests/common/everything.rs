//! All outputs of a call at once.

use headwise::{
    AttentionOptions, Element, Isa, Outputs, Pick, Result, Stage, View, ViewMut, Workspace,
    attention_into,
};

use super::bits;
use super::case::Inputs;

/// What to ask for beside the output and the log-sum-exp.
#[derive(Debug, Clone)]
pub struct Want<'a> {
    /// Of the weights and the scores.
    pub heads: Pick<'a>,
    pub queries: Pick<'a>,
    pub stage: Stage,
    /// Column sums by query head or by kv head.
    pub by_query_head: bool,
    pub k: usize,
}

impl Want<'_> {
    /// All heads and queries, and up to `k` keys.
    pub fn all(stage: Stage, by_query_head: bool, k: usize) -> Self {
        Self { heads: Pick::All, queries: Pick::All, stage, by_query_head, k }
    }
}

/// Dense, in order batch, heads, seq, dim.
#[derive(Debug, Clone)]
pub struct Everything<T> {
    pub out: Vec<T>,
    pub lse: Vec<T>,
    pub weights: Vec<T>,
    pub scores: Vec<T>,
    pub sums: Vec<T>,
    pub best: Vec<T>,
    pub keys: Vec<u32>,
}

fn count(pick: &Pick<'_>, extent: usize) -> usize {
    match pick {
        Pick::Range(range) => range.len(),
        Pick::List(list) => list.len(),
        _ => extent,
    }
}

/// What nothing that is computed looks like.
const BEFORE: f64 = 7.5e8;

impl<T: Element> Everything<T> {
    /// Memory for what is wanted.
    pub fn new(inputs: &Inputs<T>, want: &Want<'_>) -> Self {
        let d = inputs.dims();
        let all = |n: usize| vec![T::from_f64(BEFORE); n];
        let rows = d.batch * d.q_heads() * d.seq_q;
        let picked = d.batch * count(&want.heads, d.q_heads()) * count(&want.queries, d.seq_q);
        let sum_heads = if want.by_query_head { d.q_heads() } else { d.kv_heads };
        Self {
            out: all(rows * d.value_dim),
            lse: all(rows),
            weights: all(picked * d.seq_kv),
            scores: all(picked * d.seq_kv),
            sums: all(d.batch * sum_heads * d.seq_kv),
            best: all(rows * want.k),
            keys: vec![12_345_678; rows * want.k],
        }
    }

    pub fn outputs<'a>(
        &'a mut self,
        inputs: &Inputs<T>,
        want: &Want<'a>,
    ) -> Result<Outputs<'a, T>> {
        let d = inputs.dims();
        let rows = |inner| [d.batch, d.q_heads(), d.seq_q, inner];
        let [heads, queries] = [&want.heads, &want.queries];
        let counts = [count(heads, d.q_heads()), count(queries, d.seq_q)];
        let picked = [d.batch, counts[0], counts[1], d.seq_kv];
        let sum_heads = if want.by_query_head { d.q_heads() } else { d.kv_heads };
        let weights = ViewMut::bhsd(&mut self.weights, picked)?;
        let scores = ViewMut::bhsd(&mut self.scores, picked)?;
        let (heads, queries) = (heads.clone(), queries.clone());
        let outputs = Outputs::new(ViewMut::bhsd(&mut self.out, rows(d.value_dim))?)
            .with_lse(ViewMut::bhsd(&mut self.lse, rows(1))?)
            .with_weights_of(heads.clone(), queries.clone(), weights)
            .with_scores_of(want.stage, heads, queries, scores)
            .with_column_sums(ViewMut::bhsd(&mut self.sums, [d.batch, sum_heads, 1, d.seq_kv])?);
        if want.k == 0 {
            return Ok(outputs);
        }
        let keys = ViewMut::bhsd(&mut self.keys, rows(want.k))?;
        Ok(outputs.with_top_k(keys, ViewMut::bhsd(&mut self.best, rows(want.k))?))
    }

    pub fn of(inputs: &Inputs<T>, options: &AttentionOptions<'_, T>, want: &Want<'_>) -> Self {
        Self::from(inputs, want, |[q, k, v], outputs| {
            attention_into(q, k, v, options, outputs, &mut Workspace::new())
        })
    }

    /// As `call` fills it.
    pub fn from(
        inputs: &Inputs<T>,
        want: &Want<'_>,
        call: impl FnOnce([View<'_, T>; 3], Outputs<'_, T>) -> Result<Isa>,
    ) -> Self {
        let mut this = Self::new(inputs, want);
        let views = [inputs.query.view(), inputs.key.view(), inputs.value.view()];
        let result = this.outputs(inputs, want).and_then(|outputs| call(views, outputs));
        result.unwrap_or_else(|error| panic!("{error}"));
        this
    }

    pub fn bits(&self) -> Vec<Vec<u64>> {
        let Self { out, lse, weights, scores, sums, best, keys } = self;
        let mut all: Vec<_> =
            [out, lse, weights, scores, sums, best].into_iter().map(|part| bits(part)).collect();
        all.push(keys.iter().map(|&key| key.into()).collect());
        all
    }
}
