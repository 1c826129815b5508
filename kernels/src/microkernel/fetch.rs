//! Fetching ahead: rows that will be read later come into the cache a few at a time, between
//! micro-tiles, spread evenly over the time until they are wanted: so they neither wait in line nor
//! leave the cache again. Nothing here reads memory; a wrong address costs a hint.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::block::MAX_STRETCHES;
use crate::simd::prefetch;
use crate::view::Rows;

/// Bytes in a cache line.
const LINE: usize = 64;

/// Asks for the `width` bytes at `row`, and for the first line in any case.
#[inline(always)]
pub(crate) fn fetch_row(row: *const u8, width: usize) {
    prefetch(row);
    for column in (LINE..width).step_by(LINE) {
        prefetch(row.wrapping_add(column));
    }
}

/// Rows of bytes to fetch one after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stream {
    row: *const u8,
    width: usize,
    left: usize,
    /// From a row to the next, but every `turn`th time `jump`.
    step: isize,
    jump: isize,
    turn: usize,
    /// Rows of the current turn that are done.
    at: usize,
}

impl Stream {
    pub(crate) const EMPTY: Self =
        Self { row: std::ptr::null(), width: 0, left: 0, step: 0, jump: 0, turn: 1, at: 0 };

    pub(crate) fn new(rows: Rows<'_, u8>) -> Self {
        let (row, jump) = (rows.row(0), rows.stride());
        Self { row, width: rows.width(), left: rows.len(), jump, ..Self::EMPTY }
    }

    /// The rows `range` of `count` heads, `step` bytes apart and taken in turn: first row 0 of each.
    pub(crate) fn interleaved(
        head: Rows<'_, u8>,
        (count, step): (usize, isize),
        range: Range<usize>,
    ) -> Self {
        let at = range.start % count;
        let row = head.row(range.start / count);
        Self {
            row: row.wrapping_offset(step.wrapping_mul(at as isize)),
            width: head.width(),
            left: range.len(),
            step,
            jump: head.stride().wrapping_sub(step.wrapping_mul(count as isize - 1)),
            turn: count,
            at,
        }
    }

    /// Asks for the next rows, at most `count`; says how many there were.
    fn fetch(&mut self, count: usize) -> usize {
        let count = count.min(self.left);
        for _ in 0..count {
            fetch_row(self.row, self.width);
            self.at += 1;
            let by = if self.at == self.turn { self.jump } else { self.step };
            self.at = if self.at == self.turn { 0 } else { self.at };
            self.row = self.row.wrapping_offset(by);
        }
        self.left -= count;
        count
    }
}

/// How many rows are due: so many spread evenly over so much work.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Parts of a row, and how many each unit of work adds.
    owed: u64,
    rate: u64,
}

impl Pace {
    const PARTS: u64 = 1 << 32;
    const NONE: Self = Self { owed: 0, rate: 0 };

    fn new(rows: usize, work: usize) -> Self {
        let rate = (rows as u64).saturating_mul(Self::PARTS).div_ceil(work.max(1) as u64);
        Self { owed: 0, rate }
    }

    /// The rows that are due with so much work more.
    #[inline(always)]
    fn due(&mut self, work: usize) -> usize {
        self.owed = self.owed.wrapping_add(self.rate.wrapping_mul(work as u64));
        let due = self.owed / Self::PARTS;
        self.owed %= Self::PARTS;
        due as usize
    }
}

/// Streams one after the other, spread over some work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Queue<const N: usize> {
    streams: [Stream; N],
    pace: Pace,
}

impl<const N: usize> Queue<N> {
    pub(crate) const EMPTY: Self = Self { streams: [Stream::EMPTY; N], pace: Pace::NONE };

    pub(crate) fn new(streams: [Stream; N]) -> Self {
        Self { streams, ..Self::EMPTY }
    }

    /// Spreads what is left over so much work.
    pub(crate) fn pace(&mut self, work: usize) {
        self.pace = Pace::new(self.streams.iter().map(|stream| stream.left).sum(), work);
    }

    /// Asks for the rows that are due with so much work.
    fn step(&mut self, work: usize) {
        let mut due = self.pace.due(work);
        for stream in &mut self.streams {
            due -= stream.fetch(due);
        }
    }
}

/// Rows of a block, and those in the same places of a block behind it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Twins {
    near: *const u8,
    far: *const u8,
    stride: isize,
    width: usize,
    left: usize,
}

impl Twins {
    const EMPTY: Self =
        Self { near: std::ptr::null(), far: std::ptr::null(), stride: 0, width: 0, left: 0 };

    /// These rows, or the lines of them all if there is nothing between them; without others, the others are
    /// the same.
    pub(crate) fn new(rows: Rows<'_, u8>) -> Self {
        let (near, stride, width, left) = (rows.row(0), rows.stride(), rows.width(), rows.len());
        if stride == width as isize {
            // From the beginning of a line.
            let before = near.addr() % LINE;
            let near = near.wrapping_sub(before);
            let lines = width.saturating_mul(left).saturating_add(before).div_ceil(LINE);
            return Self { near, far: near, stride: LINE as isize, width: LINE, left: lines };
        }
        Self { near, far: near, stride, width, left }
    }

    /// With as many others of the same stride, if they are as many.
    pub(crate) fn with_far(self, rows: Rows<'_, u8>) -> Self {
        let far = Self::new(rows);
        if far.left == self.left { Self { far: far.near, ..self } } else { self }
    }
}

/// The keys and values of the next block and, where memory sets the pace, those of the block behind
/// it: the processor drops requests that come while too many are under way, so that each row is asked
/// for twice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blocks {
    now: Twins,
    /// What comes after it: from `next` to `end`, and nothing else is initialised, since to clear it
    /// would show in small calls.
    rest: [MaybeUninit<Twins>; 2 * MAX_STRETCHES],
    next: usize,
    end: usize,
    /// Rows that were added.
    rows: usize,
    pace: Pace,
}

