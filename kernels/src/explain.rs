//! What a call will do and why, in words: the choices that the settings, the plan and the loops make.

use std::fmt;

use crate::attention::current::Read;
use crate::attention::term_floats;
use crate::element::{Element, Path};
use crate::error::Result;
use crate::executor::MAX_THREADS;
use crate::microkernel::quads::{self, LEAST_ROWS, MAX_WIDTH};
use crate::microkernel::{BLOCK_KV, BLOCK_Q, few};
use crate::plan::{Plan, SPLIT_KV};
use crate::problem::{Precision, Problem};
use crate::settings::Settings;
use crate::simd::{Isa, Kernel, Simd, dispatch};
use crate::storage::{Format, Input};

/// One choice: of what, what was chosen, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Choice {
    /// What there was to choose.
    pub of: &'static str,
    /// What was chosen.
    pub chosen: String,
    /// Why.
    pub because: String,
}

/// How a problem will be computed, choice by choice. Printed, a line for each.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Explanation {
    /// The choices, from the call inwards.
    pub choices: Vec<Choice>,
}

impl Explanation {
    fn add(&mut self, of: &'static str, chosen: impl Into<String>, because: impl Into<String>) {
        self.choices.push(Choice { of, chosen: chosen.into(), because: because.into() });
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.choices.iter().map(|choice| choice.of.len()).max().unwrap_or(0);
        for Choice { of, chosen, because } in &self.choices {
            writeln!(f, "{of:width$}  {chosen}\n{:width$}    since {because}", "")?;
        }
        Ok(())
    }
}

/// Says how [`attention`](crate::attention) would compute the problem. Nothing is computed.
///
/// ```
/// use headwise_kernels::{Masking, Problem, Scale, Settings, View, explain};
/// use half::bf16;
///
/// let (query, rows) = ([0.5_f32; 8 * 64], [bf16::ONE; 300 * 64]);
/// let query = View::bhsd(&query, [1, 8, 1, 64])?;
/// let cache = View::bhsd(&rows, [1, 1, 300, 64])?;
/// let problem = Problem::new(query, cache, cache, Scale::One, &Masking::default())?;
/// let text = explain(&problem, &Settings::default())?.to_string();
/// assert!(text.contains("bf16"));
/// # Ok::<(), headwise_kernels::Error>(())
/// ```
///
/// # Errors
/// As [`Settings::isa`].
pub fn explain<T: Element>(
    problem: &Problem<'_, T>,
    settings: &Settings<'_>,
) -> Result<Explanation> {
    let mut said = Explanation { choices: Vec::new() };
    let path = T::path(settings.algorithm);
    match path {
        Path::Fused => said.add(
            "algorithm",
            "fused: tile by tile, no score in memory beyond a tile's",
            format!("tensors are computed in {}", T::NAME),
        ),
        Path::Unfused => said.add(
            "algorithm",
            "unfused: scores in memory, two products by matrixmultiply",
            format!("it is asked for, or the only way of {}", T::NAME),
        ),
    }
    let isa = settings.isa()?;
    let why = match settings.isa {
        Some(_) => "the settings name it".to_owned(),
        None => format!("HEADWISE_ISA names it, or it is the widest here ({})", Isa::widest()),
    };
    said.add("instruction set", isa.name(), why);
    let threads = threads(problem, settings, &mut said);
    if path == Path::Unfused || !problem.dims().has_rows() {
        return Ok(said);
    }
    let plan = Plan::new(problem, threads, term_floats(problem));
    cut(problem, &plan, &mut said);
    let powers = if problem.has_natural_scores() {
        ("powers of e, behind the terms", "a bias or a term, or a scale near the largest number")
    } else {
        ("powers of 2, in the multiply-add that takes the reference away", "no bias and no term")
    };
    said.add("exponents", powers.0, format!("there is {}", powers.1));
    let rows = plan.layout.rows.min(BLOCK_Q);
    let (head_dim, most) = (problem.dims().head_dim, few::most_rows(isa));
    let item_rows = plan.layout.rows;
    let longest = (0..problem.sequences()).map(|s| problem.mask.sequence(s).seq_q).max();
    let all = longest.unwrap_or(0) * problem.dims().group_size();
    let read = dispatch(isa, Reads { problem, rows: (item_rows, all) })?;
    let (together, never) = match read[0] {
        Read::Pairs => (2, ""),
        Read::Quads => (4, ", and never of those that are rounded here"),
        Read::Integers => (4, ""),
        Read::Floats | Read::Narrow => (1, ""),
    };
    let fits = few::fits::<f32>(isa, rows, head_dim / together) && never.is_empty();
    let along = if fits { "keys" } else { "queries" };
    let because = format!(
        "a tile has up to {rows} rows of {head_dim} numbers: keys lie along for up to {most} rows of a \
         multiple of {}{never}",
        4 * together
    );
    said.add("scores", format!("{along} along the lanes"), because);
    precision(problem, read, all, &mut said);
    let (products, because) = products(isa, problem, read);
    said.add("products", products, because);
    let format = problem.key.format();
    let because = if read[0] == Read::Narrow {
        "few rows read each number once".to_owned()
    } else if item_rows > most {
        "all tiles of an item read them".to_owned()
    } else {
        format!("keys of {head_dim} numbers are no multiple of {}", format.columns())
    };
    for (of, input, read) in [("keys", &problem.key, read[0]), ("values", &problem.value, read[1])]
    {
        let gathers = problem.gathers();
        let (chosen, because) = match (read, of) {
            (Read::Quads, _) => (
                format!("rounded to integers in scratch, {BLOCK_KV} at a time"),
                "so are the queries, and their products are those of integers".to_owned(),
            ),
            (Read::Integers, _) => (
                "multiplied as they lie".to_owned(),
                "queries and probabilities are rounded to integers too".to_owned(),
            ),
            (Read::Pairs, "keys") => {
                ("in pairs as they lie".to_owned(), "a pair is two numbers of a row".to_owned())
            }
            (Read::Pairs, _) => (
                "paired in scratch".to_owned(),
                "a pair is a number of one row and one of the next".to_owned(),
            ),
            (Read::Floats | Read::Narrow, _) => {
                reading(input, gathers, (read == Read::Narrow, &because))
            }
        };
        said.add(of, format!("{}, {chosen}", input.storage()), because);
    }
    Ok(said)
}

