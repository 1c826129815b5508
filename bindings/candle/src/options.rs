//! What a call is asked for.

use candle_core::Tensor;
use headwise::AttentionOptions;

/// [`AttentionOptions`] with masks that are candle's tensors. Functions take either.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use headwise_candle::{AttentionOptions, Options, attention};
///
/// let x = Tensor::randn(0_f32, 1.0, (2, 4, 5, 8), &Device::Cpu)?;
/// // candle's models mark what is hidden: 1 above the diagonal.
/// let hidden = Tensor::triu2(5, DType::U8, &Device::Cpu)?
///     .sub(&Tensor::eye(5, DType::U8, &Device::Cpu)?)?;
/// let options = Options::new(AttentionOptions::new().softcap(30.0));
/// let out = attention(&x, &x, &x, options.mask(&hidden.eq(0_u8)?))?;
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    pub(crate) plain: AttentionOptions<'a>,
    pub(crate) mask: Option<&'a Tensor>,
    pub(crate) bias: Option<&'a Tensor>,
}

impl<'a> Options<'a> {
    /// Options without masks that are tensors. What is returned is for the functions to say: a
    /// `return_lse` or `return_weights` of `plain` does nothing.
    pub fn new(plain: AttentionOptions<'a>) -> Self {
        Self { plain, mask: None, bias: None }
    }

    /// A boolean mask, of dtype `U8` as candle's comparisons give it, 1 = attend and 0 = hidden, read in
    /// place. Its axes are the last of `[batch, q_heads, seq_q, seq_kv]`; all but `seq_kv` may be 1.
    #[must_use]
    pub fn mask(mut self, mask: &'a Tensor) -> Self {
        self.mask = Some(mask);
        self
    }

    /// A term added to the scaled and capped scores, read in place; exactly -inf hides. Shaped as a mask;
    /// `F32`, `F16` or `BF16` beside tensors of any of these, `F64` beside `F64`.
    #[must_use]
    pub fn bias(mut self, bias: &'a Tensor) -> Self {
        self.bias = Some(bias);
        self
    }
}

impl<'a> From<AttentionOptions<'a>> for Options<'a> {
    fn from(plain: AttentionOptions<'a>) -> Self {
        Self::new(plain)
    }
}
