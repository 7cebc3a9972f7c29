//! One token: the states are updated in place, and read once.
//!
//! The cost is the memory's: `P S` numbers a head are read and written for six operations each. Four rows of a state
//! share what is loaded of `B` and `C`; the sums across lanes of a whole vector of channels are taken together.

use super::forward::skip_factors;
use super::rows::padded;
use super::scratch::{Scratch, Shared};
use super::{Dims, Steps};
use sensorium_core::isa::part::{load_first, store_first};
use sensorium_core::math::{exp, sigmoid, softplus};
use sensorium_core::{Error, Float, Kernel, MAX_LANES, Result, Simd};
use sensorium_core::{error::check_len, error::product, threads};

/// Work of an element of a state, in the units of [`threads::MIN_PARALLEL_WORK`].
const ELEMENT_WORK: usize = 8;

/// What a step reads; `x` and the gate are `(B, H, P)`, `b` and `c` are `(B, G, S)`, all contiguous.
#[derive(Debug, Clone, Copy)]
pub struct Token<'a, T> {
    /// `x`.
    pub x: &'a [T],
    /// How step sizes are made; `dt (B, H)`.
    pub steps: Steps<'a, T>,
    /// `A (H,)`.
    pub a: &'a [T],
    /// `B`.
    pub b: &'a [T],
    /// `C`.
    pub c: &'a [T],
    /// `D (H,)` or `(H, P)`.
    pub skip: Option<&'a [T]>,
    /// `z`.
    pub gate: Option<&'a [T]>,
}

/// One step: updates `state (B, H, P, S)` and writes `y (B, H, P)`. The length in `dims` is not read.
///
/// # Errors
/// [`Error`] naming the argument that does not fit.
pub(crate) fn step<T: Float>(dims: Dims, token: &Token<'_, T>, state: &mut [T], y: &mut [T]) -> Result<()> {
    let Dims { batch, heads, width, groups, state: size, .. } = dims;
    if heads != 0 && (groups == 0 || heads % groups != 0) {
        let what = format!("has G={groups}, which does not divide H={heads} of x");
        return Err(Error::Value { arg: "B", what });
    }
    let tokens = product("x", &[batch, heads, width])?;
    let inner = product("B", &[batch, groups, size])?;
    check_len("state", state, product("state", &[batch, heads, width, size])?)?;
    check_len("x", token.x, tokens)?;
    check_len("dt", token.steps.dt, batch * heads)?;
    check_len("A", token.a, heads)?;
    check_len("B", token.b, inner)?;
    check_len("C", token.c, inner)?;
    if let Some(skip) = token.skip.filter(|skip| skip.len() != heads) {
        check_len("D", skip, heads * width)?;
    }
    if let Some(gate) = token.gate {
        check_len("z", gate, tokens)?;
    }
    if let Some(bias) = token.steps.bias {
        check_len("dt_bias", bias, heads)?;
    }
    check_len("out", y, tokens)?;
    if tokens == 0 {
        return Ok(());
    }
    let (state, y) = (Shared(state.as_mut_ptr()), Shared(y.as_mut_ptr()));
    threads::for_each(batch * heads, width * size.max(1) * ELEMENT_WORK, |task| {
        T::dispatch(Update {
            dims,
            token,
            row: task / heads,
            head: task % heads,
            state: state.at(task * width * size),
            y: y.at(task * width),
        });
    });
    Ok(())
}

/// A head of a row.
struct Update<'a, T> {
    dims: Dims,
    token: &'a Token<'a, T>,
    row: usize,
    head: usize,
    state: *mut T,
    y: *mut T,
}

