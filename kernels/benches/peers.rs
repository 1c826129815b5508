//! Our product beside those of other crates, over the table's products: the same operands, the same
//! pool. Ours has packed its weights before the first run and adds a bias; theirs pack what they
//! pack in every run. `cargo bench -- peers/` measures these alone.

use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use gemm::{Parallelism, gemm};
use headwise::{
    Executor, Isa, KvStorage, PackedLinear, Rayon, Settings, Tensor, Workspace, linear,
};
use headwise_cli::Result;
use headwise_cli::shapes::{self, GemmShape, Shape};
use headwise_cli::work::{self, Way, Work, gemm_operands};
use matrixmultiply::sgemm;
use rayon::ThreadPoolBuilder;

fn peers(criterion: &mut Criterion) {
    let pool = ThreadPoolBuilder::new().build().unwrap_or_else(|error| panic!("{error}"));
    for shape in shapes::all() {
        let (Shape::Gemm(sizes), Some(flops)) = (shape, shape.flops()) else { continue };
        let mut group = criterion.benchmark_group(format!("peers/{}", sizes.name));
        group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(flops as u64));
        for peer in Peer::ALL {
            // Made when it is first measured, so that a filter saves its time too.
            let mut work = None;
            group.bench_function(peer.name(), |bencher| {
                let make = || prepare(peer, &shape, sizes).unwrap_or_else(|e| panic!("{e}"));
                let work = work.get_or_insert_with(|| pool.install(make));
                bencher.iter_custom(|iterations| pool.install(|| time(&mut **work, iterations)));
            });
        }
        group.finish();
    }
}

fn prepare(peer: Peer, shape: &Shape, sizes: GemmShape) -> Result<Box<dyn Work>> {
    match peer {
        Peer::Headwise => work::prepare(shape, Isa::from_env()?),
        _ => Ok(Box::new(PeerWork::new(peer, sizes)?)),
    }
}

fn time(work: &mut dyn Work, iterations: u64) -> Duration {
    let start = Instant::now();
    for _ in 0..iterations {
        work.run(Way::Fused, &Rayon).unwrap_or_else(|error| panic!("{error}"));
    }
    start.elapsed()
}

/// A crate that multiplies matrices.
#[derive(Debug, Clone, Copy)]
enum Peer {
    /// Ours.
    Headwise,
    /// `matrixmultiply` on one thread: its feature for more would change our unfused path too.
    MatrixMultiply,
    /// `gemm` on the threads of the current pool.
    Gemm,
}

impl Peer {
    const ALL: [Self; 3] = [Self::Headwise, Self::MatrixMultiply, Self::Gemm];

    fn name(self) -> &'static str {
        match self {
            Self::Headwise => "headwise",
            Self::MatrixMultiply => "matrixmultiply-1-thread",
            Self::Gemm => "gemm",
        }
    }
}

/// A peer's `out = x W^T`.
struct PeerWork {
    peer: Peer,
    shape: GemmShape,
    x: Tensor,
    weight: Tensor,
    out: Vec<f32>,
}

impl PeerWork {
    /// # Panics
    /// Where the peer's product is not ours.
    fn new(peer: Peer, shape: GemmShape) -> Result<Self> {
        let (x, weight) = gemm_operands(&shape)?;
        let out = vec![0.0; shape.m * shape.n];
        let mut work = Self { peer, shape, x, weight, out };
        work.run(Way::Fused, &Rayon)?;
        work.check()?;
        Ok(work)
    }

    /// The last run left what ours gives, to a thousandth of the largest output.
    fn check(&self) -> Result<()> {
        let weights = PackedLinear::pack(self.weight.view(), None)?;
        let mut ours = Tensor::zeros([1, 1, self.shape.m, self.shape.n])?;
        let settings = Settings::default();
        linear(self.x.view(), &weights, ours.view_mut(), &settings, &mut Workspace::new())?;
        let largest = ours.data().iter().fold(0.0_f32, |max, y| max.max(y.abs()));
        let mut pairs = self.out.iter().zip(ours.data());
        let same = pairs.all(|(theirs, ours)| (theirs - ours).abs() <= 1e-3 * largest);
        assert!(same, "{} and ours differ on {}", self.peer.name(), self.shape.name);
        Ok(())
    }
}

impl Work for PeerWork {
    fn run(&mut self, _way: Way, _executor: &dyn Executor) -> Result<()> {
        let GemmShape { m, k, n, .. } = self.shape;
        let (row_of_x, row_of_out) = (k as isize, n as isize);
        let (x, w) = (self.x.data().as_ptr(), self.weight.data().as_ptr());
        let out = self.out.as_mut_ptr();
        // W^T [k, n] is W [n, k] with its strides exchanged.
        match self.peer {
            Peer::Headwise => unreachable!("ours is prepared from the table"),
            // SAFETY: `new` made x [m, k], W [n, k] and out [m, n], contiguous.
            Peer::MatrixMultiply => unsafe {
                sgemm(m, k, n, 1.0, x, row_of_x, 1, w, 1, row_of_x, 0.0, out, row_of_out, 1);
            },
            Peer::Gemm => {
                let threads = Parallelism::Rayon(rayon::current_num_threads());
                let (read_out, alpha, beta) = (false, 0.0, 1.0);
                // SAFETY: as above. Here the stride from column to column comes first.
                unsafe {
                    gemm(
                        m, n, k, out, 1, row_of_out, read_out, x, 1, row_of_x, w, row_of_x, 1,
                        alpha, beta, false, false, false, threads,
                    );
                }
            }
        }
        Ok(())
    }

    fn operands(&self) -> Vec<&[u8]> {
        vec![f32::as_bytes(self.weight.data())]
    }
}

/// Few and short samples.
fn brief() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! {
    name = benches;
    config = brief();
    targets = peers
}
criterion_main!(benches);
