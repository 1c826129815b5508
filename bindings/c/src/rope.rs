//! Rotary embeddings behind a handle.

use headwise::Rope;
use headwise::kv_cache::{Frequencies, Llama3, RopeLayout, RopeScaling, Yarn};

use crate::boundary::guard;
use crate::choice::{choice, choose};
use crate::pointer;
use crate::sized::{self, growing};
use crate::status::{Failure, Result, headwise_error, headwise_status};
use crate::tensor::{headwise_tensor, native};

/// Which dimensions turn together, of the first `rotary_dim`.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum headwise_rope_layout {
    /// `i` and `i + rotary_dim / 2`: GPT-NeoX, Llama as Hugging Face stores it.
    HalfSplit = 0,
    /// `2 i` and `2 i + 1`: GPT-J, Llama as Meta stores it.
    Interleaved = 1,
}
choice!(headwise_rope_layout: HalfSplit, Interleaved);

/// How frequencies are stretched to contexts longer than a model was trained on; docs/kv-cache.md has
/// the formulas.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum headwise_rope_scaling {
    /// Not at all.
    None = 0,
    /// By `factor`.
    Linear = 1,
    /// NTK-aware, by `factor`.
    Ntk = 2,
    /// The same of a sequence of `seq_len` tokens, by `factor` and `original_positions`.
    DynamicNtk = 3,
    /// By `factor`, `original_positions`, `beta_fast`, `beta_slow`, `attention_factor`, `fractional`.
    Yarn = 4,
    /// By `factor`, `original_positions`, `low_freq_factor`, `high_freq_factor`.
    Llama3 = 5,
}
choice!(headwise_rope_scaling: None, Linear, Ntk, DynamicNtk, Yarn, Llama3);

/// A rotary embedding: by a model's numbers, or by tables of the caller's, beside which nothing but
/// `layout` counts.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct headwise_rope_options {
    /// `sizeof(headwise_rope_options)`.
    pub size: usize,
    /// A `headwise_rope_layout`.
    pub layout: u32,
    /// A `headwise_rope_scaling`.
    pub scaling: u32,
    /// The dimensions that are rotated, the first of a row; the others stay.
    pub rotary_dim: usize,
    /// How many positions the table has, from 0 on.
    pub positions: usize,
    /// Pair `i` turns by `base^(-2 i / rotary_dim)` from one position to the next; 0 for 10000.
    pub base: f64,
    /// How many times as long the context is.
    pub factor: f64,
    /// The positions that the model was trained on.
    pub original_positions: usize,
    /// Dynamic NTK: the tokens that there are.
    pub seq_len: usize,
    /// YaRN: pairs that turn as often in the original context keep their frequency; 0 for 32.
    pub beta_fast: f64,
    /// YaRN: pairs that turn no more often are stretched in full; 0 for 1.
    pub beta_slow: f64,
    /// YaRN: a factor on cosines and sines; 0 for `0.1 ln(factor) + 1`.
    pub attention_factor: f64,
    /// Llama 3.
    pub low_freq_factor: f64,
    /// Llama 3.
    pub high_freq_factor: f64,
    /// Or the cosines, `[1, 1, positions, rotary_dim / 2]` of F32, which are copied.
    pub cos: *const headwise_tensor,
    /// And the sines, the same shape.
    pub sin: *const headwise_tensor,
    /// YaRN: 1 if the ends of the ramp stay between dimensions, where models have `truncate: false`; 0 if
    /// they are rounded outwards, as published.
    pub fractional: u32,
    /// 0.
    pub reserved: u32,
}
growing!(headwise_rope_options, ..=sin: *const headwise_tensor, now ..=reserved: u32);

/// Cosines and sines of every position, made once and used in every call.
pub struct headwise_rope {
    pub(crate) rope: Rope,
}

// Handles go from thread to thread, and several threads use a table.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<headwise_rope>();
};

