//! Axes along which a step of decoding can be varied: the flags, and their cross product.

use clap::{Args, ValueEnum, value_parser};

use crate::shapes::{AttentionShape, Cache, PrecisionShape, Shape};
use crate::{Error, Result};

/// The tokens of a page where the flags and the shape leave it open.
const PAGE_SIZE: usize = 16;

/// The flags. An axis that is not named stays as the shape has it.
#[derive(Debug, Default, Args)]
#[command(
    next_help_heading = "Axes, for --suite decode or a shape of it, or a step of decoding in another \
    type, as decode-32k-bf16: what is measured is their cross product"
)]
pub(crate) struct AxisArgs {
    /// Queries of each sequence: its last tokens, so that of several each sees the keys up to its
    /// own (of decode-cross all)
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    #[arg(value_parser = value_parser!(u16).range(1..))]
    seq_q: Vec<u16>,

    /// Query heads to a key/value head, of which the shape keeps its number
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    #[arg(value_parser = value_parser!(u16).range(1..))]
    group: Vec<u16>,

    /// Keys of each sequence
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    #[arg(value_parser = value_parser!(u32).range(1..))]
    seq_kv: Vec<u32>,

    /// Where keys and values lie: dense tensors, or a cache
    #[arg(long, value_name = "KIND,..", value_delimiter = ',')]
    cache: Vec<CacheKind>,

    /// Tokens in a page of a paged cache, 16 if not given; pages lie in no order
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    #[arg(value_parser = value_parser!(u16).range(1..=1024))]
    page_size: Vec<u16>,
}

/// Where keys and values lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CacheKind {
    Dense,
    Contiguous,
    Ring,
    Paged,
}

impl AxisArgs {
    /// The shapes, each over the cross product of the axes that are named.
    ///
    /// # Errors
    /// Where a shape is no step of decoding, or the axes make no sense together.
    pub(crate) fn vary(&self, shapes: Vec<Shape>) -> Result<Vec<Shape>> {
        let Some(flag) = self.first_flag() else { return Ok(shapes) };
        let mut varied = Vec::new();
        for shape in shapes {
            match shape {
                Shape::Attention(suite, step) if suite.decodes() => {
                    let steps = self.product(&step)?;
                    varied.extend(steps.into_iter().map(|step| Shape::Attention(suite, step)));
                }
                Shape::Precision(shape) if shape.attention.seq_q == 1 => {
                    self.dense_alone(shape.name)?;
                    let steps = self.product(&shape.attention)?.into_iter();
                    let of = |attention| Shape::Precision(PrecisionShape { attention, ..shape });
                    varied.extend(steps.map(of));
                }
                _ => {
                    let got = format!("shape {} of suite {}", shape.name(), shape.suite().name());
                    let expected = "a step of decoding: --suite decode, or --shape decode-4k";
                    return Err(Error::input(flag, got, expected));
                }
            }
        }
        Ok(varied)
    }

    /// That no cache is named, for a shape that is measured on dense tensors alone.
    fn dense_alone(&self, shape: &str) -> Result<()> {
        let flags =
            [("--cache", self.cache.is_empty()), ("--page-size", self.page_size.is_empty())];
        match flags.into_iter().find(|(_, is_empty)| !is_empty) {
            Some((flag, _)) => {
                let expected = "a shape of --suite decode: others are measured on dense tensors";
                Err(Error::input(flag, format!("shape {shape}"), expected))
            }
            None => Ok(()),
        }
    }

