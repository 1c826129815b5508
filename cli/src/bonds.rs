//! Which atoms of a SMILES are bonded.

use std::collections::HashMap;

use crate::smiles::element;

/// For each token the tokens of the atoms bonded to it: by standing next to each other, across a
/// branch in parentheses, or by a ring's number at both. Tokens that are no atoms have none.
pub(crate) fn bonds(tokens: &[&str]) -> Vec<Vec<usize>> {
    let mut bonds = vec![Vec::new(); tokens.len()];
    let mut last = None;
    let mut branches = Vec::new();
    let mut rings = HashMap::new();
    for (i, &token) in tokens.iter().enumerate() {
        let partner = if token == "*" || element(token).is_some() {
            last.replace(i).map(|before| (before, i))
        } else if let Ok(ring) = token.trim_start_matches('%').parse::<u8>() {
            last.and_then(|atom| match rings.remove(&ring) {
                Some(opened) => Some((opened, atom)),
                None => {
                    rings.insert(ring, atom);
                    None
                }
            })
        } else {
            match token {
                "(" => branches.push(last),
                ")" => last = branches.pop().flatten(),
                "." | ">" | ">>" => last = None,
                _ => {}
            }
            None
        };
        if let Some((a, b)) = partner {
            bonds[a].push(b);
            bonds[b].push(a);
        }
    }
    bonds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smiles::tokenize;

    fn pairs(smiles: &str) -> Vec<(usize, usize)> {
        let bonds = bonds(&tokenize(smiles));
        let each = |(i, others): (usize, &Vec<usize>)| {
            others.iter().filter(move |&&j| i < j).map(move |&j| (i, j)).collect::<Vec<_>>()
        };
        bonds.iter().enumerate().flat_map(each).collect()
    }

    #[test]
    fn chains_branches_rings() {
        assert_eq!(pairs("CC=O"), [(0, 1), (1, 3)]);
        assert_eq!(pairs("CC(=O)(N)[O-].C"), [(0, 1), (1, 4), (1, 7), (1, 9)]);
        assert_eq!(pairs("C1CC%01>>CC"), [(0, 2), (0, 3), (2, 3), (6, 7)]);
    }

    #[test]
    fn what_is_no_smiles_does_no_harm() {
        assert_eq!(pairs(")1(()=C))1.%99"), []);
        assert_eq!(pairs(""), []);
    }
}
