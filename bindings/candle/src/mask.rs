//! Masks that are tensors.

use bytemuck::checked::try_cast_slice;
use candle_core::{CpuStorage, Error, Layout, Result, Tensor};
use headwise::{AttentionOptions, View};

use crate::borrowed::{Borrowed, elements, on_cpu};
use crate::computed::Computed;
use crate::error;
use crate::options::Options;

/// A call's masks, borrowed as long as it runs.
pub(crate) struct Masks<'a> {
    mask: Option<Borrowed<'a>>,
    bias: Option<Borrowed<'a>>,
}

impl<'a> Masks<'a> {
    pub(crate) fn new(options: &Options<'a>) -> Result<Self> {
        let borrow = |argument, tensor: Option<&'a Tensor>| {
            tensor.map(|tensor| on_cpu(argument, tensor).and_then(|()| Borrowed::new(tensor)))
        };
        Ok(Self {
            mask: borrow("mask", options.mask).transpose()?,
            bias: borrow("bias", options.bias).transpose()?,
        })
    }

    /// The plain options with these masks.
    pub(crate) fn added_to<'m, T: Computed>(
        &'m self,
        plain: AttentionOptions<'m>,
    ) -> Result<AttentionOptions<'m, T>> {
        let mut options = T::options_of(plain)?;
        if let Some(mask) = &self.mask {
            options = options.mask(boolean(mask.cpu()?, &rank_4("mask", mask.layout())?)?);
        }
        if let Some(bias) = &self.bias {
            let layout = rank_4("bias", bias.layout())?;
            options = options.bias(T::operand("bias", bias.cpu()?, &layout)?);
        }
        Ok(options)
    }
}

/// The same elements with axes of 1 before them, as candle broadcasts.
fn rank_4(argument: &str, layout: &Layout) -> Result<Layout> {
    let (dims, strides) = (layout.dims(), layout.stride());
    let Some(missing) = 4_usize.checked_sub(dims.len()).filter(|&missing| missing < 4) else {
        let expected = "the last axes of [batch, q_heads, seq_q, seq_kv]";
        return Err(Error::Msg(format!("{argument}: shape {dims:?}, expected {expected}")).bt());
    };
    let before = |axes: &[usize], with| [&vec![with; missing], axes].concat();
    Ok(Layout::new(before(dims, 1).into(), before(strides, 0), layout.start_offset()))
}

/// Bytes of 0 and 1, taken for booleans where they lie.
fn boolean<'s>(storage: &'s CpuStorage, layout: &Layout) -> Result<View<'s, bool>> {
    let bytes = elements::<u8>("mask", storage)?;
    let shape: [usize; 4] = std::array::from_fn(|axis| layout.dims()[axis]);
    let strides: [isize; 4] = std::array::from_fn(|axis| layout.stride()[axis] as isize);
    let steps = |axis: usize| shape[axis].saturating_sub(1) * layout.stride()[axis];
    let end = layout.start_offset() + (0..4).map(steps).sum::<usize>() + 1;
    let spanned =
        if shape.contains(&0) { Some(&[][..]) } else { bytes.get(layout.start_offset()..end) };
    let mask =
        spanned.and_then(|bytes| try_cast_slice::<u8, bool>(bytes).ok()).ok_or_else(|| {
            Error::Msg("mask: bytes other than 0 and 1 in the memory that it spans, between its rows included; \
                        `contiguous()` copies the mask alone".into()).bt()
        })?;
    View::strided(mask, 0, shape, strides).map_err(error::from_headwise)
}
