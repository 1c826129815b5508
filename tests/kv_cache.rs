//! Caches of keys and values: random calls against lists of rows, what is shared and copied, what is
//! refused, and that keys are transformed on their way in as they would be apart.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::strided::{Layout, Strided};
use common::{Rng, for_all};
use headwise::kv_cache::{
    ContiguousCache, Frequencies, KvShape, KvView, NewTokens, PageTables, PagedCache,
    PagedCapacity, Positions, QkNorm, QkTransform, RingCache, Rope, RopeLayout, RopeScaling,
    SequenceId, TableBuffer,
};
use headwise::{Error, Result, View};
use proptest::prelude::*;

/// A number that says which token, head and element it is.
fn element(token: usize, head: usize, dim: usize) -> f32 {
    (token * 64 + head * 8 + dim) as f32
}

/// Keys and values of new tokens, each sequence's in a vector. Values are the keys' numbers less a
/// half.
struct Rows {
    key: Strided<f32>,
    value: Strided<f32>,
    offsets: Option<Vec<usize>>,
}

impl Rows {
    /// Packed if the sequences have not as many tokens, or as asked.
    fn new(shape: KvShape, tokens: &[Vec<usize>], layout: Layout, packed: bool) -> Self {
        let count = tokens.first().map_or(0, Vec::len);
        let packed = packed || tokens.iter().any(|tokens| tokens.len() != count);
        let all = tokens.concat();
        let (batch, seq) = if packed { (1, all.len()) } else { (tokens.len(), count) };
        let part = |dim: usize, less: f32| {
            let extents = [batch, shape.kv_heads, seq, dim];
            let mut rows = Strided::filled(extents, layout, f32::NAN);
            for (nth, &token) in all.iter().enumerate() {
                for head in 0..shape.kv_heads {
                    for d in 0..dim {
                        rows.set([nth / seq, head, nth % seq, d], element(token, head, d) - less);
                    }
                }
            }
            if layout == Layout::Padded { rows.transposed() } else { rows }
        };
        let ends = tokens.iter().scan(0, |end, tokens| {
            *end += tokens.len();
            Some(*end)
        });
        let offsets = packed.then(|| [0].into_iter().chain(ends).collect());
        Self { key: part(shape.head_dim, 0.0), value: part(shape.value_dim, 0.5), offsets }
    }

    fn tokens(&self) -> NewTokens<'_> {
        let tokens = NewTokens::new(self.key.view(), self.value.view());
        self.offsets.iter().fold(tokens, |tokens, offsets| tokens.ragged(offsets))
    }
}

/// What a sequence should be: its tokens, those before `start` gone.
#[derive(Debug, Clone, Default)]
struct List {
    tokens: Vec<usize>,
    start: usize,
}

/// The view holds these sequences and no more.
fn check_view(view: &KvView<'_>, shape: KvShape, lists: &[&List]) {
    assert_eq!(view.sequences(), lists.len());
    for (s, list) in lists.iter().enumerate() {
        assert_eq!(view.tables().lengths[s], list.tokens.len());
        assert_eq!(view.tables().starts[s], list.start);
        for (position, &token) in list.tokens.iter().enumerate() {
            for head in 0..shape.kv_heads {
                let row = |dim, less| -> Option<Vec<f32>> {
                    let row = (0..dim).map(|d| element(token, head, d) - less).collect();
                    (position >= list.start).then_some(row)
                };
                let key = view.key_row(s, position, head).map(<[_]>::to_vec);
                assert_eq!(key, row(shape.head_dim, 0.0), "{s}, {position}, {head}");
                let value = view.value_row(s, position, head).map(<[_]>::to_vec);
                assert_eq!(value, row(shape.value_dim, 0.5), "{s}, {position}, {head}");
            }
        }
        assert_eq!(view.place(s, list.tokens.len()), None);
    }
}

/// In debug builds, the rows of which `(page, row)` is not among these hold NaN.
fn check_poison(view: &KvView<'_>, used: impl Fn(usize, usize) -> bool) {
    if !cfg!(debug_assertions) {
        return;
    }
    for pool in [view.key(), view.value()] {
        let [pages, heads, rows, _] = pool.shape();
        for page in 0..pages {
            for row in (0..rows).filter(|&row| !used(page, row)) {
                for head in 0..heads {
                    let row = pool.row_slice([page, head, row]).unwrap_or_default();
                    assert!(row.iter().all(|x| x.is_nan()), "page {page}: {row:?}");
                }
            }
        }
    }
}

