//! A whole model on the library's layers: the ALBERT of rxnmapper, which reads chemical reactions
//! (Lan et al., "ALBERT: A Lite BERT for Self-supervised Learning of Language Representations",
//! 2019; Schwaller et al., "Extraction of organic chemistry grammar from unsupervised learning of
//! chemical reactions", Science Advances, 2021).
//!
//! ```text
//! tokens   word + position + segment -> layer norm -> linear, 128 -> 256
//! 12 x     multi-head attention -> + -> layer norm -> linear, GELU, linear -> + -> layer norm
//! masked   linear, 256 -> 128 -> GELU -> layer norm -> the words' own vectors -> 591 logits
//! ```
//!
//! The twelve layers are one set of weights, applied twelve times.
//!
//! ```
//! use headwise::Isa;
//! use headwise_cli::albert::{Albert, Batch, Vocabulary};
//! use headwise_cli::smiles::tokenize;
//!
//! let ids = Vocabulary::embedded().encode(&tokenize("CO.OC(C)=O>>COC(C)=O"));
//! let encoded = Albert::embedded()?.forward(&Batch::new(&[ids])?, Isa::widest())?;
//! assert_eq!(encoded.hidden.shape(), [1, 1, 21, 256]);
//! # Ok::<(), headwise_cli::Error>(())
//! ```

mod batch;
mod ops;
mod vocabulary;

use headwise::layers::{Linear, MultiHeadAttention};
use headwise::safetensors::Source;
use headwise::{AttentionOptions, Isa, Settings, Tensor, View};

use crate::archive::Archive;
use crate::{Error, Result};
use ops::{LayerNorm, add, gelu};

pub use batch::Batch;
pub use vocabulary::Vocabulary;

/// The number of layers.
pub const LAYERS: usize = 12;
/// The heads of each.
pub const HEADS: usize = 8;
/// The width of a token's hidden state.
pub const HIDDEN: usize = 256;
/// The width of a word's vector.
pub const EMBEDDING: usize = 128;
/// The width between the two linear layers that follow attention.
pub const INTERMEDIATE: usize = 512;
/// The number of words.
pub const VOCABULARY: usize = 591;
/// The most tokens of a sequence.
pub const POSITIONS: usize = 512;
/// Kinds of segment; reactions are all of the first.
const SEGMENTS: usize = 2;

/// The layer, counted from 0, whose attention says which atoms are the same.
pub const MAPPING_LAYER: usize = 10;
/// And its head.
pub const MAPPING_HEAD: usize = 5;

/// The embedded weights, and what messages call them.
pub(crate) const WEIGHTS: (&str, &[u8]) =
    ("rxn_albert_f32", include_bytes!("../../fixtures/rxn_albert_f32.safetensors"));

/// What all layers share.
const LAYER: &str = "albert.encoder.albert_layer_groups.0.albert_layers.0";
/// The prefix of its attention.
const ATTENTION: &str = "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.";

/// The model, ready to run.
#[derive(Debug, Clone)]
pub struct Albert {
    words: Vec<f32>,
    positions: Vec<f32>,
    segments: Vec<f32>,
    embedding_norm: LayerNorm,
    widen: Linear,

    attention: MultiHeadAttention,
    attention_norm: LayerNorm,
    expand: Linear,
    contract: Linear,
    layer_norm: LayerNorm,

    narrow: Linear,
    prediction_norm: LayerNorm,
    logits: Linear,
}

/// What the model makes of a batch.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Encoded {
    /// What the last layer leaves, `[batch, 1, seq, HIDDEN]`. Rows of padding mean nothing.
    pub hidden: Tensor,
    /// The attention weights of [`MAPPING_LAYER`], `[batch, HEADS, seq, seq]`.
    pub weights: Tensor,
}

impl Encoded {
    /// The weights of [`MAPPING_HEAD`] for one sequence of the batch, `[1, 1, seq, seq]`.
    ///
    /// # Errors
    /// Where there is no such sequence.
    pub fn mapping_head(&self, sequence: usize) -> Result<View<'_, f32>> {
        let [_, heads, seq, _] = self.weights.shape();
        let offset =
            sequence.saturating_mul(heads).saturating_add(MAPPING_HEAD).saturating_mul(seq * seq);
        let strides = [0, 0, seq as isize, 1];
        Ok(View::strided(self.weights.data(), offset, [1, 1, seq, seq], strides)?)
    }
}

impl Albert {
    /// The embedded model.
    ///
    /// # Errors
    /// As [`Albert::load`], were the fixture damaged.
    pub fn embedded() -> Result<Self> {
        Self::load(WEIGHTS.0, WEIGHTS.1)
    }

