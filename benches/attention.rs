//! Criterion over the shapes that `headwise bench` measures by default, but for those that want a
//! pause before each run: the fused kernels on the default instruction set and all cores. `cargo
//! bench -- llama` measures the shapes with that in their name, `cargo bench -- --test` runs each
//! once.
//!
//! For figures beside the machine's peaks use `headwise bench`: it takes the two in turn.

use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use headwise::{Executor, Isa};
use headwise_cli::shapes::{self, Shape, Suite};
use headwise_cli::work::{self, Way, Work};
use rayon::ThreadPoolBuilder;

fn suites(criterion: &mut Criterion) {
    let pool = ThreadPoolBuilder::new().build().unwrap_or_else(|error| panic!("{error}"));
    for suite in Suite::ALL.into_iter().filter(|suite| suite.by_default()) {
        let mut group = criterion.benchmark_group(suite.name());
        group.sampling_mode(SamplingMode::Flat);
        let shapes = shapes::all().filter(|shape| shape.suite() == suite);
        for shape in shapes.filter(|shape| shape.pause().is_zero()) {
            group.throughput(throughput(&shape));
            // Made when the shape is first measured, so that a filter saves its time too.
            let mut work = None;
            group.bench_function(shape.name(), |bencher| {
                let work = work.get_or_insert_with(|| prepare(&shape));
                let executor = shape.executor();
                bencher.iter_custom(|iterations| {
                    pool.install(|| time(&mut **work, executor, iterations))
                });
            });
        }
        group.finish();
    }
}

fn prepare(shape: &Shape) -> Box<dyn Work> {
    let work = Isa::from_env()
        .map_err(headwise_cli::Error::from)
        .and_then(|isa| work::prepare(shape, isa));
    work.unwrap_or_else(|error| panic!("{}: {error}", shape.name()))
}

/// The time of all iterations; to call inside the pool, where calls start soonest.
fn time(work: &mut dyn Work, executor: &dyn Executor, iterations: u64) -> Duration {
    let start = Instant::now();
    for _ in 0..iterations {
        work.run(Way::Fused, executor).unwrap_or_else(|error| panic!("{error}"));
    }
    start.elapsed()
}

/// Floating-point operations where they are counted (so that elements a second are FLOP/s), bytes
/// elsewhere.
fn throughput(shape: &Shape) -> Throughput {
    match shape.flops() {
        Some(flops) => Throughput::Elements(flops as u64),
        None => Throughput::Bytes(shape.bytes() as u64),
    }
}

/// Few and short samples: the whole table in a few minutes.
fn brief() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! {
    name = benches;
    config = brief();
    targets = suites
}
criterion_main!(benches);
