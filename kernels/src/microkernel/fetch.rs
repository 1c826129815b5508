//! Fetching ahead: rows that will be read later come into the cache a few at a time, between
//! micro-tiles, spread evenly over the time until they are wanted: so they neither wait in line nor
//! leave the cache again. Nothing here reads memory; a wrong address costs a hint.

use std::ops::Range;

use crate::simd::prefetch;
use crate::view::Rows;

/// Asks for the `width` floats at `row`.
#[inline(always)]
pub(crate) fn fetch_row(row: *const f32, width: usize) {
    /// Floats in a cache line.
    const LINE: usize = 16;
    for column in (0..width).step_by(LINE) {
        prefetch(row.wrapping_add(column));
    }
}

/// Rows to fetch one after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stream {
    row: *const f32,
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

    /// The rows of `range`.
    pub(crate) fn new(rows: Rows<'_, f32>, range: Range<usize>) -> Self {
        let (row, jump) = (rows.row(range.start), rows.stride());
        Self { row, width: rows.width(), left: range.len(), jump, ..Self::EMPTY }
    }

    /// The rows `range` of `count` heads, `step` apart and taken in turn: first row 0 of each.
    pub(crate) fn interleaved(
        head: Rows<'_, f32>,
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
    #[inline(always)]
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

/// Streams one after the other, in a number of steps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Queue<const N: usize> {
    streams: [Stream; N],
    /// Parts of a row, and how many a step adds.
    owed: usize,
    rate: usize,
}

impl<const N: usize> Queue<N> {
    const PARTS: usize = 256;
    pub(crate) const EMPTY: Self = Self { streams: [Stream::EMPTY; N], owed: 0, rate: 0 };

    pub(crate) fn new(streams: [Stream; N]) -> Self {
        Self { streams, ..Self::EMPTY }
    }

    /// Spreads what is left over so many steps.
    pub(crate) fn pace(&mut self, steps: usize) {
        let rows = self.streams.iter().map(|stream| stream.left).sum::<usize>();
        self.rate = rows.saturating_mul(Self::PARTS).div_ceil(steps.max(1));
    }

    /// Asks for the rows of one step.
    #[inline(always)]
    fn step(&mut self) {
        self.owed += self.rate;
        let mut count = self.owed / Self::PARTS;
        self.owed %= Self::PARTS;
        for stream in &mut self.streams {
            count -= stream.fetch(count);
        }
    }
}

/// What a thread fetches while it computes a tile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fetch {
    /// The keys and values of the next block.
    pub(crate) block: Queue<2>,
    /// The queries, keys and values with which the next item begins.
    pub(crate) item: Queue<3>,
}

impl Fetch {
    /// Asks for some more rows.
    pub(crate) fn step(&mut self) {
        self.block.step();
        self.item.step();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The addresses, in floats behind `data`, of the rows that a stream still has.
    fn rows(mut stream: Stream, data: &[f32]) -> Vec<usize> {
        let start = data.as_ptr().addr();
        std::iter::from_fn(|| {
            let row = stream.row.addr();
            (stream.fetch(1) == 1).then(|| (row - start) / size_of::<f32>())
        })
        .collect()
    }

    #[test]
    fn a_stream_follows_its_rows() {
        let data = [0.0; 100];
        let head = Rows::dense(&data, 5);
        assert_eq!(rows(Stream::new(head, 3..6), &data), [15, 20, 25]);
        // Three heads two floats apart: row n is row n / 3 of head n % 3.
        let stream = Stream::interleaved(head, (3, 2), 4..9);
        assert_eq!(rows(stream, &data), [7, 9, 10, 12, 14]);
        assert_eq!(rows(Stream::interleaved(head, (1, 0), 2..4), &data), [10, 15]);
        assert!(rows(Stream::EMPTY, &data).is_empty());
    }

    #[test]
    fn a_queue_covers_its_rows_in_time() {
        let data = [0.0; 1000];
        for (rows, steps) in [(0, 5), (1, 7), (5, 0), (100, 7), (100, 100), (3, 100), (1000, 64)] {
            let stream = Stream::new(Rows::dense(&data, 1), 0..rows);
            let mut queue = Queue::new([Stream::EMPTY, stream]);
            queue.pace(steps);
            let mut most = 0;
            for _ in 0..steps.max(1) {
                let before = queue.streams[1].left;
                queue.step();
                most = most.max(before - queue.streams[1].left);
            }
            assert_eq!(queue.streams[1].left, 0, "{rows} rows in {steps} steps");
            assert!(most <= rows.div_ceil(steps.max(1)) + 1, "{rows} rows in {steps} steps");
        }
    }
}
