//! With a workspace of the size that the library names, it allocates nothing: on one thread, on a
//! caller's executor, inside a rayon pool. And that size does not grow with the sequence. Caches of keys
//! and values allocate nothing once they are there.

mod common;

use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use common::Rng;
use common::case::{Case, Data, DenseMask, Dims, Inputs, Masks};
use common::everything::{Everything, Want};
use common::layers::{Form, Model, Spec};
use common::strided::{Layout, Strided};
use common::structure::{Kinds, Packing};
use headwise::kv_cache::{
    ContiguousCache, Frequencies, KvShape, NewTokens, PagedCache, PagedCapacity, Positions, QkNorm,
    QkTransform, RingCache, Rope, RopeLayout, RopeScaling, SequenceId, TableBuffer,
};
use headwise::layers::{EncoderCache, LayerWorkspace, Memory as Hidden};
use headwise::{
    AttentionOptions, CascadeWorkspace, Causal, Executor, Isa, Outputs, Pick, PlanBuffer, Rayon,
    Result, Serial, Settings, Stage, StateMut, View, ViewMut, Workspace, attention_cascade_into,
    attention_into, linear_workspace_bytes, softmax_in_place, softmax_into,
    softmax_workspace_bytes,
};

/// Counts the allocations of threads that take part, and their bytes.
struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static TAKES_PART: Cell<bool> = const { Cell::new(false) };
}

fn count(bytes: usize) {
    if TAKES_PART.try_with(Cell::get).unwrap_or(false) {
        COUNT.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(bytes, Ordering::Relaxed);
    }
}

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, memory: Memory) -> *mut u8 {
        count(memory.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(memory) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, memory: Memory) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, memory) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, memory: Memory, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(ptr, memory, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Threads of pools that have not ended yet, and may still allocate.
static POOLED: AtomicUsize = AtomicUsize::new(0);

/// One test counts at a time, when the threads of those before it have ended.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let guard = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    while POOLED.load(Ordering::SeqCst) > 0 {
        std::thread::yield_now();
    }
    guard
}

/// Runs `f` with this thread taking part, or not.
fn taking_part<R>(part: bool, f: impl FnOnce() -> R) -> R {
    let before = TAKES_PART.replace(part);
    let result = f();
    TAKES_PART.set(before);
    result
}

/// The allocations during `f`, on this thread and on others that take part.
fn allocations(f: impl FnOnce()) -> usize {
    let before = COUNT.load(Ordering::SeqCst);
    taking_part(true, f);
    COUNT.load(Ordering::SeqCst) - before
}

/// The bytes of all allocations during `f`, a reallocation's in full: no less than were ever held
/// at once.
fn bytes_allocated(f: impl FnOnce()) -> usize {
    let before = BYTES.load(Ordering::SeqCst);
    taking_part(true, f);
    BYTES.load(Ordering::SeqCst) - before
}

/// The allocations of a call once its threads have settled: those of a pool still set themselves
/// up during its first calls, each in its own time, where the call itself would allocate always.
fn settled(f: &mut impl FnMut()) -> usize {
    (0..8).map(|_| allocations(&mut *f)).min().unwrap_or(usize::MAX)
}

/// A caller's executor. What it allocates itself is not the library's.
struct Caller;

impl Executor for Caller {
    fn threads(&self) -> usize {
        3
    }

    fn run(&self, threads: usize, work: &(dyn Fn() + Sync)) {
        taking_part(false, || {
            std::thread::scope(|scope| {
                (1..threads).for_each(|_| drop(scope.spawn(|| taking_part(true, work))));
                taking_part(true, work);
            });
        });
    }
}