    /// The first axis that is named.
    fn first_flag(&self) -> Option<&'static str> {
        let flags = [
            ("--seq-q", self.seq_q.is_empty()),
            ("--group", self.group.is_empty()),
            ("--seq-kv", self.seq_kv.is_empty()),
            ("--cache", self.cache.is_empty()),
            ("--page-size", self.page_size.is_empty()),
        ];
        flags.into_iter().find_map(|(flag, is_empty)| (!is_empty).then_some(flag))
    }

    fn product(&self, step: &AttentionShape) -> Result<Vec<AttentionShape>> {
        let caches = self.caches(step)?;
        let mut steps = Vec::new();
        for seq_q in along(&self.seq_q, step.seq_q) {
            for group in along(&self.group, step.group()) {
                for seq_kv in along(&self.seq_kv, step.seq_kv) {
                    let step = with_sizes(step, group, (seq_q, seq_kv))?;
                    steps.extend(caches.iter().map(|&cache| AttentionShape { cache, ..step }));
                }
            }
        }
        Ok(steps)
    }

    /// The caches, paged ones of each page size.
    fn caches(&self, step: &AttentionShape) -> Result<Vec<Option<Cache>>> {
        let of_shape = step.cache.and_then(Cache::page_size).unwrap_or(PAGE_SIZE);
        let paged = || along(&self.page_size, of_shape).map(|size| Some(Cache::Paged(size)));
        let mut caches = Vec::new();
        for kind in &self.cache {
            match kind {
                CacheKind::Dense => caches.push(None),
                CacheKind::Contiguous => caches.push(Some(Cache::Contiguous)),
                CacheKind::Ring => caches.push(Some(Cache::Ring)),
                CacheKind::Paged => caches.extend(paged()),
            }
        }
        if self.cache.is_empty() {
            match step.cache {
                Some(Cache::Paged(_)) => caches.extend(paged()),
                other => caches.push(other),
            }
        }
        if !self.page_size.is_empty() && !caches.iter().flatten().any(|c| c.page_size().is_some()) {
            let got = format!("shape {} without pages", step.name);
            return Err(Error::input("--page-size", got, "--cache paged beside it"));
        }
        Ok(caches)
    }
}

/// The values of an axis that is named, or else the shape's own.
fn along<T: Copy>(named: &[T], own: usize) -> impl Iterator<Item = usize>
where
    u64: From<T>,
{
    let own = named.is_empty().then_some(own);
    named.iter().map(|&value| u64::from(value) as usize).chain(own)
}

