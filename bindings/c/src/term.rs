//! A term of the caller's in the scores: a function on tiles.

use std::ffi::c_void;

use headwise::{Row, ScoreTerm, ScoreTile, tiles};

/// A query row of a tile.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct headwise_row {
    /// The batch entry, or the sequence of a ragged batch or a cache.
    pub batch: usize,
    /// The query head.
    pub head: usize,
    /// The query, counted from the first of the call, or of the sequence.
    pub query: usize,
    /// Where the query stands among the keys: its own key has this index.
    pub position: i64,
}

/// The most rows of a tile.
pub const HEADWISE_TILE_ROWS: usize = 48;
const _: () = assert!(HEADWISE_TILE_ROWS == ScoreTile::PITCH);

/// Scores of some rows against some keys, behind scale, softcap and biases and before the masks: to
/// be changed in place. A score that becomes -INFINITY hides its key.
#[repr(C)]
pub struct headwise_score_tile {
    /// The bytes of this struct, as the library has it.
    pub size: usize,
    /// The score of row `r` and key `first_key + k` is `scores[k * pitch + r]`.
    pub scores: *mut f32,
    /// From a key's scores to the next key's.
    pub pitch: usize,
    /// The rows, in no order that may be relied on.
    pub rows: *const headwise_row,
    /// How many rows: at most `HEADWISE_TILE_ROWS`.
    pub row_count: usize,
    /// The first key.
    pub first_key: usize,
    /// How many keys.
    pub key_count: usize,
}

/// Changes scores in place, each by itself and its place alone. Called by several threads at a time,
/// perhaps more than once for a score; must return (no `longjmp`, no exception).
pub type headwise_tile_function =
    Option<unsafe extern "C" fn(context: *mut c_void, tile: *const headwise_score_tile)>;

/// The same, there for sure.
type Function = unsafe extern "C" fn(*mut c_void, *const headwise_score_tile);

/// A function of the caller's and what it is handed.
#[derive(Clone, Copy)]
pub(crate) struct Term {
    function: Function,
    context: *mut c_void,
}

// SAFETY: the context goes nowhere but to the function, whose caller promised that several threads
// may call it at a time.
unsafe impl Sync for Term {}

impl Term {
    /// The caller's term, if there is one.
    ///
    /// # Safety
    /// The function must do what its type says with this context.
    pub(crate) unsafe fn new(
        function: headwise_tile_function,
        context: *mut c_void,
    ) -> Option<Self> {
        function.map(|function| Self { function, context })
    }

    /// As the library's.
    pub(crate) fn as_term(&self) -> impl ScoreTerm {
        tiles(|tile: ScoreTile<'_>| self.call(tile))
    }

    fn call(&self, tile: ScoreTile<'_>) {
        let row = |row: &Row| headwise_row {
            batch: row.batch,
            head: row.head,
            query: row.query,
            position: row.position,
        };
        let none = headwise_row { batch: 0, head: 0, query: 0, position: 0 };
        let mut rows = [none; HEADWISE_TILE_ROWS];
        rows.iter_mut().zip(tile.rows).for_each(|(to, from)| *to = row(from));
        let tile = headwise_score_tile {
            size: size_of::<headwise_score_tile>(),
            scores: tile.scores.as_mut_ptr(),
            pitch: ScoreTile::PITCH,
            rows: rows.as_ptr(),
            row_count: tile.rows.len(),
            first_key: tile.keys.start,
            key_count: tile.keys.len(),
        };
        // SAFETY: the promise made to `new`; all that the tile points at outlives the call.
        unsafe { (self.function)(self.context, &tile) };
    }
}