    /// The model of a safetensors file with the names of the checkpoint; messages call it `name`.
    ///
    /// # Errors
    /// Where the bytes are no such file, or a tensor is missing or of another shape.
    pub fn load(name: &str, bytes: &[u8]) -> Result<Self> {
        let file = &Archive::parse(name, "", bytes)?;
        let table = |name: &str, rows| {
            file.shaped(
                &format!("albert.embeddings.{name}_embeddings.weight"),
                &[&[rows, EMBEDDING]],
            )
        };
        let words = table("word", VOCABULARY)?;
        // The logits are products with the words' vectors.
        let logits = Linear::new(
            View::bhsd(&words, [1, 1, VOCABULARY, EMBEDDING])?,
            Some(&file.shaped("predictions.bias", &[&[VOCABULARY]])?),
        )?;
        Ok(Self {
            positions: table("position", POSITIONS)?,
            segments: table("token_type", SEGMENTS)?,
            words,
            embedding_norm: LayerNorm::load(file, "albert.embeddings.LayerNorm", EMBEDDING)?,
            widen: linear(file, "albert.encoder.embedding_hidden_mapping_in", [HIDDEN, EMBEDDING])?,

            attention: attention(file)?,
            attention_norm: LayerNorm::load(file, &format!("{ATTENTION}LayerNorm"), HIDDEN)?,
            expand: linear(file, &format!("{LAYER}.ffn"), [INTERMEDIATE, HIDDEN])?,
            contract: linear(file, &format!("{LAYER}.ffn_output"), [HIDDEN, INTERMEDIATE])?,
            layer_norm: LayerNorm::load(file, &format!("{LAYER}.full_layer_layer_norm"), HIDDEN)?,

            narrow: linear(file, "predictions.dense", [EMBEDDING, HIDDEN])?,
            prediction_norm: LayerNorm::load(file, "predictions.LayerNorm", EMBEDDING)?,
            logits,
        })
    }

    /// Runs the encoder on the rayon pool that the caller is in.
    ///
    /// # Errors
    /// Where the instruction set is not there, or memory does not suffice.
    pub fn forward(&self, batch: &Batch, isa: Isa) -> Result<Encoded> {
        let settings = Settings::default().with_isa(isa);
        // Keys of padding are not seen.
        let options = AttentionOptions::new().key_lengths(batch.lengths()).isa(isa);

        let embedded = self.embedding_norm.apply(self.embed(batch)?)?;
        let mut x = self.widen.forward(embedded.view(), &settings)?;
        let mut weights = None;
        for layer in 0..LAYERS {
            let asked = if layer == MAPPING_LAYER { options.return_weights() } else { options };
            let attended = self.attention.forward(x.view(), x.view(), &asked)?;
            weights = attended.weights.or(weights);
            let a = self.attention_norm.apply(add(attended.out, &x)?)?;

            let inner = gelu(self.expand.forward(a.view(), &settings)?)?;
            let outer = self.contract.forward(inner.view(), &settings)?;
            x = self.layer_norm.apply(add(outer, &a)?)?;
        }
        let Some(weights) = weights else { unreachable!("the mapping layer gives them") };
        Ok(Encoded { hidden: x, weights })
    }

    /// The masked-token head: the logits of every word at each `(sequence, position)` of
    /// [`Encoded::hidden`], `[1, 1, places, VOCABULARY]`.
    ///
    /// # Errors
    /// Where there is no such place, and as [`Albert::forward`].
    pub fn predict(&self, hidden: &Tensor, places: &[(usize, usize)], isa: Isa) -> Result<Tensor> {
        let settings = Settings::default().with_isa(isa);
        let [batch, one, seq, width] = hidden.shape();
        if one != 1 {
            let got = format!("shape {:?}", hidden.shape());
            return Err(Error::input("hidden", got, "[batch, 1, seq, HIDDEN]"));
        }
        let mut rows = Vec::with_capacity(places.len() * width);
        for &(sequence, position) in places {
            if sequence >= batch || position >= seq {
                let got = format!("({sequence}, {position})");
                return Err(Error::input("places", got, format!("below ({batch}, {seq})")));
            }
            rows.extend_from_slice(&hidden.data()[(sequence * seq + position) * width..][..width]);
        }
        let rows = View::bhsd(&rows, [1, 1, places.len(), width])?;
        let dense = gelu(self.narrow.forward(rows, &settings)?)?;
        let normal = self.prediction_norm.apply(dense)?;
        Ok(self.logits.forward(normal.view(), &settings)?)
    }

    /// Word, position and segment of each token, added: `[batch, 1, seq, EMBEDDING]`.
    fn embed(&self, batch: &Batch) -> Result<Tensor> {
        let mut data = Vec::with_capacity(batch.ids().len() * EMBEDDING);
        for (i, &id) in batch.ids().iter().enumerate() {
            let word = &self.words[id * EMBEDDING..][..EMBEDDING];
            let position = &self.positions[i % batch.seq() * EMBEDDING..][..EMBEDDING];
            let parts = word.iter().zip(position).zip(&self.segments[..EMBEDDING]);
            data.extend(parts.map(|((word, position), segment)| word + position + segment));
        }
        Ok(Tensor::new(data, [batch.lengths().len(), 1, batch.seq(), EMBEDDING])?)
    }
}