/// How keys and values are read where the instruction set is known.
struct Reads<'a, 'p, T: Element> {
    problem: &'a Problem<'p, T>,
    rows: (usize, usize),
}

impl<T: Element> Kernel for Reads<'_, '_, T> {
    type Output = [Read; 2];

    fn run<S: Simd>(self, s: S) -> [Read; 2] {
        Read::of(s, self.problem, self.rows)
    }
}

/// Whether a precision that was asked for is taken up.
fn precision<T: Element>(
    problem: &Problem<'_, T>,
    read: [Read; 2],
    rows: usize,
    said: &mut Explanation,
) {
    let (chosen, because) = match (problem.precision == Precision::Fast, read[0]) {
        (false, _) => ("full", "nothing else is asked for".to_owned()),
        (true, _) if !problem.wants_quads() => {
            ("full", format!("integers of rows of more than {MAX_WIDTH} numbers could overflow"))
        }
        (true, Read::Quads) => (
            "fast: scores of int8",
            format!(
                "it is asked for, and the longest sequence's {rows} rows share the rounded keys"
            ),
        ),
        (true, Read::Integers) => (
            "fast: scores and values of int8",
            "it is asked for, and keys and values are stored so".to_owned(),
        ),
        (true, _) if !quads::pays(rows) => (
            "full",
            format!(
                "{rows} rows to a sequence are fewer than the {LEAST_ROWS} for which keys are rounded"
            ),
        ),
        (true, _) => ("full", "the instruction set has no dot products of int8".to_owned()),
    };
    said.add("precision", chosen, because);
}

/// What the products are computed by.
fn products<T: Element>(
    isa: Isa,
    problem: &Problem<'_, T>,
    read: [Read; 2],
) -> (&'static str, &'static str) {
    const FLOATS: &str = "multiply-adds of f32";
    match (isa, read) {
        (_, [Read::Quads, Read::Pairs]) => (
            "of scores dot products of four int8, of values those of two bf16",
            "the precision is fast, and the instruction set has these",
        ),
        (_, [Read::Quads, _]) => (
            "of scores dot products of four int8, of values multiply-adds of f32",
            "the precision is fast, and the instruction set has no dot products of bf16",
        ),
        (_, [Read::Integers, _]) => (
            "dot products of four int8",
            "the precision is fast, keys and values are int8, and the instruction set has these",
        ),
        (_, [_, Read::Pairs]) => (
            "dot products of two bf16, for which probabilities are rounded",
            "queries, keys and values are bf16, and the instruction set has these",
        ),
        (Isa::Avx512Bf16, _) => (FLOATS, "some tensor is not bf16, or head_dim is odd"),
        _ if problem.is_in_pairs() && Isa::Avx512Bf16.is_available() && !Isa::Avx512Bf16.pays() => {
            (FLOATS, "dot products of bf16 are slow on this processor; avx512bf16 takes them")
        }
        _ => (FLOATS, "there are no others"),
    }
}

