//! A block of the caller's memory as lines of scratch.

use std::ptr::NonNull;

use crate::workspace::Line;

/// The whole lines of a block, all initialised.
#[derive(Debug)]
pub(crate) struct Lent {
    lines: NonNull<Line>,
    len: usize,
}

// SAFETY: the block is this one's alone, as a vector's would be.
unsafe impl Send for Lent {}
// SAFETY: sharing it gives out shared slices alone.
unsafe impl Sync for Lent {}

impl Lent {
    /// The lines of `block`, filled with zeros.
    ///
    /// # Safety
    /// `block` must be valid for reads and writes of `bytes` bytes as long as this lives, and nobody
    /// else may use it meanwhile. With 0 bytes it may be anything.
    pub(crate) unsafe fn new(block: *mut u8, bytes: usize) -> Self {
        let skipped = if bytes == 0 { 0 } else { block.align_offset(align_of::<Line>()) };
        let len = bytes.saturating_sub(skipped) / size_of::<Line>();
        if len == 0 {
            return Self { lines: NonNull::dangling(), len };
        }
        // SAFETY: the lines lie within the block, behind what was skipped, and on a boundary; of a
        // block that holds something the address is not null.
        let lines = unsafe {
            let first = block.add(skipped);
            first.write_bytes(0, len * size_of::<Line>());
            NonNull::new_unchecked(first.cast())
        };
        Self { lines, len }
    }

    pub(crate) fn as_slice(&self) -> &[Line] {
        // SAFETY: `new` was promised this memory, and initialised it.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr(), self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [Line] {
        // SAFETY: as above, and borrowed as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_ptr(), self.len) }
    }
}
