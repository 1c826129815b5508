//! Structs that grow. The first member says how long the caller's is: a shorter one, of an older
//! header, has zeros in the rest, which ask for nothing; of a longer one the rest must be zero, since
//! what it asks for is not known here.

use crate::pointer;
use crate::status::{Failure, Result};

/// A struct whose first member is its size.
///
/// # Safety
/// It must be `repr(C)`, begin with `size: usize`, and be valid for any bytes.
pub(crate) unsafe trait Growing: Copy {
    const NAME: &'static str;
    /// Its size in the first version that had it.
    const LEAST: usize;
}

/// `growing!(headwise_options, ..=algorithm: u32)`: in its first version the last member was
/// `algorithm`. `growing!(headwise_options, ..=algorithm: u32, now ..=rope: *const headwise_rope)`: and
/// now it is `rope`. Neither leaves padding at the end, in which an older caller may have anything.
macro_rules! growing {
    ($name:ident, ..=$last:ident: $ty:ty) => {
        growing!($name, ..=$last: $ty, now ..=$last: $ty);
    };
    ($name:ident, ..=$first:ident: $first_ty:ty, now ..=$last:ident: $last_ty:ty) => {
        // SAFETY: of plain numbers and pointers, `size` first.
        unsafe impl $crate::sized::Growing for $name {
            const NAME: &'static str = stringify!($name);
            const LEAST: usize = std::mem::offset_of!($name, $first) + size_of::<$first_ty>();
        }
        const _: () = {
            let end = std::mem::offset_of!($name, $last) + size_of::<$last_ty>();
            assert!(std::mem::offset_of!($name, size) == 0);
            assert!(end == size_of::<$name>());
        };
    };
}
pub(crate) use growing;

/// Longer than any struct will grow: a size that was never set.
const LONGEST: usize = 1 << 16;

/// The caller's struct.
///
/// # Safety
/// Not null, `pointer` must point at `T`'s first member, and as many bytes as that says be readable.
pub(crate) unsafe fn read<T: Growing>(argument: &str, pointer: *const T) -> Result<T> {
    pointer::check(argument, pointer, T::NAME)?;
    // SAFETY: the caller's promise; aligned, and not null.
    let size = unsafe { pointer.cast::<usize>().read() };
    if !(T::LEAST..=LONGEST).contains(&size) {
        let expected = format!("sizeof({}), at least {}", T::NAME, T::LEAST);
        return Err(Failure::argument(&format!("{argument}.size"), size, expected));
    }
    let known = size.min(size_of::<T>());
    let mut own = std::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: the caller's promise of `size` bytes, of which `known` fit; zeros and the caller's
    // bytes are a value by the trait's promise.
    let (own, rest) = unsafe {
        let bytes = pointer.cast::<u8>();
        own.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(bytes, known);
        (own.assume_init(), std::slice::from_raw_parts(bytes.add(known), size - known))
    };
    if let Some(byte) = rest.iter().position(|&byte| byte != 0) {
        let got = format!("something in byte {} of {size}", known + byte);
        let expected = format!("zeros behind the {known} bytes that this version knows");
        return Err(Failure::unsupported(argument, got, expected));
    }
    Ok(own)
}

/// As [`read`], with null for a struct that asks for nothing.
///
/// # Safety
/// As of [`read`].
pub(crate) unsafe fn read_or_zero<T: Growing>(argument: &str, pointer: *const T) -> Result<T> {
    if pointer.is_null() {
        // SAFETY: zeros are a value by the trait's promise.
        return Ok(unsafe { std::mem::zeroed() });
    }
    // SAFETY: the caller's promise.
    unsafe { read(argument, pointer) }
}

/// Refuses a member that is not used yet unless it is zero, as it must be to be used later.
pub(crate) fn check_reserved(argument: &str, reserved: u32) -> Result<()> {
    if reserved == 0 {
        return Ok(());
    }
    Err(Failure::unsupported(&format!("{argument}.reserved"), reserved, "0"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::headwise_status;

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct grown {
        size: usize,
        old: u64,
        new: u64,
    }
    growing!(grown, ..=old: u64, now ..=new: u64);

    #[test]
    fn the_first_version_stays() {
        assert_eq!((grown::LEAST, size_of::<grown>()), (16, 24));
        let grown { size, old, new } = grown { size: 24, old: 1, new: 2 };
        assert_eq!((size, old, new), (24, 1, 2));
    }

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct v2 {
        size: usize,
        old: u64,
        new: u64,
    }
    // SAFETY: of plain numbers, the size first.
    unsafe impl Growing for v2 {
        const NAME: &'static str = "v2";
        const LEAST: usize = 16;
    }

    fn read_words(words: &[u64]) -> Result<v2> {
        // SAFETY: no size in these tests is longer than the words.
        unsafe { read("options", words.as_ptr().cast()) }
    }

    #[test]
    fn older_newer_and_neither() {
        let got = |words: &[u64]| read_words(words).map(|v2 { old, new, .. }| (old, new));
        assert_eq!(got(&[16, 5, 9]), Ok((5, 0)), "an older caller's");
        assert_eq!(got(&[24, 5, 9]), Ok((5, 9)));
        assert_eq!(got(&[32, 5, 9, 0]), Ok((5, 9)), "a newer one's that asks for nothing new");
        let status = |words: &[u64]| read_words(words).err().map(|failure| failure.status);
        assert_eq!(status(&[32, 5, 9, 1]), Some(headwise_status::Unsupported));
        assert_eq!(status(&[0, 5, 9]), Some(headwise_status::Argument));
        assert_eq!(status(&[u64::MAX, 5, 9]), Some(headwise_status::Argument));
    }
}