fn threads<T: Element>(
    problem: &Problem<'_, T>,
    settings: &Settings<'_>,
    said: &mut Explanation,
) -> usize {
    let work = Plan::work(problem);
    let (there, threads) = (settings.threads().min(MAX_THREADS), settings.threads_for(work));
    let least = settings.executor.least_parallel_work();
    let side = if work < least.into() { "fewer" } else { "no fewer" };
    let because = format!(
        "the call has about {work} multiply-adds, {side} than the {least} from which others help"
    );
    said.add("threads", format!("{threads} of {there}"), because);
    threads
}

/// Items of work.
fn cut<T: Element>(problem: &Problem<'_, T>, plan: &Plan, said: &mut Explanation) {
    let tiles = plan.layout.tiles;
    let chosen = format!("{} items of up to {tiles} tiles of {BLOCK_Q} rows", plan.items());
    let because = "a block of keys serves all tiles of an item, as long as there are items enough";
    said.add("work", chosen, because);
    let (threads, keys, apart) = (plan.threads, problem.dims().seq_kv, plan.most_apart());
    let (chosen, because) = match apart {
        0 if threads == 1 => ("whole items".into(), "one thread computes all".to_owned()),
        0 if keys <= SPLIT_KV => ("whole items".into(), format!("{keys} keys are one split")),
        0 => ("whole items".into(), format!("there are enough for {threads} threads")),
        _ => (
            format!("by splits of {SPLIT_KV} keys, of up to {apart} items"),
            "items are too few for the threads, or too heavy beside the others".into(),
        ),
    };
    said.add("sharing", chosen, because);
}

/// How kernels come by keys or values, and why; `gathers` if they lie in pages that kernels do not read. With
/// whether kernels read narrow numbers, and why so.
fn reading<T: Element>(
    input: &Input<'_, T>,
    gathers: bool,
    (narrow, because): (bool, &str),
) -> (String, String) {
    if gathers {
        let page = input.shape()[2];
        let chosen = format!("gathered, {BLOCK_KV} at a time");
        return (chosen, format!("pages of {page} rows are no power of two from 16 to 64"));
    }
    match (input.format(), narrow) {
        (Format::Native, _) => {
            ("read where they lie".into(), "they are what is computed in".into())
        }
        (_, true) => ("widened by the kernels that read them".into(), because.into()),
        (_, false) => (format!("widened into scratch, {BLOCK_KV} at a time"), because.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Algorithm, Masking, Scale, Serial, View};
    use half::bf16;

    /// What is said of a choice about `heads` query heads on one head of 5000 keys in `bf16`.
    fn said(heads: usize, seq_q: usize, settings: &Settings<'_>, of: &str) -> String {
        let (query, rows) = (vec![0.5_f32; 64 * heads * seq_q], vec![bf16::ONE; 64 * 5000]);
        let text = || {
            let query = View::bhsd(&query, [1, heads, seq_q, 64])?;
            let cache = View::bhsd(&rows, [1, 1, 5000, 64])?;
            let problem = Problem::new(query, cache, cache, Scale::One, &Masking::default())?;
            let explanation = explain(&problem, settings)?;
            assert!(explanation.to_string().contains("algorithm"));
            let choice = explanation.choices.into_iter().find(|choice| choice.of == of);
            Ok::<_, crate::Error>(choice.map_or_else(String::new, |choice| choice.chosen))
        };
        text().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn pairs_are_where_all_is_bf16() -> Result<()> {
        let rows = [bf16::ONE; 64 * 20];
        let x = View::bhsd(&rows, [1, 1, 20, 64])?;
        let problem = Problem::new(x, x, x, Scale::One, &Masking::default())?;
        for isa in Isa::available() {
            let text = explain(&problem, &Settings::default().with_isa(isa))?.to_string();
            assert_eq!(text.contains("in pairs as they lie"), isa == Isa::Avx512Bf16, "{text}");
            assert_eq!(text.contains("dot products of two"), isa == Isa::Avx512Bf16, "{text}");
        }
        Ok(())
    }

    #[test]
    fn choices_are_those_of_the_call() {
        let serial = Settings::default().with_executor(&Serial).with_isa(Isa::Portable);
        assert_eq!(said(2, 1, &serial, "threads"), "1 of 1");
        assert_eq!(said(2, 1, &serial, "keys"), "bf16, widened by the kernels that read them");
        assert_eq!(said(2, 1, &serial, "scores"), "keys along the lanes");
        assert_eq!(said(2, 9, &serial, "values"), "bf16, widened into scratch, 128 at a time");
        assert_eq!(said(2, 9, &serial, "scores"), "queries along the lanes");
        assert_eq!(said(2, 100, &serial, "work"), "1 items of up to 5 tiles of 48 rows");
        let unfused = serial.with_algorithm(Algorithm::Unfused);
        assert!(said(2, 1, &unfused, "algorithm").starts_with("unfused"));
        assert_eq!(said(2, 1, &unfused, "keys"), "");
    }
}
