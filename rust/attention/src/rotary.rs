//! Rotary position embeddings (Su et al. 2021, arXiv:2104.09864): pairs of features as points of the plane, each
//! turned by an angle that grows with the position, so that `q_i.k_j` depends on positions through `i - j` alone.
//!
//! `(a, b)` becomes `(a cos - b sin, b cos + a sin)`. The angles come as a table of cosines and sines, computed once
//! in `f64` by the caller: at position 100,000 an angle in `f32` would be off by 0.004. The inverse, which is the
//! backward, is the same with the other sign of the sine.

use crate::carry::carry;
use crate::source::Turning;
use crate::view::{View, ViewMut};
use sensorium_core::error::{check_len, product};
use sensorium_core::{Error, Float, Result, Simd, Storage};

/// Cosines and sines by token: `(1 or B, N, 2, pairs)`. For neighbours `(1 or B, N, 2, 2 pairs)`: every cosine twice, and
/// every sine as its negative and itself.
#[derive(Debug, Clone, Copy)]
pub struct Rotation<'a, T> {
    table: &'a [T],
    samples: usize,
    tokens: usize,
    pairs: usize,
    neighbours: bool,
}

impl<'a, T: Float> Rotation<'a, T> {
    /// Tables of `samples` rows of tokens, one for all samples of a batch or one each; `pairs` pairs of features are
    /// turned, each of two `neighbours`, or of feature `i` and `pairs + i`.
    ///
    /// # Errors
    /// [`Error::Len`] where the table does not hold as much.
    pub fn new(table: &'a [T], [samples, tokens, pairs]: [usize; 3], neighbours: bool) -> Result<Self> {
        let columns = if neighbours { 2 * pairs } else { pairs };
        check_len("table", table, product("table", &[samples, tokens, 2, columns])?)?;
        Ok(Self { table, samples, tokens, pairs, neighbours })
    }

    /// Checks that tokens `first .. first + rows` of `batch` samples, `width` features each, can be turned.
    pub(crate) fn check(
        &self,
        arg: &'static str,
        batch: usize,
        first: usize,
        rows: usize,
        width: usize,
    ) -> Result<()> {
        let refuse = |what| Err(Error::Value { arg: "positions", what });
        if self.samples != 1 && self.samples != batch {
            return refuse(format!("are of {} samples, expected 1 or B={batch}", self.samples));
        }
        if first.checked_add(rows).is_none_or(|end| end > self.tokens) {
            return refuse(format!(
                "are {}, expected {} or more for {arg}",
                self.tokens,
                first.saturating_add(rows)
            ));
        }
        if self.pairs > width / 2 {
            let what = format!("turns {} features, and {arg} has D={width}", 2 * self.pairs);
            return Err(Error::Value { arg: "rotary", what });
        }
        Ok(())
    }

    /// How to turn the rows of sample `batch` from token `first` on.
    pub(crate) fn turn(&self, batch: usize, first: usize, inverse: bool) -> Turn<T> {
        let sample = if self.samples == 1 { 0 } else { batch };
        let row = if self.neighbours { 4 } else { 2 } * self.pairs;
        let table = self.table.as_ptr().wrapping_add((sample * self.tokens + first) * row);
        Turn { table, row, pairs: self.pairs, neighbours: self.neighbours, inverse }
    }
}

/// How consecutive rows are turned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn<T> {
    /// Cosines, then sines, of row 0.
    table: *const T,
    /// Elements of a row of the table.
    row: usize,
    pub(crate) pairs: usize,
    pub(crate) neighbours: bool,
    inverse: bool,
}

// SAFETY: only read, by tasks that run while `Rotation` borrows the table.
unsafe impl<T: Sync> Sync for Turn<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Send for Turn<T> {}

impl<T: Float> Turn<T> {
    /// From row `i` on.
    pub(crate) fn from(self, i: usize) -> Self {
        Self { table: self.table.wrapping_add(i * self.row), ..self }
    }
}

