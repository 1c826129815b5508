//! The threads that calls share: a pool of our own, made when it is first needed, so that a forked
//! child can have another one than its parent.

use std::hint::spin_loop;
use std::mem::transmute;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{ptr, thread};

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

/// Calls from Python run on the thread that calls, and on those of the pool that come in time.
#[derive(Debug)]
pub(crate) struct Pool(pub(crate) &'static ThreadPool);

impl Executor for Pool {
    fn threads(&self) -> usize {
        self.0.current_num_threads()
    }

    /// As inside a pool: nobody waits for a thread that sleeps.
    fn least_parallel_work(&self) -> u64 {
        500_000
    }

    fn run(&self, threads: usize, work: &(dyn Fn() + Sync)) {
        // SAFETY: `Offer` follows it only between the offer and the end of `Closing`, while it is borrowed.
        let work = unsafe { transmute::<&(dyn Fn() + Sync), &'static (dyn Fn() + Sync)>(work) };
        let offer = Arc::new(Offer { work, state: AtomicUsize::new(0) });
        for _ in 1..threads {
            let offer = Arc::clone(&offer);
            self.0.spawn(move || offer.take());
        }
        let _closing = Closing(&offer);
        work();
    }
}

/// Work that threads may join until it is closed. One that comes later, since it had to be woken, finds
/// nothing to do, and nobody has waited for it; a scope of rayon's would wait, asleep.
struct Offer {
    work: &'static (dyn Fn() + Sync),
    /// How many threads are at it, twice, and `CLOSED`.
    state: AtomicUsize,
}

const CLOSED: usize = 1;
const ONE_THREAD: usize = 2;

impl Offer {
    fn take(&self) {
        let before = self.state.fetch_add(ONE_THREAD, Ordering::AcqRel);
        let _leaving = Leaving(self);
        if before & CLOSED == 0 {
            (self.work)();
        }
    }
}

/// A thread's part, which ends with this, by a panic too.
struct Leaving<'a>(&'a Offer);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_sub(ONE_THREAD, Ordering::AcqRel);
    }
}

/// Closes an offer, and waits for those who are at it.
struct Closing<'a>(&'a Offer);

/// How long the caller looks for the end without giving its processor to another thread.
const PATIENCE: Duration = Duration::from_micros(100);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let state = &self.0.state;
        let mut now = state.fetch_or(CLOSED, Ordering::AcqRel) | CLOSED;
        let start = Instant::now();
        while now != CLOSED {
            if start.elapsed() < PATIENCE {
                spin_loop();
            } else {
                thread::yield_now();
            }
            now = state.load(Ordering::Acquire);
        }
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
