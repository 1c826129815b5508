//! Attention problems: described small enough to print, and their data.

use headwise::{Attention, AttentionOptions, Causal, Element, Isa, Scale, Tensor, attention};

use super::Rng;
use super::strided::{Layout, Strided};
use super::structure::{Kinds, Structure};
use super::terms::Terms;

/// What the gaps of padded layouts hold: a value that would be seen in any result.
pub const GAP: f32 = 7.5e8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    pub batch: usize,
    pub kv_heads: usize,
    pub group: usize,
    pub seq_q: usize,
    pub seq_kv: usize,
    pub head_dim: usize,
    pub value_dim: usize,
}

impl Dims {
    /// One batch entry and one head.
    pub fn single(seq_q: usize, seq_kv: usize, head_dim: usize, value_dim: usize) -> Self {
        Self { batch: 1, kv_heads: 1, group: 1, seq_q, seq_kv, head_dim, value_dim }
    }

    pub fn q_heads(&self) -> usize {
        self.kv_heads * self.group
    }

    /// Multiply-adds.
    pub fn work(&self) -> usize {
        self.batch * self.q_heads() * self.seq_q * self.seq_kv * (self.head_dim + self.value_dim)
    }
}

/// What the elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    Normal,
    /// Scores of deviation 150 by the default scale: references trip often.
    Wide,
    /// Scores that rise by about 2 with each key.
    Growing,
    /// One key late in the sequence outweighs all.
    Outlier,
    Tiny,
    Constant,
}

/// The axes over which a dense mask varies (batch, head, query), and how it lies in memory.
#[derive(Debug, Clone, Copy)]
pub struct DenseMask {
    pub axes: [bool; 3],
    pub layout: Layout,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Masks {
    pub causal: Option<Causal>,
    pub left: Option<usize>,
    pub right: Option<usize>,
    pub key_lengths: bool,
    pub boolean: Option<DenseMask>,
    pub bias: Option<DenseMask>,
    pub kinds: Kinds,
}

/// A problem in a few words.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub dims: Dims,
    pub data: Data,
    pub scale: Scale,
    pub masks: Masks,
    /// Of query, key and value.
    pub layouts: [Layout; 3],
    /// Of out, lse and weights.
    pub output: Layout,
    pub seed: u64,
}

impl Case {
    pub fn plain(dims: Dims, seed: u64) -> Self {
        Self {
            dims,
            data: Data::Normal,
            scale: Scale::InvSqrtHeadDim,
            masks: Masks::default(),
            layouts: [Layout::Bhsd; 3],
            output: Layout::Bhsd,
            seed,
        }
    }

    pub fn inputs(&self) -> Inputs<f32> {
        let d = self.dims;
        let mut rng = Rng(self.seed);
        let (q, k, v) = self.elements(&mut rng);
        let tensor = |dense: &[f32], heads, seq, dim, layout| {
            Strided::new(dense, [d.batch, heads, seq, dim], layout, GAP)
        };
        let lengths: Option<Vec<usize>> =
            self.masks.key_lengths.then(|| (0..d.batch).map(|_| rng.below(d.seq_kv + 1)).collect());
        let existing = |b: usize| lengths.as_ref().map_or(d.seq_kv, |lengths| lengths[b]);
        let structure = Structure::new(self.masks.kinds, d, existing, &mut rng);
        Inputs {
            query: tensor(&q, d.q_heads(), d.seq_q, d.head_dim, self.layouts[0]),
            key: tensor(&k, d.kv_heads, d.seq_kv, d.head_dim, self.layouts[1]),
            value: tensor(&v, d.kv_heads, d.seq_kv, d.value_dim, self.layouts[2]),
            boolean: self.masks.boolean.map(|mask| self.boolean(mask, &mut rng)),
            bias: self.masks.bias.map(|mask| self.bias(mask, &mut rng)),
            lengths,
            structure,
            causal: self.masks.causal,
            left: self.masks.left,
            right: self.masks.right,
            scale: self.scale,
            terms: Terms::default(),
        }
    }

