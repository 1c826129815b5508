//! Nothing is copied on the way in: what a call allocates has nothing to do with how long its keys are.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Result, Tensor};
use headwise_candle::headwise::Serial;
use headwise_candle::{AttentionOptions, KvCache, KvShape, Options, attention};

struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The bytes that a second call allocates: a first one has made the thread's workspace.
fn bytes_of(mut call: impl FnMut() -> Result<()>) -> Result<usize> {
    call()?;
    let before = BYTES.load(Ordering::Relaxed);
    call()?;
    Ok(BYTES.load(Ordering::Relaxed) - before)
}

const SEQ_Q: usize = 4;
const SEQ_KV: usize = 4096;
/// What candle's own structs of a tensor take at most.
const BOOKKEEPING: usize = 4096;

// One test, so that nobody else allocates meanwhile.
#[test]
fn a_call_allocates_its_output_alone() -> Result<()> {
    let zeros = |seq: usize, heads: usize, dtype| {
        // As a projection leaves them; split into heads by strides.
        Tensor::zeros((1, seq, heads, 64), dtype, &Device::Cpu)?.transpose(1, 2)
    };
    let options = AttentionOptions::new().executor(&Serial);
    for dtype in [DType::F32, DType::BF16] {
        let (query, key) = (zeros(SEQ_Q, 8, dtype)?, zeros(SEQ_KV, 2, dtype)?);
        let out = SEQ_Q * 8 * 64 * dtype.size_in_bytes();
        let bytes = bytes_of(|| attention(&query, &key, &key, options.causal()).map(drop))?;
        assert!((out..out + BOOKKEEPING).contains(&bytes), "{bytes} of {dtype:?}");

        let mask = Tensor::ones((1, 8, SEQ_Q, SEQ_KV), DType::U8, &Device::Cpu)?;
        let bias = mask.to_dtype(dtype)?;
        let masked = Options::new(options).mask(&mask).bias(&bias);
        let bytes = bytes_of(|| attention(&query, &key, &key, masked).map(drop))?;
        assert!((out..out + BOOKKEEPING).contains(&bytes), "{bytes} of {dtype:?}, masked");

        let shape = KvShape { kv_heads: 2, head_dim: 64, value_dim: 64 };
        let mut cache = KvCache::new(shape, 1, SEQ_KV + SEQ_Q, dtype)?;
        cache.append(&key, &key)?;
        let new = zeros(SEQ_Q, 2, dtype)?;
        let bytes = bytes_of(|| {
            cache.truncate(SEQ_KV)?;
            cache.append(&new, &new)?;
            cache.attention(&query, options.causal()).map(drop)
        })?;
        assert!((out..out + BOOKKEEPING).contains(&bytes), "{bytes} of {dtype:?}, cached");
    }
    Ok(())
}