/// A pool whose threads take part.
fn pool() -> rayon::ThreadPool {
    const THREADS: usize = 3;
    POOLED.fetch_add(THREADS, Ordering::SeqCst);
    rayon::ThreadPoolBuilder::new()
        .num_threads(THREADS)
        .start_handler(|_| TAKES_PART.set(true))
        .exit_handler(|_| {
            TAKES_PART.set(false);
            POOLED.fetch_sub(1, Ordering::SeqCst);
        })
        .build()
        .unwrap_or_else(|error| panic!("{error}"))
}

fn cases() -> Vec<Case> {
    let dims = Dims { batch: 2, kv_heads: 2, group: 2, ..Dims::single(150, 200, 40, 24) };
    let long = Dims { group: 2, ..Dims::single(40, 4100, 16, 9) };
    let masked = Masks {
        left: Some(90),
        key_lengths: true,
        boolean: Some(DenseMask { axes: [false, true, true], layout: Layout::Padded }),
        bias: Some(DenseMask { axes: [true, true, true], layout: Layout::Bhsd }),
        ..Masks::default()
    };
    let causal = Masks { causal: Some(Causal::BottomRight), ..Masks::default() };
    let kinds = Kinds {
        starts: true,
        documents: Some(Packing::Scattered),
        tree: Some((20, false)),
        blocks: Some((64, 32)),
        packed: true,
        ..Kinds::default()
    };
    let plain = Case::plain(dims, 41);
    let layouts = [Layout::Bshd, Layout::Reversed, Layout::Padded];
    vec![
        plain,
        Case { masks: causal, layouts, ..plain },
        Case { masks: masked, data: Data::Wide, ..plain },
        Case { masks: causal, data: Data::Wide, dims: long, ..plain },
        Case { masks: Masks { kinds, ..causal }, ..plain },
    ]
}

/// Everything, of some heads and queries.
fn want() -> Want<'static> {
    let (heads, queries) = (Pick::List(&[0, 1]), Pick::Range(3..39));
    Want { heads, queries, ..Want::all(Stage::Final, true, 7) }
}

/// One call from the views on, `all` outputs or the first.
fn call(
    inputs: &Inputs<f32>,
    (isa, executor): (Isa, &dyn Executor),
    (buffers, all): (&mut Everything<f32>, bool),
    workspace: &mut Workspace,
) -> Result<Isa> {
    let d = inputs.dims();
    let shape = [d.batch, d.q_heads(), d.seq_q, d.value_dim];
    let outputs = if all {
        buffers.outputs(inputs, &want())?
    } else {
        Outputs::new(ViewMut::bshd(&mut buffers.out, shape)?)
    };
    let (q, k, v) = (inputs.query.view(), inputs.key.view(), inputs.value.view());
    let options = inputs.options().isa(isa).executor(executor);
    attention_into(q, k, v, &options, outputs, workspace)
}

fn check(executor: &dyn Executor, name: &str) -> Result<()> {
    for case in cases() {
        let inputs = case.inputs();
        let mut buffers = Everything::new(&inputs, &want());
        let (q, k, v) = (inputs.query.view(), inputs.key.view(), inputs.value.view());
        let bytes = inputs.options().executor(executor).workspace_bytes(q, k, v)?;
        for isa in Isa::available() {
            for all in [false, true] {
                let mut workspace = Workspace::with_bytes(bytes)?;
                let held = workspace.bytes();
                let mut run = || {
                    let result =
                        call(&inputs, (isa, executor), (&mut buffers, all), &mut workspace);
                    assert_eq!(result, Ok(isa));
                };
                let count = settled(&mut run);
                let what = format!("{name} on {isa}, all outputs: {all}, {case:?}");
                assert_eq!(count, 0, "{what}");
                assert_eq!((held, workspace.bytes()), (bytes, bytes), "{what}");
            }
        }
    }
    Ok(())
}

#[test]
fn attention_allocates_nothing() -> Result<()> {
    let _alone = alone();
    check(&Serial, "serial")?;
    check(&Caller, "a caller's executor")?;
    pool().install(|| check(&Rayon, "inside a pool"))
}

