//! The reaction model against the answers of another implementation, computed in float64;
//! `fixtures/README.md` says how.

use headwise::Isa;

use crate::Result;
use crate::albert::{Albert, Batch, Encoded, HIDDEN, VOCABULARY, Vocabulary};
use crate::archive::Archive;
use crate::compare::distance;
use crate::smiles::{REACTIONS, tokenize};

const FILE: &[u8] = include_bytes!("../fixtures/rxn_golden.safetensors");

/// The batch of the answers: reactions, tokens of the longest, tokens masked in each.
const BATCH: usize = 3;
const SEQ: usize = 63;
const MASKED: usize = 2;

/// How far a part of the model is from its answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Check {
    pub(crate) what: &'static str,
    /// The largest absolute difference, or for tokens the number of those that differ.
    pub(crate) error: f64,
    pub(crate) allowed: f64,
}

impl Check {
    pub(crate) fn pass(&self) -> bool {
        self.error <= self.allowed
    }
}

/// The embedded reactions as the model reads them.
pub(crate) fn batch() -> Result<Batch> {
    let vocabulary = Vocabulary::embedded();
    Batch::new(&REACTIONS.map(|reaction| vocabulary.encode(&tokenize(reaction.smiles))))
}

/// The answers.
pub(crate) struct Golden {
    ids: Vec<usize>,
    lengths: Vec<usize>,
    masked_ids: Vec<usize>,
    places: Vec<(usize, usize)>,
    hidden: Vec<f32>,
    attention: Vec<f32>,
    logits: Vec<f32>,
    words: Vec<usize>,
}

impl Golden {
    pub(crate) fn load() -> Result<Self> {
        let file = Archive::parse("rxn_golden", "", FILE)?;
        let mask = file.counts("attention_mask", &[BATCH, SEQ])?;
        let positions = file.counts("mlm_positions", &[BATCH, MASKED])?;
        Ok(Self {
            ids: file.counts("input_ids", &[BATCH, SEQ])?,
            lengths: mask.chunks(SEQ).map(|row| row.iter().sum()).collect(),
            masked_ids: file.counts("masked_input_ids", &[BATCH, SEQ])?,
            places: positions.iter().enumerate().map(|(i, &at)| (i / MASKED, at)).collect(),
            hidden: file.shaped("hidden", &[&[BATCH, SEQ, HIDDEN]])?,
            attention: file.shaped("attention_l10_h5", &[&[BATCH, SEQ, SEQ]])?,
            logits: file.shaped("mlm_logits", &[&[BATCH, MASKED, VOCABULARY]])?,
            words: file.counts("mlm_argmax", &[BATCH, MASKED])?,
        })
    }

    /// Judges what the model made of the embedded reactions, then has it guess the masked tokens.
    pub(crate) fn check(
        &self,
        model: &Albert,
        (batch, encoded): (&Batch, &Encoded),
        isa: Isa,
    ) -> Result<[Check; 6]> {
        let largest =
            |got: &[f32], answer: &[f32]| distance(got, answer, answer.len()).max_absolute;
        let wrong = |got: &[usize], answers: &[usize]| {
            let differ = got.iter().zip(answers).filter(|(got, answer)| got != answer).count();
            (differ + got.len().abs_diff(answers.len())) as f64
        };
        let head = self.head(encoded)?;
        let padding = self.padding(encoded);
        let logits = self.guess(model, isa)?;
        let words: Vec<_> = logits.chunks(VOCABULARY).map(likeliest).collect();

        let check = |what, error, allowed| Check { what, error, allowed };
        Ok([
            check("token ids", wrong(batch.ids(), &self.ids), 0.0),
            check(
                "hidden states, 12 layers",
                largest(&self.real(encoded.hidden.data()), &self.real(&self.hidden)),
                3e-5,
            ),
            check(
                "weights of layer 10, head 5",
                largest(&self.real(&head), &self.real(&self.attention)),
                1.5e-5,
            ),
            check("weights on padding", largest(&padding, &vec![0.0; padding.len()]), 0.0),
            check("masked tokens, logits", largest(&logits, &self.logits), 2e-4),
            check("masked tokens, likeliest", wrong(&words, &self.words), 0.0),
        ])
    }

    /// Of `[batch, seq, width]` the rows that are no padding.
    fn real(&self, rows: &[f32]) -> Vec<f32> {
        let width = rows.len() / (BATCH * SEQ);
        let sequences = rows.chunks(SEQ * width).zip(&self.lengths);
        sequences.flat_map(|(rows, length)| &rows[..length * width]).copied().collect()
    }

    /// The weights of the mapping head, `[batch, seq, seq]`.
    fn head(&self, encoded: &Encoded) -> Result<Vec<f32>> {
        let heads: Result<Vec<_>> = (0..BATCH).map(|i| encoded.mapping_head(i)).collect();
        Ok(heads?.iter().flat_map(|head| head.to_vec()).collect())
    }

    /// The weights of all heads on keys that are padding, queries of padding included.
    fn padding(&self, encoded: &Encoded) -> Vec<f32> {
        let [_, heads, seq, _] = encoded.weights.shape();
        let rows = encoded.weights.data().chunks(seq).enumerate();
        rows.flat_map(|(i, row)| &row[self.lengths[i / (heads * seq)]..]).copied().collect()
    }

