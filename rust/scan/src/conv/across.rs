//! Tokens as rows of channels, `(B, L, D)`: vectors run across channels, and the taps are rows.
//!
//! Forward, a tile of rows is worked off vector by vector: filters and the rows before the tile are read once for it, and
//! memory is read and written along rows.

use super::plan::Piece;
use super::{Backward, Dims, Job, activate, descend, earlier};
use sensorium_core::threads::Disjoint;
use sensorium_core::{Float, MAX_LANES, Simd};
use std::ops::Range;
use std::slice::{from_raw_parts, from_raw_parts_mut};

/// Rows of a tile: as many streams as processors follow.
const TILE: usize = 8;

/// The vector at `x`, or its first `n` lanes where it is not `FULL`.
///
/// # Safety
/// `x` is readable for those lanes.
#[inline(always)]
unsafe fn load<T: Float, S: Simd<T>, const FULL: bool>(s: S, x: *const T, n: usize) -> S::V {
    // SAFETY: as the caller vouches.
    unsafe { if FULL { s.load_ptr(x) } else { s.load_head(from_raw_parts(x, n), T::ZERO) } }
}

/// Writes a vector, or its first `n` lanes where it is not `FULL`.
///
/// # Safety
/// `x` is writable for those lanes.
#[inline(always)]
unsafe fn store<T: Float, S: Simd<T>, const FULL: bool>(s: S, x: *mut T, n: usize, v: S::V) {
    // SAFETY: as the caller vouches.
    unsafe { if FULL { s.store_ptr(x, v) } else { s.store_head(from_raw_parts_mut(x, n), v) } }
}

/// Inputs of a piece by row, those before its sequence included.
struct Source<'a, T> {
    /// Row 0 of the piece, at the first channel.
    x: *const T,
    stride: usize,
    /// The `K - 1` rows before a piece that is the first of its sequence.
    prior: Option<&'a [T]>,
    width: usize,
    before: usize,
}

impl<T: Float> Source<'_, T> {
    /// Row `i - (K - 1)` of the piece, at the first channel.
    #[inline(always)]
    fn row(&self, i: usize) -> *const T {
        match self.prior {
            Some(prior) if i < self.before => prior.as_ptr().wrapping_add(i * self.width),
            _ => self.x.wrapping_add(i * self.stride).wrapping_sub(self.before * self.stride),
        }
    }
}

/// Writes the `K - 1` rows before a sequence.
#[inline(always)]
fn prior_rows<T: Float>(job: &Job<'_, T>, piece: &Piece, out: &mut [T]) {
    let (before, width) = (job.dims.before(), job.channels.len());
    for (c, d) in job.channels.clone().enumerate() {
        for j in 0..before {
            let value = earlier(&job.inputs, piece.sequence.initial, (d, job.dims.width), (j, before));
            out[j * width + c] = value;
        }
    }
}

/// What a piece is read from.
#[inline(always)]
fn source<'a, T: Float>(job: &Job<'_, T>, piece: &Piece, prior: &'a mut [T]) -> Source<'a, T> {
    let first = piece.is_first();
    if first {
        prior_rows(job, piece, prior);
    }
    Source {
        x: job.inputs.x.at(piece.sequence.row, piece.tokens.start).wrapping_add(job.channels.start),
        stride: job.inputs.x.row,
        prior: first.then_some(&*prior),
        width: job.channels.len(),
        before: job.dims.before(),
    }
}

#[inline(always)]
pub(super) fn forward<T: Float, S: Simd<T>, const K: usize, const SILU: bool>(
    s: S,
    job: &Job<'_, T>,
    y: &Disjoint<'_, T>,
) {
    let width = job.channels.len();
    let mut prior = vec![T::ZERO; job.dims.before() * width];
    for piece in job.pieces {
        let source = source(job, piece, &mut prior);
        for start in (0..piece.tokens.len()).step_by(TILE) {
            let rows = start..(start + TILE).min(piece.tokens.len());
            let mut c = 0;
            while c < width {
                let lanes = (width - c).min(S::LANES);
                // SAFETY: the piece has these rows, the block these channels, and this task alone writes them.
                unsafe {
                    if lanes == S::LANES {
                        tile::<T, S, K, SILU, true>(s, job, piece, &source, rows.clone(), c, lanes, y);
                    } else {
                        tile::<T, S, K, SILU, false>(s, job, piece, &source, rows.clone(), c, lanes, y);
                    }
                }
                c += S::LANES;
            }
        }
    }
}

