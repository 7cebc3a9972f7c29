//! Step sizes, and the decays between the tokens of a chunk.
//!
//! With `a_t = dt_t A`, token `j` reaches token `i >= j` multiplied by `exp(a_{j+1} + ... + a_i)`. The sum is the
//! difference of two running sums `s_i - s_j`, and never a ratio of exponentials, which would be `0 / 0` where both
//! underflow. In `f32` that difference would cancel: after a chunk of 64 tokens with `a = -10` each, `s` is -640 with
//! an error of `640 * 2^-24 = 4e-5` a step, which is the relative error of a decay of `exp(-0.001)` between two tokens
//! further on. So the running sum is kept as two numbers, `high + low`, summed in double precision with what each
//! addition loses (Knuth's two-sum); `(high_i - high_j) + (low_i - low_j)` is then off by three roundings of itself.
//! With `|a| <= 4096`, where an exponential has long been 0 or infinite, and 256 tokens a chunk, `low` ends at
//! `2^20 2^-48`, four millionths of a millionth: under a sixteenth of the rounding unit of an `f32` near one.
//! The bound is thus one of the decay itself: relative error at most `(2 + 3 |s_i - s_j|) eps`, whatever the chunk.

use super::rows::padded;
use super::scratch::Scratch;
use sensorium_core::math::{exp, exp_nonpositive, sigmoid, softplus};
use sensorium_core::{Float, Simd};

/// Magnitude of `dt A` beyond which nothing changes: `exp(-4096)` is 0 in every float.
const MOST: f64 = 4096.0;

/// How step sizes are made from `dt`.
#[derive(Debug, Clone, Copy)]
pub struct Steps<'a, T> {
    /// `(B, L, H)`.
    pub dt: &'a [T],
    /// `(H,)`, added to `dt`.
    pub bias: Option<&'a [T]>,
    /// Whether `softplus` is taken of the sum.
    pub softplus: bool,
    /// What the step size is held to.
    pub limit: (T, T),
}

impl<T: Float> Steps<'_, T> {
    /// Writes the step sizes of `len` tokens from `first` of head `head`, and before limits and after the bias where
    /// `raw` is not null; zeros up to a whole number of vectors.
    ///
    /// # Safety
    /// Those tokens exist, and the buffers have room for [`padded`] ones.
    #[inline(always)]
    pub(super) unsafe fn read<S: Simd<T>>(
        &self,
        s: S,
        (first, heads, head): (usize, usize, usize),
        len: usize,
        raw: *mut T,
        dt: *mut T,
    ) {
        let bias = match self.bias {
            Some(bias) => bias[head],
            None => T::ZERO,
        };
        // SAFETY: as the caller vouches.
        unsafe {
            for t in 0..len {
                *raw.add(t) = *self.dt.as_ptr().add((first + t) * heads + head);
            }
            for t in len..padded(len) {
                *raw.add(t) = T::ZERO;
            }
            for t in (0..len).step_by(S::LANES) {
                let mut v = s.load_ptr(raw.add(t));
                if self.bias.is_some() {
                    v = s.add(v, s.splat(bias));
                    s.store_ptr(raw.add(t), v);
                }
                if self.softplus {
                    v = softplus(s, v);
                }
                // Both return the step size where it is NaN.
                v = s.max(s.splat(self.limit.0), v);
                v = s.min(s.splat(self.limit.1), v);
                s.store_ptr(dt.add(t), v);
            }
            for t in len..padded(len) {
                *dt.add(t) = T::ZERO;
            }
        }
    }

    /// The derivative of a vector of step sizes by `dt`, given `raw`; 0 where a limit holds it.
    #[inline(always)]
    pub(super) fn slope<S: Simd<T>>(&self, s: S, raw: S::V) -> S::V {
        let (value, slope) =
            if self.softplus { (softplus(s, raw), sigmoid(s, raw)) } else { (raw, s.splat(T::ONE)) };
        let zero = s.splat(T::ZERO);
        let slope = s.select(s.lt(value, s.splat(self.limit.0)), zero, slope);
        s.select(s.lt(s.splat(self.limit.1), value), zero, slope)
    }
}

