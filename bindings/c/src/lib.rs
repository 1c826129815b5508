//! The C interface of headwise: `include/headwise.h`, which is generated from what is public here.
//!
//! Every entry has the same shape: [`boundary::guard`] around a closure that turns what the caller
//! points at into the library's own types ([`sized`], [`pointer`], [`tensor`]), and calls it. What
//! the closure refuses, what the library refuses and what panics becomes a status and a message.

#[cfg(panic = "abort")]
compile_error!("a panic must become a status: build with panic = \"unwind\"");

#[cfg(all(test, target_pointer_width = "64"))]
mod abi;
mod attention;
mod boundary;
mod cache;
mod choice;
#[cfg(test)]
mod counting;
#[cfg(test)]
mod decoding;
mod dtype;
mod executor;
#[cfg(test)]
mod incoming;
mod list;
mod mask;
mod options;
mod outputs;
mod overlap;
mod pointer;
mod qk_norm;
mod relative_bias;
mod rope;
#[cfg(test)]
mod same;
mod sized;
mod state;
mod status;
mod tensor;
mod term;
mod transform;
mod version;
mod workspace;
