//! Speech as Whisper hears it: the logarithms of 80 mel bands, 100 times a second.

use std::f64::consts::PI;
use std::ops::Range;
use std::path::Path;

use candle_core::{Device, Tensor};

use crate::common::Result;

/// Samples a second.
pub(crate) const RATE: usize = 16_000;
/// Samples of a window, padded with silence.
const WINDOW: usize = 30 * RATE;
/// Samples of a spectrum, and from one to the next.
const FRAME: usize = 400;
const HOP: usize = 160;
const BANDS: usize = 80;
const FREQUENCIES: usize = FRAME / 2 + 1;

/// The samples of a WAVE file of one channel of 16 bits, at a multiple of [`RATE`].
pub(crate) fn read(path: &Path) -> Result<Vec<f32>> {
    let bytes = std::fs::read(path)?;
    let (mut factor, mut rest) = (0, bytes.get(12..).unwrap_or_default());
    while let Some((head, body)) = rest.split_at_checked(8) {
        let size = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let chunk = &body[..size.min(body.len())];
        match &head[..4] {
            b"fmt " => factor = rate_factor(chunk)?,
            b"data" if factor > 0 => {
                let (pairs, _) = chunk.as_chunks();
                let samples: Vec<f32> = pairs
                    .iter()
                    .map(|&pair| f32::from(i16::from_le_bytes(pair)) / 32768.0)
                    .collect();
                return Ok(decimated(&samples, factor));
            }
            _ => {}
        }
        rest = body.get(size + size % 2..).unwrap_or_default();
    }
    Err(format!("{}: no WAVE file", path.display()).into())
}

/// How many times [`RATE`] a file's rate is.
fn rate_factor(format: &[u8]) -> Result<usize> {
    let format: &[u8; 16] = format.first_chunk().ok_or("a format of fewer than 16 bytes")?;
    let rate = u32::from_le_bytes([format[4], format[5], format[6], format[7]]) as usize;
    let (kind, channels, bits) = (format[0], format[2], format[14]);
    if (kind, channels, bits) != (1, 1, 16) || rate == 0 || !rate.is_multiple_of(RATE) {
        return Err("the audio has to be PCM of 16 bits, one channel, 16 or 48 kHz".into());
    }
    Ok(rate / RATE)
}

/// Every `factor`-th sample, of what is below half of the new rate: a sinc under a Hann window.
fn decimated(samples: &[f32], factor: usize) -> Vec<f32> {
    if factor == 1 {
        return samples.to_vec();
    }
    const LOBES: usize = 32;
    let reach = (LOBES * factor) as isize;
    let taps: Vec<f32> = (-reach..=reach)
        .map(|i| {
            let x = i as f64 / factor as f64;
            let sinc = if i == 0 { 1.0 } else { (PI * x).sin() / (PI * x) };
            let hann = (0.5 * PI * i as f64 / (reach + 1) as f64).cos().powi(2);
            (sinc * hann / factor as f64) as f32
        })
        .collect();
    let at = |i: isize| usize::try_from(i).ok().and_then(|i| samples.get(i)).unwrap_or(&0.0);
    (0..samples.len().div_ceil(factor))
        .map(|n| {
            let center = (n * factor) as isize;
            taps.iter().zip(center - reach..).map(|(tap, i)| tap * at(i)).sum()
        })
        .collect()
}

/// Windows of at most 30 s, each cut amid the tenth of a second of least energy in its last 6 s.
pub(crate) fn windows(samples: &[f32]) -> Vec<Range<usize>> {
    const BLOCK: usize = RATE / 10;
    let (mut windows, mut start) = (Vec::new(), 0);
    while start < samples.len() {
        let rest = &samples[start..];
        let energy = |at: &usize| rest[*at..][..BLOCK].iter().map(|x| x * x).sum::<f32>();
        let quietest = || {
            (24 * RATE..WINDOW)
                .step_by(BLOCK)
                .min_by(|a, b| energy(a).total_cmp(&energy(b)))
                .unwrap_or(WINDOW)
        };
        let length = if rest.len() <= WINDOW { rest.len() } else { quietest() + BLOCK / 2 };
        windows.push(start..start + length);
        start += length;
    }
    windows
}

/// The spectrum of at most 30 s, `[1, 80, 3000]`.
pub(crate) fn spectrum(samples: &[f32]) -> Result<Tensor> {
    let count = WINDOW / HOP;
    let sample = |i: usize| {
        // The window is mirrored at its edges, by half a frame.
        let i = i.abs_diff(FRAME / 2);
        let i = if i >= WINDOW { 2 * (WINDOW - 1) - i } else { i };
        samples.get(i).copied().unwrap_or(0.0)
    };
    let frames: Vec<f32> =
        (0..count).flat_map(|frame| (0..FRAME).map(move |i| sample(frame * HOP + i))).collect();
    let frames = Tensor::from_vec(frames, (count, FRAME), &Device::Cpu)?;
    let parts = frames.matmul(&fourier()?)?.sqr()?;
    let power = (parts.narrow(1, 0, FREQUENCIES)? + parts.narrow(1, FREQUENCIES, FREQUENCIES)?)?;
    let bands = filters()?.matmul(&power.t()?)?;
    let logarithms = (bands.maximum(1e-10)?.log()? / 10_f64.ln())?;
    let loudest: f32 = logarithms.max_all()?.to_scalar()?;
    let floored = logarithms.maximum(f64::from(loudest) - 8.0)?;
    Ok(((floored + 4.0)? / 4.0)?.unsqueeze(0)?)
}

/// Cosines and then sines under a periodic Hann window, `[400, 2 * 201]`.
fn fourier() -> Result<Tensor> {
    let step = 2.0 * PI / FRAME as f64;
    let row = |i: usize| {
        let hann = 0.5 - 0.5 * (i as f64 * step).cos();
        let angles = (0..FREQUENCIES).map(move |k| (i * k % FRAME) as f64 * step);
        let (cosines, sines) = (angles.clone().map(f64::cos), angles.map(f64::sin));
        cosines.chain(sines).map(move |x| (x * hann) as f32)
    };
    let table: Vec<f32> = (0..FRAME).flat_map(row).collect();
    Ok(Tensor::from_vec(table, (FRAME, 2 * FREQUENCIES), &Device::Cpu)?)
}

/// Triangles of equal area over the mel scale of Slaney's toolbox, `[80, 201]`.
fn filters() -> Result<Tensor> {
    // Linear up to 1000 Hz, which is 15 mel; 27 mel from there are a factor of 6.4.
    let hertz = |mel: f64| {
        if mel < 15.0 { mel * 200.0 / 3.0 } else { 1000.0 * 6.4_f64.powf((mel - 15.0) / 27.0) }
    };
    let top = 15.0 + 27.0 * (RATE as f64 / 2000.0).ln() / 6.4_f64.ln();
    let edge = |i: usize| hertz(top * i as f64 / (BANDS + 1) as f64);
    let band = |band: usize| {
        let [low, middle, high] = [0, 1, 2].map(|i| edge(band + i));
        (0..FREQUENCIES).map(move |k| {
            let frequency = (k * RATE) as f64 / FRAME as f64;
            let (up, down) =
                ((frequency - low) / (middle - low), (high - frequency) / (high - middle));
            (up.min(down).max(0.0) * 2.0 / (high - low)) as f32
        })
    };
    let table: Vec<f32> = (0..BANDS).flat_map(band).collect();
    Ok(Tensor::from_vec(table, (BANDS, FREQUENCIES), &Device::Cpu)?)
}