/// Turns features `i` and `pairs + i` of a row.
///
/// # Safety
/// Those of `from` are readable, those of `to` writable; the table of `turn` has the row.
#[inline(always)]
pub(crate) unsafe fn turn_halves<E: Storage, F: Storage<Float = E::Float>, S: Simd<E::Float>>(
    s: S,
    from: *const E,
    to: *mut F,
    turn: Turn<E::Float>,
) {
    let Turn { table: cos, pairs, inverse, .. } = turn;
    let sin = cos.wrapping_add(pairs);
    let sign = s.splat(if inverse { -E::Float::ONE } else { E::Float::ONE });
    let mut i = 0;
    // SAFETY: as the caller vouches.
    unsafe {
        while i < pairs {
            let n = (pairs - i).min(S::LANES);
            let (a, b, c, d);
            if n == S::LANES {
                (a, b) = (E::load_ptr(s, from.add(i)), E::load_ptr(s, from.add(pairs + i)));
                (c, d) = (s.load_ptr(cos.add(i)), s.load_ptr(sin.add(i)));
            } else {
                (a, b) = (E::load_head_ptr(s, from.add(i), n), E::load_head_ptr(s, from.add(pairs + i), n));
                c = s.load_head(std::slice::from_raw_parts(cos.add(i), n), E::Float::ZERO);
                d = s.load_head(std::slice::from_raw_parts(sin.add(i), n), E::Float::ZERO);
            }
            let d = s.mul(d, sign);
            let (x, y) = (s.neg_mul_add(b, d, s.mul(a, c)), s.mul_add(a, d, s.mul(b, c)));
            if n == S::LANES {
                F::store_ptr(s, to.add(i), x);
                F::store_ptr(s, to.add(pairs + i), y);
            } else {
                F::store_head_ptr(s, to.add(i), n, x);
                F::store_head_ptr(s, to.add(pairs + i), n, y);
            }
            i += n;
        }
    }
}

/// Turns features `2 i` and `2 i + 1` of a row: `x cos + swapped(x) sin`, for whose sake the table has a cosine and a
/// signed sine for each feature.
///
/// # Safety
/// As of [`turn_halves`].
#[inline(always)]
pub(crate) unsafe fn turn_neighbours<E: Storage, F: Storage<Float = E::Float>, S: Simd<E::Float>>(
    s: S,
    from: *const E,
    to: *mut F,
    turn: Turn<E::Float>,
) {
    let (cos, features) = (turn.table, 2 * turn.pairs);
    let sin = cos.wrapping_add(features);
    let sign = s.splat(if turn.inverse { -E::Float::ONE } else { E::Float::ONE });
    let mut i = 0;
    // SAFETY: as the caller vouches.
    unsafe {
        while i < features {
            let n = (features - i).min(S::LANES);
            let (x, c, d);
            if n == S::LANES {
                (x, c, d) = (E::load_ptr(s, from.add(i)), s.load_ptr(cos.add(i)), s.load_ptr(sin.add(i)));
            } else {
                x = E::load_head_ptr(s, from.add(i), n);
                c = s.load_head(std::slice::from_raw_parts(cos.add(i), n), E::Float::ZERO);
                d = s.load_head(std::slice::from_raw_parts(sin.add(i), n), E::Float::ZERO);
            }
            let y = s.mul_add(s.swap_pairs(x), s.mul(d, sign), s.mul(x, c));
            if n == S::LANES {
                F::store_ptr(s, to.add(i), y);
            } else {
                F::store_head_ptr(s, to.add(i), n, y);
            }
            i += n;
        }
    }
}

/// `out = x` with every row of `(B, H, N, D)` turned by the angles of its token, or back by them.
///
/// # Errors
/// [`Error::Dim`] or [`Error::Value`] naming the argument.
#[allow(clippy::needless_pass_by_value)] // A view to write is an exclusive borrow: the caller gives it away.
pub(crate) fn rotate<E: Storage>(
    x: View<'_, E>,
    rotation: &Rotation<'_, E::Float>,
    inverse: bool,
    out: ViewMut<'_, E>,
) -> Result<()> {
    let shape = x.shape();
    out.check("out", shape)?;
    let turning = Turning::new("x", *rotation, 0, shape)?;
    carry(&x, &out, Some(turning), inverse);
    Ok(())
}
