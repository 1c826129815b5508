//! Score terms with their numbers, and a term of the caller's own with the same in `f64`.

use headwise::{
    Alibi, At, AttentionOptions, Element, Position, RelativeBias, Row, ScoreTerm, Simd, alibi_slope,
};

use super::Rng;

/// The library's terms.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    pub softcap: Option<f32>,
    /// Some slopes, or with `None` inside those of the paper.
    pub alibi: Option<Option<Vec<f32>>>,
    pub relative: Option<Relative>,
    pub sinks: Option<Vec<f32>>,
}

/// A table of biases by distance.
#[derive(Debug, Clone)]
pub struct Relative {
    /// `[heads][len]`.
    pub table: Vec<f32>,
    pub len: usize,
    pub low: i64,
    pub bias: RelativeBias,
}

impl Relative {
    pub fn new(table: Vec<f32>, heads: usize, low: i64) -> Self {
        let bias = RelativeBias::by_distance(&table, heads, low);
        let bias = bias.unwrap_or_else(|error| panic!("{error}"));
        Self { len: table.len() / heads, table, low, bias }
    }
}

impl Terms {
    /// Each by a bit of `which`: softcap, ALiBi, a table, sinks; the fifth chooses slopes.
    pub fn random(which: u8, heads: usize, rng: &mut Rng) -> Self {
        let on = |bit: u8| which & (1 << bit) != 0;
        let mut some = |count: usize, scale: f32| -> Vec<f32> {
            (0..count).map(|_| scale * rng.normal()).collect()
        };
        Self {
            softcap: on(0).then(|| [0.5, 5.0, 50.0][usize::from(which >> 5) % 3]),
            alibi: on(1).then(|| on(4).then(|| some(heads, 0.3))),
            relative: on(2).then(|| {
                let len = [1, 3, 40, 300][usize::from(which >> 5) % 4];
                let low = [-2, 0, -35, -150][usize::from(which >> 6) % 4];
                Relative::new(some(heads * len, 2.0), heads, low)
            }),
            sinks: on(3).then(|| {
                let mut sinks = some(heads, 3.0);
                if on(5) {
                    sinks[0] = f32::NEG_INFINITY;
                }
                sinks
            }),
        }
    }

    pub fn slopes(&self, heads: usize) -> Option<Vec<f32>> {
        let slopes = self.alibi.as_ref()?.clone();
        Some(slopes.unwrap_or_else(|| (0..heads).map(|h| alibi_slope(h, heads)).collect()))
    }

    pub fn relative_at(&self, head: usize, distance: i128) -> f64 {
        self.relative.as_ref().map_or(0.0, |relative| {
            let last = relative.len as i128 - 1;
            let nth = (distance - i128::from(relative.low)).clamp(0, last) as usize;
            relative.table[head * relative.len + nth].into()
        })
    }

    /// What ALiBi and the table add.
    pub fn biases(&self, head: usize, heads: usize, distance: i128) -> [f64; 2] {
        let slope = self.slopes(heads).map_or(0.0, |slopes| f64::from(slopes[head]));
        [slope * distance as f64, self.relative_at(head, distance)]
    }

    pub fn add_to<'a, T: Element>(
        &'a self,
        mut options: AttentionOptions<'a, T>,
    ) -> AttentionOptions<'a, T> {
        if let Some(cap) = self.softcap {
            options = options.softcap(cap);
        }
        if let Some(slopes) = &self.alibi {
            options = options.alibi(slopes.as_ref().map_or(Alibi::Standard, |s| Alibi::Slopes(s)));
        }
        if let Some(relative) = &self.relative {
            options = options.relative_bias(&relative.bias);
        }
        if let Some(sinks) = &self.sinks {
            options = options.sinks(sinks);
        }
        options
    }

    /// Those of one head.
    pub fn head(&self, h: usize, heads: usize) -> Self {
        let slopes = self.slopes(heads).map(|slopes| Some(vec![slopes[h]]));
        let relative = self.relative.as_ref().map(|relative| {
            let row = relative.table[h * relative.len..][..relative.len].to_vec();
            Relative::new(row, 1, relative.low)
        });
        let sinks = self.sinks.as_ref().map(|sinks| vec![sinks[h]]);
        Self { softcap: self.softcap, alibi: slopes, relative, sinks }
    }
}

/// A term of the caller's: `factor * score - slope * (head + 1) * |key - position|`, and -inf for
/// the keys before `start + position / 2 + 3 * batch`, whatever the score. Multiplied and added one
/// after the other, so that the same in scalars has the same bits.
#[derive(Debug, Clone, Copy)]
pub struct Own {
    pub factor: f32,
    pub slope: f32,
    pub start: Option<i64>,
}

impl Own {
    fn first(&self, batch: usize, position: i64) -> i64 {
        self.start.map_or(i64::MIN, |start| start + position / 2 + 3 * batch as i64)
    }

    fn slope(&self, head: usize) -> f32 {
        self.slope * (head + 1) as f32
    }

    pub fn scalar(&self, score: f32, at: Position) -> f32 {
        let Row { batch, head, position, .. } = at.row;
        if (at.key as i64) < self.first(batch, position) {
            return f32::NEG_INFINITY;
        }
        let distance = (at.key as f32 - position as f32).abs();
        score * self.factor - self.slope(head) * distance
    }

    pub fn wide(&self, score: f64, at: [usize; 4], position: i128) -> f64 {
        if self.hides(at, position) {
            return f64::NEG_INFINITY;
        }
        let distance = at[3] as i128 - position;
        score * f64::from(self.factor) - f64::from(self.slope(at[1])) * distance.abs() as f64
    }

    pub fn hides(&self, [b, _, _, j]: [usize; 4], position: i128) -> bool {
        i64::try_from(position).is_ok_and(|position| (j as i64) < self.first(b, position))
    }

    /// The most that it adds to a score.
    pub fn magnitude(&self, distance: i128, head: usize) -> f64 {
        f64::from(self.slope(head)).abs() * distance.abs() as f64
    }
}

impl ScoreTerm for Own {
    const NUMBERS: usize = 2;

    fn row(&self, row: Row, numbers: &mut [f32]) {
        numbers[0] = self.slope(row.head);
        numbers[1] = self.first(row.batch, row.position) as f32;
    }

    #[inline(always)]
    fn apply<S: Simd>(&self, s: S, score: S::Vector, at: &At<'_, S>) -> S::Vector {
        let ahead = s.sub(at.key(), at.position());
        let distance = s.max(ahead, s.sub(s.splat(0.0), ahead));
        let score = s.sub(s.mul(score, s.splat(self.factor)), s.mul(at.number(0), distance));
        let hidden = s.lt(at.key(), at.number(1));
        s.select(hidden, s.splat(f32::NEG_INFINITY), score)
    }
}
