//! What options refer to, made the library's own.

use headwise::{AttentionOptions, BlockPattern, Documents, Input, Offsets, Scale, View};
use pyo3::PyResult;

use crate::array::{Compute, DType, Operand, Stretch, Strided, bools};
use crate::error;
use crate::frame::Frame;
use crate::options::{Options, Slopes};
use crate::threads;

/// What options refer to.
pub(crate) struct Held<'f, T: Compute> {
    frame: &'f Frame,
    mask: Option<Operand<bool>>,
    packed: Option<Operand<u8>>,
    bias: Option<BiasOperand<T>>,
}

/// A bias of the type that is computed in, or half as wide.
enum BiasOperand<T> {
    Native(Operand<T>),
    F16(Operand<headwise::f16>),
    Bf16(Operand<headwise::bf16>),
}

impl<'f, T: Compute> Held<'f, T> {
    /// # Safety
    /// The arrays must be readable as long as this is there.
    pub(crate) unsafe fn new(options: &Options<'_>, frame: &'f Frame) -> PyResult<Self> {
        let width = options.ragged.is_none().then_some(frame.seq_kv);
        let fit = |name: &str, place: Strided, width: Option<usize>| -> PyResult<Strided> {
            let place = place.with_ndim(name, frame.ndim())?;
            let last = frame.ndim() - 1;
            Ok(width.map_or(place, |width| place.repeated(last, width)))
        };
        let stretch = |place: &Strided| {
            // One entry for all is cheaper than one for each.
            let one = place.shape()[..place.ndim() - 3].iter().all(|&extent| extent == 1);
            Stretch { batch: if one { &[] } else { frame.batch() }, heads: None }
        };
        let mut held = Self { frame, mask: None, packed: None, bias: None };
        if let Some(array) = &options.mask {
            let place = fit("mask", array.place, width)?;
            // SAFETY: the caller's promise.
            held.mask = Some(unsafe { bools(place, stretch(&place)) }?);
        }
        if let Some(array) = &options.packed_mask {
            let place = fit("packed_mask", array.place, None)?;
            // SAFETY: the caller's promise.
            held.packed = Some(unsafe { Operand::plain(place, stretch(&place)) }?);
        }
        if let Some(array) = &options.bias {
            let place = fit("bias", array.place, width)?;
            // SAFETY: the caller's promise.
            held.bias = Some(unsafe { BiasOperand::new(place, stretch(&place)) }?);
        }
        Ok(held)
    }

    /// The library's options.
    pub(crate) fn options<'a>(
        &'a self,
        from: &'a Options<'_>,
        scale: Option<Scale>,
    ) -> PyResult<AttentionOptions<'a, T>> {
        let mut to =
            AttentionOptions::new().window(from.window.0, from.window.1).precision(from.precision);
        to = apply(to, scale, AttentionOptions::scale);
        to = apply(to, from.causal, AttentionOptions::causal_with);
        to = apply(to, from.prefix.as_deref(), AttentionOptions::prefix);
        to = apply(to, from.key_lengths.as_deref(), AttentionOptions::key_lengths);
        to = apply(to, from.key_starts.as_deref(), AttentionOptions::key_starts);
        to = apply(to, from.query_offsets.as_deref(), AttentionOptions::query_offsets);
        to = apply(to, from.softcap, AttentionOptions::softcap);
        to = apply(to, from.sinks.as_deref(), AttentionOptions::sinks);
        to = apply(to, from.relative_bias.as_deref(), AttentionOptions::relative_bias);
        to = apply(to, from.isa, AttentionOptions::isa);
        to = apply(to, from.threads.or_else(threads::limit), AttentionOptions::max_threads);
        to = apply(to, from.documents.as_ref(), |to, (query, key)| {
            to.documents(Documents::Ids { query, key })
        });
        to = apply(to, from.document_offsets.as_ref(), |to, (query, key)| {
            to.documents(Documents::Offsets(Offsets { query, key }))
        });
        to = apply(to, from.ragged.as_ref(), |to, (query, key)| to.ragged(query, key));
        to = apply(to, from.tree.as_ref(), |to, tree| {
            to.tree(headwise::Tree::of_parents(tree.nodes, &tree.parents))
        });
        to = apply(to, from.alibi.as_ref(), |to, slopes| {
            to.alibi(match slopes {
                Slopes::Standard => headwise::Alibi::Standard,
                Slopes::Given(slopes) => headwise::Alibi::Slopes(slopes),
            })
        });
        if let Some(blocks) = &from.blocks {
            let visible = View::bhsd(&blocks.visible, blocks.shape).map_err(error::of)?;
            let (block_q, block_kv) = (blocks.block_q, blocks.block_kv);
            to = to.blocks(BlockPattern { block_q, block_kv, visible });
        }
        if let Some(scales) = &from.value_scales {
            to = to.value_scales(scales.of(self.frame.kv_heads, self.frame.value_dim)?);
        }
        if let Some(mask) = &self.mask {
            to = to.mask(mask.view()?);
        }
        if let Some(packed) = &self.packed {
            to = to.packed_mask(packed.view()?);
        }
        to = match &self.bias {
            None => to,
            Some(BiasOperand::Native(bias)) => to.bias(bias.view()?),
            Some(BiasOperand::F16(bias)) => to.bias(Input::F16(bias.view()?)),
            Some(BiasOperand::Bf16(bias)) => to.bias(Input::Bf16(bias.view()?)),
        };
        if from.unfused {
            to = to.algorithm(headwise::Algorithm::Unfused);
        }
        Ok(to)
    }
}

/// The options with something, if it is there.
fn apply<O, V>(options: O, value: Option<V>, with: impl FnOnce(O, V) -> O) -> O {
    match value {
        Some(value) => with(options, value),
        None => options,
    }
}

impl<T: Compute> BiasOperand<T> {
    /// # Safety
    /// The elements must be readable as long as this is there.
    unsafe fn new(place: Strided, stretch: Stretch<'_>) -> PyResult<Self> {
        // SAFETY: the caller's promise, of elements of the dtype's type.
        unsafe {
            match place.dtype {
                DType::F16 => Operand::plain(place, stretch).map(Self::F16),
                DType::BF16 => Operand::plain(place, stretch).map(Self::Bf16),
                dtype if dtype == T::DTYPE => Operand::plain(place, stretch).map(Self::Native),
                DType::F32 => {
                    Operand::converted(place, stretch, |x: f32| T::from_f32(x)).map(Self::Native)
                }
                other => Err(error::kind(
                    "bias",
                    format_args!("elements of {other}"),
                    format_args!("{}, float32, float16 or bfloat16", T::DTYPE),
                )),
            }
        }
    }
}
