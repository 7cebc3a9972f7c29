//! Between memory and lanes: a block of channels over a tile of tokens, `tile[t * LANES + lane]`.
//!
//! Where channels lie next to each other this is a copy; where tokens do, squares of 4 x 4 are turned in registers.

use super::tiles::TILE;
use sensorium_core::{Float, Simd};

const SQUARE: usize = 4;

/// `tile[t * LANES + c] = src[t * token + c * feature]`, 0 for channels from `channels` on.
///
/// # Safety
/// `src` is readable there for `t < tokens`, `c < channels <= LANES`; `tile` has `tokens * LANES` elements.
#[inline(always)]
pub(super) unsafe fn gather<T: Float, S: Simd<T>>(
    s: S,
    src: *const T,
    (token, feature): (usize, usize),
    tokens: usize,
    channels: usize,
    tile: *mut T,
) {
    // SAFETY: as the caller vouches.
    unsafe {
        if feature == 1 && channels == S::LANES {
            for t in 0..tokens {
                s.store_ptr(tile.add(t * S::LANES), s.load_ptr(src.add(t * token)));
            }
        } else if feature == 1 {
            for t in 0..tokens {
                let head = std::slice::from_raw_parts(src.add(t * token), channels);
                s.store_ptr(tile.add(t * S::LANES), s.load_head(head, T::ZERO));
            }
        } else {
            if channels < S::LANES {
                for t in 0..tokens {
                    s.store_ptr(tile.add(t * S::LANES), s.splat(T::ZERO));
                }
            }
            turn(src, (feature, token), channels, tokens, tile, (1, S::LANES));
        }
    }
}

/// `dst[t * token + c * feature] = tile[t * LANES + c]`.
///
/// # Safety
/// `dst` is writable there for `t < tokens`, `c < channels <= LANES`; `tile` has `tokens * LANES` elements.
#[inline(always)]
pub(super) unsafe fn scatter<T: Float, S: Simd<T>>(
    s: S,
    tile: *const T,
    tokens: usize,
    channels: usize,
    dst: *mut T,
    (token, feature): (usize, usize),
) {
    // SAFETY: as the caller vouches.
    unsafe {
        if feature == 1 && channels == S::LANES {
            for t in 0..tokens {
                s.store_ptr(dst.add(t * token), s.load_ptr(tile.add(t * S::LANES)));
            }
        } else if feature == 1 {
            for t in 0..tokens {
                let head = std::slice::from_raw_parts_mut(dst.add(t * token), channels);
                s.store_head(head, s.load_ptr(tile.add(t * S::LANES)));
            }
        } else {
            turn(tile, (S::LANES, 1), tokens, channels, dst, (token, feature));
        }
    }
}

/// `dst[r * to.0 + c * to.1] = src[r * from.0 + c * from.1]` for `r < rows`, `c < columns`.
///
/// Rows are walked along where `src` is far apart between them, columns where `dst` is: a line of the distant side is
/// finished before the next, of which eight with a distance of 4 kB would not fit the first-level cache.
///
/// # Safety
/// Those elements exist.
#[inline(always)]
pub(super) unsafe fn turn<T: Float>(
    src: *const T,
    from: (usize, usize),
    rows: usize,
    columns: usize,
    dst: *mut T,
    to: (usize, usize),
) {
    let squares = from.1 == 1 && to.0 == 1;
    let (whole_rows, whole_columns) =
        if squares { (rows - rows % SQUARE, columns - columns % SQUARE) } else { (0, 0) };
    let (outer, inner) =
        if from.0 > to.1 { (whole_rows, whole_columns) } else { (whole_columns, whole_rows) };
    // Of source and destination, for a step of the outer and the inner loop.
    let (src_steps, dst_steps) =
        if from.0 > to.1 { ((from.0, 1), (1, to.1)) } else { ((1, from.0), (to.1, 1)) };
    // SAFETY: every index below is within the sizes that the caller vouches for.
    unsafe {
        for o in (0..outer).step_by(SQUARE) {
            let (src, dst) = (src.add(o * src_steps.0), dst.add(o * dst_steps.0));
            for i in (0..inner).step_by(SQUARE) {
                square(src.add(i * src_steps.1), from.0, dst.add(i * dst_steps.1), to.1);
            }
        }
        for r in 0..rows {
            let first = if r < whole_rows { whole_columns } else { 0 };
            for c in first..columns {
                *dst.add(r * to.0 + c * to.1) = *src.add(r * from.0 + c * from.1);
            }
        }
    }
}