/// Some rows of a piece, `lanes` channels from `c` of the block on.
///
/// # Safety
/// The piece has the rows, the block the channels, and nothing else writes them.
#[inline(always)]
unsafe fn tile<T: Float, S: Simd<T>, const K: usize, const SILU: bool, const FULL: bool>(
    s: S,
    job: &Job<'_, T>,
    piece: &Piece,
    source: &Source<'_, T>,
    rows: Range<usize>,
    c: usize,
    lanes: usize,
    y: &Disjoint<'_, T>,
) {
    let Dims { taps, width, .. } = job.dims;
    let d = job.channels.start + c;
    let weight = job.by_tap.as_ptr().wrapping_add(d);
    let zero = s.splat(T::ZERO);
    let bias = match job.inputs.bias {
        // SAFETY: the bias has all channels.
        Some(bias) => unsafe { load::<T, S, FULL>(s, bias.as_ptr().add(d), lanes) },
        None => zero,
    };
    let (mut held, mut seen) = ([zero; K], [zero; K]);
    for k in 0..K {
        // SAFETY: the filters have all channels; the rows before the tile are those of the piece or of the state.
        unsafe {
            held[k] = load::<T, S, FULL>(s, weight.add(k * width), lanes);
            // The last is read in the loop.
            if k + 1 < K {
                seen[k] = load::<T, S, FULL>(s, source.row(rows.start + k).add(c), lanes);
            }
        }
    }
    for t in rows {
        let mut sum = bias;
        if K == 0 {
            for k in 0..taps {
                // SAFETY: as above.
                unsafe {
                    let x = load::<T, S, FULL>(s, source.row(t + k).add(c), lanes);
                    sum = s.mul_add(load::<T, S, FULL>(s, weight.add(k * width), lanes), x, sum);
                }
            }
        } else {
            // SAFETY: as above.
            seen[K - 1] =
                unsafe { load::<T, S, FULL>(s, source.x.wrapping_add(t * source.stride + c), lanes) };
            for k in 0..K {
                sum = s.mul_add(held[k], seen[k], sum);
            }
            for k in 1..K {
                seen[k - 1] = seen[k];
            }
        }
        let at = job.dims.at(piece.sequence.row, d, piece.tokens.start + t);
        // SAFETY: as the caller vouches.
        unsafe {
            let y = y.slice(at..at + lanes);
            store::<T, S, FULL>(s, y.as_mut_ptr(), lanes, activate::<T, S, SILU>(s, sum));
        }
    }
}

/// Inputs and gradients of sums of one vector of channels over a piece.
struct Strip<V> {
    /// From `K - 1` rows before the piece to the last row whose sum reaches back into it.
    x: Vec<V>,
    /// The same rows; zero before the piece and after the sequence.
    dp: Vec<V>,
    weight: Vec<V>,
}

#[inline(always)]
pub(super) fn backward<T: Float, S: Simd<T>, const K: usize, const SILU: bool>(s: S, task: &Backward<'_, T>) {
    let job = &task.job;
    let width = job.channels.len();
    let longest = job.pieces.iter().map(|piece| piece.tokens.len()).max().unwrap_or(0);
    let size = longest + 2 * job.dims.before();
    let zero = s.splat(T::ZERO);
    let mut strip = Strip { x: vec![zero; size], dp: vec![zero; size], weight: vec![zero; job.dims.taps] };
    let mut prior = vec![T::ZERO; job.dims.before() * width];
    for piece in job.pieces {
        let source = source(job, piece, &mut prior);
        let mut c = 0;
        while c < width {
            let lanes = (width - c).min(S::LANES);
            // SAFETY: the block has these channels, and this task alone has their gradients over the piece.
            unsafe {
                if lanes == S::LANES {
                    backward_strip::<T, S, K, SILU, true>(s, task, piece, &source, c, lanes, &mut strip);
                } else {
                    backward_strip::<T, S, K, SILU, false>(s, task, piece, &source, c, lanes, &mut strip);
                }
            }
            c += S::LANES;
        }
    }
}