impl Blocks {
    const EMPTY: Self = Self {
        now: Twins::EMPTY,
        rest: [MaybeUninit::uninit(); 2 * MAX_STRETCHES],
        next: 0,
        end: 0,
        rows: 0,
        pace: Pace::NONE,
    };

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        (self.now, self.next, self.end, self.rows) = (Twins::EMPTY, 0, 0, 0);
    }

    /// Adds rows behind the others, if there is room.
    #[inline(always)]
    pub(crate) fn push(&mut self, rows: Twins) {
        if let Some(place) = self.rest.get_mut(self.end) {
            place.write(rows);
            self.end += 1;
            self.rows += rows.left;
        }
    }

    /// Spreads them over so much work.
    pub(crate) fn pace(&mut self, work: usize) {
        self.pace = Pace::new(self.rows, work);
    }

    /// Asks for the rows that are due with so much work; without a call, for the innermost loops.
    #[inline(always)]
    pub(crate) fn step(&mut self, work: usize) {
        let mut due = self.pace.due(work);
        while due > 0 {
            if self.now.left == 0 {
                if self.next == self.end {
                    return;
                }
                // SAFETY: below `end` all are initialised.
                self.now = unsafe { self.rest[self.next % self.rest.len()].assume_init() };
                self.next += 1;
            }
            let Twins { near, far, stride, width, left } = &mut self.now;
            let count = due.min(*left);
            let (mut this, mut that) = (*near, *far);
            for _ in 0..count {
                // Twice the same costs no more than to ask whether it is.
                fetch_row(this, *width);
                fetch_row(that, *width);
                (this, that) = (this.wrapping_offset(*stride), that.wrapping_offset(*stride));
            }
            (*near, *far) = (this, that);
            *left -= count;
            due -= count;
        }
    }
}

/// What a thread fetches while it computes a tile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fetch {
    pub(crate) blocks: Blocks,
    /// The queries, keys and values with which the next item begins.
    pub(crate) item: Queue<3>,
}

impl Fetch {
    pub(crate) const NONE: Self = Self { blocks: Blocks::EMPTY, item: Queue::EMPTY };

    /// Asks for the rows that are due with so much work: multiply-adds of a block's scores and, where
    /// memory sets the pace, of its values.
    #[inline(never)]
    pub(crate) fn step(&mut self, work: usize) {
        self.item.step(work);
        self.blocks.step(work);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::View;

    /// The addresses, in bytes behind `data`, of the rows that a stream still has.
    fn rows(mut stream: Stream, data: &[u8]) -> Vec<usize> {
        let start = data.as_ptr().addr();
        std::iter::from_fn(|| {
            let row = stream.row.addr();
            (stream.fetch(1) == 1).then(|| row - start)
        })
        .collect()
    }

    #[test]
    fn a_stream_follows_its_rows() {
        let data = [0; 100];
        let head = Rows::dense(&data, 5);
        assert_eq!(rows(Stream::new(head.part(3, 3)), &data), [15, 20, 25]);
        // Three heads two bytes apart: row n is row n / 3 of head n % 3.
        let stream = Stream::interleaved(head, (3, 2), 4..9);
        assert_eq!(rows(stream, &data), [7, 9, 10, 12, 14]);
        assert_eq!(rows(Stream::interleaved(head, (1, 0), 2..4), &data), [10, 15]);
        assert!(rows(Stream::EMPTY, &data).is_empty());
    }

    /// Rows with nothing between them are asked for by lines, from the first that they touch to the last.
    #[test]
    fn twins_of_dense_rows_cover_their_lines() {
        let data = [0; 1000];
        for (skipped, width, len) in [(0, 64, 3), (1, 64, 3), (5, 132, 7), (63, 1, 1), (9, 33, 0)] {
            let rows = Rows::dense(&data[skipped..skipped + width * len], width);
            let first = rows.row(0).addr();
            let twins = Twins::new(rows);
            let lines = twins.near.addr()..twins.near.addr() + twins.left * LINE;
            assert_eq!(lines.start % LINE, 0);
            assert!(lines.start <= first && first - lines.start < LINE);
            let end = first + width * len;
            assert!(end <= lines.end && (len == 0 || lines.end - end < LINE), "{width} x {len}");
        }
        // With a gap, row by row.
        let spread =
            View::strided(&data, 0, [1, 1, 3, 5], [0, 0, 10, 1]).map(|view| view.rows(0, 0));
        let twins = spread.map(Twins::new);
        assert!(twins.is_ok_and(|twins| (twins.width, twins.stride, twins.left) == (5, 10, 3)));
    }

    #[test]
    fn a_queue_covers_its_rows_in_time() {
        let data = [0; 1000];
        const WORK: usize = 12_345;
        for (rows, steps) in [(0, 5), (1, 7), (5, 0), (100, 7), (100, 100), (3, 100), (1000, 64)] {
            let stream = Stream::new(Rows::dense(&data[..rows], 1));
            let mut queue = Queue::new([Stream::EMPTY, stream]);
            queue.pace(steps.max(1) * WORK);
            let mut most = 0;
            for _ in 0..steps.max(1) {
                let before = queue.streams[1].left;
                queue.step(WORK);
                most = most.max(before - queue.streams[1].left);
            }
            assert_eq!(queue.streams[1].left, 0, "{rows} rows in {steps} steps");
            assert!(most <= rows.div_ceil(steps.max(1)) + 1, "{rows} rows in {steps} steps");
        }
    }
}
