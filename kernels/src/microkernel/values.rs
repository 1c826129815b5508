//! The value micro-kernel: acc += P V for a tile of queries and a block of keys.
//!
//! ```text
//! for each panel of 2 value vectors                     the block's panel stays in L1
//!   for each group of rows                              12, 6 or 4 by instruction set
//!     sum = P V over the keys that the group sees       microkernel/outer.rs
//!     acc += sum, or out = (acc + sum) / row_sum        with the tile's last block
//! ```
//!
//! With pairs the earlier `acc` is multiplied as it is added to: pairs.rs says by what. Adding by
//! blocks, in two chains of 64 keys, keeps rounding errors to those of 64 keys and of the number of
//! blocks.
//!
//! A masked key's probability is -0.0 and usually multiplied like any other, which is exact as
//! long as the value is finite. The careful body selects instead, with the same bits.

use super::block::{Block, TypedRows};
use super::fetch::{PanelAhead, Soon};
use super::outer::{self, Meanwhile, Operands, Order, Packed, Tiled};
use super::{BLOCK_KV, BLOCK_Q, Lanes, Seen, together, unroll};
use crate::simd::{Isa, Kernel, Simd, Stored, StoredMut};

/// A tile's probabilities against a block of values. Of `FEW` rows memory sets the pace: tiles are low, and
/// ask for what comes later. Complete sums become numbers of `O`.
pub(crate) struct Values<'a, E, O, const CAREFUL: bool, const FEW: bool> {
    /// `[BLOCK_KV][BLOCK_Q]`, or half as many rows of pairs.
    pub(crate) prob: &'a [f32],
    /// The keys of which there are values, in rows of which each may have those of two.
    pub(crate) values: Block<'a, E>,
    /// Query rows in use.
    pub(crate) rows: usize,
    /// The keys that each row sees; `None`: all of the block's.
    pub(crate) seen: Option<&'a Seen>,
    /// `[BLOCK_Q][acc_width]`.
    pub(crate) acc: &'a mut [f32],
    /// Whether the sums start here, whatever `acc` holds.
    pub(crate) fresh: bool,
    /// What each row's sums of earlier blocks are multiplied by; of no account but with values in pairs.
    pub(crate) earlier: &'a Lanes,
    /// `value_dim` rounded up to whole vectors.
    pub(crate) acc_width: usize,
    /// Where the sums go if they are complete, instead of `acc`.
    pub(crate) finish: Option<Finish<'a, O>>,
    /// What the next block begins with, to ask for with `FEW` rows.
    pub(crate) next: Option<Soon>,
}

/// The rows of the output that a tile's complete sums become.
pub(crate) struct Finish<'a, O> {
    /// What each row's sums are multiplied by: 1 / row_sum, but for sinks and for rounded probabilities.
    pub(crate) factor: &'a Lanes,
    pub(crate) out: &'a OutRows<O>,
    /// Stays true as long as everything written is finite.
    pub(crate) finite: bool,
}

/// The output rows of a tile, to be written only: they may be uninitialised.
pub(crate) struct OutRows<O> {
    rows: [*mut O; BLOCK_Q],
    len: usize,
    width: usize,
}

impl<O> OutRows<O> {
    /// # Safety
    /// `width` numbers must be writable at each of `rows` as long as this is used, and be nobody
    /// else's.
    pub(crate) unsafe fn new(rows: impl Iterator<Item = *mut O>, width: usize) -> Self {
        let mut this = Self { rows: [std::ptr::null_mut(); BLOCK_Q], len: 0, width };
        for (to, row) in this.rows.iter_mut().zip(rows) {
            *to = row;
            this.len += 1;
        }
        this
    }
}

/// The rows of the highest tile of two vectors.
#[inline(always)]
pub(crate) fn most_rows(isa: Isa) -> usize {
    if isa == Isa::Portable { 2 } else { 6 }
}

impl<E: Stored, O: StoredMut, const CAREFUL: bool, const FEW: bool> Kernel
    for Values<'_, E, O, CAREFUL, FEW>
{
    /// Whether everything that was finished is finite.
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> bool {
        self.values.check(E::PRODUCTS);
        // Else what there is of earlier blocks would be multiplied with each half of one.
        assert!(E::PRODUCTS == 1 || together(S::ISA));
        let (rows, width) = (self.rows, self.values.rows.width());
        assert!(rows <= BLOCK_Q);
        assert!(self.prob.len() >= BLOCK_KV * BLOCK_Q);
        assert!(self.acc.len() >= rows * self.acc_width);
        assert!(self.acc_width >= width.next_multiple_of(S::LANES));
        if let Some(finish) = &self.finish {
            assert!(finish.out.len >= rows && finish.out.width == width);
        }
        if together(S::ISA) {
            self.cover(s);
        } else {
            // Chains of half a block, one after the other.
            const HALF: usize = BLOCK_KV / 2;
            let (start, end) = (self.values.start, self.values.end);
            let finish = self.finish.take();
            if start < HALF && end > HALF {
                self.values.end = HALF;
                self.cover(s);
                self.fresh = false;
                self.values = Block { start: HALF, end, ..self.values };
            }
            self.finish = finish;
            self.cover(s);
        }
        self.finish.is_none_or(|finish| finish.finite)
    }
}