/// The counter counts, and a workspace that is too small does grow.
#[test]
fn allocations_are_seen() {
    let _alone = alone();
    assert_eq!(allocations(|| drop(std::hint::black_box(Vec::<u8>::with_capacity(10)))), 1);
    assert_eq!(bytes_allocated(|| drop(std::hint::black_box(Vec::<u8>::with_capacity(10)))), 10);
    let case = cases()[0];
    let inputs = case.inputs();
    let mut buffers = Everything::new(&inputs, &want());
    let mut workspace = Workspace::new();
    let run = || {
        let result = call(&inputs, (Isa::Portable, &Serial), (&mut buffers, false), &mut workspace);
        assert_eq!(result, Ok(Isa::Portable));
    };
    assert!(allocations(run) > 0);
    assert!(workspace.bytes() > 0);
    let elsewhere = allocations(|| {
        Caller.run(2, &|| drop(std::hint::black_box(Vec::<u8>::with_capacity(10))));
    });
    assert_eq!(elsewhere, 2);
}

fn check_softmax(executor: &dyn Executor, name: &str) -> Result<()> {
    let shape = [2, 3, 40, 600];
    let input: Vec<f32> = (0..2 * 3 * 40 * 600).map(|i| (i as f32).sin()).collect();
    let mut out = vec![0.0_f32; input.len()];
    for isa in Isa::available() {
        let settings = Settings::default().with_isa(isa).with_executor(executor);
        let bytes = softmax_workspace_bytes(shape, &settings);
        let mut workspace = Workspace::with_bytes(bytes)?;
        let mut run = || {
            let view = View::bhsd(&input, shape);
            // The last axis outermost: no row is contiguous.
            let strides = [120, 40, 1, 240];
            let strided = ViewMut::strided(&mut out, 0, shape, strides);
            let result =
                view.and_then(|view| softmax_into(view, strided?, 0.5, &settings, &mut workspace));
            assert_eq!(result, Ok(isa));
            let dense = ViewMut::bhsd(&mut out, shape);
            let result =
                dense.and_then(|out| softmax_in_place(out, 2.0, &settings, &mut workspace));
            assert_eq!(result, Ok(isa));
        };
        assert_eq!(settled(&mut run), 0, "{name} on {isa}");
        assert_eq!(workspace.bytes(), bytes, "{name} on {isa}");
    }
    Ok(())
}

#[test]
fn softmax_allocates_nothing() -> Result<()> {
    let _alone = alone();
    check_softmax(&Serial, "serial")?;
    check_softmax(&Caller, "a caller's executor")?;
    pool().install(|| check_softmax(&Rayon, "inside a pool"))
}

/// Layers large enough for threads, and such as copy rows that are not contiguous, of the queries or
/// of the values, with so short heads that this needs more room than attention.
fn models(form: Form) -> [Model; 3] {
    let dims = Dims {
        batch: 2,
        kv_heads: 2,
        group: 2,
        seq_q: 70,
        seq_kv: 90,
        head_dim: 40,
        value_dim: 24,
    };
    let widths = [350, 292, 130];
    let spec = Spec { form, dims, widths, outputs: 163, biases: [true; 4], seed: 43 };
    let short = Spec { dims: Dims { head_dim: 1, value_dim: 1, ..dims }, ..spec };
    let copied = |n: usize| {
        let mut model = short.model();
        model.hidden[n] = model.hidden[n].transposed();
        model
    };
    [spec.model(), copied(0), copied(2)]
}

