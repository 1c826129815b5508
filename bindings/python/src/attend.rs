//! Attention to keys and values in pages: of a cache, or of the caller's own.

use headwise::KvView;
use headwise::kv_cache::PageTables;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::array::{Array, DType, Operand, Stretch, Strided};
use crate::attention::{Attention, is_bshd, pairs, read};
use crate::call::{Call, Source};
use crate::error;
use crate::frame::Frame;
use crate::kv_cache::{AnyView, Cached};
use crate::numbers::sizes;
use crate::options::Options;

/// Attention of queries to the sequences of a view: causal unless a keyword says otherwise.
pub(crate) fn attend(
    query: &Bound<'_, PyAny>,
    cache: &AnyView<'_>,
    out: Option<&Bound<'_, PyAny>>,
    layout: &str,
    options: Option<&Bound<'_, PyDict>>,
) -> PyResult<Attention> {
    let keywords = pairs(options)?;
    let causal = Some(headwise::Causal::BottomRight);
    let mut options = Options { causal, ..Options::default() };
    if keywords.iter().any(|(name, _)| name == "causal" || name == "causal_offset") {
        options.causal = None;
    }
    let wants = read(&keywords, &mut options)?;
    let bshd = is_bshd(layout)?;
    let array = Array::of("query", query)?;
    check_precision("query", array.place.dtype)?;
    let place = if bshd { array.place.heads_swapped() } else { array.place };
    let target = out.map(|out| Array::writable("out", out)).transpose()?;
    let [_, kv_heads, _, value_dim] = cache.value_shape();
    let frame = Frame::of_cache(&place, [kv_heads, cache.longest(), value_dim])?;
    let source = Source::Cache(cache);
    let (options, wants, out_place) = (&options, &wants, target.as_ref().map(|out| out.place));
    let call = Call { query: place, source, frame, options, wants, out: out_place, bshd };
    // SAFETY: the arrays are there until the call returns, and the caller sees to it that nobody
    // writes them meanwhile; the view is borrowed as long.
    let results = query.py().detach(|| unsafe { call.run() })?;
    Attention::new(query, results, out)
}

/// Refuses doubles, which caches do not hold.
pub(crate) fn check_precision(argument: &str, dtype: DType) -> PyResult<()> {
    if dtype == DType::F64 {
        let expected = "float32, float16 or bfloat16: caches hold no doubles";
        return Err(error::kind(argument, "elements of float64", expected));
    }
    Ok(())
}

/// Attention to pages of the caller's own: pools `[pages, kv_heads, page_size, dim]` of `float32`,
/// `float16` or `bfloat16`, or with `layout="bshd"` `[pages, page_size, kv_heads, dim]`, read where
/// they lie; `pages_layout` says it of the pools alone, and `layout` of the query and the output. The
/// pages of sequence s are `table[offsets[s]:offsets[s + 1]]`, its tokens `lengths[s]`, of which those
/// before `starts[s]` do not exist any more; position p lies in row `p % page_size` of page
/// `(p // page_size) % pages`. The rest is as of `KvCache.attend`.
#[pyfunction]
#[allow(clippy::too_many_arguments)] // Keywords, which Python's callers name.
#[pyo3(signature = (
    query, key_pages, value_pages, tables, *, out=None, layout="bhsd", pages_layout=None, **options
))]
pub(crate) fn paged_attention(
    query: &Bound<'_, PyAny>,
    key_pages: &Bound<'_, PyAny>,
    value_pages: &Bound<'_, PyAny>,
    tables: &Bound<'_, PyAny>,
    out: Option<&Bound<'_, PyAny>>,
    layout: &str,
    pages_layout: Option<&str>,
    options: Option<&Bound<'_, PyDict>>,
) -> PyResult<Attention> {
    let tables = Tables::of(tables)?;
    let bshd = is_bshd(pages_layout.unwrap_or(layout))
        .map_err(|e| error::renamed(e, query.py(), ["layout"; 2], "pages_layout"))?;
    is_bshd(layout)?;
    let (key, value) = (Array::of("key_pages", key_pages)?, Array::of("value_pages", value_pages)?);
    if let Some(out) = out {
        let out = Array::writable("out", out)?.place;
        for (name, pool) in [("key_pages", &key), ("value_pages", &value)] {
            if out.overlaps(&pool.place) {
                let got = format!("memory that overlaps that of {name}");
                return Err(error::value("out", got, "memory of its own"));
            }
        }
    }
    let pools = Pools { key: key.place, value: value.place, bshd, tables: tables.view() };
    let dtype = key.place.dtype;
    // SAFETY: the pools are there until the call returns, and the caller sees to it that nobody
    // writes them meanwhile.
    unsafe {
        match dtype {
            DType::F32 => pools.attend::<f32>(query, out, layout, options),
            DType::F16 => pools.attend::<headwise::f16>(query, out, layout, options),
            DType::BF16 => pools.attend::<headwise::bf16>(query, out, layout, options),
            other => {
                let got = format!("elements of {other}");
                Err(error::kind("key_pages", got, "float32, float16 or bfloat16"))
            }
        }
    }
}

