//! The gated linear recurrence `h_t = a_t h_{t-1} + x_t`, each channel on its own, forward and backward.
//!
//! In reverse `h_t = a_t h_{t+1} + x_t`: sequences are then read from their ends. Backward, with `g_t` the gradient of
//! `h_t` by all ways, `g_t = dh_t + a_{t+1} g_{t+1}`: `dx_t = g_t`, `da_t = g_t h_{t-1}`, and the initial state has
//! `a_1 g_1`.
//!
//! # In parallel
//! Channels are independent: blocks of them are tasks, and a task has several in flight, as one alone would wait for each
//! multiply-add. Where there are too few and the sequences are long, they are cut into chunks of [`CHUNK`] tokens. A first
//! pass finds for each chunk the product of its `a` and what it ends with from zero; the state before each chunk follows
//! in order from these; a second pass applies it. That reads the inputs twice. How the work is cut depends on sizes alone,
//! so that results do not depend on the number of threads.
//!
//! # At the edges
//! `a` may be anything. Where the product over a chunk, what it ends with from zero, or the state before it is not finite,
//! the state after it is found token by token. Where the product is below the smallest normal number, so much of the state
//! before may be lost.

mod across;
mod along;
mod chunks;

use crate::{Sequence, Sequences};
use chunks::Plan;
use sensorium_core::error::{check_len, product};
use sensorium_core::threads::Disjoint;
use sensorium_core::{Error, Float, Kernel, Result, Simd};
use std::ops::Range;

pub use chunks::CHUNK;

/// Sizes of a scan, and its direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Rows of the batch, `B`.
    pub batch: usize,
    /// Channels, `D`.
    pub width: usize,
    /// Tokens of a row, `L`.
    pub length: usize,
    /// Whether tokens are rows of channels, `(B, L, D)`, and not channels rows of tokens, `(B, D, L)`.
    pub channels_last: bool,
    /// Whether sequences are read from their ends.
    pub reverse: bool,
}

impl Dims {
    /// Where a channel's token is.
    #[inline(always)]
    fn at(&self, row: usize, channel: usize, token: usize) -> usize {
        if self.channels_last {
            (row * self.length + token) * self.width + channel
        } else {
            (row * self.width + channel) * self.length + token
        }
    }
    /// The initial state that a sequence begins from.
    fn begins(&self, sequence: &Sequence) -> Option<usize> {
        if self.reverse { sequence.last } else { sequence.initial }
    }
    /// The last state that a sequence leaves.
    fn leaves(&self, sequence: &Sequence) -> Option<usize> {
        if self.reverse { sequence.initial } else { sequence.last }
    }
}

/// Where gradients go; all that is given is overwritten.
#[derive(Debug)]
pub struct Grads<'a, T> {
    /// Of `a`.
    pub a: &'a mut [T],
    /// Of `x`.
    pub x: &'a mut [T],
    /// Of the initial states, `(states, D)`.
    pub initial: Option<&'a mut [T]>,
}

