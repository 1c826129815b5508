//! How a call is to be run, and the call itself.

use crate::attention::fused;
use crate::element::{Element, Path};
use crate::error::Result;
use crate::executor::Executor;
use crate::plan::Plan;
use crate::problem::{Outputs, Problem};
use crate::simd::Isa;
use crate::unfused;
use crate::workspace::{Line, Workspace};

/// How attention is computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Algorithm {
    /// The best there is for the element type: fused for `f32`, unfused for `f64`.
    #[default]
    Auto,
    /// Scores in memory and two products by `matrixmultiply`: the baseline. Holds `seq_kv` scores
    /// for up to 256 rows a thread, and allocates inside the products.
    Unfused,
}

/// Who runs a call and in which instruction set: nothing here changes what is computed beyond
/// rounding.
///
/// ```
/// use headwise_kernels::{Isa, Serial, Settings};
///
/// let settings = Settings::default().with_isa(Isa::Portable).with_executor(&Serial);
/// assert_eq!((settings.isa()?, settings.threads()), (Isa::Portable, 1));
/// # Ok::<(), headwise_kernels::Error>(())
/// ```
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Settings<'a> {
    /// The instruction set; `None`: [`Isa::from_env`].
    pub isa: Option<Isa>,
    /// Who does the work.
    pub executor: &'a dyn Executor,
    /// The most threads to use; `None`: as many as the executor has.
    pub max_threads: Option<usize>,
    /// Fused or not.
    pub algorithm: Algorithm,
}

impl Default for Settings<'_> {
    /// The widest instruction set, the rayon pool if that feature is on, the fused kernels.
    fn default() -> Self {
        #[cfg(feature = "rayon")]
        let executor = &crate::Rayon;
        #[cfg(not(feature = "rayon"))]
        let executor = &crate::Serial;
        Self { isa: None, executor, max_threads: None, algorithm: Algorithm::Auto }
    }
}

impl std::fmt::Debug for Settings<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("isa", &self.isa)
            .field("threads", &self.threads())
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

impl<'a> Settings<'a> {
    /// In this instruction set.
    #[must_use]
    pub fn with_isa(self, isa: Isa) -> Self {
        Self { isa: Some(isa), ..self }
    }

    /// By this executor.
    #[must_use]
    pub fn with_executor(self, executor: &'a dyn Executor) -> Self {
        Self { executor, ..self }
    }

    /// On at most this many threads.
    #[must_use]
    pub fn with_max_threads(self, threads: usize) -> Self {
        Self { max_threads: Some(threads), ..self }
    }

    /// By this algorithm.
    #[must_use]
    pub fn with_algorithm(self, algorithm: Algorithm) -> Self {
        Self { algorithm, ..self }
    }

    /// The instruction set that calls will run in.
    ///
    /// # Errors
    /// As [`Isa::from_env`] and [`Isa::check`].
    pub fn isa(&self) -> Result<Isa> {
        self.isa.map_or_else(Isa::from_env, Isa::check)
    }

    /// The threads that calls may use, at least one.
    pub fn threads(&self) -> usize {
        self.executor.threads().min(self.max_threads.unwrap_or(usize::MAX)).max(1)
    }
}

/// Computes `problem` into `outputs` and says which instruction set ran.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) or [`Error::Stride`](crate::Error::Stride) where the
/// outputs do not fit the problem, [`Error::Overflow`](crate::Error::Overflow) where there is no
/// memory for the workspace, and as [`Settings::isa`]. Nothing is written then.
pub fn attention<T: Element>(
    problem: &Problem<'_, T>,
    outputs: Outputs<'_, T>,
    settings: &Settings<'_>,
    workspace: &mut Workspace,
) -> Result<Isa> {
    outputs.check(problem.dims())?;
    if !problem.dims().has_rows() {
        return settings.isa();
    }
    T::run(problem, &outputs, settings, workspace)
}

/// The bytes of workspace that [`attention`] uses for this problem.
pub fn workspace_bytes<T: Element>(problem: &Problem<'_, T>, settings: &Settings<'_>) -> usize {
    if !problem.dims().has_rows() {
        return 0;
    }
    let lines = match T::path(settings.algorithm) {
        Path::Fused => Plan::new(problem, settings.threads()).lines(),
        Path::Unfused => unfused::lines(problem, settings),
    };
    lines.saturating_mul(size_of::<Line>())
}

/// Which path an element type takes: what `Element` seals.
pub(crate) mod sealed {
    use super::*;

    pub trait Sealed: Sized {
        fn path(algorithm: Algorithm) -> Path;
        fn run(
            problem: &Problem<'_, Self>,
            outputs: &Outputs<'_, Self>,
            settings: &Settings<'_>,
            workspace: &mut Workspace,
        ) -> Result<Isa>
        where
            Self: Element;
    }

    impl Sealed for f32 {
        fn path(algorithm: Algorithm) -> Path {
            match algorithm {
                Algorithm::Auto => Path::Fused,
                Algorithm::Unfused => Path::Unfused,
            }
        }

        fn run(
            problem: &Problem<'_, f32>,
            outputs: &Outputs<'_, f32>,
            settings: &Settings<'_>,
            workspace: &mut Workspace,
        ) -> Result<Isa> {
            match Self::path(settings.algorithm) {
                Path::Fused => fused(problem, outputs, settings, workspace),
                Path::Unfused => unfused::unfused(problem, outputs, settings, workspace),
            }
        }
    }

    impl Sealed for f64 {
        fn path(_algorithm: Algorithm) -> Path {
            Path::Unfused
        }

        fn run(
            problem: &Problem<'_, f64>,
            outputs: &Outputs<'_, f64>,
            settings: &Settings<'_>,
            workspace: &mut Workspace,
        ) -> Result<Isa> {
            unfused::unfused(problem, outputs, settings, workspace)
        }
    }
}
