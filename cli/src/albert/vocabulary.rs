//! The words of the model, and their ids.

use std::collections::HashMap;

/// The id of padding.
pub(super) const PAD: usize = 0;

/// The tokens that the model knows, by id.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    ids: HashMap<&'static str, usize>,
}

impl Vocabulary {
    /// The vocabulary of the embedded model.
    pub fn embedded() -> Self {
        let lines = include_str!("../../fixtures/rxn_vocab.txt").lines();
        Self { ids: lines.enumerate().map(|(id, token)| (token, id)).collect() }
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The id of a token, that of `[UNK]` if it is not among them.
    pub fn id(&self, token: &str) -> usize {
        *self.ids.get(token).or_else(|| self.ids.get("[UNK]")).unwrap_or(&PAD)
    }

    /// What the model reads: `[CLS]`, the tokens, `[SEP]`. Token `i` stands at `i + 1`.
    pub fn encode(&self, tokens: &[&str]) -> Vec<usize> {
        let framed = [&["[CLS]"], tokens, &["[SEP]"]].concat();
        framed.into_iter().map(|token| self.id(token)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        let vocabulary = Vocabulary::embedded();
        assert_eq!(vocabulary.len(), 591);
        assert_eq!(vocabulary.id("[PAD]"), PAD);
        assert_eq!(vocabulary.encode(&["C", "[K+]", "[Xx]"]), [12, 16, 51, 11, 13]);
    }
}
