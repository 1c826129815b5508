//! The `headwise` command as a library: the table of shapes, the runner that measures them, the
//! embedded captures and the commands themselves. Benches and tests use the same parts.
//!
//! ```
//! use headwise_cli::{shapes, work};
//!
//! let shape = shapes::select(None, Some("minilm-32"))?[0];
//! let mut work = work::prepare(&shape, headwise::Isa::widest())?;
//! work.run(headwise::Algorithm::Auto)?;
//! assert_eq!(shape.flops(), Some(2.0 * 12.0 * 32.0 * 32.0 * 64.0));
//! # Ok::<(), headwise_cli::Error>(())
//! ```
#![forbid(unsafe_code)]

mod archive;
mod args;
mod captures;
mod commands;
mod compare;
mod error;
mod extents;
mod inputs;
mod machine;
pub mod measure;
mod npy;
mod output;
mod progress;
pub mod shapes;
mod spec;
mod spot_check;
mod table;
pub mod work;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

pub use error::{Error, Result};

/// Parses the command line, runs it and says how it went: 0, 1 for a failed check, 2 for bad
/// usage or input.
pub fn main() -> ExitCode {
    let args = args::Args::parse();
    match commands::run(&args) {
        Ok(commands::Verdict::Pass) => ExitCode::SUCCESS,
        Ok(commands::Verdict::Fail) => ExitCode::FAILURE,
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            // With standard error closed as well there is nobody left to tell.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(2)
        }
    }
}
