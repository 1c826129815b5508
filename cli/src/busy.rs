//! How busy the threads of a call are.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use headwise::Executor;

/// An executor that notes for how long the threads of another are at work. It reads the clock
/// around each thread's share of a call, so it is not for timing.
pub(crate) struct Watched<'a> {
    executor: &'a dyn Executor,
    /// Nanoseconds that threads spent in the work, summed over the threads.
    at_work: AtomicU64,
    /// Nanoseconds from giving the work out to the last thread's return.
    given_out: AtomicU64,
}

impl<'a> Watched<'a> {
    pub(crate) fn new(executor: &'a dyn Executor) -> Self {
        Self { executor, at_work: AtomicU64::new(0), given_out: AtomicU64::new(0) }
    }

    /// The share of the threads' time that was spent on calls, if these took `wall`. What a call
    /// does without giving it out keeps its own thread busy and no other.
    pub(crate) fn share(self, wall: Duration) -> f64 {
        let threads = self.executor.threads() as f64;
        let [at_work, given_out] =
            [self.at_work, self.given_out].map(|nanos| nanos.into_inner() as f64 / 1e9);
        let wall = wall.as_secs_f64();
        (at_work + wall - given_out) / (threads * wall)
    }
}

impl Executor for Watched<'_> {
    fn threads(&self) -> usize {
        self.executor.threads()
    }

    fn least_parallel_work(&self) -> u64 {
        self.executor.least_parallel_work()
    }

    fn run(&self, threads: usize, work: &(dyn Fn() + Sync)) {
        let start = Instant::now();
        self.executor.run(threads, &|| {
            let start = Instant::now();
            work();
            add(&self.at_work, start);
        });
        add(&self.given_out, start);
    }
}

fn add(nanos: &AtomicU64, start: Instant) {
    nanos.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::{scope, sleep};

    /// Gives the work to four threads and comes back when all are through.
    struct Four;

    impl Executor for Four {
        fn threads(&self) -> usize {
            4
        }
        fn run(&self, _threads: usize, work: &(dyn Fn() + Sync)) {
            scope(|scope| (0..4).for_each(|_| drop(scope.spawn(work))));
        }
    }

    /// The share of calls that do `call`.
    fn share(executor: &dyn Executor, call: impl FnOnce(&dyn Executor)) -> f64 {
        let watched = Watched::new(executor);
        let start = Instant::now();
        call(&watched);
        watched.share(start.elapsed())
    }

    const LONG: Duration = Duration::from_millis(100);

    #[test]
    fn waiting_is_not_busy() {
        let all = share(&Four, |executor| executor.run(4, &|| sleep(LONG)));
        assert!((0.5..=1.0).contains(&all), "{all}");
        let turn = AtomicU64::new(0);
        let one = share(&Four, |executor| {
            executor.run(4, &|| {
                if turn.fetch_add(1, Ordering::Relaxed) == 0 {
                    sleep(LONG);
                }
            });
        });
        assert!((0.05..0.5).contains(&one), "{one}");
    }

    #[test]
    fn what_is_not_given_out_keeps_one_thread_busy() {
        let one = share(&Four, |_| sleep(LONG));
        assert!((one - 0.25).abs() < 1e-9, "{one}");
        let alone = share(&headwise::Serial, |executor| executor.run(1, &|| sleep(LONG)));
        assert!((0.9..=1.0).contains(&alone), "{alone}");
    }
}