impl<E: Stored, O: StoredMut, const CAREFUL: bool, const FEW: bool> Values<'_, E, O, CAREFUL, FEW> {
    #[inline(always)]
    fn cover<S: Simd>(&mut self, s: S) {
        let extents = (self.rows, self.values.rows.width());
        if FEW && self.rows == 1 {
            return outer::cover_row(s, self, extents.1);
        }
        // Selecting takes registers: only low tiles.
        match (most_rows(S::ISA), CAREFUL || FEW) {
            (2, false) => outer::cover::<S, Self, 2, 4, true>(s, self, extents, Order::Down),
            (_, false) => outer::cover::<S, Self, 6, 12, true>(s, self, extents, Order::Down),
            (_, true) => outer::cover::<S, Self, 6, 12, false>(s, self, extents, Order::Down),
        }
    }
}

/// Probabilities and values.
type ValueOperands<'a, E> = Operands<Packed, TypedRows<'a, E>>;

impl<'a, E: Stored, O, const CAREFUL: bool, const FEW: bool> Values<'a, E, O, CAREFUL, FEW> {
    /// The operands of the `rows` rows from `row` on: the keys that some of them see.
    #[inline(always)]
    fn operands(&self, (row, rows): (usize, usize), column: usize) -> ValueOperands<'a, E> {
        let (mut start, mut end) = (self.values.start, self.values.end);
        if let Some(seen) = self.seen {
            (start, end) = seen.span(row, rows).within(start, end);
        }
        // In rows of numbers, each of one key or of two; a row's chain is that of its number.
        (start, end) = (start / E::PRODUCTS, end.div_ceil(E::PRODUCTS));
        start -= start % 2;
        Operands {
            a: Packed(self.prob.as_ptr().wrapping_add(start * BLOCK_Q + row)),
            b: self.values.rows,
            first: start,
            column,
            depth: end - start,
        }
    }

    /// The sums of a tile over the keys of `operands`.
    ///
    /// # Safety
    /// As [`outer::sum`].
    #[inline(always)]
    unsafe fn sum<S: Simd, const ROWS: usize, const VECS: usize, const TAIL: bool>(
        s: S,
        operands: ValueOperands<'_, E>,
        meanwhile: impl Meanwhile,
    ) -> [[S::Vector; VECS]; ROWS] {
        // SAFETY: the caller's promise.
        unsafe {
            if together(S::ISA) {
                outer::sum::<S, _, _, ROWS, VECS, 2, TAIL, CAREFUL>(s, operands, meanwhile)
            } else {
                outer::sum::<S, _, _, ROWS, VECS, 1, TAIL, CAREFUL>(s, operands, meanwhile)
            }
        }
    }

    /// Where the sums from `row` and `column` on are kept.
    #[inline(always)]
    fn kept(&mut self, row: usize, column: usize) -> Kept {
        let at = self.acc.as_mut_ptr().wrapping_add(row * self.acc_width + column);
        let earlier = self.earlier.0.as_ptr().wrapping_add(row);
        Kept { at, width: self.acc_width, fresh: self.fresh, earlier }
    }
}

/// A tile's sums of earlier blocks. A copy of its own: behind `&mut Values` the compiler would read
/// its fields again after every store.
#[derive(Clone, Copy)]
struct Kept {
    at: *mut f32,
    width: usize,
    fresh: bool,
    /// Of the tile's rows.
    earlier: *const f32,
}

impl Kept {
    /// The sums in row `r` from `column` on, with those that are kept already.
    ///
    /// # Safety
    /// The vector must exist.
    #[inline(always)]
    unsafe fn total<S: Simd, E: Stored>(
        self,
        s: S,
        (r, column): (usize, usize),
        sum: S::Vector,
    ) -> S::Vector {
        if self.fresh {
            return s.add(s.splat(0.0), sum);
        }
        // SAFETY: the caller's promise.
        unsafe {
            let before = s.load(self.at.add(r * self.width + column));
            if E::PRODUCTS > 1 {
                s.mul_add(before, s.splat(*self.earlier.add(r)), sum)
            } else {
                s.add(before, sum)
            }
        }
    }