    fn elements(&self, rng: &mut Rng) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let d = self.dims;
        let mut q = rng.normals(d.batch * d.q_heads() * d.seq_q * d.head_dim);
        let mut k = rng.normals(d.batch * d.kv_heads * d.seq_kv * d.head_dim);
        let mut v = rng.normals(d.batch * d.kv_heads * d.seq_kv * d.value_dim);
        let key_of = |at: usize| at / d.head_dim % d.seq_kv;
        match self.data {
            Data::Normal => {}
            Data::Wide => q.iter_mut().for_each(|x| *x *= 150.0),
            Data::Growing => {
                q.iter_mut().for_each(|x| *x = 1.0 + 0.1 * *x);
                let step = 2.0 / (d.head_dim as f32).sqrt();
                k.iter_mut().enumerate().for_each(|(at, x)| *x += step * key_of(at) as f32);
            }
            Data::Outlier => {
                let late = d.seq_kv - d.seq_kv.div_ceil(4).min(d.seq_kv);
                k.iter_mut()
                    .enumerate()
                    .filter(|&(at, _)| key_of(at) == late)
                    .for_each(|(_, x)| *x *= 300.0);
            }
            Data::Tiny => {
                [&mut q, &mut k, &mut v].into_iter().flatten().for_each(|x| *x *= 1e-18);
            }
            Data::Constant => {
                [&mut q, &mut k, &mut v].into_iter().flatten().for_each(|x| *x = 0.75);
            }
        }
        (q, k, v)
    }

    fn mask_shape(&self, mask: DenseMask) -> [usize; 4] {
        let d = self.dims;
        let whole = [d.batch, d.q_heads(), d.seq_q];
        let [b, h, i] = std::array::from_fn(|axis| if mask.axes[axis] { whole[axis] } else { 1 });
        [b, h, i, d.seq_kv]
    }

    /// Mostly true; some rows false throughout.
    fn boolean(&self, mask: DenseMask, rng: &mut Rng) -> Strided<bool> {
        let shape = self.mask_shape(mask);
        let mut dense = Vec::new();
        for _ in 0..shape[..3].iter().product() {
            let none = rng.one_in(8);
            dense.extend((0..shape[3]).map(|_| !none && !rng.one_in(4)));
        }
        Strided::new(&dense, shape, mask.layout, true)
    }

    /// Rows of small numbers, rows with -inf and `f32::MIN` among them, rows of either alone.
    fn bias(&self, mask: DenseMask, rng: &mut Rng) -> Strided<f32> {
        let shape = self.mask_shape(mask);
        let mut dense = Vec::new();
        for _ in 0..shape[..3].iter().product() {
            let kind = rng.below(8);
            dense.extend((0..shape[3]).map(|_| match (kind, rng.below(5)) {
                (0, _) | (2..=4, 0) => f32::NEG_INFINITY,
                (1, _) | (4..=5, 1) => f32::MIN,
                _ => 2.0 * rng.normal(),
            }));
        }
        Strided::new(&dense, shape, mask.layout, GAP)
    }
}

/// A problem with its data.
#[derive(Debug, Clone)]
pub struct Inputs<T> {
    pub query: Strided<T>,
    pub key: Strided<T>,
    pub value: Strided<T>,
    pub boolean: Option<Strided<bool>>,
    pub bias: Option<Strided<T>>,
    pub lengths: Option<Vec<usize>>,
    pub structure: Structure,
    pub causal: Option<Causal>,
    pub left: Option<usize>,
    pub right: Option<usize>,
    pub scale: Scale,
    pub terms: Terms,
}

impl<T: Element> Inputs<T> {
    pub fn dims(&self) -> Dims {
        let (q, k, v) = (self.query.shape, self.key.shape, self.value.shape);
        Dims {
            batch: q[0],
            kv_heads: k[1],
            group: q[1] / k[1],
            seq_q: q[2],
            seq_kv: k[2],
            head_dim: q[3],
            value_dim: v[3],
        }
    }

