//! Executors, good and bad.

use headwise::Executor;

/// New threads for each call.
pub struct Scoped(pub usize);

impl Executor for Scoped {
    fn threads(&self) -> usize {
        self.0
    }

    fn run(&self, threads: usize, work: &(dyn Fn() + Sync)) {
        std::thread::scope(|scope| {
            (1..threads).for_each(|_| drop(scope.spawn(work)));
            work();
        });
    }
}

/// Promises threads and never runs anything.
pub struct Never;

impl Executor for Never {
    fn threads(&self) -> usize {
        4
    }

    fn run(&self, _threads: usize, _work: &(dyn Fn() + Sync)) {}
}

/// Runs the work more often than asked, on more threads.
pub struct TooOften;

impl Executor for TooOften {
    fn threads(&self) -> usize {
        2
    }

    fn run(&self, threads: usize, work: &(dyn Fn() + Sync)) {
        Scoped(3 * threads).run(3 * threads, work);
        work();
    }
}

/// Claims more threads than there can be and has one.
pub struct Boastful;

impl Executor for Boastful {
    fn threads(&self) -> usize {
        usize::MAX
    }

    fn run(&self, _threads: usize, work: &(dyn Fn() + Sync)) {
        work();
    }
}

/// New threads for each call, however small it is.
pub struct Eager(pub usize);

impl Executor for Eager {
    fn threads(&self) -> usize {
        self.0
    }

    fn run(&self, threads: usize, work: &(dyn Fn() + Sync)) {
        Scoped(threads).run(threads, work);
    }

    fn least_parallel_work(&self) -> u64 {
        0
    }
}
