//! Progress on standard error: on a terminal alone, and for work that takes longer than a second.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Work shorter than this shows no progress.
const PATIENCE: Duration = Duration::from_secs(1);

/// A count of steps. It draws when told of a step and at no other time: a thread that ticked
/// would take its share of the cores being measured.
pub(crate) struct Progress {
    bar: ProgressBar,
    start: Instant,
}

impl Progress {
    pub(crate) fn new(steps: usize) -> Self {
        let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template("[{pos}/{len}] {bar:20} {msg}") {
            bar.set_style(style);
        }
        Self { bar, start: Instant::now() }
    }

    /// Says that step `name` begins.
    pub(crate) fn begin(&self, name: &str) {
        if self.bar.is_hidden() && self.start.elapsed() >= PATIENCE {
            // Hides itself where standard error is no terminal.
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_message(name.to_owned());
        self.bar.tick();
    }

    /// Says that a step is done, and takes the bar away while `print` writes its result.
    pub(crate) fn done<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.inc(1);
        self.bar.suspend(print)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
