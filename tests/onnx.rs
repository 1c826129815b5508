//! The node test cases that ONNX has for its operator `Attention`, opsets 23 to 25, each against two
//! answers: that of ONNX, and the definition in `f64`. The definition takes the operator's terms
//! apart by itself, so that a fault of the entry point and one of the kernels are told apart.
#![cfg(feature = "safetensors")]

mod common;

use std::fmt::Debug;
use std::io::Write;

use common::Rng;
use common::capture::read;
use common::file::File;
use half::{bf16, f16};
use headwise::onnx::{Array, Attributes, Inputs, Mask, Requested, Tensor, attention};
use headwise::oracle::reference::{self, Dense};
use headwise::{Error, Result, Settings, Storage};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

const CASES: usize = 93;

/// One of the cases.
struct Case<'a> {
    file: &'a SafeTensors<'a>,
    json: &'a Value,
}

/// A tensor of any of the types, in `f64`.
#[derive(Debug, Clone)]
struct Wide {
    data: Vec<f64>,
    shape: Vec<usize>,
}

fn numbers<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|&chunk| read(chunk)).collect()
}

impl Wide {
    fn of(tensor: &TensorView<'_>) -> Self {
        let bytes = tensor.data();
        let data = match tensor.dtype() {
            Dtype::F32 => numbers(bytes, |b| f32::from_le_bytes(b).into()),
            Dtype::F16 => numbers(bytes, |b| f16::from_le_bytes(b).to_f64()),
            Dtype::BF16 => numbers(bytes, |b| bf16::from_le_bytes(b).to_f64()),
            Dtype::I64 => numbers(bytes, |b| i64::from_le_bytes(b) as f64),
            // What a boolean mask adds.
            Dtype::BOOL => numbers(bytes, |[b]| if b == 0 { f64::NEG_INFINITY } else { 0.0 }),
            other => panic!("{other:?}"),
        };
        Self { data, shape: tensor.shape().to_vec() }
    }

    /// From `[batch, seq, heads * dim]` to `[batch, heads, seq, dim]`, if it has three axes.
    fn by_heads(self, heads: Option<usize>) -> Self {
        let [batch, seq, hidden] = self.shape[..] else { return self };
        let heads = heads.unwrap_or_else(|| panic!("no number of heads"));
        let dim = hidden / heads;
        let at = |n: usize| {
            let [b, h, s, d] = unravel(n, [batch, heads, seq, dim]);
            self.data[(b * seq + s) * hidden + h * dim + d]
        };
        let data = (0..self.data.len()).map(at).collect();
        Self { data, shape: vec![batch, heads, seq, dim] }
    }

    /// The reverse, if `three` axes are wanted.
    fn by_rows(self, three: bool) -> Self {
        let [batch, heads, seq, dim] = self.four();
        if !three {
            return self;
        }
        let at = |n: usize| {
            let [b, s, h, d] = unravel(n, [batch, seq, heads, dim]);
            self.data[((b * heads + h) * seq + s) * dim + d]
        };
        let data = (0..self.data.len()).map(at).collect();
        Self { data, shape: vec![batch, seq, heads * dim] }
    }

    fn four(&self) -> [usize; 4] {
        self.shape[..].try_into().unwrap_or_else(|_| panic!("{:?}", self.shape))
    }

    /// Behind `past` along the sequence.
    fn behind(self, past: Option<Self>) -> Self {
        let Some(past) = past else { return self };
        let [batch, heads, before, dim] = past.four();
        let each = self.shape[2] * dim;
        let data = (0..batch * heads).flat_map(|n| {
            let past = &past.data[n * before * dim..(n + 1) * before * dim];
            [past, &self.data[n * each..(n + 1) * each]].concat()
        });
        Self { data: data.collect(), shape: vec![batch, heads, before + self.shape[2], dim] }
    }

