//! Sequences of different lengths as one batch.

use super::vocabulary::PAD;
use super::{POSITIONS, VOCABULARY};
use crate::{Error, Result};

/// Token ids, padded on the right to the longest sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    ids: Vec<usize>,
    lengths: Vec<usize>,
    seq: usize,
}

impl Batch {
    /// A batch of sequences.
    ///
    /// # Errors
    /// Where there is none, one is longer than the model's positions, or an id is not in its
    /// vocabulary.
    pub fn new(sequences: &[Vec<usize>]) -> Result<Self> {
        let lengths: Vec<_> = sequences.iter().map(Vec::len).collect();
        let seq = lengths.iter().copied().max().unwrap_or(0);
        if !(1..=POSITIONS).contains(&seq) {
            let expected = format!("1 to {POSITIONS}");
            return Err(Error::input("sequences", format!("{seq} tokens"), expected));
        }
        if let Some(id) = sequences.iter().flatten().find(|&&id| id >= VOCABULARY) {
            return Err(Error::input("token id", id.to_string(), format!("below {VOCABULARY}")));
        }
        let padded = |ids: &Vec<usize>| {
            ids.iter().copied().chain(std::iter::repeat_n(PAD, seq - ids.len())).collect::<Vec<_>>()
        };
        Ok(Self { ids: sequences.iter().flat_map(padded).collect(), lengths, seq })
    }

    /// The ids, `[batch, seq]`.
    pub fn ids(&self) -> &[usize] {
        &self.ids
    }

    /// The tokens of each sequence that are no padding.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// The tokens of each sequence, padding included; at least 1.
    pub fn seq(&self) -> usize {
        self.seq
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padded_on_the_right() -> Result<()> {
        let batch = Batch::new(&[vec![12, 13], vec![12, 16, 13], vec![]])?;
        assert_eq!(batch.ids(), [12, 13, PAD, 12, 16, 13, PAD, PAD, PAD]);
        assert_eq!((batch.lengths(), batch.seq()), (&[2, 3, 0][..], 3));
        Ok(())
    }

    #[test]
    fn what_the_model_cannot_read() {
        let message = |sequences: &[Vec<usize>]| match Batch::new(sequences) {
            Ok(batch) => panic!("{batch:?}"),
            Err(error) => error.to_string(),
        };
        assert_eq!(message(&[]), "sequences: 0 tokens; expected 1 to 512");
        assert_eq!(message(&[vec![0; 513]]), "sequences: 513 tokens; expected 1 to 512");
        assert_eq!(message(&[vec![0, 591]]), "token id: 591; expected below 591");
    }
}
