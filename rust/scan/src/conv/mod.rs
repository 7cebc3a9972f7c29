//! Causal depthwise convolution: `y_t = act(bias + sum_k w_k x_{t-K+1+k})`, forward, backward and one step.
//!
//! `x (B, D, L)`, or `(B, L, D)` with the channels last; `w (D, K)`; the state of a channel is its last `K - 1` inputs,
//! oldest first. Inputs before a sequence are its initial state, or zero. `act` is the identity or `SiLU`.
//!
//! Backward, with `dp_t = dy_t act'(p_t)`: `dx_t = sum_k w_k dp_{t+K-1-k}`, `dw_k = sum_t dp_t x_{t-K+1+k}`,
//! `dbias = sum_t dp_t`. `p` is computed anew, so that the forward keeps nothing. An initial state has the gradient of
//! the inputs that it stands for, and a last state adds to those of the inputs that it holds.
//!
//! # Order of sums
//! Every output is the bias plus `K` products in order of `k`, whatever the layout and wherever a sequence is cut: parts
//! with the state carried give the same bits as the whole. Gradients of weights are summed by pieces of fixed length,
//! counted from the start of each sequence, and pieces are added in order: the number of threads changes nothing.
//!
//! # Cost
//! One read and one write of memory forward, two reads and one write backward; `2 K` operations an element, and one
//! exponential where there is `SiLU`.

mod across;
mod along;
mod long;
mod plan;
mod update;

use crate::Sequences;
use plan::{Piece, Plan};
use sensorium_core::error::{check_len, product};
use sensorium_core::math::{silu, silu_slope};
use sensorium_core::threads::Disjoint;
use sensorium_core::{Error, Float, Kernel, Result, Simd};
use std::ops::Range;

pub(crate) use update::update;

/// Sizes of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Rows of the batch, `B`.
    pub batch: usize,
    /// Channels, `D`.
    pub width: usize,
    /// Tokens of a row, `L`.
    pub length: usize,
    /// Taps of the filter, `K`; at least one.
    pub taps: usize,
    /// Whether tokens are rows of channels, `(B, L, D)`, and not channels rows of tokens, `(B, D, L)`.
    pub channels_last: bool,
}

impl Dims {
    /// Rows of a sample, and elements of a row.
    fn rows(&self) -> (usize, usize) {
        if self.channels_last { (self.length, self.width) } else { (self.width, self.length) }
    }
    /// Inputs of a channel that a state holds.
    fn before(&self) -> usize {
        self.taps - 1
    }
    /// Where a channel's token is in a contiguous array.
    fn at(&self, row: usize, channel: usize, token: usize) -> usize {
        if self.channels_last {
            (row * self.length + token) * self.width + channel
        } else {
            (row * self.width + channel) * self.length + token
        }
    }
}

/// An array of three dimensions with contiguous rows: element `(b, r, j)` is `data[b * sample + r * row + j]`.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a, T> {
    /// Elements.
    pub data: &'a [T],
    /// Distance between samples.
    pub sample: usize,
    /// Distance between rows.
    pub row: usize,
}

impl<'a, T> Rows<'a, T> {
    /// A contiguous array with `rows` rows of `cols` elements a sample.
    #[must_use]
    pub const fn contiguous(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self { data, sample: rows * cols, row: cols }
    }

    fn check(&self, arg: &'static str, sizes: [usize; 3]) -> Result<()> {
        let want = product(arg, &sizes)?;
        let [samples, rows, cols] = sizes;
        let last = |n: usize, stride: usize| (n - 1).checked_mul(stride);
        let held = want == 0
            || last(samples, self.sample)
                .zip(last(rows, self.row))
                .and_then(|(s, r)| s.checked_add(r)?.checked_add(cols))
                .is_some_and(|end| end <= self.data.len());
        if held { Ok(()) } else { Err(Error::Len { arg, want, got: self.data.len() }) }
    }

    /// Where row `r` of sample `b` begins; only to be read where the array holds it.
    #[inline(always)]
    fn at(&self, b: usize, r: usize) -> *const T {
        self.data.as_ptr().wrapping_add(b * self.sample + r * self.row)
    }
}

