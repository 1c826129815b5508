//! The attention layers: other people's answers, an exact composition, errors, and here what does
//! not change a bit: caches, threads, the batch, strides.

#[path = "../common/mod.rs"]
mod common;

mod errors;
mod exactness;
#[cfg(feature = "safetensors")]
mod goldens;

use common::bits;
use common::case::{Dims, GAP};
use common::layers::{Form, Layer, Model, Spec};
use common::strided::{Layout, Strided};
use headwise::layers::{
    CrossAttention, EncoderCache, LayerWorkspace, Linear, MultiHeadAttention, SelfAttention,
};
use headwise::{
    Attention, AttentionOptions, Error, Executor, Isa, Outputs, Rayon, Result, Scale, Serial,
    Settings, Workspace,
};

/// Large enough for threads: two million multiply-adds and more in each step.
fn large(form: Form) -> Model {
    let dims = Dims {
        batch: 3,
        kv_heads: 2,
        group: 2,
        seq_q: 61,
        seq_kv: 97,
        head_dim: 96,
        value_dim: 72,
    };
    let biases = [true, false, true, true];
    Spec { form, dims, widths: [150, 192, 130], outputs: 163, biases, seed: 11 }.model()
}

fn small(form: Form, seed: u64) -> Spec {
    let dims =
        Dims { batch: 2, kv_heads: 2, group: 2, seq_q: 5, seq_kv: 50, head_dim: 8, value_dim: 6 };
    Spec { form, dims, widths: [33, 31, 20], outputs: 17, biases: [true; 4], seed }
}

fn all(isa: Isa) -> AttentionOptions<'static> {
    AttentionOptions::new().isa(isa).return_lse().return_weights()
}

#[track_caller]
fn assert_same(got: &Attention, expected: &Attention, what: &str) {
    assert_eq!(got.out.shape(), expected.out.shape(), "{what}");
    assert_eq!(got.isa, expected.isa, "{what}");
    assert!(common::result_bits(got) == common::result_bits(expected), "other bits: {what}");
}

#[test]
fn layers_and_caches_go_to_other_threads() {
    fn assert_send_sync<T: Send + Sync + 'static>() {}
    assert_send_sync::<Linear>();
    assert_send_sync::<SelfAttention>();
    assert_send_sync::<CrossAttention>();
    assert_send_sync::<MultiHeadAttention>();
    assert_send_sync::<EncoderCache>();
    assert_send_sync::<LayerWorkspace>();
}

#[test]
fn any_number_of_threads() -> Result<()> {
    for form in Form::ALL {
        let model = large(form);
        for isa in Isa::available() {
            let run = |executor: &dyn Executor| model.forward(&all(isa).executor(executor));
            let serial = run(&Serial)?;
            assert_eq!(serial.isa, isa);
            for threads in [1, 2, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                let pool = pool.unwrap_or_else(|error| panic!("{error}"));
                let parallel = pool.install(|| run(&Rayon))?;
                assert_same(&parallel, &serial, &format!("{form:?}, {threads} threads, {isa}"));
            }
        }
    }
    Ok(())
}

/// The part of `whole` that belongs to batch entry `b`.
fn entry(whole: &headwise::Tensor, b: usize) -> Vec<u64> {
    let each = whole.data().len() / whole.shape()[0];
    bits(&whole.data()[b * each..][..each])
}