    pub fn options(&self) -> AttentionOptions<'_, T> {
        self.terms.add_to(self.masked(AttentionOptions::new().scale(self.scale)))
    }

    /// `options` with the masks of these inputs.
    pub fn masked<'a>(&'a self, options: AttentionOptions<'a, T>) -> AttentionOptions<'a, T> {
        let mut options = self.structure.masked(options.window(self.left, self.right));
        if let Some(causal) = self.causal {
            options = options.causal_with(causal);
        }
        if let Some(lengths) = &self.lengths {
            options = options.key_lengths(lengths);
        }
        if let Some(mask) = &self.boolean {
            options = options.mask(mask.view());
        }
        if let Some(bias) = &self.bias {
            options = options.bias(bias.view());
        }
        options
    }

    /// Output, log-sum-exp and weights, with these options of the caller's.
    pub fn run_with(&self, options: &AttentionOptions<'_, T>) -> Attention<T> {
        let (q, k, v) = (self.query.view(), self.key.view(), self.value.view());
        attention(q, k, v, options).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Output, log-sum-exp and weights on `isa`.
    pub fn run(&self, isa: Isa) -> Attention<T> {
        self.run_with(&self.options().isa(isa).return_lse().return_weights())
    }

    pub fn map<U>(&self, f: impl Fn(T) -> U + Copy) -> Inputs<U> {
        Inputs {
            query: self.query.map(f),
            key: self.key.map(f),
            value: self.value.map(f),
            boolean: self.boolean.clone(),
            bias: self.bias.as_ref().map(|bias| bias.map(f)),
            lengths: self.lengths.clone(),
            structure: self.structure.clone(),
            causal: self.causal,
            left: self.left,
            right: self.right,
            scale: self.scale,
            terms: self.terms.clone(),
        }
    }

    /// The keys of batch entry `b` that exist, those of its left padding included.
    pub fn existing(&self, b: usize) -> usize {
        self.lengths.as_ref().map_or(self.dims().seq_kv, |lengths| lengths[b])
    }

    /// Where query 0 of batch entry `b` stands among the keys.
    pub fn diagonal(&self, b: usize) -> i128 {
        let d = self.dims();
        match self.causal {
            Some(Causal::TopLeft) => 0,
            Some(Causal::Offset(offset)) => offset.into(),
            Some(Causal::AtLength) => self.existing(b) as i128 - d.seq_q as i128,
            _ => d.seq_kv as i128 - d.seq_q as i128,
        }
    }

    /// Whether query `i` of head `h` sees key `j`, but for the bias.
    pub fn sees(&self, [b, h, i, j]: [usize; 4]) -> bool {
        let (position, key) = (i as i128 + self.diagonal(b), j as i128);
        let exists = j < self.existing(b);
        let in_prefix = self.structure.prefix.as_ref().is_some_and(|prefix| j < prefix[b]);
        let before = self.causal.is_none() || key <= position || in_prefix;
        let left = self.left.is_none_or(|left| key >= position - left as i128);
        let right = self.right.is_none_or(|right| key <= position + right as i128);
        let mask = self.boolean.as_ref().is_none_or(|mask| mask.get(stretched(mask, [b, h, i, j])));
        let structure = || self.structure.sees([b, h, i, j], self.dims(), self.existing(b));
        exists && before && left && right && mask && structure()
    }

    /// The term added to a score.
    pub fn bias_at(&self, index: [usize; 4]) -> f64 {
        self.bias.as_ref().map_or(0.0, |bias| bias.get(stretched(bias, index)).to_f64())
    }

    /// Whether query `i` of head `h` sees key `j`.
    pub fn is_visible(&self, index: [usize; 4]) -> bool {
        self.sees(index) && self.bias_at(index) != f64::NEG_INFINITY
    }

    pub fn scale_factor(&self) -> f64 {
        match self.scale {
            Scale::InvSqrtHeadDim => 1.0 / (self.dims().head_dim as f64).sqrt(),
            Scale::Value(x) => x.into(),
            _ => 1.0,
        }
    }

    /// Everything that hides keys as one boolean mask, by the definition.
    pub fn as_boolean(&self) -> Strided<bool> {
        let d = self.dims();
        let mut mask =
            Strided::filled([d.batch, d.q_heads(), d.seq_q, d.seq_kv], Layout::Bhsd, false);
        for [b, h, i] in self.rows() {
            (0..d.seq_kv).for_each(|j| mask.set([b, h, i, j], self.sees([b, h, i, j])));
        }
        mask
    }

    /// Every `[batch, query head, query]`.
    pub fn rows(&self) -> Vec<[usize; 3]> {
        let d = self.dims();
        let heads = d.q_heads();
        (0..d.batch * heads * d.seq_q)
            .map(|row| [row / (heads * d.seq_q), row / d.seq_q % heads, row % d.seq_q])
            .collect()
    }
}

/// The index of a mask whose axes of extent 1 repeat.
fn stretched<T: Copy>(mask: &Strided<T>, index: [usize; 4]) -> [usize; 4] {
    std::array::from_fn(|axis| if mask.shape[axis] == 1 && axis < 3 { 0 } else { index[axis] })
}

/// One row of a result.
pub fn row<T: Element>(tensor: &Tensor<T>, [b, h, i]: [usize; 3]) -> &[T] {
    let [_, heads, seq, width] = tensor.shape();
    &tensor.data()[((b * heads + h) * seq + i) * width..][..width]
}
