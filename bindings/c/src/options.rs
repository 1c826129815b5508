//! What a call computes beyond the plain case, and how: the caller's struct as the library's options.

use std::ffi::c_void;

use headwise::{
    Algorithm, Alibi, AttentionOptions, BlockPattern, Causal, Documents, Offsets, Precision, Scale,
    Serial, Settings, Tree,
};

use crate::choice::{choice, choose};
use crate::dtype::Number;
use crate::executor::{Foreign, headwise_executor};
use crate::list::{headwise_floats, headwise_ids, headwise_sizes, headwise_words};
use crate::mask;
use crate::overlap::Memory;
use crate::pointer;
use crate::relative_bias::headwise_relative_bias;
use crate::sized::{self, growing};
use crate::status::{Failure, Result};
use crate::tensor::headwise_tensor;
use crate::term::{Term, headwise_tile_function};
use crate::version::isa_of;

/// The factor on the scores.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum headwise_scale {
    /// 1 / sqrt(head_dim).
    InvSqrtHeadDim = 0,
    /// None.
    One = 1,
    /// `scale_value`.
    Value = 2,
}
choice!(headwise_scale: InvSqrtHeadDim, One, Value);

/// Where the causal diagonal lies: query `i` sees key `j` if `j <= i + offset`.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum headwise_causal {
    /// No causal mask.
    None = 0,
    /// The last query sees the last key: an offset of `seq_kv - seq_q`.
    BottomRight = 1,
    /// The first query sees the first key: an offset of 0.
    TopLeft = 2,
    /// `causal_offset`.
    Offset = 3,
    /// The last query sees the last key that exists: `key_lengths[b] - seq_q`.
    AtLength = 4,
}
choice!(headwise_causal: None, BottomRight, TopLeft, Offset, AtLength);

/// Attention with linear biases.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum headwise_alibi {
    /// None.
    None = 0,
    /// The slopes of the paper.
    Standard = 1,
    /// `alibi_slopes`, one for each query head.
    Slopes = 2,
}
choice!(headwise_alibi: None, Standard, Slopes);

/// How attention is computed.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum headwise_algorithm {
    /// The best there is for the element type.
    Auto = 0,
    /// Scores in memory and two products, to compare.
    Unfused = 1,
}
choice!(headwise_algorithm: Auto, Unfused);

/// How exact products are.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum headwise_precision {
    /// As exact as the types of the tensors allow.
    Full = 0,
    /// Where there are instructions for it and rows enough to pay, scores of queries and keys rounded to eight
    /// bits, at a relative error of about 1 %: docs/numerics.md. As `Full` with `term`, with
    /// `HEADWISE_ALGORITHM_UNFUSED` and of F64.
    Fast = 1,
}
choice!(headwise_precision: Full, Fast);

/// `window_sides`: `window_left` counts.
pub const HEADWISE_WINDOW_LEFT: u32 = 1;
/// `window_sides`: `window_right` counts.
pub const HEADWISE_WINDOW_RIGHT: u32 = 2;