/// Pages of the caller's own.
struct Pools<'a> {
    key: Strided,
    value: Strided,
    bshd: bool,
    tables: PageTables<'a>,
}

impl Pools<'_> {
    /// # Safety
    /// They must be readable until it is done.
    unsafe fn attend<T: Cached>(
        &self,
        query: &Bound<'_, PyAny>,
        out: Option<&Bound<'_, PyAny>>,
        layout: &str,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Attention> {
        // SAFETY: the caller's promise.
        let pool = |name, place| unsafe { pool::<T>(name, place, self.bshd) };
        let (key, value) = (pool("key_pages", self.key)?, pool("value_pages", self.value)?);
        let view = KvView::new(key.view()?, value.view()?, self.tables).map_err(error::of)?;
        attend(query, &T::any(view), out, layout, options)
    }
}

/// Which pages hold what.
struct Tables {
    table: Vec<u32>,
    offsets: Vec<usize>,
    lengths: Vec<usize>,
    starts: Vec<usize>,
}

impl Tables {
    /// Of a tuple `(table, offsets, lengths)` or `(table, offsets, lengths, starts)`.
    fn of(tuple: &Bound<'_, PyAny>) -> PyResult<Self> {
        let parts = tuple.extract::<Vec<Bound<'_, PyAny>>>();
        let expected = "a tuple (table, offsets, lengths) or (table, offsets, lengths, starts)";
        let parts = parts.map_err(|e| error::kind("tables", e.value(tuple.py()), expected))?;
        let (table, offsets, lengths, starts) = match &parts[..] {
            [table, offsets, lengths] => (table, offsets, lengths, None),
            [table, offsets, lengths, starts] => (table, offsets, lengths, Some(starts)),
            other => return Err(error::kind("tables", format!("{} lists", other.len()), expected)),
        };
        let page = |page| {
            u32::try_from(page).map_err(|_| error::value("table", page, "numbers of 32 bits"))
        };
        let table = sizes("table", table)?.into_iter().map(page).collect::<PyResult<_>>()?;
        let lengths = sizes("lengths", lengths)?;
        let starts = starts.map(|starts| sizes("starts", starts)).transpose()?;
        let starts = starts.unwrap_or_else(|| vec![0; lengths.len()]);
        Ok(Self { table, offsets: sizes("offsets", offsets)?, lengths, starts })
    }

    fn view(&self) -> PageTables<'_> {
        let Self { table, offsets, lengths, starts } = self;
        PageTables { table, offsets, lengths, starts }
    }
}

/// A pool, where it lies.
///
/// # Safety
/// It must be readable as long as the operand is there.
unsafe fn pool<T: Cached>(argument: &str, place: Strided, bshd: bool) -> PyResult<Operand<T>> {
    let place = if bshd { place.heads_swapped() } else { place };
    if place.dtype != T::DTYPE {
        let got = format!("elements of {}", place.dtype);
        return Err(error::kind(argument, got, format_args!("{}, as the keys", T::DTYPE)));
    }
    if place.ndim() != 4 {
        let got = format!("{:?}", place.shape());
        return Err(error::value(argument, got, "four axes: pages, heads, rows, elements"));
    }
    if !place.is_direct::<T>() {
        let got = format!("rows {:?} bytes apart", place.strides());
        return Err(error::value(argument, got, "aligned, contiguous rows: pools are not copied"));
    }
    // SAFETY: the caller's promise, of `T`s where they lie.
    unsafe { Operand::plain(place, Stretch { batch: &[], heads: None }) }
}
