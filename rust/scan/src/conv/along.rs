//! Channels as rows of tokens, `(B, D, L)`: vectors run along time, and the taps are loads at neighbouring addresses.

use super::plan::Piece;
use super::{Backward, Dims, Job, activate, add_at, descend, earlier};
use sensorium_core::threads::Disjoint;
use sensorium_core::{Float, Simd};
use std::slice::from_raw_parts;

/// A channel's filter: its taps in registers where their number is a constant.
struct Filter<'a, T: Float, S: Simd<T>, const K: usize> {
    taps: &'a [T],
    held: [S::V; K],
    bias: S::V,
}

impl<'a, T: Float, S: Simd<T>, const K: usize> Filter<'a, T, S, K> {
    #[inline(always)]
    fn new(s: S, taps: &'a [T], bias: T) -> Self {
        let mut held = [s.splat(T::ZERO); K];
        for k in 0..K {
            held[k] = s.splat(taps[k]);
        }
        Self { taps, held, bias: s.splat(bias) }
    }

    /// `bias + sum_k w_k x[k..]`.
    ///
    /// # Safety
    /// `x` is readable for `taps - 1 + LANES` elements.
    #[inline(always)]
    unsafe fn at(&self, s: S, x: *const T) -> S::V {
        let mut sum = self.bias;
        if K == 0 {
            for k in 0..self.taps.len() {
                // SAFETY: as the caller vouches.
                sum = s.mul_add(s.splat(self.taps[k]), unsafe { s.load_ptr(x.add(k)) }, sum);
            }
        } else {
            for k in 0..K {
                // SAFETY: as the caller vouches.
                sum = s.mul_add(self.held[k], unsafe { s.load_ptr(x.add(k)) }, sum);
            }
        }
        sum
    }

    /// The same of the first `n` lanes; nothing beyond them is read.
    ///
    /// # Safety
    /// `x` is readable for `taps - 1 + n` elements.
    #[inline(always)]
    unsafe fn head(&self, s: S, x: *const T, n: usize) -> S::V {
        let mut sum = self.bias;
        for k in 0..self.taps.len() {
            // SAFETY: as the caller vouches.
            let x = s.load_head(unsafe { from_raw_parts(x.add(k), n) }, T::ZERO);
            sum = s.mul_add(s.splat(self.taps[k]), x, sum);
        }
        sum
    }
}

/// The inputs from `K - 1` before the piece on, as many as fit `out`.
///
/// # Safety
/// `x` is the first token of the row, which holds the piece and as many tokens after it as are asked for.
#[inline(always)]
unsafe fn gather<T: Float>(job: &Job<'_, T>, piece: &Piece, d: usize, x: *const T, out: &mut [T]) {
    let Dims { width, .. } = job.dims;
    let before = job.dims.before();
    let start = piece.tokens.start;
    if piece.is_first() {
        for (j, out) in out[..before].iter_mut().enumerate() {
            *out = earlier(&job.inputs, piece.sequence.initial, (d, width), (j, before));
        }
        // SAFETY: as the caller vouches.
        let x = unsafe { from_raw_parts(x.add(start), out.len() - before) };
        out[before..].copy_from_slice(x);
    } else {
        // SAFETY: as the caller vouches; at least K - 1 tokens precede a piece that is not the first.
        let x = unsafe { from_raw_parts(x.add(start - before), out.len()) };
        out.copy_from_slice(x);
    }
}

