//! One step: the state takes in one input and gives one output.

use super::{Dims, activate};
use sensorium_core::error::{check_len, product};
use sensorium_core::threads::{Disjoint, for_each};
use sensorium_core::{Error, Float, Kernel, MAX_LANES, Result, Simd};
use std::ops::Range;

/// Channels of a task.
const BLOCK: usize = 1024;

/// `y (B, D)` from `x (B, D)` and `state (B, D, K - 1)`, which moves on by one input. `dims.length` is 1.
///
/// # Errors
/// Where a length does not fit `dims`, or there are no taps.
pub(crate) fn update<T: Float>(
    dims: Dims,
    x: &[T],
    state: &mut [T],
    weight: &[T],
    bias: Option<&[T]>,
    silu: bool,
    y: &mut [T],
) -> Result<()> {
    let Dims { batch, width, taps, .. } = dims;
    if taps == 0 {
        return Err(Error::Value { arg: "weight", what: "must have at least one tap".into() });
    }
    let before = taps - 1;
    let size = product("x", &[batch, width])?;
    check_len("x", x, size)?;
    check_len("y", y, size)?;
    check_len("state", state, product("state", &[batch, width, before])?)?;
    check_len("weight", weight, product("weight", &[width, taps])?)?;
    bias.map_or(Ok(()), |bias| check_len("bias", bias, width))?;
    let (state, y) = (Disjoint::new(state), Disjoint::new(y));
    let blocks = width.div_ceil(BLOCK);
    for_each(batch * blocks, BLOCK.min(width) * (8 * taps + 16), |task| {
        let (row, start) = (task / blocks * width, task % blocks * BLOCK);
        let channels = start..(start + BLOCK).min(width);
        let (from, to) = (row + channels.start, row + channels.end);
        T::dispatch(Update {
            taps,
            x: &x[from..to],
            // SAFETY: each task has its own channels of a row.
            state: unsafe { state.slice(from * before..to * before) },
            weight: &weight[channels.start * taps..channels.end * taps],
            bias: bias.map(|bias| &bias[channels.clone()]),
            silu,
            // SAFETY: as above.
            y: unsafe { y.slice(from..to) },
        });
    });
    Ok(())
}

struct Update<'a, T> {
    taps: usize,
    x: &'a [T],
    state: &'a mut [T],
    weight: &'a [T],
    bias: Option<&'a [T]>,
    silu: bool,
    y: &'a mut [T],
}

impl<T: Float> Kernel<T> for Update<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(mut self, s: S) {
        for c in (0..self.x.len()).step_by(S::LANES) {
            let channels = c..(c + S::LANES).min(self.x.len());
            match self.taps {
                2 => self.vector::<S, 2>(s, channels),
                3 => self.vector::<S, 3>(s, channels),
                4 => self.vector::<S, 4>(s, channels),
                _ => self.vector::<S, 0>(s, channels),
            }
        }
    }
}

impl<T: Float> Update<'_, T> {
    #[inline(always)]
    fn vector<S: Simd<T>, const K: usize>(&mut self, s: S, channels: Range<usize>) {
        let taps = if K == 0 { self.taps } else { K };
        let (before, n) = (taps - 1, channels.len());
        let state = &mut self.state[channels.start * before..channels.end * before];
        let weight = &self.weight[channels.start * taps..channels.end * taps];
        let x = s.load_head(&self.x[channels.clone()], T::ZERO);
        let mut sum = match self.bias {
            Some(bias) => s.load_head(&bias[channels.clone()], T::ZERO),
            None => s.splat(T::ZERO),
        };
        let (mut of_weight, mut of_state) = ([T::ZERO; MAX_LANES], [T::ZERO; MAX_LANES]);
        for k in 0..taps {
            for lane in 0..n {
                of_weight[lane] = weight[lane * taps + k];
                if k < before {
                    of_state[lane] = state[lane * before + k];
                }
            }
            let seen = if k < before { s.load(&of_state) } else { x };
            sum = s.mul_add(s.load(&of_weight), seen, sum);
        }
        if before > 0 {
            for lane in 0..n {
                let state = &mut state[lane * before..(lane + 1) * before];
                for j in 1..before {
                    state[j - 1] = state[j];
                }
                state[before - 1] = self.x[channels.start + lane];
            }
        }
        let y = if self.silu { activate::<T, S, true>(s, sum) } else { sum };
        s.store_head(&mut self.y[channels], y);
    }
}
