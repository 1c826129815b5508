//! Pointers of the caller's: checked for what can be seen of them.

use crate::status::{Failure, Result};

/// Refuses a null pointer, and one between two elements.
pub(crate) fn check<T>(argument: &str, pointer: *const T, expected: impl ToString) -> Result<()> {
    if pointer.is_null() {
        return Err(Failure::argument(argument, "a null pointer", expected));
    }
    check_aligned(argument, pointer)
}

/// Refuses a pointer between two elements.
pub(crate) fn check_aligned<T>(argument: &str, pointer: *const T) -> Result<()> {
    if pointer.is_aligned() {
        return Ok(());
    }
    let expected = format!("an address that {} divides", align_of::<T>());
    Err(Failure::argument(argument, format!("address {pointer:p}"), expected))
}

/// What a pointer points at, or `None` for null.
///
/// # Safety
/// Not null, it must point at a `T` that nobody writes to for `'a`.
pub(crate) unsafe fn optional<'a, T>(argument: &str, pointer: *const T) -> Result<Option<&'a T>> {
    if pointer.is_null() {
        return Ok(None);
    }
    check_aligned(argument, pointer)?;
    // SAFETY: the caller's promise; aligned, and not null.
    Ok(Some(unsafe { &*pointer }))
}

/// What a pointer points at.
///
/// # Safety
/// As of [`optional`].
pub(crate) unsafe fn required<'a, T>(
    argument: &str,
    pointer: *const T,
    expected: &str,
) -> Result<&'a T> {
    check(argument, pointer, expected)?;
    // SAFETY: the caller's promise; aligned, and not null.
    Ok(unsafe { &*pointer })
}

/// `count` elements.
///
/// # Safety
/// Not null, `data` must point at as many, which nobody writes to for `'a`.
pub(crate) unsafe fn slice<'a, T>(
    argument: &str,
    data: *const T,
    count: usize,
) -> Result<Option<&'a [T]>> {
    if data.is_null() && count == 0 {
        return Ok(None);
    }
    check(argument, data, format_args!("{count} elements"))?;
    if count.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
        let expected = format!("at most {}", isize::MAX as usize / size_of::<T>());
        return Err(Failure::argument(argument, format!("{count} elements"), expected));
    }
    // SAFETY: the caller's promise; aligned, not null, and no larger than memory.
    Ok(Some(unsafe { std::slice::from_raw_parts(data, count) }))
}

/// Writes to where the caller wants a result, if anywhere.
///
/// # Safety
/// Not null, `pointer` must be valid for a write.
pub(crate) unsafe fn give<T>(argument: &str, pointer: *mut T, value: T) -> Result<()> {
    if pointer.is_null() {
        return Ok(());
    }
    check_aligned(argument, pointer)?;
    // SAFETY: the caller's promise; aligned, and not null.
    unsafe { pointer.write(value) };
    Ok(())
}

/// As [`give`], where the result is all that a call is for.
///
/// # Safety
/// As of [`give`].
pub(crate) unsafe fn give_required<T>(
    argument: &str,
    pointer: *mut T,
    value: impl FnOnce() -> Result<T>,
) -> Result<()> {
    check(argument, pointer, "where the result goes")?;
    // SAFETY: the caller's promise.
    unsafe { give(argument, pointer, value()?) }
}

/// A handle for what was made, behind `handle`.
///
/// # Safety
/// Not null, `handle` must be valid for a write.
pub(crate) unsafe fn give_handle<T>(
    argument: &str,
    handle: *mut *mut T,
    make: impl FnOnce() -> Result<T>,
) -> Result<()> {
    check(argument, handle, "where the handle goes")?;
    // SAFETY: the caller's promise; aligned, and not null. Whatever happens the handle is one that
    // may be freed.
    unsafe {
        handle.write(std::ptr::null_mut());
        handle.write(Box::into_raw(Box::new(make()?)));
    }
    Ok(())
}

/// Frees a handle and makes it null; null, or a null handle, is nothing to do.
///
/// # Safety
/// Not null, `handle` must be valid for a read and a write, and hold null or what
/// [`give_handle`] gave and nobody uses.
pub(crate) unsafe fn free_handle<T>(handle: *mut *mut T) {
    if handle.is_null() || !handle.is_aligned() {
        return;
    }
    // SAFETY: the caller's promise; aligned, and not null.
    let inner = unsafe { handle.replace(std::ptr::null_mut()) };
    if !inner.is_null() {
        // SAFETY: the caller's promise: a box that nobody else has any more.
        drop(unsafe { Box::from_raw(inner) });
    }
}