impl headwise_rope_options {
    /// # Safety
    /// The tables must be there.
    unsafe fn build(&self) -> Result<Rope> {
        sized::check_reserved("options", self.reserved)?;
        let layout = match choose("options.layout", self.layout)? {
            headwise_rope_layout::HalfSplit => RopeLayout::HalfSplit,
            headwise_rope_layout::Interleaved => RopeLayout::Interleaved,
        };
        if self.cos.is_null() && self.sin.is_null() {
            let base = or(self.base, 10_000.0);
            let frequencies = Frequencies::new(self.rotary_dim, base, self.scaling()?)?;
            return Ok(Rope::new(layout, &frequencies, self.positions)?);
        }
        let expected = "a headwise_tensor, as of the other";
        // SAFETY: the caller's promise.
        let (cos, sin) = unsafe {
            let cos = pointer::required("options.cos", self.cos, expected)?;
            let sin = pointer::required("options.sin", self.sin, expected)?;
            (native("options.cos", cos)?, native("options.sin", sin)?)
        };
        Ok(Rope::of_tables(layout, cos, sin)?)
    }

    fn scaling(&self) -> Result<RopeScaling> {
        let Self { factor, original_positions, seq_len, .. } = *self;
        Ok(match choose("options.scaling", self.scaling)? {
            headwise_rope_scaling::None => RopeScaling::Unscaled,
            headwise_rope_scaling::Linear => RopeScaling::Linear { factor },
            headwise_rope_scaling::Ntk => RopeScaling::NtkAware { factor },
            headwise_rope_scaling::DynamicNtk => {
                RopeScaling::DynamicNtk { factor, original_positions, seq_len }
            }
            headwise_rope_scaling::Yarn => {
                let published = Yarn::new(factor, original_positions);
                RopeScaling::Yarn(Yarn {
                    beta_fast: or(self.beta_fast, published.beta_fast),
                    beta_slow: or(self.beta_slow, published.beta_slow),
                    attention_factor: Some(self.attention_factor).filter(|&factor| factor != 0.0),
                    truncate: match self.fractional {
                        0 => true,
                        1 => false,
                        other => {
                            return Err(Failure::argument("options.fractional", other, "0 or 1"));
                        }
                    },
                    ..published
                })
            }
            headwise_rope_scaling::Llama3 => {
                let Self { low_freq_factor, high_freq_factor, .. } = *self;
                let llama =
                    Llama3 { factor, low_freq_factor, high_freq_factor, original_positions };
                RopeScaling::Llama3(llama)
            }
        })
    }
}

/// A number, or the one that 0 stands for.
fn or(number: f64, zero: f64) -> f64 {
    if number == 0.0 { zero } else { number }
}

/// The library's refusal of an embedding, with the names of the options.
fn named(failure: Failure) -> Failure {
    match failure.message.split_once(": ") {
        Some(("rope", _)) => failure.renamed("options.positions"),
        Some((option, _)) if !option.starts_with("options") => {
            let option = format!("options.{option}");
            failure.renamed(&option)
        }
        _ => failure,
    }
}

/// # Safety
/// As of [`sized::read`], and the tables must be there.
unsafe fn make(options: *const headwise_rope_options) -> Result<headwise_rope> {
    // SAFETY: the caller's promise.
    let rope = unsafe { sized::read("options", options)?.build() };
    rope.map(|rope| headwise_rope { rope }).map_err(named)
}

/// Makes a rotary embedding. A pair `(x, y)` at position `p` becomes `(x cos - y sin, x sin + y cos)`.
///
/// # Safety
/// Pointers must be null or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_rope_create(
    options: *const headwise_rope_options,
    rope: *mut *mut headwise_rope,
    error: *mut headwise_error,
) -> headwise_status {
    // SAFETY: the caller's promises, handed on.
    unsafe { guard(error, || pointer::give_handle("rope", rope, || make(options))) }
}

/// Frees a rotary embedding that no call uses, and makes the handle NULL.
///
/// # Safety
/// `rope` must be null, or point at null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_rope_free(rope: *mut *mut headwise_rope) {
    // SAFETY: the caller's promise.
    unsafe { pointer::free_handle(rope) }
}
