//! The recurrence in reverse over a tile: states computed once more, then gradients from the last token to the first.
//!
//! With `g_t = dL/dh_t`, `g_t = C_t dy_t + a_(t+1) g_(t+1)` and `a_t = exp(delta_t A)`: `dC_t = sum_d dy_t h_t`,
//! `dB_t = sum_d g_t delta_t u_t`, and through `w_t = g_t a_t h_(t-1)`, `dA = sum_t delta_t w_t` and
//! `d delta_t = u_t sum_n g_t B_t + sum_n A w_t`. Four states at a time, so that what is kept of a tile (decay and
//! state of every token) stays near the first-level cache.

use super::recurrence::{Block, unroll};
use sensorium_core::math::exp2;
use sensorium_core::{Float, Simd};

/// States that are taken through a tile together.
pub(super) const TOGETHER: usize = 4;

/// Decays and states before each token, `[token][state][lane]` for states that are taken together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trace<T> {
    pub(super) decay: *mut T,
    pub(super) before: *mut T,
}

impl<T: Float> Trace<T> {
    /// The part that begins so many elements later.
    pub(super) fn at(self, offset: usize) -> Self {
        Self { decay: self.decay.wrapping_add(offset), before: self.before.wrapping_add(offset) }
    }
}

/// Takes the `N` states from `first` on through a tile, keeps the trace, and adds to the block's results.
///
/// # Safety
/// As for [`scan`](super::recurrence::scan()); the trace has `tokens * N * LANES` elements.
#[inline(always)]
pub(super) unsafe fn replay<T: Float, S: Simd<T>, const N: usize, const SHARED: bool>(
    s: S,
    block: &Block<T>,
    trace: Trace<T>,
    first: usize,
    tokens: usize,
) {
    let &Block { a, h, delta, input, b, c, y, ahead } = block;
    // SAFETY: as the caller vouches.
    unsafe {
        let (a, h) = (a.add(first * S::LANES), h.add(first * S::LANES));
        let mut state = [s.splat(T::ZERO); N];
        for n in 0..N {
            state[n] = s.load_ptr(h.add(n * S::LANES));
        }
        for t in 0..tokens {
            let at = t * S::LANES;
            let (step, x) = (s.load_ptr(delta.add(at)), s.load_ptr(input.add(at)));
            if first == 0 {
                ahead[0].fetch(t);
                ahead[1].fetch(t);
                ahead[2].fetch(t);
                ahead[3].fetch(t);
            }
            let mut sum = s.load_ptr(y.add(at));
            unroll!(n < N, {
                let decay = exp2(s, s.mul(step, s.load_ptr(a.add(n * S::LANES))));
                s.store_ptr(trace.decay.add(at * N + n * S::LANES), decay);
                s.store_ptr(trace.before.add(at * N + n * S::LANES), state[n]);
                let new = s.mul(x, b.at::<S, SHARED>(s, t, first + n));
                state[n] = s.mul_add(decay, state[n], new);
                sum = s.mul_add(state[n], c.at::<S, SHARED>(s, t, first + n), sum);
            });
            s.store_ptr(y.add(at), sum);
        }
        for n in 0..N {
            s.store_ptr(h.add(n * S::LANES), state[n]);
        }
    }
}

/// A sum over channels, or over tokens: vectors by token and state.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sum<T> {
    pub(super) data: *mut T,
    /// Distance between tokens; 0 where the sum is over tokens.
    pub(super) token: usize,
}

/// Gradients of a block of channels over a tile, beside the [`Block`] that was replayed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reverse<T> {
    /// `A`.
    pub(super) a: *const T,
    /// `dL/dy` before the gate.
    pub(super) grad: *const T,
    /// `a_(t+1) g_(t+1)` of the token after the tile, then of its first token: `[state][lane]`.
    pub(super) carry: *mut T,
    /// `[state][lane]`, added to.
    pub(super) grad_a: *mut T,
    /// Added to.
    pub(super) grad_b: Sum<T>,
    /// Added to.
    pub(super) grad_c: Sum<T>,
    /// `sum_n g B`, added to.
    pub(super) grad_input: *mut T,
    /// `sum_n A w`, added to.
    pub(super) grad_delta: *mut T,
}

/// Gradients by the `N` states from `first` on.
///
/// # Safety
/// The block was replayed over the tile, `trace` is of these states; gradients have the sizes that they say.
#[inline(always)]
pub(super) unsafe fn reverse<T: Float, S: Simd<T>, const N: usize, const SHARED: bool>(
    s: S,
    block: &Block<T>,
    gradients: &Reverse<T>,
    trace: Trace<T>,
    first: usize,
    tokens: usize,
) {
    let &Block { h, delta, input, b, c, .. } = block;
    let &Reverse { a, grad, carry, grad_a, grad_b, grad_c, grad_input, grad_delta } = gradients;
    // SAFETY: as the caller vouches.
    unsafe {
        let from = first * S::LANES;
        let zero = s.splat(T::ZERO);
        let (mut after, mut state, mut of_a) = ([zero; N], [zero; N], [zero; N]);
        for n in 0..N {
            after[n] = s.load_ptr(carry.add(from + n * S::LANES));
            state[n] = s.load_ptr(h.add(from + n * S::LANES));
            of_a[n] = s.load_ptr(grad_a.add(from + n * S::LANES));
        }
        for t in (0..tokens).rev() {
            let at = t * S::LANES;
            let (step, x) = (s.load_ptr(delta.add(at)), s.load_ptr(input.add(at)));
            let dy = s.load_ptr(grad.add(at));
            let (mut of_input, mut of_delta) =
                (s.load_ptr(grad_input.add(at)), s.load_ptr(grad_delta.add(at)));
            unroll!(n < N, {
                let (of_b, of_c) = (
                    grad_b.data.add(t * grad_b.token + from + n * S::LANES),
                    grad_c.data.add(t * grad_c.token + from + n * S::LANES),
                );
                let decay = s.load_ptr(trace.decay.add(at * N + n * S::LANES));
                let before = s.load_ptr(trace.before.add(at * N + n * S::LANES));
                let g = s.mul_add(c.at::<S, SHARED>(s, t, first + n), dy, after[n]);
                s.store_ptr(of_c, s.mul_add(dy, state[n], s.load_ptr(of_c)));
                s.store_ptr(of_b, s.mul_add(g, x, s.load_ptr(of_b)));
                of_input = s.mul_add(g, b.at::<S, SHARED>(s, t, first + n), of_input);
                after[n] = s.mul(g, decay);
                let w = s.mul(after[n], before);
                of_delta = s.mul_add(w, s.load_ptr(a.add(from + n * S::LANES)), of_delta);
                of_a[n] = s.mul_add(w, step, of_a[n]);
                state[n] = before;
            });
            s.store_ptr(grad_input.add(at), of_input);
            s.store_ptr(grad_delta.add(at), of_delta);
        }
        for n in 0..N {
            s.store_ptr(carry.add(from + n * S::LANES), after[n]);
            s.store_ptr(grad_a.add(from + n * S::LANES), of_a[n]);
        }
    }
}