/// A step with these queries and keys, and so many query heads to each key/value head. Several
/// queries are the last tokens of their sequence, unless the keys are another's.
fn with_sizes(
    step: &AttentionShape,
    group: usize,
    (seq_q, seq_kv): (usize, usize),
) -> Result<AttentionShape> {
    let causal = if step.cross { step.causal } else { seq_q > 1 };
    if causal && seq_q > seq_kv {
        let expected = "no more queries than keys, of which they are the last";
        return Err(Error::input("--seq-q", format!("{seq_q} with {seq_kv} keys"), expected));
    }
    Ok(AttentionShape { q_heads: step.kv_heads * group, seq_q, seq_kv, causal, ..*step })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::{Suite, select};
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        axes: AxisArgs,
    }

    /// A line varied over the shape of that name; what is wrong with it.
    fn vary(line: &str, name: &str) -> std::result::Result<Vec<AttentionShape>, String> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        let shapes = select(None, Some(name)).and_then(|shapes| line.axes.vary(shapes));
        let of = |shape| match shape {
            Shape::Attention(_, step) => step,
            Shape::Precision(shape) => shape.attention,
            other => panic!("{other:?}"),
        };
        shapes.map(|shapes| shapes.into_iter().map(of).collect()).map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_not_named_stays() -> std::result::Result<(), String> {
        let shapes = select(None, None).map_err(|e| e.to_string())?;
        let all = AxisArgs::default().vary(shapes.clone()).map_err(|e| e.to_string())?;
        assert_eq!(all, shapes);
        let Shape::Attention(_, own) = select(None, Some("decode-b4")).unwrap()[0] else {
            panic!()
        };
        let [step] = vary("--seq-kv 70000", "decode-b4")?[..] else { panic!() };
        assert_eq!(step, AttentionShape { seq_kv: 70_000, ..own });
        let [step] = vary("--group 3", "sweep-4k-paged64")?[..] else { panic!() };
        assert_eq!((step.q_heads, step.kv_heads, step.cache), (24, 8, Some(Cache::Paged(64))));
        Ok(())
    }

    #[test]
    fn axes_multiply() -> std::result::Result<(), String> {
        let line = "--seq-q 1,4 --group 1,2,8 --seq-kv 100,200 \
                    --cache paged,dense,ring,contiguous --page-size 8,64";
        let steps = vary(line, "decode-4k")?;
        assert_eq!(steps.len(), 2 * 3 * 2 * 5);
        let point = |s: &AttentionShape| (s.seq_q, s.group(), s.seq_kv, s.cache);
        let distinct = |n: usize| steps[..n].iter().all(|s| point(s) != point(&steps[n]));
        assert!((0..steps.len()).all(distinct));
        for step in &steps {
            assert_eq!((step.batch, step.kv_heads, step.head_dim), (1, 8, 128));
            assert_eq!((step.name, step.causal), ("decode-4k", step.seq_q > 1));
        }
        let caches: Vec<_> = steps[..5].iter().map(|step| step.cache).collect();
        let [ring, contiguous] = [Cache::Ring, Cache::Contiguous].map(Some);
        let [small, large] = [8, 64].map(|size| Some(Cache::Paged(size)));
        assert_eq!(caches, [small, large, None, ring, contiguous]);
        Ok(())
    }

    #[test]
    fn pages_have_a_size() -> std::result::Result<(), String> {
        let sizes = |line, name| -> std::result::Result<Vec<_>, String> {
            Ok(vary(line, name)?.iter().map(|s| s.cache.and_then(Cache::page_size)).collect())
        };
        assert_eq!(sizes("--cache paged", "decode-4k")?, [Some(16)]);
        assert_eq!(sizes("--cache paged,dense", "sweep-4k-paged64")?, [Some(64), None]);
        assert_eq!(sizes("--page-size 1,1024", "sweep-4k-paged64")?, [Some(1), Some(1024)]);
        Ok(())
    }

    #[test]
    fn narrower_types_have_sizes_too() -> std::result::Result<(), String> {
        let steps = vary("--group 1,8 --seq-kv 100", "decode-32k-int8")?;
        let sizes: Vec<_> = steps.iter().map(|s| (s.q_heads, s.kv_heads, s.seq_kv)).collect();
        assert_eq!(sizes, [(8, 8, 100), (64, 8, 100)]);
        Ok(())
    }

    /// Queries of another sequence stand nowhere among the keys.
    #[test]
    fn cross_attention_stays_unmasked() -> std::result::Result<(), String> {
        let steps = vary("--seq-q 2,9 --seq-kv 5", "decode-cross")?;
        assert!(steps.iter().all(|step| !step.causal) && steps.len() == 2);
        Ok(())
    }

    #[test]
    fn what_makes_no_sense() {
        let refused = [
            ("--page-size 16", "decode-4k", "--cache paged"),
            ("--page-size 16 --cache dense,ring", "decode-4k", "--cache paged"),
            ("--page-size 16 --cache ring", "sweep-4k-paged64", "--cache paged"),
            ("--seq-q 1,6 --seq-kv 5", "decode-4k", "6 with 5 keys"),
            ("--group 4", "llama-2k", "shape llama-2k of suite prefill"),
            ("--cache paged", "128x768x768", "--suite decode"),
            ("--cache dense --group 2", "decode-4k-bf16", "--cache"),
            ("--group 2", "llama-2k-bf16", "shape llama-2k-bf16 of suite precision"),
            ("--cache linear", "decode-4k", "contiguous"),
            ("--seq-q 0", "decode-4k", "0"),
            ("--seq-q 1,,2", "decode-4k", "--seq-q"),
            ("--group x", "decode-4k", "--group"),
            ("--page-size 1025 --cache paged", "decode-4k", "1025"),
        ];
        for (line, name, part) in refused {
            let error = vary(line, name).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
        assert!(Suite::ALL.into_iter().filter(|suite| suite.decodes()).count() == 2);
    }
}