fn shapes() -> impl Strategy<Value = KvShape> {
    (1_usize..3, 1_usize..6, 1_usize..6).prop_map(|(kv_heads, head_dim, value_dim)| KvShape {
        kv_heads,
        head_dim,
        value_dim,
    })
}

/// A call; numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Call {
    Create,
    /// Tokens for as many sequences as there are counts, from one on.
    Append {
        first: usize,
        counts: Vec<usize>,
        layout: Layout,
        packed: bool,
    },
    Fork(usize),
    Truncate(usize, usize),
    Evict(usize, usize),
    Free(usize),
    Grow(usize),
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let index = || 0_usize..1000;
    let layout = prop::sample::select(&Layout::OUTPUTS[..]);
    let counts = prop::collection::vec(0_usize..9, 1..4);
    let append = (index(), counts, layout, any::<bool>())
        .prop_map(|(first, counts, layout, packed)| Call::Append { first, counts, layout, packed });
    let call = prop_oneof![
        2 => Just(Call::Create),
        6 => append,
        2 => index().prop_map(Call::Fork),
        2 => (index(), index()).prop_map(|(s, to)| Call::Truncate(s, to)),
        1 => (index(), index()).prop_map(|(s, to)| Call::Evict(s, to)),
        1 => index().prop_map(Call::Free),
        1 => (0_usize..4).prop_map(Call::Grow),
    ];
    prop::collection::vec(call, 0..60)
}

/// Hands out tokens that no other call had.
#[derive(Default)]
struct Tokens(usize);

impl Tokens {
    fn next(&mut self, counts: &[usize]) -> Vec<Vec<usize>> {
        let mut some = |count| {
            self.0 += count;
            (self.0 - count..self.0).collect()
        };
        counts.iter().map(|&count| some(count)).collect()
    }
}