/// `dst[c * to + r] = src[r * from + c]` for four rows and four columns.
///
/// # Safety
/// Those elements exist.
#[inline(always)]
unsafe fn square<T: Float>(src: *const T, from: usize, dst: *mut T, to: usize) {
    #[cfg(target_arch = "x86_64")]
    if const { size_of::<T>() == size_of::<f32>() } {
        // SAFETY: `T` is `f32`, the only float of its size; the caller vouches for the elements.
        unsafe { square_f32(src.cast(), from, dst.cast(), to) };
        return;
    }
    // SAFETY: as the caller vouches.
    unsafe {
        let mut rows = [[T::ZERO; SQUARE]; SQUARE];
        for r in 0..SQUARE {
            rows[r] = src.add(r * from).cast::<[T; SQUARE]>().read_unaligned();
        }
        for c in 0..SQUARE {
            let column = [rows[0][c], rows[1][c], rows[2][c], rows[3][c]];
            dst.add(c * to).cast::<[T; SQUARE]>().write_unaligned(column);
        }
    }
}

/// The same in vectors of the baseline: the compiler moves the elements one by one.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn square_f32(src: *const f32, from: usize, dst: *mut f32, to: usize) {
    use std::arch::x86_64::{
        _mm_loadu_ps, _mm_movehl_ps, _mm_movelh_ps, _mm_storeu_ps, _mm_unpackhi_ps, _mm_unpacklo_ps,
    };
    // SAFETY: SSE is in the baseline of x86-64; the caller vouches for the elements.
    unsafe {
        let (a, b) = (_mm_loadu_ps(src), _mm_loadu_ps(src.add(from)));
        let (c, d) = (_mm_loadu_ps(src.add(2 * from)), _mm_loadu_ps(src.add(3 * from)));
        let (ab, cd) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
        let (ab_high, cd_high) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
        _mm_storeu_ps(dst, _mm_movelh_ps(ab, cd));
        _mm_storeu_ps(dst.add(to), _mm_movehl_ps(cd, ab));
        _mm_storeu_ps(dst.add(2 * to), _mm_movelh_ps(ab_high, cd_high));
        _mm_storeu_ps(dst.add(3 * to), _mm_movehl_ps(cd_high, ab_high));
    }
}

/// Where the lines of a block of channels over the next tile are: as many as the tile has tokens, or fewer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ahead<T> {
    at: *const T,
    /// Distance between lines next to each other, `1 << shift` of them, and between such rows.
    near: usize,
    far: usize,
    shift: u32,
}

impl<T: Float> Ahead<T> {
    /// Of a tensor from `at` on.
    pub(super) fn new(at: *const T, (token, feature): (usize, usize)) -> Self {
        let of_line = 64 / size_of::<T>();
        if token == 1 {
            Self { at, near: of_line, far: feature, shift: (TILE / of_line).trailing_zeros() }
        } else {
            Self { at, near: token, far: 0, shift: TILE.trailing_zeros() }
        }
    }

    /// Has line `i` fetched, so that it is there when its tile is.
    #[inline(always)]
    pub(super) fn fetch(self, i: usize) {
        let near = i & ((1 << self.shift) - 1);
        let at = self.at.wrapping_add(near * self.near + (i >> self.shift) * self.far);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: in the baseline of x86-64; an address that is not there is not fetched.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sensorium_core::{Kernel, Level};

    struct ThereAndBack {
        tokens: usize,
        channels: usize,
        last: bool,
    }
    impl<T: Float> Kernel<T> for ThereAndBack {
        type Output = ();
        fn run<S: Simd<T>>(self, s: S) {
            let Self { tokens, channels, last } = self;
            let channels = channels.min(S::LANES);
            let strides = if last { (channels + 3, 1) } else { (1, tokens + 2) };
            let size = (tokens + 2) * (channels + 3);
            let src: Vec<T> = (1..=size).map(T::from_usize).collect();
            let mut tile = vec![T::ONE; tokens * S::LANES];
            let mut back = vec![T::ZERO; size];
            // SAFETY: the sizes are those of the buffers.
            unsafe {
                gather(s, src.as_ptr(), strides, tokens, channels, tile.as_mut_ptr());
                scatter(s, tile.as_ptr(), tokens, channels, back.as_mut_ptr(), strides);
            }
            let mut seen = 0;
            for t in 0..tokens {
                for c in 0..S::LANES {
                    let at = t * strides.0 + c * strides.1;
                    let want = if c < channels { src[at] } else { T::ZERO };
                    assert!(tile[t * S::LANES + c] == want);
                    if c < channels {
                        assert!(back[at] == want);
                        seen += 1;
                    }
                }
            }
            assert_eq!(back.iter().filter(|&&x| x != T::ZERO).count(), seen);
        }
    }

    #[test]
    fn there_and_back() {
        for level in Level::available() {
            for (tokens, channels) in [(0, 4), (1, 1), (4, 16), (7, 3), (64, 16), (13, 9)] {
                for last in [false, true] {
                    f32::dispatch_at(level, ThereAndBack { tokens, channels, last });
                    f64::dispatch_at(level, ThereAndBack { tokens, channels, last });
                }
            }
        }
    }
}