/// What is convolved with what.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a, T> {
    /// Inputs.
    pub x: Rows<'a, T>,
    /// Filters, `(D, K)`.
    pub weight: &'a [T],
    /// Added to each channel, `(D,)`.
    pub bias: Option<&'a [T]>,
    /// Initial states, `(states, D, K - 1)`.
    pub initial: Option<&'a [T]>,
    /// Whether the result goes through `SiLU`.
    pub silu: bool,
}

/// Where gradients go; all that is given is overwritten.
#[derive(Debug)]
pub struct Grads<'a, T> {
    /// Of the inputs, contiguous.
    pub x: &'a mut [T],
    /// Of the filters, `(D, K)`.
    pub weight: &'a mut [T],
    /// Of the bias, `(D,)`.
    pub bias: Option<&'a mut [T]>,
    /// Of the initial states, `(states, D, K - 1)`.
    pub initial: Option<&'a mut [T]>,
}

fn check<T: Float>(dims: Dims, sequences: &Sequences, inputs: &Inputs<'_, T>) -> Result<()> {
    let Dims { batch, width, length, taps, .. } = dims;
    if taps == 0 {
        return Err(Error::Value { arg: "weight", what: "must have at least one tap".into() });
    }
    for (dim, want, got) in [("B", batch, sequences.batch()), ("L", length, sequences.length())] {
        if want != got {
            return Err(Error::Dim { arg: "sequences", dim, want, got });
        }
    }
    let (rows, cols) = dims.rows();
    inputs.x.check("x", [batch, rows, cols])?;
    check_len("weight", inputs.weight, product("weight", &[width, taps])?)?;
    inputs.bias.map_or(Ok(()), |bias| check_len("bias", bias, width))?;
    let states = product("initial_state", &[sequences.states(), width, taps - 1])?;
    inputs.initial.map_or(Ok(()), |initial| check_len("initial_state", initial, states))
}

/// Writes `y`, contiguous, and where asked the last states `(states, D, K - 1)`.
///
/// # Errors
/// Where a length does not fit `dims` and `sequences`, or there are no taps.
pub(crate) fn forward<T: Float>(
    dims: Dims,
    sequences: &Sequences,
    inputs: Inputs<'_, T>,
    y: &mut [T],
    last: Option<&mut [T]>,
) -> Result<()> {
    check(dims, sequences, &inputs)?;
    check_len("y", y, dims.batch * dims.width * dims.length)?;
    if let Some(last) = last {
        check_len("last_state", last, sequences.states() * dims.width * dims.before())?;
        last_states(dims, sequences, &inputs, last);
    }
    let plan = Plan::new(dims, sequences);
    let by_tap = by_tap(dims, inputs.weight);
    let bias = inputs.bias.map_or_else(|| vec![T::ZERO; dims.width], <[T]>::to_vec);
    let y = Disjoint::new(y);
    plan.for_each(|_, pieces, channels| {
        T::dispatch(Forward {
            job: Job { dims, inputs, by_tap: &by_tap, bias: &bias, pieces, channels },
            y: &y,
        });
    });
    Ok(())
}

/// Gradients of [`forward`] from those of `y`, contiguous, and of the last states.
///
/// # Errors
/// Where a length does not fit `dims` and `sequences`, or there are no taps.
pub(crate) fn backward<T: Float>(
    dims: Dims,
    sequences: &Sequences,
    inputs: Inputs<'_, T>,
    grad: &[T],
    grad_last: Option<&[T]>,
    grads: Grads<'_, T>,
) -> Result<()> {
    check(dims, sequences, &inputs)?;
    let Dims { width, taps, .. } = dims;
    let size = dims.batch * width * dims.length;
    let states = sequences.states() * width * dims.before();
    check_len("grad_out", grad, size)?;
    grad_last.map_or(Ok(()), |g| check_len("grad_last_state", g, states))?;
    check_len("dx", grads.x, size)?;
    check_len("dweight", grads.weight, width * taps)?;
    grads.bias.as_ref().map_or(Ok(()), |g| check_len("dbias", g, width))?;
    grads.initial.as_ref().map_or(Ok(()), |g| check_len("dinitial_state", g, states))?;
    let plan = Plan::new(dims, sequences);
    let by_tap = by_tap(dims, inputs.weight);
    let bias = inputs.bias.map_or_else(|| vec![T::ZERO; dims.width], <[T]>::to_vec);
    // A row of sums for every tap, and one for the bias.
    let part = (taps + 1) * width;
    let mut partials = vec![T::ZERO; plan.groups() * part];
    let sums = Disjoint::new(&mut partials);
    let (dx, dinitial) = (Disjoint::new(grads.x), grads.initial.map(Disjoint::new));
    plan.for_each(|group, pieces, channels| {
        T::dispatch(Backward {
            job: Job { dims, inputs, by_tap: &by_tap, bias: &bias, pieces, channels },
            grad,
            grad_last,
            dx: &dx,
            dinitial: dinitial.as_ref(),
            sums: &sums,
            sums_at: group * part,
        });
    });
    let mut total = vec![T::ZERO; part];
    for partial in partials.chunks_exact(part.max(1)) {
        for (sum, &x) in total.iter_mut().zip(partial) {
            *sum += x;
        }
    }
    let (dweight, dbias) = total.split_at(taps * width);
    for (d, row) in grads.weight.chunks_exact_mut(taps).enumerate() {
        for (k, x) in row.iter_mut().enumerate() {
            *x = dweight[k * width + d];
        }
    }
    if let Some(bias) = grads.bias {
        bias.copy_from_slice(dbias);
    }
    Ok(())
}

