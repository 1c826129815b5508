//! The types that floating-point arrays are stored in, and the types they are computed in.

use half::{bf16, f16};
use headwise::{
    AttentionOptions, Element, Isa, KvView, Outputs, Result, View, Workspace, attention_cached_into,
};

use super::{DType, Strided};

/// A type that arrays are stored in. A type with kernels of its own is computed in itself; the
/// others are widened on the way in, and rounded once on the way out.
pub(crate) trait Stored: Copy + Send + Sync + 'static {
    /// What it is computed in.
    type Compute: Compute;
    const DTYPE: DType;
    fn widen(self) -> Self::Compute;
    fn round(x: Self::Compute) -> Self;
    /// In single precision, as caches hold it.
    fn single(self) -> f32;
}

/// A type that the library computes in.
pub(crate) trait Compute: Stored<Compute = Self> + Element {
    /// Attention to a cache.
    fn cached(
        query: View<'_, Self>,
        cache: &KvView<'_>,
        options: &AttentionOptions<'_, Self>,
        outputs: Outputs<'_, Self>,
        workspace: &mut Workspace,
    ) -> Result<Isa>;
}

/// The dtype that `S` is computed in.
pub(crate) fn computed<S: Stored>() -> DType {
    <S::Compute as Stored>::DTYPE
}

/// Whether an array of `S` is computed where it lies.
pub(crate) fn is_in_place<S: Stored>(place: &Strided) -> bool {
    S::DTYPE == computed::<S>() && place.is_direct::<S>() && place.four_axes::<S>().is_some()
}

macro_rules! computed_in_itself {
    ($type:ty, $dtype:ident) => {
        impl Stored for $type {
            type Compute = Self;
            const DTYPE: DType = DType::$dtype;
            fn widen(self) -> Self {
                self
            }
            fn round(x: Self) -> Self {
                x
            }
            fn single(self) -> f32 {
                self as f32
            }
        }
    };
}
computed_in_itself!(f32, F32);
computed_in_itself!(f64, F64);

macro_rules! computed_in_f32 {
    ($type:ty, $dtype:ident) => {
        impl Stored for $type {
            type Compute = f32;
            const DTYPE: DType = DType::$dtype;
            fn widen(self) -> f32 {
                self.to_f32()
            }
            fn round(x: f32) -> Self {
                Self::from_f32(x)
            }
            fn single(self) -> f32 {
                self.to_f32()
            }
        }
    };
}
computed_in_f32!(f16, F16);
computed_in_f32!(bf16, BF16);

impl Compute for f32 {
    fn cached(
        query: View<'_, Self>,
        cache: &KvView<'_>,
        options: &AttentionOptions<'_, Self>,
        outputs: Outputs<'_, Self>,
        workspace: &mut Workspace,
    ) -> Result<Isa> {
        attention_cached_into(query, cache, options, outputs, workspace)
    }
}

impl Compute for f64 {
    fn cached(
        _query: View<'_, Self>,
        _cache: &KvView<'_>,
        _options: &AttentionOptions<'_, Self>,
        _outputs: Outputs<'_, Self>,
        _workspace: &mut Workspace,
    ) -> Result<Isa> {
        Err(headwise::Error::Value {
            argument: "query",
            got: "elements of float64".into(),
            expected: "float32, float16 or bfloat16: caches hold float32".into(),
        })
    }
}
