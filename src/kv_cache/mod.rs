//! Memory for the keys and values of past tokens, and what is done to keys and queries on the way.
//!
//! | | holds | |
//! |---|---|---|
//! | [`ContiguousCache`] | sequences of at most so many tokens | append, truncate |
//! | [`RingCache`] | the last tokens of sequences, in constant memory | append, truncate |
//! | [`PagedCache`] | many sequences of any lengths, which share what they begin with | append, fork, truncate, evict, free |
//!
//! All are allocated once; nothing is copied or allocated until they are grown, which is a call of
//! its own. What attention reads of each is a [`KvView`]: pages of keys and values, and which page
//! holds which positions. Pages that belong to somebody else make one too.
//!
//! What goes in are [`NewTokens`] in any layout. On their way their keys are normalised
//! ([`QkNorm`]) and rotated ([`Rope`]), in the pass that copies them; a [`QkTransform`] does the same
//! to queries.

mod batch;
mod contiguous;
mod lists;
mod marks;
mod paged;
mod pages;
mod pool;
mod positions;
mod qk_norm;
mod ring;
mod rope;
mod rope_scaling;
mod sequences;
mod shape;
mod table_buffer;
mod tokens;
mod transform;
mod view;

pub use batch::BatchCache;
pub use contiguous::{Contiguous, ContiguousCache};
pub use paged::{PagedCache, PagedCapacity};
pub use positions::Positions;
pub use qk_norm::QkNorm;
pub use ring::{Ring, RingCache};
pub use rope::{Rope, RopeLayout};
pub use rope_scaling::{Frequencies, Llama3, RopeScaling, Yarn};
pub use sequences::SequenceId;
pub use shape::KvShape;
pub use table_buffer::TableBuffer;
pub use tokens::NewTokens;
pub use transform::QkTransform;
pub use view::KvView;

pub use crate::PageTables;

use crate::Error;

/// An argument outside its domain.
fn value_error(argument: &'static str, got: impl ToString, expected: impl ToString) -> Error {
    Error::Value { argument, got: got.to_string(), expected: expected.to_string() }
}
