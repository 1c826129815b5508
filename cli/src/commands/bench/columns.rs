//! The tables of `headwise bench`. A column for what shapes of decoding have alone is there where
//! such shapes are.

use super::record::{Listed, Record, Sizes};
use crate::compare::Closeness;
use crate::shapes::{AttentionShape, Shape};
use crate::table::{Column, milliseconds, number};

/// An axis of decoding, with a column where the shapes differ in it and all are of decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Axis {
    SeqQ,
    Group,
    Cache,
}

impl Axis {
    const ALL: [Self; 3] = [Self::SeqQ, Self::Group, Self::Cache];

    fn varies(self, steps: &[AttentionShape]) -> bool {
        steps.windows(2).any(|pair| match self {
            Self::SeqQ => pair[0].seq_q != pair[1].seq_q,
            Self::Group => pair[0].group() != pair[1].group(),
            Self::Cache => pair[0].cache != pair[1].cache,
        })
    }

    fn column(self) -> Column {
        match self {
            Self::SeqQ => Column::Number("seq_q", 5),
            Self::Group => Column::Number("group", 5),
            Self::Cache => Column::Text("cache", 10),
        }
    }

    fn cell(self, sizes: &Sizes) -> String {
        let Sizes::Attention { extents, group, cache, page_size, .. } = sizes else {
            return "-".into();
        };
        match self {
            Self::SeqQ => extents.seq_q.to_string(),
            Self::Group => group.to_string(),
            Self::Cache => {
                page_size.map_or_else(|| (*cache).into(), |size| format!("{cache}/{size}"))
            }
        }
    }
}

/// The columns that a table has for its shapes.
pub(super) struct Columns {
    axes: Vec<Axis>,
    /// Whether there are steps of decoding.
    steps: bool,
    /// Whether there are tensors of half the width.
    halves: bool,
}

impl Columns {
    pub(super) fn new(shapes: &[Shape]) -> Self {
        let step = |shape: &Shape| match *shape {
            Shape::Attention(suite, step) if suite.decodes() => Some(step),
            _ => None,
        };
        let steps: Vec<_> = shapes.iter().filter_map(step).collect();
        let alone = steps.len() == shapes.len();
        let varies = |axis: &Axis| alone && axis.varies(&steps);
        let axes = Axis::ALL.into_iter().filter(varies).collect();
        let halves = shapes.iter().any(|shape| matches!(shape, Shape::Precision(_)));
        Self { axes, steps: !steps.is_empty(), halves }
    }

    /// Shapes that are not measured.
    pub(super) fn listing(&self) -> Vec<Column> {
        let first = [
            Column::Text("suite", 7),
            Column::Text("shape", 22),
            Column::Text("B, heads, queries x keys, dim", 29),
        ];
        let last = [Column::Text("mask", 14), Column::Number("GFLOP", 8), Column::Number("MB", 7)];
        first.into_iter().chain(self.of_axes()).chain(last).collect()
    }

    pub(super) fn listed(&self, listed: &Listed) -> Vec<String> {
        let (sizes, mask) = listed.sizes.describe();
        let mut cells = vec![listed.suite.name().into(), listed.shape.into(), sizes];
        cells.extend(self.cells(&listed.sizes));
        cells.extend([
            mask,
            number(listed.flops.map(|flops| flops / 1e9), 3),
            number(Some(listed.bytes / 1e6), 2),
        ]);
        cells
    }

