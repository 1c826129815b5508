//! What does not fit a layer is refused by an error that names the argument, and nothing is written.

use headwise::layers::{
    Heads, LayerWorkspace, Linear, MultiHeadAttention, Projections, SelfAttention,
};
use headwise::{
    AttentionOptions, Error, Isa, Outputs, Result, Scale, Settings, Shape, Strides, View, ViewMut,
};
use proptest::prelude::*;
use proptest::sample::select;

use super::small;
use crate::common::case::Dims;
use crate::common::for_all;
use crate::common::layers::{Form, Layer, Model, Spec};

static ZEROS: [f32; 8192] = [0.0; 8192];

/// A call in shapes, to be changed one by one.
#[derive(Debug, Clone)]
struct Call {
    query: Shape,
    key: Shape,
    value: Shape,
    out: Shape,
    /// Unless dense.
    out_strides: Option<Strides>,
    lse: Shape,
    weights: Shape,
    /// Unless dense.
    weights_strides: Option<Strides>,
    lengths: Option<Vec<usize>>,
    mask: Option<Shape>,
    scale: Scale,
}

fn strides([_, b, c, d]: Shape, strides: Option<Strides>) -> Strides {
    strides.unwrap_or([b * c * d, c * d, d, 1].map(|stride| stride as isize))
}

impl Call {
    /// One that fits.
    fn new(model: &Model) -> Self {
        let [query, key, value] = [0, 1, 2].map(|n| model.hidden[n].shape);
        let [out, lse, weights] = model.spec.output_shapes();
        Self {
            query,
            key,
            value,
            out,
            out_strides: None,
            lse,
            weights,
            weights_strides: None,
            lengths: None,
            mask: None,
            scale: Scale::One,
        }
    }

    fn run(&self, layer: &Layer) -> Result<Isa> {
        let mut written = [(); 3].map(|()| vec![f32::NAN; 8192]);
        let [out, lse, weights] = &mut written;
        let outputs =
            Outputs::new(ViewMut::strided(out, 0, self.out, strides(self.out, self.out_strides))?)
                .with_lse(ViewMut::bhsd(lse, self.lse)?)
                .with_weights(ViewMut::strided(
                    weights,
                    0,
                    self.weights,
                    strides(self.weights, self.weights_strides),
                )?);
        let trues = [true; 8192];
        let mut options = AttentionOptions::new().scale(self.scale);
        if let Some(lengths) = &self.lengths {
            options = options.key_lengths(lengths);
        }
        if let Some(mask) = self.mask {
            options = options.mask(View::bhsd(&trues, mask)?);
        }
        let view = |shape| View::bhsd(&ZEROS, shape);
        let memory = (view(self.key)?, view(self.value)?);
        let workspace = &mut LayerWorkspace::new();
        let result = layer.forward_into(view(self.query)?, memory, &options, outputs, workspace);
        let untouched = written.iter().flatten().all(|x| x.is_nan());
        assert_eq!(untouched, result.is_err(), "{result:?}");
        result
    }
}

/// What makes a call wrong, and what its error says.
type Case = (fn(&mut Call), &'static [&'static str]);

/// Every change to a fitting call is refused by an error of these parts.
#[track_caller]
fn assert_refused(form: Form, cases: &[Case]) {
    let model = small(form, 21).model();
    let call = Call::new(&model);
    call.run(&model.layer).unwrap_or_else(|error| panic!("{error}"));
    for (nth, (change, parts)) in cases.iter().enumerate() {
        let mut call = call.clone();
        change(&mut call);
        let Err(error) = call.run(&model.layer) else { panic!("{form:?}, case {nth}: accepted") };
        let message = error.to_string();
        for part in *parts {
            assert!(message.contains(part), "{form:?}, case {nth}: {part:?} not in {message:?}");
        }
    }
}

