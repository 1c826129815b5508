//! The samples of a call, taken as `../worker.py` takes them.

use std::time::Instant;

use candle_core::Result;

const LEAST_SAMPLE: f64 = 5e-3;
const WARM_UP: f64 = 0.1;
const NO_WARM_UP: f64 = 0.5;

/// A call with the time of its shortest run so far.
pub(crate) struct Timed {
    run: Box<dyn FnMut() -> Result<()>>,
    shortest: f64,
}

impl Timed {
    /// Of a call that has run once, in `first` seconds.
    pub(crate) fn new(run: Box<dyn FnMut() -> Result<()>>, first: f64) -> Self {
        Self { run, shortest: first }
    }

    /// Seconds per run, `count` times.
    pub(crate) fn samples(&mut self, count: usize) -> Result<Vec<f64>> {
        let start = Instant::now();
        while self.shortest < NO_WARM_UP {
            self.shortest = self.shortest.min(self.sample(1)?);
            if start.elapsed().as_secs_f64() >= WARM_UP {
                break;
            }
        }
        let repeats = (LEAST_SAMPLE / self.shortest).ceil().max(1.0) as u32;
        (0..count).map(|_| self.sample(repeats)).collect()
    }

    /// Seconds per run, over so many.
    fn sample(&mut self, repeats: u32) -> Result<f64> {
        let start = Instant::now();
        for _ in 0..repeats {
            (self.run)()?;
        }
        Ok(start.elapsed().as_secs_f64() / f64::from(repeats))
    }
}
