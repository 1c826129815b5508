//! Attention over parts of the keys, made one.

use headwise::{Isa, Shape, State, StateMut, merge_states_into};

use crate::boundary::guard;
use crate::dtype::headwise_dtype;
use crate::list::reserved;
use crate::options::headwise_options;
use crate::overlap::{self, Memory};
use crate::pointer;
use crate::sized::{self, growing};
use crate::status::{Failure, Result, headwise_error, headwise_status};
use crate::tensor::{headwise_tensor, native, output};
use crate::version::number_of;

/// What attention over some keys gives: its output, and how much those keys weigh.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct headwise_state {
    /// `[batch, heads, seq, value_dim]` of F32.
    pub out: *const headwise_tensor,
    /// The log-sum-exp of each row, `[batch, heads, seq, 1]`; -INFINITY: of no keys.
    pub lse: *const headwise_tensor,
}

/// States of the same queries over different keys, and where the state over all of them goes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct headwise_merge_call {
    /// `sizeof(headwise_merge_call)`.
    pub size: usize,
    /// The states.
    pub states: *const headwise_state,
    /// How many.
    pub count: usize,
    /// Where the merged state goes, in memory of its own.
    pub into: headwise_state,
    /// NULL, or who does the work: of these `executor`, `max_threads` and `isa` count.
    pub options: *const headwise_options,
    /// If not NULL, where the `headwise_isa` that ran goes.
    pub isa: *mut u32,
}
growing!(headwise_merge_call, ..=isa: *mut u32);

/// # Safety
/// All that the call points at must be what the header says.
unsafe fn merge(call: &headwise_merge_call) -> Result<Isa> {
    let expected = "a headwise_tensor";
    // SAFETY: the caller's promise.
    unsafe {
        let out = pointer::required("into.out", call.into.out, expected)?;
        let lse = pointer::required("into.lse", call.into.lse, expected)?;
        let into = StateMut {
            out: output("into.out", out, headwise_dtype::F32)?,
            lse: output("into.lse", lse, headwise_dtype::F32)?,
        };
        let written = [Memory::of("into.out", out)?, Memory::of("into.lse", lse)?];
        let states = pointer::slice("states", call.states, call.count)?.unwrap_or(&[]);
        let mut views = reserved("states", states.len())?;
        for (nth, state) in states.iter().enumerate() {
            let view = read(state, out.shape, &written);
            views.push(view.map_err(|failure| of_state(failure, nth))?);
        }
        overlap::check(&written, &[])?;
        let options = sized::read_or_zero("options", call.options)?;
        let executor = options.executor()?;
        Ok(merge_states_into(&views, into, &options.settings(executor.as_ref())?)?)
    }
}

/// A state of the caller's, in memory apart from what is written.
///
/// # Safety
/// All that the state points at must be what the header says, and nobody write to it, for `'a`.
unsafe fn read<'a>(
    state: &headwise_state,
    shape: Shape,
    written: &[Option<Memory>],
) -> Result<State<'a>> {
    let [batch, heads, seq, _] = shape;
    // SAFETY: the caller's promise.
    unsafe {
        let out = pointer::required("states.out", state.out, "a headwise_tensor")?;
        let lse = pointer::required("states.lse", state.lse, "a headwise_tensor")?;
        let read = State { out: native("states.out", out)?, lse: native("states.lse", lse)? };
        check_shape("states.out", out.shape, shape)?;
        check_shape("states.lse", lse.shape, [batch, heads, seq, 1])?;
        let memory = [Memory::of("states.out", out)?, Memory::of("states.lse", lse)?];
        overlap::check(written, &memory)?;
        Ok(read)
    }
}

fn check_shape(argument: &str, got: Shape, expected: Shape) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    let message = format!("{argument}: shape {got:?}, expected {expected:?} as of `into`");
    Err(Failure::new(headwise_status::Shape, message))
}

/// Says which of the states is refused.
fn of_state(mut failure: Failure, nth: usize) -> Failure {
    failure.message = failure.message.replacen("states.", &format!("states[{nth}]."), 1);
    failure
}

/// Merges states. A row of no keys is the exact identity; of no states the result is 0 and -INFINITY.
///
/// # Safety
/// Pointers must be null or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_merge_states(
    call: *const headwise_merge_call,
    error: *mut headwise_error,
) -> headwise_status {
    let run = || {
        // SAFETY: the caller's promises.
        unsafe {
            let call = sized::read("call", call)?;
            pointer::optional("isa", call.isa)?;
            pointer::give("isa", call.isa, number_of(merge(&call)?))
        }
    };
    // SAFETY: the caller's promises, handed on.
    unsafe { guard(error, run) }
}
