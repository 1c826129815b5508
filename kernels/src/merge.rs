//! States of attention over different keys, merged into that over all of them.
//!
//! ```text
//! for each row
//!   lse = ln sum of e^lse_i
//!   out = sum of e^(lse_i - lse) * out_i        in the order of the states
//! ```
//!
//! The formula is that of FlashInfer's "recursive attention"; the same joins the splits of a call, with
//! sums that are not divided yet.

use crate::Settings;
use crate::error::Result;
use crate::executor::{Crew, for_each_tile};
use crate::microkernel::finish::{Combine, OutRow};
use crate::problem::{check_unit_inner_stride, shape_error};
use crate::simd::{Isa, Kernel, Simd, dispatch};
use crate::view::{View, ViewMut};

/// What attention over some keys gives, and how much those keys weigh.
#[derive(Debug, Clone, Copy)]
pub struct State<'a> {
    /// `[batch, heads, seq, value_dim]`, with contiguous rows.
    pub out: View<'a, f32>,
    /// The log-sum-exp of each row, `[batch, heads, seq, 1]`; -inf: of no keys.
    pub lse: View<'a, f32>,
}

/// A [`State`] to be written.
#[derive(Debug)]
pub struct StateMut<'a> {
    /// `[batch, heads, seq, value_dim]`, with contiguous rows.
    pub out: ViewMut<'a, f32>,
    /// `[batch, heads, seq, 1]`.
    pub lse: ViewMut<'a, f32>,
}

/// Multiply-adds that take as long as a number of a state does.
const ELEMENT_WORK: u128 = 8;

/// Rows that a thread claims at once hold about this many elements.
const CLAIM_ELEMENTS: usize = 1 << 13;

/// Merges states of the same queries over different keys into that over all of their keys.
///
/// Commutative and associative up to rounding. A row of no keys, that is with a log-sum-exp of -inf, is
/// the exact identity, whatever its output holds; of no states, or of such rows alone, the result is 0
/// and -inf. A NaN or +inf among a row's log-sum-exps makes the row NaN. A sink belongs to one of the
/// states alone.
///
/// ```
/// use headwise_kernels::{Settings, State, StateMut, View, ViewMut, merge_states_into};
///
/// // One key with value 1, and three like it with values of 5.
/// let (values, weights) = ([1.0, 5.0], [0.0, 3.0_f32.ln()]);
/// let state = |n: usize| -> headwise_kernels::Result<State<'_>> {
///     let out = View::bhsd(&values[n..], [1, 1, 1, 1])?;
///     Ok(State { out, lse: View::bhsd(&weights[n..], [1, 1, 1, 1])? })
/// };
/// let (mut out, mut lse) = ([0.0], [0.0]);
/// let into = StateMut {
///     out: ViewMut::bhsd(&mut out, [1, 1, 1, 1])?,
///     lse: ViewMut::bhsd(&mut lse, [1, 1, 1, 1])?,
/// };
/// merge_states_into(&[state(0)?, state(1)?], into, &Settings::default())?;
/// assert!((out[0] - 4.0).abs() < 1e-6 && (lse[0] - 4.0_f32.ln()).abs() < 1e-6);
/// # Ok::<(), headwise_kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) where a shape is not that of `into`,
/// [`Error::Stride`](crate::Error::Stride) where a row of `out` is not contiguous, and as
/// [`Settings::isa`].
pub fn merge_states_into(
    states: &[State<'_>],
    into: StateMut<'_>,
    settings: &Settings<'_>,
) -> Result<Isa> {
    check(states, &into)?;
    let isa = settings.isa()?;
    let elements = into.out.shape().iter().fold(1_u128, |n, &len| n.saturating_mul(len as u128));
    let work = elements.saturating_mul(states.len() as u128 * ELEMENT_WORK);
    let crew = Crew { executor: settings.executor, threads: settings.threads_for(work) };
    if !into.lse.is_empty() {
        dispatch(isa, Drive { states, into, crew })?;
    }
    Ok(isa)
}

fn check(states: &[State<'_>], into: &StateMut<'_>) -> Result<()> {
    let shape @ [batch, heads, seq, _] = into.out.shape();
    let row = [batch, heads, seq, 1];
    let outs = states.iter().map(|state| ("states", state.out.shape(), state.out.strides()));
    for (argument, got, strides) in outs.chain([("out", shape, into.out.strides())]) {
        if got != shape {
            return shape_error(argument, got, format!("{shape:?}, that of the merged state"));
        }
        check_unit_inner_stride(argument, got, strides)?;
    }
    let lses = states.iter().map(|state| ("states", state.lse.shape()));
    for (argument, got) in lses.chain([("lse", into.lse.shape())]) {
        if got != row {
            return shape_error(argument, got, format!("{row:?}, one number for each row"));
        }
    }
    Ok(())
}

struct Drive<'a> {
    states: &'a [State<'a>],
    into: StateMut<'a>,
    crew: Crew<'a>,
}

impl Kernel for Drive<'_> {
    type Output = ();

    fn run<S: Simd>(self, simd: S) {
        let [batch, heads, seq, width] = self.into.out.shape();
        let total = batch * heads * seq;
        let claim = (CLAIM_ELEMENTS / width.max(1)).max(1);
        let nothing: (&mut [f32], usize) = (&mut [], 0);
        for_each_tile(
            self.crew,
            total.div_ceil(claim),
            nothing,
            || (),
            |_, tile| {
                for row in tile * claim..((tile + 1) * claim).min(total) {
                    self.row(simd, [row / (heads * seq), row / seq % heads, row % seq]);
                }
            },
        );
    }
}

impl Drive<'_> {
    /// One row, which must be claimed once.
    fn row<S: Simd>(&self, simd: S, [b, h, s]: [usize; 3]) {
        let width = self.into.out.shape()[3];
        let lse = |state: &State<'_>| state.lse.get([b, h, s, 0]).map_or(f64::NAN, |&x| x.into());
        let lses = || self.states.iter().map(lse);
        let max = lses().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = lses().map(|lse| weight(lse, max)).sum();
        // SAFETY: `check` has seen the shapes: the row exists, has `width` contiguous floats, and nobody
        // else has claimed it.
        let mut out = unsafe { OutRow::new(self.into.out.row(b, h, s), width) };
        let lse = if sum.is_nan() { f64::NAN } else { max + sum.ln() };
        // SAFETY: as above.
        unsafe { self.into.lse.row(b, h, s).write(lse as f32) };
        if sum.is_nan() {
            return out.fill(f32::NAN);
        }
        out.fill(0.0);
        for (state, lse) in self.states.iter().zip(lses()) {
            let factor = (weight(lse, max) / sum) as f32;
            if factor > 0.0 {
                let src = state.out.rows(b, h).slice(s);
                // SAFETY: written above.
                let dst = unsafe { out.written() };
                simd.vectorize(Combine { dst, a: 1.0, src, b: factor });
            }
        }
    }
}

/// `e^(lse - max)`, 0 of no keys, NaN for what is no log-sum-exp.
fn weight(lse: f64, max: f64) -> f64 {
    match lse {
        f64::NEG_INFINITY => 0.0,
        f64::INFINITY => f64::NAN,
        _ => (lse - max).exp(),
    }
}