/// Calls from the views on, and nothing allocated, all outputs or the first.
fn check_calls(
    model: &Model,
    memory: Hidden<'_>,
    (isa, executor): (Isa, &dyn Executor),
    count: impl Fn(&mut dyn FnMut()) -> usize,
    what: &str,
) -> Result<()> {
    let [mut out, mut lse, mut weights] =
        model.spec.output_shapes().map(|shape| Strided::filled(shape, Layout::Bhsd, 0.0_f32));
    let options = AttentionOptions::new().isa(isa).executor(executor);
    for all in [false, true] {
        let mut workspace = model.layer.workspace(model.query(), memory, &options)?;
        let held = workspace.bytes();
        let mut run = || {
            let mut outputs = Outputs::new(out.view_mut());
            if all {
                outputs = outputs.with_lse(lse.view_mut()).with_weights(weights.view_mut());
            }
            let query = model.query();
            let result = model.layer.forward_into(query, memory, &options, outputs, &mut workspace);
            assert_eq!(result, Ok(isa));
        };
        assert_eq!(count(&mut run), 0, "{what}, all outputs: {all}");
        assert_eq!(workspace.bytes(), held, "{what}, all outputs: {all}");
    }
    Ok(())
}

fn check_layers(
    executor: &dyn Executor,
    count: impl Fn(&mut dyn FnMut()) -> usize,
    name: &str,
) -> Result<()> {
    for model in Form::ALL.into_iter().flat_map(models) {
        for isa in Isa::available() {
            let what = format!("{name} on {isa}, {:?}", model.spec);
            let on = (isa, executor);
            check_calls(&model, model.memory().into(), on, &count, &what)?;
            if model.spec.form == Form::SelfAttention {
                continue;
            }
            let settings = Settings::default().with_isa(isa).with_executor(executor);
            let mut cache = model.layer.encode(model.memory(), &settings)?;
            check_calls(&model, (&cache).into(), on, &count, &format!("{what}, cached"))?;
            let (key, value) = model.memory();
            let bytes = [key, value].map(|x| linear_workspace_bytes(x, &settings));
            let mut workspace = Workspace::with_bytes(bytes[0].max(bytes[1]))?;
            let mut run = || {
                let result =
                    model.layer.encode_into((key, value), &mut cache, &settings, &mut workspace);
                assert_eq!(result, Ok(isa));
            };
            assert_eq!(count(&mut run), 0, "{what}, encoding");
        }
    }
    Ok(())
}

#[test]
fn layers_allocate_nothing() -> Result<()> {
    let _alone = alone();
    // From the first call on, where there are no threads that set themselves up.
    check_layers(&Serial, |run| allocations(run), "serial")?;
    check_layers(&Caller, |run| allocations(run), "a caller's executor")?;
    pool().install(|| check_layers(&Rayon, |mut run| settled(&mut run), "inside a pool"))
}

/// What is too small is seen to grow.
#[test]
fn allocations_of_layers_are_seen() -> Result<()> {
    let _alone = alone();
    let [model, ..] = models(Form::MultiHead);
    let settings = Settings::default().with_executor(&Serial);
    let options = AttentionOptions::new().executor(&Serial);
    let mut out = Strided::filled(model.spec.output_shapes()[0], Layout::Bhsd, 0.0_f32);
    let mut workspace = LayerWorkspace::new();
    let run = || {
        let (query, memory) = (model.query(), model.memory());
        let outputs = Outputs::new(out.view_mut());
        let result = model.layer.forward_into(query, memory, &options, outputs, &mut workspace);
        assert!(result.is_ok(), "{result:?}");
    };
    assert!(allocations(run) > 0);
    let exact = model.layer.workspace(model.query(), model.memory(), &options)?.bytes();
    assert_eq!(workspace.bytes(), exact);
    let mut cache = EncoderCache::new();
    let encode = || {
        let mut workspace = Workspace::new();
        let result = model.layer.encode_into(model.memory(), &mut cache, &settings, &mut workspace);
        assert!(result.is_ok(), "{result:?}");
    };
    assert!(allocations(encode) > 0);
    Ok(())
}

/// Attention of which the lengths alone vary. The rows of a head are one row in memory, so that long
/// sequences cost none.
struct Long {
    query: Strided<f32>,
    key: Strided<f32>,
    value: Strided<f32>,
}

