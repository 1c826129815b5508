//! Where panics stop.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::status::{Failure, Result, headwise_error, headwise_status, report};

/// Runs a call, and says how it ended: a panic as a failure of the library's. Handles notice by
/// their locks that a call which wrote to them did not end.
///
/// # Safety
/// As of [`report`].
pub(crate) unsafe fn guard(
    error: *mut headwise_error,
    call: impl FnOnce() -> Result<()>,
) -> headwise_status {
    let result = catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|panic| Err(Failure::internal(text(&*panic))));
    // SAFETY: the caller's promise.
    unsafe { report(error, &result) }
}

/// What a panic said.
fn text(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_status() {
        // SAFETY: null is allowed.
        let status = unsafe { guard(std::ptr::null_mut(), || panic!("of a test, on purpose")) };
        assert_eq!(status, headwise_status::Internal);
    }
}