/// Contiguous and ring caches alike.
trait Fixed {
    const WRAPS: bool;
    fn make(shape: KvShape, batch: usize, capacity: usize) -> Self;
    fn append_to(&mut self, sequences: &[usize], tokens: &NewTokens<'_>) -> Result<()>;
    fn append(&mut self, tokens: &NewTokens<'_>) -> Result<()>;
    fn truncate(&mut self, sequence: usize, length: usize) -> Result<()>;
    fn clear(&mut self, sequence: usize) -> Result<()>;
    fn reserve(&mut self, capacity: usize) -> Result<()>;
    fn view(&self) -> KvView<'_>;
}

macro_rules! fixed {
    ($cache:ty, $wraps:literal) => {
        impl Fixed for $cache {
            const WRAPS: bool = $wraps;
            fn make(shape: KvShape, batch: usize, capacity: usize) -> Self {
                Self::new(shape, batch, capacity).unwrap_or_else(|error| panic!("{error}"))
            }
            fn append_to(&mut self, sequences: &[usize], tokens: &NewTokens<'_>) -> Result<()> {
                self.append_to(sequences, tokens)
            }
            fn append(&mut self, tokens: &NewTokens<'_>) -> Result<()> {
                self.append(tokens)
            }
            fn truncate(&mut self, sequence: usize, length: usize) -> Result<()> {
                self.truncate(sequence, length)
            }
            fn clear(&mut self, sequence: usize) -> Result<()> {
                self.clear(sequence)
            }
            fn reserve(&mut self, capacity: usize) -> Result<()> {
                self.reserve(capacity)
            }
            fn view(&self) -> KvView<'_> {
                self.view()
            }
        }
    };
}
fixed!(ContiguousCache, false);
fixed!(RingCache, true);

fn check_fixed<C: Fixed>() {
    let strategy = (shapes(), 1_usize..4, 1_usize..13, calls());
    for_all(300, strategy, |(shape, batch, mut capacity, calls)| {
        let mut cache = C::make(shape, batch, capacity);
        let mut lists = vec![List::default(); batch];
        let mut tokens = Tokens::default();
        for call in calls {
            match call {
                Call::Append { first, mut counts, layout, packed } => {
                    counts.truncate(batch);
                    let named: Vec<usize> =
                        (0..counts.len()).map(|nth| (first + nth) % batch).collect();
                    let new = tokens.next(&counts);
                    let rows = Rows::new(shape, &new, layout, packed);
                    let too_many = named
                        .iter()
                        .zip(&counts)
                        .any(|(&s, count)| lists[s].tokens.len() + count > capacity);
                    let in_order = named.iter().copied().eq(0..batch);
                    let result = if in_order {
                        cache.append(&rows.tokens())
                    } else {
                        cache.append_to(&named, &rows.tokens())
                    };
                    if too_many && !C::WRAPS {
                        let full =
                            matches!(result, Err(Error::Exhausted { argument: "capacity", .. }));
                        assert!(full, "{result:?}");
                        continue;
                    }
                    assert_eq!(result, Ok(()));
                    for (s, new) in named.into_iter().zip(new) {
                        let list = &mut lists[s];
                        list.tokens.extend(new);
                        list.start = list.start.max(list.tokens.len().saturating_sub(capacity));
                    }
                }
                Call::Truncate(s, to) => {
                    let list = &mut lists[s % batch];
                    let to = to % (list.tokens.len() + 2);
                    let exists = (list.start..=list.tokens.len()).contains(&to);
                    let result = cache.truncate(s % batch, to);
                    assert_eq!(result.is_ok(), exists, "{result:?}");
                    if exists {
                        list.tokens.truncate(to);
                    }
                }
                Call::Free(s) => {
                    assert_eq!(cache.clear(s % batch), Ok(()));
                    lists[s % batch] = List::default();
                }
                Call::Grow(more) => {
                    assert_eq!(cache.reserve(capacity + more), Ok(()));
                    capacity += more;
                }
                Call::Create | Call::Fork(_) | Call::Evict(..) => {}
            }
            let view = cache.view();
            check_view(&view, shape, &lists.iter().collect::<Vec<_>>());
            check_poison(&view, |page, row| {
                let List { tokens, start } = &lists[page];
                (*start..tokens.len()).any(|position| position % capacity == row)
            });
        }
    });
}

#[test]
fn contiguous_caches_are_lists_of_rows() {
    check_fixed::<ContiguousCache>();
}

#[test]
fn rings_are_ends_of_lists() {
    check_fixed::<RingCache>();
}

/// What a sequence of a paged cache should be: its tokens and the pages that hold them, by names that
/// are never used again.
#[derive(Debug, Clone, Default)]
struct Paper {
    list: List,
    pages: Vec<usize>,
}

/// Paged caches of two layers, and what they should hold.
struct Desk {
    cache: PagedCache,
    /// Told the same as the first.
    twin: PagedCache,
    twin_shape: KvShape,
    papers: Vec<(SequenceId, Paper)>,
    freed: Vec<SequenceId>,
    next_page: usize,
}

impl Desk {
    fn new(shape: KvShape, capacity: PagedCapacity) -> Self {
        let twin_shape = KvShape { kv_heads: 1, head_dim: 1, value_dim: 2 };
        let cache =
            |shape| PagedCache::new(shape, capacity).unwrap_or_else(|error| panic!("{error}"));
        let (cache, twin) = (cache(shape), cache(twin_shape));
        Self { cache, twin, twin_shape, papers: Vec::new(), freed: Vec::new(), next_page: 0 }
    }

    fn used(papers: &[(SequenceId, Paper)]) -> usize {
        let pages: BTreeSet<usize> =
            papers.iter().flat_map(|(_, paper)| paper.pages.clone()).collect();
        pages.len()
    }

    /// The papers after an append, or none where there is no room.
    fn appended(
        &mut self,
        named: &[usize],
        new: &[Vec<usize>],
    ) -> Option<Vec<(SequenceId, Paper)>> {
        let PagedCapacity { pages, page_size, pages_per_sequence, .. } = self.cache.capacity();
        let mut papers = self.papers.clone();
        for (&s, new) in named.iter().zip(new) {
            for &token in new {
                let length = papers[s].1.list.tokens.len();
                let last = papers[s].1.pages.last().copied();
                let holders =
                    papers.iter().filter(|(_, p)| last.is_some_and(|l| p.pages.contains(&l)));
                let shared = holders.count() > 1;
                let paper = &mut papers[s].1;
                let full = length.is_multiple_of(page_size);
                if !full && shared {
                    paper.pages.pop();
                }
                if full || shared {
                    paper.pages.push(self.next_page);
                    self.next_page += 1;
                }
                paper.list.tokens.push(token);
            }
            if papers[s].1.pages.len() > pages_per_sequence {
                return None;
            }
        }
        (Self::used(&papers) <= pages).then_some(papers)
    }

