//! What candle's types of numbers are computed in.

use candle_core::{CpuStorage, Layout, Result, WithDType};
use headwise::{AttentionOptions, Element, Input, Storage};

use crate::borrowed::{dtype, view};
use crate::error;

/// A type that is computed in, `f32` or `f64`.
pub(crate) trait Computed: Element + WithDType {
    /// A tensor as a call takes it.
    fn operand<'s>(
        argument: &str,
        storage: &'s CpuStorage,
        layout: &Layout,
    ) -> Result<Input<'s, Self>>;

    /// A call's options.
    fn options_of<'a>(options: AttentionOptions<'a>) -> Result<AttentionOptions<'a, Self>>;
}

impl Computed for f32 {
    fn operand<'s>(
        argument: &str,
        storage: &'s CpuStorage,
        layout: &Layout,
    ) -> Result<Input<'s, Self>> {
        Ok(match storage {
            CpuStorage::F32(_) => view::<f32>(argument, storage, layout)?.into(),
            CpuStorage::F16(_) => view::<half::f16>(argument, storage, layout)?.into(),
            CpuStorage::BF16(_) => view::<half::bf16>(argument, storage, layout)?.into(),
            other => return error::dtype(argument, dtype(other), "F32, F16 or BF16"),
        })
    }

    fn options_of<'a>(options: AttentionOptions<'a>) -> Result<AttentionOptions<'a>> {
        Ok(options)
    }
}

impl Computed for f64 {
    fn operand<'s>(
        argument: &str,
        storage: &'s CpuStorage,
        layout: &Layout,
    ) -> Result<Input<'s, Self>> {
        match storage {
            CpuStorage::F64(_) => Ok(view::<f64>(argument, storage, layout)?.into()),
            other => error::dtype(argument, dtype(other), "F64, as the query"),
        }
    }

    fn options_of<'a>(options: AttentionOptions<'a>) -> Result<AttentionOptions<'a, Self>> {
        options.of_element().map_err(error::from_headwise)
    }
}

/// A type of the numbers in tensors that both libraries have.
pub(crate) trait Number: Storage<Compute: Computed> + WithDType {}
impl<T: Storage<Compute: Computed> + WithDType> Number for T {}