    /// The term that a mask of any rank adds, repeated where an axis is 1; -inf behind its columns.
    fn term(&self, index: [usize; 4]) -> f64 {
        let columns = self.shape.last().copied().unwrap_or(0);
        if index[3] >= columns {
            return f64::NEG_INFINITY;
        }
        let axes = self.shape.iter().zip(&index[4 - self.shape.len()..]);
        self.data[axes.fold(0, |at, (&extent, &i)| at * extent + if extent == 1 { 0 } else { i })]
    }
}

fn unravel(mut n: usize, shape: [usize; 4]) -> [usize; 4] {
    let mut index = [0; 4];
    for axis in (0..4).rev() {
        (index[axis], n) = (n % shape[axis], n / shape[axis]);
    }
    index
}

/// The operator's outputs by position, those that there are.
type Answers = [Option<Wide>; 4];

impl<'a> Case<'a> {
    fn name(&self) -> &'a str {
        self.json["name"].as_str().unwrap_or_default()
    }

    fn tensor(&self, part: &str, n: usize) -> Option<TensorView<'a>> {
        self.file.tensor(&format!("{}/{part}/{n}", self.name())).ok()
    }

    fn input(&self, n: usize) -> Option<Wide> {
        self.tensor("in", n).map(|tensor| Wide::of(&tensor))
    }

    fn output(&self, n: usize) -> Option<Wide> {
        self.tensor("out", n).map(|tensor| Wide::of(&tensor))
    }

    fn dtype(&self) -> Dtype {
        self.tensor("in", 0).map_or(Dtype::BOOL, |tensor| tensor.dtype())
    }

    fn integer(&self, attribute: &str) -> Option<i64> {
        self.json["attributes"].get(attribute).and_then(Value::as_i64)
    }

    fn number(&self, attribute: &str) -> Option<f64> {
        self.json["attributes"].get(attribute).and_then(Value::as_f64)
    }

    fn attributes(&self) -> Attributes {
        let defaults = Attributes::default();
        let or = |attribute, default| self.integer(attribute).unwrap_or(default);
        Attributes {
            is_causal: self.integer("is_causal") == Some(1),
            scale: self.number("scale").map(|scale| scale as f32),
            q_num_heads: self.integer("q_num_heads"),
            kv_num_heads: self.integer("kv_num_heads"),
            softcap: self.number("softcap").unwrap_or(0.0) as f32,
            softmax_precision: self.integer("softmax_precision"),
            qk_matmul_output_mode: or("qk_matmul_output_mode", defaults.qk_matmul_output_mode),
            left_window_size: or("left_window_size", -1),
            right_window_size: or("right_window_size", -1),
        }
    }

    /// What the operator's text says, in `f64`.
    fn definition(&self) -> Answers {
        let heads = |attribute| self.integer(attribute).map(|n| n as usize);
        let tensor = |n| self.input(n).unwrap_or_else(|| panic!("no input {n}"));
        let three = tensor(0).shape.len() == 3;
        let query = tensor(0).by_heads(heads("q_num_heads"));
        let key = tensor(1).by_heads(heads("kv_num_heads")).behind(self.input(4));
        let value = tensor(2).by_heads(heads("kv_num_heads")).behind(self.input(5));
        let ([batch, q_heads, seq_q, head_dim], [_, kv_heads, seq_kv, _]) =
            (query.four(), key.four());
        let past = self.input(4).map(|past| past.shape[2] as i64);
        let lengths = self.input(6).map(|lengths| lengths.data);
        let position = |b: usize, i: usize| {
            let offset = match (&lengths, past) {
                (Some(lengths), _) => lengths[b] as i64 - seq_q as i64,
                (None, past) => past.unwrap_or(0),
            };
            i as i64 + offset
        };
        let attributes = self.attributes();
        let visible = |b: usize, _: usize, i: usize, j: usize| {
            let ahead = j as i64 - position(b, i);
            let (left, right) = (attributes.left_window_size, attributes.right_window_size);
            (!attributes.is_causal || ahead <= 0)
                && (left < 0 || -ahead <= left)
                && (right < 0 || ahead <= right)
                && lengths.as_ref().is_none_or(|lengths| (j as f64) < lengths[b])
        };
        let mask = self.input(3);
        let scale = self.number("scale").unwrap_or(1.0 / (head_dim as f64).sqrt());
        let scaled = |[b, h, i, j]: [usize; 4]| {
            let kv = b * kv_heads + h * kv_heads / q_heads;
            let q = &query.data[((b * q_heads + h) * seq_q + i) * head_dim..][..head_dim];
            let k = &key.data[(kv * seq_kv + j) * head_dim..][..head_dim];
            scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>()
        };
        let capped = |index| match self.number("softcap") {
            Some(cap) if cap > 0.0 => cap * (scaled(index) / cap).tanh(),
            _ => scaled(index),
        };
        let term = |index| mask.as_ref().map_or(0.0, |mask| mask.term(index));
        let dense = Dense {
            batch,
            q_heads,
            kv_heads,
            seq_q,
            seq_kv,
            head_dim,
            value_dim: value.shape[3],
            query: &query.data,
            key: &key.data,
            value: &value.data,
            scale,
        };
        // The softcap as a term of its own, so that the reference needs none.
        let bias = |b, h, i, j| {
            let index = [b, h, i, j];
            capped(index) - scaled(index) + term(index)
        };
        let answer = reference::attention(dense, visible, bias);
        let all = [batch, q_heads, seq_q, seq_kv];
        let each = |score: &dyn Fn([usize; 4]) -> f64| {
            (0..all.iter().product()).map(|n| score(unravel(n, all))).collect()
        };
        let shown = match attributes.qk_matmul_output_mode {
            0 => each(&scaled),
            1 => each(&capped),
            2 => each(&|index| {
                let [b, h, i, j] = index;
                let hidden = !visible(b, h, i, j);
                if hidden { f64::NEG_INFINITY } else { capped(index) + term(index) }
            }),
            _ => answer.weights,
        };
        let out = Wide { data: answer.out, shape: vec![batch, q_heads, seq_q, value.shape[3]] };
        let shown = Wide { data: shown, shape: all.into() };
        [Some(out.by_rows(three)), Some(key), Some(value), Some(shown)]
    }

    /// What the entry point makes of it, in the case's own type.
    fn run(&self, settings: &Settings<'_>) -> Result<Answers> {
        match self.dtype() {
            Dtype::F32 => self.run_in(f32::from_le_bytes, f64::from, settings),
            Dtype::F16 => self.run_in(f16::from_le_bytes, f64::from, settings),
            Dtype::BF16 => self.run_in(bf16::from_le_bytes, f64::from, settings),
            other => panic!("{other:?}"),
        }
    }

    fn run_in<const N: usize, T: Storage + Debug>(
        &self,
        parse: impl Fn([u8; N]) -> T,
        widen: impl Fn(T) -> f64,
        settings: &Settings<'_>,
    ) -> Result<Answers> {
        let read = |n| {
            let tensor = self.tensor("in", n).filter(|tensor| tensor.dtype() == self.dtype())?;
            let data = numbers(tensor.data(), &parse);
            Some(Tensor { data, shape: tensor.shape().to_vec() })
        };
        let tensors: [Option<Tensor<T>>; 6] = std::array::from_fn(read);
        let [q, k, v, additive, past_key, past_value] =
            tensors.each_ref().map(|tensor| tensor.as_ref().map(Tensor::array));
        let (Some(q), Some(k), Some(v)) = (q, k, v) else { panic!("{}: no Q, K, V", self.name()) };
        let boolean = self.tensor("in", 3).filter(|tensor| tensor.dtype() == Dtype::BOOL);
        let attend = boolean.as_ref().map(|mask| numbers(mask.data(), |[b]| b != 0));
        let shape = boolean.as_ref().map_or(&[][..], |mask| mask.shape());
        let boolean = attend.as_ref().map(|attend| Mask::Boolean(Array::new(attend, shape)));
        let lengths =
            self.tensor("in", 6).map(|lengths| numbers(lengths.data(), i64::from_le_bytes));
        let mut inputs = Inputs::new(q, k, v);
        inputs.attn_mask = boolean.or(additive.map(Mask::Additive));
        (inputs.past_key, inputs.past_value) = (past_key, past_value);
        inputs.nonpad_kv_seqlen = lengths.as_deref();
        let requested = Requested {
            present: self.tensor("out", 1).is_some(),
            qk_matmul_output: self.tensor("out", 3).is_some(),
        };
        let results = attention(&self.attributes(), &inputs, requested, settings)?;
        let wide = |tensor: Tensor<T>| {
            let data = tensor.data.into_iter().map(&widen).collect();
            Wide { data, shape: tensor.shape }
        };
        let [key, value, scores] =
            [results.present_key, results.present_value, results.qk_matmul_output]
                .map(|tensor| tensor.map(wide));
        Ok([Some(wide(results.y)), key, value, scores])
    }

    /// Answers as the case's type holds them.
    fn rounded(&self, mut answers: Answers) -> Answers {
        let round = |x: f64| match self.dtype() {
            Dtype::F16 => f16::from_f64(x).to_f64(),
            Dtype::BF16 => bf16::from_f64(x).to_f64(),
            _ => f64::from(x as f32),
        };
        let numbers = answers.iter_mut().flatten().flat_map(|answer| &mut answer.data);
        numbers.for_each(|x| *x = round(*x));
        answers
    }

    /// The first element, of the outputs that there should be, which is not as ONNX has it.
    fn fault(&self, got: &Answers) -> Option<String> {
        let tolerance = |name| self.json[name].as_f64().unwrap_or(0.0);
        let rtol = if self.dtype() == Dtype::BF16 { 1.6e-2 } else { tolerance("rtol") };
        (0..4).find_map(|n| {
            let expected = self.output(n)?;
            let Some(got) = &got[n] else { return Some(format!("output {n} is missing")) };
            if got.shape != expected.shape {
                return Some(format!("output {n}: {:?} for {:?}", got.shape, expected.shape));
            }
            let mut pairs = got.data.iter().zip(&expected.data);
            let wrong = pairs.position(|(got, expected)| {
                // False for NaN; infinities are equal or wrong.
                let close = (got - expected).abs() <= tolerance("atol") + rtol * expected.abs();
                !(got == expected || (close && expected.is_finite()))
            })?;
            let pair = (got.data[wrong], expected.data[wrong]);
            Some(format!("output {n}, element {wrong}: {} for {}", pair.0, pair.1))
        })
    }
}

