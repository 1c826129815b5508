//! How work is timed. The clock of a machine wanders, so every figure is taken beside its own
//! measuring rods: samples alternate between the multiply-add loop, calls that do nothing, the read
//! loop over the same buffers and the work, in one process and on the same threads, and the medians
//! are compared. How busy the threads were is found in samples of its own, which are not timed.

use std::thread::sleep;
use std::time::{Duration, Instant};

use headwise::Executor;
use headwise::oracle::probe;

use crate::Result;
use crate::busy::Watched;
use crate::fork_join::{self, fork_join};
use crate::work::{Way, Work};

/// How much time to spend.
#[derive(Debug, Clone, Copy)]
pub struct Protocol {
    /// The number of samples; `None`: as many as the budget allows.
    pub samples: Option<usize>,
    /// The fewest that a budget may lead to.
    pub at_least: usize,
    /// The time to spend on all samples.
    pub budget: Duration,
    /// The idleness before each run; if there is any, a sample is one run.
    pub pause: Duration,
}

impl Protocol {
    /// What `headwise bench` does by default: about a second and a half, seven samples at least.
    pub fn thorough() -> Self {
        let budget = Duration::from_millis(1500);
        Self { samples: None, at_least: 7, budget, pause: Duration::ZERO }
    }

    /// What `headwise demo` does: enough for a look.
    pub fn quick() -> Self {
        Self { at_least: 3, budget: Duration::from_millis(250), ..Self::thorough() }
    }
}

/// A sample of shorter work repeats it for this long.
const LEAST_SAMPLE: Duration = Duration::from_millis(5);
/// The length of a sample of the multiply-add loop.
const PEAK_SAMPLE: Duration = Duration::from_millis(12);
/// Work runs at least this long, or once, before the first sample.
const WARM_UP: Duration = Duration::from_millis(20);
/// More samples than this tell nothing new.
const MOST_SAMPLES: usize = 51;

/// One sample in so many is followed by one of how busy the threads are.
const SAMPLES_PER_BUSY: usize = 7;

/// Seconds per run, and how busy the threads were.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Timing {
    pub median: f64,
    pub best: f64,
    /// The time that threads spent on the work, summed, as a share of the time of all the
    /// executor's threads: the median over the samples of it.
    pub busy: f64,
}

/// What a measurement found.
#[derive(Debug, Clone)]
pub struct Measurement {
    /// The time of each way, in the order they were asked for.
    pub timings: Vec<Timing>,
    /// The multiply-add rate of the widest instruction set, in FLOP/s.
    pub peak_flops: f64,
    /// The rate of the widest read loop over the work's operands, in bytes a second.
    pub read_rate: f64,
    /// The seconds that a call takes in which every thread takes part and does nothing.
    pub fork_join: f64,
    /// The number of samples of each.
    pub samples: usize,
}

impl Measurement {
    /// The seconds below which a call is not expected that moves so many bytes and takes so many
    /// operations: what the slower of the two takes at the machine's rate, and a fork and join.
    pub fn bound(&self, bytes: f64, flops: f64) -> f64 {
        (bytes / self.read_rate).max(flops / self.peak_flops) + self.fork_join
    }
}

/// Times `work` in each of `ways`, on the executor's threads.
///
/// # Errors
/// Where the library refuses a run.
pub fn measure(
    work: &mut dyn Work,
    ways: &[Way],
    executor: &dyn Executor,
    protocol: Protocol,
) -> Result<Measurement> {
    let (mut rods, mut cycle) = Rods::calibrate(work, executor)?;
    let mut repeats = Vec::new();
    for &way in ways {
        let (count, sample) = calibrate(|| work.run(way, executor))?;
        let (count, sample) =
            if protocol.pause.is_zero() { (count, sample) } else { (1, protocol.pause) };
        repeats.push(count);
        cycle += sample;
    }

    let affordable = (protocol.budget.as_secs_f64() / cycle.as_secs_f64()) as usize;
    let samples =
        protocol.samples.unwrap_or_else(|| affordable.clamp(protocol.at_least, MOST_SAMPLES));
    let mut times = vec![Vec::new(); ways.len()];
    let mut shares = times.clone();
    for sample in 0..samples {
        rods.sample(work, executor);
        for (n, (&way, &count)) in ways.iter().zip(&repeats).enumerate() {
            sleep(protocol.pause);
            let time = run_time(work, way, executor, count)?;
            times[n].push(time.as_secs_f64() / f64::from(count));
            if sample.is_multiple_of(SAMPLES_PER_BUSY) {
                let watched = Watched::new(executor);
                sleep(protocol.pause);
                let time = run_time(work, way, &watched, count)?;
                shares[n].push(watched.share(time));
            }
        }
    }
    let operands: usize = work.operands().iter().map(|data| size_of_val(*data)).sum();
    Ok(Measurement {
        timings: times.iter_mut().zip(&mut shares).map(|(t, s)| timing(t, s)).collect(),
        peak_flops: median(&mut rods.peaks),
        read_rate: operands as f64 / median(&mut rods.reads),
        fork_join: median(&mut rods.forks),
        samples,
    })
}

