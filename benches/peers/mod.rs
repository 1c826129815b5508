//! Our product beside those of other crates: the same operands, the same pool. Ours has packed its
//! weights before the first run and adds a bias; theirs pack what they pack in every run.

use gemm::{Parallelism, gemm};
use headwise::{Algorithm, PackedLinear, Settings, Tensor, Workspace, linear};
use headwise_cli::Result;
use headwise_cli::shapes::GemmShape;
use headwise_cli::work::{Work, gemm_operands};
use matrixmultiply::sgemm;

/// A crate that multiplies matrices.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Peer {
    /// `matrixmultiply` on one thread: its feature for more would change our unfused path too.
    MatrixMultiply,
    /// `gemm` on the threads of the current pool.
    Gemm,
}

impl Peer {
    pub(crate) const ALL: [Self; 2] = [Self::MatrixMultiply, Self::Gemm];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::MatrixMultiply => "matrixmultiply-1-thread",
            Self::Gemm => "gemm",
        }
    }
}

/// A peer's `out = x W^T`.
pub(crate) struct PeerWork {
    peer: Peer,
    shape: GemmShape,
    x: Tensor,
    weight: Tensor,
    out: Vec<f32>,
}

impl PeerWork {
    /// # Panics
    /// Where the peer's product is not ours.
    pub(crate) fn new(peer: Peer, shape: GemmShape) -> Result<Self> {
        let (x, weight) = gemm_operands(&shape)?;
        let out = vec![0.0; shape.m * shape.n];
        let mut work = Self { peer, shape, x, weight, out };
        work.run(Algorithm::Auto)?;
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
    fn run(&mut self, _algorithm: Algorithm) -> Result<()> {
        let GemmShape { m, k, n, .. } = self.shape;
        let (row_of_x, row_of_out) = (k as isize, n as isize);
        let (x, w) = (self.x.data().as_ptr(), self.weight.data().as_ptr());
        let out = self.out.as_mut_ptr();
        // W^T [k, n] is W [n, k] with its strides exchanged.
        match self.peer {
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

    fn operands(&self) -> Vec<&[f32]> {
        vec![self.weight.data()]
    }
}