/// Decays of one chunk of one head, a number a token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Decays<T> {
    /// `dt` with its bias.
    pub(super) raw: *mut T,
    /// Step sizes.
    pub(super) dt: *mut T,
    /// Running sums of `dt A`, in two parts.
    pub(super) high: *mut T,
    pub(super) low: *mut T,
    /// From the chunk's begin to the token: `exp(s_i)`.
    pub(super) before: *mut T,
    /// From the token to the chunk's end: `exp(s_last - s_j)`.
    pub(super) after: *mut T,
    /// Over the whole chunk.
    pub(super) whole: T,
    /// Whether some `dt A` is positive, so that some decay is above one.
    pub(super) grows: bool,
}

impl<T: Float> Decays<T> {
    /// Buffers that are cut from a scratch, each of [`padded`] tokens.
    pub(super) const BUFFERS: usize = 6;

    /// Cut from a scratch that has room for them, for chunks of up to `len` tokens.
    pub(super) fn new(scratch: &mut Scratch, len: usize) -> Self {
        let n = padded(len);
        Self {
            raw: scratch.take(n),
            dt: scratch.take(n),
            high: scratch.take(n),
            low: scratch.take(n),
            before: scratch.take(n),
            after: scratch.take(n),
            whole: T::ONE,
            grows: false,
        }
    }

    /// Fills the buffers for `len` tokens from `first`.
    ///
    /// # Safety
    /// Those tokens exist, and the buffers have room.
    #[inline(always)]
    pub(super) unsafe fn fill<S: Simd<T>>(
        &mut self,
        s: S,
        steps: &Steps<'_, T>,
        place: (usize, usize, usize),
        len: usize,
        a: T,
    ) {
        // SAFETY: as the caller vouches.
        unsafe {
            steps.read(s, place, len, self.raw, self.dt);
            let a = a.to_f64();
            let (mut sum, mut lost) = (0.0_f64, 0.0_f64);
            self.grows = false;
            for t in 0..len {
                let x = (*self.dt.add(t)).to_f64() * a;
                // A NaN fails both comparisons and stays.
                let x = if x < -MOST { -MOST } else { x };
                let x = if x > MOST { MOST } else { x };
                self.grows |= x > 0.0;
                let next = sum + x;
                let part = next - sum;
                lost += (sum - (next - part)) + (x - part);
                sum = next;
                let high = T::from_f64(sum);
                *self.high.add(t) = high;
                *self.low.add(t) = T::from_f64((sum - high.to_f64()) + lost);
            }
            let (high, low) = (*self.high.add(len - 1), *self.low.add(len - 1));
            for t in len..padded(len) {
                *self.high.add(t) = high;
                *self.low.add(t) = low;
            }
            for t in (0..len).step_by(S::LANES) {
                let before = s.add(s.load_ptr(self.high.add(t)), s.load_ptr(self.low.add(t)));
                s.store_ptr(self.before.add(t), decay(s, before, self.grows));
                let after = self.between(s, s.splat(high), s.splat(low), t);
                s.store_ptr(self.after.add(t), after);
            }
            self.whole = *self.before.add(len - 1);
        }
    }

    /// Decays from the vector of tokens at `t` to one whose running sum is given.
    ///
    /// # Safety
    /// The buffers are filled.
    #[inline(always)]
    pub(super) unsafe fn between<S: Simd<T>>(&self, s: S, high: S::V, low: S::V, t: usize) -> S::V {
        // SAFETY: as the caller vouches.
        let (from_high, from_low) = unsafe { (s.load_ptr(self.high.add(t)), s.load_ptr(self.low.add(t))) };
        decay(s, s.add(s.sub(high, from_high), s.sub(low, from_low)), self.grows)
    }

    /// Decays from one token, whose running sum is given, to the vector of tokens at `t`.
    ///
    /// # Safety
    /// The buffers are filled.
    #[inline(always)]
    pub(super) unsafe fn onward<S: Simd<T>>(&self, s: S, high: S::V, low: S::V, t: usize) -> S::V {
        // SAFETY: as the caller vouches.
        let (to_high, to_low) = unsafe { (s.load_ptr(self.high.add(t)), s.load_ptr(self.low.add(t))) };
        decay(s, s.add(s.sub(to_high, high), s.sub(to_low, low)), self.grows)
    }
}

#[inline(always)]
fn decay<T: Float, S: Simd<T>>(s: S, x: S::V, grows: bool) -> S::V {
    if grows { exp(s, x) } else { exp_nonpositive(s, x) }
}
