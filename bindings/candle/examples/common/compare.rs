//! A model with candle's attention and with headwise's, run in turns.

use super::{Result, Sample, Way};

const ROUNDS: usize = 5;

/// The samples of one kind of work.
pub(crate) struct Comparison {
    samples: [Vec<Sample>; 2],
}

impl Comparison {
    /// Takes samples of both in turns, after one of each that does not count.
    pub(crate) fn run(mut sample: impl FnMut(Way) -> Result<Sample>) -> Result<Self> {
        let mut samples = [Vec::new(), Vec::new()];
        for round in 0..=ROUNDS {
            for (way, samples) in Way::BOTH.into_iter().zip(&mut samples) {
                let sample = sample(way)?;
                if round > 0 {
                    samples.push(sample);
                }
            }
        }
        Ok(Self { samples })
    }

    /// Prints the medians as a rate of `amount` units a run.
    pub(crate) fn print(&self, work: &str, amount: f64, unit: &str) {
        println!("{work}, median of {ROUNDS} in turns");
        let medians = self.samples.each_ref().map(|samples| {
            let part = |of: fn(&Sample) -> f64| median(samples.iter().map(of).collect());
            Sample {
                total: part(|sample| sample.total),
                attention: part(|sample| sample.attention),
            }
        });
        for (way, Sample { total, attention }) in Way::BOTH.into_iter().zip(medians) {
            let (rate, name) = (amount / total, way.to_string());
            let (milliseconds, share) = (1e3 * total, 100.0 * attention / total);
            println!(
                "  {name:8} {rate:9.2} {unit}  {milliseconds:9.1} ms, attention {share:4.1} % of it"
            );
        }
        let [candle, headwise] = medians;
        let (whole, part) = (candle.total / headwise.total, candle.attention / headwise.attention);
        println!("  the model {whole:.2} times as fast, its attention {part:.2} times");
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
