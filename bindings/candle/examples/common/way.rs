//! Whose attention a model computes with.

use std::fmt::{Display, Formatter};
use std::str::FromStr;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Products with a softmax between them, and `Tensor::cat`, as candle-transformers has it.
    Candle,
    Headwise,
}

impl Way {
    pub(crate) const BOTH: [Self; 2] = [Self::Candle, Self::Headwise];
}

impl Display for Way {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(if *self == Self::Candle { "candle" } else { "headwise" })
    }
}

impl FromStr for Way {
    type Err = Box<dyn std::error::Error + Send + Sync>;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = |way: &Self| way.to_string() == name;
        let way = Self::BOTH.into_iter().find(known);
        way.ok_or_else(|| format!("--attention {name}: candle or headwise").into())
    }
}
