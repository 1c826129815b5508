//! Lists whose length is the caller's: where there is no memory for one, it is refused.

use crate::{Error, Result};

/// Makes room for `more` items behind those that a list has.
pub(super) fn reserve<T>(argument: &'static str, list: &mut Vec<T>, more: usize) -> Result<()> {
    list.try_reserve_exact(more).map_err(|_| no_memory(argument, list.len().saturating_add(more)))
}

/// A list of these items.
pub(super) fn list<T>(
    argument: &'static str,
    items: impl ExactSizeIterator<Item = T>,
) -> Result<Vec<T>> {
    let mut list = Vec::new();
    reserve(argument, &mut list, items.len())?;
    list.extend(items);
    Ok(list)
}

fn no_memory(argument: &'static str, items: usize) -> Error {
    Error::Overflow {
        argument,
        got: format!("lists of {items}"),
        expected: "an amount of memory that can be had".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_memory_is_an_error() {
        assert_eq!(list("n", [1, 2].into_iter()), Ok(vec![1, 2]));
        let refused = list("n", std::iter::repeat_n(0_u64, usize::MAX));
        assert!(matches!(refused, Err(Error::Overflow { argument: "n", .. })), "{refused:?}");
    }
}
