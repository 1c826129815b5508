//! The sum of outer products that both the values and the GEMM are made of:
//! `sum[r][v] = Σ_k a[k][r] * b[k][v]`, `a` a packed tile or rows read where they lie, `b` rows.
//!
//! ```text
//! sum = 0                                            ROWS x VECS accumulators
//! for each k, in order
//!   sum[r][v] += splat(a[k][r]) * b[k][v]            VECS loads, ROWS broadcasts, ROWS * VECS FMAs
//! ```
//!
//! Each element is one chain of multiply-adds in the order of k, or the sum of two, over the even k
//! and the odd, whatever the tile. The rows of a tile are the caller's choice; what is left goes by
//! fours and ones, or by fours, twos and ones where tiles are low. A panel of one vector takes twice the
//! rows, and one of half a vector four times as many, two of them in one vector: else `value_dim` 40 would
//! pay for 48.
//!
//! ```text
//!   sum of rows r, r+1   r0c0 r1c0 r0c1 r1c1 ...  +=  a: r0 r1 r0 r1 ...  *  b: c0 c0 c1 c1 ...
//! ```

use super::BLOCK_Q;
use crate::simd::{Simd, Stored, opaque, prefetch};
use crate::view::Rows;

/// What is computed tile by tile.
pub(crate) trait Tiled {
    /// Whether there are panels of less than two vectors.
    const NARROW: bool;

    /// The tile of `ROWS` rows from `row` on and `VECS` vectors from `column` on, the last of them
    /// cut short by the width if `TAIL`.
    fn tile<S: Simd, const ROWS: usize, const VECS: usize, const TAIL: bool>(
        &mut self,
        s: S,
        row: usize,
        column: usize,
    );

    /// The last columns from `column` on, at most half a vector, of `PAIRS` pairs of rows from `row`
    /// on. Called only if `NARROW`.
    fn pairs<S: Simd, const PAIRS: usize>(&mut self, s: S, row: usize, column: usize);
}

/// Which way tiles follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Down the rows, then to the next columns: what a panel reads of `b` stays in L1.
    Down,
    /// Across the columns, then to the next rows: what a group of rows reads of `a` does.
    Across,
}

/// The rows of the next tile where `rows` are left, the tile being two vectors wide and `most` rows
/// high.
#[inline(always)]
pub(crate) fn height(most: usize, rows: usize) -> usize {
    if rows >= most {
        most
    } else if most > 4 && rows >= 4 {
        4
    } else {
        1
    }
}

/// The same of low tiles, which leave registers for more than the sums.
#[inline(always)]
pub(crate) fn low_height(rows: usize) -> usize {
    match rows {
        0 | 1 => 1,
        2 | 3 => 2,
        _ => 4,
    }
}

/// Covers `rows x width` with tiles of `ROWS` rows, `TWICE` being twice as many. Without `WIDE` with tiles of
/// four rows, two and one ([`low_height`]).
#[inline(always)]
pub(crate) fn cover<S: Simd, T: Tiled, const ROWS: usize, const TWICE: usize, const WIDE: bool>(
    s: S,
    tiled: &mut T,
    (rows, width): (usize, usize),
    order: Order,
) {
    let (mut row, mut column) = (0, 0);
    while row < rows && column < width {
        let (high, wide) = (rows - row, width - column);
        let done = if T::NARROW && WIDE && wide <= S::LANES / 2 && high >= 2 * TWICE {
            tiled.pairs::<S, TWICE>(s, row, column);
            2 * TWICE
        } else if T::NARROW && WIDE && wide <= S::LANES && high >= TWICE {
            tiled.tile::<S, TWICE, 1, true>(s, row, column);
            TWICE
        } else {
            let height = if WIDE { height(ROWS, high) } else { low_height(high) };
            match height {
                1 => across::<S, T, 1>(s, tiled, row, (column, wide)),
                2 if !WIDE => across::<S, T, 2>(s, tiled, row, (column, wide)),
                4 => across::<S, T, 4>(s, tiled, row, (column, wide)),
                _ => across::<S, T, ROWS>(s, tiled, row, (column, wide)),
            }
            height
        };
        (row, column) = match order {
            Order::Down if row + done < rows => (row + done, column),
            Order::Down => (0, column + 2 * S::LANES),
            Order::Across if column + 2 * S::LANES < width => (row, column + 2 * S::LANES),
            Order::Across => (row + done, 0),
        };
    }
}

