//! Rows in columns of fixed width, so that a row can be printed as soon as it is known.

/// A column: its title and its width. Text is left-aligned, numbers right-aligned.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Column {
    Text(&'static str, usize),
    Number(&'static str, usize),
}

/// The columns of a table.
pub(crate) struct Table<'a>(pub(crate) &'a [Column]);

impl Table<'_> {
    /// The line of titles.
    pub(crate) fn header(&self) -> String {
        self.lay_out(self.0.iter().map(|column| match column {
            Column::Text(title, _) | Column::Number(title, _) => (*title).to_owned(),
        }))
    }

    /// A row; a cell wider than its column pushes the rest to the right.
    pub(crate) fn row(
        &self,
        cells: impl IntoIterator<Item = String, IntoIter: ExactSizeIterator>,
    ) -> String {
        let cells = cells.into_iter();
        debug_assert_eq!(cells.len(), self.0.len());
        self.lay_out(cells)
    }

    fn lay_out(&self, cells: impl Iterator<Item = String>) -> String {
        let cells = self.0.iter().zip(cells).map(|(column, cell)| match *column {
            Column::Text(_, width) => format!("{cell:<width$}"),
            Column::Number(_, width) => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    }
}

/// The number with `decimals` digits after the point, or `-` for none.
pub(crate) fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.decimals$}"))
}

/// The number with two significant digits, as errors are given; `-` for none.
pub(crate) fn small(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.1e}"))
}

/// So many threads, in words.
pub(crate) fn threads(count: usize) -> String {
    if count == 1 { "1 thread".into() } else { format!("{count} threads") }
}

/// Milliseconds, with digits where they mean something.
pub(crate) fn milliseconds(seconds: f64) -> String {
    let ms = seconds * 1e3;
    let decimals = match ms {
        ..0.01 => 6,
        ..10.0 => 3,
        _ => 1,
    };
    format!("{ms:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let table = Table(&[Column::Text("shape", 8), Column::Number("ms", 6)]);
        assert_eq!(table.header(), "shape         ms");
        assert_eq!(table.row(["a".into(), "1.5".into()]), "a            1.5");
        assert_eq!(table.row(["longer-name".into(), "1".into()]), "longer-name       1");
    }

    #[test]
    fn figures() {
        assert_eq!(number(None, 1), "-");
        assert_eq!(number(Some(1.25), 1), "1.2");
        assert_eq!(small(Some(1.26e-6)), "1.3e-6");
        assert_eq!(milliseconds(0.000_000_123_4), "0.000123");
        assert_eq!(milliseconds(0.000_123_4), "0.123");
        assert_eq!(milliseconds(0.123_4), "123.4");
    }
}
