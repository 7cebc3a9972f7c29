//! The register tile: every matrix product of the kernel is this one loop.
//!
//! `C (MR, NR vectors) += A (MR, n) B (n, NR vectors)`: an element of `A` is broadcast, a row of `B` is loaded, and
//! `MR * NR` accumulators stay in registers. Queries lie along the lanes in the score and value products, so keys
//! and values are only ever broadcast: they are read where they are, in rows of any stride, and never packed; a
//! row's running maximum and sum are lanes of a vector, and no sum runs across lanes.

use sensorium_core::{Float, Simd};

/// Most vectors of a tile along its columns.
pub(crate) const MAX_NR: usize = 3;

/// `acc[i][j] += sum_p a[i * row + p * col] * b[p * ldb + j * LANES..]`, over `p < n`.
///
/// # Safety
/// All those elements are readable.
#[inline(always)]
pub(crate) unsafe fn multiply<T: Float, S: Simd<T>, const MR: usize, const NR: usize>(
    s: S,
    mut acc: [[S::V; NR]; MR],
    a: *const T,
    (row, col): (usize, usize),
    b: *const T,
    ldb: usize,
    n: usize,
) -> [[S::V; NR]; MR] {
    for p in 0..n {
        // SAFETY: the caller vouches for every element that the sum above names.
        unsafe {
            let mut bv = [s.splat(T::ZERO); NR];
            for (j, bv) in bv.iter_mut().enumerate() {
                *bv = s.load_ptr(b.add(p * ldb + j * S::LANES));
            }
            for (i, acc) in acc.iter_mut().enumerate() {
                let av = s.splat(*a.add(i * row + p * col));
                for (acc, &bv) in acc.iter_mut().zip(&bv) {
                    *acc = s.mul_add(av, bv, *acc);
                }
            }
        }
    }
    acc
}

/// Vectors from `c`, `ldc` apart.
///
/// # Safety
/// All those elements are readable.
#[inline(always)]
pub(crate) unsafe fn load<T: Float, S: Simd<T>, const MR: usize, const NR: usize>(
    s: S,
    c: *const T,
    ldc: usize,
) -> [[S::V; NR]; MR] {
    let mut acc = [[s.splat(T::ZERO); NR]; MR];
    for (i, acc) in acc.iter_mut().enumerate() {
        for (j, acc) in acc.iter_mut().enumerate() {
            // SAFETY: as the caller vouches.
            *acc = unsafe { s.load_ptr(c.add(i * ldc + j * S::LANES)) };
        }
    }
    acc
}

/// Vectors to `c`, `ldc` apart.
///
/// # Safety
/// All those elements are writable.
#[inline(always)]
pub(crate) unsafe fn store<T: Float, S: Simd<T>, const MR: usize, const NR: usize>(
    s: S,
    acc: [[S::V; NR]; MR],
    c: *mut T,
    ldc: usize,
) {
    for (i, acc) in acc.into_iter().enumerate() {
        for (j, acc) in acc.into_iter().enumerate() {
            // SAFETY: as the caller vouches.
            unsafe { s.store_ptr(c.add(i * ldc + j * S::LANES), acc) };
        }
    }
}

/// Runs `$body` for tiles of rows that cover `0..$n`: eight, four, two and one rows high, or four, two and one where
/// there are 16 registers. `$MR` is the height, `$at` the first row.
macro_rules! for_tiles {
    ($S:ident, $n:expr, $MR:ident, $at:ident => $body:expr) => {{
        let n: usize = $n;
        let mut $at = 0;
        if $S::REGISTERS >= 32 {
            const $MR: usize = 8;
            while $at + $MR <= n {
                $body;
                $at += $MR;
            }
        }
        {
            const $MR: usize = 4;
            while $at + $MR <= n {
                $body;
                $at += $MR;
            }
        }
        {
            const $MR: usize = 2;
            while $at + $MR <= n {
                $body;
                $at += $MR;
            }
        }
        {
            const $MR: usize = 1;
            while $at + $MR <= n {
                $body;
                $at += $MR;
            }
        }
    }};
}
pub(crate) use for_tiles;
