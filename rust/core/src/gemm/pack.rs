//! Packing: a panel holds `width` rows of `A` or columns of `B`, all its lanes of one `k` next to each other,
//! so that the microkernel reads memory in order. Half precision is widened on the way.

use crate::{Float, MAX_LANES, Simd, Storage};

/// Steps of `k` that are transposed together, so that both sides of the copy stay in cache lines at hand.
const TRANSPOSED: usize = MAX_LANES;

/// `out[p * width + lane] = src[lane * lane_stride + p * k_stride]`, lanes from `lanes` on being zero.
///
/// # Safety
/// `src` is readable at all those places for `lane < lanes` and `p < k`; `out.len() == k * width`.
#[inline(always)]
pub(super) unsafe fn panel<T: Float, S: Simd<T>, E: Storage<Float = T>>(
    s: S,
    width: usize,
    lanes: usize,
    k: usize,
    src: *const E,
    (lane_stride, k_stride): (usize, usize),
    out: &mut [T],
) {
    debug_assert!(out.len() == k * width && lanes <= width);
    let read = |lane: usize, p: usize| {
        // SAFETY: every read below is of a lane < lanes and a p < k, for which the caller vouches.
        unsafe { *src.add(lane * lane_stride + p * k_stride) }.widen()
    };
    if lane_stride == 1 && lanes == width && width.is_multiple_of(S::LANES) {
        for (p, out) in out.chunks_exact_mut(width).enumerate() {
            for (v, out) in out.chunks_exact_mut(S::LANES).enumerate() {
                // SAFETY: whole vectors of lanes below `lanes`.
                s.store(out, unsafe { E::load_ptr(s, src.add(v * S::LANES + p * k_stride)) });
            }
        }
    } else if lane_stride == 1 && lanes == width {
        for (p, out) in out.chunks_exact_mut(width).enumerate() {
            for (lane, x) in out.iter_mut().enumerate() {
                *x = read(lane, p);
            }
        }
    } else if lane_stride == 1 {
        for (p, out) in out.chunks_exact_mut(width).enumerate() {
            let (full, rest) = out.split_at_mut(lanes);
            for (lane, x) in full.iter_mut().enumerate() {
                *x = read(lane, p);
            }
            rest.fill(T::ZERO);
        }
    } else {
        for (block, out) in out.chunks_mut(TRANSPOSED * width).enumerate() {
            let steps = out.len() / width;
            for lane in 0..lanes {
                if !E::IS_FLOAT && k_stride == 1 && steps == TRANSPOSED {
                    let mut wide = [T::ZERO; TRANSPOSED];
                    let from = src.wrapping_add(lane * lane_stride + block * TRANSPOSED);
                    for p in (0..TRANSPOSED).step_by(S::LANES) {
                        // SAFETY: `TRANSPOSED` steps of a lane, whole vectors of them.
                        s.store(&mut wide[p..], unsafe { E::load_ptr(s, from.add(p)) });
                    }
                    for (p, &x) in wide.iter().enumerate() {
                        out[p * width + lane] = x;
                    }
                    continue;
                }
                for (p, x) in out[lane..].iter_mut().step_by(width).enumerate() {
                    *x = read(lane, block * TRANSPOSED + p);
                }
            }
            for lane in lanes..width {
                out[lane..].iter_mut().step_by(width).for_each(|x| *x = T::ZERO);
            }
        }
    }
}
