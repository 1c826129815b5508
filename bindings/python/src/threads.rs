//! The threads that calls share: a pool of our own, made when it is first needed, so that a forked
//! child can have another one than its parent.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use headwise::Executor;
use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error;

static POOL: AtomicPtr<ThreadPool> = AtomicPtr::new(ptr::null_mut());
/// What `set_num_threads` said; 0: as many as the pool has.
static LIMIT: AtomicUsize = AtomicUsize::new(0);

/// The pool, which lives as long as the process.
pub(crate) fn pool() -> PyResult<&'static ThreadPool> {
    let mut pool = POOL.load(Ordering::Acquire);
    if pool.is_null() {
        let name = |thread| format!("headwise {thread}");
        let made = ThreadPoolBuilder::new().thread_name(name).build();
        let made = made.map_err(|e| error::unable("threads", e, "threads to be started"))?;
        let made = Box::into_raw(Box::new(made));
        let empty = ptr::null_mut();
        pool = match POOL.compare_exchange(empty, made, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => made,
            Err(other) => {
                // SAFETY: another thread was first, and nobody has seen this one.
                drop(unsafe { Box::from_raw(made) });
                other
            }
        };
    }
    // SAFETY: what is stored came from a box, and is never freed.
    Ok(unsafe { &*pool })
}

/// Calls from Python run on the pool and the thread that calls.
#[derive(Debug)]
pub(crate) struct Pool(pub(crate) &'static ThreadPool);

impl Executor for Pool {
    fn threads(&self) -> usize {
        self.0.current_num_threads()
    }

    fn run(&self, threads: usize, work: &(dyn Fn() + Sync)) {
        self.0.in_place_scope(|scope| {
            (1..threads).for_each(|_| scope.spawn(|_| work()));
            work();
        });
    }
}

/// The most threads of a call.
pub(crate) fn limit() -> Option<usize> {
    Some(LIMIT.load(Ordering::Relaxed)).filter(|&limit| limit > 0)
}

/// The threads that calls use: as many as there are processors, or as `RAYON_NUM_THREADS` or
/// `set_num_threads` says.
#[pyfunction]
pub(crate) fn get_num_threads() -> PyResult<usize> {
    let threads = pool()?.current_num_threads();
    Ok(limit().map_or(threads, |limit| limit.min(threads)))
}

/// Calls use at most so many threads from now on. The results are the same bits.
#[pyfunction]
pub(crate) fn set_num_threads(threads: usize) -> PyResult<()> {
    if threads == 0 {
        return Err(error::value("threads", threads, "at least 1"));
    }
    LIMIT.store(threads, Ordering::Relaxed);
    Ok(())
}

/// Forgets the pool, whose threads a forked child does not have.
#[pyfunction]
pub(crate) fn after_fork_in_child() {
    POOL.store(ptr::null_mut(), Ordering::Release);
}
