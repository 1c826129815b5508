//! Which atom of the product was which atom of the reactants, read from the model's attention.
//!
//! One head of the reaction model learned, with nobody telling it, to look from an atom to the same
//! atom on the other side of the arrow (Schwaller et al., "Extraction of organic chemistry grammar
//! from unsupervised learning of chemical reactions", Science Advances, 2021).

use std::ops::Range;

use headwise::View;

use crate::bonds::bonds;
use crate::smiles::element;
use crate::{Error, Result};

/// What separates reactants from products.
const ARROW: &str = ">>";

/// How much likelier two atoms are the same once neighbours of theirs are.
const NEIGHBOURS: f32 = 90.0;

/// The tokens of a reaction, and which of its atoms are the same.
///
/// On the embedded reactions the maps were judged by the chemistry. Each makes the one bond that
/// its name promises and keeps every other: methanol's oxygen to the acyl carbon (and not the
/// acid's to methyl, as labelled oxygen has shown), the amine's nitrogen to the acyl carbon, the
/// carbon that bore bromine to the one that bore boron. The tests hold them to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtomMap<'a> {
    tokens: Vec<&'a str>,
    pairs: Vec<(usize, usize)>,
}

impl<'a> AtomMap<'a> {
    /// Reads the map of `tokens` from `attention`, the weights `[1, 1, seq, seq]` of the head that
    /// knows. Token `i` stands at `i + 1`, after `[CLS]`.
    ///
    /// The rule is that of rxnmapper. A pair's score is the attention that its two atoms pay each
    /// other, if they are of one element. The pair that holds the largest share of the score of its
    /// product's atom comes first; each atom is taken once, and the neighbours of a pair then count
    /// for 90 times as much: most bonds survive a reaction, and attention alone confuses the two
    /// sides of a symmetric ring.
    ///
    /// # Errors
    /// Where there is no arrow among the tokens, or not as much attention.
    pub fn read(tokens: &[&'a str], attention: View<'_, f32>) -> Result<Self> {
        let Some(arrow) = tokens.iter().position(|&token| token == ARROW) else {
            return Err(Error::input("reaction", tokens.concat(), "reactants, >>, products"));
        };
        let seq = tokens.len() + 1;
        let [_, _, rows, columns] = attention.shape();
        if rows.min(columns) < seq {
            let got = format!("shape {:?}", attention.shape());
            return Err(Error::input("attention", got, format!("[1, 1, {seq}, {seq}] or more")));
        }
        let mut pairs = pair_up(scores(tokens, arrow, attention), &bonds(tokens));
        pairs.sort_by_key(|&(_, product)| product);
        Ok(Self { tokens: tokens.to_vec(), pairs })
    }

    /// The tokens of a reactant's atom and of the product's atom that it becomes, in the order of
    /// the product.
    pub fn pairs(&self) -> &[(usize, usize)] {
        &self.pairs
    }
}

/// The reaction with a number at each mapped atom, the same on both sides: `[C:1]` for `C`,
/// `[O-:2]` for `[O-]`. The numbers are labels to read; hydrogens are not written out.
impl std::fmt::Display for AtomMap<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, token) in self.tokens.iter().enumerate() {
            match self.pairs.iter().position(|&(r, p)| i == r || i == p) {
                Some(pair) => {
                    let atom = token.trim_start_matches('[').trim_end_matches(']');
                    write!(f, "[{atom}:{}]", pair + 1)?;
                }
                None => f.write_str(token)?,
            }
        }
        Ok(())
    }
}

/// A pair of a reactant's and a product's atom, and how likely they are the same.
struct Candidate {
    score: f32,
    reactant: usize,
    product: usize,
}

/// The pairs of one element, with the attention they pay each other.
fn scores(tokens: &[&str], arrow: usize, attention: View<'_, f32>) -> Vec<Candidate> {
    let elements: Vec<_> = tokens.iter().map(|token| element(token)).collect();
    let atoms = |side: Range<usize>| side.filter(|&i| elements[i].is_some()).collect::<Vec<_>>();
    let (reactants, products) = (atoms(0..arrow), atoms(arrow + 1..tokens.len()));

    let weight = |from, to| *attention.get([0, 0, from + 1, to + 1]).unwrap_or(&0.0);
    let mut candidates = Vec::new();
    for &product in &products {
        for &reactant in reactants.iter().filter(|&&r| elements[r] == elements[product]) {
            let score = weight(product, reactant) + weight(reactant, product);
            candidates.push(Candidate { score, reactant, product });
        }
    }
    candidates.retain(|candidate| candidate.score > 0.0);
    candidates
}

/// Takes the candidate that stands out most among those of its product's atom, drops those that
/// share an atom with it, raises its neighbours; again until there is none.
fn pair_up(mut open: Vec<Candidate>, bonds: &[Vec<usize>]) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    loop {
        let mut totals = vec![0.0; bonds.len()];
        open.iter().for_each(|candidate| totals[candidate.product] += candidate.score);
        let share = |candidate: &Candidate| candidate.score / totals[candidate.product];
        // Of equals the first.
        let Some(best) = open.iter().rev().max_by(|a, b| share(a).total_cmp(&share(b))) else {
            return pairs;
        };
        let (reactant, product) = (best.reactant, best.product);
        pairs.push((reactant, product));
        open.retain(|other| other.reactant != reactant && other.product != product);
        for other in &mut open {
            if bonds[reactant].contains(&other.reactant) && bonds[product].contains(&other.product)
            {
                other.score *= NEIGHBOURS;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smiles::tokenize;

    /// Attention that every token pays to the tokens of its own kind.
    fn map(smiles: &str) -> Result<String> {
        let tokens = tokenize(smiles);
        let seq = tokens.len() + 2;
        let mut attention = vec![0.0; seq * seq];
        for (i, token) in tokens.iter().enumerate() {
            for (j, _) in tokens.iter().enumerate().filter(|(_, other)| other == &token) {
                attention[(i + 1) * seq + j + 1] = 0.25;
            }
        }
        let attention = View::bhsd(&attention, [1, 1, seq, seq])?;
        Ok(AtomMap::read(&tokens, attention)?.to_string())
    }

    #[test]
    fn bracket_atoms_keep_what_they_say() -> Result<()> {
        assert_eq!(map("[O-]C.[Na+]>>C[O-]")?, "[O-:2][C:1].[Na+]>>[C:1][O-:2]");
        Ok(())
    }

    #[test]
    fn neighbours_decide_between_equals() -> Result<()> {
        assert_eq!(map("CN.CO>>OC")?, "CN.[C:2][O:1]>>[O:1][C:2]");
        Ok(())
    }

    #[test]
    fn atoms_out_of_nothing_stay_as_they_are() -> Result<()> {
        assert_eq!(map("C.*>>CCN*")?, "[C:1].*>>[C:1]CN*");
        assert_eq!(map("C>>")?, "C>>");
        Ok(())
    }

    #[test]
    fn what_is_no_reaction() -> Result<()> {
        let refused = map("CC").map_err(|error| error.to_string());
        assert_eq!(refused, Err("reaction: CC; expected reactants, >>, products".into()));
        let small = [0.0; 9];
        let refused = AtomMap::read(&["C", ">>", "C"], View::bhsd(&small, [1, 1, 3, 3])?);
        let message = refused.map_err(|error| error.to_string());
        let expected = "attention: shape [1, 1, 3, 3]; expected [1, 1, 4, 4] or more";
        assert_eq!(message, Err(expected.into()));
        Ok(())
    }
}