/// Samples of what the machine can do, beside those of the work.
struct Rods {
    /// Operations a second.
    peaks: Vec<f64>,
    /// Seconds of a call that does nothing.
    forks: Vec<f64>,
    /// Seconds of reading the work's operands once.
    reads: Vec<f64>,
    /// How often they are read in a sample.
    read_repeats: u32,
}

impl Rods {
    /// Warms up, and says how long a sample of all is.
    fn calibrate(work: &dyn Work, executor: &dyn Executor) -> Result<(Self, Duration)> {
        let (read_repeats, sample) = calibrate(|| {
            read_time(work, executor);
            Ok(())
        })?;
        let rods = Self { peaks: Vec::new(), forks: Vec::new(), reads: Vec::new(), read_repeats };
        Ok((rods, PEAK_SAMPLE + fork_join(executor) * fork_join::CALLS + sample))
    }

    /// The read loop is the last, and leaves the operands where the work would.
    fn sample(&mut self, work: &dyn Work, executor: &dyn Executor) {
        self.peaks.push(peak_flops(executor));
        self.forks.push(fork_join(executor).as_secs_f64());
        let read: Duration = (0..self.read_repeats).map(|_| read_time(work, executor)).sum();
        self.reads.push(read.as_secs_f64() / f64::from(self.read_repeats));
    }
}

/// The time of `count` runs.
fn run_time(
    work: &mut dyn Work,
    way: Way,
    executor: &dyn Executor,
    count: u32,
) -> Result<Duration> {
    let start = Instant::now();
    for _ in 0..count {
        work.run(way, executor)?;
    }
    Ok(start.elapsed())
}

/// One sample of the multiply-add loop on the executor's threads.
pub(crate) fn peak_flops(executor: &dyn Executor) -> f64 {
    probe::fma_flops(executor, executor.threads(), PEAK_SAMPLE)
}

fn read_time(work: &dyn Work, executor: &dyn Executor) -> Duration {
    probe::read_time(executor, executor.threads(), &work.operands())
}

/// Warms up, and says how many runs make a sample and how long that sample is.
fn calibrate(mut run: impl FnMut() -> Result<()>) -> Result<(u32, Duration)> {
    let start = Instant::now();
    let mut shortest = Duration::MAX;
    while shortest == Duration::MAX || start.elapsed() < WARM_UP {
        let start = Instant::now();
        run()?;
        shortest = shortest.min(start.elapsed());
    }
    let shortest = shortest.max(Duration::from_nanos(10));
    let count = LEAST_SAMPLE.as_nanos().div_ceil(shortest.as_nanos()) as u32;
    Ok((count, shortest * count))
}

fn timing(seconds: &mut [f64], shares: &mut [f64]) -> Timing {
    let middle = median(seconds);
    let best = seconds.first().copied().unwrap_or(f64::NAN);
    Timing { median: middle, best, busy: median(shares) }
}

/// The median, NaN of nothing; sorts the values.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use headwise::Rayon;

    #[test]
    fn medians() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&mut []).is_nan());
    }

    #[test]
    fn a_bound_is_the_slower_rate_and_a_fork() {
        let measured = Measurement {
            timings: Vec::new(),
            peak_flops: 100.0,
            read_rate: 10.0,
            fork_join: 0.5,
            samples: 1,
        };
        assert_eq!(measured.bound(20.0, 100.0), 2.5);
        assert_eq!(measured.bound(20.0, 400.0), 4.5);
    }

    struct Sleep(u32);

    impl Work for Sleep {
        fn run(&mut self, _way: Way, _executor: &dyn Executor) -> Result<()> {
            self.0 += 1;
            sleep(Duration::from_millis(2));
            Ok(())
        }
        fn operands(&self) -> Vec<&[u8]> {
            vec![&[0; 256]]
        }
    }

    #[test]
    fn short_work_is_repeated_and_divided() -> Result<()> {
        let mut work = Sleep(0);
        let protocol = Protocol { samples: Some(3), ..Protocol::quick() };
        let measured = measure(&mut work, &[Way::Fused], &Rayon, protocol)?;
        assert_eq!(measured.samples, 3);
        assert!(work.0 > 3 * 2, "a sample of two milliseconds is repeated");
        assert!((0.002..0.1).contains(&measured.timings[0].best));
        assert!(measured.timings[0].best <= measured.timings[0].median);
        // It never leaves the calling thread.
        let alone = 1.0 / Rayon.threads() as f64;
        assert!((measured.timings[0].busy / alone - 1.0).abs() < 1e-9);
        assert!(measured.peak_flops > 0.0 && measured.read_rate > 0.0);
        assert!(measured.fork_join > 0.0);
        Ok(())
    }

    #[test]
    fn a_pause_precedes_each_run_and_is_not_timed() -> Result<()> {
        let mut work = Sleep(0);
        let pause = Duration::from_millis(200);
        let protocol = Protocol { samples: Some(2), pause, ..Protocol::quick() };
        let start = Instant::now();
        let measured = measure(&mut work, &[Way::Fused], &Rayon, protocol)?;
        // Two samples and one of how busy the threads are.
        assert!(start.elapsed() > 3 * pause);
        assert!((0.002..0.1).contains(&measured.timings[0].best));
        Ok(())
    }
}
