//! Squares of four by four, turned in registers: what transpositions are made of.
//!
//! Moving elements one by one takes seven times as long where rows are far apart.

use crate::Float;

/// Side of a square.
pub const SQUARE: usize = 4;

/// `dst[c * to + r] = factors[c] * src[r * from + c]` for four rows and four columns.
///
/// # Safety
/// Those elements exist.
#[inline(always)]
pub unsafe fn square<T: Float>(src: *const T, from: usize, factors: [T; SQUARE], dst: *mut T, to: usize) {
    #[cfg(target_arch = "x86_64")]
    if const { size_of::<T>() == size_of::<f32>() } {
        // SAFETY: `T` is `f32`, the only float of its size; the caller vouches for the elements.
        unsafe { square_f32(src.cast(), from, factors.map(|x| x.to_f64() as f32), dst.cast(), to) };
        return;
    }
    // SAFETY: as the caller vouches.
    unsafe {
        let mut rows = [[T::ZERO; SQUARE]; SQUARE];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = src.add(r * from).cast::<[T; SQUARE]>().read_unaligned();
        }
        for (c, &factor) in factors.iter().enumerate() {
            let column = [rows[0][c] * factor, rows[1][c] * factor, rows[2][c] * factor, rows[3][c] * factor];
            dst.add(c * to).cast::<[T; SQUARE]>().write_unaligned(column);
        }
    }
}

/// The same in vectors of the baseline.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn square_f32(src: *const f32, from: usize, factors: [f32; SQUARE], dst: *mut f32, to: usize) {
    use std::arch::x86_64::{
        _mm_loadu_ps, _mm_movehl_ps, _mm_movelh_ps, _mm_mul_ps, _mm_set1_ps, _mm_storeu_ps, _mm_unpackhi_ps,
        _mm_unpacklo_ps,
    };
    // SAFETY: SSE is in the baseline of x86-64; the caller vouches for the elements.
    unsafe {
        let (a, b) = (_mm_loadu_ps(src), _mm_loadu_ps(src.add(from)));
        let (c, d) = (_mm_loadu_ps(src.add(2 * from)), _mm_loadu_ps(src.add(3 * from)));
        let (ab, cd) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
        let (ab_high, cd_high) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
        let columns = [
            _mm_movelh_ps(ab, cd),
            _mm_movehl_ps(cd, ab),
            _mm_movelh_ps(ab_high, cd_high),
            _mm_movehl_ps(cd_high, ab_high),
        ];
        for (i, column) in columns.into_iter().enumerate() {
            _mm_storeu_ps(dst.add(i * to), _mm_mul_ps(column, _mm_set1_ps(factors[i])));
        }
    }
}