    fn append(&mut self, named: &[usize], new: &[Vec<usize>], layout: Layout, packed: bool) {
        let ids: Vec<SequenceId> = named.iter().map(|&s| self.papers[s].0).collect();
        let rows = |shape| Rows::new(shape, new, layout, packed);
        let result = self.cache.append(&ids, &rows(self.cache.shape()).tokens());
        let twins = self.twin.append(&ids, &rows(self.twin_shape).tokens());
        assert_eq!(result.is_ok(), twins.is_ok());
        match self.appended(named, new) {
            Some(papers) => {
                assert_eq!(result, Ok(()));
                self.papers = papers;
            }
            None => assert!(matches!(result, Err(Error::Exhausted { .. })), "{result:?}"),
        }
    }

    fn apply(&mut self, call: Call, tokens: &mut Tokens) {
        let count = self.papers.len();
        let PagedCapacity { page_size, sequences, .. } = self.cache.capacity();
        match call {
            Call::Create => {
                let (id, twin) = (self.cache.create(), self.twin.create());
                assert_eq!(id, twin);
                assert_eq!(id.is_ok(), count < sequences);
                self.papers.extend(id.ok().map(|id| (id, Paper::default())));
            }
            Call::Fork(s) if count > 0 => {
                let (id, paper) = self.papers[s % count].clone();
                let (id, twin) = (self.cache.fork(id), self.twin.fork(id));
                assert_eq!(id, twin);
                assert_eq!(id.is_ok(), count < sequences);
                self.papers.extend(id.ok().map(|id| (id, paper)));
            }
            Call::Append { first, mut counts, layout, packed } if count > 0 => {
                counts.truncate(count);
                let named: Vec<usize> =
                    (0..counts.len()).map(|nth| (first + nth) % count).collect();
                self.append(&named, &tokens.next(&counts), layout, packed);
            }
            Call::Truncate(s, to) if count > 0 => {
                let (id, paper) = &mut self.papers[s % count];
                let to = to % (paper.list.tokens.len() + 2);
                let exists = (paper.list.start..=paper.list.tokens.len()).contains(&to);
                let results = (self.cache.truncate(*id, to), self.twin.truncate(*id, to));
                assert_eq!((results.0.is_ok(), results.1.is_ok()), (exists, exists));
                if exists {
                    paper.list.tokens.truncate(to);
                    paper.pages.truncate(to.div_ceil(page_size) - paper.list.start / page_size);
                }
            }
            Call::Evict(s, before) if count > 0 => {
                let (id, paper) = &mut self.papers[s % count];
                let before = before % (paper.list.tokens.len() + 2);
                let exists = (paper.list.start..=paper.list.tokens.len()).contains(&before);
                let results = (self.cache.evict(*id, before), self.twin.evict(*id, before));
                assert_eq!((results.0.is_ok(), results.1.is_ok()), (exists, exists));
                if exists {
                    paper.pages.drain(..before / page_size - paper.list.start / page_size);
                    paper.list.start = before;
                }
            }
            Call::Free(s) if count > 0 => {
                let (id, _) = self.papers.swap_remove(s % count);
                assert_eq!((self.cache.free(id), self.twin.free(id)), (Ok(()), Ok(())));
                self.freed.push(id);
            }
            Call::Grow(more) => {
                let now = self.cache.capacity();
                let grown = PagedCapacity {
                    pages: now.pages + more,
                    sequences: now.sequences + more % 2,
                    pages_per_sequence: now.pages_per_sequence + more / 2,
                    ..now
                };
                assert_eq!((self.cache.grow(grown), self.twin.grow(grown)), (Ok(()), Ok(())));
                assert_eq!(self.cache.capacity(), grown);
            }
            _ => {}
        }
    }

