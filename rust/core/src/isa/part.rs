//! Vectors at the end of a row: as many lanes as there are.

use super::Simd;
use crate::Float;
use std::slice::{from_raw_parts, from_raw_parts_mut};

/// The vector at `x` or, where it is not `FULL`, its first `n` lanes and zeros.
///
/// # Safety
/// `x` is readable for those lanes.
#[inline(always)]
pub unsafe fn load<T: Float, S: Simd<T>, const FULL: bool>(s: S, x: *const T, n: usize) -> S::V {
    // SAFETY: as the caller vouches.
    unsafe { if FULL { s.load_ptr(x) } else { s.load_head(from_raw_parts(x, n), T::ZERO) } }
}

/// Writes a vector to `x` or, where it is not `FULL`, its first `n` lanes.
///
/// # Safety
/// `x` is writable for those lanes.
#[inline(always)]
pub unsafe fn store<T: Float, S: Simd<T>, const FULL: bool>(s: S, x: *mut T, n: usize, v: S::V) {
    // SAFETY: as the caller vouches.
    unsafe { if FULL { s.store_ptr(x, v) } else { s.store_head(from_raw_parts_mut(x, n), v) } }
}

/// [`load`], by whether there are as many lanes as a vector has.
///
/// # Safety
/// `x` is readable for `n` lanes.
#[inline(always)]
pub unsafe fn load_first<T: Float, S: Simd<T>>(s: S, x: *const T, n: usize) -> S::V {
    // SAFETY: as the caller vouches.
    unsafe { if n == S::LANES { load::<T, S, true>(s, x, n) } else { load::<T, S, false>(s, x, n) } }
}

/// [`store`], by whether there are as many lanes as a vector has.
///
/// # Safety
/// `x` is writable for `n` lanes.
#[inline(always)]
pub unsafe fn store_first<T: Float, S: Simd<T>>(s: S, x: *mut T, n: usize, v: S::V) {
    // SAFETY: as the caller vouches.
    unsafe { if n == S::LANES { store::<T, S, true>(s, x, n, v) } else { store::<T, S, false>(s, x, n, v) } }
}
