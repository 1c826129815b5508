//! Attention to tensors or to a cache.

use headwise::{
    AttentionOptions, Input, Isa, KvStorage, KvView, Outputs, ScoreTerm, Workspace,
    attention_cached_into, attention_cached_with_into, attention_into, attention_with_into,
};

use crate::boundary::guard;
use crate::cache::{headwise_cache, stored};
use crate::dtype::{self, Generic, Number};
use crate::executor::Foreign;
use crate::list::headwise_sequences;
use crate::options::headwise_options;
use crate::outputs::headwise_outputs;
use crate::overlap::{self, Memory};
use crate::pointer;
use crate::sized::{self, growing};
use crate::status::{Failure, Result, headwise_error, headwise_status};
use crate::tensor::headwise_tensor;
use crate::term::Term;
use crate::version::number_of;
use crate::workspace::{Lists, Scratch, headwise_workspace};

/// A call: `softmax(scale * query key^T + bias, masked) value`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct headwise_attention_call {
    /// `sizeof(headwise_attention_call)`.
    pub size: usize,
    /// `[batch, q_heads, seq_q, head_dim]`. Of a cache: `[sequences, q_heads, seq_q, head_dim]`, the
    /// last `seq_q` tokens of each.
    pub query: *const headwise_tensor,
    /// `[batch, kv_heads, seq_kv, head_dim]`; `kv_heads` divides `q_heads`. NULL with a cache.
    pub key: *const headwise_tensor,
    /// `[batch, kv_heads, seq_kv, value_dim]`. NULL with a cache.
    pub value: *const headwise_tensor,
    /// Keys and values of past tokens, those of this step appended before.
    pub cache: *const headwise_cache,
    /// Of a paged cache the sequences, one for each batch entry of the queries. Of others none.
    pub sequences: headwise_sequences,
    /// NULL: all zero.
    pub options: *const headwise_options,
    /// Where the results go.
    pub outputs: *const headwise_outputs,
    /// If not NULL, where the `headwise_isa` that ran goes.
    pub isa: *mut u32,
}
growing!(headwise_attention_call, ..=isa: *mut u32);

/// A call whose structs have been read.
struct Call {
    call: headwise_attention_call,
    options: headwise_options,
    outputs: Option<headwise_outputs>,
    executor: Option<Foreign>,
    term: Option<Term>,
}

impl Call {
    /// # Safety
    /// All that the call points at must be what the header says as long as this lives.
    unsafe fn read(call: *const headwise_attention_call) -> Result<Self> {
        // SAFETY: the caller's promise.
        unsafe {
            let call = sized::read("call", call)?;
            let options = sized::read_or_zero("options", call.options)?;
            let outputs = match call.outputs.is_null() {
                true => None,
                false => Some(sized::read("outputs", call.outputs)?),
            };
            pointer::optional("isa", call.isa)?;
            let (executor, term) = (options.executor()?, options.term());
            Ok(Self { call, options, outputs, executor, term })
        }
    }

    fn query(&self) -> Result<&headwise_tensor> {
        // SAFETY: the promise made to `read`.
        unsafe { pointer::required("query", self.call.query, "a headwise_tensor") }
    }

    fn inputs<T: Number>(&self) -> Result<[Input<'_, T>; 3]> {
        let expected = "a headwise_tensor, or a cache";
        // SAFETY: the promise made to `read`.
        unsafe {
            let key = pointer::required("key", self.call.key, expected)?;
            let value = pointer::required("value", self.call.value, expected)?;
            Ok([
                T::reading("query", self.query()?)?,
                T::reading("key", key)?,
                T::reading("value", value)?,
            ])
        }
    }

