//! `headwise info`: what this machine has, and what it can do at most.

use std::time::Duration;

use headwise::oracle::probe;
use headwise::{Executor, Isa, KvStorage, Rayon, Serial};
use serde::Serialize;

use super::{Session, Verdict};
use crate::machine::{self, Cache};
use crate::measure::median;
use crate::{Error, Result};

/// Well beyond any cache.
const READ_BUFFER_BYTES: usize = 256 << 20;
const PEAK_TIME: Duration = Duration::from_millis(100);
const READS: usize = 5;

#[derive(Serialize)]
struct Info {
    version: &'static str,
    isa: &'static str,
    available_isas: Vec<&'static str>,
    features: Vec<&'static str>,
    processor: Option<String>,
    logical_cores: Option<usize>,
    threads: usize,
    caches: Vec<Cache>,
    page_bytes: Option<usize>,
    transparent_huge_pages: Option<String>,
    peak_gflops_1_thread: f64,
    peak_gflops: f64,
    read_buffer_mib: usize,
    read_gbps_1_thread: f64,
    read_gbps: f64,
}

/// Prints the machine.
pub(super) fn info(session: &mut Session) -> Result<Verdict> {
    let threads = session.threads();
    let buffer = buffer()?;
    let info = Info {
        version: env!("CARGO_PKG_VERSION"),
        isa: session.isa.name(),
        available_isas: Isa::available().map(Isa::name).collect(),
        features: machine::features(),
        processor: machine::model(),
        logical_cores: machine::cores(),
        threads,
        caches: machine::caches(),
        page_bytes: machine::page_size(),
        transparent_huge_pages: machine::huge_pages(),
        peak_gflops_1_thread: probe::fma_flops(&Serial, 1, PEAK_TIME) / 1e9,
        peak_gflops: probe::fma_flops(&Rayon, threads, PEAK_TIME) / 1e9,
        read_buffer_mib: READ_BUFFER_BYTES >> 20,
        read_gbps_1_thread: read_rate(&Serial, 1, &buffer) / 1e9,
        read_gbps: read_rate(&Rayon, threads, &buffer) / 1e9,
    };
    session.output.object(&info)?;
    for line in lines(&info) {
        session.output.line(line)?;
    }
    Ok(Verdict::Pass)
}

fn lines(info: &Info) -> Vec<String> {
    let unknown = || "unknown".to_owned();
    let caches: Vec<_> = info
        .caches
        .iter()
        .map(|cache| {
            let Cache { level, kind, size, shared_by_cpus } = cache;
            format!("L{level} {kind} {size} (cpus {shared_by_cpus})")
        })
        .collect();
    let page = info.page_bytes.map_or_else(unknown, |bytes| format!("{bytes} bytes"));
    let huge = info.transparent_huge_pages.clone().unwrap_or_else(unknown);
    let rates = |one: f64, all: f64, unit| {
        format!("{one:.1} {unit} on 1 thread, {all:.1} on {}", info.threads)
    };
    let read = rates(info.read_gbps_1_thread, info.read_gbps, "GB/s");
    [
        ("version", info.version.to_owned()),
        ("isa", format!("{} (of {})", info.isa, info.available_isas.join(", "))),
        ("processor", info.processor.clone().unwrap_or_else(unknown)),
        ("features", info.features.join(" ")),
        ("logical cores", info.logical_cores.map_or_else(unknown, |n| n.to_string())),
        ("caches", if caches.is_empty() { unknown() } else { caches.join(", ") }),
        ("page size", format!("{page}, transparent huge pages {huge}")),
        ("FMA peak", rates(info.peak_gflops_1_thread, info.peak_gflops, "GFLOP/s")),
        ("memory read", format!("{read} ({} MiB buffer)", info.read_buffer_mib)),
    ]
    .into_iter()
    .map(|(name, value)| format!("{name:<14} {value}"))
    .collect()
}

fn buffer() -> Result<Vec<f32>> {
    let len = READ_BUFFER_BYTES / size_of::<f32>();
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(len).map_err(|error| {
        Error::input("read buffer", error.to_string(), "256 MiB of free memory")
    })?;
    // Written, or else every page would be the one page of zeros.
    buffer.resize(len, 1.0);
    Ok(buffer)
}

/// Bytes a second, by the median read.
fn read_rate(executor: &dyn Executor, threads: usize, buffer: &[f32]) -> f64 {
    let time = || probe::read_time(executor, threads, &[f32::as_bytes(buffer)]).as_secs_f64();
    time();
    let mut times: Vec<f64> = (0..READS).map(|_| time()).collect();
    size_of_val(buffer) as f64 / median(&mut times)
}
