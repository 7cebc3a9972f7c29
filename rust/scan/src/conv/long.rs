//! Filters of more than four taps over tokens as rows of channels: a vector of channels at a time.

use super::across::Source;
use super::plan::Piece;
use super::{Backward, Dims, Job, activate, descend};
use sensorium_core::isa::part::{load, store};
use sensorium_core::threads::Disjoint;
use sensorium_core::{Float, MAX_LANES, Simd};

/// What one vector of channels holds of a piece.
struct Strip<V> {
    /// Filters and bias.
    taps: Vec<V>,
    bias: V,
    /// Inputs from `K - 1` rows before the piece to the last row whose sum reaches back into it.
    x: Vec<V>,
    /// Gradients of the sums of the same rows; zero before the piece and after the sequence.
    dp: Vec<V>,
}

impl<V: Copy> Strip<V> {
    #[inline(always)]
    fn new<T: Float, S: Simd<T, V = V>>(s: S, job: &Job<'_, T>) -> Self {
        let longest = job.pieces.iter().map(|piece| piece.tokens.len()).max().unwrap_or(0);
        let (size, zero) = (longest + 2 * job.dims.before(), s.splat(T::ZERO));
        Self { taps: vec![zero; job.dims.taps], bias: zero, x: vec![zero; size], dp: vec![zero; size] }
    }

    /// Reads filters, and the inputs of `rows` rows and those before them.
    ///
    /// # Safety
    /// The block has `n` channels from `c` on, or a vector of them where `FULL`.
    #[inline(always)]
    unsafe fn read<T: Float, S: Simd<T, V = V>, const FULL: bool>(
        &mut self,
        s: S,
        job: &Job<'_, T>,
        source: &Source<'_, T>,
        rows: usize,
        (c, n): (usize, usize),
    ) {
        let (d, Dims { taps, width, .. }) = (job.channels.start + c, job.dims);
        // SAFETY: as the caller vouches.
        unsafe {
            for k in 0..taps {
                self.taps[k] = load::<T, S, FULL>(s, job.by_tap.as_ptr().add(k * width + d), n);
            }
            self.bias = load::<T, S, FULL>(s, job.bias.as_ptr().add(d), n);
            for i in 0..rows + taps - 1 {
                self.x[i] = load::<T, S, FULL>(s, source.row(i).add(c), n);
            }
        }
    }
}

/// `start + sum_k taps_k x_k`, or with the taps in reverse order.
#[inline(always)]
fn correlate<T: Float, S: Simd<T>, const REVERSE: bool>(
    s: S,
    taps: &[S::V],
    x: &[S::V],
    start: S::V,
) -> S::V {
    let mut sum = start;
    for k in 0..taps.len() {
        sum = s.mul_add(taps[if REVERSE { taps.len() - 1 - k } else { k }], x[k], sum);
    }
    sum
}

#[inline(always)]
pub(super) fn forward<T: Float, S: Simd<T>, const SILU: bool>(s: S, job: &Job<'_, T>, y: &Disjoint<'_, T>) {
    let width = job.channels.len();
    let mut prior = vec![T::ZERO; job.dims.before() * width];
    let mut strip = Strip::new(s, job);
    for piece in job.pieces {
        let source = Source::new(job, piece, &mut prior);
        for c in (0..width).step_by(S::LANES) {
            let n = (width - c).min(S::LANES);
            // SAFETY: the block has these channels, and this task alone writes them.
            unsafe {
                if n == S::LANES {
                    forward_strip::<T, S, SILU, true>(s, job, piece, &source, (c, n), &mut strip, y);
                } else {
                    forward_strip::<T, S, SILU, false>(s, job, piece, &source, (c, n), &mut strip, y);
                }
            }
        }
    }
}

/// # Safety
/// The block has `n` channels from `c` on, and nothing else writes them.
#[inline(always)]
unsafe fn forward_strip<T: Float, S: Simd<T>, const SILU: bool, const FULL: bool>(
    s: S,
    job: &Job<'_, T>,
    piece: &Piece,
    source: &Source<'_, T>,
    (c, n): (usize, usize),
    strip: &mut Strip<S::V>,
    y: &Disjoint<'_, T>,
) {
    // SAFETY: as the caller vouches.
    unsafe { strip.read::<T, S, FULL>(s, job, source, piece.tokens.len(), (c, n)) };
    for (t, token) in piece.tokens.clone().enumerate() {
        let sum = correlate::<T, S, false>(s, &strip.taps, &strip.x[t..], strip.bias);
        let at = job.dims.at(piece.sequence.row, job.channels.start + c, token);
        // SAFETY: as the caller vouches.
        unsafe { store::<T, S, FULL>(s, y.start_of(at..at + n), n, activate::<T, S, SILU>(s, sum)) };
    }
}