/// What to compute beyond the plain case, and how to run it. All zero but for `size` asks for
/// nothing; docs/semantics.md has the meaning of each. "For each sequence" means for each batch entry,
/// or for each sequence of a ragged batch or a cache.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct headwise_options {
    /// `sizeof(headwise_options)`.
    pub size: usize,
    /// A `headwise_scale`.
    pub scale: u32,
    /// Any finite factor, for `HEADWISE_SCALE_VALUE`.
    pub scale_value: f32,
    /// A `headwise_causal`.
    pub causal: u32,
    /// Which limits of the window count: `HEADWISE_WINDOW_LEFT`, `HEADWISE_WINDOW_RIGHT`, both or 0.
    pub window_sides: u32,
    /// For `HEADWISE_CAUSAL_OFFSET`.
    pub causal_offset: i64,
    /// Keys before a query's own that it sees.
    pub window_left: usize,
    /// Keys behind it.
    pub window_right: usize,
    /// For each sequence, or for all: the first keys that are visible in spite of a causal mask.
    pub prefix: headwise_sizes,
    /// For each sequence: the keys that exist (padding on the right).
    pub key_lengths: headwise_sizes,
    /// For each sequence: the first key that exists (padding on the left).
    pub key_starts: headwise_sizes,
    /// A ragged batch: the first query of each sequence, and the length of the tensor.
    pub ragged_query: headwise_sizes,
    /// The same of the keys.
    pub ragged_key: headwise_sizes,
    /// With a cache: queries are packed, the first of each sequence and the length of the tensor.
    pub query_offsets: headwise_sizes,
    /// Packed documents: the number of each query's.
    pub document_query: headwise_ids,
    /// The number of each key's.
    pub document_key: headwise_ids,
    /// Or where each document's queries begin, and the length of the tensor.
    pub document_query_offsets: headwise_sizes,
    /// The same of the keys.
    pub document_key_offsets: headwise_sizes,
    /// A tree of draft tokens over so many last keys; 0 for none.
    pub tree_nodes: usize,
    /// For each node the nodes that it sees, a row of `(tree_nodes + 63) / 64` words.
    pub tree_bits: headwise_words,
    /// A block-sparse pattern: which blocks of keys blocks of queries see, bytes of 0 or 1.
    pub blocks: *const headwise_tensor,
    /// Queries in a block.
    pub block_q: usize,
    /// Keys in a block.
    pub block_kv: usize,
    /// `[batch, q_heads, seq_q, seq_kv]`, the first three perhaps 1: bytes, 1 sees and 0 hides.
    pub mask: *const headwise_tensor,
    /// The same in bits, eight keys to a byte, the lowest first: `[.., (seq_kv + 7) / 8]` of U8.
    pub packed_mask: *const headwise_tensor,
    /// Added to the scores, shaped as `mask`; exactly -INFINITY hides. Of the type that is
    /// computed in, and beside F32 also of F16 or BF16.
    pub bias: *const headwise_tensor,
    /// `softcap * tanh(score / softcap)`; 0 for none.
    pub softcap: f32,
    /// A `headwise_alibi`.
    pub alibi: u32,
    /// For `HEADWISE_ALIBI_SLOPES`.
    pub alibi_slopes: headwise_floats,
    /// For each query head the logit of a sink.
    pub sinks: headwise_floats,
    /// A bias by distance.
    pub relative_bias: *const headwise_relative_bias,
    /// A term of the caller's, behind all others and before the masks.
    pub term: headwise_tile_function,
    /// Handed to `term`.
    pub term_context: *mut c_void,
    /// Who does the work; NULL for the library's own pool.
    pub executor: *const headwise_executor,
    /// At most so many threads; 0 for as many as there are, 1 for the caller's alone.
    pub max_threads: usize,
    /// A `headwise_isa`.
    pub isa: u32,
    /// A `headwise_algorithm`.
    pub algorithm: u32,
    /// Values are stored divided by these, `[kv_heads, value_dim]` of positive, finite factors: the
    /// output is multiplied by them. `headwise_append_call` divides what goes into a cache.
    pub value_scales: headwise_floats,
    /// A `headwise_precision`.
    pub precision: u32,
    /// 0.
    pub reserved: u32,
}
growing!(headwise_options, ..=algorithm: u32, now ..=reserved: u32);

impl headwise_options {
    /// The executor of the options, to be kept as long as what [`headwise_options::build`] gives.
    ///
    /// # Safety
    /// As of [`Foreign::read`].
    pub(crate) unsafe fn executor(&self) -> Result<Option<Foreign>> {
        // SAFETY: the caller's promise.
        unsafe { Foreign::read(self.executor) }
    }

    /// The term of the options.
    ///
    /// # Safety
    /// As of [`Term::new`].
    pub(crate) unsafe fn term(&self) -> Option<Term> {
        // SAFETY: the caller's promise.
        unsafe { Term::new(self.term, self.term_context) }
    }

