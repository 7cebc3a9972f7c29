//! One token: the state is updated where it is, states in the lanes.
//!
//! A layer reads `A` and the state and writes the state, `3 D S` numbers; `D S` exponentials hide behind that where
//! they come from memory, and bound the step where they come from cache.

use super::Dims;
use super::coefficients::channel_vector;
use sensorium_core::error::{check_len, product};
use sensorium_core::math::{exp2, sigmoid, softplus};
use sensorium_core::threads::{Disjoint, for_each};
use sensorium_core::{Error, Float, Kernel, MAX_LANES, Result, Simd};

/// What a step reads, contiguous.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a, T> {
    /// `(B, D)`.
    pub x: &'a [T],
    /// `(B, D)`.
    pub delta: &'a [T],
    /// `(D, S)`.
    pub a: &'a [T],
    /// `(B, G, S)`.
    pub b: &'a [T],
    /// `(B, G, S)`.
    pub c: &'a [T],
    /// `(D,)`.
    pub d: Option<&'a [T]>,
    /// `(B, D)`.
    pub z: Option<&'a [T]>,
    /// `(D,)`.
    pub delta_bias: Option<&'a [T]>,
    /// Whether `delta` goes through a softplus.
    pub softplus: bool,
}

/// Channels of a task.
const CHANNELS: usize = 64;
/// Work of a channel and state, in floating-point operations.
const WORK: usize = 16;

/// Takes the states `(B, D, S)` one token further and writes `y (B, D)`.
///
/// # Errors
/// Where a length does not fit `dims`.
pub(crate) fn step<T: Float>(dims: Dims, state: &mut [T], inputs: &Step<'_, T>, y: &mut [T]) -> Result<()> {
    let Dims { batch, channels, states, groups, .. } = dims;
    if channels > 0 && (groups == 0 || channels % groups != 0) {
        let what = format!("has G={groups} groups, which do not divide D={channels}");
        return Err(Error::Value { arg: "B", what });
    }
    let row = product("x", &[batch, channels])?;
    check_len("state", state, product("state", &[row, states])?)?;
    check_len("x", inputs.x, row)?;
    check_len("dt", inputs.delta, row)?;
    check_len("A", inputs.a, channels * states)?;
    check_len("B", inputs.b, product("B", &[batch, groups, states])?)?;
    check_len("C", inputs.c, inputs.b.len())?;
    check_len("y", y, row)?;
    inputs.z.map_or(Ok(()), |z| check_len("z", z, row))?;
    inputs.d.map_or(Ok(()), |d| check_len("D", d, channels))?;
    inputs.delta_bias.map_or(Ok(()), |bias| check_len("dt_bias", bias, channels))?;
    let parts = channels.div_ceil(CHANNELS);
    let (state, y) = (Disjoint::new(state), Disjoint::new(y));
    for_each(batch * parts, CHANNELS * states * WORK, |task| {
        let (row, part) = (task / parts, task % parts);
        let first = part * CHANNELS;
        let count = CHANNELS.min(channels - first);
        let at = row * channels + first;
        // SAFETY: each task has its own channels.
        let (state, y) =
            unsafe { (state.slice(at * states..(at + count) * states), y.slice(at..at + count)) };
        T::dispatch(Part { dims, inputs, row, first, state, y });
    });
    Ok(())
}

struct Part<'a, T> {
    dims: Dims,
    inputs: &'a Step<'a, T>,
    row: usize,
    first: usize,
    state: &'a mut [T],
    y: &'a mut [T],
}

impl<T: Float> Kernel<T> for Part<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let Self { dims, inputs, row, first, state, y } = self;
        let states = dims.states;
        for block in (0..y.len()).step_by(S::LANES) {
            let channels = S::LANES.min(y.len() - block);
            let (first, at) = (first + block, row * dims.channels + first + block);
            let x = s.load_head(&inputs.x[at..at + channels], T::ZERO);
            let mut delta = s.load_head(&inputs.delta[at..at + channels], T::ZERO);
            if inputs.delta_bias.is_some() {
                delta = s.add(delta, channel_vector(s, inputs.delta_bias, first, channels));
            }
            if inputs.softplus {
                delta = softplus(s, delta);
            }
            let (mut deltas, mut news) = ([T::ZERO; MAX_LANES], [T::ZERO; MAX_LANES]);
            s.store(&mut deltas, delta);
            s.store(&mut news, s.mul(delta, x));
            let mut sums = [s.splat(T::ZERO); MAX_LANES];
            for lane in 0..channels {
                let group = (first + lane) * dims.groups / dims.channels;
                let coefficients = (row * dims.groups + group) * states;
                let (b, c) = (&inputs.b[coefficients..][..states], &inputs.c[coefficients..][..states]);
                let a = &inputs.a[(first + lane) * states..][..states];
                let state = &mut state[(block + lane) * states..][..states];
                sums[lane] = channel(s, a, state, s.splat(deltas[lane]), s.splat(news[lane]), b, c);
            }
            let mut out = s.reduce_sums(sums);
            if inputs.d.is_some() {
                out = s.mul_add(channel_vector(s, inputs.d, first, channels), x, out);
            }
            if let Some(z) = inputs.z {
                let z = s.load_head(&z[at..at + channels], T::ZERO);
                out = s.mul(out, s.mul(z, sigmoid(s, z)));
            }
            s.store_head(&mut y[block..block + channels], out);
        }
    }
}

/// Updates the states of a channel; returns the terms of `sum_n C_n h_n` by lane.
#[inline(always)]
fn channel<T: Float, S: Simd<T>>(
    s: S,
    a: &[T],
    state: &mut [T],
    delta: S::V,
    new: S::V,
    b: &[T],
    c: &[T],
) -> S::V {
    let mut sum = s.splat(T::ZERO);
    let log2_e = s.splat(T::LOG2_E);
    let states = state.len();
    let whole = states - states % S::LANES;
    for n in (0..whole).step_by(S::LANES) {
        let decay = exp2(s, s.mul(delta, s.mul(s.load(&a[n..]), log2_e)));
        let h = s.mul_add(decay, s.load(&state[n..]), s.mul(new, s.load(&b[n..])));
        s.store(&mut state[n..], h);
        sum = s.mul_add(h, s.load(&c[n..]), sum);
    }
    if whole < states {
        // Not a closure for the tails: it would be compiled for the baseline.
        let (a, b) = (s.load_head(&a[whole..], T::ZERO), s.load_head(&b[whole..], T::ZERO));
        let decay = exp2(s, s.mul(delta, s.mul(a, log2_e)));
        let h = s.mul_add(decay, s.load_head(&state[whole..], T::ZERO), s.mul(new, b));
        s.store_head(&mut state[whole..], h);
        // Lanes past the states hold 0 or, where a number is not finite, NaN: they have no part in the sum.
        let mut terms = [T::ZERO; MAX_LANES];
        s.store_head(&mut terms[..states - whole], s.mul(h, s.load_head(&c[whole..], T::ZERO)));
        sum = s.add(sum, s.load(&terms));
    }
    sum
}
