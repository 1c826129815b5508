//! The `headwise` command as a library: the table of shapes, the runner that measures them, the
//! embedded captures, a whole model, and the commands themselves. Benches, tests and examples use
//! the same parts.
//!
//! ```
//! use headwise_cli::{shapes, work};
//!
//! let shape = shapes::select(None, Some("minilm-32"))?[0];
//! let mut work = work::prepare(&shape, headwise::Isa::widest())?;
//! work.run(headwise_cli::work::Way::Fused, &headwise::Rayon)?;
//! assert_eq!(shape.flops(), Some(2.0 * 12.0 * 32.0 * 32.0 * 64.0));
//! # Ok::<(), headwise_cli::Error>(())
//! ```
#![forbid(unsafe_code)]

pub mod albert;
mod archive;
mod args;
pub mod atom_map;
mod axes;
mod bonds;
mod busy;
mod cached_work;
mod captures;
mod commands;
pub mod compare;
mod error;
mod extents;
mod fork_join;
mod forms;
mod golden;
mod inputs;
mod machine;
pub mod measure;
mod npy;
mod output;
mod precision_work;
mod progress;
mod served;
pub mod shapes;
pub mod smiles;
mod spec;
mod spot_check;
mod sweep;
mod table;
pub mod work;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

pub use error::{Error, Result};

/// The example of the README compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Parses the command line, runs it and says how it went: 0, 1 for a failed check, 2 for bad
/// usage or input.
pub fn main() -> ExitCode {
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => return explain(&error),
    };
    match commands::run(&args) {
        Ok(commands::Verdict::Pass) => ExitCode::SUCCESS,
        Ok(commands::Verdict::Fail) => ExitCode::FAILURE,
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => complain(&format!("error: {error}")),
    }
}

/// Prints the help that was asked for, or says in one line what is wrong with the arguments.
fn explain(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A closed pipe is nobody's fault.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    let lines = text.lines().map(str::trim);
    let what = lines.take_while(|line| !["Usage:", "For more"].iter().any(|s| line.starts_with(s)));
    let what: Vec<_> = what.filter(|line| !line.is_empty()).collect();
    complain(&what.join(" "))
}

fn complain(line: &str) -> ExitCode {
    // With standard error closed as well there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "{line}");
    ExitCode::from(2)
}
