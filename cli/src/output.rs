//! Standard output: text for people, or one JSON object a line and nothing else.

use std::io::{Stdout, Write, stdout};

use serde::Serialize;

use crate::{Error, Result};

/// Where results go. Each result is offered in both forms; one of them is written.
pub(crate) struct Output {
    json: bool,
    stdout: Stdout,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, stdout: stdout() }
    }

    /// Writes a line for people.
    pub(crate) fn line(&mut self, text: impl AsRef<str>) -> Result<()> {
        if self.json {
            return Ok(());
        }
        writeln!(self.stdout, "{}", text.as_ref().trim_end()).map_err(Error::Stdout)
    }

    /// Writes an object for programs. Numbers that JSON lacks (infinity, NaN) become null.
    pub(crate) fn object(&mut self, object: &impl Serialize) -> Result<()> {
        if !self.json {
            return Ok(());
        }
        let text = serde_json::to_string(object)?;
        writeln!(self.stdout, "{text}").map_err(Error::Stdout)
    }
}
