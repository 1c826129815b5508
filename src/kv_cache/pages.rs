//! Which pages are free, and how many sequences hold each of the others.

use super::lists::reserve;
use crate::Result;

/// The book-keeping of a pool of pages. Two that are told the same give out the same pages.
#[derive(Debug, Clone)]
pub(super) struct Pages {
    /// The sequences that hold each page.
    holders: Vec<u32>,
    /// The free pages; the last is taken first.
    free: Vec<u32>,
    /// For each page, a call and the sequences that it has seen append to the page.
    claims: Vec<(u64, u32)>,
    call: u64,
}

impl Pages {
    pub(super) fn new(count: u32) -> Result<Self> {
        let mut pages = Self { holders: Vec::new(), free: Vec::new(), claims: Vec::new(), call: 0 };
        pages.reserve(count)?;
        pages.grow(count);
        Ok(pages)
    }

    /// Has the memory for `count` pages in all, which are no less than now, and for all of them to be
    /// free.
    pub(super) fn reserve(&mut self, count: u32) -> Result<()> {
        let (count, old) = (count as usize, self.holders.len());
        reserve("pages", &mut self.holders, count - old)?;
        reserve("pages", &mut self.claims, count - old)?;
        let free = self.free.len();
        reserve("pages", &mut self.free, count - free)
    }

    /// Adds free pages up to `count` in all, to be taken after those that are free now, in memory that
    /// was reserved.
    pub(super) fn grow(&mut self, count: u32) {
        let old = self.holders.len() as u32;
        self.holders.resize(count as usize, 0);
        self.claims.resize(count as usize, (0, 0));
        self.free.extend((old..count).rev());
        self.free.rotate_right((count - old) as usize);
    }

    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// A page that was free.
    pub(super) fn take(&mut self) -> Option<u32> {
        let page = self.free.pop()?;
        self.holders[page as usize] = 1;
        Some(page)
    }

    /// One more sequence holds the page.
    pub(super) fn share(&mut self, page: u32) {
        self.holders[page as usize] += 1;
    }

    /// One sequence less holds the page: whether it is free now.
    pub(super) fn release(&mut self, page: u32) -> bool {
        let holders = &mut self.holders[page as usize];
        *holders -= 1;
        let free = *holders == 0;
        if free {
            self.free.push(page);
        }
        free
    }

    pub(super) fn is_shared(&self, page: u32) -> bool {
        self.holders[page as usize] > 1
    }

    pub(super) fn next_call(&mut self) {
        self.call += 1;
    }

    /// In this call one more sequence will append to the page: whether it needs a copy, since others
    /// still hold the page then.
    pub(super) fn claim(&mut self, page: u32) -> bool {
        let (call, claims) = &mut self.claims[page as usize];
        if *call != self.call {
            (*call, *claims) = (self.call, 0);
        }
        *claims += 1;
        *claims < self.holders[page as usize]
    }
}
