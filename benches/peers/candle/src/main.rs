//! Runs candle's attention for `run.py`: requests on standard input, answers on standard output,
//! one JSON object a line; `../README.md` has the protocol. The number of threads is that of the
//! rayon pool, `RAYON_NUM_THREADS`.

mod attention;
mod timed;

use std::collections::HashMap;
use std::error::Error;
use std::io::{BufRead, Write, stdin, stdout};
use std::path::PathBuf;
use std::time::Instant;

use attention::{Shape, Way};
use serde::Deserialize;
use serde_json::{Value, json};
use timed::Timed;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
enum Request {
    Hello,
    Ways {},
    Prepare { shape: Shape, way: Way, directory: PathBuf },
    Sample { shape: Shape, way: Way, samples: usize },
    Drop { shape: Shape, way: Way },
}

/// The version that the manifest pins.
fn version() -> Option<&'static str> {
    let pinned = |line: &'static str| line.strip_prefix("candle-nn = \"=")?.strip_suffix('"');
    include_str!("../Cargo.toml").lines().find_map(pinned)
}

#[derive(Default)]
struct Worker {
    calls: HashMap<(String, Way), Timed>,
}

impl Worker {
    fn answer(&mut self, line: &str) -> Result<Value> {
        Ok(match serde_json::from_str(line)? {
            Request::Hello => json!({"name": "candle", "versions": {"candle-nn": version()}}),
            Request::Ways {} => json!({"ways": Way::ALL}),
            Request::Prepare { shape, way, directory } => {
                let mut call = attention::prepare(&shape, way, &directory)?;
                let start = Instant::now();
                let out = call()?;
                let seconds = start.elapsed().as_secs_f64();
                out.contiguous()?.write_npy(directory.join("out.npy"))?;
                let timed = Timed::new(Box::new(move || call().map(drop)), seconds);
                self.calls.insert((shape.name, way), timed);
                json!({"seconds": seconds})
            }
            Request::Sample { shape, way, samples } => {
                let call = self.calls.get_mut(&(shape.name, way)).ok_or("not prepared")?;
                json!({"seconds": call.samples(samples)?})
            }
            Request::Drop { shape, way } => {
                self.calls.remove(&(shape.name, way));
                json!({})
            }
        })
    }
}

fn main() -> Result<()> {
    let mut worker = Worker::default();
    for line in stdin().lock().lines() {
        let answer =
            worker.answer(&line?).unwrap_or_else(|error| json!({"error": error.to_string()}));
        let mut stdout = stdout().lock();
        writeln!(stdout, "{answer}")?;
        stdout.flush()?;
    }
    Ok(())
}
