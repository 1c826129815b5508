//! Attention over some of the keys, and how such states become one.

use headwise_kernels::merge_states_into;

use crate::{Attention, AttentionOptions, Error, Result, State, StateMut, Tensor};

impl Attention {
    /// The output with its log-sum-exp: attention over the keys of the call, to be merged with that over
    /// others.
    ///
    /// # Errors
    /// [`Error::Value`] where the log-sum-exp was not asked for, by
    /// [`AttentionOptions::return_lse`].
    pub fn state(&self) -> Result<State<'_>> {
        let lse = self.lse.as_ref().ok_or_else(|| Error::Value {
            argument: "lse",
            got: "none".into(),
            expected: "a call with AttentionOptions::return_lse".into(),
        })?;
        Ok(State { out: self.out.view(), lse: lse.view() })
    }
}

/// Merges states of the same queries over different keys into that over all of their keys: see
/// [`merge_states_into`](crate::merge_states_into), which writes to memory of the caller's.
///
/// A state is the output and the log-sum-exp of a call: over a part of the keys that another machine
/// holds, say, or over a prefix that many sequences share.
///
/// ```
/// use headwise::{AttentionOptions, View, attention, merge_states};
///
/// let keys: Vec<f32> = (0..10 * 4).map(|x| (x as f32).sin()).collect();
/// let part = |from: usize, len: usize| View::bhsd(&keys[4 * from..], [1, 1, len, 4]);
/// let (query, options) = (part(0, 3)?, AttentionOptions::new().return_lse());
/// let first = attention(query, part(0, 6)?, part(0, 6)?, &options)?;
/// let last = attention(query, part(6, 4)?, part(6, 4)?, &options)?;
/// let both = merge_states(&[first.state()?, last.state()?], &options)?;
/// let whole = attention(query, part(0, 10)?, part(0, 10)?, &options)?;
/// for (merged, whole) in both.out.data().iter().zip(whole.out.data()) {
///     assert!((merged - whole).abs() < 1e-6);
/// }
/// # Ok::<(), headwise::Error>(())
/// ```
///
/// # Errors
/// Where there is no state, or shapes differ.
pub fn merge_states(states: &[State<'_>], options: &AttentionOptions<'_>) -> Result<Attention> {
    let Some(first) = states.first() else {
        return Err(Error::Value {
            argument: "states",
            got: "none".into(),
            expected: "at least one".into(),
        });
    };
    let [batch, heads, seq, _] = first.out.shape();
    let mut out = Tensor::zeros(first.out.shape())?;
    let mut lse = Tensor::zeros([batch, heads, seq, 1])?;
    let into = StateMut { out: out.view_mut(), lse: lse.view_mut() };
    let isa = merge_states_into(states, into, options.settings())?;
    Ok(Attention { out, lse: Some(lse), weights: None, isa })
}