#[test]
fn inputs_that_do_not_fit() {
    assert_refused(
        Form::MultiHead,
        &[
            (|c| c.query[3] = 32, &["query: shape [2, 1, 5, 32]", "[batch, 1, seq, 33]"]),
            (|c| c.query[3] = 34, &["query: shape [2, 1, 5, 34]", "as wide as the weights"]),
            (|c| c.key[3] = 30, &["key: shape [2, 1, 50, 30]", "[batch, 1, seq, 31]"]),
            (|c| c.value[3] = 19, &["value: shape [2, 1, 50, 19]", "[batch, 1, seq, 20]"]),
            // The heads' axis is the layer's affair.
            (|c| c.query[1] = 4, &["query: shape [2, 4, 5, 33]", "[batch, 1, seq, 33]"]),
            (|c| c.query[1] = 0, &["query: shape [2, 0, 5, 33]"]),
            (|c| c.key[1] = 2, &["key: shape [2, 2, 50, 31]"]),
            (|c| c.value[1] = 2, &["value: shape [2, 2, 50, 20]"]),
            // One against the other.
            (|c| c.query[0] = 1, &["memory: 2 batch entries", "the query's 1"]),
            (|c| (c.key[0], c.value[0]) = (3, 3), &["memory: 3 batch entries", "the query's 2"]),
            (|c| c.key[0] = 3, &["value: shape [2, 1, 50, 20]", "key [3, 1, 50, 31]"]),
            (|c| c.value[2] = 49, &["value: shape [2, 1, 49, 20]", "key [2, 1, 50, 31]"]),
        ],
    );
    assert_refused(
        Form::Cross,
        &[
            (|c| c.query[3] = 31, &["query: shape [2, 1, 5, 31]", "[batch, 1, seq, 33]"]),
            (|c| c.key[3] = 33, &["encoder: shape [2, 1, 50, 33]", "[batch, 1, seq, 31]"]),
            (|c| c.key[1] = 2, &["encoder: shape [2, 2, 50, 31]"]),
            (|c| (c.key[0], c.value[0]) = (1, 1), &["memory: 1 batch entries", "the query's 2"]),
        ],
    );
    assert_refused(
        Form::SelfAttention,
        &[
            (|c| c.query[3] = 31, &["x: shape [2, 1, 5, 31]", "[batch, 1, seq, 33]"]),
            (|c| c.query[1] = 2, &["x: shape [2, 2, 5, 33]"]),
        ],
    );
}

#[test]
fn outputs_that_do_not_fit() {
    let cases: &[Case] = &[
        (|c| c.out[0] = 1, &["out: shape [1, 1, 5, "]),
        (|c| c.out[1] = 2, &["out: shape [2, 2, 5, "]),
        (|c| c.out[2] = 4, &["out: shape [2, 1, 4, "]),
        (|c| c.out[3] = 18, &["out: shape [2, 1, 5, 18]"]),
        (
            |c| c.out_strides = Some([400, 400, 1, 7]),
            &["out: strides [400, 400, 1, 7]", "inner stride of 1"],
        ),
        (|c| c.lse[0] = 3, &["lse: shape [3, "]),
        (|c| c.lse[1] += 1, &["lse: shape [2, "]),
        (|c| c.lse[2] = 6, &["lse: shape [2, "]),
        (|c| c.lse[3] = 2, &["lse: shape [2, "]),
        (|c| c.weights[2] = 4, &["weights: shape [2, "]),
        (|c| c.weights[3] -= 1, &["weights: shape [2, "]),
    ];
    for form in Form::ALL {
        assert_refused(form, cases);
    }
    assert_refused(
        Form::MultiHead,
        &[
            (
                |c| c.weights_strides = Some([1000, 250, 1, 5]),
                &["weights: strides [1000, 250, 1, 5]"],
            ),
            // The weights of every query head, not of kv heads nor of their mean.
            (|c| c.weights[1] = 2, &["weights: shape [2, 2"]),
            (|c| c.lse[1] = 1, &["lse: shape [2, 1, 5, 1]", "[2, 4, 5, 1]"]),
        ],
    );
}

