//! A cache of many sequences in pages that they share.

use super::batch::check_cut;
use super::pages::Pages;
use super::pool::Pool;
use super::sequences::{SequenceId, Sequences};
use super::shape::at_least_one;
use super::{KvShape, KvView, NewTokens, PageTables, TableBuffer, value_error};
use crate::{Error, KvStorage, Result, View};

/// The largest page.
const MAX_PAGE_SIZE: usize = 1024;

/// How much a [`PagedCache`] can hold. All of it is allocated at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagedCapacity {
    /// Pages in all.
    pub pages: usize,
    /// Tokens in a page, 1 to 1024.
    pub page_size: usize,
    /// Sequences at a time.
    pub sequences: usize,
    /// Pages of a sequence at a time.
    pub pages_per_sequence: usize,
}

impl PagedCapacity {
    fn check(&self) -> Result<(u32, u32)> {
        at_least_one("pages_per_sequence", self.pages_per_sequence)?;
        if !(1..=MAX_PAGE_SIZE).contains(&self.page_size) {
            let expected = format!("1 to {MAX_PAGE_SIZE}");
            return Err(value_error("page_size", self.page_size, expected));
        }
        let count = |argument, count| match u32::try_from(count) {
            Ok(count) if count > 0 => Ok(count),
            _ => Err(value_error(argument, count, format!("1 to {}", u32::MAX))),
        };
        Ok((count("pages", self.pages)?, count("sequences", self.sequences)?))
    }
}

/// Keys and values of many sequences, in pages from one pool: `[pages, kv_heads, page_size, dim]`.
/// Sequences that begin alike share pages; a shared page is copied when a sequence appends to it.
///
/// ```
/// use headwise::View;
/// use headwise::kv_cache::{KvShape, NewTokens, PagedCache, PagedCapacity, TableBuffer};
///
/// let shape = KvShape { kv_heads: 1, head_dim: 4, value_dim: 4 };
/// let capacity = PagedCapacity { pages: 8, page_size: 2, sequences: 4, pages_per_sequence: 8 };
/// let mut cache = PagedCache::new(shape, capacity)?;
/// let rows = [0.5_f32; 5 * 4];
/// let prompt = View::bhsd(&rows, [1, 1, 5, 4])?;
/// let token = View::bhsd(&rows, [2, 1, 1, 4])?;
///
/// let a = cache.create()?;
/// cache.append(&[a], &NewTokens::new(prompt, prompt))?; // Three pages.
/// let b = cache.fork(a)?; // The same three.
/// cache.append(&[a, b], &NewTokens::new(token, token))?; // One copies the third.
/// assert_eq!(cache.free_pages(), 8 - 4);
///
/// let mut tables = TableBuffer::new();
/// let view = cache.view(&[b, a], &mut tables)?;
/// assert_eq!(view.tables().lengths, [6, 6]);
/// # Ok::<(), headwise::Error>(())
/// ```
///
/// Nothing but making and [growing](PagedCache::grow) it allocates. Caches that are told the same
/// use the same pages: tables of one layer's cache serve the others'.
#[derive(Debug, Clone)]
pub struct PagedCache<T: KvStorage = f32> {
    pool: Pool<T>,
    pages: Pages,
    sequences: Sequences,
}

impl PagedCache {
    /// An empty cache, in `f32`.
    ///
    /// # Errors
    /// As [`PagedCache::with_storage`].
    pub fn new(shape: KvShape, capacity: PagedCapacity) -> Result<Self> {
        Self::with_storage(shape, capacity)
    }
}

impl<T: KvStorage<Compute = f32>> PagedCache<T> {
    /// An empty cache, whose type says how tokens are stored: `PagedCache::<bf16>::with_storage`.
    ///
    /// # Errors
    /// [`Error::Value`] where an extent is 0, or more than pages of 1024 tokens or numbers of 32
    /// bits allow; [`Error::Overflow`] where there is not as much memory.
    pub fn with_storage(shape: KvShape, capacity: PagedCapacity) -> Result<Self> {
        let (pages, sequences) = capacity.check()?;
        Ok(Self {
            pool: Pool::new(shape, capacity.pages, capacity.page_size)?,
            pages: Pages::new(pages)?,
            sequences: Sequences::new(sequences, capacity.pages_per_sequence)?,
        })
    }