#[test]
fn a_batch_entry_alone_has_the_bits_of_one_among_others() -> Result<()> {
    for form in Form::ALL {
        for model in [large(form), small(form, 3).model()] {
            for isa in Isa::available() {
                let together = model.forward(&all(isa))?;
                for b in 0..model.spec.dims.batch {
                    let [query, key, value] =
                        [0, 1, 2].map(|n| model.hidden[n].narrow(0, b..b + 1));
                    let memory = (key.view(), value.view());
                    let alone = model.layer.forward(query.view(), memory, &all(isa))?;
                    let pairs = [
                        (Some(&alone.out), Some(&together.out)),
                        (alone.lse.as_ref(), together.lse.as_ref()),
                        (alone.weights.as_ref(), together.weights.as_ref()),
                    ];
                    for pair in pairs {
                        let (Some(alone), Some(together)) = pair else { panic!("not returned") };
                        assert!(
                            bits(alone.data()) == entry(together, b),
                            "{form:?} on {isa}, batch entry {b}"
                        );
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn strides_of_the_inputs_do_not_matter() -> Result<()> {
    let layouts = [Layout::Bshd, Layout::Sbhd, Layout::Padded, Layout::Reversed];
    for form in Form::ALL {
        let model = small(form, 4).model();
        for isa in Isa::available() {
            let expected = model.forward(&all(isa))?;
            let mut moved: Vec<_> = layouts
                .iter()
                .map(|&layout| [0, 1, 2].map(|n| model.hidden[n].laid_out(layout, GAP)))
                .collect();
            moved.push(model.hidden.each_ref().map(Strided::transposed));
            for [query, key, value] in &moved {
                let memory = (key.view(), value.view());
                let got = model.layer.forward(query.view(), memory, &all(isa))?;
                assert_same(&got, &expected, &format!("{form:?} on {isa}, {:?}", query.strides));
            }
        }
    }
    Ok(())
}

#[test]
fn outputs_lie_where_the_caller_wants_them() -> Result<()> {
    for form in Form::ALL {
        let model = small(form, 5).model();
        for isa in Isa::available() {
            let expected = model.forward(&all(isa))?;
            for layout in Layout::OUTPUTS {
                let shapes = model.spec.output_shapes();
                let [mut out, mut lse, mut weights] =
                    shapes.map(|shape| Strided::filled(shape, layout, GAP));
                let outputs = Outputs::new(out.view_mut())
                    .with_lse(lse.view_mut())
                    .with_weights(weights.view_mut());
                let options = AttentionOptions::new().isa(isa);
                let (query, memory) = (model.query(), model.memory());
                let mut workspace = model.layer.workspace(query, memory, &options)?;
                let ran =
                    model.layer.forward_into(query, memory, &options, outputs, &mut workspace)?;
                assert_eq!(ran, isa);
                let got = [&out, &lse, &weights].map(|tensor| bits(&tensor.dense()));
                let what = format!("{form:?} on {isa}, {layout:?}");
                assert!(got == common::result_bits(&expected), "other bits: {what}");
                let untouched = |tensor: &Strided<f32>| tensor.gaps().iter().all(|&x| x == GAP);
                assert!([&out, &lse, &weights].into_iter().all(untouched), "a gap: {what}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_workspace_serves_any_layer_in_turn() -> Result<()> {
    let mut workspace = LayerWorkspace::new();
    let models: Vec<_> = Form::ALL
        .into_iter()
        .flat_map(|form| [small(form, 6).model(), large(form), small(form, 7).model()])
        .collect();
    for isa in Isa::available() {
        for model in &models {
            let expected = model.forward(&AttentionOptions::new().isa(isa))?;
            let mut out = Strided::filled(model.spec.output_shapes()[0], Layout::Bhsd, GAP);
            let outputs = Outputs::new(out.view_mut());
            let options = AttentionOptions::new().isa(isa);
            let (query, memory) = (model.query(), model.memory());
            model.layer.forward_into(query, memory, &options, outputs, &mut workspace)?;
            assert!(bits(&out.dense()) == bits(expected.out.data()), "{:?}, {isa}", model.spec);
        }
    }
    Ok(())
}

#[test]
fn the_scale_is_the_forms_unless_named() -> Result<()> {
    for form in Form::ALL {
        let model = small(form, 8).model();
        let run = |scale| model.forward(&all(Isa::Portable).scale(scale));
        let (own, other) = match form {
            Form::MultiHead => (Scale::InvSqrtHeadDim, Scale::One),
            _ => (Scale::One, Scale::InvSqrtHeadDim),
        };
        let default = model.forward(&all(Isa::Portable))?;
        assert_same(&default, &run(own)?, "the form's own scale");
        assert!(run(other)?.out != default.out, "{form:?} ignores the scale");
    }
    Ok(())
}

#[test]
fn nothing_in_nothing_out() -> Result<()> {
    for form in Form::ALL {
        let spec = small(form, 9);
        let no_batch = Dims { batch: 0, ..spec.dims };
        let no_queries = Dims { seq_q: 0, ..spec.dims };
        for dims in [no_batch, no_queries] {
            let model = Spec { dims, ..spec }.model();
            let result = model.forward(&all(Isa::Portable))?;
            assert_eq!(result.out.shape(), model.spec.output_shapes()[0]);
            assert!(result.out.data().is_empty());
        }
    }
    Ok(())
}

const CACHING: [Form; 2] = [Form::Cross, Form::MultiHead];

#[test]
fn a_cache_gives_the_bits_of_its_hidden_states() -> Result<()> {
    for form in CACHING {
        for model in [small(form, 12).model(), large(form)] {
            for isa in Isa::available() {
                let expected = model.forward(&all(isa))?;
                let settings = Settings::default().with_isa(isa);
                let cache = model.layer.encode(model.memory(), &settings)?;
                let d = model.spec.dims;
                assert_eq!((cache.batch(), cache.seq_kv()), (d.batch, d.seq_kv));
                let what = format!("{form:?} on {isa}");
                for _ in 0..3 {
                    let got = model.layer.forward(model.query(), &cache, &all(isa))?;
                    assert_same(&got, &expected, &what);
                }
                // Queries one by one, as a decoder has them.
                for i in 0..d.seq_q {
                    let token = model.hidden[0].narrow(2, i..i + 1);
                    let got = model.layer.forward(token.view(), &cache, &all(isa))?;
                    for b in 0..d.batch {
                        let row = common::case::row(&expected.out, [b, 0, i]);
                        let token = common::case::row(&got.out, [b, 0, 0]);
                        assert!(bits(token) == bits(row), "{what}, token {i}");
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_cache_serves_again_for_another_size() -> Result<()> {
    for form in CACHING {
        let layer = small(form, 13).model().layer;
        let (mut cache, mut workspace) = (EncoderCache::new(), Workspace::new());
        for isa in Isa::available() {
            let settings = Settings::default().with_isa(isa);
            // Smaller, larger, empty, and as before; the seed keeps the weights.
            for (batch, seq_q, seq_kv) in
                [(2, 5, 50), (1, 3, 7), (3, 65, 97), (2, 1, 0), (2, 5, 50)]
            {
                let spec = small(form, 13);
                let dims = Dims { batch, seq_q, seq_kv, ..spec.dims };
                let model = Spec { dims, ..spec }.model();
                let ran =
                    layer.encode_into(model.memory(), &mut cache, &settings, &mut workspace)?;
                assert_eq!(ran, isa);
                assert_eq!((cache.batch(), cache.seq_kv()), (batch, seq_kv));
                let got = layer.forward(model.query(), &cache, &all(isa))?;
                assert_same(&got, &model.forward(&all(isa))?, &format!("{form:?}, {dims:?}"));
            }
        }
    }
    Ok(())
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T>, part: &str) {
    match result {
        Err(Error::Value { argument: "memory", got, .. }) => assert!(got.contains(part), "{got}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_cache_is_its_layers_alone() -> Result<()> {
    for form in CACHING {
        let (model, twin) = (small(form, 14).model(), small(form, 14).model());
        let options = AttentionOptions::new();
        let cache = model.layer.encode(model.memory(), &Settings::default())?;
        let run = |layer: &Layer, cache: &EncoderCache| {
            let query = model.query();
            assert_eq!(
                layer.workspace(query, cache, &options).err(),
                layer.forward(query, cache, &options).err()
            );
            layer.forward(query, cache, &options)
        };
        let expected = run(&model.layer, &cache)?;
        assert_same(&run(&model.layer.clone(), &cache)?, &expected, "a clone");
        assert_same(&run(&model.layer, &cache.clone())?, &expected, "a clone of the cache");
        assert_refused(run(&twin.layer, &cache), "another layer");
        assert_refused(run(&model.layer, &EncoderCache::new()), "an empty cache");

        // The last to fill it is the one it belongs to.
        let mut cache = cache;
        let settings = Settings::default();
        twin.layer.encode_into(twin.memory(), &mut cache, &settings, &mut Workspace::new())?;
        assert_same(&run(&twin.layer, &cache)?, &expected, "the twin's cache");
        assert_refused(run(&model.layer, &cache), "another layer");
    }
    Ok(())
}

/// Hidden states that do not fit leave a cache as it was.
#[test]
fn a_refused_encoding_leaves_the_cache() -> Result<()> {
    for form in CACHING {
        let model = small(form, 15).model();
        let settings = Settings::default();
        let mut cache = model.layer.encode(model.memory(), &settings)?;
        let narrow = Strided::filled([2, 1, 50, 30], Layout::Bhsd, 0.5_f32);
        let memory = (narrow.view(), narrow.view());
        let refused = model.layer.encode_into(memory, &mut cache, &settings, &mut Workspace::new());
        let name = if matches!(form, Form::Cross) { "encoder" } else { "key" };
        let Err(Error::Shape { argument, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!(argument, name);
        let got = model.layer.forward(model.query(), &cache, &all(Isa::Portable))?;
        assert_eq!(got.out.shape(), model.spec.output_shapes()[0]);
    }
    Ok(())
}

/// An encoding that begins and fails leaves nothing that could be taken for keys and values.
#[test]
fn a_failed_encoding_empties_the_cache() -> Result<()> {
    for form in CACHING {
        let model = small(form, 16).model();
        let settings = Settings::default();
        let assert_empty = |settings: &Settings<'_>, hidden: [&Strided<f32>; 2]| -> Result<()> {
            let mut cache = model.layer.encode(model.memory(), &Settings::default())?;
            let memory = (hidden[0].view(), hidden[1].view());
            let workspace = &mut Workspace::new();
            let failed = model.layer.encode_into(memory, &mut cache, settings, workspace);
            assert!(failed.is_err(), "{failed:?}");
            let result = model.layer.forward(model.query(), &cache, &AttentionOptions::new());
            assert_refused(result, "an empty cache");
            Ok(())
        };
        // One row for more keys than there is memory.
        let many = |n: usize| {
            let shape = [2, 1, 1 << 50, model.spec.widths[n]];
            let data = vec![0.5_f32; shape[3]];
            Strided { data, offset: 0, shape, strides: [0, 0, 0, 1] }
        };
        assert_empty(&settings, [&many(1), &many(2)])?;
        for isa in Isa::ALL.into_iter().filter(|isa| !isa.is_available()) {
            let settings = settings.with_isa(isa);
            assert_empty(&settings, [&model.hidden[1], &model.hidden[2]])?;
        }
    }
    Ok(())
}
