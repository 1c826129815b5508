//! Scratch memory that outlives a call, so that a call need not allocate.

use crate::element::Element;
use crate::error::{Error, Result};

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
    lines: Vec<Line>,
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

    /// The bytes held.
    pub fn bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
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
        if let Some(more) = lines.checked_sub(self.lines.len()) {
            self.lines.try_reserve_exact(more).map_err(|_| Error::Overflow {
                argument: "workspace",
                got: format!("{lines} lines of {} bytes", size_of::<Line>()),
                expected: "an amount of memory that can be had".into(),
            })?;
            prefer_huge_pages(&mut self.lines);
            self.lines.resize(lines, Line([0.0; Line::FLOATS]));
        }
        let elements = lines * (size_of::<Line>() / size_of::<T>());
        // SAFETY: `lines` lines exist, aligned for a T; any bits are an f32 or an f64, the only
        // elements there are.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), elements) })
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
        let count = self.lines.len() * Line::FLOATS;
        // SAFETY: a line is nothing but its floats.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), count) }
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
