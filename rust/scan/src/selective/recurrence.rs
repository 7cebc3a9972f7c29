//! The recurrence over a tile: channels in the lanes, states in registers.
//!
//! A step of one state and 16 channels is `delta A`, an exponential, `delta u B`, the state's multiply-add and that of
//! `y`: eleven instructions on the multiply-add port with AVX-512, which bounds the kernel.
//!
//! | attempt | G exp/s a core |
//! |---|---|
//! | `exp2` by bits, argument bounded from below | 4.8 |
//! | the same with `scalef` (`split_exponent`, in use) | 5.3 |
//! | a table of 16 powers in a register, polynomial of degree 3 | 5.8, but one instruction set only |
//! | no exponential at all | 8.6 |

use super::coefficients::Coefficient;
use super::stage::Ahead;
use sensorium_core::math::exp2;
use sensorium_core::{Float, Simd};

/// The body for `n = 0, 1, ... N - 1`, at most 16, written out: the compiler leaves a loop of 16 states a loop, and the
/// states then go through memory at every token, which took twice the time.
macro_rules! unroll {
    ($n:ident < $N:ident, $body:block) => {
        unroll!(@ $n $N $body 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $n:ident $N:ident $body:block $($k:literal)*) => {
        $(if const { $k < $N } {
            let $n = const { if $k < $N { $k } else { 0 } };
            $body
        })*
    };
}
pub(super) use unroll;

/// A block of channels over a tile. Tiles are `[token][lane]`, states `[state][lane]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block<T> {
    /// `A log2(e)`.
    pub(super) a: *const T,
    /// The states, updated in place.
    pub(super) h: *mut T,
    /// Step sizes.
    pub(super) delta: *const T,
    /// Step sizes times inputs.
    pub(super) input: *const T,
    pub(super) b: Coefficient<T>,
    pub(super) c: Coefficient<T>,
    /// Results.
    pub(super) y: *mut T,
    /// Inputs and results of the next tile.
    pub(super) ahead: [Ahead<T>; 4],
}

/// `y_t = sum_n C_tn h_tn` with `h_tn = 2^(delta_t A_n) h_(t-1)n + input_t B_tn`, states updated.
///
/// The sum is made in an order that depends on nothing but the number of states.
///
/// # Safety
/// The block's tiles have `tokens` tokens, its states are `states`, its coefficients are `SHARED` or not.
#[inline(always)]
pub(super) unsafe fn scan<T: Float, S: Simd<T>, const SHARED: bool>(
    s: S,
    block: &Block<T>,
    states: usize,
    tokens: usize,
) {
    let mut n = 0;
    // SAFETY: as the caller vouches, for the states from `n` on.
    unsafe {
        clear(s, block.y, tokens);
        if const { S::REGISTERS >= 32 } {
            while states - n >= 16 {
                scan_some::<T, S, 16, SHARED>(s, block, n, tokens);
                n += 16;
            }
        } else {
            while states - n >= 8 {
                scan_some::<T, S, 8, SHARED>(s, block, n, tokens);
                n += 8;
            }
        }
        while n < states {
            scan_some::<T, S, 1, SHARED>(s, block, n, tokens);
            n += 1;
        }
    }
}

/// [`scan`] of the `N` states from `first` on, added to `y`.
///
/// # Safety
/// As for [`scan`].
#[inline(always)]
unsafe fn scan_some<T: Float, S: Simd<T>, const N: usize, const SHARED: bool>(
    s: S,
    block: &Block<T>,
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
            let mut sums = [s.load_ptr(y.add(at)), s.splat(T::ZERO)];
            unroll!(n < N, {
                let decay = exp2(s, s.mul(step, s.load_ptr(a.add(n * S::LANES))));
                let new = s.mul(x, b.at::<S, SHARED>(s, t, first + n));
                state[n] = s.mul_add(decay, state[n], new);
                sums[n % 2] = s.mul_add(state[n], c.at::<S, SHARED>(s, t, first + n), sums[n % 2]);
            });
            s.store_ptr(y.add(at), if N > 1 { s.add(sums[0], sums[1]) } else { sums[0] });
        }
        for n in 0..N {
            s.store_ptr(h.add(n * S::LANES), state[n]);
        }
    }
}

/// Zeroes so many vectors.
///
/// # Safety
/// They are there.
#[inline(always)]
pub(super) unsafe fn clear<T: Float, S: Simd<T>>(s: S, at: *mut T, vectors: usize) {
    for i in 0..vectors {
        // SAFETY: as the caller vouches.
        unsafe { s.store_ptr(at.add(i * S::LANES), s.splat(T::ZERO)) };
    }
}
