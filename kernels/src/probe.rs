//! Measuring rods: what the machine's multiply-add units and its memory can do at most, by loops
//! that do nothing else. A benchmark's figures stand beside these, taken in the same run.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::executor::{Crew, Executor, MAX_THREADS, for_each_tile};
use crate::simd::{Isa, Kernel, Simd, dispatch};

/// The multiply-add rate of `threads` threads in the widest instruction set, in FLOP/s (a
/// multiply-add is two), measured over about `time`. At least one thread is measured, and at most
/// 256.
pub fn fma_flops(executor: &dyn Executor, threads: usize, time: Duration) -> f64 {
    let threads = threads.clamp(1, MAX_THREADS);
    // Chunks of some 10 us, claimed until time is up; one at least, however slow the machine.
    let done = AtomicU64::new(0);
    let start = Instant::now();
    let crew = Crew { executor, threads };
    for_each_tile(
        crew,
        threads,
        (&mut [0_u8; 0], 0),
        || (),
        |_, _| {
            while done.load(Ordering::Relaxed) == 0 || start.elapsed() < time {
                let flops = dispatch(Isa::widest(), FmaLoop { rounds: 40_000 }).unwrap_or(0);
                done.fetch_add(flops, Ordering::Relaxed);
            }
        },
    );
    done.into_inner() as f64 / start.elapsed().as_secs_f64()
}

struct FmaLoop {
    rounds: u64,
}

impl Kernel for FmaLoop {
    type Output = u64;

    fn run<S: Simd>(self, simd: S) -> u64 {
        simd.vectorize(FmaBody(self.rounds))
    }
}

struct FmaBody(u64);

impl Kernel for FmaBody {
    type Output = u64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> u64 {
        match S::ISA {
            // Up to four units, and 32 registers.
            Isa::Neon => self.chains::<S, 20>(s),
            _ => self.chains::<S, 10>(s),
        }
    }
}

impl FmaBody {
    /// `CHAINS` must be enough to cover the latency of all units.
    #[inline(always)]
    fn chains<S: Simd, const CHAINS: usize>(self, s: S) -> u64 {
        let (a, b) = (s.splat(black_box(0.999)), s.splat(black_box(0.001)));
        let mut acc = [s.splat(black_box(1.0)); CHAINS];
        for _ in 0..self.0 {
            for acc in &mut acc {
                *acc = s.mul_add(a, b, *acc);
            }
        }
        let sum = acc.into_iter().fold(s.splat(0.0), |sum, v| s.add(sum, v));
        let mut lanes = [0.0; crate::simd::MAX_LANES];
        // SAFETY: MAX_LANES floats.
        unsafe { s.store(lanes.as_mut_ptr(), sum) };
        black_box(lanes);
        self.0 * (CHAINS * S::LANES * 2) as u64
    }
}

/// Reads all of `buffers` once on `threads` threads with the widest loads and gives the time it
/// took.
pub fn read_time(executor: &dyn Executor, threads: usize, buffers: &[&[u8]]) -> Duration {
    /// Bytes in a claim.
    const CLAIM: usize = 64 << 10;
    let claims: usize = buffers.iter().map(|buffer| buffer.len().div_ceil(CLAIM)).sum();
    let start = Instant::now();
    let crew = Crew { executor, threads };
    for_each_tile(
        crew,
        claims,
        (&mut [0_u8; 0], 0),
        || (),
        |_, claim| {
            let mut left = claim;
            for buffer in buffers {
                let here = buffer.len().div_ceil(CLAIM);
                if left < here {
                    let data = &buffer[left * CLAIM..((left + 1) * CLAIM).min(buffer.len())];
                    black_box(dispatch(Isa::widest(), ReadLoop(data)).unwrap_or(0.0));
                    return;
                }
                left -= here;
            }
        },
    );
    start.elapsed()
}

struct ReadLoop<'a>(&'a [u8]);

impl Kernel for ReadLoop<'_> {
    type Output = f32;

    fn run<S: Simd>(self, simd: S) -> f32 {
        simd.vectorize(ReadBody(self.0))
    }
}

struct ReadBody<'a>(&'a [u8]);

impl Kernel for ReadBody<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        const CHAINS: usize = 8;
        let mut sums = [s.splat(0.0); CHAINS];
        let step = CHAINS * S::LANES * size_of::<f32>();
        for block in self.0.chunks_exact(step) {
            for (c, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the block has CHAINS vectors, and any bits are floats.
                let v = unsafe { s.load(block.as_ptr().cast::<f32>().add(c * S::LANES)) };
                *sum = s.add(*sum, v);
            }
        }
        let sum = sums.into_iter().fold(s.splat(0.0), |sum, v| s.add(sum, v));
        let mut lanes = [0.0; crate::simd::MAX_LANES];
        // SAFETY: MAX_LANES floats.
        unsafe { s.store(lanes.as_mut_ptr(), sum) };
        lanes.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Serial;

    #[test]
    fn any_number_of_threads_and_buffers() {
        for threads in [0, 1, usize::MAX] {
            assert!(fma_flops(&Serial, threads, Duration::from_millis(1)) > 0.0);
            read_time(&Serial, threads, &[]);
            read_time(&Serial, threads, &[&[], &[1; 3]]);
        }
    }
}