    /// The library's options.
    ///
    /// # Safety
    /// All that the options point at must be there, and nobody write to it, for `'a`.
    pub(crate) unsafe fn build<'a, T: Number>(
        &self,
        executor: Option<&'a Foreign>,
    ) -> Result<AttentionOptions<'a, T>> {
        sized::check_reserved("options", self.reserved)?;
        let options = self.run_by(AttentionOptions::new(), executor)?;
        let options = self.scaled(options)?.precision(self.precision()?);
        // SAFETY: the caller's promise, for each of them.
        unsafe {
            let options = self.positioned(options)?;
            let options = self.packed(options)?;
            let options = self.masked(options)?;
            let options = self.with_terms(options)?;
            Ok(match self.value_scales.get("options.value_scales")? {
                Some(scales) => options.value_scales(scales),
                None => options,
            })
        }
    }

    /// Who runs a call, and how.
    pub(crate) fn settings<'a>(&self, executor: Option<&'a Foreign>) -> Result<Settings<'a>> {
        let mut settings = match (executor, self.max_threads) {
            // A pool that is not even asked how many threads it has is not started.
            (_, 1) => Settings::default().with_executor(&Serial),
            (Some(executor), _) => Settings::default().with_executor(executor),
            (None, _) => Settings::default(),
        };
        if self.max_threads > 0 {
            settings = settings.with_max_threads(self.max_threads);
        }
        if let Some(isa) = isa_of("options.isa", self.isa)? {
            settings = settings.with_isa(isa);
        }
        Ok(match choose("options.algorithm", self.algorithm)? {
            headwise_algorithm::Auto => settings,
            headwise_algorithm::Unfused => settings.with_algorithm(Algorithm::Unfused),
        })
    }

    fn run_by<'a, T: Number>(
        &self,
        options: AttentionOptions<'a, T>,
        executor: Option<&'a Foreign>,
    ) -> Result<AttentionOptions<'a, T>> {
        let Settings { isa, executor, max_threads, algorithm, .. } = self.settings(executor)?;
        let options = options.executor(executor).algorithm(algorithm);
        let options = max_threads.into_iter().fold(options, AttentionOptions::max_threads);
        Ok(isa.into_iter().fold(options, AttentionOptions::isa))
    }

    fn precision(&self) -> Result<Precision> {
        Ok(match choose("options.precision", self.precision)? {
            headwise_precision::Full => Precision::Full,
            headwise_precision::Fast => Precision::Fast,
        })
    }

    fn scaled<'a, T: Number>(
        &self,
        options: AttentionOptions<'a, T>,
    ) -> Result<AttentionOptions<'a, T>> {
        Ok(options.scale(match choose("options.scale", self.scale)? {
            headwise_scale::InvSqrtHeadDim => Scale::InvSqrtHeadDim,
            headwise_scale::One => Scale::One,
            headwise_scale::Value => Scale::Value(self.scale_value),
        }))
    }

    /// The masks that go by where queries and keys stand.
    ///
    /// # Safety
    /// As of [`headwise_options::build`].
    unsafe fn positioned<'a, T: Number>(
        &self,
        mut options: AttentionOptions<'a, T>,
    ) -> Result<AttentionOptions<'a, T>> {
        let causal = match choose("options.causal", self.causal)? {
            headwise_causal::None => None,
            headwise_causal::BottomRight => Some(Causal::BottomRight),
            headwise_causal::TopLeft => Some(Causal::TopLeft),
            headwise_causal::Offset => Some(Causal::Offset(self.causal_offset)),
            headwise_causal::AtLength => Some(Causal::AtLength),
        };
        if let Some(causal) = causal {
            options = options.causal_with(causal);
        }
        let sides = HEADWISE_WINDOW_LEFT | HEADWISE_WINDOW_RIGHT;
        if self.window_sides & !sides != 0 {
            let expected = "HEADWISE_WINDOW_LEFT, HEADWISE_WINDOW_RIGHT, both or 0";
            return Err(Failure::argument("options.window_sides", self.window_sides, expected));
        }
        let side = |flag, keys| (self.window_sides & flag != 0).then_some(keys);
        options = options.window(
            side(HEADWISE_WINDOW_LEFT, self.window_left),
            side(HEADWISE_WINDOW_RIGHT, self.window_right),
        );
        // SAFETY: the caller's promise.
        let [prefix, lengths, starts] = unsafe {
            [
                self.prefix.get("options.prefix")?,
                self.key_lengths.get("options.key_lengths")?,
                self.key_starts.get("options.key_starts")?,
            ]
        };
        if let Some(prefix) = prefix {
            options = options.prefix(prefix);
        }
        if let Some(lengths) = lengths {
            options = options.key_lengths(lengths);
        }
        Ok(match starts {
            Some(starts) => options.key_starts(starts),
            None => options,
        })
    }

    /// Sequences and documents that lie one behind the other.
    ///
    /// # Safety
    /// As of [`headwise_options::build`].
    unsafe fn packed<'a, T: Number>(
        &self,
        mut options: AttentionOptions<'a, T>,
    ) -> Result<AttentionOptions<'a, T>> {
        // SAFETY: the caller's promise.
        let (ragged, offsets, ids, queries) = unsafe {
            let query = self.ragged_query.get("options.ragged_query")?;
            let ragged =
                both("options.ragged_query", query, self.ragged_key.get("options.ragged_key")?)?;
            let query = self.document_query_offsets.get("options.document_query_offsets")?;
            let key = self.document_key_offsets.get("options.document_key_offsets")?;
            let offsets = both("options.document_query_offsets", query, key)?;
            let query = self.document_query.get("options.document_query")?;
            let key = self.document_key.get("options.document_key")?;
            let ids = both("options.document_query", query, key)?;
            (ragged, offsets, ids, self.query_offsets.get("options.query_offsets")?)
        };
        if let Some((query, key)) = ragged {
            options = options.ragged(query, key);
        }
        if let Some(queries) = queries {
            options = options.query_offsets(queries);
        }
        match (ids, offsets) {
            (None, None) => Ok(options),
            (Some((query, key)), None) => Ok(options.documents(Documents::Ids { query, key })),
            (None, Some((query, key))) => {
                Ok(options.documents(Documents::Offsets(Offsets { query, key })))
            }
            _ => {
                let got = "numbers and offsets of documents";
                Err(Failure::argument("options.document_query", got, "one of the two"))
            }
        }
    }

    /// The masks that have an entry for each place.
    ///
    /// # Safety
    /// As of [`headwise_options::build`].
    unsafe fn masked<'a, T: Number>(
        &self,
        mut options: AttentionOptions<'a, T>,
    ) -> Result<AttentionOptions<'a, T>> {
        // SAFETY: the caller's promise.
        unsafe {
            if let Some(mask) = pointer::optional("options.mask", self.mask)? {
                options = options.mask(mask::boolean("options.mask", mask)?);
            }
            if let Some(mask) = pointer::optional("options.packed_mask", self.packed_mask)? {
                options = options.packed_mask(mask::bits("options.packed_mask", mask)?);
            }
            if let Some(blocks) = pointer::optional("options.blocks", self.blocks)? {
                let visible = mask::boolean("options.blocks", blocks)?;
                let (block_q, block_kv) = (self.block_q, self.block_kv);
                options = options.blocks(BlockPattern { block_q, block_kv, visible });
            }
            let words = self.tree_bits.get("options.tree_bits")?;
            if self.tree_nodes > 0 || words.is_some() {
                options = options.tree(Tree::of_bits(self.tree_nodes, words.unwrap_or(&[])));
            }
            Ok(options)
        }
    }

    /// What is done to scores.
    ///
    /// # Safety
    /// As of [`headwise_options::build`].
    unsafe fn with_terms<'a, T: Number>(
        &self,
        mut options: AttentionOptions<'a, T>,
    ) -> Result<AttentionOptions<'a, T>> {
        if self.softcap != 0.0 {
            options = options.softcap(self.softcap);
        }
        // SAFETY: the caller's promise.
        unsafe {
            options = match choose("options.alibi", self.alibi)? {
                headwise_alibi::None => options,
                headwise_alibi::Standard => options.alibi(Alibi::Standard),
                headwise_alibi::Slopes => {
                    let slopes = self.alibi_slopes.get("options.alibi_slopes")?;
                    options.alibi(Alibi::Slopes(slopes.unwrap_or(&[])))
                }
            };
            if let Some(sinks) = self.sinks.get("options.sinks")? {
                options = options.sinks(sinks);
            }
            if let Some(bias) = pointer::optional("options.relative_bias", self.relative_bias)? {
                options = options.relative_bias(&bias.bias);
            }
            if let Some(tensor) = pointer::optional("options.bias", self.bias)? {
                options = options.bias(T::reading("options.bias", tensor)?);
            }
        }
        Ok(options)
    }

    /// The memory of the tensors that the options name.
    ///
    /// # Safety
    /// As of [`headwise_options::build`].
    pub(crate) unsafe fn memory(&self) -> Result<[Option<Memory>; 4]> {
        let tensors = [
            ("options.mask", self.mask),
            ("options.packed_mask", self.packed_mask),
            ("options.bias", self.bias),
            ("options.blocks", self.blocks),
        ];
        let mut memory = [None; 4];
        for (to, (argument, tensor)) in memory.iter_mut().zip(tensors) {
            // SAFETY: the caller's promise.
            if let Some(tensor) = unsafe { pointer::optional(argument, tensor)? } {
                *to = Memory::of(argument, tensor)?;
            }
        }
        Ok(memory)
    }
}

/// A pair of lists, of which one alone is a mistake.
fn both<'a, T>(
    argument: &str,
    query: Option<&'a [T]>,
    key: Option<&'a [T]>,
) -> Result<Option<(&'a [T], &'a [T])>> {
    match (query, key) {
        (Some(query), Some(key)) => Ok(Some((query, key))),
        (None, None) => Ok(None),
        _ => {
            let got = "a list of queries or of keys alone";
            Err(Failure::argument(argument, got, "both or neither"))
        }
    }
}