#[test]
fn options_that_do_not_fit() {
    let cases: &[Case] = &[
        (|c| c.lengths = Some(vec![1]), &["key_lengths: ", "1 lengths", "2 sequences"]),
        (|c| c.lengths = Some(vec![1, 51]), &["key_lengths: 51", "at most"]),
        (|c| c.mask = Some([2, 1, 5, 3]), &["mask: shape [2, 1, 5, 3]"]),
        (|c| c.mask = Some([2, 3, 5, 50]), &["mask: shape [2, 3, 5, 50]"]),
        (|c| c.scale = Scale::Value(f32::NAN), &["scale: NaN", "finite"]),
    ];
    for form in Form::ALL {
        assert_refused(form, cases);
    }
}

#[test]
fn layers_that_do_not_fit_together() -> Result<()> {
    let linear = |outputs, inputs| Linear::new(View::bhsd(&ZEROS, [1, 1, outputs, inputs])?, None);
    let new = |[q, k, v]: [usize; 3], out_inputs, heads: Heads| {
        let projections =
            Projections { query: linear(q, 8)?, key: linear(k, 9)?, value: linear(v, 10)? };
        MultiHeadAttention::new(projections, linear(5, out_inputs)?, heads)
    };
    let grouped = Heads { query: 4, kv: 2 };
    new([12, 6, 10], 20, grouped)?;
    let cases: [(_, _, _, &[&str]); 9] = [
        ([12, 6, 10], 20, Heads { query: 4, kv: 0 }, &["heads: ", "kv: 0", "at least one"]),
        ([12, 6, 10], 20, Heads::from(0), &["heads: ", "at least one"]),
        ([12, 6, 10], 20, Heads { query: 4, kv: 3 }, &["heads: ", "kv: 3", "a divisor"]),
        ([12, 6, 10], 20, Heads { query: 2, kv: 4 }, &["heads: ", "kv: 4", "a divisor"]),
        ([13, 6, 10], 20, grouped, &["query: 13 outputs", "a multiple of the 4 heads"]),
        ([12, 7, 10], 20, grouped, &["key: 7 outputs", "a multiple of the 2 heads"]),
        ([12, 6, 11], 20, grouped, &["value: 11 outputs", "a multiple of the 2 heads"]),
        ([12, 8, 10], 20, grouped, &["key: 8 outputs", "2 heads of 3", "the queries'"]),
        ([12, 6, 10], 19, grouped, &["out: 19 inputs", "4 heads of 5", "the values'"]),
    ];
    for (outputs, inputs, heads, parts) in cases {
        match new(outputs, inputs, heads) {
            Err(error @ Error::Value { .. }) => {
                let message = error.to_string();
                assert!(parts.iter().all(|part| message.contains(part)), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
    Ok(())
}

/// Extents and strides of query, key, value, out, lse and weights, mostly nonsense.
#[derive(Debug, Clone)]
struct Wild {
    form: Form,
    views: [(usize, Shape, Strides); 6],
    cached: bool,
}

fn wild() -> impl Strategy<Value = Wild> {
    let rare = |fits: usize| {
        prop_oneof![
            12 => Just(fits),
            1 => select(vec![0, 1, 2, 3, 50, 1 << 40, usize::MAX / 2, usize::MAX]),
        ]
    };
    // Those of `small` with one batch entry, two queries and three keys, or none.
    let lengths = (select(vec![0, 1, 2]), select(vec![0, 2]), select(vec![0, 3]));
    let tensor = move |shape: Shape| {
        let natural = strides(shape.map(|extent| extent.min(100)), None);
        let stride = select(vec![0, 1, -1, 7, 100, isize::MAX, isize::MIN]);
        let strange = prop::array::uniform4(prop_oneof![Just(None), stride.prop_map(Some)]);
        let strange = prop_oneof![4 => Just([None; 4]), 1 => strange];
        let offset = prop_oneof![3 => Just(0_usize), 1 => 0..3000_usize];
        (offset, shape.map(rare), strange).prop_map(move |(offset, shape, strange)| {
            let stride = |axis: usize| strange[axis].unwrap_or(natural[axis]);
            (offset, shape, [stride(0), stride(1), stride(2), stride(3)])
        })
    };
    (lengths, select(Form::ALL.to_vec()), any::<bool>()).prop_flat_map(
        move |((batch, seq_q, seq_kv), form, cached)| {
            let spec = small(form, 22);
            let dims = Dims { batch, seq_q, seq_kv, ..spec.dims };
            let spec = Spec { dims, ..spec }.fitted();
            let [out, lse, weights] = spec.output_shapes();
            let hidden = |n: usize| {
                [batch, 1, if n == 0 { seq_q } else { spec.dims.seq_kv }, spec.widths[n]]
            };
            let views = [hidden(0), hidden(1), hidden(2), out, lse, weights].map(tensor);
            views.prop_map(move |views| Wild { form, views, cached })
        },
    )
}

impl Wild {
    fn run(&self, layer: &Layer, written: &mut [Vec<f32>; 3]) -> Result<Isa> {
        let view = |n: usize| {
            let (offset, shape, strides) = self.views[n];
            View::strided(&ZEROS, offset, shape, strides)
        };
        let [out, lse, weights] = written;
        let view_mut = |n: usize, data| {
            let (offset, shape, strides) = self.views[n];
            ViewMut::strided(data, offset, shape, strides)
        };
        let outputs = Outputs::new(view_mut(3, out)?)
            .with_lse(view_mut(4, lse)?)
            .with_weights(view_mut(5, weights)?);
        let (query, key, value) = (view(0)?, view(1)?, view(2)?);
        let (options, workspace) = (AttentionOptions::new(), &mut LayerWorkspace::new());
        if self.cached && self.form != Form::SelfAttention {
            let cache = layer.encode((key, value), &Settings::default())?;
            layer.workspace(query, &cache, &options)?;
            return layer.forward_into(query, &cache, &options, outputs, workspace);
        }
        layer.workspace(query, (key, value), &options)?;
        layer.forward_into(query, (key, value), &options, outputs, workspace)
    }
}

#[test]
fn nothing_panics_and_errors_write_nothing() {
    let layers = Form::ALL.map(|form| small(form, 22).model().layer);
    let counts = std::cell::Cell::new((0_usize, 0_usize));
    for_all(4000, wild(), |wild| {
        let mut written = [(); 3].map(|()| vec![7.0_f32; ZEROS.len()]);
        let result = wild.run(&layers[wild.form as usize], &mut written);
        let (fine, refused) = counts.get();
        if result.is_ok() {
            counts.set((fine + 1, refused));
        } else {
            counts.set((fine, refused + 1));
            let untouched = written.iter().flatten().all(|&x| x == 7.0);
            assert!(untouched, "written in spite of {result:?}");
        }
    });
    let (fine, refused) = counts.get();
    assert!(fine > 400 && refused > 400, "{fine} computed, {refused} refused");
}

/// Extents that a view has room for, since there is no batch, and projections have not.
#[test]
fn endless_sequences_of_no_batch() -> Result<()> {
    let linear = || Linear::new(View::bhsd(&[1.0], [1, 1, 1, 1])?, None);
    let projections = Projections { query: linear()?, key: linear()?, value: linear()? };
    let layer = SelfAttention::new(projections)?;
    let options = AttentionOptions::new();
    for seq in [1_usize << 58, 1 << 61, 1 << 62, isize::MAX as usize] {
        let x = View::bhsd(&[], [0, 1, seq, 1])?;
        let refused = layer.forward(x, &options);
        assert!(matches!(refused, Err(Error::Overflow { .. }) | Ok(_)), "{refused:?}");
        let refused = layer.workspace(x, &options);
        assert!(matches!(refused, Err(Error::Overflow { .. }) | Ok(_)), "{refused:?}");
    }
    Ok(())
}