    /// What a token is.
    pub fn shape(&self) -> KvShape {
        self.pool.shape()
    }

    /// How much there can be.
    pub fn capacity(&self) -> PagedCapacity {
        PagedCapacity {
            pages: self.pool.pages(),
            page_size: self.pool.page_size(),
            sequences: self.sequences.count(),
            pages_per_sequence: self.sequences.width(),
        }
    }

    /// The pages that no sequence holds.
    pub fn free_pages(&self) -> usize {
        self.pages.free()
    }

    /// How many sequences can be created.
    pub fn free_sequences(&self) -> usize {
        self.sequences.free()
    }

    /// The tokens of a sequence, those that were evicted included.
    ///
    /// # Errors
    /// [`Error::Value`] where there is no such sequence.
    pub fn length(&self, sequence: SequenceId) -> Result<usize> {
        self.sequences.find(sequence).map(|slot| self.sequences.length(slot))
    }

    /// The first position of a sequence that still exists.
    ///
    /// # Errors
    /// [`Error::Value`] where there is no such sequence.
    pub fn start(&self, sequence: SequenceId) -> Result<usize> {
        self.sequences.find(sequence).map(|slot| self.sequences.start(slot))
    }

    /// The pages of a sequence in the order of its positions, the first holding the first that
    /// exists.
    ///
    /// # Errors
    /// [`Error::Value`] where there is no such sequence.
    pub fn pages(&self, sequence: SequenceId) -> Result<&[u32]> {
        self.sequences.find(sequence).map(|slot| self.sequences.pages(slot))
    }

