//! Which instruction sets there are, which of them this machine has, and which one to use.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use super::cpu::has_fast_bf16;
#[cfg(target_arch = "aarch64")]
use super::neon::Neon;
use super::{Kernel, portable::Portable};
#[cfg(target_arch = "x86_64")]
use super::{avx2::Avx2, avx512::Avx512};
use crate::error::{Error, Result};

/// An instruction set that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// As [`Isa::Avx512`], but queries, keys and values that are all `bf16` are multiplied two by two, by the
    /// dot products of AVX-512 BF16: twice the multiply-adds to an instruction, for probabilities that are
    /// rounded to `bf16`.
    Avx512Bf16,
    /// AVX-512 F, BW, DQ, VL: 16 lanes of `f32`.
    Avx512,
    /// AVX2 and FMA: 8 lanes.
    Avx2,
    /// NEON of aarch64: 4 lanes.
    Neon,
    /// The target's baseline, by way of `wide`: 4 lanes.
    Portable,
}

impl Isa {
    /// Every instruction set of the library, available or not, from the most instructions to the fewest.
    pub const ALL: [Self; 5] =
        [Self::Avx512Bf16, Self::Avx512, Self::Avx2, Self::Neon, Self::Portable];

    /// The name, as options and `HEADWISE_ISA` spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512Bf16 => "avx512bf16",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::Portable => "portable",
        }
    }

    /// Whether this machine can run it. The processor is asked once per process.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Avx512::detect_bf16().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Avx512::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Avx2::detect().is_some(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => Neon::detect().is_some(),
            Self::Portable => true,
            _ => false,
        }
    }

    /// The instruction sets that this machine can run, from the most instructions to the fewest.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// The one with the most instructions that this machine can run, of those that pay on it: see
    /// [`Isa::pays`].
    pub fn widest() -> Self {
        Self::available().find(|isa| isa.pays()).unwrap_or(Self::Portable)
    }

    /// Whether what this adds to the next is worth having on this machine, where it is available. By a table
    /// of micro-architectures, never by a timing, so that the bits of a result are the same on every day:
    ///
    /// | | dot products of `bf16` |
    /// |---|---|
    /// | AMD Zen 4 and newer | as many instructions a cycle as multiply-adds: pay |
    /// | Intel Cooper Lake and newer | half as many: do not pay |
    /// | others | unknown: do not pay |
    pub fn pays(self) -> bool {
        self != Self::Avx512Bf16 || has_fast_bf16()
    }

    /// What a call uses that names none: `HEADWISE_ISA`, read once per process, or else the
    /// widest.
    ///
    /// # Errors
    /// [`Error::IsaName`] where the variable holds something else, [`Error::IsaUnavailable`]
    /// where this machine cannot run it.
    pub fn from_env() -> Result<Self> {
        static CHOICE: OnceLock<Result<Isa>> = OnceLock::new();
        CHOICE
            .get_or_init(|| match std::env::var_os("HEADWISE_ISA") {
                None => Ok(Self::widest()),
                Some(name) => Self::named("HEADWISE_ISA", &name.to_string_lossy())?.check(),
            })
            .clone()
    }

    fn named(argument: &'static str, name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| Error::IsaName {
            argument,
            got: name.into(),
            expected: Self::ALL.map(Self::name).join(", "),
        })
    }

    /// The same, if this machine can run it.
    ///
    /// # Errors
    /// [`Error::IsaUnavailable`], with those that it can.
    pub fn check(self) -> Result<Self> {
        if self.is_available() { Ok(self) } else { Err(self.unavailable()) }
    }

    fn unavailable(self) -> Error {
        let available: Vec<_> = Self::available().map(Self::name).collect();
        Error::IsaUnavailable { requested: self, available: available.join(", ") }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Isa {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        Self::named("isa", name)
    }
}

/// Runs `kernel` with the token of `isa`, in code compiled for the baseline: the place for what
/// stands above the loops. Falls back on none: an unavailable `isa` is an error.
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> Result<K::Output> {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => Avx512::detect_bf16().map(|token| kernel.run(token)),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => Avx512::detect().map(|token| kernel.run(token)),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => Avx2::detect().map(|token| kernel.run(token)),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => Neon::detect().map(|token| kernel.run(token)),
        Isa::Portable => Portable::detect().map(|token| kernel.run(token)),
        _ => None,
    }
    .ok_or_else(|| isa.unavailable())
}