/// Filters with the taps first, `(K, D)`.
fn by_tap<T: Float>(dims: Dims, weight: &[T]) -> Vec<T> {
    let mut out = vec![T::ZERO; weight.len()];
    for (d, row) in weight.chunks_exact(dims.taps).enumerate() {
        for (k, &w) in row.iter().enumerate() {
            out[k * dims.width + d] = w;
        }
    }
    out
}

/// The last `K - 1` inputs of every sequence that leaves a state.
fn last_states<T: Float>(dims: Dims, sequences: &Sequences, inputs: &Inputs<'_, T>, last: &mut [T]) {
    let (before, width) = (dims.before(), dims.width);
    for sequence in sequences.list() {
        let Some(state) = sequence.last else { continue };
        let length = sequence.end - sequence.start;
        for d in 0..width {
            for j in 0..before {
                // Token `length + j - before` of the sequence, or what came before it.
                let value = if length + j >= before {
                    input(dims, inputs, sequence.row, d, sequence.start + length + j - before)
                } else {
                    earlier(inputs, sequence.initial, (d, width), (length + j, before))
                };
                last[(state * width + d) * before + j] = value;
            }
        }
    }
}

/// One input.
#[inline(always)]
fn input<T: Float>(dims: Dims, inputs: &Inputs<'_, T>, row: usize, channel: usize, token: usize) -> T {
    let (r, j) = if dims.channels_last { (token, channel) } else { (channel, token) };
    inputs.x.data[row * inputs.x.sample + r * inputs.x.row + j]
}

/// Element `j` of the state that a sequence begins from.
#[inline(always)]
fn earlier<T: Float>(
    inputs: &Inputs<'_, T>,
    state: Option<usize>,
    (channel, width): (usize, usize),
    (j, before): (usize, usize),
) -> T {
    match (inputs.initial, state) {
        (Some(initial), Some(state)) => initial[(state * width + channel) * before + j],
        _ => T::ZERO,
    }
}

/// The work of a task: some pieces of sequences, over some channels.
#[derive(Debug)]
struct Job<'a, T> {
    dims: Dims,
    inputs: Inputs<'a, T>,
    /// Filters with the taps first.
    by_tap: &'a [T],
    /// The bias of every channel, zero where there is none.
    bias: &'a [T],
    pieces: &'a [Piece],
    channels: Range<usize>,
}

struct Forward<'a, T> {
    job: Job<'a, T>,
    y: &'a Disjoint<'a, T>,
}

struct Backward<'a, T> {
    job: Job<'a, T>,
    grad: &'a [T],
    grad_last: Option<&'a [T]>,
    dx: &'a Disjoint<'a, T>,
    dinitial: Option<&'a Disjoint<'a, T>>,
    /// Sums for weights, `(K, D)`, and bias of each group of pieces; those of this one begin at `sums_at`.
    sums: &'a Disjoint<'a, T>,
    sums_at: usize,
}

