//! Mask and scale of a call: from flags, or from a file's metadata.

use clap::Args;
use headwise::{AttentionOptions, Documents, Offsets, Scale, Shape, Tensor, View};
use safetensors::Dtype;

use crate::archive::Archive;
use crate::{Error, Result};

/// The flags. Any flag about the mask replaces what the file's metadata says of it.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Mask and scale (default: what the file's metadata says)")]
pub(crate) struct SpecArgs {
    /// Query i sees key j if j <= i + seq_kv - seq_q: the last query sees the last key
    #[arg(long, conflicts_with = "causal_top_left")]
    causal: bool,

    /// Query i sees key j if j <= i
    #[arg(long)]
    causal_top_left: bool,

    /// See at most N keys before the query's own position
    #[arg(long, value_name = "N")]
    window_left: Option<usize>,

    /// See at most N keys after the query's own position
    #[arg(long, value_name = "N")]
    window_right: Option<usize>,

    /// The number of keys that exist, for each batch entry
    #[arg(long, value_name = "A,B,..", value_delimiter = ',')]
    key_lengths: Option<Vec<usize>>,

    /// The first key that exists, for each batch entry: left padding
    #[arg(long, value_name = "A,B,..", value_delimiter = ',')]
    key_starts: Option<Vec<usize>>,

    /// Keys visible in spite of a causal mask, one number or one for each batch entry
    #[arg(id = "prefix_lm", long = "prefix-lm", value_name = "A,B,..", value_delimiter = ',')]
    prefix: Option<Vec<usize>>,

    /// Where packed documents begin, the same for queries and keys, and their end: 0,A,B,..,N
    #[arg(long, value_name = "0,A,..,N", value_delimiter = ',')]
    documents: Option<Vec<usize>>,

    /// A tensor of the file, 2 to 4 axes that broadcast to [batch, heads, queries, keys]: BOOL or
    /// U8, 1 = attend; or floats to add to the scores
    #[arg(long, value_name = "NAME")]
    mask_tensor: Option<String>,

    /// See every key
    #[arg(long, conflicts_with_all = [
        "causal", "causal_top_left", "window_left", "window_right", "key_lengths", "key_starts",
        "prefix_lm", "documents", "mask_tensor",
    ])]
    no_mask: bool,

    /// The factor on the scores, a number or 1/sqrt(N)
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_factor)]
    scale: Option<f32>,
}

/// What to compute.
#[derive(Debug, Default)]
pub(crate) struct Spec {
    scale: Option<f32>,
    causal: Option<Diagonal>,
    window_left: Option<usize>,
    window_right: Option<usize>,
    key_lengths: Option<Vec<usize>>,
    key_starts: Option<Vec<usize>>,
    prefix: Option<Vec<usize>>,
    documents: Option<Vec<usize>>,
    mask: Option<Mask>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Diagonal {
    BottomRight,
    TopLeft,
}

#[derive(Debug)]
enum Mask {
    Boolean(Vec<bool>, Shape),
    Additive(Tensor),
}

impl SpecArgs {
    /// What the flags say, and where they are silent the metadata of `file`.
    pub(crate) fn spec(&self, file: Option<&Archive<'_>>) -> Result<Spec> {
        let mut spec = Spec::default();
        if self.names_mask() {
            spec.causal = match (self.causal, self.causal_top_left) {
                (true, _) => Some(Diagonal::BottomRight),
                (_, true) => Some(Diagonal::TopLeft),
                _ => None,
            };
            spec.window_left = self.window_left;
            spec.window_right = self.window_right;
            spec.key_lengths.clone_from(&self.key_lengths);
            spec.key_starts.clone_from(&self.key_starts);
            spec.prefix.clone_from(&self.prefix);
            spec.documents.clone_from(&self.documents);
            if let Some(name) = &self.mask_tensor {
                spec.mask = Some(Mask::read(name, file)?);
            }
        } else if let Some(file) = file {
            spec.causal = causal_of(file)?;
        }
        spec.scale = match (self.scale, file) {
            (Some(scale), _) => Some(scale),
            (None, Some(file)) => scale_of(file)?,
            (None, None) => None,
        };
        Ok(spec)
    }

