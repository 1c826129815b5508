//! The command line.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use headwise::Isa;

use crate::axes::AxisArgs;
use crate::shapes::{Dtype, Suite};
use crate::spec::SpecArgs;

/// Fused attention on the CPU: checked on tensors of real models, measured against the machine.
#[derive(Debug, Parser)]
#[command(name = "headwise", version, max_term_width = 100)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) common: Common,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What every command takes.
#[derive(Debug, ClapArgs)]
pub(crate) struct Common {
    /// Print one JSON object a line and nothing else
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// The instruction set, instead of HEADWISE_ISA or else the widest
    #[arg(long, global = true, value_name = "NAME", value_parser = isa_parser())]
    pub(crate) isa: Option<Isa>,

    /// The number of threads, instead of one per logical core
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) threads: Option<u16>,
}

fn isa_parser() -> impl TypedValueParser<Value = Isa> {
    PossibleValuesParser::new(Isa::ALL.map(Isa::name)).try_map(|name| name.parse::<Isa>())
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run embedded captures of real models, a long shape, the four forms, a whole model (the default)
    Demo,
    /// Say what this machine has and can do at most
    Info,
    /// Check a capture: compute q, k, v and compare with out
    Verify(VerifyArgs),
    /// Compute q, k, v from files into a file
    Run(RunArgs),
    /// Measure a table of shapes against the machine's peak
    Bench(BenchArgs),
    /// Say how a shape of the table would be computed, and why
    Explain(ExplainArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct VerifyArgs {
    /// A file with tensors q, k, v and out, and perhaps lse and weights
    #[arg(value_name = "FILE.safetensors")]
    pub(crate) file: PathBuf,

    /// What the tensors' names begin with
    #[arg(long, default_value = "")]
    pub(crate) prefix: String,

    /// The largest error to accept: of out relative to its row's largest value, of lse and
    /// weights absolute
    #[arg(long, value_name = "X", default_value = "2e-5", value_parser = parse_tolerance)]
    pub(crate) tolerance: f64,

    #[command(flatten)]
    pub(crate) spec: SpecArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) inputs: InputArgs,

    /// What the tensors' names in the input begin with
    #[arg(long, default_value = "", requires = "input")]
    pub(crate) prefix: String,

    /// The result: a .safetensors file with tensor out, or a .npy file
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,

    /// Also store the log-sum-exp of each row (.safetensors)
    #[arg(long)]
    pub(crate) lse: bool,

    /// Also store the attention weights (.safetensors)
    #[arg(long)]
    pub(crate) weights: bool,

    /// Also store q, k and v, so that `verify` can check the file (.safetensors)
    #[arg(long)]
    pub(crate) keep_inputs: bool,

    #[command(flatten)]
    pub(crate) spec: SpecArgs,
}

/// One safetensors file, or three .npy files.
#[derive(Debug, ClapArgs)]
pub(crate) struct InputArgs {
    /// A safetensors file with tensors q, k and v
    #[arg(long, value_name = "FILE", required_unless_present_any = ["q", "k", "v"])]
    pub(crate) input: Option<PathBuf>,

    /// Queries, [batch, heads, queries, dim], of f2, f4 or f8
    #[arg(long, value_name = "FILE.npy", conflicts_with = "input", requires_all = ["k", "v"])]
    pub(crate) q: Option<PathBuf>,

    /// Keys
    #[arg(long, value_name = "FILE.npy", conflicts_with = "input", requires_all = ["q", "v"])]
    pub(crate) k: Option<PathBuf>,

    /// Values
    #[arg(long, value_name = "FILE.npy", conflicts_with = "input", requires_all = ["q", "k"])]
    pub(crate) v: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchArgs {
    /// Which part of the table; all of it but the sweep if not given
    #[arg(long)]
    pub(crate) suite: Option<Suite>,

    /// One shape of the table
    #[arg(long, value_name = "NAME")]
    pub(crate) shape: Option<String>,

    /// How to compute; both alternates the two, sample by sample
    #[arg(long, value_enum, default_value_t = Which::Fused)]
    pub(crate) algorithm: Which,

    /// The number of samples, instead of as many as fit a second and a half, seven at least
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) samples: Option<u16>,

    /// Print the shapes without measuring them
    #[arg(long, conflicts_with_all = ["algorithm", "samples"])]
    pub(crate) list: bool,

    #[command(flatten)]
    pub(crate) axes: AxisArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ExplainArgs {
    /// A shape of the table, such as llama-2k or decode-4k
    #[arg(long, value_name = "NAME")]
    pub(crate) shape: String,

    /// How queries, keys, values and output are stored
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    pub(crate) dtype: Dtype,

    /// With scores of integers where that pays
    #[arg(long)]
    pub(crate) fast: bool,
}

/// Which algorithms to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Which {
    Fused,
    Unfused,
    Both,
}

fn parse_tolerance(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|x| x.is_finite() && *x >= 0.0);
    number.ok_or_else(|| "not a finite number of at least 0".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn well_formed() {
        Args::command().debug_assert();
    }
}
