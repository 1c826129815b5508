//! Numbers that name one of several things.

use std::fmt::Display;

use crate::status::{Failure, Result};

/// An enum of the header. The caller's structs have its numbers, since a number that names nothing
/// must be seen, and would be none of the enum's values.
pub(crate) trait Choice: Copy + std::fmt::Debug + 'static {
    const NAME: &'static str;
    const ALL: &'static [Self];
    fn number(self) -> u32;
}

macro_rules! choice {
    ($name:ident: $($variant:ident),+) => {
        impl $crate::choice::Choice for $name {
            const NAME: &'static str = stringify!($name);
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            fn number(self) -> u32 {
                self as u32
            }
        }
    };
}
pub(crate) use choice;

/// What a number names.
pub(crate) fn choose<T: Choice>(argument: impl Display, number: u32) -> Result<T> {
    T::ALL.iter().copied().find(|choice| choice.number() == number).ok_or_else(|| {
        let all = T::ALL.iter().map(|choice| format!("{} ({choice:?})", choice.number()));
        let expected = format!("a {}: {}", T::NAME, all.collect::<Vec<_>>().join(", "));
        Failure::argument(&argument.to_string(), number, expected)
    })
}