    /// Keeps that.
    ///
    /// # Safety
    /// As [`Kept::total`]; nobody else may use it.
    #[inline(always)]
    unsafe fn add<S: Simd, E: Stored>(self, s: S, (r, column): (usize, usize), sum: S::Vector) {
        // SAFETY: the caller's promise.
        unsafe {
            let total = self.total::<S, E>(s, (r, column), sum);
            s.store(self.at.add(r * self.width + column), total);
        }
    }
}

impl<O: StoredMut> Finish<'_, O> {
    /// Writes the first `count` of a vector of complete sums to `row`, from `column` on; adds 0 to
    /// `finite` for each that is finite and NaN for each that is not.
    ///
    /// # Safety
    /// The output must have that row and those columns.
    #[inline(always)]
    unsafe fn put<S: Simd>(
        &self,
        s: S,
        (row, column, count): (usize, usize, usize),
        finite: &mut S::Vector,
        total: S::Vector,
    ) {
        let x = s.mul_add(total, s.splat(self.factor.0[row]), s.splat(0.0));
        // x - x is 0, or NaN where x is not finite.
        *finite = s.add(*finite, s.sub(x, x));
        // SAFETY: the caller's promise, and that of `OutRows::new`.
        unsafe {
            let out = self.out.rows[row].add(column);
            if count == S::LANES {
                O::store(s, out, x);
            } else {
                O::store_first(s, out, count, x);
            }
        }
    }
}

impl<E: Stored, O: StoredMut, const CAREFUL: bool, const FEW: bool> Tiled
    for Values<'_, E, O, CAREFUL, FEW>
{
    const NARROW: bool = true;

    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize, const VECS: usize, const TAIL: bool>(
        &mut self,
        s: S,
        row: usize,
        column: usize,
    ) {
        // SAFETY: `run` checked the extents: row + ROWS <= rows <= BLOCK_Q, end <= BLOCK_KV, acc
        // has rows of acc_width >= column + VECS * LANES floats; the values' rows exist up to
        // `end`, and `cover` keeps to their width, which is that of the output's rows, promised to
        // `OutRows::new`.
        unsafe {
            let operands = self.operands((row, ROWS), column);
            let sum = if FEW {
                let rows = operands.first..operands.first + operands.depth;
                let panel = (column, VECS * S::LANES);
                let ahead = PanelAhead::new(operands.b, rows, panel, self.next);
                Self::sum::<S, ROWS, VECS, TAIL>(s, operands, ahead)
            } else {
                Self::sum::<S, ROWS, VECS, TAIL>(s, operands, ())
            };
            let kept = self.kept(row, column);
            let Some(finish) = &mut self.finish else {
                unroll!(r in 0..ROWS {
                    unroll!(v in 0..VECS {
                        kept.add::<S, E>(s, (r, v * S::LANES), sum[r][v]);
                    });
                });
                return;
            };
            let left = finish.out.width - column - (VECS - 1) * S::LANES;
            let mut finite = s.splat(0.0);
            unroll!(r in 0..ROWS {
                unroll!(v in 0..VECS {
                    let count = if TAIL && v == VECS - 1 { left } else { S::LANES };
                    let at = (row + r, column + v * S::LANES, count);
                    let total = kept.total::<S, E>(s, (r, v * S::LANES), sum[r][v]);
                    finish.put(s, at, &mut finite, total);
                });
            });
            finish.finite &= !s.any(s.ne(finite, s.splat(0.0)));
        }
    }

    #[inline(always)]
    fn pairs<S: Simd, const PAIRS: usize>(&mut self, s: S, row: usize, column: usize) {
        // SAFETY: as in `tile`, with 2 * PAIRS rows and what is left of the width, at most half a
        // vector; acc's rows are as wide as whole vectors.
        unsafe {
            let operands = self.operands((row, 2 * PAIRS), column);
            let sum = if together(S::ISA) {
                outer::sum_pairs::<S, _, PAIRS, 2>(s, operands)
            } else {
                outer::sum_pairs::<S, _, PAIRS, 1>(s, operands)
            };
            let kept = self.kept(row, column);
            let Some(finish) = &mut self.finish else {
                unroll!(p in 0..PAIRS {
                    let [even, odd] = s.unzip(sum[p]);
                    kept.add::<S, E>(s, (2 * p, 0), even);
                    kept.add::<S, E>(s, (2 * p + 1, 0), odd);
                });
                return;
            };
            let left = finish.out.width - column;
            let mut finite = s.splat(0.0);
            unroll!(p in 0..PAIRS {
                let [even, odd] = s.unzip(sum[p]);
                let (even, odd) = (kept.total::<S, E>(s, (2 * p, 0), even), kept.total::<S, E>(s, (2 * p + 1, 0), odd));
                finish.put(s, (row + 2 * p, column, left), &mut finite, even);
                finish.put(s, (row + 2 * p + 1, column, left), &mut finite, odd);
            });
            finish.finite &= !s.any(s.ne(finite, s.splat(0.0)));
        }
    }
}
