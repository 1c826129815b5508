//! How a call ended, and the words for it.

use std::ffi::c_char;
use std::mem::offset_of;

/// How a call ended. Numbers keep their meanings; later versions may add some.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum headwise_status {
    /// It was done.
    Ok = 0,
    /// A null or misaligned pointer, a struct's size, or a number that names nothing.
    Argument = 1,
    /// A tensor's shape does not fit the others.
    Shape = 2,
    /// A tensor's strides cannot be used.
    Stride = 3,
    /// A size does not fit the machine, or there is not as much memory.
    Overflow = 4,
    /// A number is outside its domain.
    Value = 5,
    /// A cache or a workspace has no room; it is as it was.
    Exhausted = 6,
    /// The instruction set is not there.
    Isa = 7,
    /// This library does not do that, or not yet.
    Unsupported = 8,
    /// Another thread is using the cache or the workspace.
    Busy = 9,
    /// A mistake in the library. A cache that the call was changing refuses all that follows; outputs
    /// may be half written.
    Internal = 10,
}

/// Bytes of a message, its end included.
pub const HEADWISE_MESSAGE_SIZE: usize = 496;

/// Where a call says what was wrong: memory of the caller's, such as `headwise_error error = {.size =
/// sizeof error};`. Every call takes NULL for it. There is no other place, and no state.
#[repr(C)]
pub struct headwise_error {
    /// `sizeof(headwise_error)`.
    pub size: usize,
    /// What the call returned.
    pub status: headwise_status,
    /// Zero.
    pub reserved: u32,
    /// In UTF-8, ends with a zero: the argument, what came and what was expected. Empty behind
    /// success, cut short where it is longer than the room.
    pub message: [c_char; HEADWISE_MESSAGE_SIZE],
}

/// What a call was refused with.
#[derive(Debug, PartialEq)]
pub(crate) struct Failure {
    pub(crate) status: headwise_status,
    pub(crate) message: String,
    /// The bytes of workspace with which there would have been none.
    pub(crate) workspace_bytes: Option<usize>,
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub(crate) fn new(status: headwise_status, message: String) -> Self {
        Self { status, message, workspace_bytes: None }
    }

    /// An argument that is nothing the library could look at.
    pub(crate) fn argument(argument: &str, got: impl ToString, expected: impl ToString) -> Self {
        let message = format!("{argument}: {}, expected {}", got.to_string(), expected.to_string());
        Self::new(headwise_status::Argument, message)
    }

    /// Something that this version does not do.
    pub(crate) fn unsupported(argument: &str, got: impl ToString, expected: impl ToString) -> Self {
        Self { status: headwise_status::Unsupported, ..Self::argument(argument, got, expected) }
    }

    /// A mistake of ours.
    pub(crate) fn internal(what: &str) -> Self {
        let message = format!("internal error: {what}; please report it");
        Self::new(headwise_status::Internal, message)
    }

    /// The same about an argument that the library knows by another name.
    pub(crate) fn renamed(mut self, argument: &str) -> Self {
        if let Some((_, rest)) = self.message.split_once(": ") {
            self.message = format!("{argument}: {rest}");
        }
        self
    }
}

impl From<headwise::Error> for Failure {
    fn from(error: headwise::Error) -> Self {
        use headwise::Error;
        let status = match &error {
            Error::Shape { .. } => headwise_status::Shape,
            Error::Stride { .. } => headwise_status::Stride,
            Error::Bounds { .. } | Error::Overflow { .. } => headwise_status::Overflow,
            Error::Exhausted { .. } => headwise_status::Exhausted,
            Error::IsaUnavailable { .. } | Error::IsaName { .. } => headwise_status::Isa,
            _ => headwise_status::Value,
        };
        let workspace_bytes = match &error {
            Error::Exhausted { argument: "workspace", needed, .. } => Some(*needed),
            _ => None,
        };
        Self { status, message: error.to_string(), workspace_bytes }
    }
}

/// Writes how a call ended to `error`, as much as there is room for.
///
/// # Safety
/// `error` must be null, or its first member readable and say how many bytes from there on may be
/// written.
pub(crate) unsafe fn report(error: *mut headwise_error, result: &Result<()>) -> headwise_status {
    let (status, message) = match result {
        Ok(()) => (headwise_status::Ok, ""),
        Err(failure) => (failure.status, failure.message.as_str()),
    };
    if error.is_null() || !error.is_aligned() {
        return status;
    }
    const TEXT: usize = offset_of!(headwise_error, message);
    // SAFETY: the caller's promise; aligned, and not null. No reference is made, since all of the
    // struct need not be there.
    unsafe {
        let room = (*error).size.min(size_of::<headwise_error>());
        if room > TEXT {
            let end = message.floor_char_boundary_at(room - TEXT - 1);
            (&raw mut (*error).status).write(status);
            let text = error.cast::<u8>().add(TEXT);
            text.copy_from_nonoverlapping(message.as_ptr(), end);
            text.add(end).write(0);
        }
    }
    status
}

trait FloorCharBoundary {
    /// The largest boundary between characters up to `at`.
    fn floor_char_boundary_at(&self, at: usize) -> usize;
}

impl FloorCharBoundary for str {
    fn floor_char_boundary_at(&self, at: usize) -> usize {
        let mut end = at.min(self.len());
        while !self.is_char_boundary(end) {
            end -= 1;
        }
        end
    }
}

/// The name of a status, such as "shape"; "unknown" for a number that is none. The text is constant.
#[unsafe(no_mangle)]
pub extern "C" fn headwise_status_name(status: u32) -> *const c_char {
    let names = [
        c"ok",
        c"argument",
        c"shape",
        c"stride",
        c"overflow",
        c"value",
        c"exhausted",
        c"isa",
        c"unsupported",
        c"busy",
        c"internal",
    ];
    names.get(status as usize).unwrap_or(&c"unknown").as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blank(size: usize) -> headwise_error {
        let message = [1; HEADWISE_MESSAGE_SIZE];
        headwise_error { size, status: headwise_status::Ok, reserved: 0, message }
    }

    fn reported(size: usize, message: &str) -> (headwise_error, String) {
        let failure = Failure::new(headwise_status::Value, message.into());
        let mut error = blank(size);
        // SAFETY: a whole struct.
        let status = unsafe { report(&mut error, &Err(failure)) };
        assert_eq!(status, headwise_status::Value);
        let text = error.message.iter().take_while(|&&c| c != 0).map(|&c| c as u8).collect();
        (error, String::from_utf8(text).unwrap_or_default())
    }

    #[test]
    fn messages_are_cut_between_characters_and_end() {
        let whole = size_of::<headwise_error>();
        assert_eq!(reported(whole, "head_dim: 3").1, "head_dim: 3");
        let long = "ä".repeat(400);
        assert_eq!(reported(whole, &long).1, "ä".repeat(247));
        assert_eq!(reported(16 + 6, "äää").1, "ää");
    }

    #[test]
    fn a_struct_without_room_is_left_alone() {
        for size in [0, 8, 16] {
            assert_eq!(reported(size, "x").0.message[0], 1, "{size}");
        }
        // SAFETY: null is allowed.
        assert_eq!(unsafe { report(std::ptr::null_mut(), &Ok(())) }, headwise_status::Ok);
    }
}
