//! Runs the embedded reaction model and prints which atoms of the products came from where:
//! `cargo run --release -p headwise-cli --example reactions`.

use headwise::Isa;
use headwise_cli::albert::{Albert, Batch, Vocabulary};
use headwise_cli::atom_map::AtomMap;
use headwise_cli::smiles::{REACTIONS, tokenize};

fn main() -> headwise_cli::Result<()> {
    let model = Albert::embedded()?;
    let vocabulary = Vocabulary::embedded();

    let reactions = REACTIONS.map(|reaction| tokenize(reaction.smiles));
    let ids: Vec<_> = reactions.iter().map(|tokens| vocabulary.encode(tokens)).collect();
    let encoded = model.forward(&Batch::new(&ids)?, Isa::from_env()?)?;

    for (i, tokens) in reactions.iter().enumerate() {
        let map = AtomMap::read(tokens, encoded.mapping_head(i)?)?;
        println!("{}\n  {map}", REACTIONS[i].name);
    }
    Ok(())
}
