//! What the shapes of a call say, checked: every message names the operator's own inputs and
//! attributes.

use std::fmt::Debug;
use std::ops::Range;

use super::{Array, Attributes, Inputs, Mask};
use crate::{Error, Result, Shape, Strides, View, ViewMut};

pub(super) fn shape_error<T>(
    argument: &'static str,
    got: impl Debug,
    expected: impl Into<String>,
) -> Result<T> {
    Err(Error::Shape { argument, got: format!("{got:?}"), expected: expected.into() })
}

pub(super) fn value_error<T>(
    argument: &'static str,
    got: impl Debug,
    expected: impl Into<String>,
) -> Result<T> {
    Err(Error::Value { argument, got: format!("{got:?}"), expected: expected.into() })
}

/// A dense tensor of four axes in one of the two orders that the operator has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// `[batch, heads, seq, dim]`.
    pub(super) shape: Shape,
    /// In memory `[batch, seq, heads, dim]`: what came with three axes.
    pub(super) seq_first: bool,
}

impl Place {
    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Those of a tensor without elements may be anything.
    fn strides(&self) -> Strides {
        let [_, heads, seq, dim] = self.shape;
        let (head, row) = if self.seq_first {
            (dim, heads.saturating_mul(dim))
        } else {
            (seq.saturating_mul(dim), dim)
        };
        [self.entry(), head, row, 1].map(|stride| stride as isize)
    }

    /// The elements of a batch entry.
    fn entry(&self) -> usize {
        self.shape[1..].iter().fold(1, |product, &extent| product.saturating_mul(extent))
    }

    /// One row.
    pub(super) fn row<'a, T>(&self, data: &'a [T], [batch, head, row]: [usize; 3]) -> &'a [T] {
        let [_, heads, seq, dim] = self.shape;
        let at = if self.seq_first {
            (batch * seq + row) * heads + head
        } else {
            (batch * heads + head) * seq + row
        };
        &data[at * dim..(at + 1) * dim]
    }

    /// Some batch entries, and of each head the first `rows` rows and the first `width` columns.
    fn part(&self, entries: &Range<usize>, [rows, width]: [usize; 2]) -> (usize, Shape) {
        let [_, heads, ..] = self.shape;
        let offset = entries.start * self.entry();
        (offset, [entries.len(), heads, rows, width])
    }

    /// Of some batch entries the first `seq` rows of each head.
    pub(super) fn view<'a, T>(
        &self,
        data: &'a [T],
        entries: &Range<usize>,
        seq: usize,
    ) -> Result<View<'a, T>> {
        let (offset, shape) = self.part(entries, [seq, self.shape[3]]);
        View::strided(data, offset, shape, self.strides())
    }

    /// Of some batch entries the first `width` columns of each row, to write.
    pub(super) fn view_mut<'a, T>(
        &self,
        data: &'a mut [T],
        entries: &Range<usize>,
        width: usize,
    ) -> Result<ViewMut<'a, T>> {
        let (offset, shape) = self.part(entries, [self.shape[2], width]);
        ViewMut::strided(data, offset, shape, self.strides())
    }
}

/// The extents of a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extents {
    pub(super) query: Place,
    /// Of the incoming keys and values; behind the past where there is one.
    pub(super) key: Place,
    pub(super) value: Place,
    /// Keys of the past.
    pub(super) past: usize,
}

impl Extents {
    /// Of inputs that fit each other and the attributes.
    pub(super) fn of<T>(attributes: &Attributes, inputs: &Inputs<'_, T>) -> Result<Self> {
        let (q, k, v) = (&inputs.q, &inputs.k, &inputs.v);
        let [q_heads, kv_heads] = [attributes.q_num_heads, attributes.kv_num_heads];
        let query = place("Q", q, ("q_num_heads", q_heads))?;
        let key = place("K", k, ("kv_num_heads", kv_heads))?;
        let value = place("V", v, ("kv_num_heads", kv_heads))?;
        for (argument, array) in [("K", k), ("V", v)] {
            if array.shape.len() != q.shape.len() {
                let expected = format!("{} axes, as Q has", q.shape.len());
                return shape_error(argument, array.shape, expected);
            }
        }
        let [batch, q_heads, _, head_dim] = query.shape;
        let [_, kv_heads, incoming, _] = key.shape;
        if key.shape[0] != batch || key.shape[3] != head_dim {
            let expected = format!("batch {batch} and head size {head_dim} to fit Q {:?}", q.shape);
            return shape_error("K", k.shape, expected);
        }
        if !q_heads.is_multiple_of(kv_heads) {
            let expected = format!("a number of heads that divides Q's {q_heads}");
            return shape_error("K", format_args!("{:?} of {kv_heads} heads", k.shape), expected);
        }
        if value.shape[..3] != key.shape[..3] {
            let expected = format!("batch, heads and sequence to fit K {:?}", k.shape);
            return shape_error("V", v.shape, expected);
        }
        let past = match (&inputs.past_key, &inputs.past_value) {
            (None, None) => 0,
            (Some(past_key), Some(past_value)) => {
                let seq = past_key.shape.get(2).copied().unwrap_or(0);
                for (argument, past, dim) in
                    [("past_key", past_key, head_dim), ("past_value", past_value, value.shape[3])]
                {
                    past.check(argument)?;
                    if past.shape != [batch, kv_heads, seq, dim] {
                        let expected = format!(
                            "[{batch}, {kv_heads}, past_sequence_length, {dim}], the length that of \
                             past_key"
                        );
                        return shape_error(argument, past.shape, expected);
                    }
                }
                seq
            }
            (Some(_), None) => return value_error("past_value", "none", "one beside past_key"),
            (None, Some(_)) => return value_error("past_key", "none", "one beside past_value"),
        };
        if incoming.checked_add(past).is_none() {
            return shape_error("past_key", past, "a length that fits beside K's");
        }
        let this = Self { query, key, value, past };
        this.check_lengths(inputs)?;
        if let Some(mask) = &inputs.attn_mask {
            this.check_mask(mask, inputs.nonpad_kv_seqlen)?;
        }
        Ok(this)
    }

