//! The caller's threads.

use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use headwise::Executor;

use crate::sized::{self, growing};
use crate::status::{Failure, Result};

/// What each thread calls, with the data that came with it. Both are dead once the `headwise_run` that
/// they were handed to has returned: no thread may call the task after that.
pub type headwise_task = unsafe extern "C" fn(data: *mut c_void);

/// Calls `task(data)` once on each of up to `threads` threads, the calling one among them and
/// starting at once, and returns when all these calls have. Calling it less often costs speed alone;
/// calling it, or still running it, after `run` has returned is a use of memory that is gone: a thread
/// that comes too late must find nothing to call. One call of the library may run any number of tasks,
/// one after the other, or none.
pub type headwise_run = Option<
    unsafe extern "C" fn(
        context: *mut c_void,
        threads: usize,
        task: headwise_task,
        data: *mut c_void,
    ),
>;

/// The same, there for sure.
type Run = unsafe extern "C" fn(*mut c_void, usize, headwise_task, *mut c_void);

/// Who does the work, instead of a pool that the library starts on first use.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct headwise_executor {
    /// `sizeof(headwise_executor)`.
    pub size: usize,
    /// Handed to `run`.
    pub context: *mut c_void,
    /// The threads worth using, the caller's own included.
    pub threads: usize,
    /// Runs a task on threads; called by the thread that called the library.
    pub run: headwise_run,
    /// The multiply-adds that a call must have before it is worth starting other threads: 50,000 are
    /// about 1 us of work on one core. 0: 2,500,000, which fits threads that must be woken.
    pub least_parallel_work: u64,
}
growing!(headwise_executor, ..=least_parallel_work: u64);

/// An executor of the caller's as the library's.
pub(crate) struct Foreign {
    executor: headwise_executor,
    run: Run,
}

// SAFETY: the context goes nowhere but to `run`, whose caller promised that this may be.
unsafe impl Sync for Foreign {}

impl Foreign {
    /// The caller's executor, if there is one.
    ///
    /// # Safety
    /// As of [`sized::read`]; `run` must do what its type says, without unwinding.
    pub(crate) unsafe fn read(executor: *const headwise_executor) -> Result<Option<Self>> {
        if executor.is_null() {
            return Ok(None);
        }
        // SAFETY: the caller's promise.
        let executor = unsafe { sized::read("executor", executor)? };
        let Some(run) = executor.run else {
            return Err(Failure::argument("executor.run", "a null pointer", "a function"));
        };
        Ok(Some(Self { executor, run }))
    }
}

/// A task under way.
struct Job<'a> {
    work: &'a (dyn Fn() + Sync),
    /// Calls that have begun and not ended.
    active: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// One thread's call; panics stay here, since nothing may unwind through the caller's frames.
unsafe extern "C" fn task(data: *mut c_void) {
    // SAFETY: the job that `run` lent to the caller's function, which has not returned.
    let job = unsafe { &*data.cast_const().cast::<Job<'_>>() };
    job.active.fetch_add(1, Ordering::SeqCst);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(job.work)) {
        *job.panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(panic);
    }
    job.active.fetch_sub(1, Ordering::SeqCst);
}

impl Executor for Foreign {
    fn threads(&self) -> usize {
        self.executor.threads
    }

    fn run(&self, threads: usize, work: &(dyn Fn() + Sync)) {
        let job = Job { work, active: AtomicUsize::new(0), panic: Mutex::new(None) };
        let data = (&raw const job).cast_mut().cast();
        // SAFETY: the caller's promise of the function; the job outlives the call.
        unsafe { (self.run)(self.executor.context, threads, task, data) };
        // A function that returned too early is waited for, as far as it has begun.
        while job.active.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
        if let Some(panic) = job.panic.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
        {
            resume_unwind(panic);
        }
    }

    fn least_parallel_work(&self) -> u64 {
        match self.executor.least_parallel_work {
            0 => headwise::Serial.least_parallel_work(),
            work => work,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::headwise_status;

    unsafe extern "C" fn twice(
        _context: *mut c_void,
        _threads: usize,
        task: headwise_task,
        data: *mut c_void,
    ) {
        // SAFETY: what came, before this returns.
        unsafe {
            task(data);
            task(data);
        }
    }

    fn foreign() -> Foreign {
        let executor = headwise_executor {
            size: size_of::<headwise_executor>(),
            context: std::ptr::null_mut(),
            threads: 2,
            run: Some(twice),
            least_parallel_work: 0,
        };
        // SAFETY: a whole struct with a function that does what it should.
        unsafe { Foreign::read(&executor) }.ok().flatten().unwrap_or_else(|| unreachable!())
    }

    #[test]
    fn a_panic_on_a_thread_becomes_a_status() {
        let count = AtomicUsize::new(0);
        let work = || {
            assert!(count.fetch_add(1, Ordering::SeqCst) > 0, "of a test, on purpose");
        };
        let call = || {
            foreign().run(2, &work);
            Ok(())
        };
        // SAFETY: null is allowed.
        let status = unsafe { crate::boundary::guard(std::ptr::null_mut(), call) };
        assert_eq!(status, headwise_status::Internal);
        assert_eq!(count.into_inner(), 2);
    }
}
