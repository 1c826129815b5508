//! Scratch memory that outlives a call, so that a call need not allocate.

use crate::element::Element;
use crate::error::{Error, Result};
use crate::lent::Lent;

/// A cache line of floats: the unit of scratch, so that every buffer is aligned.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line([f32; Line::FLOATS]);

impl Line {
    /// Floats in a line.
    pub(crate) const FLOATS: usize = 16;
    /// The lines that hold `floats` floats.
    pub(crate) const fn count(floats: usize) -> usize {
        floats.div_ceil(Self::FLOATS)
    }
}

/// An entry of a table of work.
pub(crate) type Entry = [u64; 3];

/// The lines that hold `lines` lines and, behind them, a table of `count` entries.
pub(crate) fn lines_with_table(lines: usize, count: usize) -> usize {
    lines.saturating_add(count.saturating_mul(size_of::<Entry>()).div_ceil(size_of::<Line>()))
}

/// Reusable scratch memory. It grows to what a call needs and keeps that; a call that finds
/// enough allocates nothing.
#[derive(Debug, Default, Clone)]
pub struct Workspace {
    lines: Memory,
}

/// Whose the memory is.
#[derive(Debug)]
enum Memory {
    /// Ours, which grows.
    Own(Vec<Line>),
    /// The caller's, which does not.
    Lent(Lent),
}

impl Default for Memory {
    fn default() -> Self {
        Self::Own(Vec::new())
    }
}

impl Clone for Memory {
    /// A copy is always ours.
    fn clone(&self) -> Self {
        Self::Own(self.as_slice().to_vec())
    }
}

impl Memory {
    fn as_slice(&self) -> &[Line] {
        match self {
            Self::Own(lines) => lines,
            Self::Lent(lent) => lent.as_slice(),
        }
    }

    /// At least `lines` lines, all that there are.
    fn at_least(&mut self, lines: usize) -> Result<&mut [Line]> {
        match self {
            Self::Own(own) => {
                grow(own, lines)?;
                Ok(own)
            }
            Self::Lent(lent) if lent.as_slice().len() < lines => Err(Error::Exhausted {
                argument: "workspace",
                needed: lines.saturating_mul(size_of::<Line>()),
                free: size_of_val(lent.as_slice()),
                expected: "a block of as many bytes, on a boundary of 64".into(),
            }),
            Self::Lent(lent) => Ok(lent.as_mut_slice()),
        }
    }
}

fn grow(own: &mut Vec<Line>, lines: usize) -> Result<()> {
    if let Some(more) = lines.checked_sub(own.len()).filter(|&more| more > 0) {
        own.try_reserve_exact(more).map_err(|_| Error::Overflow {
            argument: "workspace",
            got: format!("{lines} lines of {} bytes", size_of::<Line>()),
            expected: "an amount of memory that can be had".into(),
        })?;
        prefer_huge_pages(own);
        own.resize(lines, Line([0.0; Line::FLOATS]));
    }
    Ok(())
}

impl Workspace {
    /// An empty workspace; the first call will allocate.
    pub fn new() -> Self {
        Self::default()
    }

    /// A workspace of at least `bytes`, for calls that may not allocate.
    ///
    /// # Errors
    /// [`Error::Overflow`] where there is not as much memory.
    pub fn with_bytes(bytes: usize) -> Result<Self> {
        let mut workspace = Self::new();
        workspace.scratch::<f32>(bytes.div_ceil(size_of::<Line>()))?;
        Ok(workspace)
    }

    /// A workspace in a block of somebody else's, which never grows: the entry for bindings. The
    /// block is filled with zeros, and used from its first boundary of 64 bytes on; a call that needs
    /// more than it holds is refused with [`Error::Exhausted`].
    ///
    /// # Safety
    /// `block` must be valid for reads and writes of `bytes` bytes as long as the workspace lives,
    /// and nobody else may use it meanwhile. With 0 bytes it may be anything.
    pub unsafe fn from_raw_parts(block: *mut u8, bytes: usize) -> Self {
        // SAFETY: the caller's promise.
        Self { lines: Memory::Lent(unsafe { Lent::new(block, bytes) }) }
    }

