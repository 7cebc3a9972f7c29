//! A function of vectors over slices of any length: whole vectors first, the tail in part of one.

use crate::{Float, Simd};

/// `out[i] = f(x[i])`.
///
/// # Panics
/// Where the lengths differ.
#[inline(always)]
pub fn map<T: Float, S: Simd<T>>(s: S, x: &[T], out: &mut [T], f: impl Fn(S::V) -> S::V) {
    assert_eq!(x.len(), out.len(), "slices of one length");
    let whole = x.len() - x.len() % S::LANES;
    let (x, x_tail) = x.split_at(whole);
    let (out, out_tail) = out.split_at_mut(whole);
    for (x, out) in x.chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
        s.store(out, f(s.load(x)));
    }
    if !x_tail.is_empty() {
        s.store_head(out_tail, f(s.load_head(x_tail, T::ZERO)));
    }
}

/// `x[i] = f(x[i])`.
#[inline(always)]
pub fn map_in_place<T: Float, S: Simd<T>>(s: S, x: &mut [T], f: impl Fn(S::V) -> S::V) {
    let whole = x.len() - x.len() % S::LANES;
    let (x, tail) = x.split_at_mut(whole);
    for x in x.chunks_exact_mut(S::LANES) {
        s.store(x, f(s.load(x)));
    }
    if !tail.is_empty() {
        s.store_head(tail, f(s.load_head(tail, T::ZERO)));
    }
}

/// `out[i] = f(x[i], y[i])`.
///
/// # Panics
/// Where the lengths differ.
#[inline(always)]
pub fn map2<T: Float, S: Simd<T>>(s: S, x: &[T], y: &[T], out: &mut [T], f: impl Fn(S::V, S::V) -> S::V) {
    assert!(x.len() == out.len() && y.len() == out.len(), "slices of one length");
    let whole = x.len() - x.len() % S::LANES;
    let (x, x_tail) = x.split_at(whole);
    let (y, y_tail) = y.split_at(whole);
    let (out, out_tail) = out.split_at_mut(whole);
    let pairs = x.chunks_exact(S::LANES).zip(y.chunks_exact(S::LANES));
    for ((x, y), out) in pairs.zip(out.chunks_exact_mut(S::LANES)) {
        s.store(out, f(s.load(x), s.load(y)));
    }
    if !x_tail.is_empty() {
        s.store_head(out_tail, f(s.load_head(x_tail, T::ZERO), s.load_head(y_tail, T::ZERO)));
    }
}