/// Where the attention of the shared layer is, and what the checkpoint calls its projections.
pub(crate) fn attention_source<'a>(file: &'a Archive<'_>) -> Source<'a> {
    let source = file.source().prefix(ATTENTION).partial();
    let source = source.rename("linear_q", "query").rename("linear_k", "key");
    source.rename("linear_v", "value").rename("linear_out", "dense")
}

/// The attention of the shared layer, under the names that the checkpoint gives its projections.
fn attention(file: &Archive<'_>) -> Result<MultiHeadAttention> {
    for name in ["query", "key", "value", "dense"] {
        check(file, &format!("{ATTENTION}{name}"), [HIDDEN, HIDDEN])?;
    }
    MultiHeadAttention::load(&attention_source(file), HEADS).map_err(Error::in_file(file.name()))
}

fn linear(file: &Archive<'_>, name: &str, shape: [usize; 2]) -> Result<Linear> {
    check(file, name, shape)?;
    Linear::load(&file.source(), name).map_err(Error::in_file(file.name()))
}

/// Refuses a linear layer of another shape, or without the bias that all of this model have.
fn check(file: &Archive<'_>, name: &str, shape: [usize; 2]) -> Result<()> {
    file.shaped(&format!("{name}.weight"), &[&shape])?;
    file.shaped(&format!("{name}.bias"), &[&shape[..1]])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;
    use safetensors::tensor::TensorView;

    use super::*;

    fn refused(bytes: &[u8]) -> String {
        match Albert::load("broken", bytes) {
            Ok(_) => panic!("loaded"),
            Err(error) => error.to_string(),
        }
    }

    /// The embedded weights, changed: `None` leaves a tensor out.
    fn changed(
        change: impl for<'a> Fn(&str, TensorView<'a>) -> Option<TensorView<'a>>,
    ) -> Result<Vec<u8>> {
        let refuse = |error| Error::input("weights", format!("{error}"), "tensors");
        let file = SafeTensors::deserialize(WEIGHTS.1).map_err(refuse)?;
        let parts = file.iter().filter_map(|(name, view)| Some((name, change(name, view)?)));
        safetensors::serialize(parts.collect::<Vec<_>>(), None).map_err(refuse)
    }

    #[test]
    fn damaged_files_are_refused() {
        for length in [0, 7, 8, 100, WEIGHTS.1.len() - 1] {
            let message = refused(&WEIGHTS.1[..length]);
            assert!(message.starts_with("broken: ") && message.contains("whole"), "{message}");
        }
        let mut bytes = WEIGHTS.1.to_vec();
        bytes[20] ^= 0xff;
        assert!(refused(&bytes).starts_with("broken: "));
    }

    #[test]
    fn missing_and_misshapen_tensors_are_named() -> Result<()> {
        let file = SafeTensors::deserialize(WEIGHTS.1);
        let file = file.map_err(|error| Error::input("weights", format!("{error}"), "tensors"))?;
        for name in file.names() {
            let without = changed(|other, view| (other != name).then_some(view))?;
            let message = refused(&without);
            assert!(message.contains(name) && message.contains("missing"), "{message}");
            let flat = changed(|other, view| {
                let length = view.data().len() / 4;
                let flat = TensorView::new(view.dtype(), vec![length, 1], view.data());
                if other == name { flat.ok() } else { Some(view) }
            })?;
            let message = refused(&flat);
            assert!(message.contains(name) && message.contains("shape"), "{message}");
        }
        Ok(())
    }

    #[test]
    fn places_outside_the_batch_are_refused() -> Result<()> {
        let model = Albert::embedded()?;
        let hidden = Tensor::zeros([2, 1, 3, HIDDEN])?;
        let predict = |place| model.predict(&hidden, &[place], Isa::widest());
        assert_eq!(predict((1, 2))?.shape(), [1, 1, 1, VOCABULARY]);
        for place in [(2, 0), (0, 3), (usize::MAX, usize::MAX)] {
            let message = predict(place).map_err(|error| error.to_string());
            assert!(message.is_err_and(|text| text.contains("expected below (2, 3)")));
        }
        for shape in [[1, 1, 1, HIDDEN - 1], [1, 0, 3, HIDDEN], [1, 1, 3, 0]] {
            assert!(model.predict(&Tensor::zeros(shape)?, &[(0, 0)], Isa::widest()).is_err());
        }
        let encoded = model.forward(&Batch::new(&[vec![12, 13]])?, Isa::widest())?;
        assert!(encoded.mapping_head(0).is_ok());
        assert!(encoded.mapping_head(1).is_err() && encoded.mapping_head(usize::MAX).is_err());
        Ok(())
    }
}
