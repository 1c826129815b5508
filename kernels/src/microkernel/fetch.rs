//! Fetching ahead: rows that will be read later come into the cache a few at a time, between
//! micro-tiles, spread evenly over the time until they are wanted: so they neither wait in line nor
//! leave the cache again. Nothing here reads memory; a wrong address costs a hint.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::BLOCK_KV;
use super::block::{LEAST_STRETCH, MAX_STRETCHES, TypedRows};
use super::outer::{Meanwhile, Right};
use crate::simd::{Stored, prefetch_to};
use crate::view::Rows;

/// Bytes in a cache line.
const LINE: usize = 64;

/// Asks for the `width` bytes at `row`, and for the first line in any case: into the first cache if `SOON`.
#[inline(always)]
pub(crate) fn fetch_row<const SOON: bool>(row: *const u8, width: usize) {
    prefetch_to::<SOON>(row);
    for column in (LINE..width).step_by(LINE) {
        prefetch_to::<SOON>(row.wrapping_add(column));
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

    /// These rows, or, if there is nothing between them, the lines of them all.
    pub(crate) fn lines(rows: Rows<'_, u8>) -> Self {
        let (row, width) = (rows.row(0), rows.width());
        if rows.stride() != width as isize {
            return Self::new(rows);
        }
        // From the beginning of a line.
        let before = row.addr() % LINE;
        let left = lines(width.saturating_mul(rows.len()).saturating_add(before));
        Self {
            row: row.wrapping_sub(before),
            width: LINE,
            left,
            jump: LINE as isize,
            ..Self::EMPTY
        }
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
            fetch_row::<false>(self.row, self.width);
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

/// The keys and values of the next block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blocks {
    now: Stream,
    /// What comes after it: from `next` to `end`, and nothing else is initialised, since to clear it
    /// would show in small calls.
    rest: [MaybeUninit<Stream>; 2 * MAX_STRETCHES],
    next: usize,
    end: usize,
    /// Rows that were added.
    rows: usize,
    pace: Pace,
}

impl Blocks {
    const EMPTY: Self = Self {
        now: Stream::EMPTY,
        rest: [MaybeUninit::uninit(); 2 * MAX_STRETCHES],
        next: 0,
        end: 0,
        rows: 0,
        pace: Pace::NONE,
    };

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        (self.now, self.next, self.end, self.rows) = (Stream::EMPTY, 0, 0, 0);
    }

    /// Adds rows behind the others, if there is room.
    #[inline(always)]
    pub(crate) fn push(&mut self, rows: Stream) {
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

    /// Asks for the rows that are due with so much work.
    fn step(&mut self, work: usize) {
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
            due -= self.now.fetch(due);
        }
    }
}

/// How far ahead of a row of floats the one is, where memory sets the pace, that is asked for meanwhile: far
/// enough that memory answers in time, near enough that the first cache still has it then.
const AHEAD: usize = 8192;

/// The rows between a row of so many bytes of floats and the one to ask for meanwhile: whole runs of keys.
#[inline(always)]
fn rows_ahead(bytes: usize) -> usize {
    (AHEAD / bytes.max(1)).clamp(LEAST_STRETCH, BLOCK_KV / 2) / LEAST_STRETCH * LEAST_STRETCH
}

/// Whether numbers are narrower than floats. A block of them fits into the first cache, and takes little more
/// time than memory takes to answer: they are asked for a block ahead.
#[inline(always)]
const fn is_narrow<T>() -> bool {
    size_of::<T>() < size_of::<f32>()
}

/// The lines of a row of so many bytes.
#[inline(always)]
pub(crate) fn lines(bytes: usize) -> usize {
    bytes.div_ceil(LINE)
}

/// Evenly spaced rows that are read soon; any address will do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Soon {
    first: *const u8,
    stride: isize,
    len: usize,
}

impl Soon {
    pub(crate) fn new(first: *const u8, stride: isize, len: usize) -> Self {
        Self { first, stride, len }
    }

