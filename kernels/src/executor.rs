//! Who does the work. An executor runs one closure on some threads; the closure claims tiles
//! from an atomic counter until none is left, so an executor decides about speed, never about
//! what is computed or whether it is sound.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

/// Runs one closure on several threads at once.
///
/// A panic in the closure must reach the caller of [`Executor::run`].
///
/// ```
/// use headwise_kernels::Executor;
///
/// struct Scoped(usize);
///
/// impl Executor for Scoped {
///     fn threads(&self) -> usize {
///         self.0
///     }
///     fn run(&self, threads: usize, work: &(dyn Fn() + Sync)) {
///         std::thread::scope(|scope| {
///             (1..threads).for_each(|_| drop(scope.spawn(work)));
///             work();
///         });
///     }
/// }
/// ```
pub trait Executor: Sync {
    /// The number of threads worth using, the caller's own included.
    fn threads(&self) -> usize;

    /// Calls `work` once on each of up to `threads` threads, the calling one among them and
    /// starting at once. Calling it less often costs speed alone.
    fn run(&self, threads: usize, work: &(dyn Fn() + Sync));

    /// The multiply-adds that a call must have before it is worth starting other threads: 50,000 are
    /// about 1 us of work on one core. The default fits executors that wake a thread and wait for it.
    fn least_parallel_work(&self) -> u64 {
        2_500_000
    }
}

/// The calling thread, alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct Serial;

impl Executor for Serial {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, _threads: usize, work: &(dyn Fn() + Sync)) {
        work();
    }
}

/// The current rayon pool: the one that the caller runs in, or else the global one.
///
/// Inside a pool nothing is allocated; from outside rayon allocates a task per helper. In a process
/// that was forked from one that used the global pool, calls from outside a pool run on one thread:
/// the pool's stayed in the parent, and would be waited for for ever.
#[cfg(feature = "rayon")]
#[derive(Debug, Clone, Copy, Default)]
pub struct Rayon;

#[cfg(feature = "rayon")]
impl Executor for Rayon {
    fn threads(&self) -> usize {
        if pool_is_gone() { 1 } else { rayon::current_num_threads() }
    }

    /// Inside a pool the caller need not wait for a thread that sleeps: it takes its task back.
    fn least_parallel_work(&self) -> u64 {
        if rayon::current_thread_index().is_some() { 500_000 } else { 2_500_000 }
    }

    fn run(&self, threads: usize, work: &(dyn Fn() + Sync)) {
        if rayon::current_thread_index().is_some() {
            fan_out(threads, work);
        } else if pool_is_gone() {
            work();
        } else {
            // `join` would park the caller; a scope in place lets it work.
            rayon::in_place_scope(|scope| {
                (1..threads).for_each(|_| scope.spawn(|_| work()));
                work();
            });
        }
    }
}

/// Whether the calling thread is outside a pool and the global one stayed behind in another process.
#[cfg(feature = "rayon")]
fn pool_is_gone() -> bool {
    rayon::current_thread_index().is_none() && crate::fork::is_child()
}

/// Calls `work` up to `threads` times by halves; `join` keeps its tasks on the stack.
#[cfg(feature = "rayon")]
fn fan_out(threads: usize, work: &(dyn Fn() + Sync)) {
    if threads <= 1 {
        work();
    } else {
        rayon::join(|| fan_out(threads - threads / 2, work), || fan_out(threads / 2, work));
    }
}

/// The most threads that one call uses.
pub(crate) const MAX_THREADS: usize = 256;

/// Items of work wanted for each thread, so that the last one is not waited for long.
pub(crate) const ITEMS_PER_THREAD: usize = 4;

/// Hands out the numbers `0..threads` so that no two holders have the same: each holder owns the
/// scratch of its number.
#[derive(Debug)]
struct Slots {
    taken: [AtomicU64; MAX_THREADS / 64],
    threads: usize,
}

struct Slot<'a> {
    slots: &'a Slots,
    index: usize,
}

impl Slots {
    fn claim(&self) -> Option<Slot<'_>> {
        (0..self.threads).find_map(|index| {
            let bit = 1 << (index % 64);
            // Acquire: what the slot's last holder wrote is seen.
            let before = self.taken[index / 64].fetch_or(bit, Ordering::Acquire);
            // Lazily: a slot that is made is released when it is dropped.
            (before & bit == 0).then(|| Slot { slots: self, index })
        })
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.slots.taken[self.index / 64].fetch_and(!(1 << (self.index % 64)), Ordering::Release);
    }
}

/// What [`for_each_tile`] is to run on.
#[derive(Clone, Copy)]
pub(crate) struct Crew<'a> {
    pub(crate) executor: &'a dyn Executor,
    /// The most threads.
    pub(crate) threads: usize,
}

/// A slice that threads share part by part.
pub(crate) struct Shared<'a, T> {
    ptr: *mut T,
    len: usize,
    lent: PhantomData<&'a mut [T]>,
}
// SAFETY: each part is used by the one thread that `part` promises it to.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { ptr: slice.as_mut_ptr(), len: slice.len(), lent: PhantomData }
    }

    /// Part `index` of those of this length.
    ///
    /// # Safety
    /// Nobody else may use it as long as it is lent, and all parts be of one length.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, index: usize, len: usize) -> &mut [T] {
        assert!((index + 1) * len <= self.len);
        // SAFETY: it lies within the slice, and is nobody else's by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(index * len), len) }
    }
}