    /// The pool of keys, `[pages, kv_heads, page_size, head_dim]`.
    pub fn key(&self) -> View<'_, T> {
        self.pool.key()
    }

    /// The pool of values, `[pages, kv_heads, page_size, value_dim]`.
    pub fn value(&self) -> View<'_, T> {
        self.pool.value()
    }

    /// Fills a buffer with the page tables of these sequences, in this order; with room enough it
    /// allocates nothing.
    ///
    /// # Errors
    /// [`Error::Value`] where there is no such sequence, [`Error::Overflow`] where there is no memory
    /// for the tables. The buffer is as it was then.
    pub fn fill_tables(&self, sequences: &[SequenceId], tables: &mut TableBuffer) -> Result<()> {
        let mut pages = 0_usize;
        for &id in sequences {
            pages = pages.saturating_add(self.pages(id)?.len());
        }
        tables.reserve(sequences.len(), pages)?;
        tables.clear();
        for &id in sequences {
            let slot = self.sequences.find(id)?;
            let (start, length) = (self.sequences.start(slot), self.sequences.length(slot));
            let first = start / self.pool.page_size();
            tables.push(self.sequences.pages(slot), first, length, start);
        }
        Ok(())
    }

    /// What attention reads: these sequences, in this order.
    ///
    /// # Errors
    /// As [`PagedCache::fill_tables`].
    pub fn view<'a>(
        &'a self,
        sequences: &[SequenceId],
        tables: &'a mut TableBuffer,
    ) -> Result<KvView<'a, T>> {
        self.fill_tables(sequences, tables)?;
        Ok(KvView::of_cache(self.key(), self.value(), tables.tables()))
    }

    /// What attention reads, by tables that were filled before: of this cache, or of that of another
    /// layer which has been told the same.
    ///
    /// # Errors
    /// As [`KvView::new`].
    pub fn view_by<'a>(&'a self, tables: PageTables<'a>) -> Result<KvView<'a, T>> {
        KvView::new(self.key(), self.value(), tables)
    }

    /// An empty sequence.
    ///
    /// # Errors
    /// [`Error::Exhausted`] where there are as many as there can be.
    pub fn create(&mut self) -> Result<SequenceId> {
        self.sequences.create().map(|(id, _)| id)
    }

    /// A sequence that begins as this one is: it holds the same pages, and copies nothing.
    ///
    /// # Errors
    /// [`Error::Value`] where there is no such sequence, [`Error::Exhausted`] where there are as
    /// many as there can be.
    pub fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId> {
        let from = self.sequences.find(sequence)?;
        let (id, to) = self.sequences.create()?;
        self.sequences.copy(from, to);
        self.sequences.pages(to).iter().for_each(|&page| self.pages.share(page));
        Ok(id)
    }

    /// Appends to sequences, each named once, in the order of the tokens. A last page that others
    /// hold too is copied first, and no other page ever is.
    ///
    /// # Errors
    /// [`Error::Exhausted`] where there are not enough free pages, or a sequence would have more
    /// than it can; [`Error::Value`] where a sequence is not there or named twice;
    /// [`Error::Shape`] or [`Error::Value`] where the tokens do not fit the cache, their norm or
    /// their rope. The cache is as it was then.
    pub fn append(&mut self, sequences: &[SequenceId], tokens: &NewTokens<'_>) -> Result<()> {
        tokens.check(self.shape(), sequences.len())?;
        self.sequences.next_call();
        self.pages.next_call();
        let mut needed = 0_usize;
        for (nth, &id) in sequences.iter().enumerate() {
            needed = needed.saturating_add(self.check_append(id, nth, tokens)?);
        }
        if needed > self.free_pages() {
            return Err(Error::Exhausted {
                argument: "pages",
                needed,
                free: self.free_pages(),
                expected: "pages to be freed, or the cache to be grown".into(),
            });
        }
        for (nth, &id) in sequences.iter().enumerate() {
            let slot = self.sequences.find(id)?;
            self.write(slot, nth, tokens);
        }
        Ok(())
    }

    /// How many pages the call's sequence `nth` needs.
    fn check_append(
        &mut self,
        id: SequenceId,
        nth: usize,
        tokens: &NewTokens<'_>,
    ) -> Result<usize> {
        let slot = self.sequences.find(id)?;
        if !self.sequences.first(slot) {
            return Err(value_error("sequences", format!("{id:?} twice"), "each sequence once"));
        }
        let (run, length) = (tokens.run(nth), self.sequences.length(slot));
        let size = self.pool.page_size();
        let Some(after) = length.checked_add(run.count) else {
            let got = format!("{length} tokens and {}", run.count);
            return Err(value_error("length", got, format!("at most {}", usize::MAX)));
        };
        let new = after.div_ceil(size) - length.div_ceil(size);
        let room = self.sequences.width() - self.sequences.pages(slot).len();
        if new > room {
            return Err(Error::Exhausted {
                argument: "pages_per_sequence",
                needed: new,
                free: room,
                expected: format!("at most {} pages of {id:?}", self.sequences.width()),
            });
        }
        tokens.check_positions(run, length)?;
        let partial = run.count > 0 && !length.is_multiple_of(size);
        let last = self.sequences.last_page(slot).filter(|_| partial);
        Ok(new + usize::from(last.is_some_and(|page| self.pages.claim(page))))
    }

    fn write(&mut self, slot: usize, nth: usize, tokens: &NewTokens<'_>) {
        let (run, length) = (tokens.run(nth), self.sequences.length(slot));
        let size = self.pool.page_size();
        let mut token = 0;
        while token < run.count {
            let row = (length + token) % size;
            let page = if row == 0 { self.add_page(slot) } else { self.own_last_page(slot, row) };
            let next = run.count.min(token + size - row);
            tokens.write((run, length), token..next, &mut self.pool, (page, row));
            token = next;
        }
        self.sequences.set_length(slot, length + run.count);
    }

    /// A page that there is: the call counted them.
    fn take(&mut self) -> u32 {
        self.pages.take().unwrap_or_else(|| unreachable!("a page that was counted is not there"))
    }

    fn add_page(&mut self, slot: usize) -> usize {
        let page = self.take();
        self.sequences.push_page(slot, page);
        page as usize
    }

    /// The last page of a sequence, of which `rows` are full: a copy of it where others hold it.
    fn own_last_page(&mut self, slot: usize, rows: usize) -> usize {
        match self.sequences.last_page(slot) {
            Some(page) if !self.pages.is_shared(page) => page as usize,
            Some(shared) => {
                self.sequences.pop_page(slot);
                let page = self.add_page(slot);
                self.pool.copy(shared as usize, page, 0..rows);
                self.pages.release(shared);
                page
            }
            None => unreachable!("a page with {rows} rows is held"),
        }
    }

    /// Forgets the tokens of a sequence from position `length` on, such as rejected drafts.
    ///
    /// # Errors
    /// [`Error::Value`] where there is no such sequence, or `length` is not among the positions
    /// that exist.
    pub fn truncate(&mut self, sequence: SequenceId, length: usize) -> Result<()> {
        let slot = self.sequences.find(sequence)?;
        let start = self.sequences.start(slot);
        check_cut("length", length, (start, self.sequences.length(slot)))?;
        let size = self.pool.page_size();
        let kept = length.div_ceil(size) - start / size;
        while self.sequences.pages(slot).len() > kept {
            self.sequences.pop_page(slot).into_iter().for_each(|page| self.release(page));
        }
        let rows = length % size;
        let last = self.sequences.last_page(slot).filter(|&page| !self.pages.is_shared(page));
        if let Some(page) = last.filter(|_| rows > 0) {
            self.pool.poison(page as usize, rows..size);
        }
        self.sequences.set_length(slot, length);
        Ok(())
    }

    /// Forgets the tokens of a sequence before position `before`, and lets go of the pages that held
    /// nothing else; positions count on.
    ///
    /// # Errors
    /// [`Error::Value`] where there is no such sequence, or `before` is not among the positions
    /// that exist.
    pub fn evict(&mut self, sequence: SequenceId, before: usize) -> Result<()> {
        let slot = self.sequences.find(sequence)?;
        let start = self.sequences.start(slot);
        check_cut("before", before, (start, self.sequences.length(slot)))?;
        let size = self.pool.page_size();
        let gone = before / size - start / size;
        for nth in 0..gone {
            self.release(self.sequences.pages(slot)[nth]);
        }
        self.sequences.drop_first_pages(slot, gone);
        self.sequences.set_start(slot, before);
        Ok(())
    }

    /// Forgets a sequence. Its name means nothing any more.
    ///
    /// # Errors
    /// [`Error::Value`] where there is no such sequence.
    pub fn free(&mut self, sequence: SequenceId) -> Result<()> {
        let slot = self.sequences.find(sequence)?;
        while let Some(page) = self.sequences.pop_page(slot) {
            self.release(page);
        }
        self.sequences.free_slot(slot);
        Ok(())
    }

    fn release(&mut self, page: u32) {
        if self.pages.release(page) {
            self.pool.poison(page as usize, 0..self.pool.page_size());
        }
    }

    /// Grows what there can be, by copying all pages to new memory. Sequences keep their names and
    /// pages.
    ///
    /// # Errors
    /// [`Error::Value`] where a number is less than now, or the page size another;
    /// [`Error::Overflow`] where there is not as much memory. The cache is as it was then.
    pub fn grow(&mut self, capacity: PagedCapacity) -> Result<()> {
        let (pages, sequences) = capacity.check()?;
        let now = self.capacity();
        let grown = capacity.pages >= now.pages
            && capacity.page_size == now.page_size
            && capacity.sequences >= now.sequences
            && capacity.pages_per_sequence >= now.pages_per_sequence;
        if !grown {
            let expected = format!("the same page size and no less than {now:?}");
            return Err(value_error("capacity", format!("{capacity:?}"), expected));
        }
        if capacity.pages > now.pages {
            let pool = self.pool.with_pages(capacity.pages)?;
            self.pages.reserve(pages)?;
            self.sequences.grow(sequences, capacity.pages_per_sequence)?;
            self.pool = pool;
            self.pages.grow(pages);
            return Ok(());
        }
        self.sequences.grow(sequences, capacity.pages_per_sequence)
    }
}
