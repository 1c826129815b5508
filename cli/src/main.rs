//! The `headwise` command. All of it lives in the library, where tests and benches reach it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    headwise_cli::main()
}
