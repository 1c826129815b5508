//! What it takes to start an executor's threads and to wait for them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use headwise::Executor;

/// Calls in a sample.
pub(crate) const CALLS: u32 = 64;

/// How long a thread waits for the others: an executor may use fewer than it was asked to.
const PATIENCE: Duration = Duration::from_millis(1);

/// The time of a call in which each of the executor's threads takes part and does nothing, the mean
/// of some in a row.
pub(crate) fn fork_join(executor: &dyn Executor) -> Duration {
    let start = Instant::now();
    (0..CALLS).for_each(|_| meet(executor));
    start.elapsed() / CALLS
}

/// A call whose threads are in it at the same time. Work that is nothing at all would not show what
/// starting them takes: a thread that gives work out takes back what no other has come for.
fn meet(executor: &dyn Executor) {
    let threads = executor.threads();
    let arrived = AtomicUsize::new(0);
    executor.run(threads, &|| {
        let start = Instant::now();
        arrived.fetch_add(1, Ordering::Relaxed);
        while arrived.load(Ordering::Relaxed) < threads && start.elapsed() < PATIENCE {
            yield_now();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use headwise::{Rayon, Serial};
    use rayon::ThreadPoolBuilder;
    use std::collections::HashSet;
    use std::sync::Mutex;
    use std::thread::{ThreadId, current, scope};

    /// Says that it has so many threads, and uses as many or one.
    struct Threads(usize, bool);

    impl Executor for Threads {
        fn threads(&self) -> usize {
            self.0
        }
        fn run(&self, threads: usize, work: &(dyn Fn() + Sync)) {
            let helpers = if self.1 { threads - 1 } else { 0 };
            scope(|scope| {
                (0..helpers).for_each(|_| drop(scope.spawn(work)));
                work();
            });
        }
    }

    #[test]
    fn threads_meet_and_need_not() {
        let [alone, four] = [&Serial as &dyn Executor, &Threads(4, true)].map(fork_join);
        assert!(alone < four);
        assert!(fork_join(&Threads(2, false)) >= PATIENCE);
    }

    /// The pool's threads, noted as they come.
    #[derive(Default)]
    struct Noted(Mutex<HashSet<ThreadId>>);

    impl Executor for Noted {
        fn threads(&self) -> usize {
            Rayon.threads()
        }
        fn run(&self, threads: usize, work: &(dyn Fn() + Sync)) {
            Rayon.run(threads, &|| {
                work();
                self.0.lock().unwrap_or_else(|e| panic!("{e}")).insert(current().id());
            });
        }
    }

    /// Each thread of a pool comes, though the work is nothing.
    #[test]
    fn no_thread_does_the_work_of_another() {
        let pool = ThreadPoolBuilder::new().num_threads(2).build();
        let noted = Noted::default();
        pool.unwrap_or_else(|e| panic!("{e}")).install(|| fork_join(&noted));
        assert_eq!(noted.0.into_inner().map(|threads| threads.len()).ok(), Some(2));
    }
}