    /// The bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(self.lines.as_slice())
    }

    /// The first `count` floats, on a cache line's boundary, holding whatever was there.
    ///
    /// # Errors
    /// As [`Workspace::with_bytes`].
    pub fn first(&mut self, count: usize) -> Result<&mut [f32]> {
        Ok(&mut self.scratch(Line::count(count))?[..count])
    }

    /// The first `count` lines' worth of `T`, initialised with whatever was there.
    pub(crate) fn scratch<T: Element>(&mut self, lines: usize) -> Result<&mut [T]> {
        const { assert!(align_of::<T>() <= align_of::<Line>()) };
        let held = self.lines.at_least(lines)?;
        let elements = lines * (size_of::<Line>() / size_of::<T>());
        // SAFETY: `lines` lines exist, aligned for a T; any bits are an f32 or an f64, the only
        // elements there are.
        Ok(unsafe { std::slice::from_raw_parts_mut(held.as_mut_ptr().cast(), elements) })
    }

    /// The first `lines` lines as floats and, behind them, `count` entries of a table, all initialised
    /// with whatever was there.
    pub(crate) fn scratch_and_table(
        &mut self,
        lines: usize,
        count: usize,
    ) -> Result<(&mut [f32], &mut [Entry])> {
        let floats = self.scratch::<f32>(lines_with_table(lines, count))?;
        let (floats, table) = floats.split_at_mut(lines * Line::FLOATS);
        // SAFETY: `table` lines follow, on a line's boundary, enough for `count` entries; any bits
        // are numbers, and the lines are borrowed as long as the entries.
        Ok((floats, unsafe { std::slice::from_raw_parts_mut(table.as_mut_ptr().cast(), count) }))
    }

    /// Everything held, as floats.
    pub fn as_slice(&self) -> &[f32] {
        let lines = self.lines.as_slice();
        let count = lines.len() * Line::FLOATS;
        // SAFETY: a line is nothing but its floats.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), count) }
    }
}

/// Asks for huge pages under what the vector has reserved and not touched yet: packed weights of many
/// megabytes are read faster through fewer pages.
fn prefer_huge_pages(lines: &mut Vec<Line>) {
    #[cfg(all(target_os = "linux", not(miri)))]
    {
        const HUGE: usize = 2 << 20;
        let spare = lines.spare_capacity_mut();
        let bytes = size_of_val(spare);
        let start = spare.as_mut_ptr().cast::<u8>();
        let skipped = start.align_offset(HUGE);
        if let Some(whole) = bytes.checked_sub(skipped).map(|bytes| bytes / HUGE * HUGE)
            && whole > 0
        {
            // SAFETY: the range lies in memory that the vector has reserved, and the advice changes
            // nothing that can be seen in it. It may be refused.
            unsafe { libc::madvise(start.add(skipped).cast(), whole, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = lines;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lent_block_is_used_in_place_and_never_grows() -> Result<()> {
        let mut block = [7_u8; 64 * 4];
        let begin = block.as_ptr() as usize;
        // SAFETY: the block outlives the workspace, and is looked at behind it alone.
        let mut workspace = unsafe { Workspace::from_raw_parts(block.as_mut_ptr(), block.len()) };
        // As the block lies, a part of a line may be lost at its ends.
        assert!([3 * 64, 4 * 64].contains(&workspace.bytes()));
        let first = workspace.first(3 * 16)?;
        assert_eq!(first, [0.0; 48]);
        first.fill(1.0);
        assert!((begin..begin + 64).contains(&(first.as_ptr() as usize)));
        assert_eq!(first.as_ptr() as usize % 64, 0);
        let copy = workspace.clone();
        assert_eq!(copy.as_slice()[..48], [1.0; 48]);
        let refused = workspace.first(65);
        assert!(matches!(refused, Err(Error::Exhausted { needed: 320, .. })), "{refused:?}");
        Ok(())
    }

    #[test]
    fn no_block_holds_nothing() -> Result<()> {
        // SAFETY: of no bytes.
        let mut workspace = unsafe { Workspace::from_raw_parts(std::ptr::null_mut(), 0) };
        assert_eq!(workspace.bytes(), 0);
        assert!(workspace.first(0)?.is_empty());
        assert!(workspace.first(1).is_err());
        Ok(())
    }
}
