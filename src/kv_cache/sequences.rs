//! The sequences of a paged cache, and the pages of each.

use super::lists::reserve;
use super::marks::Marks;
use super::value_error;
use crate::{Error, Result};

/// A sequence of a [`PagedCache`](super::PagedCache). Once the sequence is freed, the name means
/// nothing, even where another has taken its place. Caches that are told the same give the same
/// names, so that one serves all layers of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SequenceId {
    slot: u32,
    generation: u64,
}

impl SequenceId {
    /// The name as numbers, for who cannot hold it otherwise, such as a caller from another language:
    /// the sequence's place, and how many had it before.
    ///
    /// ```
    /// use headwise::kv_cache::{KvShape, PagedCache, PagedCapacity, SequenceId};
    ///
    /// let shape = KvShape { kv_heads: 1, head_dim: 4, value_dim: 4 };
    /// let capacity = PagedCapacity { pages: 1, page_size: 16, sequences: 1, pages_per_sequence: 1 };
    /// let mut cache = PagedCache::new(shape, capacity)?;
    /// let gone = cache.create()?.to_raw();
    /// cache.free(SequenceId::from_raw(gone))?;
    /// assert_ne!(cache.create()?.to_raw(), gone);
    /// assert!(cache.length(SequenceId::from_raw(gone)).is_err());
    /// # Ok::<(), headwise::Error>(())
    /// ```
    pub fn to_raw(self) -> (u32, u64) {
        (self.slot, self.generation)
    }

    /// The name of these numbers. Where no cache gave it, it names nothing, and calls refuse it.
    pub fn from_raw((slot, generation): (u32, u64)) -> Self {
        Self { slot, generation }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// How often the slot has been freed.
    generation: u64,
    live: bool,
    start: usize,
    length: usize,
    /// The pages held.
    pages: usize,
}

#[derive(Debug, Clone)]
pub(super) struct Sequences {
    slots: Vec<Slot>,
    /// The free slots; the last is taken first.
    free: Vec<u32>,
    /// `width` entries for each slot.
    tables: Vec<u32>,
    width: usize,
    marks: Marks,
}

impl Sequences {
    /// Room for `count` sequences of at most `width` pages.
    pub(super) fn new(count: u32, width: usize) -> Result<Self> {
        let mut sequences = Self {
            slots: Vec::new(),
            free: Vec::new(),
            tables: Vec::new(),
            width: 0,
            marks: Marks::default(),
        };
        sequences.grow(count, width)?;
        Ok(sequences)
    }

    /// Room for `count` sequences of at most `width` pages, both no less than now. Where there is no
    /// memory for it, nothing is changed.
    pub(super) fn grow(&mut self, count: u32, width: usize) -> Result<()> {
        let slots = count as usize;
        let mut tables = Vec::new();
        let size = slots.checked_mul(width);
        if size.is_none_or(|size| tables.try_reserve_exact(size).is_err()) {
            return Err(Error::Overflow {
                argument: "pages_per_sequence",
                got: format!("tables of {slots} sequences of {width} pages"),
                expected: "an amount of memory that can be had".into(),
            });
        }
        let (old, free) = (self.slots.len(), self.free.len());
        reserve("sequences", &mut self.slots, slots - old)?;
        reserve("sequences", &mut self.free, slots - free)?;
        self.marks.reserve(slots)?;
        tables.resize(slots * width, 0);
        for slot in 0..self.slots.len() {
            let pages = self.pages(slot);
            tables[slot * width..][..pages.len()].copy_from_slice(pages);
        }
        (self.tables, self.width) = (tables, width);
        self.free.extend((old as u32..count).rev());
        self.free.rotate_right(slots - old);
        self.slots.resize(slots, Slot::default());
        self.marks.grow(slots);
        Ok(())
    }

    pub(super) fn count(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// An empty sequence.
    pub(super) fn create(&mut self) -> Result<(SequenceId, usize)> {
        let Some(slot) = self.free.pop() else {
            let expected = "a sequence to be freed, or the cache to be grown".into();
            return Err(Error::Exhausted { argument: "sequences", needed: 1, free: 0, expected });
        };
        let generation = self.slots[slot as usize].generation;
        self.slots[slot as usize] = Slot { generation, live: true, ..Slot::default() };
        Ok((SequenceId { slot, generation }, slot as usize))
    }

    /// The slot of a sequence.
    pub(super) fn find(&self, id: SequenceId) -> Result<usize> {
        let slot = id.slot as usize;
        match self.slots.get(slot) {
            Some(found) if found.live && found.generation == id.generation => Ok(slot),
            _ => {
                let got = format!("{id:?}");
                Err(value_error("sequence", got, "one that was created here and not freed"))
            }
        }
    }

    /// Frees a slot whose pages have been released.
    pub(super) fn free_slot(&mut self, slot: usize) {
        let found = &mut self.slots[slot];
        (found.live, found.pages) = (false, 0);
        found.generation += 1;
        self.free.push(slot as u32);
    }

    pub(super) fn next_call(&mut self) {
        self.marks.next_call();
    }

    /// Whether the call names the slot for the first time.
    pub(super) fn first(&mut self, slot: usize) -> bool {
        self.marks.first(slot)
    }

    pub(super) fn start(&self, slot: usize) -> usize {
        self.slots[slot].start
    }

    pub(super) fn length(&self, slot: usize) -> usize {
        self.slots[slot].length
    }

    pub(super) fn set_start(&mut self, slot: usize, start: usize) {
        self.slots[slot].start = start;
    }

    pub(super) fn set_length(&mut self, slot: usize, length: usize) {
        self.slots[slot].length = length;
    }

    /// The pages of a slot, the first being that of its start.
    pub(super) fn pages(&self, slot: usize) -> &[u32] {
        &self.tables[slot * self.width..][..self.slots[slot].pages]
    }

    pub(super) fn last_page(&self, slot: usize) -> Option<u32> {
        self.pages(slot).last().copied()
    }

    /// Adds a page, which there is room for.
    pub(super) fn push_page(&mut self, slot: usize, page: u32) {
        let pages = self.slots[slot].pages;
        self.tables[slot * self.width..][..self.width][pages] = page;
        self.slots[slot].pages += 1;
    }

    /// Takes the last page away.
    pub(super) fn pop_page(&mut self, slot: usize) -> Option<u32> {
        let page = self.last_page(slot)?;
        self.slots[slot].pages -= 1;
        Some(page)
    }

    /// Takes the first pages away.
    pub(super) fn drop_first_pages(&mut self, slot: usize, count: usize) {
        let pages = self.slots[slot].pages;
        self.tables[slot * self.width..][..pages].copy_within(count.., 0);
        self.slots[slot].pages -= count;
    }

    /// Gives an empty slot the tokens and the pages of another.
    pub(super) fn copy(&mut self, from: usize, to: usize) {
        let Slot { start, length, pages, .. } = self.slots[from];
        let table = from * self.width..from * self.width + pages;
        self.tables.copy_within(table, to * self.width);
        self.slots[to] = Slot { start, length, pages, ..self.slots[to] };
    }
}