    #[inline(always)]
    fn row(self, row: usize) -> *const u8 {
        self.first.wrapping_offset(self.stride.wrapping_mul(row as isize))
    }

    /// Asks for line `line` of `count` rows from `row` on, if that exists.
    #[inline(always)]
    pub(crate) fn fetch(self, row: usize, count: usize, line: usize) {
        if row >= self.len {
            return;
        }
        let mut at = self.row(row).wrapping_add(line * LINE);
        for _ in 0..count {
            prefetch_to::<true>(at);
            at = at.wrapping_offset(self.stride);
        }
    }
}

/// What a kernel of few rows asks for while it goes along the lines of one run of keys after the other: of floats
/// the same line of a later run, and with the last runs what the values begin with; of narrow numbers as many
/// rows of values.
pub(crate) struct KeysAhead<E> {
    /// Floats: what is behind the run, and how many of its lines earlier runs have asked for, if that is values.
    soon: Soon,
    before: Option<usize>,
    /// Narrow numbers: the next row, how many there are from it on, and lines that are due.
    row: *const u8,
    left: usize,
    due: usize,
    /// Bytes in a row of keys; what it asks for of values are rows of as many.
    bytes: usize,
    of: PhantomData<E>,
}

impl<E: Stored> KeysAhead<E> {
    /// For the run of `keys` at `key`, of so many, in front of `values`.
    #[inline(always)]
    pub(crate) fn new(keys: TypedRows<'_, E>, (key, run): (usize, usize), values: Soon) -> Self {
        let bytes = keys.width() * size_of::<E>();
        let later = key + rows_ahead(bytes);
        let (soon, before) = if later + run <= keys.len() {
            (Soon::new(keys.row(later).cast(), keys.stride(), run), None)
        } else {
            (values, Some(later.saturating_sub(keys.len()) / run * lines(bytes)))
        };
        let left = values.len.saturating_sub(key);
        Self { soon, before, row: values.row(key), left, due: 0, bytes, of: PhantomData }
    }

    /// Asks for what is to be asked for with line `line` of the run's `run` keys.
    #[inline(always)]
    pub(crate) fn step(&mut self, line: usize, run: usize) {
        if is_narrow::<E>() {
            return self.rows(run);
        }
        let Some(before) = self.before else { return self.soon.fetch(0, run, line) };
        // Two lines of each row, as a panel of values has, and then the next two.
        let (line, runs) = (before + line, BLOCK_KV / run);
        let (row, pair) = (line / 2 % runs * run, line / 2 / runs);
        self.soon.fetch(row, run, 2 * pair + line % 2);
    }

    /// So many lines more are due: whole rows, since memory answers them faster as they lie than by columns.
    #[inline(always)]
    fn rows(&mut self, lines: usize) {
        self.due += lines;
        let row = self::lines(self.bytes);
        while self.due >= row && self.left > 0 {
            fetch_row::<true>(self.row, self.bytes);
            self.row = self.row.wrapping_offset(self.soon.stride);
            self.left -= 1;
            self.due -= row;
        }
    }
}

/// What a kernel of few rows asks for while it goes down the rows of one panel of values after the other: of
/// floats the panel's own half a block on, then the next panel's, and with the last panel what the next block
/// begins with; of narrow numbers what the next block begins with, as it lies, or the same place of it where its
/// rows lie apart.
pub(crate) struct PanelAhead<R> {
    values: R,
    /// The rows of values.
    rows: Range<usize>,
    column: usize,
    /// Columns of the panel.
    numbers: usize,
    /// Behind the last panel.
    then: Option<Soon>,
    /// What to ask for with the next row, and from a row to the next.
    at: *const u8,
    bytes: usize,
    step: isize,
}

impl<R: Right> PanelAhead<R> {
    /// For `numbers` columns from `column` on.
    #[inline(always)]
    pub(crate) fn new(
        values: R,
        rows: Range<usize>,
        (column, numbers): (usize, usize),
        then: Option<Soon>,
    ) -> Self {
        let at = std::ptr::null();
        Self { values, rows, column, numbers, then, at, bytes: 0, step: 0 }
    }
}

