//! The microkernel: a tile of `R` rows by `V` vectors of the output, held in registers over the whole of `k`.

use crate::{Float, Simd};

/// Rows of a full tile: with [`VECTORS`] it fills three quarters of the registers, the rest hold operands.
#[must_use]
pub const fn rows<T: Float, S: Simd<T>>() -> usize {
    S::REGISTERS / 4
}

/// Vectors of a full tile's row.
pub const VECTORS: usize = 3;

/// `sum over p < k of a[r * a_row + p * a_step] * b[p * b_step + ..]`, for `R` rows by `V` vectors.
///
/// Sums run over `p` in order, in every lane, whatever the size of the tile.
///
/// # Safety
/// `a` is readable at `row[r] + p * a_step`, and `b` for `V` vectors from `p * b_step`, for all `r < R`, `p < k`.
#[inline(always)]
pub unsafe fn tile<T: Float, S: Simd<T>, const R: usize, const V: usize>(
    s: S,
    k: usize,
    (row, a_step): ([*const T; R], usize),
    (b, b_step): (*const T, usize),
) -> [[S::V; V]; R] {
    let mut sum = [[s.splat(T::ZERO); V]; R];
    for p in 0..k {
        let mut row_b = [s.splat(T::ZERO); V];
        for (v, x) in row_b.iter_mut().enumerate() {
            // SAFETY: the caller vouches for V vectors at each p < k.
            *x = unsafe { s.load_ptr(b.add(p * b_step + v * S::LANES)) };
        }
        for r in 0..R {
            // SAFETY: the caller vouches for row r at each p < k.
            let a = s.splat(unsafe { *row[r].add(p * a_step) });
            for v in 0..V {
                sum[r][v] = s.mul_add(a, row_b[v], sum[r][v]);
            }
        }
    }
    sum
}