    fn names_mask(&self) -> bool {
        self.causal
            || self.causal_top_left
            || self.window_left.is_some()
            || self.window_right.is_some()
            || self.key_lengths.is_some()
            || self.key_starts.is_some()
            || self.prefix.is_some()
            || self.documents.is_some()
            || self.mask_tensor.is_some()
            || self.no_mask
    }
}

impl Spec {
    /// The options of the call.
    pub(crate) fn options(&self) -> Result<AttentionOptions<'_>> {
        let mut options = AttentionOptions::new().window(self.window_left, self.window_right);
        if let Some(scale) = self.scale() {
            options = options.scale(scale);
        }
        options = match self.causal {
            Some(Diagonal::BottomRight) => options.causal(),
            Some(Diagonal::TopLeft) => options.causal_top_left(),
            None => options,
        };
        if let Some(lengths) = &self.key_lengths {
            options = options.key_lengths(lengths);
        }
        if let Some(starts) = &self.key_starts {
            options = options.key_starts(starts);
        }
        if let Some(prefix) = &self.prefix {
            options = options.prefix(prefix);
        }
        if let Some(starts) = &self.documents {
            let offsets = Offsets { query: starts, key: starts };
            options = options.documents(Documents::Offsets(offsets));
        }
        Ok(match &self.mask {
            Some(Mask::Boolean(data, shape)) => options.mask(View::bhsd(data, *shape)?),
            Some(Mask::Additive(tensor)) => options.bias(tensor.view()),
            None => options,
        })
    }

    /// The scale, where it is not the library's own.
    pub(crate) fn scale(&self) -> Option<Scale> {
        self.scale.map(Scale::Value)
    }

    /// Whether the mask is the bottom-right causal one and nothing else, or `None` for any other
    /// mask.
    pub(crate) fn plain_causal(&self) -> Option<bool> {
        match self.mask_name().as_str() {
            "none" => Some(false),
            "causal" => Some(true),
            _ => None,
        }
    }

    /// The mask in words: `none`, `causal`, or the parts that it has.
    pub(crate) fn mask_name(&self) -> String {
        let mut parts = Vec::new();
        match self.causal {
            Some(Diagonal::BottomRight) => parts.push("causal".to_owned()),
            Some(Diagonal::TopLeft) => parts.push("causal-top-left".into()),
            None => {}
        }
        let windows = [("window-left", self.window_left), ("window-right", self.window_right)];
        parts.extend(windows.iter().filter_map(|(name, n)| n.map(|n| format!("{name} {n}"))));
        let lists = [
            ("key-lengths", &self.key_lengths),
            ("key-starts", &self.key_starts),
            ("prefix", &self.prefix),
            ("documents", &self.documents),
        ];
        parts.extend(
            lists.iter().filter_map(|(name, n)| n.as_ref().map(|n| format!("{name} {n:?}"))),
        );
        match &self.mask {
            Some(Mask::Boolean(..)) => parts.push("boolean".into()),
            Some(Mask::Additive(_)) => parts.push("additive".into()),
            None => {}
        }
        if parts.is_empty() { "none".into() } else { parts.join(" + ") }
    }

    /// The scale as a file's metadata gives it.
    pub(crate) fn scale_text(&self, head_dim: usize) -> String {
        self.scale.map_or_else(|| format!("1/sqrt({head_dim})"), |scale| scale.to_string())
    }
}

impl Mask {
    fn read(name: &str, file: Option<&Archive<'_>>) -> Result<Self> {
        let refuse = |got: String, expected: &str| {
            Error::input(format!("--mask-tensor {name:?}"), got, expected)
        };
        let Some(file) = file else {
            return Err(refuse("no file to read it from".into(), "--input FILE.safetensors"));
        };
        let Some(tensor) = file.raw(name) else {
            return Err(refuse(format!("not in {}", file.name()), "the name of a tensor"));
        };
        let axes = tensor.shape();
        if !(2..=4).contains(&axes.len()) {
            return Err(refuse(format!("shape {axes:?}"), "2 to 4 axes"));
        }
        let mut shape = [1; 4];
        shape[4 - axes.len()..].copy_from_slice(axes);
        match tensor.dtype() {
            Dtype::BOOL | Dtype::U8 => {
                let flag = |&byte: &u8| match byte {
                    0 => Ok(false),
                    1 => Ok(true),
                    other => Err(refuse(format!("a byte of {other}"), "0 or 1")),
                };
                let data = tensor.data().iter().map(flag).collect::<Result<_>>()?;
                Ok(Self::Boolean(data, shape))
            }
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => {
                Ok(Self::Additive(Tensor::new(file.widened(name)?, shape)?))
            }
            other => Err(refuse(format!("type {other:?}"), "BOOL, U8, F32, F16 or BF16")),
        }
    }
}