impl<R: Right> Meanwhile for PanelAhead<R> {
    const RUN: usize = LEAST_STRETCH;

    #[inline(always)]
    fn run(&mut self, row: usize) {
        // Where there is nothing to ask for, what is in the cache already.
        self.at = self.values.row(row).wrapping_add(self.column).cast();
        self.step = self.values.stride();
        self.bytes = self.numbers * size_of::<R::Number>();
        if is_narrow::<R::Number>() {
            let Some(then) = self.then else { return };
            let (size, width) = (size_of::<R::Number>(), self.values.width());
            if then.stride == (width * size) as isize {
                // Behind what is asked for with the rows above, and with these rows' earlier panels.
                let (start, len) = (self.rows.start, self.rows.len());
                let before = start * width + self.column * len + (row - start) * self.numbers;
                if before < then.len * width {
                    self.at = then.first.wrapping_add(before * size);
                    self.step = self.bytes as isize;
                }
            } else if row < then.len {
                self.at = then.row(row).wrapping_add(self.column * size);
                self.step = then.stride;
            }
            return;
        }
        let next = self.column + self.numbers;
        let soon = row + BLOCK_KV / 2;
        let (row, column) = if soon < self.rows.end {
            (soon, self.column)
        } else if next < self.values.width() {
            ((soon - self.rows.len()).min(self.rows.end.saturating_sub(1)), next)
        } else {
            if let Some(then) = self.then {
                // One line after the other.
                const BYTES: usize = AHEAD / (BLOCK_KV / 2);
                self.at = then.first.wrapping_add((soon - self.rows.end) * BYTES);
                (self.bytes, self.step) = (BYTES, BYTES as isize);
            }
            return;
        };
        self.at = self.values.row(row).wrapping_add(column).cast();
    }

    #[inline(always)]
    fn step(&mut self, _k: usize) {
        fetch_row::<true>(self.at, self.bytes);
        self.at = self.at.wrapping_offset(self.step);
    }
}

/// What a thread fetches while it computes a tile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fetch {
    /// Where memory sets the pace, what is read first of the next block.
    pub(crate) next: Option<Soon>,
    /// Where its kernel does not ask for them itself, the next block.
    pub(crate) blocks: Blocks,
    /// The queries, keys and values with which the next item begins.
    pub(crate) item: Queue<3>,
}

impl Fetch {
    pub(crate) const NONE: Self = Self { next: None, blocks: Blocks::EMPTY, item: Queue::EMPTY };

