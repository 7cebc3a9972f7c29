//! Many rows: lanes along the rows, in the tiles of `forward.rs`, a block of rows after the other.

use super::Task;
use super::pieces::{Chunk, Walk};
use crate::pack::{transpose_in, transpose_out};
use crate::plan::BLOCK;
use crate::scratch::Scratch;
use crate::tile::{Product, Start};
use crate::view::Rows;
use crate::visit::CHUNK;
use sensorium_core::half::widen_row;
use sensorium_core::math::exp2_nonpositive;
use sensorium_core::{Float, Simd, Storage};
use std::ops::Range;

/// Rows of a product between which the next chunk is asked for, some rows at a time: tiles read columns of short rows,
/// which no processor foresees. With 16 queries from memory, 8.9 GB/s a core; asked for at once 7.4, not at all 6.9.
const STEP: usize = 16;

/// Scratch of a block of rows; `lanes` is their number in whole vectors.
struct Buffers<T> {
    /// `(D, lanes)`: queries.
    qt: *mut T,
    /// `(D, lanes)`: the sum so far.
    ot: *mut T,
    /// `(CHUNK, lanes)`: scores, then probabilities.
    p: *mut T,
    /// `(CHUNK, D)`: keys or values to compute with, where the cache holds others.
    wide: *mut T,
}

/// Running softmax of a block of rows, a lane each.
struct Running<T> {
    max: [T; BLOCK],
    sum: [T; BLOCK],
    alpha: [T; BLOCK],
}

/// Lane `i` sees key `j` of a masked chunk where `lo[i] <= j < hi[i]`; lanes without a row see nothing.
struct Seen<T> {
    lo: [T; BLOCK],
    hi: [T; BLOCK],
}

impl<T: Float> Seen<T> {
    /// Sets scores that are not seen to `-inf`.
    ///
    /// # Safety
    /// `p` has `keys` rows of `width` lanes.
    #[inline(always)]
    unsafe fn hide<S: Simd<T>>(&self, s: S, p: *mut T, width: usize, keys: usize) {
        let (lowest, one) = (s.splat(T::NEG_INFINITY), s.splat(T::ONE));
        for j in (0..width).step_by(S::LANES) {
            let (lo, hi, mut key) = (s.load(&self.lo[j..]), s.load(&self.hi[j..]), s.splat(T::ZERO));
            for i in 0..keys {
                // SAFETY: as the caller vouches.
                unsafe {
                    let at = p.add(i * width + j);
                    let below = s.select(s.lt(key, hi), s.load_ptr(at), lowest);
                    s.store_ptr(at, s.select(s.lt(key, lo), lowest, below));
                }
                key = s.add(key, one);
            }
        }
    }

    /// `out[d, i] += sum_j v[j, d] p[j, i]` over the keys that lane `i` sees: products with what it does not see are
    /// left out, where `0 * inf` would be NaN.
    ///
    /// # Safety
    /// The arrays have `keys` rows, and as many lanes and columns as they say.
    #[cold]
    unsafe fn add(
        &self,
        keys: usize,
        (v, stride): (*const T, usize),
        p: *const T,
        (out, depth): (*mut T, usize),
        width: usize,
    ) {
        for j in 0..keys {
            let key = T::from_usize(j);
            for i in (0..width).filter(|&i| self.lo[i] <= key && key < self.hi[i]) {
                for d in 0..depth {
                    // SAFETY: as the caller vouches.
                    unsafe { *out.add(d * width + i) += *v.add(j * stride + d) * *p.add(j * width + i) };
                }
            }
        }
    }
}

