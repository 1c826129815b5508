//! How long a model computes, and how long of that its attention.

use std::cell::Cell;
use std::time::{Duration, Instant};

thread_local! {
    static ATTENTION: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Runs what lies between the projections of queries, keys and values and that of the output: heads, rotation, the cache,
/// masks and attention itself.
pub(crate) fn attention<R>(run: impl FnOnce() -> R) -> R {
    let start = Instant::now();
    let result = run();
    ATTENTION.set(ATTENTION.get() + start.elapsed());
    result
}

/// The seconds of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) total: f64,
    pub(crate) attention: f64,
}

/// Runs a model on this thread.
pub(crate) fn sample<R>(run: impl FnOnce() -> super::Result<R>) -> super::Result<Sample> {
    let (start, before) = (Instant::now(), ATTENTION.get());
    run()?;
    let attention = ATTENTION.get() - before;
    Ok(Sample { total: start.elapsed().as_secs_f64(), attention: attention.as_secs_f64() })
}