    /// Asks for the rows that are due with so much work: multiply-adds of a block's scores.
    #[inline(never)]
    pub(crate) fn step(&mut self, work: usize) {
        self.item.step(work);
        self.blocks.step(work);
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::super::block::BlockRows;
    use super::*;
    use crate::storage::Format;
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
    fn dense_rows_are_asked_for_by_lines() {
        let data = [0; 1000];
        for (skipped, width, len) in [(0, 64, 3), (1, 64, 3), (5, 132, 7), (63, 1, 1), (9, 33, 0)] {
            let rows = Rows::dense(&data[skipped..skipped + width * len], width);
            let (first, end) = (rows.row(0).addr(), rows.row(0).addr() + width * len);
            let lines = Stream::lines(rows);
            let asked = lines.row.addr()..lines.row.addr() + lines.left * LINE;
            assert_eq!(asked.start % LINE, 0);
            assert!(asked.start <= first && first - asked.start < LINE);
            assert!(end <= asked.end && (len == 0 || asked.end - end < LINE), "{width} x {len}");
        }
        // With a gap, row by row.
        let spread =
            View::strided(&data, 0, [1, 1, 3, 5], [0, 0, 10, 1]).map(|view| view.rows(0, 0));
        let lines = spread.map(Stream::lines);
        assert!(lines.is_ok_and(|lines| (lines.width, lines.jump, lines.left) == (5, 10, 3)));
    }

    /// A panel's rows are asked for half a block before they are wanted, but for those that keys ask for, and the
    /// next block's first bytes before it begins.
    #[test]
    fn a_panel_is_asked_for_ahead() {
        const PANEL: usize = 32;
        const WIDTH: usize = 2 * PANEL;
        let data = [0.0_f32; BLOCK_KV * WIDTH];
        let keys = [0_u8; AHEAD];
        let values = Rows::dense(&data, WIDTH);
        let then = Soon::new(keys.as_ptr(), (WIDTH * size_of::<f32>()) as isize, BLOCK_KV);
        let mut asked = Vec::new();
        for column in [0, PANEL] {
            let panel = (column, PANEL);
            let mut ahead = PanelAhead::new(values, 0..BLOCK_KV, panel, Some(then));
            for row in 0..BLOCK_KV {
                if row.is_multiple_of(<PanelAhead<Rows<'_, f32>> as Meanwhile>::RUN) {
                    ahead.run(row);
                }
                assert_eq!(ahead.bytes, PANEL * size_of::<f32>());
                asked.push(ahead.at.addr());
                ahead.step(row);
            }
        }
        let places = [0, PANEL].into_iter().flat_map(|column| {
            (0..BLOCK_KV).map(move |row| values.row(row).wrapping_add(column).addr())
        });
        let bytes = PANEL * size_of::<f32>();
        let first = (0..BLOCK_KV / 2).map(|n| keys.as_ptr().addr() + n * bytes);
        let expected: Vec<_> = places.skip(BLOCK_KV / 2).chain(first).collect();
        assert_eq!(asked, expected);
    }

    /// Narrow keys ask for as many rows of values, as they lie and no further, and values for the next block's
    /// keys: whether the chains of a block are summed together or one after the other.
    #[test]
    fn narrow_rows_are_asked_for_as_they_lie() {
        const PANEL: usize = 32;
        const WIDTH: usize = 2 * PANEL;
        const RUN: usize = <PanelAhead<Rows<'_, f32>> as Meanwhile>::RUN;
        let data = [0_u16; BLOCK_KV * WIDTH];
        let own = [0_u8; 2 * BLOCK_KV * WIDTH];
        let rows = BlockRows::even(Rows::dense(&own, 2 * WIDTH), Format::F16);
        let typed = rows.block::<f16>(0, BLOCK_KV).rows;
        let bytes = 2 * WIDTH;
        for len in [BLOCK_KV, BLOCK_KV / 2 + 16, 50, 0] {
            let then = Soon::new(data.as_ptr().cast(), bytes as isize, len);
            let start = then.first.addr();
            for run in 0..BLOCK_KV / RUN {
                let mut ahead = KeysAhead::new(typed, (run * RUN, RUN), then);
                assert_eq!(ahead.row.addr(), start + run * RUN * bytes);
                let left = ahead.left;
                for line in 0..lines(bytes) {
                    ahead.step(line, RUN);
                }
                assert_eq!(left - ahead.left, len.saturating_sub(run * RUN).min(RUN));
            }
            for height in [BLOCK_KV, BLOCK_KV / 2] {
                let mut asked = Vec::new();
                for first in (0..BLOCK_KV).step_by(height) {
                    for column in [0, PANEL] {
                        let panel = (column, PANEL);
                        let mut ahead =
                            PanelAhead::new(typed, first..first + height, panel, Some(then));
                        for row in (first..first + height).step_by(RUN) {
                            ahead.run(row);
                            let own = typed.row(row).wrapping_add(column).cast();
                            if ahead.at != own {
                                asked.push(ahead.at.addr() - start);
                                assert_eq!(ahead.step, ahead.bytes as isize);
                            }
                        }
                    }
                }
                let expected: Vec<_> = (0..len * bytes).step_by(RUN * 2 * PANEL).collect();
                assert_eq!(asked, expected, "{len} rows, {height} at a time");
            }
        }
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