    /// Shapes that are measured.
    pub(super) fn results(&self) -> Vec<Column> {
        let mut columns =
            vec![Column::Text("shape", 22), Column::Text("B, heads, queries x keys, dim", 29)];
        columns.extend(self.of_axes());
        columns.extend([
            Column::Text("mask", 14),
            Column::Text("isa", 8),
            Column::Number("threads", 7),
            Column::Text("algorithm", 9),
            Column::Number("ms", 8),
            Column::Number("best", 8),
            Column::Number("GFLOP/s", 7),
            Column::Number("% peak", 6),
            Column::Number("computed", 8),
            Column::Number("GB/s", 6),
            Column::Number("% read", 6),
        ]);
        columns.extend(self.steps.then_some(Column::Number("x bound", 7)));
        columns.extend([
            Column::Number("% busy", 6),
            Column::Number("vs unfused", 10),
            Column::Number("term's cost", 11),
            Column::Number("padding's", 9),
            Column::Number("poisoned", 8),
        ]);
        if self.halves {
            columns.extend([
                Column::Text("type", 5),
                Column::Number("vs f32", 6),
                Column::Number("cosine", 9),
                Column::Number("rel. L1", 8),
                Column::Number("RMS", 8),
            ]);
        }
        columns
    }

    pub(super) fn result(&self, record: &Record) -> Vec<String> {
        let (sizes, mask) = record.sizes.describe();
        let mut cells = vec![record.shape.into(), sizes];
        cells.extend(self.cells(&record.sizes));
        cells.extend([
            mask,
            record.isa.into(),
            record.threads.to_string(),
            record.algorithm.into(),
            milliseconds(record.median_ms / 1e3),
            milliseconds(record.best_ms / 1e3),
            number(record.gflops, 1),
            number(record.pct_peak, 1),
            number(record.pct_peak_computed, 1),
            number(Some(record.gbps), 1),
            number(Some(record.pct_read), 1),
        ]);
        cells.extend(self.steps.then(|| number(record.times_bound, 2)));
        cells.extend([
            number(Some(record.pct_busy), 1),
            times(record.vs_unfused),
            percent(record.pct_term),
            percent(record.pct_padding),
            times(record.times_poisoned),
        ]);
        if self.halves {
            let of = |f: fn(&Closeness) -> String| record.closeness.as_ref().map_or("-".into(), f);
            cells.extend([
                record.dtype.into(),
                times(record.vs_f32),
                of(|close| format!("{:.7}", close.cosine)),
                of(|close| format!("{:.2e}", close.relative_l1)),
                of(|close| format!("{:.2e}", close.rms)),
            ]);
        }
        cells
    }

    fn of_axes(&self) -> impl Iterator<Item = Column> {
        self.axes.iter().map(|axis| axis.column())
    }

    fn cells(&self, sizes: &Sizes) -> impl Iterator<Item = String> {
        self.axes.iter().map(|axis| axis.cell(sizes))
    }
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}x"))
}

fn percent(cost: Option<f64>) -> String {
    cost.map_or_else(|| "-".into(), |cost| format!("{cost:.1} %"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Result;
    use crate::shapes::{Suite, select};
    use crate::table::Table;

    fn header(shapes: &[Shape]) -> String {
        Table(&Columns::new(shapes).results()).header()
    }

    #[test]
    fn columns_are_there_for_what_differs() -> Result<()> {
        let [one, other] = [select(None, Some("sweep-4k"))?, select(None, Some("sweep-4k-q4"))?];
        let all = select(None, None)?;
        assert!(!header(&select(None, Some("bert-128"))?).contains("bound"));
        for shapes in [&one, &all] {
            let header = header(shapes);
            assert!(header.contains("x bound") && !header.contains("group"), "{header}");
        }
        let both = header(&[one[0], other[0]]);
        assert!(both.contains("seq_q") && !both.contains("group") && !both.contains("cache"));
        Ok(())
    }

    #[test]
    fn as_many_cells_as_columns() -> Result<()> {
        let shapes = select(Some(Suite::Sweep), None)?;
        let columns = Columns::new(&shapes);
        assert_eq!(columns.axes, Axis::ALL);
        for shape in &shapes {
            let cells = columns.listed(&Listed::new(shape));
            assert_eq!(cells.len(), columns.listing().len());
        }
        let last = columns.listed(&Listed::new(&shapes[shapes.len() - 1]));
        assert_eq!(last[3..6], ["1", "4", "paged/1024"]);
        Ok(())
    }
}