impl Long {
    const HEADS: usize = 8;
    const HEAD_DIM: usize = 128;
    const VALUE_DIM: usize = 80;

    fn new(seq_q: usize, seq_kv: usize) -> Self {
        let rows = |seq, dim| Strided::filled([1, Self::HEADS, seq, dim], Layout::SharedRow, 0.0);
        Self {
            query: rows(seq_q, Self::HEAD_DIM),
            key: rows(seq_kv, Self::HEAD_DIM),
            value: rows(seq_kv, Self::VALUE_DIM),
        }
    }

    fn workspace_bytes(&self, options: &AttentionOptions<'_>) -> usize {
        options
            .workspace_bytes(self.query.view(), self.key.view(), self.value.view())
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// What a call without a workspace allocates beside its inputs and outputs.
    fn allocates(&self, options: &AttentionOptions<'_>) -> usize {
        let shape = [1, Self::HEADS, self.query.shape[2], Self::VALUE_DIM];
        let mut out = Strided::filled(shape, Layout::Bhsd, 0.0_f32);
        bytes_allocated(|| {
            let (q, k, v) = (self.query.view(), self.key.view(), self.value.view());
            let outputs = Outputs::new(out.view_mut());
            let result = attention_into(q, k, v, options, outputs, &mut Workspace::new());
            assert!(result.is_ok(), "{result:?}");
        })
    }

    /// What `threads` threads need at most, whatever the lengths: each eight tiles of 48 rows, that
    /// is their queries, sums and sums over splits, and a block of probabilities.
    fn most_bytes(threads: usize) -> usize {
        let tile = 48 * (Self::HEAD_DIM + 2 * Self::VALUE_DIM);
        threads * (8 * tile + 128 * 48) * size_of::<f32>()
    }
}

#[test]
fn the_workspace_does_not_grow_with_the_keys() {
    let options = AttentionOptions::new().executor(&Caller);
    let bytes = |seq_q, seq_kv| Long::new(seq_q, seq_kv).workspace_bytes(&options);
    let long = bytes(4096, 4096);
    assert_eq!(long, bytes(4096, 1 << 20));
    assert_eq!(long, bytes(1 << 20, 1 << 30));
    assert!(long <= Long::most_bytes(3), "{long} bytes");
}

#[test]
fn a_call_allocates_the_same_however_long_the_sequence() {
    let _alone = alone();
    // The environment is read once per process, and not by what is counted.
    assert!(headwise::Isa::from_env().is_ok());
    // Few queries of many keys and many of few, and causal masks that leave them work.
    let few_queries = |n| (Long::new(17, n), Causal::BottomRight);
    let few_keys = |n| (Long::new(n, 70), Causal::TopLeft);
    let shapes: [&dyn Fn(usize) -> (Long, Causal); 2] = [&few_queries, &few_keys];
    for (executor, threads) in [(&Serial as &dyn Executor, 1), (&Caller, 3)] {
        for (shape, masked) in shapes.into_iter().flat_map(|shape| [(shape, false), (shape, true)])
        {
            let bytes = |n| {
                let (long, causal) = shape(n);
                let options = AttentionOptions::new().executor(executor);
                let options = if masked { options.causal_with(causal) } else { options };
                let bytes = long.allocates(&options);
                let what = format!("{n} rows, {threads} threads, causal: {masked}");
                assert_eq!(bytes, long.workspace_bytes(&options), "{what}");
                assert!(bytes <= Long::most_bytes(threads), "{bytes} bytes, {what}");
                bytes
            };
            let long = bytes(32 << 10);
            // One split of keys needs no sums over splits.
            assert!(bytes(2 << 10) <= long);
            for n in [4 << 10, 8 << 10, 16 << 10] {
                assert_eq!(bytes(n), long, "{n} rows, {threads} threads, causal: {masked}");
            }
        }
    }
}

#[test]
fn caches_allocate_nothing_within_their_capacity() -> Result<()> {
    let _alone = alone();
    const TOKENS: usize = 64;
    let shape = KvShape { kv_heads: 2, head_dim: 8, value_dim: 4 };
    let capacity =
        PagedCapacity { pages: 64, page_size: 4, sequences: 3, pages_per_sequence: TOKENS };
    let mut contiguous = ContiguousCache::new(shape, 2, TOKENS)?;
    let mut ring = RingCache::new(shape, 2, 7)?;
    let mut paged = PagedCache::new(shape, capacity)?;
    let ids = [paged.create()?, paged.create()?];
    let mut tables = TableBuffer::with_capacity(3, 3 * TOKENS);
    let frequencies = Frequencies::new(8, 1e4, RopeScaling::Unscaled)?;
    let rope = Rope::new(RopeLayout::HalfSplit, &frequencies, TOKENS)?;
    let norm = QkNorm::new(&[1.0; 8], 1e-6)?;
    let mut query = Strided::filled([2, 4, 1, 8], Layout::Bshd, 1.0);
    let key = Strided::filled([2, 2, 1, 8], Layout::Bshd, 1.0);
    let value = Strided::filled([2, 2, 1, 4], Layout::Padded, 1.0);
    let count = allocations(|| {
        for position in 0..TOKENS {
            let new = NewTokens::new(key.view(), value.view()).norm(&norm).rope(&rope);
            assert_eq!(contiguous.append(&new), Ok(()));
            assert_eq!(ring.append_to(&[1, 0], &new), Ok(()));
            assert_eq!(paged.append(&ids, &new), Ok(()));
            let transform = QkTransform::new().norm(&norm).rope(&rope);
            assert_eq!(transform.apply(query.view_mut(), Positions::From(position)), Ok(()));
            assert_eq!(contiguous.view().tables().lengths, [position + 1; 2]);
            assert_eq!(ring.view().tables().lengths, [position + 1; 2]);
            assert!(paged.view(&ids, &mut tables).is_ok());
            if position == TOKENS / 2 {
                assert_eq!(paged.evict(ids[0], position - 9), Ok(()));
                let forked = paged.fork(ids[1]).and_then(|id| paged.free(id));
                assert_eq!(forked, Ok(()));
            }
        }
    });
    assert_eq!(count, 0);
    // Growth is a call of its own, and is seen.
    assert!(
        bytes_allocated(|| assert_eq!(contiguous.reserve(2 * TOKENS), Ok(()))) >= 2 * 2 * 128 * 12
    );
    Ok(())
}

#[test]
fn a_cascade_allocates_nothing_in_steady_state() -> Result<()> {
    let _alone = alone();
    let shape = KvShape { kv_heads: 2, head_dim: 8, value_dim: 4 };
    let capacity = PagedCapacity { pages: 64, page_size: 4, sequences: 3, pages_per_sequence: 16 };
    let mut cache = PagedCache::new(shape, capacity)?;
    let first = cache.create()?;
    let [key, value] = [8, 4].map(|dim| Strided::filled([1, 2, 20, dim], Layout::Bshd, 0.5));
    cache.append(&[first], &NewTokens::new(key.view(), value.view()))?;
    let sequences = [first, cache.fork(first)?];
    let [key, value] = [8, 4].map(|dim| Strided::filled([2, 2, 1, dim], Layout::Bshd, 0.5));
    let query = Strided::filled([2, 4, 1, 8], Layout::Bshd, 1.0);
    let mut out = Strided::filled([2, 4, 1, 4], Layout::Bshd, 0.0);
    let mut lse = Strided::filled([2, 4, 1, 1], Layout::Bshd, 0.0);
    let (mut tables, mut workspace) = (TableBuffer::with_capacity(2, 32), CascadeWorkspace::new());
    let options = AttentionOptions::new().causal().executor(&Serial);
    let mut step = || {
        assert_eq!(cache.append(&sequences, &NewTokens::new(key.view(), value.view())), Ok(()));
        let view = cache.view(&sequences, &mut tables).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(view.shared_prefix(), 20);
        let into = StateMut { out: out.view_mut(), lse: lse.view_mut() };
        let done = attention_cascade_into(query.view(), &view, &options, into, &mut workspace);
        assert!(done.is_ok(), "{done:?}");
    };
    step();
    assert_eq!(allocations(|| (0..20).for_each(|_| step())), 0);
    Ok(())
}

/// Sequences of different lengths, planned at each step, and run for two layers.
#[test]
fn planning_and_running_allocate_nothing_in_steady_state() -> Result<()> {
    let _alone = alone();
    let shape = KvShape { kv_heads: 2, head_dim: 8, value_dim: 4 };
    let capacity = PagedCapacity { pages: 64, page_size: 4, sequences: 3, pages_per_sequence: 16 };
    let mut layers = [PagedCache::new(shape, capacity)?, PagedCache::new(shape, capacity)?];
    let mut ids = Vec::new();
    for layer in &mut layers {
        ids = vec![layer.create()?, layer.create()?, layer.create()?];
        let [key, value] = [8, 4].map(|dim| Strided::filled([1, 2, 9, dim], Layout::Bshd, 0.5));
        layer.append(&ids[1..2], &NewTokens::new(key.view(), value.view()))?;
    }
    let [key, value] = [8, 4].map(|dim| Strided::filled([3, 2, 1, dim], Layout::Bshd, 0.5));
    let query = Strided::filled([3, 4, 1, 8], Layout::Bshd, 1.0);
    let mut out = Strided::filled([3, 4, 1, 4], Layout::Bshd, 0.0);
    let (mut tables, mut buffer) = (TableBuffer::with_capacity(3, 48), PlanBuffer::new());
    let mut workspace = Workspace::new();
    let options = AttentionOptions::new().causal().executor(&Serial);
    let mut step = || {
        for layer in &mut layers {
            assert_eq!(layer.append(&ids, &NewTokens::new(key.view(), value.view())), Ok(()));
        }
        let view = layers[0].view(&ids, &mut tables).unwrap_or_else(|error| panic!("{error}"));
        let plan = options.plan_cached(query.view(), &view, &mut buffer);
        let plan = plan.unwrap_or_else(|error| panic!("{error}"));
        for layer in &layers {
            let tensors = [query.view(), layer.key(), layer.value()];
            let [query, key, value] = tensors;
            let done = plan.run(query, [key, value], Outputs::new(out.view_mut()), &mut workspace);
            assert!(done.is_ok(), "{done:?}");
        }
    };
    step();
    assert_eq!(allocations(|| (0..20).for_each(|_| step())), 0);
    Ok(())
}

/// 10,000 sequences that begin alike in groups, and that come, grow, are cut and go.
struct Churn {
    cache: PagedCache,
    live: Vec<SequenceId>,
    tables: TableBuffer,
    rng: Rng,
}

impl Churn {
    const SHAPE: KvShape = KvShape { kv_heads: 1, head_dim: 4, value_dim: 4 };
    const CAPACITY: PagedCapacity =
        PagedCapacity { pages: 60_000, page_size: 4, sequences: 10_000, pages_per_sequence: 16 };
    /// Tokens of a call, at most.
    const TOKENS: usize = 9;

