//! Attention with its learned projections: the layers that models are made of.
//!
//! Activations are `[batch, 1, seq, width]`. A layer projects queries, keys and values in one go
//! into a workspace, in the order batch, seq, heads, dim, which attention reads as it lies; what
//! attention leaves there the output projection reads likewise. Nothing is transposed or copied,
//! and a call that finds a [`LayerWorkspace`] large enough allocates nothing.
//!
//! | layer | heads | scale unless the options name one | output projection |
//! |---|---|---|---|
//! | [`SelfAttention`] | 1 | [`Scale::One`](crate::Scale::One) | no |
//! | [`CrossAttention`] | 1 | [`Scale::One`](crate::Scale::One) | no |
//! | [`MultiHeadAttention`] | any | [`Scale::InvSqrtHeadDim`](crate::Scale::InvSqrtHeadDim) | yes |
//!
//! Masks, scale, log-sum-exp and weights are asked for as from [`attention`](crate::attention).
//!
//! ```
//! use headwise::layers::{Linear, MultiHeadAttention, Projections};
//! use headwise::{AttentionOptions, View};
//!
//! let eye: Vec<f32> = (0..64).map(|i| f32::from(u8::from(i % 9 == 0))).collect();
//! let linear = || Linear::new(View::bhsd(&eye, [1, 1, 8, 8])?, None);
//! let projections = Projections { query: linear()?, key: linear()?, value: linear()? };
//! let layer = MultiHeadAttention::new(projections, linear()?, 2)?;
//!
//! let x = [1.0; 3 * 8];
//! let x = View::bhsd(&x, [1, 1, 3, 8])?;
//! let result = layer.forward(x, x, &AttentionOptions::new().return_weights())?;
//! assert_eq!(result.out.shape(), [1, 1, 3, 8]);
//! assert!(result.out.data().iter().all(|x| (x - 1.0).abs() < 1e-6));
//! # Ok::<(), headwise::Error>(())
//! ```

mod buffer;
mod cross_attention;
mod encoder_cache;
mod heads;
mod linear;
#[cfg(feature = "safetensors")]
mod load;
mod multi_head;
mod projected;
mod self_attention;
mod workspace;

pub use cross_attention::CrossAttention;
pub use encoder_cache::{EncoderCache, Memory};
pub use heads::Heads;
pub use linear::Linear;
pub use multi_head::MultiHeadAttention;
pub use projected::Projections;
pub use self_attention::SelfAttention;
pub use workspace::LayerWorkspace;
