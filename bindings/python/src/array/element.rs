//! The types that floating-point arrays are stored in, and the types they are computed in.

use headwise::{
    AttentionOptions, Element, Input, Int8, Isa, Outputs, Result, Storage, Workspace,
    attention_cached_into, bf16, f16,
};

use super::{DType, Strided};
use crate::kv_cache::AnyView;

/// A type of numbers, with its name.
pub(crate) trait Typed {
    const DTYPE: DType;
}

/// A type that arrays are stored in.
pub(crate) trait Stored: Typed + Storage<Compute: Compute> {}

impl<S: Typed + Storage<Compute: Compute>> Stored for S {}

/// A type that the library computes in.
pub(crate) trait Compute: Typed + Element {
    /// Attention to a cache.
    fn cached<'t>(
        query: Input<'t, Self>,
        cache: &AnyView<'t>,
        options: &AttentionOptions<'_, Self>,
        outputs: Outputs<'_, Self>,
        workspace: &mut Workspace,
    ) -> Result<Isa>;
}

impl Typed for f32 {
    const DTYPE: DType = DType::F32;
}

impl Typed for f64 {
    const DTYPE: DType = DType::F64;
}

impl Typed for f16 {
    const DTYPE: DType = DType::F16;
}

impl Typed for bf16 {
    const DTYPE: DType = DType::BF16;
}

impl Typed for Int8 {
    const DTYPE: DType = DType::I8;
}

/// The dtype that `S` is computed in.
pub(crate) fn computed<S: Stored>() -> DType {
    <S::Compute as Typed>::DTYPE
}

/// Whether an array of `T` is computed where it lies.
pub(crate) fn is_in_place<T>(place: &Strided) -> bool {
    place.is_direct::<T>() && place.four_axes::<T>().is_some()
}

impl Compute for f32 {
    fn cached<'t>(
        query: Input<'t, Self>,
        cache: &AnyView<'t>,
        options: &AttentionOptions<'_, Self>,
        outputs: Outputs<'_, Self>,
        workspace: &mut Workspace,
    ) -> Result<Isa> {
        match cache {
            AnyView::F32(view) => attention_cached_into(query, view, options, outputs, workspace),
            AnyView::F16(view) => attention_cached_into(query, view, options, outputs, workspace),
            AnyView::Bf16(view) => attention_cached_into(query, view, options, outputs, workspace),
            AnyView::Int8(view) => attention_cached_into(query, view, options, outputs, workspace),
        }
    }
}

impl Compute for f64 {
    fn cached<'t>(
        _query: Input<'t, Self>,
        _cache: &AnyView<'t>,
        _options: &AttentionOptions<'_, Self>,
        _outputs: Outputs<'_, Self>,
        _workspace: &mut Workspace,
    ) -> Result<Isa> {
        Err(headwise::Error::Value {
            argument: "query",
            got: "elements of float64".into(),
            expected: "float32, float16 or bfloat16: caches hold no doubles".into(),
        })
    }
}