    fn new() -> Result<Self> {
        let mut live = Vec::new();
        live.reserve_exact(Self::CAPACITY.sequences);
        let cache = PagedCache::new(Self::SHAPE, Self::CAPACITY)?;
        Ok(Self { cache, live, tables: TableBuffer::with_capacity(1, 16), rng: Rng(10_000) })
    }

    /// One of the sequences.
    fn any(&mut self) -> (usize, SequenceId) {
        let nth = self.rng.below(self.live.len());
        (nth, self.live[nth])
    }

    fn append(&mut self, id: SequenceId) -> Result<()> {
        let room = 4 * Self::CAPACITY.pages_per_sequence;
        let length = self.cache.length(id)? - self.cache.start(id)? / 4 * 4;
        let count = (1 + self.rng.below(Self::TOKENS)).min(room - length);
        let data = [1.0; 4 * Self::TOKENS];
        let rows = View::bhsd(&data, [1, 1, count, 4])?;
        self.cache.append(&[id], &NewTokens::new(rows, rows))
    }

    fn free(&mut self) -> Result<()> {
        let (nth, id) = self.any();
        self.live.swap_remove(nth);
        self.cache.free(id)
    }

    /// One of everything that can happen, on some sequence. Half of those that come begin as another
    /// does, up to some token.
    fn step(&mut self) -> Result<()> {
        if self.live.len() == Self::CAPACITY.sequences || self.cache.free_pages() < Self::TOKENS {
            self.free()?;
        }
        if self.live.is_empty() || self.rng.one_in(20) {
            self.live.push(self.cache.create()?);
        }
        let (_, id) = self.any();
        let (start, length) = (self.cache.start(id)?, self.cache.length(id)?);
        let somewhere = start + self.rng.below(length - start + 1);
        match self.rng.below(8) {
            0..3 if self.live.len() < Self::CAPACITY.sequences => {
                let forked = self.cache.fork(id)?;
                self.live.push(forked);
                self.cache.truncate(forked, somewhere.max(length - (length - start) / 4))
            }
            0..6 => self.append(id),
            6 if self.rng.one_in(8) => self.cache.evict(id, somewhere),
            6 if self.rng.one_in(8) => self.cache.truncate(id, somewhere),
            _ => {
                let view = self.cache.view(&[id], &mut self.tables)?;
                assert_eq!(view.key_row(0, somewhere, 0).is_some(), somewhere < length);
                Ok(())
            }
        }
    }

