//! Chemical reactions as text: three to try, and the tokens that the reaction model reads.
//!
//! SMILES (Weininger, "SMILES, a chemical language and information system", 1988) writes atoms one
//! after another, bonds and rings between them, molecules with dots between them; a reaction is
//! reactants, `>>`, products.

/// A reaction with its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reaction {
    /// What chemists call it.
    pub name: &'static str,
    /// Reactants and reagents, `>>`, the product.
    pub smiles: &'static str,
}

/// The reactions for which the fixtures have answers, in their order.
pub const REACTIONS: [Reaction; 3] = [
    Reaction {
        name: "Fischer esterification",
        smiles: "CO.O=C(O)c1ccccc1.O=S(=O)(O)O>>COC(=O)c1ccccc1",
    },
    Reaction {
        name: "amide coupling with a carbodiimide",
        smiles: "CC(=O)O.NCc1ccccc1.CCN=C=NCCCN(C)C.CCN(CC)CC>>CC(=O)NCc1ccccc1",
    },
    Reaction {
        name: "Suzuki coupling",
        smiles: "Brc1ccc(C)cc1.OB(O)c1ccccc1.O=C([O-])[O-].[K+].[K+]>>Cc1ccc(-c2ccccc2)cc1",
    },
];

/// The tokens of `smiles`, left to right: atoms, bracket atoms whole, bonds, branches, ring
/// numbers, dots and arrows. What is none of these is left out, as the model's tokenizer does.
///
/// ```
/// use headwise_cli::smiles::tokenize;
///
/// assert_eq!(tokenize("BrCC(=O)[O-].[Na+]").len(), 10);
/// assert_eq!(tokenize("C%12>>[13C]"), ["C", "%12", ">>", "[13C]"]);
/// ```
pub fn tokenize(smiles: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = smiles;
    while let Some(first) = rest.chars().next() {
        let length = token_length(rest);
        let (token, after) = rest.split_at(length.unwrap_or(first.len_utf8()));
        if length.is_some() {
            tokens.push(token);
        }
        rest = after;
    }
    tokens
}

/// The bytes of the token with which `text` begins.
fn token_length(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let followed_by = |next| bytes.get(1) == Some(&next);
    let digit = |at| bytes.get(at).is_some_and(u8::is_ascii_digit);
    match bytes.first()? {
        // The brackets hold something.
        b'[' => text.find(']').filter(|&end| end > 1).map(|end| end + 1),
        b'B' => Some(1 + usize::from(followed_by(b'r'))),
        b'C' => Some(1 + usize::from(followed_by(b'l'))),
        b'>' => Some(1 + usize::from(followed_by(b'>'))),
        b'%' => (digit(1) && digit(2)).then_some(3),
        b'N' | b'O' | b'S' | b'P' | b'F' | b'I' | b'b' | b'c' | b'n' | b'o' | b's' | b'p' => {
            Some(1)
        }
        b'(' | b')' | b'.' | b'=' | b'#' | b'-' | b'+' | b'\\' | b'/' | b':' | b'~' | b'@' => {
            Some(1)
        }
        b'?' | b'*' | b'$' | b'0'..=b'9' => Some(1),
        _ => None,
    }
}

/// The element of an atom token, its first letter in upper case: `C` of `c`, of `Cl` `Cl`, of
/// `[13CH3]` `C`. `None` for bonds, digits, dots and whatever else is no atom.
pub fn element(token: &str) -> Option<String> {
    let inside = token.strip_prefix('[').unwrap_or(token);
    let symbol = inside.trim_start_matches(|c: char| c.is_ascii_digit());
    let mut letters = symbol.chars();
    let first = letters.next().filter(char::is_ascii_alphabetic)?.to_ascii_uppercase();
    let second = letters.next().filter(char::is_ascii_lowercase);
    Some([Some(first), second].into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tokens of the reactions as the model's own tokenizer splits them.
    const TOKENS: [&str; 3] = [
        "C O . O = C ( O ) c 1 c c c c c 1 . O = S ( = O ) ( O ) O >> C O C ( = O ) c 1 c c c c c 1",
        "C C ( = O ) O . N C c 1 c c c c c 1 . C C N = C = N C C C N ( C ) C . C C N ( C C ) C C \
         >> C C ( = O ) N C c 1 c c c c c 1",
        "Br c 1 c c c ( C ) c c 1 . O B ( O ) c 1 c c c c c 1 . O = C ( [O-] ) [O-] . [K+] . [K+] \
         >> C c 1 c c c ( - c 2 c c c c c 2 ) c c 1",
    ];

    #[test]
    fn the_model_s_own_tokens() {
        for (reaction, expected) in REACTIONS.iter().zip(TOKENS) {
            let expected: Vec<_> = expected.split(' ').collect();
            assert_eq!(tokenize(reaction.smiles), expected, "{}", reaction.name);
            assert_eq!(expected.concat(), reaction.smiles);
        }
    }

    #[test]
    fn every_kind_of_token() {
        let text =
            "[nH] Br B Cl C N O S P F I b c n o s p ( ) . = # - + \\ / : ~ @ ? > >> * $ %10 7";
        assert_eq!(tokenize(&text.replace(' ', "\n")), text.split(' ').collect::<Vec<_>>());
        assert_eq!(tokenize(">>>"), [">>", ">"]);
        assert_eq!(tokenize("[a[b]c"), ["[a[b]", "c"]);
    }

    #[test]
    fn what_is_no_token_is_left_out() {
        assert_eq!(tokenize("C [] Ä [C %1 é%123 r l"), ["C", "C", "1", "%12", "3"]);
        assert_eq!(tokenize("[é]"), ["[é]"]);
        assert_eq!(tokenize("[]]"), [""; 0]);
        assert_eq!(tokenize(""), [""; 0]);
    }

    #[test]
    fn elements() {
        let of = |token| element(token).unwrap_or_default();
        assert_eq!(["c", "Cl", "[13CH3]", "[nH]", "[se]"].map(of), ["C", "Cl", "C", "N", "Se"]);
        assert_eq!(
            ["[C@@H]", "[Na+]", "[O-]", "[2H]", "[BH-]"].map(of),
            ["C", "Na", "O", "H", "B"]
        );
        for token in ["(", "1", "%12", ".", "=", ">>", "*", "[", ""] {
            assert_eq!(element(token), None, "{token}");
        }
    }
}