#[inline(always)]
pub(super) fn forward<T: Float, S: Simd<T>, const K: usize, const SILU: bool>(
    s: S,
    job: &Job<'_, T>,
    y: &Disjoint<'_, T>,
) {
    let (taps, before) = (job.dims.taps, job.dims.before());
    let mut head = vec![T::ZERO; before + before.next_multiple_of(S::LANES)];
    for piece in job.pieces {
        let (row, start, n) = (piece.sequence.row, piece.tokens.start, piece.tokens.len());
        for d in job.channels.clone() {
            let bias = job.inputs.bias.map_or(T::ZERO, |bias| bias[d]);
            let filter = Filter::<T, S, K>::new(s, &job.inputs.weight[d * taps..(d + 1) * taps], bias);
            let x = job.inputs.x.at(row, d);
            let at = job.dims.at(row, d, start);
            // SAFETY: this task alone writes these tokens of its channels.
            let y = unsafe { y.slice(at..at + n) };
            let mut t = 0;
            if piece.is_first() {
                let m = n.min(before.next_multiple_of(S::LANES));
                // SAFETY: the row holds the piece.
                unsafe { gather(job, piece, d, x, &mut head[..before + m]) };
                while t < m {
                    // SAFETY: the buffer holds K - 1 and m elements.
                    let sum = unsafe { filter.head(s, head.as_ptr().add(t), (m - t).min(S::LANES)) };
                    s.store_head(&mut y[t..m], activate::<T, S, SILU>(s, sum));
                    t += S::LANES;
                }
                t = m;
            }
            // Where t < n, K - 1 tokens of the sequence precede it.
            let x = x.wrapping_add(start).wrapping_sub(before);
            while t + S::LANES <= n {
                // SAFETY: the row holds these tokens and those before them.
                let sum = unsafe { filter.at(s, x.add(t)) };
                s.store(&mut y[t..], activate::<T, S, SILU>(s, sum));
                t += S::LANES;
            }
            if t < n {
                // SAFETY: as above.
                let sum = unsafe { filter.head(s, x.add(t), n - t) };
                s.store_head(&mut y[t..], activate::<T, S, SILU>(s, sum));
            }
        }
    }
}

#[inline(always)]
pub(super) fn backward<T: Float, S: Simd<T>, const K: usize, const SILU: bool>(s: S, task: &Backward<'_, T>) {
    let job = &task.job;
    let (Dims { taps, width, .. }, before) = (job.dims, job.dims.before());
    let longest = job.pieces.iter().map(|piece| piece.tokens.len()).max().unwrap_or(0);
    let size = longest + 2 * before + S::LANES;
    let (mut x_part, mut dp) = (vec![T::ZERO; size], vec![T::ZERO; size]);
    let (mut reversed, mut first) = (vec![T::ZERO; taps], vec![T::ZERO; before]);
    for piece in job.pieces {
        let (row, n) = (piece.sequence.row, piece.tokens.len());
        // Sums right after the piece, whose gradients reach back into it.
        let after = before.min(piece.sequence.end - piece.tokens.end);
        for d in job.channels.clone() {
            let weight = &job.inputs.weight[d * taps..(d + 1) * taps];
            for k in 0..taps {
                reversed[k] = weight[taps - 1 - k];
            }
            let bias = job.inputs.bias.map_or(T::ZERO, |bias| bias[d]);
            let filter = Filter::<T, S, K>::new(s, weight, bias);
            let back = Filter::<T, S, K>::new(s, &reversed, T::ZERO);
            // SAFETY: the row holds the piece and the tokens after it.
            unsafe { gather(job, piece, d, job.inputs.x.at(row, d), &mut x_part[..before + n + after]) };
            let at = job.dims.at(row, d, piece.tokens.start);
            let grad = &task.grad[at..at + n + after];
            // K - 1 zeros before, and what is no sum of the sequence after.
            dp[..before].fill(T::ZERO);
            slopes::<T, S, K, SILU>(s, &filter, &x_part, grad, &mut dp[before..]);
            dp[before + n + after..].fill(T::ZERO);
            // SAFETY: this task alone writes the sums of its group and channels.
            unsafe { sums::<T, S, K>(s, task, d, &x_part[..before + n], &dp[before..before + n]) };
            if let (true, Some(dinitial), Some(state)) =
                (piece.is_first(), task.dinitial, piece.sequence.initial)
            {
                correlate(s, &back, &dp, &mut first);
                let at = (state * width + d) * before;
                // SAFETY: this task alone has the first piece of the sequence over its channels.
                unsafe { dinitial.slice(at..at + before) }.copy_from_slice(&first);
            }
            // SAFETY: this task alone writes these tokens of its channels.
            let dx = unsafe { task.dx.slice(at..at + n) };
            correlate(s, &back, &dp[before..], dx);
        }
    }
}

