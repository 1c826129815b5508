//! The kernels behind `headwise`: everything that is unsafe or SIMD. Applications use the
//! `headwise` crate, which re-exports what they need.
//!
//! A [`Problem`] validates its parts; [`attention`] computes it. Every safe function of this crate
//! is sound for any argument.
//!
//! ```
//! use headwise_kernels::{attention, Masking, Outputs, Problem, Scale, Settings, View, ViewMut, Workspace};
//!
//! // One head, two queries, three keys, head_dim 4, value_dim 1.
//! let (q, k, v) = ([1.0_f32; 8], [0.5_f32; 12], [1.0_f32, 2.0, 3.0]);
//! let problem = Problem::new(
//!     View::bhsd(&q, [1, 1, 2, 4])?,
//!     View::bhsd(&k, [1, 1, 3, 4])?,
//!     View::bhsd(&v, [1, 1, 3, 1])?,
//!     Scale::InvSqrtHeadDim,
//!     &Masking::default(),
//! )?;
//! let mut out = [0.0; 2];
//! let outputs = Outputs::new(ViewMut::bhsd(&mut out, [1, 1, 2, 1])?);
//! attention(&problem, outputs, &Settings::default(), &mut Workspace::new())?;
//! assert!(out.iter().all(|x| (x - 2.0).abs() < 1e-6));
//! # Ok::<(), headwise_kernels::Error>(())
//! ```

mod attention;
mod attention_plan;
mod element;
mod error;
mod executor;
mod explain;
#[cfg(feature = "rayon")]
mod fork;
mod gemm;
mod int8;
mod lent;
mod mask;
mod merge;
mod microkernel;
mod outputs;
mod pages;
mod plan;
pub mod probe;
mod problem;
pub mod reference;
mod settings;
mod simd;
mod softmax;
mod storage;
mod term;
mod unfused;
mod view;
mod workspace;

pub use attention::pairs::{Pairs, computed_pairs};
pub use attention_plan::{AttentionPlan, PlanBuffer};
pub use element::Element;
pub use error::{Error, Result};
#[cfg(feature = "rayon")]
pub use executor::Rayon;
pub use executor::{Executor, Serial};
pub use explain::{Choice, Explanation, explain};
pub use gemm::{PackedLinear, Product, linear, linear_all, linear_workspace_bytes};
pub use int8::Int8;
pub use mask::{BlockPattern, Causal, Documents, Masking, Offsets, Tree, Window};
pub use merge::{State, StateMut, merge_states_into};
pub use outputs::{NO_KEY, Outputs, Pick, Stage};
pub use pages::PageTables;
pub use problem::{Dims, Precision, Problem, Scale, check_value_scales};
pub use settings::{
    Algorithm, Settings, attention, attention_with, workspace_bytes, workspace_bytes_with,
};
pub use simd::{Isa, MAX_LANES, Simd};
pub use softmax::{softmax_in_place, softmax_into, softmax_workspace_bytes};
pub use storage::{Input, KvStorage, Output, Storage};
pub use term::{
    Alibi, At, MAX_POSITION, NoTerm, Position, RelativeBias, Row, Scalar, ScoreTerm, ScoreTile,
    Terms, TileTerm, alibi_slope, scalar, tiles,
};
pub use view::{Shape, Strides, View, ViewMut};
pub use workspace::Workspace;