    /// The logits at the masked tokens.
    fn guess(&self, model: &Albert, isa: Isa) -> Result<Vec<f32>> {
        let sequences = self.masked_ids.chunks(SEQ).zip(&self.lengths);
        let sequences: Vec<_> = sequences.map(|(ids, &length)| ids[..length].to_vec()).collect();
        let encoded = model.forward(&Batch::new(&sequences)?, isa)?;
        Ok(model.predict(&encoded.hidden, &self.places, isa)?.into_vec())
    }
}

/// The index of the largest number.
fn likeliest(logits: &[f32]) -> usize {
    let numbered = logits.iter().enumerate();
    numbered.max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::atom_map::AtomMap;
    use crate::bonds::bonds;
    use crate::smiles::element;

    #[test]
    fn the_model_agrees_on_every_instruction_set() -> Result<()> {
        let (model, batch, golden) = (Albert::embedded()?, batch()?, Golden::load()?);
        assert_eq!(batch.lengths(), golden.lengths);
        for isa in Isa::available() {
            let encoded = model.forward(&batch, isa)?;
            for check in golden.check(&model, (&batch, &encoded), isa)? {
                assert!(check.pass(), "{isa}: {check:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_wrong_answer_is_seen() -> Result<()> {
        let (model, batch, mut golden) = (Albert::embedded()?, batch()?, Golden::load()?);
        golden.ids[3] += 1;
        golden.hidden[7] += 1e-3;
        golden.attention[7] += 1e-3;
        golden.lengths[2] -= 1;
        golden.logits[7] += 1e-2;
        golden.words[5] += 1;
        let isa = Isa::widest();
        let encoded = model.forward(&batch, isa)?;
        for check in golden.check(&model, (&batch, &encoded), isa)? {
            assert!(!check.pass(), "{check:?}");
        }
        Ok(())
    }

    #[test]
    fn padding_changes_no_bit() -> Result<()> {
        let model = Albert::embedded()?;
        let batch = batch()?;
        for isa in Isa::available() {
            let together = model.forward(&batch, isa)?;
            for (i, &length) in batch.lengths().iter().enumerate() {
                let ids = batch.ids()[i * SEQ..][..length].to_vec();
                let alone = model.forward(&Batch::new(&[ids])?, isa)?;
                let rows = &together.hidden.data()[i * SEQ * HIDDEN..][..length * HIDDEN];
                assert!(alone.hidden.data() == rows, "{isa}: {}", REACTIONS[i].name);
                let (one, all) = (alone.mapping_head(0)?, together.mapping_head(i)?);
                for at in (0..length * length).map(|n| [0, 0, n / length, n % length]) {
                    assert_eq!(one.get(at), all.get(at), "{isa}: weight {at:?}");
                }
            }
        }
        Ok(())
    }

    /// Each product atom has one atom of its element in the reactants; each reaction makes one bond,
    /// between atoms that lose the groups that leave, and keeps all others.
    #[test]
    fn maps_follow_the_chemistry() -> Result<()> {
        let model = Albert::embedded()?;
        let batch = batch()?;
        for isa in Isa::available() {
            let encoded = model.forward(&batch, isa)?;
            // The atoms of the new bond, each with what it was bonded to and leaves.
            let made = [["O", "C-O"], ["C-O", "N"], ["c-Br", "c-B"]];
            for (i, (reaction, made)) in REACTIONS.iter().zip(made).enumerate() {
                let tokens = tokenize(reaction.smiles);
                let map = AtomMap::read(&tokens, encoded.mapping_head(i)?)?;
                let pairs = map.pairs();
                let arrow = tokens.iter().position(|&token| token == ">>").unwrap_or_default();
                let atoms = (arrow..tokens.len()).filter(|&i| element(tokens[i]).is_some());
                assert!(atoms.eq(pairs.iter().map(|pair| pair.1)), "{}", reaction.name);
                let mut sources: Vec<_> = pairs.iter().map(|pair| pair.0).collect();
                sources.sort_unstable();
                sources.dedup();
                assert_eq!(sources.len(), pairs.len(), "an atom is used once");
                assert!(sources.iter().all(|&r| r < arrow));

                let bonds = bonds(&tokens);
                let before = |r: usize| {
                    let leaves = bonds[r].iter().filter(|other| !sources.contains(other));
                    leaves.fold(tokens[r].to_owned(), |name, &other| name + "-" + tokens[other])
                };
                let mut new = Vec::new();
                for (n, &(r, p)) in pairs.iter().enumerate() {
                    assert_eq!(element(tokens[r]), element(tokens[p]));
                    for &(other_r, other_p) in &pairs[n..] {
                        if bonds[p].contains(&other_p) && !bonds[r].contains(&other_r) {
                            new.push([before(r), before(other_r)]);
                        }
                    }
                }
                assert_eq!(new, [made], "{isa}: {map}");
            }
        }
        Ok(())
    }

    #[test]
    fn the_ester_s_oxygen_is_methanol_s() -> Result<()> {
        let encoded = Albert::embedded()?.forward(&batch()?, Isa::widest())?;
        let tokens = tokenize(REACTIONS[0].smiles);
        let map = AtomMap::read(&tokens, encoded.mapping_head(0)?)?.to_string();
        let expected = "[C:1][O:2].[O:4]=[C:3](O)[c:5]1[c:6][c:7][c:8][c:9][c:10]1.O=S(=O)(O)O>>\
                        [C:1][O:2][C:3](=[O:4])[c:5]1[c:6][c:7][c:8][c:9][c:10]1";
        assert_eq!(map, expected);
        Ok(())
    }
}
