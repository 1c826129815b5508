//! The library's call alone, for `benches/overhead.py` to stand beside the call from Python.

use std::hint::{black_box, spin_loop};
use std::time::{Duration, Instant};

use headwise::{AttentionOptions, Outputs, View, ViewMut, Workspace, attention_into};
use pyo3::prelude::*;

use crate::error;
use crate::threads::{Pool, pool};

/// The seconds of each of `calls` calls of the library on `[batch, heads, seq, dim]` for query, key
/// and value, causal from the top left, each `pause` seconds after the last one's end.
#[pyfunction]
pub(crate) fn seconds_of_calls(
    py: Python<'_>,
    shape: [usize; 4],
    calls: usize,
    pause: f64,
) -> PyResult<Vec<f64>> {
    let data: Vec<f32> = (0..shape.iter().product::<usize>()).map(|n| (n as f32).sin()).collect();
    let mut out = vec![0.0_f32; data.len()];
    let pool = Pool(pool()?);
    let pause = Duration::try_from_secs_f64(pause).unwrap_or_default();
    let times = py.detach(|| {
        let view = View::bhsd(&data, shape)?;
        let options = AttentionOptions::new().causal_top_left().executor(&pool);
        let mut workspace = Workspace::new();
        let mut times = Vec::with_capacity(calls);
        for _ in 0..calls {
            let end = Instant::now();
            while end.elapsed() < pause {
                spin_loop();
            }
            let start = Instant::now();
            let outputs = Outputs::new(ViewMut::bhsd(&mut out, shape)?);
            attention_into(view, view, view, &options, black_box(outputs), &mut workspace)?;
            times.push(start.elapsed().as_secs_f64());
        }
        Ok(times)
    });
    times.map_err(error::of)
}