/// Covers one row: with tiles of four vectors, where there are so many, since a tile of a row has
/// accumulators to spare.
#[inline(always)]
pub(crate) fn cover_row<S: Simd, T: Tiled>(s: S, tiled: &mut T, width: usize) {
    let mut column = 0;
    while column < width {
        let wide = width - column;
        if wide >= 4 * S::LANES {
            tiled.tile::<S, 1, 4, false>(s, 0, column);
            column += 4 * S::LANES;
        } else {
            across::<S, T, 1>(s, tiled, 0, (column, wide));
            column += 2 * S::LANES;
        }
    }
}

/// The tile at `row` and `column`, as wide as fits.
#[inline(always)]
fn across<S: Simd, T: Tiled, const ROWS: usize>(
    s: S,
    tiled: &mut T,
    row: usize,
    (column, wide): (usize, usize),
) {
    if !T::NARROW || wide >= 2 * S::LANES {
        tiled.tile::<S, ROWS, 2, false>(s, row, column);
    } else if wide > S::LANES {
        tiled.tile::<S, ROWS, 2, true>(s, row, column);
    } else {
        tiled.tile::<S, ROWS, 1, true>(s, row, column);
    }
}

/// The left operand of a tile, `a[k][r]`, at one k after the other.
pub(crate) trait Left: Copy {
    /// # Safety
    /// The element must exist.
    unsafe fn at(&self, r: usize) -> f32;
    /// At the next k.
    fn next(self) -> Self;
}

/// `[depth][BLOCK_Q]`, from the tile's first row on.
#[derive(Clone, Copy)]
pub(crate) struct Packed(pub(crate) *const f32);

impl Left for Packed {
    #[inline(always)]
    unsafe fn at(&self, r: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *self.0.add(r) }
    }

    #[inline(always)]
    fn next(self) -> Self {
        // Beyond the last row this may leave the tile, unread.
        Self(self.0.wrapping_add(BLOCK_Q))
    }
}

/// Rows where they lie, evenly spaced. A pointer for every four, since one for each of twelve
/// leaves the loop no register; `opaque` keeps the compiler from splitting them again.
#[derive(Clone, Copy)]
pub(crate) struct Spaced {
    fours: [*const f32; 3],
    stride: isize,
}

impl Spaced {
    /// The rows from `first` on.
    #[inline(always)]
    pub(crate) fn new(first: *const f32, stride: isize) -> Self {
        let four = |n: isize| first.wrapping_offset(stride.wrapping_mul(4 * n));
        Self { fours: [four(0), four(1), four(2)], stride }
    }
}

impl Left for Spaced {
    #[inline(always)]
    unsafe fn at(&self, r: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *self.fours[r / 4].wrapping_offset(self.stride.wrapping_mul((r % 4) as isize)) }
    }

    #[inline(always)]
    fn next(self) -> Self {
        let [a, b, c] = self.fours;
        let fours =
            [opaque(a.wrapping_add(1)), opaque(b.wrapping_add(1)), opaque(c.wrapping_add(1))];
        Self { fours, ..self }
    }
}

/// The right operand, row by row.
pub(crate) trait Right: Copy {
    /// How numbers are stored.
    type Number: Stored;
    /// Whether all rows are evenly spaced.
    const WHOLE: bool;