    fn held(&self) -> usize {
        let mut held = vec![false; Self::CAPACITY.pages];
        for &id in &self.live {
            for &page in self.cache.pages(id).unwrap_or_default() {
                held[page as usize] = true;
            }
        }
        held.into_iter().filter(|&held| held).count()
    }

    /// Goes on as long as `more` says; nothing is allocated, and no page is lost.
    fn run(&mut self, mut more: impl FnMut() -> bool) {
        let bytes = bytes_allocated(|| {
            while more() {
                assert_eq!(self.step(), Ok(()));
            }
        });
        assert_eq!(bytes, 0);
        assert_eq!(self.held() + self.cache.free_pages(), Self::CAPACITY.pages);
        assert_eq!(self.live.len() + self.cache.free_sequences(), Self::CAPACITY.sequences);
    }

    fn end(mut self) -> Result<()> {
        assert!(self.live.len() > 9_000, "{} sequences", self.live.len());
        // They share: apart they would hold half as much again.
        let apart: usize =
            self.live.iter().map(|&id| self.cache.pages(id).map_or(0, <[_]>::len)).sum();
        assert!(3 * self.held() < 2 * apart, "{} pages, {apart} apart", self.held());
        while !self.live.is_empty() {
            self.free()?;
        }
        assert_eq!(self.cache.free_pages(), Self::CAPACITY.pages);
        Ok(())
    }
}

#[test]
fn ten_thousand_sequences_churn_in_constant_memory() -> Result<()> {
    let _alone = alone();
    let mut churn = Churn::new()?;
    for _ in 0..5 {
        let mut steps = 0..200_000;
        churn.run(|| steps.next().is_some());
    }
    churn.end()
}

#[test]
#[ignore = "takes a minute"]
fn ten_thousand_sequences_churn_for_a_minute() -> Result<()> {
    let _alone = alone();
    let mut churn = Churn::new()?;
    let start = std::time::Instant::now();
    churn.run(|| start.elapsed().as_secs() < 60);
    churn.end()
}