fn causal_of(file: &Archive<'_>) -> Result<Option<Diagonal>> {
    match file.metadata("mask").map(str::trim) {
        None | Some("" | "none") => Ok(None),
        Some("causal") => Ok(Some(Diagonal::BottomRight)),
        Some(other) => Err(Error::input(
            format!("{}: metadata \"mask\"", file.name()),
            format!("{other:?}"),
            "none or causal, or a flag about the mask (--no-mask, --window-left N, ..)",
        )),
    }
}

fn scale_of(file: &Archive<'_>) -> Result<Option<f32>> {
    let Some(text) = file.metadata("scale") else { return Ok(None) };
    let listed = text.split(';').find_map(|entry| {
        let (name, factor) = entry.trim().split_once(' ')?;
        (name == file.prefix().trim_end_matches('.')).then_some(factor)
    });
    let factor = parse_factor(listed.unwrap_or(text)).map_err(|_| {
        Error::input(
            format!("{}: metadata \"scale\"", file.name()),
            format!("{text:?}"),
            "a number or 1/sqrt(N), or --scale X",
        )
    })?;
    Ok(Some(factor))
}

/// A number or `1/sqrt(N)`.
fn parse_factor(text: &str) -> std::result::Result<f32, String> {
    let text = text.trim();
    let root = text.strip_prefix("1/sqrt(").and_then(|rest| rest.strip_suffix(')'));
    let factor = match root {
        Some(number) => number.trim().parse::<f64>().map(|n| (1.0 / n.sqrt()) as f32).ok(),
        None => text.parse::<f32>().ok(),
    };
    factor.filter(|x| x.is_finite()).ok_or_else(|| "not a finite number or 1/sqrt(N)".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::{Part, serialize};

    fn file(metadata: &[(&str, &str)]) -> Vec<u8> {
        let part = Part { name: "x", shape: vec![1], data: &[0.0] };
        let owned = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        serialize(&[part], owned.collect()).unwrap()
    }

    #[test]
    fn factors() {
        assert_eq!(parse_factor(" 0.125 "), Ok(0.125));
        assert_eq!(parse_factor("-2"), Ok(-2.0));
        assert_eq!(parse_factor("1/sqrt(64)"), Ok(0.125));
        for text in ["", "nan", "inf", "1/sqrt(0)", "1/sqrt(-1)", "1/8", "0.1 or so"] {
            assert!(parse_factor(text).is_err(), "{text}");
        }
    }

    #[test]
    fn metadata_speaks_where_flags_are_silent() {
        let bytes = file(&[("mask", "causal"), ("scale", "a 1; b 1/sqrt(16)")]);
        let archive = Archive::parse("file", "b.", &bytes).unwrap();
        let spec = SpecArgs::default().spec(Some(&archive)).unwrap();
        assert_eq!((spec.mask_name().as_str(), spec.scale), ("causal", Some(0.25)));
        assert_eq!(spec.plain_causal(), Some(true));

        let args = SpecArgs { window_left: Some(3), scale: Some(1.0), ..SpecArgs::default() };
        let spec = args.spec(Some(&archive)).unwrap();
        assert_eq!((spec.mask_name().as_str(), spec.scale), ("window-left 3", Some(1.0)));
        assert_eq!(spec.plain_causal(), None);

        let args = SpecArgs { no_mask: true, ..SpecArgs::default() };
        assert_eq!(args.spec(Some(&archive)).unwrap().mask_name(), "none");
    }

    #[test]
    fn metadata_that_is_not_understood() {
        for metadata in [("mask", "window-left 3"), ("scale", "a 1; b 2")] {
            let bytes = file(&[metadata]);
            let archive = Archive::parse("file", "", &bytes).unwrap();
            let error = SpecArgs::default().spec(Some(&archive)).unwrap_err().to_string();
            assert!(error.contains(metadata.0) && error.contains("--"), "{error}");
        }
    }
}