/// Calls `test` with each case.
fn for_each_case(mut test: impl FnMut(&Case<'_>)) {
    let bytes = read("onnx_attention.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{error}"));
    let json: Value = serde_json::from_slice(&read("onnx_attention.json"))
        .unwrap_or_else(|error| panic!("{error}"));
    let cases = json["cases"].as_array().unwrap_or_else(|| panic!("no cases"));
    assert_eq!(cases.len(), CASES);
    cases.iter().for_each(|json| test(&Case { file: &file, json }));
}

/// How many of the cases `run` gets right; fails with the names of the others.
fn count(what: &str, run: impl Fn(&Case<'_>) -> Result<Answers>) {
    let mut faults = Vec::new();
    for_each_case(|case| {
        let fault = run(case).map_or_else(|error| Some(error.to_string()), |got| case.fault(&got));
        faults.extend(fault.map(|fault| format!("{}: {fault}", case.name())));
    });
    // Past the harness, which keeps what passing tests print to itself.
    let counted = writeln!(std::io::stderr(), "{what}: {}/{CASES}", CASES - faults.len());
    assert!(counted.is_ok());
    assert!(faults.is_empty(), "{what}:\n{}", faults.join("\n"));
}

#[test]
fn the_definition_is_that_of_onnx() {
    count("the definition in f64", |case| Ok(case.rounded(case.definition())));
}

/// On the instruction set of the environment, as engines call it.
#[test]
fn all_cases_pass() {
    let settings = Settings::default();
    let isa = settings.isa().unwrap_or_else(|error| panic!("{error}"));
    count(&format!("headwise on {isa}"), |case| case.run(&settings));
}

#[test]
fn all_cases_pass_on_each_instruction_set() {
    for isa in headwise::Isa::available() {
        let settings = Settings::default().with_isa(isa);
        count(&format!("headwise on {isa}"), |case| case.run(&settings));
    }
}

/// Half types are rounded once: ours are nowhere farther from the definition, by the root of the
/// mean square and at most, than ONNX's answers, which are rounded at every step.
#[test]
fn half_types_are_as_close_to_f64_as_the_answers_of_onnx() {
    let halves = std::cell::Cell::new([0; 2]);
    for_each_case(|case| {
        let of = match case.dtype() {
            Dtype::F16 => 0,
            Dtype::BF16 => 1,
            _ => return,
        };
        let mut counts = halves.get();
        counts[of] += 1;
        halves.set(counts);
        let got = case.run(&Settings::default()).unwrap_or_else(|error| panic!("{error}"));
        let (exact, theirs) = (case.definition(), case.output(0));
        let errors = |answer: &Option<Wide>| {
            let answer = answer.iter().flat_map(|answer| &answer.data);
            let errors = answer.zip(exact[0].iter().flat_map(|exact| &exact.data));
            let errors = errors.map(|(a, b)| (a - b).abs());
            errors.fold([0.0, 0.0], |[square, max], e| [square + e * e, f64::max(max, e)])
        };
        let (ours, theirs) = (errors(&got[0]), errors(&theirs));
        let closer = ours.iter().zip(theirs).all(|(ours, theirs)| *ours <= theirs);
        assert!(closer, "{}: {ours:?} for {theirs:?}", case.name());
    });
    assert_eq!(halves.get(), [6, 5]);
}

/// A case that nobody listed, in `f32`: what the operator's text allows, in any combination.
fn random_case(rng: &mut Rng) -> (File, Value) {
    let pick = |rng: &mut Rng, of: &[usize]| of[rng.below(of.len())];
    let (batch, kv_heads, group) = (1 + rng.below(2), 1 + rng.below(2), 1 + rng.below(3));
    let (q_heads, seq_q, incoming) = (kv_heads * group, 1 + rng.below(9), rng.below(12));
    let (head_dim, value_dim) = (pick(rng, &[1, 8, 17]), pick(rng, &[1, 6, 16]));
    let mut attributes = serde_json::Map::new();
    let mut set = |name: &str, value: Value| attributes.insert(name.into(), value);
    let three = rng.one_in(2);
    if three {
        set("q_num_heads", q_heads.into());
        set("kv_num_heads", kv_heads.into());
    }
    set("is_causal", rng.below(2).into());
    set("softcap", [0.0, 0.0, 0.7][rng.below(3)].into());
    set("qk_matmul_output_mode", rng.below(4).into());
    for side in ["left_window_size", "right_window_size"] {
        set(side, [-1, -1, 0, 2, 5, i64::MAX][rng.below(6)].into());
    }
    let mut file = File::default();
    let mut add = |name: &str, shape: &[usize], rng: &mut Rng| {
        let data = rng.normals(shape.iter().product());
        file = std::mem::take(&mut file).with(&format!("random/{name}"), shape, &data);
    };
    let shape = |heads: usize, seq: usize, dim: usize| {
        if three { vec![batch, seq, heads * dim] } else { vec![batch, heads, seq, dim] }
    };
    add("in/0", &shape(q_heads, seq_q, head_dim), rng);
    add("in/1", &shape(kv_heads, incoming, head_dim), rng);
    add("in/2", &shape(kv_heads, incoming, value_dim), rng);
    // A past, lengths, or neither.
    let past = [None, Some(rng.below(9)), None][rng.below(3)];
    if let Some(past) = past {
        add("in/4", &[batch, kv_heads, past, head_dim], rng);
        add("in/5", &[batch, kv_heads, past, value_dim], rng);
    }
    // Outputs are asked for by their presence.
    add("out/3", &[0], rng);
    let total = incoming + past.unwrap_or(0);
    let lengths = past.is_none() && rng.one_in(2);
    let lengths: Vec<i64> =
        (0..batch).filter(|_| lengths).map(|_| rng.below(total + 1) as i64).collect();
    let mask = [batch, q_heads, seq_q, total];
    let mut mask: Vec<usize> = mask[rng.below(4)..].to_vec();
    let last = mask.len() - 1;
    mask[..last].iter_mut().for_each(|extent| *extent = pick(rng, &[1, *extent]));
    let longest = lengths.iter().max().map_or(0, |&n| n as usize);
    mask[last] = longest + rng.below(total - longest + 1);
    let count = mask.iter().product();
    match rng.below(3) {
        0 => {}
        1 => {
            let attend = (0..count).map(|_| u8::from(!rng.one_in(4))).collect();
            file = file.with_bytes("random/in/3", Dtype::BOOL, &mask, attend);
        }
        _ => {
            let add = |_| if rng.one_in(4) { f32::NEG_INFINITY } else { rng.normal() };
            let data: Vec<f32> = (0..count).map(add).collect();
            file = file.with("random/in/3", &mask, &data);
        }
    }
    if !lengths.is_empty() {
        let bytes = lengths.iter().flat_map(|n| n.to_le_bytes()).collect();
        file = file.with_bytes("random/in/6", Dtype::I64, &[batch], bytes);
    }
    (file, serde_json::json!({ "name": "random", "attributes": attributes }))
}

#[test]
fn any_combination_is_as_the_definition_has_it() {
    for seed in 0..3000 {
        let (file, json) = random_case(&mut Rng(seed));
        let bytes = file.bytes();
        let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{error}"));
        let case = Case { file: &file, json: &json };
        let what = format!("seed {seed}, {json}, {:?}", file.names());
        let got = case.run(&Settings::default()).unwrap_or_else(|e| panic!("{e}: {what}"));
        for (n, expected) in case.definition().into_iter().enumerate() {
            let (Some(got), Some(expected)) = (&got[n], expected) else { continue };
            assert_eq!(got.shape, expected.shape, "output {n}, {what}");
            for (at, (got, expected)) in got.data.iter().zip(&expected.data).enumerate() {
                let close = got == expected || (got - expected).abs() < 1e-5;
                assert!(close, "output {n}, element {at}: {got} for {expected}, {what}");
            }
        }
    }
}

/// Zeros of every input, in `f32`, that a test then spoils.
#[derive(Debug, Clone)]
struct Spoilt {
    attributes: Attributes,
    /// Of Q, K, V, past_key, past_value and of a mask, by name.
    shapes: [(&'static str, Vec<usize>); 6],
    boolean: bool,
    lengths: Option<Vec<i64>>,
    present: bool,
}

impl Spoilt {
    /// Of two sequences, four heads on two, three queries, five keys.
    fn fits() -> Self {
        let shapes: [(_, &[usize]); 6] = [
            ("Q", &[2, 4, 3, 8]),
            ("K", &[2, 2, 5, 8]),
            ("V", &[2, 2, 5, 6]),
            ("past_key", &[]),
            ("past_value", &[]),
            ("attn_mask", &[]),
        ];
        Self {
            attributes: Attributes::default(),
            shapes: shapes.map(|(name, shape)| (name, shape.to_vec())),
            boolean: false,
            lengths: None,
            present: false,
        }
    }

    fn with(mut self, name: &str, shape: &[usize]) -> Self {
        self.shapes.iter_mut().filter(|(n, _)| *n == name).for_each(|(_, s)| *s = shape.to_vec());
        self
    }

    fn of_three_axes() -> Self {
        let three = Self::fits().with("Q", &[2, 3, 32]).with("K", &[2, 5, 16]);
        let (q_num_heads, kv_num_heads) = (Some(4), Some(2));
        let attributes = Attributes { q_num_heads, kv_num_heads, ..three.attributes };
        Self { attributes, ..three.with("V", &[2, 5, 12]) }
    }

    fn run(&self) -> Result<()> {
        let zeros = [0.0_f32; 960];
        let attend = [true; 960];
        let [q, k, v, past_key, past_value, mask] = self.shapes.each_ref().map(|(_, shape)| {
            // Fewer than the shape says where it says a thousand more.
            let count = shape.iter().map(|&n| n % 1000).product::<usize>();
            Array::new(&zeros[..count], shape)
        });
        let mut inputs = Inputs::new(q, k, v);
        let has = |n: usize| !self.shapes[n].1.is_empty();
        inputs.past_key = has(3).then_some(past_key);
        inputs.past_value = has(4).then_some(past_value);
        let shape = &self.shapes[5].1;
        inputs.attn_mask = has(5).then(|| match self.boolean {
            true => Mask::Boolean(Array::new(&attend[..shape.iter().product()], shape)),
            false => Mask::Additive(mask),
        });
        inputs.nonpad_kv_seqlen = self.lengths.as_deref();
        let requested = Requested { present: self.present, qk_matmul_output: true };
        attention(&self.attributes, &inputs, requested, &Settings::default()).map(|_| ())
    }

    #[track_caller]
    fn assert_refused(&self, argument: &str, expected: &str) {
        let Err(error) = self.run() else { panic!("{self:?} was accepted") };
        let message = error.to_string();
        let named = match &error {
            Error::Shape { argument: name, .. } | Error::Value { argument: name, .. } => name,
            _ => panic!("{message}"),
        };
        assert_eq!(*named, argument, "{message}");
        assert!(message.contains(expected), "{expected:?} is not in {message:?}");
    }
}

#[test]
fn what_fits_is_computed() {
    let four = Spoilt::fits;
    let past = || four().with("past_key", &[2, 2, 7, 8]).with("past_value", &[2, 2, 7, 6]);
    let heads = Attributes { q_num_heads: Some(4), ..Attributes::default() };
    let fine = [
        four(),
        Spoilt::of_three_axes(),
        past(),
        Spoilt { present: true, ..four() },
        Spoilt { present: true, ..past().with("attn_mask", &[3, 12]) },
        Spoilt { attributes: heads, ..four() },
        Spoilt { lengths: Some(vec![0, 5]), ..four().with("attn_mask", &[5]) },
        Spoilt { boolean: true, ..four().with("attn_mask", &[2, 1, 3, 2]) },
        four().with("attn_mask", &[4, 3, 0]),
        four().with("K", &[2, 2, 0, 8]).with("V", &[2, 2, 0, 6]),
        four().with("Q", &[2, 4, 0, 8]),
    ];
    for (n, call) in fine.iter().enumerate() {
        assert_eq!(call.run(), Ok(()), "{n}: {call:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let four = Spoilt::fits;
    let refused = |call: Spoilt, argument: &str, expected: &str| {
        call.assert_refused(argument, expected);
    };
    refused(four().with("Q", &[2, 4, 24]), "q_num_heads", "as inputs have three axes");
    refused(four().with("Q", &[2, 96]), "Q", "three or four axes");
    refused(four().with("Q", &[2, 0, 3, 8]), "Q", "at least one head");
    refused(four().with("K", &[2, 5, 16]), "kv_num_heads", "as inputs have three axes");
    refused(Spoilt::of_three_axes().with("K", &[2, 2, 5, 8]), "K", "3 axes, as Q has");
    refused(four().with("K", &[1, 2, 5, 8]), "K", "batch 2 and head size 8");
    refused(four().with("K", &[2, 2, 5, 7]), "K", "batch 2 and head size 8");
    refused(four().with("K", &[2, 3, 5, 8]).with("V", &[2, 3, 5, 6]), "K", "divides Q's 4");
    refused(four().with("V", &[2, 2, 4, 6]), "V", "to fit K [2, 2, 5, 8]");
    refused(four().with("V", &[2, 4, 5, 6]), "V", "to fit K [2, 2, 5, 8]");
    // 2 for 1002, so that there are fewer elements than the shape says.
    refused(four().with("V", &[1002, 2, 5, 6]), "V", "as many elements as there are");
    for heads in [0, -1, 5, i64::MAX] {
        let three = Spoilt::of_three_axes();
        let attributes = Attributes { q_num_heads: Some(heads), ..three.attributes };
        refused(Spoilt { attributes, ..three }, "q_num_heads", "divides Q's 32");
        let attributes = Attributes { kv_num_heads: Some(heads), ..Attributes::default() };
        refused(Spoilt { attributes, ..four() }, "kv_num_heads", "K's 2 heads, or none");
    }

    let past = || four().with("past_key", &[2, 2, 7, 8]).with("past_value", &[2, 2, 7, 6]);
    refused(past().with("past_value", &[]), "past_value", "one beside past_key");
    refused(past().with("past_key", &[]), "past_key", "one beside past_value");
    refused(past().with("past_key", &[2, 4, 7, 8]), "past_key", "[2, 2, past_sequence_length, 8]");
    refused(past().with("past_value", &[2, 2, 6, 6]), "past_value", "that of past_key");
    refused(past().with("past_key", &[2, 7, 16]), "past_key", "[2, 2, past_sequence_length, 8]");

    for (lengths, expected) in [
        (vec![5], "[2]"),
        (vec![5, 6], "from 0 to K's 5 keys"),
        (vec![-1, 2], "from 0 to K's 5 keys"),
    ] {
        refused(Spoilt { lengths: Some(lengths), ..four() }, "nonpad_kv_seqlen", expected);
    }
    let lengths = Some(vec![4, 5]);
    refused(Spoilt { lengths: lengths.clone(), ..past() }, "nonpad_kv_seqlen", "none beside past");
    let present = Spoilt { lengths: lengths.clone(), present: true, ..four() };
    refused(present, "nonpad_kv_seqlen", "none where present_key");

    for boolean in [false, true] {
        let mask = |shape: &[usize]| Spoilt { boolean, ..four().with("attn_mask", shape) };
        for shape in [&[6_usize][..], &[2, 5], &[3, 3, 5], &[3, 1, 3, 5], &[1, 2, 4, 3, 5]] {
            refused(mask(shape), "attn_mask", "broadcasts to [2, 4, 3, 5]");
        }
        let short = Spoilt { lengths: lengths.clone(), ..mask(&[3, 4]) };
        refused(short, "attn_mask", "as many columns as nonpad_kv_seqlen's 5");
    }

    let with = |change: fn(&mut Attributes)| {
        let mut call = four();
        change(&mut call.attributes);
        call
    };
    refused(with(|a| a.scale = Some(f32::NAN)), "scale", "finite");
    refused(with(|a| a.softcap = -1.0), "softcap", "0, or a positive number");
    refused(with(|a| a.softcap = f32::INFINITY), "softcap", "0, or a positive number");
    refused(with(|a| a.softmax_precision = Some(2)), "softmax_precision", "11 (DOUBLE)");
    refused(with(|a| a.qk_matmul_output_mode = 4), "qk_matmul_output_mode", "0, 1, 2 or 3");
    refused(with(|a| a.qk_matmul_output_mode = -1), "qk_matmul_output_mode", "0, 1, 2 or 3");
    refused(with(|a| a.left_window_size = -2), "left_window_size", "-1, which is no limit");
    refused(with(|a| a.right_window_size = i64::MIN), "right_window_size", "-1, which is no limit");
}