#[inline(always)]
pub(super) fn backward<T: Float, S: Simd<T>, const SILU: bool>(s: S, task: &Backward<'_, T>) {
    let job = &task.job;
    let width = job.channels.len();
    let mut prior = vec![T::ZERO; job.dims.before() * width];
    let mut strip = Strip::new(s, job);
    for piece in job.pieces {
        let source = Source::new(job, piece, &mut prior);
        for c in (0..width).step_by(S::LANES) {
            let n = (width - c).min(S::LANES);
            // SAFETY: the block has these channels, and this task alone has their gradients over the piece.
            unsafe {
                if n == S::LANES {
                    backward_strip::<T, S, SILU, true>(s, task, piece, &source, (c, n), &mut strip);
                } else {
                    backward_strip::<T, S, SILU, false>(s, task, piece, &source, (c, n), &mut strip);
                }
            }
        }
    }
}

/// # Safety
/// The block has `n` channels from `c` on, and nothing else has their gradients over the piece.
#[inline(always)]
unsafe fn backward_strip<T: Float, S: Simd<T>, const SILU: bool, const FULL: bool>(
    s: S,
    task: &Backward<'_, T>,
    piece: &Piece,
    source: &Source<'_, T>,
    (c, n): (usize, usize),
    strip: &mut Strip<S::V>,
) {
    let job = &task.job;
    let (Dims { width, .. }, before) = (job.dims, job.dims.before());
    let (rows, d, zero) = (piece.tokens.len(), job.channels.start + c, s.splat(T::ZERO));
    let after = before.min(piece.sequence.end - piece.tokens.end);
    // SAFETY: as the caller vouches.
    unsafe { strip.read::<T, S, FULL>(s, job, source, rows + after, (c, n)) };
    let Strip { taps, bias, x, dp } = strip;
    let at = job.dims.at(piece.sequence.row, d, piece.tokens.start);
    dp[..before].fill(zero);
    for t in 0..rows + after {
        // SAFETY: the gradient has these rows.
        let grad = unsafe { load::<T, S, FULL>(s, task.grad.as_ptr().add(at + t * width), n) };
        let sum = if SILU { correlate::<T, S, false>(s, taps, &x[t..], *bias) } else { zero };
        dp[before + t] = descend::<T, S, SILU>(s, grad, sum);
    }
    dp[before + rows + after..].fill(zero);
    for t in 0..rows {
        let dx = correlate::<T, S, true>(s, taps, &dp[before + t..], zero);
        let at = at + t * width;
        // SAFETY: as the caller vouches.
        unsafe { store::<T, S, FULL>(s, task.dx.start_of(at..at + n), n, dx) };
    }
    if let (true, Some(dinitial), Some(state)) = (piece.is_first(), task.dinitial, piece.sequence.initial) {
        for j in 0..before {
            let mut row = [T::ZERO; MAX_LANES];
            s.store(&mut row, correlate::<T, S, true>(s, taps, &dp[j..], zero));
            for (lane, &value) in row.iter().enumerate().take(n) {
                let at = (state * width + d + lane) * before + j;
                // SAFETY: as the caller vouches.
                unsafe { dinitial.start_of(at..at + 1).write(value) };
            }
        }
    }
    let dp = &dp[before..before + rows];
    for k in 0..=taps.len() {
        let mut sum = zero;
        for (t, &g) in dp.iter().enumerate() {
            // The last are the bias's.
            sum = if k == taps.len() { s.add(sum, g) } else { s.mul_add(g, x[t + k], sum) };
        }
        let at = task.sums_at + k * width + d;
        // SAFETY: as the caller vouches.
        unsafe {
            let total = task.sums.start_of(at..at + n);
            store::<T, S, FULL>(s, total, n, s.add(load::<T, S, FULL>(s, total, n), sum));
        }
    }
}
