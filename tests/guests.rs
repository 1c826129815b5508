//! Calls as guests on other people's threads: in a pool of the caller's and in tasks of it, from many threads at
//! once, in a process that was told to have one thread. Each gives the bits of one thread alone, and
//! comes to its end. (Forked processes: `kernels/tests/fork.rs`.)

mod common;

use std::process::Command;
use std::sync::Barrier;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use common::case::{Case, Dims, Inputs, Masks};
use common::result_bits;
use headwise::{Causal, Executor, Rayon, Serial};
use rayon::ThreadPool;
use rayon::prelude::*;

const CALLERS: usize = 8;

/// A problem that is worth threads: many queries, or one query and many keys, whose splits wait for
/// each other.
struct Problem {
    inputs: Inputs<f32>,
    expected: [Vec<u64>; 3],
}

impl Problem {
    fn new(seed: u64) -> Self {
        let dims = match seed % 3 {
            0 => Dims { group: 2, kv_heads: 2, ..Dims::single(160, 160, 64, 64) },
            1 => Dims { batch: 3, group: 3, ..Dims::single(70, 300, 32, 48) },
            _ => Dims { group: 4, ..Dims::single(1, 20_000, 64, 64) },
        };
        assert!(dims.work() > 5_000_000, "too little work for threads");
        let masks = Masks { causal: Some(Causal::BottomRight), ..Masks::default() };
        let inputs = Case { masks, ..Case::plain(dims, seed) }.inputs();
        let expected = run(&inputs, &Serial);
        Self { inputs, expected }
    }

    fn all() -> Vec<Self> {
        (0..CALLERS as u64).map(Self::new).collect()
    }

    fn check(&self, executor: &dyn Executor, what: &str) {
        assert!(run(&self.inputs, executor) == self.expected, "{what}");
    }
}

fn run(inputs: &Inputs<f32>, executor: &dyn Executor) -> [Vec<u64>; 3] {
    result_bits(&inputs.run_with(&inputs.options().executor(executor).return_lse()))
}

fn pool(threads: usize) -> ThreadPool {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.unwrap_or_else(|error| panic!("{error}"))
}

/// Fails instead of waiting for ever, if `work` does not come to its end. It has far longer than it
/// needs, so that a slow machine is no failure.
fn ends(work: impl FnOnce() + Send + 'static) {
    let (done, end) = mpsc::channel::<()>();
    let worker = std::thread::spawn(move || {
        work();
        drop(done);
    });
    if end.recv_timeout(Duration::from_secs(300)) == Err(RecvTimeoutError::Timeout) {
        panic!("still at work after five minutes: a deadlock");
    }
    worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Runs all threads at once, several times.
fn together(count: usize, work: impl Fn(usize) + Sync) {
    let barrier = Barrier::new(count);
    std::thread::scope(|scope| {
        for caller in 0..count {
            let (barrier, work) = (&barrier, &work);
            scope.spawn(move || {
                for _ in 0..5 {
                    barrier.wait();
                    work(caller);
                }
            });
        }
    });
}

#[test]
fn in_tasks_of_the_callers_pool() {
    ends(|| {
        let problems = Problem::all();
        for threads in [1, 2, 5] {
            let pool = pool(threads);
            let what = format!("a pool of {threads}");
            pool.install(|| problems.iter().for_each(|problem| problem.check(&Rayon, &what)));
            // More calls than threads: who waits for a call's tiles takes up another call.
            pool.install(|| {
                (0..4 * CALLERS).into_par_iter().for_each(|n| {
                    problems[n % CALLERS].check(&Rayon, &what);
                });
            });
            pool.scope(|scope| {
                for [a, b] in problems.as_chunks().0 {
                    let what = &what;
                    scope.spawn(move |_| {
                        rayon::join(|| a.check(&Rayon, what), || b.check(&Rayon, what));
                    });
                }
            });
        }
    });
}

#[test]
fn from_many_threads_at_once() {
    ends(|| {
        let problems = Problem::all();
        together(CALLERS, |caller| problems[caller].check(&Rayon, "the global pool"));
        let shared = pool(3);
        together(CALLERS, |caller| {
            shared.install(|| problems[caller].check(&Rayon, "a pool that all share"));
        });
        // Some from outside the pool, some from its own tasks.
        together(CALLERS, |caller| match caller % 2 {
            0 => problems[caller].check(&Rayon, "the global pool from outside"),
            _ => rayon::scope(|scope| {
                scope.spawn(|_| problems[caller].check(&Rayon, "a task of the global pool"));
            }),
        });
    });
}

const ALONE: &str = "RAYON_NUM_THREADS";

#[test]
fn in_a_process_of_one_thread() {
    let this = std::env::current_exe().unwrap_or_else(|error| panic!("{error}"));
    let child = Command::new(this)
        .args(["--exact", "with_the_threads_that_the_environment_says", "--include-ignored"])
        .env(ALONE, "1")
        .output()
        .unwrap_or_else(|error| panic!("{error}"));
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "another test runs it in a process of its own"]
fn with_the_threads_that_the_environment_says() {
    if let Ok(threads) = std::env::var(ALONE) {
        assert_eq!(Rayon.threads().to_string(), threads);
    }
    ends(|| {
        let problems = Problem::all();
        together(CALLERS, |caller| problems[caller].check(&Rayon, "as the environment says"));
        problems.par_iter().for_each(|problem| problem.check(&Rayon, "in tasks"));
    });
}

#[test]
#[ignore = "measures: cargo test --release --test guests -- --ignored --nocapture callers"]
fn callers_at_once_beside_taking_turns() {
    let problems = Problem::all();
    let seconds = |work: &dyn Fn()| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    let once = |caller: usize| drop(run(&problems[caller].inputs, &Rayon));
    let mut ratios: Vec<f64> = (0..21)
        .map(|_| {
            let turns = seconds(&|| (0..5).for_each(|_| (0..CALLERS).for_each(once)));
            seconds(&|| together(CALLERS, once)) / turns
        })
        .skip(1)
        .collect();
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    println!(
        "{CALLERS} callers at once take {median:.2} of the time of taking turns (median of 20)"
    );
}
