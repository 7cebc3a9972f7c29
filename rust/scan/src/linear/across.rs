//! Tokens as rows of channels, `(B, L, D)`: vectors run across channels.

use super::Run;
use sensorium_core::{Float, Simd};
use std::slice::{from_raw_parts, from_raw_parts_mut};

/// Vectors that a pass over the tokens takes along, so that multiply-adds need not wait for each other.
const VECTORS: usize = 4;

#[inline(always)]
pub(super) fn run<T: Float, S: Simd<T>, const BACKWARD: bool, const WRITE: bool>(s: S, run: &mut Run<'_, T>) {
    let width = run.channels.len();
    let mut c = 0;
    while c < width {
        if c + VECTORS * S::LANES <= width {
            vectors::<T, S, BACKWARD, WRITE, VECTORS, true>(s, run, c, S::LANES);
            c += VECTORS * S::LANES;
        } else if c + S::LANES <= width {
            vectors::<T, S, BACKWARD, WRITE, 1, true>(s, run, c, S::LANES);
            c += S::LANES;
        } else {
            vectors::<T, S, BACKWARD, WRITE, 1, false>(s, run, c, width - c);
            c = width;
        }
    }
}

/// The vector at `x[at..]`, or its first `n` lanes.
///
/// # Safety
/// `x` holds them.
#[inline(always)]
unsafe fn load<T: Float, S: Simd<T>, const FULL: bool>(s: S, x: *const T, n: usize) -> S::V {
    // SAFETY: as the caller vouches.
    unsafe { if FULL { s.load_ptr(x) } else { s.load_head(from_raw_parts(x, n), T::ZERO) } }
}

#[inline(always)]
unsafe fn store<T: Float, S: Simd<T>, const FULL: bool>(s: S, x: *mut T, n: usize, v: S::V) {
    // SAFETY: as the caller vouches.
    unsafe { if FULL { s.store_ptr(x, v) } else { s.store_head(from_raw_parts_mut(x, n), v) } }
}

/// `V` vectors of channels from `c` of the block on, or the first `n` lanes of one.
#[inline(always)]
fn vectors<
    T: Float,
    S: Simd<T>,
    const BACKWARD: bool,
    const WRITE: bool,
    const V: usize,
    const FULL: bool,
>(
    s: S,
    run: &mut Run<'_, T>,
    c: usize,
    n: usize,
) {
    let (scan, piece, dims) = (run.scan, run.piece, run.scan.dims);
    let (d, stride, tokens) = (run.channels.start + c, dims.width, piece.tokens.len());
    if tokens == 0 {
        return;
    }
    let (mut state, mut product) = ([s.splat(T::ZERO); V], [s.splat(T::ONE); V]);
    for v in 0..V {
        let lanes = c + v * S::LANES..c + v * S::LANES + n;
        state[v] = s.load_head(&run.state[lanes.clone()], T::ZERO);
        if !WRITE {
            product[v] = s.load_head(&run.product[lanes], T::ONE);
        }
    }
    let first = dims.at(piece.sequence.row, d, piece.tokens.start);
    let span = first..first + (tokens - 1) * stride + (V - 1) * S::LANES + n;
    let (a, x) = (scan.a[span.clone()].as_ptr(), scan.x[span.clone()].as_ptr());
    let falls = scan.falls::<BACKWARD>();
    // Where `h` before each token is.
    let h = if BACKWARD && WRITE { scan.h.as_ptr().wrapping_add(first) } else { x };
    let mut earlier = [s.splat(T::ZERO); V];
    if let (true, Some(initial), Some(i)) = (BACKWARD, scan.initial, dims.begins(&piece.sequence)) {
        for v in 0..V {
            let at = i * stride + d + v * S::LANES;
            earlier[v] = s.load_head(&initial[at..at + n], T::ZERO);
        }
    }
    let begin = if dims.reverse { piece.sequence.end - 1 } else { piece.sequence.start };
    // SAFETY: this task alone writes these channels of the piece.
    let out = if WRITE { unsafe { scan.out.start_of(span.clone()) } } else { std::ptr::null_mut() };
    let da = match scan.da {
        // SAFETY: as above.
        Some(da) if WRITE => unsafe { da.start_of(span) },
        _ => std::ptr::null_mut(),
    };
    for i in 0..tokens {
        let t = if falls { tokens - 1 - i } else { i };
        let opens = BACKWARD && WRITE && piece.tokens.start + t == begin;
        let before = if dims.reverse { (t + 1) * stride } else { t.wrapping_sub(1).wrapping_mul(stride) };
        for v in 0..V {
            let at = t * stride + v * S::LANES;
            // SAFETY: the arrays hold these tokens and channels; `h` also the token before, unless there is none.
            unsafe {
                let (gate, new) = (load::<T, S, FULL>(s, a.add(at), n), load::<T, S, FULL>(s, x.add(at), n));
                if !WRITE {
                    product[v] = s.mul(product[v], gate);
                }
                if BACKWARD {
                    let g = s.add(new, state[v]);
                    if WRITE {
                        let h = if opens {
                            earlier[v]
                        } else {
                            load::<T, S, FULL>(s, h.wrapping_add(before).wrapping_add(v * S::LANES), n)
                        };
                        store::<T, S, FULL>(s, out.add(at), n, g);
                        store::<T, S, FULL>(s, da.add(at), n, s.mul(g, h));
                    }
                    state[v] = s.mul(gate, g);
                } else {
                    state[v] = s.mul_add(gate, state[v], new);
                    if WRITE {
                        store::<T, S, FULL>(s, out.add(at), n, state[v]);
                    }
                }
            }
        }
    }
    for v in 0..V {
        let lanes = c + v * S::LANES..c + v * S::LANES + n;
        s.store_head(&mut run.state[lanes.clone()], state[v]);
        if !WRITE {
            s.store_head(&mut run.product[lanes], product[v]);
        }
    }
}