impl<T: Float> Kernel<T> for Update<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let Dims { heads, width, groups, state: size, .. } = self.dims;
        let task = self.row * heads + self.head;
        let group = self.head / self.dims.heads_of_group();
        let inner = (self.row * groups + group) * size;
        let (dt, decay) = self.decay(s, task);
        let wide = padded(width);
        let mut scratch = Scratch::new::<T>(&[wide]);
        let skip = scratch.take::<T>(wide);
        let token = self.token;
        // SAFETY: sizes were checked; every access is of a channel below the width and a state below the size.
        unsafe {
            if token.skip.is_some() {
                skip_factors(token.skip, self.dims, self.head, skip);
            }
            let (b, c) = (token.b.as_ptr().add(inner), token.c.as_ptr().add(inner));
            let x = token.x.as_ptr().add(task * width);
            let mut p = 0;
            while p < width {
                let n = S::LANES.min(width - p);
                let mut sums = [s.splat(T::ZERO); MAX_LANES];
                let mut r = 0;
                while r + 4 <= n {
                    let four = rows::<T, S, 4>(
                        s,
                        (self.state.add((p + r) * size), size),
                        (b, c),
                        (x.add(p + r), dt, decay),
                    );
                    sums[r..r + 4].copy_from_slice(&four);
                    r += 4;
                }
                while r < n {
                    let one = rows::<T, S, 1>(
                        s,
                        (self.state.add((p + r) * size), size),
                        (b, c),
                        (x.add(p + r), dt, decay),
                    );
                    sums[r] = one[0];
                    r += 1;
                }
                let mut value = s.reduce_sums(sums);
                if token.skip.is_some() {
                    value = s.mul_add(s.load_ptr(skip.add(p)), load_first(s, x.add(p), n), value);
                }
                if let Some(gate) = token.gate {
                    let z = load_first(s, gate.as_ptr().add(task * width + p), n);
                    value = s.mul(value, s.mul(z, sigmoid(s, z)));
                }
                store_first(s, self.y.add(p), n, value);
                p += S::LANES;
            }
        }
    }
}

impl<T: Float> Update<'_, T> {
    /// The step size, and `exp(dt A)`.
    #[inline(always)]
    fn decay<S: Simd<T>>(&self, s: S, task: usize) -> (T, T) {
        let steps = &self.token.steps;
        let mut dt = s.splat(steps.dt[task]);
        if let Some(bias) = steps.bias {
            dt = s.add(dt, s.splat(bias[self.head]));
        }
        if steps.softplus {
            dt = softplus(s, dt);
        }
        // Both return the step size where it is NaN.
        dt = s.min(s.splat(steps.limit.1), s.max(s.splat(steps.limit.0), dt));
        let decay = exp(s, s.mul(dt, s.splat(self.token.a[self.head])));
        let mut lanes = [T::ZERO; MAX_LANES];
        s.store(&mut lanes, dt);
        let dt = lanes[0];
        s.store(&mut lanes, decay);
        (dt, lanes[0])
    }
}

/// Updates `R` rows of a state, and returns the lanes of their products with `C`.
///
/// # Safety
/// `R` rows of `size` elements exist, as do `size` of `b` and `c`, and `R` of `x`.
#[inline(always)]
unsafe fn rows<T: Float, S: Simd<T>, const R: usize>(
    s: S,
    (state, size): (*mut T, usize),
    (b, c): (*const T, *const T),
    (x, dt, decay): (*const T, T, T),
) -> [S::V; R] {
    let mut sums = [s.splat(T::ZERO); R];
    let mut inputs = [s.splat(T::ZERO); R];
    let decay = s.splat(decay);
    // SAFETY: as the caller vouches.
    unsafe {
        for r in 0..R {
            inputs[r] = s.splat(dt * *x.add(r));
        }
        let whole = size - size % S::LANES;
        let mut j = 0;
        while j < whole {
            let (bv, cv) = (s.load_ptr(b.add(j)), s.load_ptr(c.add(j)));
            for r in 0..R {
                let at = state.add(r * size + j);
                let value = s.mul_add(decay, s.load_ptr(at), s.mul(inputs[r], bv));
                s.store_ptr(at, value);
                sums[r] = s.mul_add(value, cv, sums[r]);
            }
            j += S::LANES;
        }
        if whole < size {
            let n = size - whole;
            let (bv, cv) = (load_first(s, b.add(whole), n), load_first(s, c.add(whole), n));
            for r in 0..R {
                let at = state.add(r * size + whole);
                let value = s.mul_add(decay, load_first(s, at, n), s.mul(inputs[r], bv));
                store_first(s, at, n, value);
                sums[r] = s.mul_add(value, cv, sums[r]);
            }
        }
    }
    sums
}