    pub(super) fn batch(&self) -> usize {
        self.query.shape[0]
    }

    pub(super) fn seq_q(&self) -> usize {
        self.query.shape[2]
    }

    /// Keys of past and present.
    pub(super) fn total(&self) -> usize {
        self.past + self.key.shape[2]
    }

    /// Keys with the past before them: their place in memory.
    pub(super) fn present(&self, incoming: Place) -> Place {
        let [batch, heads, _, dim] = incoming.shape;
        Place { shape: [batch, heads, self.total(), dim], seq_first: false }
    }

    /// `Y`.
    pub(super) fn out(&self) -> Place {
        let [batch, heads, seq, _] = self.query.shape;
        Place { shape: [batch, heads, seq, self.value.shape[3]], seq_first: self.query.seq_first }
    }

    /// `qk_matmul_output`.
    pub(super) fn scores(&self) -> Place {
        let [batch, heads, seq, _] = self.query.shape;
        Place { shape: [batch, heads, seq, self.total()], seq_first: false }
    }

    fn check_lengths<T>(&self, inputs: &Inputs<'_, T>) -> Result<()> {
        let Some(lengths) = inputs.nonpad_kv_seqlen else { return Ok(()) };
        if inputs.past_key.is_some() {
            return value_error("nonpad_kv_seqlen", lengths, "none beside past_key and past_value");
        }
        if lengths.len() != self.batch() {
            return shape_error("nonpad_kv_seqlen", [lengths.len()], format!("[{}]", self.batch()));
        }
        let total = self.total();
        match lengths.iter().find(|&&n| usize::try_from(n).map_or(true, |n| n > total)) {
            Some(n) => value_error("nonpad_kv_seqlen", n, format!("from 0 to K's {total} keys")),
            None => Ok(()),
        }
    }

    /// The four axes of a mask, missing ones of extent 1.
    pub(super) fn mask_shape(shape: &[usize]) -> Shape {
        let mut four = [1; 4];
        let missing = 4 - shape.len().min(4);
        four[missing..].iter_mut().zip(shape).for_each(|(axis, &extent)| *axis = extent);
        four
    }

    fn check_mask<T>(&self, mask: &Mask<'_, T>, lengths: Option<&[i64]>) -> Result<()> {
        let shape = match mask {
            Mask::Boolean(mask) => mask.check("attn_mask").map(|()| mask.shape)?,
            Mask::Additive(mask) => mask.check("attn_mask").map(|()| mask.shape)?,
        };
        let (four, scores) = (Self::mask_shape(shape), self.scores().shape);
        let fits = (0..3).all(|axis| four[axis] == 1 || four[axis] == scores[axis]);
        if shape.is_empty() || shape.len() > 4 || !fits || four[3] > scores[3] {
            let expected = format!("what broadcasts to {scores:?}, or has fewer columns");
            return shape_error("attn_mask", shape, expected);
        }
        let longest = lengths.and_then(|lengths| lengths.iter().max()).copied().unwrap_or(0);
        if (four[3] as i128) < longest.into() {
            let expected = format!("at least as many columns as nonpad_kv_seqlen's {longest}");
            return shape_error("attn_mask", shape, expected);
        }
        Ok(())
    }
}

/// Where an input of three or four axes lies.
fn place<T>(
    argument: &'static str,
    array: &Array<'_, T>,
    (attribute, heads): (&'static str, Option<i64>),
) -> Result<Place> {
    array.check(argument)?;
    let place = match *array.shape {
        [batch, heads, seq, dim] => Place { shape: [batch, heads, seq, dim], seq_first: false },
        [_, _, _] if heads.is_none() => {
            return value_error(attribute, "none", "a number of heads, as inputs have three axes");
        }
        [batch, seq, hidden] => {
            let count = heads.and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
            if count == 0 || !hidden.is_multiple_of(count) {
                let expected = format!("a positive number that divides {argument}'s {hidden}");
                return value_error(attribute, heads.unwrap_or(0), expected);
            }
            Place { shape: [batch, count, seq, hidden / count], seq_first: true }
        }
        _ => return shape_error(argument, array.shape, "three or four axes"),
    };
    let [_, count, _, dim] = place.shape;
    if count == 0 || dim == 0 {
        return shape_error(argument, array.shape, "at least one head and a head size of 1");
    }
    if let Some(heads) = heads
        && i128::from(heads) != count as i128
    {
        return value_error(attribute, heads, format!("{argument}'s {count} heads, or none"));
    }
    Ok(place)
}
