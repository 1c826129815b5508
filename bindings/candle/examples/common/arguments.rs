//! The command line.

use super::{Result, Way};

/// The arguments that have not been asked for yet.
pub(crate) struct Arguments(Vec<String>);

impl Arguments {
    pub(crate) fn of_process() -> Self {
        Self(std::env::args().skip(1).collect())
    }

    /// Whether `name` is there.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let place = self.0.iter().position(|argument| argument == name);
        place.map(|place| self.0.remove(place)).is_some()
    }

    /// What stands behind `name`.
    pub(crate) fn value(&mut self, name: &str) -> Result<Option<String>> {
        let Some(place) = self.0.iter().position(|argument| argument == name) else {
            return Ok(None);
        };
        if place + 1 == self.0.len() {
            return Err(format!("{name} needs a value").into());
        }
        self.0.remove(place);
        Ok(Some(self.0.remove(place)))
    }

    /// The number behind `name`.
    #[allow(dead_code, reason = "not every example takes one")]
    pub(crate) fn number(&mut self, name: &str, default: usize) -> Result<usize> {
        let parse = |text: String| text.parse().map_err(|error| format!("{name} {text}: {error}"));
        Ok(self.value(name)?.map_or(Ok(default), parse)?)
    }

    /// `--attention`, headwise's by default.
    pub(crate) fn way(&mut self) -> Result<Way> {
        self.value("--attention")?.map_or(Ok(Way::Headwise), |name| name.parse())
    }

    /// Refuses what nobody asked for.
    pub(crate) fn end(self) -> Result<()> {
        match self.0.first() {
            None => Ok(()),
            Some(argument) => Err(format!("{argument}: no such argument").into()),
        }
    }
}
