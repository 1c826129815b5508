//! What the operating system and the processor say of themselves. Where they say nothing, so do
//! we.

use std::fs;

use serde::Serialize;

/// A cache as Linux describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Cache {
    pub(crate) level: String,
    pub(crate) kind: String,
    pub(crate) size: String,
    pub(crate) shared_by_cpus: String,
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The caches of the first core.
pub(crate) fn caches() -> Vec<Cache> {
    let cache = |index| {
        let part = |name| read(&format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{name}"));
        Some(Cache {
            level: part("level")?,
            kind: part("type")?.to_lowercase(),
            size: part("size")?,
            shared_by_cpus: part("shared_cpu_list").unwrap_or_default(),
        })
    };
    (0..).map_while(cache).collect()
}

/// The processor's name.
pub(crate) fn model() -> Option<String> {
    let text = read("/proc/cpuinfo")?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim().to_owned())
}

/// Logical cores that this process may use.
pub(crate) fn cores() -> Option<usize> {
    std::thread::available_parallelism().ok().map(usize::from)
}

/// The size of a page, in bytes.
pub(crate) fn page_size() -> Option<usize> {
    page_size_in(&fs::read("/proc/self/auxv").ok()?)
}

/// Finds the page size in the auxiliary vector: pairs of words, of which 6 (`AT_PAGESZ` of
/// `elf.h`) tags it.
fn page_size_in(auxv: &[u8]) -> Option<usize> {
    const WORD: usize = size_of::<usize>();
    let mut words = auxv.as_chunks::<WORD>().0.iter().map(|&word| usize::from_ne_bytes(word));
    while let (Some(tag), Some(value)) = (words.next(), words.next()) {
        if tag == 6 {
            return Some(value);
        }
    }
    None
}

/// When the system backs memory with huge pages unasked: `always`, `madvise` or `never`.
pub(crate) fn huge_pages() -> Option<String> {
    let text = read("/sys/kernel/mm/transparent_hugepage/enabled")?;
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(choice, _)| choice.to_owned())
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! detected {
    ($detect:ident, $($feature:tt),*) => {
        [$(($feature, std::arch::$detect!($feature))),*]
    };
}

/// The features of the processor that attention kernels care about, as far as it has them.
pub(crate) fn features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let known = detected!(
        is_x86_feature_detected,
        "avx2",
        "fma",
        "f16c",
        "avx512f",
        "avx512bw",
        "avx512dq",
        "avx512vl",
        "avx512bf16",
        "avx512fp16",
        "avx512vnni"
    );
    #[cfg(target_arch = "aarch64")]
    let known = detected!(is_aarch64_feature_detected, "neon", "fp16", "dotprod", "i8mm", "bf16");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let known: [(&'static str, bool); 0] = [];
    known.into_iter().filter(|&(_, has)| has).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_size_among_the_pairs() {
        let bytes = |words: &[usize]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_ne_bytes()).collect()
        };
        assert_eq!(page_size_in(&bytes(&[33, 6, 6, 4096, 0, 0])), Some(4096));
        assert_eq!(page_size_in(&bytes(&[33, 6, 0, 0])), None);
        assert_eq!(page_size_in(&[6]), None);
    }
}