/// Calls `$f` of a module with the taps and the activation as constants.
macro_rules! by_taps {
    ($dims:expr, $silu:expr, $f:ident, $($arg:expr),*) => {
        match ($dims.channels_last, $dims.taps, $silu) {
            (true, 1, false) => across::$f::<T, S, 1, false>($($arg),*),
            (true, 2, false) => across::$f::<T, S, 2, false>($($arg),*),
            (true, 3, false) => across::$f::<T, S, 3, false>($($arg),*),
            (true, 4, false) => across::$f::<T, S, 4, false>($($arg),*),
            (true, _, false) => long::$f::<T, S, false>($($arg),*),
            (true, 1, true) => across::$f::<T, S, 1, true>($($arg),*),
            (true, 2, true) => across::$f::<T, S, 2, true>($($arg),*),
            (true, 3, true) => across::$f::<T, S, 3, true>($($arg),*),
            (true, 4, true) => across::$f::<T, S, 4, true>($($arg),*),
            (true, _, true) => long::$f::<T, S, true>($($arg),*),
            (false, 1, false) => along::$f::<T, S, 1, false>($($arg),*),
            (false, 2, false) => along::$f::<T, S, 2, false>($($arg),*),
            (false, 3, false) => along::$f::<T, S, 3, false>($($arg),*),
            (false, 4, false) => along::$f::<T, S, 4, false>($($arg),*),
            (false, _, false) => along::$f::<T, S, 0, false>($($arg),*),
            (false, 1, true) => along::$f::<T, S, 1, true>($($arg),*),
            (false, 2, true) => along::$f::<T, S, 2, true>($($arg),*),
            (false, 3, true) => along::$f::<T, S, 3, true>($($arg),*),
            (false, 4, true) => along::$f::<T, S, 4, true>($($arg),*),
            (false, _, true) => along::$f::<T, S, 0, true>($($arg),*),
        }
    };
}

impl<T: Float> Kernel<T> for Forward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        by_taps!(self.job.dims, self.job.inputs.silu, forward, s, &self.job, self.y);
    }
}

impl<T: Float> Kernel<T> for Backward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        by_taps!(self.job.dims, self.job.inputs.silu, backward, s, &self);
        self.add_last();
    }
}

impl<T: Float> Backward<'_, T> {
    /// Adds the gradients of last states to those of the inputs that they hold.
    #[inline(always)]
    fn add_last(&self) {
        let (Some(grad_last), Job { dims, pieces, channels, .. }) = (self.grad_last, &self.job) else {
            return;
        };
        let (before, width) = (dims.before(), dims.width);
        for piece in *pieces {
            let Some(state) = piece.sequence.last else { continue };
            for j in 0..before {
                let token = piece.sequence.end + j;
                for d in channels.clone() {
                    let g = grad_last[(state * width + d) * before + j];
                    if token >= piece.sequence.start + before {
                        if piece.tokens.contains(&(token - before)) {
                            let at = dims.at(piece.sequence.row, d, token - before);
                            // SAFETY: this task alone writes these tokens of its channels.
                            unsafe { add_at(self.dx, at, g) };
                        }
                    } else if let (Some(dinitial), Some(state)) = (self.dinitial, piece.sequence.initial) {
                        let at = (state * width + d) * before + token - piece.sequence.start;
                        // SAFETY: the sequence is shorter than a piece; this task alone has it over its channels.
                        unsafe { add_at(dinitial, at, g) };
                    }
                }
            }
        }
    }
}

/// `shared[at] += value`.
///
/// # Safety
/// Nothing else has that element in use.
#[inline(always)]
unsafe fn add_at<T: Float>(shared: &Disjoint<'_, T>, at: usize, value: T) {
    // SAFETY: as the caller vouches.
    let element = unsafe { shared.slice(at..at + 1) };
    element[0] += value;
}

/// The result of a sum.
#[inline(always)]
fn activate<T: Float, S: Simd<T>, const SILU: bool>(s: S, sum: S::V) -> S::V {
    if SILU { silu(s, sum) } else { sum }
}

/// The gradient of a sum.
#[inline(always)]
fn descend<T: Float, S: Simd<T>, const SILU: bool>(s: S, grad: S::V, sum: S::V) -> S::V {
    if SILU { s.mul(grad, silu_slope(s, sum).1) } else { grad }
}