impl<T: Float, E: Storage<Float = T>> Task<'_, T, E> {
    /// Computes the part.
    ///
    /// # Safety
    /// The rows of queries, keys and values exist.
    #[inline(always)]
    pub(super) unsafe fn many<S: Simd<T>>(&mut self, s: S) {
        let (block, chunk) = (self.width * BLOCK, self.width * CHUNK);
        let sizes = [block, block, CHUNK * BLOCK, chunk];
        let mut scratch = Scratch::new::<T>(&sizes);
        let buffers = Buffers {
            qt: scratch.take(sizes[0]),
            ot: scratch.take(sizes[1]),
            p: scratch.take(sizes[2]),
            wide: scratch.take(sizes[3]),
        };
        let blocks = self.rows.div_ceil(BLOCK);
        for b in 0..blocks {
            let (first, end) = (self.rows * b / blocks, self.rows * (b + 1) / blocks);
            // SAFETY: as the caller vouches; the buffers have room for a block.
            unsafe { self.block(s, &buffers, first, end - first) };
        }
    }

    /// Rows `first..first + lanes`.
    #[inline(always)]
    unsafe fn block<S: Simd<T>>(&mut self, s: S, buffers: &Buffers<T>, first: usize, lanes: usize) {
        let width = lanes.next_multiple_of(S::LANES);
        let mut running =
            Running { max: [T::NEG_INFINITY; BLOCK], sum: [T::ZERO; BLOCK], alpha: [T::ZERO; BLOCK] };
        // SAFETY: the buffers hold `width` lanes, the rows exist.
        unsafe {
            let q = self.q[first * self.width..].as_ptr();
            transpose_in(q, self.width, lanes, self.width, self.score.sign, buffers.qt, width);
            std::slice::from_raw_parts_mut(buffers.ot, self.width * width).fill(T::ZERO);
        }
        let mut chunk = Chunk::new();
        let mut seen = Seen { lo: [T::ZERO; BLOCK], hi: [T::ZERO; BLOCK] };
        let mut walk = Walk::new(self.pieces, &self.range, CHUNK);
        while walk.next(&mut chunk) {
            if chunk.masked {
                for i in 0..lanes {
                    let query = (first + i) % self.queries;
                    (seen.lo[i], seen.hi[i]) = (chunk.lo[query], chunk.hi[query]);
                }
            }
            // SAFETY: the keys of a piece exist.
            unsafe {
                let (k, stride) = (self.k.row(chunk.start), self.k.stride);
                let (a, row) = self.wide(s, k, stride, chunk.keys, buffers.wide);
                for key in (0..chunk.keys).step_by(STEP) {
                    let rows = STEP.min(chunk.keys - key);
                    self.prefetch(self.k, &chunk, key..key + rows);
                    Product {
                        a: a.wrapping_add(key * row),
                        row,
                        col: 1,
                        b: buffers.qt,
                        ldb: width,
                        n: self.width,
                        c: buffers.p.add(key * width),
                        ldc: width,
                        rows,
                        columns: width,
                        start: Start::Zero,
                    }
                    .run_in_halves();
                }
                if self.score.shapes() {
                    self.shape_lanes(s, buffers.p, &chunk, first..first + lanes, width);
                }
                if chunk.masked {
                    seen.hide(s, buffers.p, width, chunk.keys);
                }
                self.softmax_lanes(s, buffers.p, &chunk, &mut running, width);
                self.add_values(s, buffers, &chunk, &seen, &running, width);
            }
        }
        let ones = [T::ONE; BLOCK];
        let rows = self.rows;
        let (out, stats) = self.out.split_at_mut(rows * self.width);
        let out = &mut out[first * self.width..][..lanes * self.width];
        // SAFETY: the slice has `lanes` rows.
        unsafe {
            transpose_out(buffers.ot, width, lanes, self.width, ones.as_ptr(), out.as_mut_ptr(), self.width);
        }
        stats[first..][..lanes].copy_from_slice(&running.max[..lanes]);
        stats[rows + first..][..lanes].copy_from_slice(&running.sum[..lanes]);
    }

    /// Rows to compute with and their distance: where they are, or as numbers of arithmetic in `to`.
    #[inline(always)]
    unsafe fn wide<S: Simd<T>>(
        &self,
        s: S,
        from: *const E,
        stride: usize,
        rows: usize,
        to: *mut T,
    ) -> (*const T, usize) {
        if E::IS_FLOAT {
            return (from.cast(), stride);
        }
        for i in 0..rows {
            // SAFETY: as the caller vouches; `to` has room for a chunk.
            unsafe { widen_row(s, from.add(i * stride), to.add(i * self.width), self.width) };
        }
        (to, self.width)
    }

    /// Asks for the rows that lie a chunk after `keys` to come closer; they need not exist.
    #[inline(always)]
    fn prefetch(&self, rows: Rows<E>, chunk: &Chunk<T>, keys: Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        for key in keys {
            let row = rows.row(chunk.start + chunk.keys + key).cast::<i8>();
            for at in (0..self.width * size_of::<E>()).step_by(64) {
                use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
                // SAFETY: SSE is in the baseline of x86-64, and a hint reads nothing.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(row.wrapping_add(at)) };
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (rows, chunk, keys);
    }

    /// Products to what the softmax takes, where more than scaling is asked for.
    #[inline(always)]
    unsafe fn shape_lanes<S: Simd<T>>(
        &self,
        s: S,
        p: *mut T,
        chunk: &Chunk<T>,
        rows: Range<usize>,
        width: usize,
    ) {
        let (mut slope, mut apart) = ([T::ZERO; BLOCK], [T::ZERO; BLOCK]);
        for (i, row) in rows.enumerate() {
            (slope[i], apart[i]) = self.slope(row, chunk.start);
        }
        for j in (0..width).step_by(S::LANES) {
            let (slope, mut apart, one) = (s.load(&slope[j..]), s.load(&apart[j..]), s.splat(T::ONE));
            for key in 0..chunk.keys {
                // SAFETY: the buffer holds `CHUNK` rows of `width` lanes.
                unsafe {
                    let at = p.add(key * width + j);
                    s.store_ptr(at, self.shaped(s, s.load_ptr(at), slope, apart));
                }
                apart = s.sub(apart, one);
            }
        }
    }

    /// Scores to `2^(factor (score - max))`, 0 where masked, and the running maximum and sum.
    #[inline(always)]
    unsafe fn softmax_lanes<S: Simd<T>>(
        &self,
        s: S,
        p: *mut T,
        chunk: &Chunk<T>,
        running: &mut Running<T>,
        width: usize,
    ) {
        let (zero, lowest, factor) = (s.splat(T::ZERO), s.splat(T::NEG_INFINITY), s.splat(self.score.factor));
        for j in (0..width).step_by(S::LANES) {
            // SAFETY: the buffer holds `CHUNK` rows of `width` lanes.
            let p = unsafe { p.add(j) };
            let before = s.load(&running.max[j..]);
            let mut max = before;
            for key in 0..chunk.keys {
                // SAFETY: as above.
                max = s.max(unsafe { s.load_ptr(p.add(key * width)) }, max);
            }
            s.store(&mut running.max[j..], max);
            let used = s.select(s.lt(lowest, max), max, zero);
            let alpha = exp2_nonpositive(s, s.mul(s.sub(before, used), factor));
            s.store(&mut running.alpha[j..], alpha);
            // Four sums a chunk, then the chunks: a long sum, one term after another, would cost digits.
            let mut sums = [zero; 4];
            for key in (0..chunk.keys).step_by(4) {
                for part in 0..4.min(chunk.keys - key) {
                    // SAFETY: as above.
                    unsafe {
                        let at = p.add((key + part) * width);
                        let value = exp2_nonpositive(s, s.mul(s.sub(s.load_ptr(at), used), factor));
                        sums[part] = s.add(sums[part], value);
                        s.store_ptr(at, value);
                    }
                }
            }
            let sum = s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]));
            let sum = s.mul_add(s.load(&running.sum[j..]), alpha, sum);
            s.store(&mut running.sum[j..], sum);
        }
    }

    /// `O^T = alpha O^T + V^T P^T` over a chunk.
    #[inline(always)]
    unsafe fn add_values<S: Simd<T>>(
        &self,
        s: S,
        buffers: &Buffers<T>,
        chunk: &Chunk<T>,
        seen: &Seen<T>,
        running: &Running<T>,
        width: usize,
    ) {
        // SAFETY: the chunk's values exist, and the buffers hold `width` lanes.
        unsafe {
            let (v, stride) = (self.v.row(chunk.start), self.v.stride);
            let (v, stride) = self.wide(s, v, stride, chunk.keys, buffers.wide);
            if chunk.masked && !self.finite(s, chunk) {
                for d in 0..self.width {
                    for i in 0..width {
                        *buffers.ot.add(d * width + i) *= running.alpha[i];
                    }
                }
                seen.add(chunk.keys, (v, stride), buffers.p, (buffers.ot, self.width), width);
                return;
            }
            for d in (0..self.width).step_by(STEP) {
                let rows = STEP.min(self.width - d);
                let keys = chunk.keys * d / self.width..chunk.keys * (d + rows) / self.width;
                self.prefetch(self.v, chunk, keys);
                Product {
                    a: v.wrapping_add(d),
                    row: 1,
                    col: stride,
                    b: buffers.p,
                    ldb: width,
                    n: chunk.keys,
                    c: buffers.ot.add(d * width),
                    ldc: width,
                    rows,
                    columns: width,
                    start: Start::Scaled(running.alpha.as_ptr()),
                }
                .run();
            }
        }
    }
}
