//! From the operator's terms to ours.

use std::ops::Range;

use headwise_kernels::{Masking, Problem};

use super::Attributes;
use super::extents::{Extents, Place};
use crate::{
    Causal, Element, Input, Isa, Outputs, Result, Scale, Settings, Stage, Storage, Tensor, Terms,
    View, Window, Workspace,
};

/// A mask to compute with.
pub(super) enum Mask<'a, T> {
    Boolean(&'a [bool], Place),
    Additive(&'a [T], Place),
}

impl<'a, T> Mask<'a, T> {
    pub(super) fn of(mask: &super::Mask<'a, T>) -> Self {
        let place = |shape| Place { shape: Extents::mask_shape(shape), seq_first: false };
        match mask {
            super::Mask::Boolean(mask) => Self::Boolean(mask.data, place(mask.shape)),
            super::Mask::Additive(mask) => Self::Additive(mask.data, place(mask.shape)),
        }
    }

    fn place(&self) -> &Place {
        match self {
            Self::Boolean(_, place) | Self::Additive(_, place) => place,
        }
    }
}

/// A call whose parts fit each other.
pub(super) struct Call<'a, T> {
    pub(super) attributes: &'a Attributes,
    pub(super) extents: &'a Extents,
    pub(super) query: &'a [T],
    pub(super) key: (&'a [T], Place),
    pub(super) value: (&'a [T], Place),
    pub(super) mask: Option<Mask<'a, T>>,
    pub(super) lengths: Option<&'a [i64]>,
    pub(super) settings: &'a Settings<'a>,
}

fn zeros<S: Storage>(place: Place) -> Result<Vec<S>> {
    Tensor::zeros(place.shape).map(Tensor::into_vec)
}

impl<E: Element, T: Storage<Compute = E>> Call<'_, T> {
    /// `Y`, and the scores or weights if they are wanted.
    pub(super) fn run(&self, scores: bool) -> Result<(Vec<T>, Option<Vec<E>>, Isa)> {
        let (attributes, extents) = (self.attributes, self.extents);
        let out = extents.out();
        let mut y = zeros(out)?;
        let mut scores = scores.then(|| zeros(extents.scores())).transpose()?;
        let before_mask = attributes.qk_matmul_output_mode < 2;
        if let Some(scores) = &mut scores {
            if before_mask {
                self.scores_before_mask(scores)?;
            } else if attributes.qk_matmul_output_mode == 2 {
                scores.fill(E::from_f64(f64::NEG_INFINITY));
            }
        }
        let mut isa = self.settings.isa()?;
        let mut workspace = Workspace::new();
        for entries in self.parts() {
            let view = out.view_mut(&mut y, &entries, out.shape[3])?;
            let mut outputs = Outputs::new(T::output(view));
            if let Some(scores) = scores.as_mut().filter(|_| !before_mask) {
                let view = extents.scores().view_mut(scores, &entries, self.width())?;
                outputs = match attributes.qk_matmul_output_mode {
                    2 => outputs.with_scores(Stage::Final, view),
                    _ => outputs.with_weights(view),
                };
            }
            isa = self.compute(&entries, outputs, &mut workspace)?;
        }
        Ok((y, scores, isa))
    }

    /// The keys that the mask has columns for; those behind are hidden.
    fn width(&self) -> usize {
        self.mask.as_ref().map_or(self.extents.total(), |mask| mask.place().shape[3])
    }

    /// Whether the diagonal or a window moves with each batch entry's length.
    fn parts(&self) -> Vec<Range<usize>> {
        let batch = self.extents.batch();
        let Attributes { is_causal, left_window_size, right_window_size, .. } = *self.attributes;
        let banded = is_causal || left_window_size >= 0 || right_window_size >= 0;
        if self.lengths.is_some() && banded {
            (0..batch).map(|b| b..b + 1).collect()
        } else {
            std::iter::once(0..batch).collect()
        }
    }

    /// Attention of some batch entries, which have one diagonal.
    fn compute(
        &self,
        entries: &Range<usize>,
        outputs: Outputs<'_, E>,
        workspace: &mut Workspace,
    ) -> Result<Isa> {
        let lengths: Option<Vec<usize>> = self
            .lengths
            .map(|lengths| lengths[entries.clone()].iter().map(|&n| n as usize).collect());
        let (causal, window) = self.band(entries);
        let mut masking = Masking::default();
        (masking.causal, masking.window) = (causal, window);
        masking.key_lengths = lengths.as_deref();
        if let Some(mask) = &self.mask {
            let [batch, _, rows, _] = mask.place().shape;
            let entries = if batch == 1 { &(0..1) } else { entries };
            match mask {
                Mask::Boolean(data, place) => {
                    masking.boolean = Some(place.view(data, entries, rows)?);
                }
                Mask::Additive(data, place) => {
                    masking.bias = Some(T::input(place.view(data, entries, rows)?));
                }
            }
        }
        let value = self.value.1.view(self.value.0, entries, self.width())?;
        let problem = self.problem(entries, (self.width(), T::input(value)), &masking)?;
        headwise_kernels::attention(&problem, outputs, self.settings, workspace)
    }

    /// Some batch entries with their first `width` keys.
    fn problem<'p>(
        &'p self,
        entries: &Range<usize>,
        (width, value): (usize, Input<'p, E>),
        masking: &Masking<'p, E>,
    ) -> Result<Problem<'p, E>> {
        let scale = self.attributes.scale.map_or(Scale::InvSqrtHeadDim, Scale::Value);
        let query = self.extents.query.view(self.query, entries, self.extents.seq_q())?;
        let key = self.key.1.view(self.key.0, entries, width)?;
        let mut terms = Terms::default();
        terms.softcap = Some(self.attributes.softcap).filter(|&cap| cap > 0.0);
        Problem::new(T::input(query), T::input(key), value, scale, masking)?.with_terms(&terms)
    }

    /// What `is_causal` and the windows leave of the keys, `i + offset - left ..= i + offset +
    /// right` for query `i`: as a diagonal at the right end and a window that ends there.
    fn band(&self, entries: &Range<usize>) -> (Option<Causal>, Window) {
        let (seq_q, total) = (self.extents.seq_q() as i64, self.extents.total() as i64);
        let offset = match self.lengths {
            Some(lengths) => lengths.get(entries.start).map_or(0, |length| length - seq_q),
            None => self.extents.past as i64,
        };
        // No query is farther from a key than all of both.
        let size = |size: i64| (size >= 0).then(|| size.min(seq_q.saturating_add(total)));
        let left = size(self.attributes.left_window_size);
        let right = size(self.attributes.right_window_size);
        let end = match right {
            _ if self.attributes.is_causal => offset,
            Some(right) => offset.saturating_add(right),
            None if left.is_none() => return (None, Window::default()),
            // Beyond the last key for every query.
            None => total,
        };
        let left = left.and_then(|left| usize::try_from(end - offset + left).ok());
        (Some(Causal::Offset(end)), Window { left, right: None })
    }

    /// The scores of all pairs: the modes 0 and 1 stand before every mask.
    fn scores_before_mask(&self, scores: &mut [E]) -> Result<Isa> {
        let all = 0..self.extents.batch();
        let place = self.extents.scores();
        let [batch, heads, seq_q, total] = place.shape;
        let mut out = Tensor::<T>::zeros([batch, heads, seq_q, 1])?;
        let view = place.view_mut(scores, &all, total)?;
        let capped = self.attributes.qk_matmul_output_mode == 1;
        let stage = if capped { Stage::Capped } else { Stage::Scaled };
        let outputs = Outputs::new(T::output(out.view_mut())).with_scores(stage, view);
        // Of values there need be none: one zero for all keys.
        let zero = [T::default()];
        let value = View::strided(&zero, 0, [batch, self.key.1.shape[1], total, 1], [0; 4])?;
        let problem = self.problem(&all, (total, T::input(value)), &Masking::default())?;
        headwise_kernels::attention(&problem, outputs, self.settings, &mut Workspace::new())
    }
}
