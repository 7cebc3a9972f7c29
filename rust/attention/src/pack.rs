//! Rows of tokens to lanes of queries and back.
//!
//! Squares of 4 x 4 are turned in registers: with short segments, where a block sees some forty keys, moving elements
//! one by one took a quarter of the time.

use sensorium_core::Float;

/// Side of the squares that a transposition moves at once.
const SQUARE: usize = 4;

/// `dst[d * width + i] = scale * src[i * stride + d]` for `i < rows`, 0 for `rows <= i < width`.
///
/// # Safety
/// `src` has `rows` rows of `depth` elements, `dst` has `depth * width`.
#[inline(always)]
pub(crate) unsafe fn transpose_in<T: Float>(
    src: *const T,
    stride: usize,
    rows: usize,
    depth: usize,
    scale: T,
    dst: *mut T,
    width: usize,
) {
    let (whole_rows, whole_depth) = (rows - rows % SQUARE, depth - depth % SQUARE);
    // SAFETY: every index below is within the sizes that the caller vouches for.
    unsafe {
        for i in (0..whole_rows).step_by(SQUARE) {
            for d in (0..whole_depth).step_by(SQUARE) {
                square(src.add(i * stride + d), stride, [scale; SQUARE], dst.add(d * width + i), width);
            }
        }
        for i in 0..rows {
            let from = if i < whole_rows { whole_depth } else { 0 };
            for d in from..depth {
                *dst.add(d * width + i) = *src.add(i * stride + d) * scale;
            }
        }
        for d in 0..depth {
            for i in rows..width {
                *dst.add(d * width + i) = T::ZERO;
            }
        }
    }
}

/// `dst[i * stride + d] = scale[i] * src[d * width + i]` for `i < rows`.
///
/// # Safety
/// `src` has `depth * width` elements, `scale` has `rows`, `dst` has `rows` rows of `depth`.
#[inline(always)]
pub(crate) unsafe fn transpose_out<T: Float>(
    src: *const T,
    width: usize,
    rows: usize,
    depth: usize,
    scale: *const T,
    dst: *mut T,
    stride: usize,
) {
    let (whole_rows, whole_depth) = (rows - rows % SQUARE, depth - depth % SQUARE);
    // SAFETY: every index below is within the sizes that the caller vouches for.
    unsafe {
        for i in (0..whole_rows).step_by(SQUARE) {
            let factors = scale.add(i).cast::<[T; SQUARE]>().read_unaligned();
            for d in (0..whole_depth).step_by(SQUARE) {
                square(src.add(d * width + i), width, factors, dst.add(i * stride + d), stride);
            }
        }
        for i in 0..rows {
            let from = if i < whole_rows { whole_depth } else { 0 };
            for d in from..depth {
                *dst.add(i * stride + d) = *src.add(d * width + i) * *scale.add(i);
            }
        }
    }
}

/// `dst[c * to + r] = factors[c] * src[r * from + c]` for four rows and four columns.
///
/// # Safety
/// Those elements exist.
#[inline(always)]
unsafe fn square<T: Float>(src: *const T, from: usize, factors: [T; SQUARE], dst: *mut T, to: usize) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Float>() {
        for (rows, depth) in [(1, 1), (4, 4), (7, 9), (16, 32), (5, 3)] {
            let (stride, width) = (depth + 2, rows + 3);
            let src: Vec<T> = (0..rows * stride).map(T::from_usize).collect();
            let mut lanes = vec![T::ONE; depth * width];
            let mut back = vec![T::ZERO; rows * stride];
            let factors: Vec<T> = (0..rows).map(|i| T::from_usize(i + 1)).collect();
            // SAFETY: the sizes are those of the buffers.
            unsafe {
                transpose_in(src.as_ptr(), stride, rows, depth, T::from_f64(2.0), lanes.as_mut_ptr(), width);
                let (from, to) = (lanes.as_ptr(), back.as_mut_ptr());
                transpose_out(from, width, rows, depth, factors.as_ptr(), to, stride);
            }
            for i in 0..width {
                for d in 0..depth {
                    let (want, got) = (i * stride + d, lanes[d * width + i]);
                    assert_eq!(got, if i < rows { T::from_usize(2 * want) } else { T::ZERO });
                    if i < rows {
                        assert_eq!(back[want], T::from_usize(2 * want * (i + 1)));
                    }
                }
            }
        }
    }

    #[test]
    fn there_and_back() {
        check::<f32>();
        check::<f64>();
    }
}