/// `dp_t = grad_t act'(p_t)`, with `p` computed anew.
#[inline(always)]
fn slopes<T: Float, S: Simd<T>, const K: usize, const SILU: bool>(
    s: S,
    filter: &Filter<'_, T, S, K>,
    x: &[T],
    grad: &[T],
    dp: &mut [T],
) {
    if !SILU {
        dp[..grad.len()].copy_from_slice(grad);
        return;
    }
    let mut t = 0;
    while t < grad.len() {
        let n = (grad.len() - t).min(S::LANES);
        if n == S::LANES {
            // SAFETY: `x` holds K - 1 elements more than `grad`.
            let sum = unsafe { filter.at(s, x.as_ptr().add(t)) };
            s.store(&mut dp[t..], descend::<T, S, SILU>(s, s.load(&grad[t..]), sum));
        } else {
            // SAFETY: as above.
            let sum = unsafe { filter.head(s, x.as_ptr().add(t), n) };
            let dp = &mut dp[t..t + n];
            s.store_head(dp, descend::<T, S, SILU>(s, s.load_head(&grad[t..], T::ZERO), sum));
        }
        t += S::LANES;
    }
}

/// `out_t = sum_k w_{K-1-k} dp_{t+k}`; `dp` has room for whole vectors.
#[inline(always)]
fn correlate<T: Float, S: Simd<T>, const K: usize>(
    s: S,
    back: &Filter<'_, T, S, K>,
    dp: &[T],
    out: &mut [T],
) {
    let mut t = 0;
    while t < out.len() {
        assert!(t + back.taps.len() - 1 + S::LANES <= dp.len(), "room for whole vectors");
        // SAFETY: as just seen.
        let sum = unsafe { back.at(s, dp.as_ptr().add(t)) };
        if t + S::LANES <= out.len() {
            s.store(&mut out[t..], sum);
        } else {
            s.store_head(&mut out[t..], sum);
        }
        t += S::LANES;
    }
}

/// Adds `sum_t dp_t x_{t+k}` to the sum of each tap, and `sum_t dp_t` to that of the bias.
///
/// # Safety
/// Nothing else has the sums of channel `d` in use.
#[inline(always)]
unsafe fn sums<T: Float, S: Simd<T>, const K: usize>(
    s: S,
    task: &Backward<'_, T>,
    d: usize,
    x: &[T],
    dp: &[T],
) {
    let Dims { taps, width, .. } = task.job.dims;
    let zero = s.splat(T::ZERO);
    let whole = dp.len() - dp.len() % S::LANES;
    let (mut held, mut bias) = ([zero; K], zero);
    for t in (0..whole).step_by(S::LANES) {
        let g = s.load(&dp[t..]);
        bias = s.add(bias, g);
        for k in 0..K {
            held[k] = s.mul_add(g, s.load(&x[t + k..]), held[k]);
        }
    }
    let tail = s.load_head(&dp[whole..], T::ZERO);
    bias = s.add(bias, tail);
    for k in 0..taps {
        let mut sum = zero;
        if K == 0 {
            for t in (0..whole).step_by(S::LANES) {
                sum = s.mul_add(s.load(&dp[t..]), s.load(&x[t + k..]), sum);
            }
        } else {
            sum = held[k];
        }
        sum = s.mul_add(tail, s.load_head(&x[whole + k..dp.len() + k], T::ZERO), sum);
        let at = task.sums_at + k * width + d;
        // SAFETY: as the caller vouches.
        unsafe { add_at(task.sums, at, s.reduce_sum(sum)) };
    }
    let at = task.sums_at + taps * width + d;
    // SAFETY: as the caller vouches.
    unsafe { add_at(task.sums, at, s.reduce_sum(bias)) };
}
