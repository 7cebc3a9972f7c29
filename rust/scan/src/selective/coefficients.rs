//! `A`, `B`, `C` and states as the lanes of a block of channels see them.
//!
//! Where `B` and `C` both vary with the token, a number serves all channels of a group and is read where it is if states
//! lie next to each other. Where one of them belongs to channels, both are vectors: the rarer form, one code for all.

use super::stage::turn;
use super::tiles::{TILE, Tile};
use super::{Coefficients, Inputs, Run};
use sensorium_core::{Float, Simd};

/// `B` or `C` of a tile, as the lanes of a block of channels see it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Coefficient<T> {
    /// A number for all channels by token and state, or (not `SHARED`) a vector.
    pub(super) data: *const T,
    /// Distance between tokens; 0 where it is the same at every token.
    pub(super) token: usize,
}

impl<T: Float> Coefficient<T> {
    /// Of state `n` at token `t`.
    ///
    /// # Safety
    /// It has that token and that state, and is `SHARED` or not.
    #[inline(always)]
    pub(super) unsafe fn at<S: Simd<T>, const SHARED: bool>(self, s: S, t: usize, n: usize) -> S::V {
        // SAFETY: as the caller vouches.
        unsafe {
            if SHARED {
                s.splat(*self.data.add(t * self.token + n))
            } else {
                s.load_ptr(self.data.add(t * self.token + n * S::LANES))
            }
        }
    }
}

/// `B` or `C` of a task.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a, T> {
    of: Coefficients<'a, T>,
    /// Constants of all blocks of the task, or what varies over the tile at hand.
    buffer: *mut T,
}

impl<'a, T: Float> Source<'a, T> {
    /// Elements of the buffer.
    pub(super) fn size(
        of: &Coefficients<'a, T>,
        states: usize,
        lanes: usize,
        blocks: usize,
        shared: bool,
    ) -> usize {
        match of {
            Coefficients::Constant(_) => blocks * states * lanes,
            Coefficients::Varying(_) => TILE * states * if shared { 1 } else { lanes },
        }
    }

    /// Reads what does not vary.
    ///
    /// # Safety
    /// `buffer` has the elements that [`size`](Self::size) says.
    #[inline(always)]
    pub(super) unsafe fn new<S: Simd<T>>(
        s: S,
        of: Coefficients<'a, T>,
        run: Run,
        states: usize,
        buffer: *mut T,
    ) -> Self {
        if let Coefficients::Constant(data) = of {
            // SAFETY: as the caller vouches.
            unsafe { load_run(s, data, run, states, T::ONE, buffer) };
        }
        Self { of, buffer }
    }

    /// The coefficient over a tile, of the first block where it is constant.
    ///
    /// # Safety
    /// As for [`new`](Self::new); `SHARED` as told to [`size`](Self::size).
    #[inline(always)]
    pub(super) unsafe fn over<S: Simd<T>, const SHARED: bool>(
        &self,
        s: S,
        tile: &Tile,
        group: usize,
        states: usize,
    ) -> Coefficient<T> {
        let Coefficients::Varying(view) = self.of else { return Coefficient { data: self.buffer, token: 0 } };
        let (from, strides) = (view.at(tile.sequence.row, group, tile.start, 0), view.strides());
        // SAFETY: the view has these tokens; the caller vouches for the buffer.
        unsafe {
            if !SHARED {
                for t in 0..tile.tokens {
                    for n in 0..states {
                        let number = *from.add(t * strides.token + n * strides.feature);
                        s.store_ptr(self.buffer.add((t * states + n) * S::LANES), s.splat(number));
                    }
                }
                return Coefficient { data: self.buffer, token: states * S::LANES };
            }
            if strides.feature == 1 {
                return Coefficient { data: from, token: strides.token };
            }
            turn(from, (strides.feature, strides.token), states, tile.tokens, self.buffer, (1, states));
            Coefficient { data: self.buffer, token: states }
        }
    }

    /// The coefficient of a block, given that of the first.
    #[inline(always)]
    pub(super) fn of_block(&self, first: Coefficient<T>, offset: usize) -> Coefficient<T> {
        match self.of {
            Coefficients::Constant(_) => Coefficient { data: first.data.wrapping_add(offset), ..first },
            Coefficients::Varying(_) => first,
        }
    }
}

/// A matrix `(D, S)` times `factor` as `[block][state][lane]`.
///
/// # Safety
/// `out` has an element for every lane of every block of the run.
#[inline(always)]
pub(super) unsafe fn load_run<T: Float, S: Simd<T>>(
    s: S,
    matrix: &[T],
    run: Run,
    states: usize,
    factor: T,
    out: *mut T,
) {
    for block in 0..run.count.div_ceil(S::LANES) {
        let (first, channels) = run.block(block, S::LANES);
        // SAFETY: as the caller vouches.
        unsafe {
            load_states(s, matrix, first, states, channels, factor, out.add(block * states * S::LANES));
        }
    }
}

/// `out[n][lane] = factor * src[first + lane][n]` of a matrix `(D, S)`, 0 for lanes from `channels` on.
///
/// # Safety
/// `out` has `states * LANES` elements.
#[inline(always)]
pub(super) unsafe fn load_states<T: Float, S: Simd<T>>(
    s: S,
    src: &[T],
    first: usize,
    states: usize,
    channels: usize,
    factor: T,
    out: *mut T,
) {
    let src = &src[first * states..(first + channels) * states];
    for n in 0..states {
        // SAFETY: as the caller vouches.
        unsafe {
            s.store_ptr(out.add(n * S::LANES), s.splat(T::ZERO));
            for lane in 0..channels {
                *out.add(n * S::LANES + lane) = src[lane * states + n] * factor;
            }
        }
    }
}

/// `out[lane][n] = h[n][lane]`.
///
/// # Safety
/// `h` has `states * lanes` elements.
#[inline(always)]
pub(super) unsafe fn store_states<T: Float>(
    h: *const T,
    states: usize,
    channels: usize,
    lanes: usize,
    out: &mut [T],
) {
    for lane in 0..channels {
        for n in 0..states {
            // SAFETY: as the caller vouches.
            out[lane * states + n] = unsafe { *h.add(n * lanes + lane) };
        }
    }
}

/// The states before a sequence's first token.
///
/// # Safety
/// `h` has `states * LANES` elements.
#[inline(always)]
pub(super) unsafe fn begin<T: Float, S: Simd<T>>(
    s: S,
    inputs: &Inputs<'_, T>,
    tile: &Tile,
    (all, first, channels): (usize, usize, usize),
    states: usize,
    h: *mut T,
) {
    // SAFETY: as the caller vouches.
    unsafe {
        match (inputs.initial, tile.sequence.initial) {
            (Some(initial), Some(index)) => {
                load_states(s, initial, index * all + first, states, channels, T::ONE, h);
            }
            _ => super::recurrence::clear(s, h, states),
        }
    }
}

/// A vector of channels from `first` on, 0 where there is none.
#[inline(always)]
pub(super) fn channel_vector<T: Float, S: Simd<T>>(
    s: S,
    src: Option<&[T]>,
    first: usize,
    channels: usize,
) -> S::V {
    match src {
        Some(src) => s.load_head(&src[first..first + channels], T::ZERO),
        None => s.splat(T::ZERO),
    }
}