/// `lanes` channels from `c` of the block on, over a piece.
///
/// # Safety
/// The block has the channels, and nothing else has their gradients over the piece.
#[inline(always)]
unsafe fn backward_strip<T: Float, S: Simd<T>, const K: usize, const SILU: bool, const FULL: bool>(
    s: S,
    task: &Backward<'_, T>,
    piece: &Piece,
    source: &Source<'_, T>,
    c: usize,
    lanes: usize,
    strip: &mut Strip<S::V>,
) {
    let job = &task.job;
    let (Dims { taps, width, .. }, before) = (job.dims, job.dims.before());
    let (n, d) = (piece.tokens.len(), job.channels.start + c);
    let after = before.min(piece.sequence.end - piece.tokens.end);
    let zero = s.splat(T::ZERO);
    for k in 0..taps {
        // SAFETY: the filters have all channels.
        strip.weight[k] = unsafe { load::<T, S, FULL>(s, job.by_tap.as_ptr().add(k * width + d), lanes) };
    }
    let bias = match job.inputs.bias {
        // SAFETY: the bias has all channels.
        Some(bias) => unsafe { load::<T, S, FULL>(s, bias.as_ptr().add(d), lanes) },
        None => zero,
    };
    for i in 0..before {
        // SAFETY: the rows before the piece are the sequence's or the state's.
        strip.x[i] = unsafe { load::<T, S, FULL>(s, source.row(i).add(c), lanes) };
        strip.dp[i] = zero;
    }
    let at = job.dims.at(piece.sequence.row, d, piece.tokens.start);
    let (x, grad) = (source.x.wrapping_add(c), task.grad.as_ptr().wrapping_add(at));
    let Strip { x: xs, dp, weight } = strip;
    for t in 0..n + after {
        // SAFETY: the sequence has these rows.
        let g = unsafe {
            xs[before + t] = load::<T, S, FULL>(s, x.add(t * source.stride), lanes);
            load::<T, S, FULL>(s, grad.add(t * width), lanes)
        };
        dp[before + t] = if SILU {
            descend::<T, S, SILU>(s, g, correlate::<T, S, K, false>(s, weight, &xs[t..t + taps], bias))
        } else {
            g
        };
    }
    for t in n + after..n + before {
        dp[before + t] = zero;
    }
    for t in 0..n {
        let sum = correlate::<T, S, K, true>(s, weight, &dp[before + t..before + t + taps], zero);
        // SAFETY: this task alone writes these channels of the piece.
        unsafe {
            let dx = task.dx.slice(at + t * width..at + t * width + lanes);
            store::<T, S, FULL>(s, dx.as_mut_ptr(), lanes, sum);
        }
    }
    if let (true, Some(dinitial), Some(state)) = (piece.is_first(), task.dinitial, piece.sequence.initial) {
        for j in 0..before {
            let mut row = [T::ZERO; MAX_LANES];
            s.store(&mut row, correlate::<T, S, K, true>(s, weight, &dp[j..j + taps], zero));
            for (lane, &value) in row.iter().enumerate().take(lanes) {
                let at = (state * width + d + lane) * before + j;
                // SAFETY: this task alone has the first piece of the sequence over its channels.
                let element = unsafe { dinitial.slice(at..at + 1) };
                element[0] = value;
            }
        }
    }
    // SAFETY: as the caller vouches.
    unsafe { sums::<T, S, K, FULL>(s, task, d, lanes, xs, &dp[before..before + n]) };
}

/// `start + sum_k w_k x_k`, or with the taps in reverse order.
#[inline(always)]
fn correlate<T: Float, S: Simd<T>, const K: usize, const REVERSE: bool>(
    s: S,
    weight: &[S::V],
    x: &[S::V],
    start: S::V,
) -> S::V {
    let mut sum = start;
    let taps = if K == 0 { weight.len() } else { K };
    let (weight, x) = (&weight[..taps], &x[..taps]);
    for k in 0..taps {
        sum = s.mul_add(weight[if REVERSE { taps - 1 - k } else { k }], x[k], sum);
    }
    sum
}

/// Adds `sum_t dp_t x_{t+k}` to the sums of each tap, and `sum_t dp_t` to those of the bias.
///
/// # Safety
/// Nothing else has the sums of these channels in use.
#[inline(always)]
unsafe fn sums<T: Float, S: Simd<T>, const K: usize, const FULL: bool>(
    s: S,
    task: &Backward<'_, T>,
    d: usize,
    lanes: usize,
    x: &[S::V],
    dp: &[S::V],
) {
    let Dims { taps, width, .. } = task.job.dims;
    let zero = s.splat(T::ZERO);
    let (mut held, mut bias) = ([zero; K], zero);
    for (t, &g) in dp.iter().enumerate() {
        bias = s.add(bias, g);
        for k in 0..K {
            held[k] = s.mul_add(g, x[t + k], held[k]);
        }
    }
    for k in 0..=taps {
        let mut sum = if k == taps { bias } else { zero };
        if k < taps && K == 0 {
            for (t, &g) in dp.iter().enumerate() {
                sum = s.mul_add(g, x[t + k], sum);
            }
        } else if k < taps {
            sum = held[k];
        }
        let at = task.sums_at + k * width + d;
        // SAFETY: as the caller vouches.
        unsafe {
            let total = task.sums.slice(at..at + lanes).as_mut_ptr();
            store::<T, S, FULL>(s, total, lanes, s.add(load::<T, S, FULL>(s, total, lanes), sum));
        }
    }
}
