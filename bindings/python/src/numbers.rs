//! Lists of integers and of floats: Python sequences, or arrays of any integer or float type.

use pyo3::prelude::*;

use crate::array::{Array, DType, gather};
use crate::error;

/// Whole numbers from 0 on.
pub(crate) fn sizes(argument: &str, object: &Bound<'_, PyAny>) -> PyResult<Vec<usize>> {
    integers(argument, object)?
        .into_iter()
        .map(|x| {
            usize::try_from(x).map_err(|_| error::value(argument, x, "whole numbers from 0 on"))
        })
        .collect()
}

/// Whole numbers, in the order of an array's elements.
pub(crate) fn integers(argument: &str, object: &Bound<'_, PyAny>) -> PyResult<Vec<i64>> {
    if let Some(array) = Array::try_of(argument, object)? {
        let place = &array.place;
        // SAFETY: the array lies there as long as `array`, of the dtype that it says.
        return unsafe {
            match place.dtype {
                DType::I8 => gather(place, |x: i8| x.into()),
                DType::I16 => gather(place, |x: i16| x.into()),
                DType::I32 => gather(place, |x: i32| x.into()),
                DType::I64 => gather(place, |x: i64| x),
                DType::U8 => gather(place, |x: u8| x.into()),
                DType::U16 => gather(place, |x: u16| x.into()),
                DType::U32 => gather(place, |x: u32| x.into()),
                // Beyond i64 no number is a size.
                DType::U64 => gather(place, |x: u64| x.try_into().unwrap_or(i64::MAX)),
                other => Err(error::kind(argument, format_args!("{other}s"), "integers")),
            }
        };
    }
    object
        .try_iter()
        .and_then(|items| items.map(|item| item?.extract()).collect())
        .map_err(|e| error::kind(argument, e.value(object.py()), "integers"))
}

/// Numbers of single precision, in the order of an array's elements.
pub(crate) fn floats(argument: &str, object: &Bound<'_, PyAny>) -> PyResult<Vec<f32>> {
    if let Some(array) = Array::try_of(argument, object)? {
        let place = &array.place;
        // SAFETY: as above.
        return unsafe {
            match place.dtype {
                DType::F32 => gather(place, |x: f32| x),
                DType::F64 => gather(place, |x: f64| x as f32),
                DType::F16 => gather(place, headwise::f16::to_f32),
                DType::BF16 => gather(place, headwise::bf16::to_f32),
                other => Err(error::kind(argument, format_args!("{other}s"), "floats")),
            }
        };
    }
    object
        .try_iter()
        .and_then(|items| items.map(|item| item?.extract()).collect())
        .map_err(|e| error::kind(argument, e.value(object.py()), "floats"))
}