    /// Numbers in a row.
    fn width(&self) -> usize;
    /// Bytes from a row to the next, if they are evenly spaced.
    fn stride(&self) -> isize;
    /// The address of row `k`.
    fn row(&self, k: usize) -> *const Self::Number;
    /// How many rows from `k` on are evenly spaced: an even number from an even k on.
    fn stretch(&self, k: usize) -> usize;
}

impl Right for Rows<'_, f32> {
    type Number = f32;
    const WHOLE: bool = true;

    #[inline(always)]
    fn width(&self) -> usize {
        Rows::width(self)
    }

    #[inline(always)]
    fn stride(&self) -> isize {
        Rows::stride(self).wrapping_mul(size_of::<f32>() as isize)
    }

    #[inline(always)]
    fn row(&self, k: usize) -> *const f32 {
        Rows::row(self, k)
    }

    #[inline(always)]
    fn stretch(&self, k: usize) -> usize {
        self.len() - k
    }
}

/// The operands of one tile.
#[derive(Clone, Copy)]
pub(crate) struct Operands<L, R> {
    pub(crate) a: L,
    /// The rows of `b`; `first` is that of k = 0.
    pub(crate) b: R,
    pub(crate) first: usize,
    /// The tile's first column in `b`.
    pub(crate) column: usize,
    pub(crate) depth: usize,
}

/// What is fetched while a tile is computed.
pub(crate) trait Meanwhile {
    /// At `k`.
    #[inline(always)]
    fn step(&mut self, _k: usize) {}

    /// Behind how many k there is more to do at a time: an even number, at most those of a block.
    const RUN: usize = usize::MAX;

    /// Before each such run, from row `row` of the right operand on.
    #[inline(always)]
    fn run(&mut self, _row: usize) {}
}

/// Nothing.
impl Meanwhile for () {}

/// The floats from an address on, [`AHEAD_STEP`] for each k; any address will do.
#[derive(Clone, Copy)]
pub(crate) struct Straight(pub(crate) *const f32);

/// Floats fetched ahead for each k: a line in eight steps. Asking for it eight times costs less
/// than a loop around the loop.
pub(crate) const AHEAD_STEP: usize = 2;

impl Meanwhile for Straight {
    #[inline(always)]
    fn step(&mut self, k: usize) {
        prefetch(self.0.wrapping_add(k * AHEAD_STEP).cast());
    }
}

/// The sums of one tile, the last vector cut short to the end of `b`'s rows if `TAIL`. Each is the sum
/// of `CHAINS` chains, which take the k in turn. `CAREFUL` leaves out the products of an `a` whose
/// sign bit is set.
///
/// # Safety
/// `a` must have `depth` by `ROWS` elements; `b` the rows `first .. first + depth`, with a float
/// behind `column` and, unless `TAIL`, `VECS` vectors of them.
#[inline(always)]
pub(crate) unsafe fn sum<
    S: Simd,
    R: Right,
    M: Meanwhile,
    const ROWS: usize,
    const VECS: usize,
    const CHAINS: usize,
    const TAIL: bool,
    const CAREFUL: bool,