    fn check(&self) {
        let ids: Vec<SequenceId> = self.papers.iter().map(|&(id, _)| id).collect();
        let lists: Vec<&List> = self.papers.iter().map(|(_, paper)| &paper.list).collect();
        let mut tables = TableBuffer::new();
        let view = self.cache.view(&ids, &mut tables).unwrap_or_else(|error| panic!("{error}"));
        check_view(&view, self.cache.shape(), &lists);
        // One layer's tables serve the other's pool.
        let twin = self.twin.view_by(view.tables()).unwrap_or_else(|error| panic!("{error}"));
        check_view(&twin, self.twin_shape, &lists);
        // No leak, and pages are shared where they should be and nowhere else.
        let capacity = self.cache.capacity();
        assert_eq!(Self::used(&self.papers) + self.cache.free_pages(), capacity.pages);
        assert_eq!(self.papers.len() + self.cache.free_sequences(), capacity.sequences);
        let (mut names, mut pages) = (BTreeMap::new(), BTreeMap::new());
        for (id, paper) in &self.papers {
            let held = self.cache.pages(*id).unwrap_or_default();
            assert_eq!(held.len(), paper.pages.len());
            for (&page, &name) in held.iter().zip(&paper.pages) {
                assert_eq!(*names.entry(page).or_insert(name), name);
                assert_eq!(*pages.entry(name).or_insert(page), page);
            }
        }
        check_poison(&view, |page, _| names.contains_key(&(page as u32)));
        assert!(self.freed.iter().all(|&id| self.cache.length(id).is_err()));
    }
}

#[test]
fn paged_caches_are_lists_of_rows() {
    let capacity = (1_usize..30, 1_usize..6, 1_usize..6, 1_usize..12).prop_map(
        |(pages, page_size, sequences, pages_per_sequence)| PagedCapacity {
            pages,
            page_size,
            sequences,
            pages_per_sequence,
        },
    );
    for_all(600, (shapes(), capacity, calls()), |(shape, capacity, calls)| {
        let mut desk = Desk::new(shape, capacity);
        let mut tokens = Tokens::default();
        for call in calls {
            desk.apply(call, &mut tokens);
            desk.check();
        }
    });
}

const SHAPE: KvShape = KvShape { kv_heads: 2, head_dim: 4, value_dim: 3 };
const CAPACITY: PagedCapacity =
    PagedCapacity { pages: 6, page_size: 4, sequences: 4, pages_per_sequence: 4 };

/// What `append` gives for the tokens `first..first + count`, for one sequence.
fn rows(first: usize, count: usize) -> Rows {
    Rows::new(SHAPE, &[(first..first + count).collect()], Layout::Bshd, false)
}

/// Every bit that a cache holds.
fn pool_bits(key: View<'_, f32>, value: View<'_, f32>) -> Vec<u32> {
    key.to_vec().iter().chain(&value.to_vec()).map(|x| x.to_bits()).collect()
}

#[test]
fn exhaustion_says_what_is_short_and_changes_nothing() -> Result<()> {
    let mut cache = PagedCache::new(SHAPE, CAPACITY)?;
    let a = cache.create()?;
    cache.append(&[a], &rows(0, 14).tokens())?;
    let b = cache.fork(a)?;
    let before = pool_bits(cache.key(), cache.value());
    // Three pages of tokens each, and a copy of the last: 2 free pages, 4 of a sequence.
    let two = Rows::new(SHAPE, &[vec![7; 2], vec![8; 6]], Layout::Bhsd, false);
    let result = cache.append(&[a, b], &two.tokens());
    let expected = Error::Exhausted {
        argument: "pages_per_sequence",
        needed: 1,
        free: 0,
        expected: format!("at most 4 pages of {b:?}"),
    };
    assert_eq!(result, Err(expected));
    let c = cache.create()?;
    let three = Rows::new(SHAPE, &[vec![7; 2], vec![8; 2], vec![9; 6]], Layout::Bhsd, false);
    match cache.append(&[a, b, c], &three.tokens()) {
        Err(Error::Exhausted { argument: "pages", needed: 3, free: 2, .. }) => {}
        other => panic!("{other:?}"),
    }
    let d = cache.create()?;
    for full in [cache.create(), cache.fork(a)] {
        assert!(matches!(full, Err(Error::Exhausted { argument: "sequences", .. })), "{full:?}");
    }
    assert_eq!(pool_bits(cache.key(), cache.value()), before);
    let lengths = [a, b, c, d].map(|id| cache.length(id));
    assert_eq!(lengths, [Ok(14), Ok(14), Ok(0), Ok(0)]);
    // One copy, since only one of the two needs to leave the page: two pages suffice.
    let two = Rows::new(SHAPE, &[vec![7; 2], vec![8; 2], vec![9; 4]], Layout::Bhsd, true);
    cache.append(&[a, b, c], &two.tokens())?;
    assert_eq!(cache.free_pages(), 0);
    Ok(())
}

#[test]
fn a_freed_name_means_nothing() -> Result<()> {
    let mut cache = PagedCache::new(SHAPE, CAPACITY)?;
    let old = cache.create()?;
    cache.append(&[old], &rows(0, 3).tokens())?;
    cache.free(old)?;
    let new = cache.create()?;
    cache.append(&[new], &rows(10, 3).tokens())?;
    assert_ne!(old, new);
    let mut tables = TableBuffer::new();
    cache.fill_tables(&[new], &mut tables)?;
    let refused = [
        cache.free(old),
        cache.truncate(old, 0),
        cache.evict(old, 0),
        cache.fork(old).map(|_| ()),
        cache.append(&[old], &rows(0, 1).tokens()),
        cache.length(old).map(|_| ()),
        cache.start(old).map(|_| ()),
        cache.pages(old).map(|_| ()),
        cache.fill_tables(&[new, old], &mut tables),
    ];
    for result in refused {
        assert!(matches!(result, Err(Error::Value { argument: "sequence", .. })), "{result:?}");
    }
    assert_eq!(tables.tables().lengths, [3]);
    assert_eq!(cache.length(new), Ok(3));
    Ok(())
}

/// Norm and rope on the way in give what they give apart, in whichever chunks.
#[test]
fn keys_are_transformed_on_the_way_in() -> Result<()> {
    let (tokens, shape) = (23, KvShape { kv_heads: 2, head_dim: 6, value_dim: 3 });
    let mut rng = Rng(5);
    let of = |dim, data: &[f32], layout| Strided::new(data, [1, 2, tokens, dim], layout, f32::NAN);
    let value = of(3, &rng.normals(2 * tokens * 3), Layout::Bhsd);
    let key = rng.normals(2 * tokens * 6);
    let norm = QkNorm::new(&rng.normals(6), 1e-6)?;
    let frequencies = Frequencies::new(4, 100.0, RopeScaling::Unscaled)?;
    let depths: Vec<usize> = (0..tokens).map(|_| rng.below(tokens)).collect();
    for (nth, layout) in Layout::OUTPUTS.into_iter().enumerate() {
        let kind = if nth % 2 == 0 { RopeLayout::HalfSplit } else { RopeLayout::Interleaved };
        let rope = Rope::new(kind, &frequencies, tokens)?;
        let key = of(6, &key, layout);
        let key = if nth == 3 { key.transposed() } else { key };
        let transform = QkTransform::new().norm(&norm).rope(&rope);
        for given in [None, Some(Positions::Each(&depths))] {
            let mut expected = Strided::filled([1, 2, tokens, 6], Layout::Bhsd, f32::NAN);
            let positions = given.unwrap_or(Positions::From(0));
            transform.apply_into(key.view(), positions, expected.view_mut())?;
            let mut contiguous = ContiguousCache::new(shape, 1, tokens)?;
            let mut ring = RingCache::new(shape, 1, tokens)?;
            let mut paged = PagedCache::new(shape, CAPACITY)?;
            let ids = [paged.create()?];
            paged.grow(PagedCapacity { pages_per_sequence: 6, ..CAPACITY })?;
            let mut from = 0;
            while from < tokens {
                let to = tokens.min(from + 1 + rng.below(9));
                let (key, value) = (key.narrow(2, from..to), value.narrow(2, from..to));
                let mut new = NewTokens::new(key.view(), value.view()).norm(&norm).rope(&rope);
                if given.is_some() {
                    new = new.positions(Positions::Each(&depths[from..to]));
                }
                contiguous.append(&new)?;
                ring.append(&new)?;
                paged.append(&ids, &new)?;
                from = to;
            }
            let mut tables = TableBuffer::new();
            for view in [contiguous.view(), ring.view(), paged.view(&ids, &mut tables)?] {
                for position in 0..tokens {
                    for head in 0..2 {
                        let key: Vec<f32> =
                            (0..6).map(|d| expected.get([0, head, position, d])).collect();
                        assert_eq!(view.key_row(0, position, head), Some(&key[..]));
                        let value: Vec<f32> =
                            (0..3).map(|d| value.get([0, head, position, d])).collect();
                        assert_eq!(view.value_row(0, position, head), Some(&value[..]));
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn appends_that_do_not_fit_are_refused_and_change_nothing() -> Result<()> {
    let mut cache = ContiguousCache::new(SHAPE, 2, 8)?;
    let mut paged = PagedCache::new(SHAPE, CAPACITY)?;
    let ids = [paged.create()?, paged.create()?];
    let tokens = |counts: &[usize]| Rows::new(SHAPE, &Tokens(1).next(counts), Layout::Bhsd, false);
    let start = tokens(&[3, 3]);
    cache.append(&start.tokens())?;
    paged.append(&ids, &start.tokens())?;
    let frequencies = Frequencies::new(4, 1e4, RopeScaling::Unscaled)?;
    let short = Rope::new(RopeLayout::HalfSplit, &frequencies, 4)?;
    let wide = Frequencies::new(6, 1e4, RopeScaling::Unscaled)?;
    let wide = Rope::new(RopeLayout::HalfSplit, &wide, 100)?;
    let norm = QkNorm::new(&[1.0; 3], 1e-6)?;
    let (good, other) = (tokens(&[2, 2]), rows(0, 2));
    let good = good.tokens();
    let key = View::bhsd(&[0.0; 64], [2, 2, 2, 4])?;
    let value = |shape| View::bhsd(&[0.0; 64], shape);
    let cases: [(NewTokens<'_>, &[&str]); 12] = [
        (other.tokens(), &["key", "[1, 2, 2, 4]", "[2, 2, 2, 4]"]),
        (NewTokens::new(key, value([2, 2, 3, 3])?), &["value", "[2, 2, 2, 3]"]),
        (NewTokens::new(key, value([2, 2, 2, 4])?), &["value", "[2, 2, 2, 3]"]),
        (NewTokens::new(key, value([2, 1, 2, 3])?), &["value", "[2, 2, 2, 3]"]),
        (good.ragged(&[0, 2, 4]), &["key", "[1, 2, 2, 4]"]),
        (other.tokens().ragged(&[0, 2]), &["offsets", "[2]", "[3]"]),
        (other.tokens().ragged(&[0, 3, 2]), &["offsets", "[0, 3, 2]"]),
        (other.tokens().ragged(&[0, 1, 1]), &["offsets", "from 0 to 2"]),
        (good.rope(&short), &["position: 4", "below 4"]),
        (good.rope(&wide), &["rotary_dim: 6", "head_dim, 4"]),
        (good.norm(&norm), &["weight", "[3]", "[4]"]),
        (good.positions(Positions::Each(&[0; 3])), &["positions", "[3]", "[4]"]),
    ];
    let before = (
        pool_bits(cache.view().key(), cache.view().value()),
        pool_bits(paged.key(), paged.value()),
    );
    let named = [(cache.append_to(&[0, 0], &good), "once"), (cache.append_to(&[0, 2], &good), "2")];
    let named = named.into_iter().chain([(paged.append(&[ids[1], ids[1]], &good), "once")]);
    for (result, part) in named {
        assert!(matches!(&result, Err(e) if e.to_string().contains(part)), "{result:?}");
    }
    for (tokens, parts) in cases {
        for result in [cache.append(&tokens), paged.append(&ids, &tokens)] {
            let Err(error) = result else { panic!("{parts:?}") };
            let message = error.to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{message}, {parts:?}");
        }
    }
    let after = (
        pool_bits(cache.view().key(), cache.view().value()),
        pool_bits(paged.key(), paged.value()),
    );
    assert_eq!(before, after);
    assert_eq!((cache.lengths(), paged.length(ids[0])), (&[3, 3][..], Ok(3)));
    // Positions of the caller's reach no further than the table, and so do.
    cache.append(&good.rope(&short).positions(Positions::Starts(&[2, 0])))?;
    Ok(())
}

#[test]
fn caches_of_no_size_and_impossible_calls_are_refused() -> Result<()> {
    let refused = |result: Result<()>, part: &str| match result {
        Err(error) => assert!(error.to_string().contains(part), "{error}"),
        Ok(()) => panic!("{part}"),
    };
    for (shape, name) in [
        (KvShape { kv_heads: 0, ..SHAPE }, "kv_heads"),
        (KvShape { head_dim: 0, ..SHAPE }, "head_dim"),
        (KvShape { value_dim: 0, ..SHAPE }, "value_dim"),
    ] {
        refused(ContiguousCache::new(shape, 1, 1).map(|_| ()), name);
        refused(PagedCache::new(shape, CAPACITY).map(|_| ()), name);
    }
    refused(ContiguousCache::new(SHAPE, 0, 1).map(|_| ()), "batch");
    refused(RingCache::new(SHAPE, 1, 0).map(|_| ()), "capacity");
    refused(RingCache::new(SHAPE, 1, usize::MAX / 8).map(|_| ()), "memory");
    let paged = |capacity| PagedCache::new(SHAPE, capacity).map(|_| ());
    for page_size in [0, 1025] {
        refused(paged(PagedCapacity { page_size, ..CAPACITY }), "page_size");
    }
    refused(paged(PagedCapacity { pages: 0, ..CAPACITY }), "pages: 0");
    refused(paged(PagedCapacity { sequences: 0, ..CAPACITY }), "sequences");
    refused(paged(PagedCapacity { pages_per_sequence: 0, ..CAPACITY }), "pages_per_sequence");
    let many = PagedCapacity { pages_per_sequence: usize::MAX, ..CAPACITY };
    refused(paged(many), "pages_per_sequence");
    let mut cache = PagedCache::new(SHAPE, CAPACITY)?;
    for capacity in [
        PagedCapacity { pages: 5, ..CAPACITY },
        PagedCapacity { page_size: 8, ..CAPACITY },
        PagedCapacity { sequences: 3, ..CAPACITY },
        PagedCapacity { pages_per_sequence: 1, ..CAPACITY },
    ] {
        refused(cache.grow(capacity), "no less");
    }
    refused(cache.grow(many), "pages_per_sequence");
    assert_eq!(cache.capacity(), CAPACITY);
    let mut ring = RingCache::new(SHAPE, 1, 4)?;
    ring.append(&rows(0, 9).tokens())?;
    refused(ring.truncate(0, 4), "5 to 9");
    refused(ring.truncate(0, 10), "5 to 9");
    refused(ring.truncate(1, 5), "sequence: 1");
    refused(ring.clear(1), "sequence: 1");
    ring.truncate(0, 5)?;
    assert_eq!((ring.starts(), ring.lengths()), (&[5][..], &[5][..]));
    ring.clear_all();
    assert_eq!((ring.starts(), ring.lengths()), (&[0][..], &[0][..]));
    Ok(())
}

#[test]
fn views_of_others_are_checked() -> Result<()> {
    let data = [0.5_f32; 4 * 2 * 4 * 3];
    let pool = View::bhsd(&data, [4, 2, 4, 3])?;
    let good = PageTables {
        table: &[3, 0, 1],
        offsets: &[0, 2, 3, 3],
        lengths: &[8, 103, 7],
        starts: &[1, 99, 7],
    };
    let view = KvView::new(pool, pool, good)?;
    // Position 102 of a sequence of one page of four rows: a ring.
    assert_eq!(view.place(1, 102), Some((1, 2)));
    assert_eq!(view.place(1, 98), None);
    assert_eq!(view.place(0, 0), None);
    assert_eq!(view.place(0, 7), Some((0, 3)));
    assert_eq!([view.place(2, 7), view.place(3, 0)], [None, None]);
    assert_eq!(view.key_row(0, 7, 2), None);
    let bad: [(PageTables<'_>, &[&str]); 10] = [
        (PageTables { table: &[3, 4, 1], ..good }, &["table: 4", "below 4"]),
        (PageTables { table: &[3, 0], ..good }, &["offsets"]),
        (PageTables { offsets: &[0, 2, 3], ..good }, &["offsets", "[3]", "[4]"]),
        (PageTables { offsets: &[0, 3, 2, 3], ..good }, &["offsets", "3 to 2 of sequence 1"]),
        (PageTables { offsets: &[1, 2, 3, 3], ..good }, &["offsets"]),
        (PageTables { offsets: &[0, 9, 3, 3], ..good }, &["offsets", "0 to 9"]),
        (PageTables { starts: &[1, 99], ..good }, &["starts", "[2]", "[3]"]),
        (PageTables { starts: &[1, 104, 7], ..good }, &["starts", "104 of sequence 1"]),
        (PageTables { lengths: &[10, 103, 7], ..good }, &["lengths", "at most 8"]),
        (PageTables { lengths: &[8, 103, 8], ..good }, &["lengths", "at most 0"]),
    ];
    for (tables, parts) in bad {
        let Err(error) = KvView::new(pool, pool, tables) else { panic!("{parts:?}") };
        let message = error.to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    let none = PageTables { table: &[], offsets: &[0], lengths: &[], starts: &[] };
    assert!(KvView::new(pool, pool, none).is_ok());
    assert!(KvView::new(pool, View::bhsd(&data, [4, 2, 4, 1])?, good).is_ok());
    let others = [
        (View::bhsd(&data, [4, 2, 3, 3])?, "value"),
        (View::bhsd(&data, [4, 1, 4, 3])?, "value"),
        (View::strided(&data, 0, [4, 2, 4, 3], [0, 0, 1, 4])?, "inner stride"),
    ];
    for (value, part) in others {
        let result = KvView::new(pool, value, good);
        assert!(matches!(&result, Err(e) if e.to_string().contains(part)), "{result:?}");
    }
    let thin = View::bhsd(&data, [4, 2, 0, 3])?;
    let result = KvView::new(thin, thin, none);
    assert!(matches!(result, Err(Error::Value { argument: "page_size", .. })), "{result:?}");
    Ok(())
}