    /// The outputs, which share no memory with each other or with what is read.
    fn outputs<T: Number>(&self) -> Result<Outputs<'_, T>> {
        let Some(outputs) = &self.outputs else {
            let expected = "a headwise_outputs";
            return Err(Failure::argument("outputs", "a null pointer", expected));
        };
        // SAFETY: the promise made to `read`.
        unsafe {
            let built = outputs.build()?;
            let written = outputs.memory()?;
            overlap::check(&written, &self.options.memory()?)?;
            overlap::check(&written, &self.input_memory()?)?;
            Ok(built)
        }
    }

    fn input_memory(&self) -> Result<[Option<Memory>; 3]> {
        let tensors =
            [("query", self.call.query), ("key", self.call.key), ("value", self.call.value)];
        let mut memory = [None; 3];
        for (to, (argument, tensor)) in memory.iter_mut().zip(tensors) {
            // SAFETY: the promise made to `read`.
            if let Some(tensor) = unsafe { pointer::optional(argument, tensor)? } {
                *to = Memory::of(argument, tensor)?;
            }
        }
        Ok(memory)
    }

    /// The cache, if the call is to one.
    fn cache(&self) -> Result<Option<&headwise_cache>> {
        // SAFETY: the promise made to `read`.
        let cache = unsafe { pointer::optional("cache", self.call.cache)? };
        if cache.is_some() && !(self.call.key.is_null() && self.call.value.is_null()) {
            return Err(Failure::argument("key", "keys or values and a cache", "one of the two"));
        }
        if cache.is_none() && (self.call.sequences.count > 0 || !self.call.sequences.data.is_null())
        {
            let got = "names of sequences";
            return Err(Failure::argument("sequences", got, "none without a cache"));
        }
        Ok(cache)
    }

    fn attend(&self, workspace: &mut Workspace, lists: &mut Lists) -> Result<Isa> {
        if let Some(cache) = self.cache()? {
            return self.attend_cached(cache, workspace, lists);
        }
        if let Some(term) = &self.term {
            return self.attend_with(term, workspace);
        }
        dtype::dispatch("query", self.query()?.dtype, Attend { call: self, workspace })
    }

    fn attend_cached(
        &self,
        cache: &headwise_cache,
        workspace: &mut Workspace,
        lists: &mut Lists,
    ) -> Result<Isa> {
        // SAFETY: the promise made to `read`.
        let (options, query, sequences) = unsafe {
            let options = self.options.build(self.executor.as_ref())?;
            (options, f32::reading("query", self.query()?)?, self.call.sequences.get("sequences")?)
        };
        let outputs = self.outputs()?;
        stored!(&cache.read()?.stored, kind => {
            let view = kind.view(sequences, lists)?;
            Ok(match &self.term {
                None => attention_cached_into(query, &view, &options, outputs, workspace),
                Some(term) => {
                    let term = &term.as_term();
                    attention_cached_with_into(query, &view, term, &options, outputs, workspace)
                }
            }?)
        })
    }

    fn attend_with(&self, term: &Term, workspace: &mut Workspace) -> Result<Isa> {
        // SAFETY: the promise made to `read`.
        let options = unsafe { self.options.build(self.executor.as_ref())? };
        let [query, key, value] = self.inputs()?;
        let outputs = self.outputs()?;
        let term = &term.as_term();
        Ok(attention_with_into(query, key, value, term, &options, outputs, workspace)?)
    }

    fn workspace_bytes(&self) -> Result<usize> {
        // SAFETY: the promise made to `read`.
        unsafe {
            if let Some(cache) = self.cache()? {
                let options = self.options.build(self.executor.as_ref())?;
                let sequences = self.call.sequences.get("sequences")?;
                let query = f32::reading("query", self.query()?)?;
                let mut lists = Lists::default();
                return stored!(&cache.read()?.stored, kind => {
                    let view = kind.view(sequences, &mut lists)?;
                    Ok(match &self.term {
                        None => options.workspace_bytes_cached(query, &view),
                        Some(term) => bytes_cached_with(&term.as_term(), &options, query, &view),
                    }?)
                });
            }
            if let Some(term) = &self.term {
                let options = self.options.build(self.executor.as_ref())?;
                let [query, key, value] = self.inputs()?;
                return Ok(bytes_with(&term.as_term(), &options, [query, key, value])?);
            }
        }
        dtype::dispatch("query", self.query()?.dtype, Measure { call: self })
    }
}

/// [`AttentionOptions::workspace_bytes_with`] of the type of a term that is at hand.
fn bytes_with<U: ScoreTerm>(
    _term: &U,
    options: &AttentionOptions<'_>,
    [query, key, value]: [Input<'_, f32>; 3],
) -> headwise::Result<usize> {
    options.workspace_bytes_with::<U>(query, key, value)
}

/// [`AttentionOptions::workspace_bytes_cached_with`], likewise.
fn bytes_cached_with<'t, U: ScoreTerm, K: KvStorage<Compute = f32>>(
    _term: &U,
    options: &AttentionOptions<'_>,
    query: Input<'t, f32>,
    cache: &KvView<'t, K>,
) -> headwise::Result<usize> {
    options.workspace_bytes_cached_with::<U, K>(query, cache)
}

/// A call to tensors without a term.
struct Attend<'a> {
    call: &'a Call,
    workspace: &'a mut Workspace,
}

impl Generic for Attend<'_> {
    type Output = Isa;

    fn run<T: Number>(self) -> Result<Isa> {
        let call = self.call;
        // SAFETY: the promise made to `Call::read`.
        let options = unsafe { call.options.build::<T>(call.executor.as_ref())? };
        let [query, key, value] = call.inputs()?;
        Ok(attention_into(query, key, value, &options, call.outputs()?, self.workspace)?)
    }
}

/// How much scratch memory such a call takes.
struct Measure<'a> {
    call: &'a Call,
}

impl Generic for Measure<'_> {
    type Output = usize;

    fn run<T: Number>(self) -> Result<usize> {
        let call = self.call;
        // SAFETY: the promise made to `Call::read`.
        let options = unsafe { call.options.build::<T>(call.executor.as_ref())? };
        let [query, key, value] = call.inputs()?;
        Ok(options.workspace_bytes(query, key, value)?)
    }
}

/// Computes attention. A call that is refused has written to no output. Without a workspace (NULL)
/// the call makes one of its own.
///
/// # Safety
/// Pointers must be null or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_attention(
    call: *const headwise_attention_call,
    workspace: *mut headwise_workspace,
    error: *mut headwise_error,
) -> headwise_status {
    let run = || {
        // SAFETY: the caller's promises.
        unsafe {
            let call = Call::read(call)?;
            let isa = match pointer::optional("workspace", workspace)? {
                Some(workspace) => {
                    workspace.lock()?.run(|memory, lists| call.attend(memory, lists))
                }
                None => Scratch::default().run(|memory, lists| call.attend(memory, lists)),
            }?;
            pointer::give("isa", call.call.isa, number_of(isa))
        }
    };
    // SAFETY: the caller's promises, handed on.
    unsafe { guard(error, run) }
}

/// The bytes of workspace with which a call of these shapes and options allocates nothing, but for
/// what `headwise_workspace_options` names. Outputs are not looked at.
///
/// # Safety
/// Pointers must be null or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_workspace_bytes(
    call: *const headwise_attention_call,
    bytes: *mut usize,
    error: *mut headwise_error,
) -> headwise_status {
    // SAFETY: the caller's promises.
    let run = || unsafe {
        let call = Call::read(call)?;
        pointer::give_required("bytes", bytes, || call.workspace_bytes())
    };
    // SAFETY: the caller's promises, handed on.
    unsafe { guard(error, run) }
}