fn check<T>(
    dims: Dims,
    sequences: &Sequences,
    arrays: &[(&'static str, &[T])],
    states: &[(&'static str, Option<&[T]>)],
) -> Result<()> {
    for (dim, want, got) in [("B", dims.batch, sequences.batch()), ("L", dims.length, sequences.length())] {
        if want != got {
            return Err(Error::Dim { arg: "sequences", dim, want, got });
        }
    }
    let size = product("x", &[dims.batch, dims.width, dims.length])?;
    for &(arg, array) in arrays {
        check_len(arg, array, size)?;
    }
    let size = product("initial_state", &[sequences.states(), dims.width])?;
    for &(arg, array) in states {
        array.map_or(Ok(()), |array| check_len(arg, array, size))?;
    }
    Ok(())
}

/// Writes `h`, and where asked the last states `(states, D)`.
///
/// # Errors
/// Where a length does not fit `dims` and `sequences`.
pub(crate) fn forward<T: Float>(
    dims: Dims,
    sequences: &Sequences,
    a: &[T],
    x: &[T],
    initial: Option<&[T]>,
    h: &mut [T],
    last: Option<&mut [T]>,
) -> Result<()> {
    check(
        dims,
        sequences,
        &[("a", a), ("x", x), ("h", h)],
        &[("initial_state", initial), ("last_state", last.as_deref())],
    )?;
    let out = Disjoint::new(h);
    let scan = Scan { dims, a, x, h: &[], initial: None, out: &out, da: None };
    let start = |sequence: &Sequence, channels: Range<usize>, state: &mut [T]| {
        copy_state(initial, dims.begins(sequence), dims.width, channels, state);
    };
    let last = last.map(Disjoint::new);
    Plan::new(dims, sequences).run(&scan, false, start, |sequence, channels, state| {
        if let (Some(last), Some(i)) = (&last, dims.leaves(sequence)) {
            let at = i * dims.width;
            // SAFETY: each state is left by one sequence, and its channels are worked off by one task.
            unsafe { last.slice(at + channels.start..at + channels.end) }.copy_from_slice(state);
        }
    });
    Ok(())
}

/// Gradients of [`forward`], from its result `h`, the gradient of that and of the last states.
///
/// # Errors
/// Where a length does not fit `dims` and `sequences`.
pub(crate) fn backward<T: Float>(
    dims: Dims,
    sequences: &Sequences,
    a: &[T],
    h: &[T],
    initial: Option<&[T]>,
    grad: &[T],
    grad_last: Option<&[T]>,
    grads: Grads<'_, T>,
) -> Result<()> {
    let arrays = [("a", a), ("h", h), ("grad_out", grad), ("da", &*grads.a), ("dx", &*grads.x)];
    check(
        dims,
        sequences,
        &arrays,
        &[
            ("initial_state", initial),
            ("grad_last_state", grad_last),
            ("dinitial_state", grads.initial.as_deref()),
        ],
    )?;
    let (dx, da) = (Disjoint::new(grads.x), Disjoint::new(grads.a));
    let scan = Scan { dims, a, x: grad, h, initial, out: &dx, da: Some(&da) };
    let start = |sequence: &Sequence, channels: Range<usize>, state: &mut [T]| {
        copy_state(grad_last, dims.leaves(sequence), dims.width, channels, state);
    };
    let dinitial = grads.initial.map(Disjoint::new);
    Plan::new(dims, sequences).run(&scan, true, start, |sequence, channels, state| {
        if let (Some(dinitial), Some(i)) = (&dinitial, dims.begins(sequence)) {
            let at = i * dims.width;
            // SAFETY: each state begins one sequence, and its channels are worked off by one task.
            unsafe { dinitial.slice(at + channels.start..at + channels.end) }.copy_from_slice(state);
        }
    });
    Ok(())
}

/// Some channels of a state, or zeros.
fn copy_state<T: Float>(
    states: Option<&[T]>,
    index: Option<usize>,
    width: usize,
    channels: Range<usize>,
    out: &mut [T],
) {
    match (states, index) {
        (Some(states), Some(i)) => out.copy_from_slice(&states[i * width..][channels]),
        _ => out.fill(T::ZERO),
    }
}

/// What is scanned, and where results go.
struct Scan<'a, T> {
    dims: Dims,
    a: &'a [T],
    /// `x`, or the gradient of `h`.
    x: &'a [T],
    /// `h` and the initial states, for the gradient of `a`.
    h: &'a [T],
    initial: Option<&'a [T]>,
    /// `h`, or the gradient of `x`.
    out: &'a Disjoint<'a, T>,
    da: Option<&'a Disjoint<'a, T>>,
}

impl<T: Float> Scan<'_, T> {
    /// Whether tokens are taken in falling order.
    #[inline(always)]
    fn falls<const BACKWARD: bool>(&self) -> bool {
        self.dims.reverse != BACKWARD
    }
}

/// Some tokens of a sequence.
#[derive(Debug, Clone)]
struct Piece {
    sequence: Sequence,
    tokens: Range<usize>,
}

/// A piece over some channels: from the state before it to the state after it.
struct Run<'a, T> {
    scan: &'a Scan<'a, T>,
    piece: &'a Piece,
    channels: Range<usize>,
    /// One element a channel: `h`, or `a g`.
    state: &'a mut [T],
    /// Multiplied by each `a`; nothing is written then. Otherwise empty.
    product: &'a mut [T],
    backward: bool,
}

impl<T: Float> Kernel<T> for Run<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(mut self, s: S) {
        match (self.scan.dims.channels_last, self.backward, self.product.is_empty()) {
            (true, false, true) => across::run::<T, S, false, true>(s, &mut self),
            (true, false, false) => across::run::<T, S, false, false>(s, &mut self),
            (true, true, true) => across::run::<T, S, true, true>(s, &mut self),
            (true, true, false) => across::run::<T, S, true, false>(s, &mut self),
            (false, false, true) => along::run::<T, S, false, true>(&mut self),
            (false, false, false) => along::run::<T, S, false, false>(&mut self),
            (false, true, true) => along::run::<T, S, true, true>(&mut self),
            (false, true, false) => along::run::<T, S, true, false>(&mut self),
        }
    }
}
