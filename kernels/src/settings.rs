//! How a call is to be run, and the call itself.

use crate::attention::{fused, fused_with, term_floats};
use crate::element::{Element, Path};
use crate::error::Result;
use crate::executor::{Executor, MAX_THREADS};
use crate::microkernel::terms::{Chosen, Scoring};
use crate::outputs::Outputs;
use crate::plan::Plan;
use crate::problem::{Problem, value_error};
use crate::simd::Isa;
use crate::term::ScoreTerm;
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

    /// The threads for a call of so many multiply-adds, or as much other work.
    pub(crate) fn threads_for(&self, work: u128) -> usize {
        if work < self.executor.least_parallel_work().into() {
            1
        } else {
            self.threads().min(MAX_THREADS)
        }
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
    checked(problem, &outputs, settings, || T::run(problem, &outputs, settings, workspace))
}

/// Calls `run` if the outputs fit the problem and there are rows to compute.
fn checked<T: Element>(
    problem: &Problem<'_, T>,
    outputs: &Outputs<'_, T>,
    settings: &Settings<'_>,
    run: impl FnOnce() -> Result<Isa>,
) -> Result<Isa> {
    outputs.check(problem)?;
    let refused = |expected: &str| value_error("algorithm", settings.algorithm, expected.into());
    if T::path(settings.algorithm) == Path::Unfused {
        if problem.is_paged() {
            return refused("Auto, of f32: nothing else reads pages");
        }
        if !problem.is_native() || outputs.out.native().is_none() {
            return refused("Auto: tensors of f16 and bf16 are fused, Unfused takes f32 and f64");
        }
    }
    if problem.dims().has_rows() {
        return run();
    }
    let isa = settings.isa()?;
    outputs.without_rows(problem.dims());
    Ok(isa)
}

/// [`attention`] in `f32` with a term of the caller's in its scores, compiled into the kernel.
///
/// ```
/// use headwise_kernels::{
///     At, Masking, Outputs, Problem, Scale, ScoreTerm, Settings, Simd, View, ViewMut, Workspace,
///     attention_with,
/// };
///
/// /// Scores at a temperature.
/// struct Temperature(f32);
///
/// impl ScoreTerm for Temperature {
///     #[inline(always)]
///     fn apply<S: Simd>(&self, s: S, score: S::Vector, _at: &At<'_, S>) -> S::Vector {
///         s.mul(score, s.splat(1.0 / self.0))
///     }
/// }
///
/// let x = [0.5_f32; 6 * 4];
/// let view = View::bhsd(&x, [1, 1, 6, 4])?;
/// let problem = Problem::new(view, view, view, Scale::InvSqrtHeadDim, &Masking::default())?;
/// let mut out = [0.0; 6 * 4];
/// let outputs = Outputs::new(ViewMut::bhsd(&mut out, [1, 1, 6, 4])?);
/// let (settings, mut workspace) = (Settings::default(), Workspace::new());
/// attention_with(&problem, &Temperature(2.0), outputs, &settings, &mut workspace)?;
/// assert!(out.iter().all(|x| (x - 0.5).abs() < 1e-6));
/// # Ok::<(), headwise_kernels::Error>(())
/// ```
///
/// # Errors
/// As [`attention`]; [`Error::Overflow`](crate::Error::Overflow) where a position lies beyond
/// [`MAX_POSITION`](crate::MAX_POSITION), [`Error::Value`](crate::Error::Value) with
/// [`Algorithm::Unfused`], which has no such terms.
pub fn attention_with<U: ScoreTerm>(
    problem: &Problem<'_, f32>,
    term: &U,
    outputs: Outputs<'_, f32>,
    settings: &Settings<'_>,
    workspace: &mut Workspace,
) -> Result<Isa> {
    problem.check_positions("term")?;
    if settings.algorithm == Algorithm::Unfused {
        let expected = "Auto: terms of the caller's are fused".into();
        return value_error("algorithm", settings.algorithm, expected);
    }
    checked(problem, &outputs, settings, || {
        fused_with(problem, term, &outputs, settings, workspace)
    })
}

/// The bytes of workspace that [`attention_with`] uses for this problem and terms of this type, as
/// [`workspace_bytes`].
pub fn workspace_bytes_with<U: ScoreTerm>(
    problem: &Problem<'_, f32>,
    settings: &Settings<'_>,
) -> usize {
    bytes(problem, settings, <Chosen<'_, U>>::TILE)
}

/// The bytes of workspace that [`attention`] uses for this problem, wherever it is called: a call that
/// stays on one thread here may use more inside a pool.
pub fn workspace_bytes<T: Element>(problem: &Problem<'_, T>, settings: &Settings<'_>) -> usize {
    bytes(problem, settings, term_floats(problem))
}

/// With so many floats a tile for terms.
fn bytes<T: Element>(problem: &Problem<'_, T>, settings: &Settings<'_>, terms: usize) -> usize {
    if !problem.dims().has_rows() {
        return 0;
    }
    let lines = |threads| match T::path(settings.algorithm) {
        Path::Fused => Plan::new(problem, threads, terms).lines_with_table(),
        Path::Unfused => unfused::lines(problem, threads),
    };
    let lines = match settings.threads_for(Plan::work(problem)) {
        1 => lines(1).max(lines(settings.threads().min(MAX_THREADS))),
        threads => lines(threads),
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

#[cfg(test)]
mod tests {
    use super::*;

    struct Eight;
    impl Executor for Eight {
        fn threads(&self) -> usize {
            8
        }
        fn run(&self, _threads: usize, work: &(dyn Fn() + Sync)) {
            work();
        }
    }

    #[test]
    fn small_work_stays_on_one_thread() {
        let settings = Settings::default().with_executor(&Eight);
        assert_eq!(settings.threads_for(2_499_999), 1);
        assert_eq!(settings.threads_for(2_500_000), 8);
    }

    #[cfg(feature = "rayon")]
    #[test]
    fn inside_a_pool_smaller_work_is_shared() {
        let settings = Settings::default().with_executor(&crate::Rayon);
        assert_eq!(settings.threads_for(500_000), 1);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build();
        let inside = || [499_999, 500_000].map(|work| settings.threads_for(work));
        assert_eq!(pool.unwrap_or_else(|e| panic!("{e}")).install(inside), [1, 3]);
    }
}