/// Calls `tile((local, part), index)` for every index in `0..tiles`, each once, on the crew's
/// threads. The scratch slice is cut into parts of the given length, one for each thread; a part
/// is in one thread's hands at a time, and there are no more threads than parts. `local` makes
/// what a thread keeps on its stack from tile to tile.
pub(crate) fn for_each_tile<T: Send, L>(
    crew: Crew<'_>,
    tiles: usize,
    (scratch, part_len): (&mut [T], usize),
    local: impl Fn() -> L + Sync,
    tile: impl Fn((&mut L, &mut [T]), usize) + Sync,
) {
    let parts = scratch.len().checked_div(part_len).unwrap_or(MAX_THREADS);
    let threads = crew.threads.min(MAX_THREADS).min(tiles).min(parts);
    if threads <= 1 {
        let mut local = local();
        let part = &mut scratch[..part_len];
        return (0..tiles).for_each(|index| tile((&mut local, part), index));
    }
    let shared = Shared::new(scratch);
    let slots = Slots { taken: [const { AtomicU64::new(0) }; MAX_THREADS / 64], threads };
    let next = AtomicU64::new(0);
    let unfinished = AtomicU64::new(0);
    let work = || {
        // A worker that comes when all slots are held finds the work in good hands.
        let Some(slot) = slots.claim() else { return };
        // SAFETY: the slot is held until the end of this call.
        let part = unsafe { shared.part(slot.index, part_len) };
        unfinished.fetch_add(1, Ordering::Relaxed);
        let mut local = local();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= tiles as u64 {
                break;
            }
            tile((&mut local, part), index as usize);
        }
        unfinished.fetch_sub(1, Ordering::Relaxed);
    };
    crew.executor.run(threads, &work);
    // Whatever the executor left undone is done here.
    work();
    // No call is under way any more: one that did not finish panicked, its tile half done.
    assert_eq!(unfinished.into_inner(), 0, "a thread panicked and its executor kept that back");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    struct Lazy;
    impl Executor for Lazy {
        fn threads(&self) -> usize {
            4
        }
        fn run(&self, _threads: usize, _work: &(dyn Fn() + Sync)) {}
    }

    struct Eager;
    impl Executor for Eager {
        fn threads(&self) -> usize {
            2
        }
        fn run(&self, _threads: usize, work: &(dyn Fn() + Sync)) {
            std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(work))));
        }
    }

    fn check(executor: &dyn Executor, threads: usize) {
        let done: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
        let mut held: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
        let crew = Crew { executor, threads };
        for_each_tile(
            crew,
            done.len(),
            (&mut held, 1),
            || (),
            |(_, held), index| {
                assert_eq!(held[0].fetch_add(1, Ordering::SeqCst), 0, "part shared");
                done[index].fetch_add(1, Ordering::SeqCst);
                held[0].fetch_sub(1, Ordering::SeqCst);
            },
        );
        assert!(done.iter().all(|n| n.load(Ordering::SeqCst) == 1));
    }

    #[test]
    fn every_tile_once_whatever_the_executor() {
        check(&Serial, 1);
        check(&Serial, 3);
        check(&Lazy, 4);
        check(&Eager, 2);
    }

    /// A claim that comes too late must not free what another holds.
    #[test]
    fn a_held_slot_stays_held() {
        let slots = Slots { taken: [const { AtomicU64::new(0) }; MAX_THREADS / 64], threads: 2 };
        let first = slots.claim();
        let second = slots.claim();
        assert!(first.as_ref().is_some_and(|slot| slot.index == 0));
        assert!(second.as_ref().is_some_and(|slot| slot.index == 1));
        assert!(slots.claim().is_none());
        assert!(slots.claim().is_none());
        drop(first);
        assert!(slots.claim().is_some_and(|slot| slot.index == 0));
        drop(second);
    }

    #[cfg(feature = "rayon")]
    #[test]
    fn rayon_inside_and_outside_a_pool() {
        check(&Rayon, 3);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build();
        pool.unwrap_or_else(|e| panic!("{e}")).install(|| check(&Rayon, 3));
    }

    /// Keeps panics to itself.
    struct Discreet;
    impl Executor for Discreet {
        fn threads(&self) -> usize {
            2
        }
        fn run(&self, threads: usize, work: &(dyn Fn() + Sync)) {
            std::thread::scope(|scope| {
                (0..threads).for_each(|_| drop(scope.spawn(work).join()));
            });
        }
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        for executor in [&Eager as &dyn Executor, &Discreet, &Serial, &Lazy] {
            let crew = Crew { executor, threads: 2 };
            let tile = |_: (&mut (), &mut [i32]), i| assert_ne!(i, 7, "boom");
            let run = || for_each_tile(crew, 10, (&mut [0; 2], 1), || (), tile);
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
        }
    }
}