>(
    s: S,
    operands: Operands<impl Left, R>,
    mut meanwhile: M,
) -> [[S::Vector; VECS]; ROWS] {
    const { assert!(CHAINS == 1 || CHAINS == 2) };
    let Operands { mut a, b, first, column, depth } = operands;
    // Not to be read again behind what `meanwhile` writes.
    let stride = b.stride();
    let to_end = b.width() - column;
    let tail = to_end - (VECS - 1) * S::LANES;
    let mut sum = [[[s.splat(0.0); VECS]; ROWS]; CHAINS];
    let mut row;
    macro_rules! step {
        ($k:expr, $chain:expr) => {
            meanwhile.step($k);
            // SAFETY: the caller's promise.
            unsafe {
                let scale = R::Number::scale(s, row.add(to_end));
                let mut b = [s.splat(0.0); VECS];
                for v in 0..VECS {
                    b[v] = if TAIL && v == VECS - 1 {
                        R::Number::load_first(s, row.add(v * S::LANES), tail, scale)
                    } else {
                        R::Number::load(s, row.add(v * S::LANES), scale)
                    };
                }
                for r in 0..ROWS {
                    let a = s.splat(a.at(r));
                    for v in 0..VECS {
                        let sum = &mut sum[$chain][r][v];
                        *sum = if CAREFUL {
                            R::Number::mul_add_seen(s, a, b[v], *sum)
                        } else {
                            R::Number::mul_add(s, a, b[v], *sum)
                        };
                    }
                }
            }
        };
    }
    let mut k = 0;
    loop {
        let whole = if R::WHOLE { depth } else { b.stretch(first + k).saturating_add(k) };
        let end = depth.min(whole).min(k.saturating_add(M::RUN));
        meanwhile.run(first + k);
        row = b.row(first + k).wrapping_add(column);
        while k + CHAINS <= end {
            step!(k, 0);
            // Beyond the last row this may leave b, unread.
            (a, row) = (a.next(), row.wrapping_byte_offset(stride));
            if CHAINS == 2 {
                step!(k + 1, CHAINS - 1);
                (a, row) = (a.next(), row.wrapping_byte_offset(stride));
            }
            k += CHAINS;
        }
        if (R::WHOLE && M::RUN == usize::MAX) || end == depth {
            break;
        }
    }
    if k < depth {
        step!(k, 0);
    }
    if CHAINS == 2 {
        for r in 0..ROWS {
            for v in 0..VECS {
                sum[0][r][v] = s.add(sum[0][r][v], sum[CHAINS - 1][r][v]);
            }
        }
    }
    sum[0]
}

/// The sums of a tile of `PAIRS` pairs of rows and at most half a vector of columns, up to the end of
/// `b`'s rows: those of a pair by turns, to be unzipped. Otherwise as [`sum`].
///
/// # Safety
/// `a` must have `depth` by `2 * PAIRS` elements; `b` the rows `first .. first + depth`, with 1 to
/// `LANES / 2` floats behind `column`.
#[inline(always)]
pub(crate) unsafe fn sum_pairs<S: Simd, R: Right, const PAIRS: usize, const CHAINS: usize>(
    s: S,
    operands: Operands<Packed, R>,
) -> [S::Vector; PAIRS] {
    const { assert!(CHAINS == 1 || CHAINS == 2) };
    let Operands { mut a, b, first, column, depth } = operands;
    let stride = b.stride();
    let count = b.width() - column;
    let mut sum = [[s.splat(0.0); PAIRS]; CHAINS];
    let mut row;
    macro_rules! step {
        ($chain:expr) => {
            // SAFETY: the caller's promise.
            unsafe {
                let scale = R::Number::scale(s, row.add(count));
                let b = R::Number::load_twice(s, row, count, scale);
                for p in 0..PAIRS {
                    let sum = &mut sum[$chain][p];
                    *sum = R::Number::mul_add(s, s.splat_pair(a.0.add(2 * p)), b, *sum);
                }
            }
        };
    }
    let mut k = 0;
    loop {
        row = b.row(first + k).wrapping_add(column);
        let end = if R::WHOLE { depth } else { depth.min(k + b.stretch(first + k)) };
        while k + CHAINS <= end {
            step!(0);
            // Beyond the last row this may leave b, unread.
            (a, row) = (a.next(), row.wrapping_byte_offset(stride));
            if CHAINS == 2 {
                step!(CHAINS - 1);
                (a, row) = (a.next(), row.wrapping_byte_offset(stride));
            }
            k += CHAINS;
        }
        if R::WHOLE || end == depth {
            break;
        }
    }
    if k < depth {
        step!(0);
    }
    if CHAINS == 2 {
        for p in 0..PAIRS {
            sum[0][p] = s.add(sum[0][p], sum[CHAINS - 1][p]);
        }
    }
    sum[0]
}
