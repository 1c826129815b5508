//! The commands, one file each.

mod bench;
mod demo;
mod explain;
mod info;
mod run;
mod verify;

use headwise::Isa;

use crate::Result;
use crate::args::{Args, Command};
use crate::output::Output;

/// How a command that ran to its end went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    Fail,
}

impl From<bool> for Verdict {
    fn from(pass: bool) -> Self {
        if pass { Self::Pass } else { Self::Fail }
    }
}

/// What every command runs with.
struct Session {
    isa: Isa,
    output: Output,
}

impl Session {
    /// The number of threads of the pool that the command runs in.
    fn threads(&self) -> usize {
        rayon::current_num_threads()
    }
}

/// Runs the command inside a pool of its own: calls from inside a pool start soonest.
pub(crate) fn run(args: &Args) -> Result<Verdict> {
    let common = &args.common;
    let isa = common.isa.map_or_else(Isa::from_env, Isa::check)?;
    let threads = common.threads.map_or(0, usize::from);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let mut session = Session { isa, output: Output::new(common.json) };
    pool.install(|| match &args.command {
        None | Some(Command::Demo) => demo::demo(&mut session),
        Some(Command::Info) => info::info(&mut session),
        Some(Command::Verify(args)) => verify::verify(&mut session, args),
        Some(Command::Run(args)) => run::run(&mut session, args),
        Some(Command::Bench(args)) => bench::bench(&mut session, args),
        Some(Command::Explain(args)) => explain::explain(&mut session, args),
    })
}
