//! Channels as rows of tokens, `(B, D, L)`: a few channels at a time, one number of each in turn.
//!
//! A channel alone waits for each multiply-add; several together do not. Blocks of tokens are copied to buffers first:
//! rows a power of two apart would all fall on the same few lines of the cache.

use super::Run;
use sensorium_core::{Float, Simd};

/// Channels at a time.
const CHANNELS: usize = 8;
/// Tokens of a block.
const BLOCK: usize = 128;

type Buffer<T> = [[T; BLOCK]; CHANNELS];

/// `a * b + c`, rounded as vectors of the level round it.
#[inline(always)]
fn mul_add<T: Float, S: Simd<T>>(a: T, b: T, c: T) -> T {
    if S::FUSED { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
pub(super) fn run<T: Float, S: Simd<T>, const BACKWARD: bool, const WRITE: bool>(run: &mut Run<'_, T>) {
    let width = run.channels.len();
    for c in (0..width).step_by(CHANNELS) {
        let n = CHANNELS.min(width - c);
        if n == CHANNELS {
            channels::<T, S, BACKWARD, WRITE, CHANNELS>(run, c);
        } else {
            for c in c..c + n {
                channels::<T, S, BACKWARD, WRITE, 1>(run, c);
            }
        }
    }
}

/// `C` channels from `c` of the block on.
#[inline(always)]
fn channels<T: Float, S: Simd<T>, const BACKWARD: bool, const WRITE: bool, const C: usize>(
    run: &mut Run<'_, T>,
    c: usize,
) {
    let (scan, piece, dims) = (run.scan, run.piece, run.scan.dims);
    let (row, tokens, d) = (piece.sequence.row, piece.tokens.clone(), run.channels.start + c);
    let falls = scan.falls::<BACKWARD>();
    let (mut state, mut product) = ([T::ZERO; C], [T::ONE; C]);
    for r in 0..C {
        state[r] = run.state[c + r];
        if !WRITE {
            product[r] = run.product[c + r];
        }
    }
    let mut buffers: [Buffer<T>; 4] = [[[T::ZERO; BLOCK]; CHANNELS]; 4];
    let mut done = 0;
    while done < tokens.len() {
        let n = BLOCK.min(tokens.len() - done);
        let start = if falls { tokens.end - done - n } else { tokens.start + done };
        let [a, x, h, da] = &mut buffers;
        for r in 0..C {
            let at = dims.at(row, d + r, start);
            a[r][..n].copy_from_slice(&scan.a[at..at + n]);
            x[r][..n].copy_from_slice(&scan.x[at..at + n]);
        }
        if BACKWARD && WRITE {
            for r in 0..C {
                earlier(run, d + r, start, &mut h[r][..n]);
            }
        }
        for i in 0..n {
            let t = if falls { n - 1 - i } else { i };
            for r in 0..C {
                let gate = a[r][t];
                if !WRITE {
                    product[r] *= gate;
                }
                if BACKWARD {
                    let g = x[r][t] + state[r];
                    state[r] = gate * g;
                    if WRITE {
                        x[r][t] = g;
                        da[r][t] = g * h[r][t];
                    }
                } else {
                    state[r] = mul_add::<T, S>(gate, state[r], x[r][t]);
                    x[r][t] = state[r];
                }
            }
        }
        if WRITE {
            for r in 0..C {
                let at = dims.at(row, d + r, start);
                // SAFETY: this task alone writes these tokens of its channels.
                unsafe { scan.out.slice(at..at + n) }.copy_from_slice(&x[r][..n]);
                if let (true, Some(out)) = (BACKWARD, scan.da) {
                    // SAFETY: as above.
                    unsafe { out.slice(at..at + n) }.copy_from_slice(&da[r][..n]);
                }
            }
        }
        done += n;
    }
    for r in 0..C {
        run.state[c + r] = state[r];
        if !WRITE {
            run.product[c + r] = product[r];
        }
    }
}

/// `h` before each of the tokens from `start` on.
#[inline(always)]
fn earlier<T: Float>(run: &Run<'_, T>, d: usize, start: usize, out: &mut [T]) {
    let (scan, sequence, dims) = (run.scan, &run.piece.sequence, run.scan.dims);
    let (n, at) = (out.len(), dims.at(sequence.row, d, start));
    let initial = match (scan.initial, dims.begins(sequence)) {
        (Some(initial), Some(i)) => initial[i * dims.width + d],
        _ => T::ZERO,
    };
    if dims.reverse {
        out[..n - 1].copy_from_slice(&scan.h[at + 1..at + n]);
        out[n - 1] = if start + n == sequence.end { initial } else { scan.h[at + n] };
    } else {
        out[1..].copy_from_slice(&scan.h[at..at + n - 1]);
        out[0] = if start == sequence.start { initial } else { scan.h[at - 1] };
    }
}
