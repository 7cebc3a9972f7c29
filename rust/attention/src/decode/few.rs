//! Few rows: lanes along `D`.
//!
//! Rows are taken in groups of one, two or four. Keys and values are loaded as they lie in memory, each number once
//! for a group, and multiplied with all its rows; a vector of scores holds as many (row, key) pairs as it has lanes,
//! `rows x keys = LANES`, so that the exponential wastes none.

use super::pieces::{Chunk, Walk};
use super::{FEW, Task};
use crate::scratch::Scratch;
use sensorium_core::math::exp2_nonpositive;
use sensorium_core::{Float, MAX_LANES, Simd, Storage};

/// Most keys of a chunk: with 64, eight queries take a tenth longer, with 256 one query does.
const CHUNK: usize = 128;

/// The running softmax of a group of rows. Lane `l` belongs to row `l / (LANES / rows)`; all lanes of a row agree but
/// for the sum, which is spread over them.
struct Running<T> {
    max: [T; MAX_LANES],
    sum: [T; MAX_LANES],
    /// First row, and rows that exist: a group of three is one of four.
    first: usize,
    rows: usize,
    /// Rows computed.
    size: usize,
}

/// Where a group works.
struct Buffers<T> {
    /// `(rows, stride)`: queries, and zeros to whole vectors.
    q: *mut T,
    /// `(rows, stride)`: the sum so far.
    out: *mut T,
    stride: usize,
    /// Probabilities of a chunk, a vector of (row, key) pairs after the other.
    p: *mut T,
}

impl<T: Float, E: Storage<Float = T>> Task<'_, T, E> {
    /// Computes the part.
    ///
    /// # Safety
    /// The rows of queries, keys and values exist; there are at most [`FEW`] rows.
    #[inline(always)]
    pub(super) unsafe fn few<S: Simd<T>>(&mut self, s: S) {
        let stride = self.width.next_multiple_of(S::LANES);
        let sizes = [(FEW + 4) * stride, (FEW + 4) * stride, (CHUNK + MAX_LANES) * 4];
        let mut scratch = Scratch::new::<T>(&sizes);
        let (q, out, p) = (scratch.take(sizes[0]), scratch.take(sizes[1]), scratch.take(sizes[2]));
        // SAFETY: the buffers have room for all rows, and for three that fill a group up.
        unsafe {
            std::slice::from_raw_parts_mut(q, sizes[0]).fill(T::ZERO);
            std::slice::from_raw_parts_mut(out, sizes[1]).fill(T::ZERO);
            for r in 0..self.rows {
                for d in 0..self.width {
                    *q.add(r * stride + d) = self.q[r * self.width + d] * self.score.sign;
                }
            }
        }
        let lanes = [T::NEG_INFINITY; MAX_LANES];
        let mut groups: [Running<T>; FEW] = std::array::from_fn(|_| Running {
            max: lanes,
            sum: [T::ZERO; MAX_LANES],
            first: 0,
            rows: 0,
            size: 0,
        });
        let (mut count, mut first) = (0, 0);
        while first < self.rows {
            let left = self.rows - first;
            let size = if left >= 3 && S::LANES >= 4 { 4 } else { left.min(2) };
            (groups[count].first, groups[count].rows, groups[count].size) = (first, size.min(left), size);
            first += groups[count].rows;
            count += 1;
        }
        let mut chunk = Chunk::new();
        let mut walk = Walk::new(self.pieces, &self.range, CHUNK);
        while walk.next(&mut chunk) {
            for group in &mut groups[..count] {
                // SAFETY: as above; the keys of a piece exist.
                unsafe {
                    let at = group.first * stride;
                    let buffers = Buffers { q: q.add(at), out: out.add(at), stride, p };
                    match group.size {
                        4 => self.group::<S, 4>(s, &chunk, group, &buffers),
                        2 => self.group::<S, 2>(s, &chunk, group, &buffers),
                        _ => self.group::<S, 1>(s, &chunk, group, &buffers),
                    }
                }
            }
        }
        let (rows, stats) = self.out.split_at_mut(self.rows * self.width);
        for group in &groups[..count] {
            let keys = S::LANES / group.size;
            for r in 0..group.rows {
                let row = group.first + r;
                // SAFETY: a row of the buffer.
                let from = unsafe { std::slice::from_raw_parts(out.add(row * stride), self.width) };
                rows[row * self.width..][..self.width].copy_from_slice(from);
                stats[row] = group.max[r * keys];
                let mut sum = T::ZERO;
                for &x in &group.sum[r * keys..(r + 1) * keys] {
                    sum += x;
                }
                stats[self.rows + row] = sum;
            }
        }
    }

    #[inline(always)]
    unsafe fn group<S: Simd<T>, const R: usize>(
        &self,
        s: S,
        chunk: &Chunk<T>,
        running: &mut Running<T>,
        buffers: &Buffers<T>,
    ) {
        // SAFETY: as the caller vouches.
        unsafe {
            self.scores::<S, R>(s, chunk, buffers);
            if self.score.shapes() {
                self.shape::<S, R>(s, chunk, running.first, buffers.p);
            }
            let alpha = self.softmax::<S, R>(s, chunk, running, buffers.p);
            self.values::<S, R>(s, chunk, running, buffers, &alpha);
        }
    }

    /// Products of the rows with the keys of a chunk.
    #[inline(always)]
    unsafe fn scores<S: Simd<T>, const R: usize>(&self, s: S, chunk: &Chunk<T>, buffers: &Buffers<T>) {
        let keys = S::LANES / R;
        let whole = self.width - self.width % S::LANES;
        let last = chunk.keys - 1;
        let mut to = buffers.p;
        for block in (0..chunk.keys).step_by(keys) {
            let mut sums = [s.splat(T::ZERO); MAX_LANES];
            for j in 0..keys {
                // Keys after the last are the last again, and hidden.
                let key = self.k.row(chunk.start + last.min(block + j));
                let mut acc = [s.splat(T::ZERO); R];
                // SAFETY: the key exists; the queries have zeros to whole vectors.
                unsafe {
                    for d in (0..whole).step_by(S::LANES) {
                        let k = E::load_ptr(s, key.add(d));
                        for r in 0..R {
                            acc[r] = s.mul_add(k, s.load_ptr(buffers.q.add(r * buffers.stride + d)), acc[r]);
                        }
                    }
                    if whole < self.width {
                        let k = E::load_head_ptr(s, key.add(whole), self.width - whole);
                        for r in 0..R {
                            let q = s.load_ptr(buffers.q.add(r * buffers.stride + whole));
                            acc[r] = s.mul_add(k, q, acc[r]);
                        }
                    }
                }
                for r in 0..R {
                    sums[r * keys + j] = acc[r];
                }
            }
            // SAFETY: the buffer has a vector for each block.
            unsafe {
                s.store_ptr(to, s.reduce_sums(sums));
                to = to.add(S::LANES);
            }
        }
    }

    /// Products to what the softmax takes, where more than scaling is asked for.
    #[inline(always)]
    unsafe fn shape<S: Simd<T>, const R: usize>(&self, s: S, chunk: &Chunk<T>, first: usize, p: *mut T) {
        let keys = S::LANES / R;
        let (mut slope, mut apart) = ([T::ZERO; MAX_LANES], [T::ZERO; MAX_LANES]);
        for l in 0..S::LANES {
            // The row that fills a group up is like the last one.
            let row = (first + l / keys).min(self.rows - 1);
            (slope[l], apart[l]) = self.slope(row, chunk.start + l % keys);
        }
        let (slope, mut apart, step) = (s.load(&slope), s.load(&apart), s.splat(T::from_usize(keys)));
        for block in 0..chunk.keys.div_ceil(keys) {
            // SAFETY: the buffer has a vector for each block.
            unsafe {
                let at = p.add(block * S::LANES);
                s.store_ptr(at, self.shaped(s, s.load_ptr(at), slope, apart));
            }
            apart = s.sub(apart, step);
        }
    }

    /// Scores to `2^(factor (score - max))`, 0 where hidden; returns what the sums before are to be multiplied by.
    #[inline(always)]
    unsafe fn softmax<S: Simd<T>, const R: usize>(
        &self,
        s: S,
        chunk: &Chunk<T>,
        running: &mut Running<T>,
        p: *mut T,
    ) -> [T; MAX_LANES] {
        let keys = S::LANES / R;
        let blocks = chunk.keys.div_ceil(keys);
        let (zero, lowest, factor) = (s.splat(T::ZERO), s.splat(T::NEG_INFINITY), s.splat(self.score.factor));
        if chunk.masked || !chunk.keys.is_multiple_of(keys) {
            // SAFETY: the buffer has a vector for each block.
            unsafe { self.hide::<S, R>(s, chunk, running.first, p) };
        }
        let before = s.load(&running.max);
        let mut max = before;
        for block in 0..blocks {
            // A NaN score leaves the maximum alone and shows in the sum.
            // SAFETY: as above.
            max = s.max(unsafe { s.load_ptr(p.add(block * S::LANES)) }, max);
        }
        if R == 1 {
            max = s.splat(s.reduce_max(max));
            s.store(&mut running.max, max);
        } else {
            s.store(&mut running.max, max);
            for r in 0..R {
                let lanes = &mut running.max[r * keys..(r + 1) * keys];
                let mut top = T::NEG_INFINITY;
                for &x in &*lanes {
                    top = top.max(x);
                }
                lanes.fill(top);
            }
            max = s.load(&running.max);
        }
        // The maximum is subtracted before scores are scaled: that is exact near the maximum, however large it is.
        let used = s.select(s.lt(lowest, max), max, zero);
        let alpha = exp2_nonpositive(s, s.mul(s.sub(before, used), factor));
        let mut sum = zero;
        for block in 0..blocks {
            // SAFETY: as above.
            unsafe {
                let at = p.add(block * S::LANES);
                let value = exp2_nonpositive(s, s.mul(s.sub(s.load_ptr(at), used), factor));
                sum = s.add(sum, value);
                s.store_ptr(at, value);
            }
        }
        let sum = s.mul_add(s.load(&running.sum), alpha, sum);
        s.store(&mut running.sum, sum);
        let mut out = [T::ZERO; MAX_LANES];
        s.store(&mut out, alpha);
        out
    }

    /// Sets the scores of keys that a row does not see, or that are not there, to `-inf`.
    #[inline(always)]
    unsafe fn hide<S: Simd<T>, const R: usize>(&self, s: S, chunk: &Chunk<T>, first: usize, p: *mut T) {
        let keys = S::LANES / R;
        let (mut lo, mut hi) = ([T::ZERO; MAX_LANES], [T::from_usize(chunk.keys); MAX_LANES]);
        let mut key = [T::ZERO; MAX_LANES];
        for l in 0..S::LANES {
            key[l] = T::from_usize(l % keys);
            if chunk.masked {
                // The row that fills a group up is hidden like the last one.
                let query = (first + l / keys).min(self.rows - 1) % self.queries;
                lo[l] = chunk.lo[query];
                hi[l] = if chunk.hi[query] < hi[l] { chunk.hi[query] } else { hi[l] };
            }
        }
        let (lo, hi, mut key) = (s.load(&lo), s.load(&hi), s.load(&key));
        let (lowest, step) = (s.splat(T::NEG_INFINITY), s.splat(T::from_usize(keys)));
        for block in 0..chunk.keys.div_ceil(keys) {
            // SAFETY: as the caller vouches.
            unsafe {
                let at = p.add(block * S::LANES);
                let seen = s.select(s.lt(key, hi), s.load_ptr(at), lowest);
                s.store_ptr(at, s.select(s.lt(key, lo), lowest, seen));
            }
            key = s.add(key, step);
        }
    }

    /// Adds the values of a chunk, each times its probability.
    #[inline(always)]
    unsafe fn values<S: Simd<T>, const R: usize>(
        &self,
        s: S,
        chunk: &Chunk<T>,
        running: &Running<T>,
        buffers: &Buffers<T>,
        alpha: &[T; MAX_LANES],
    ) {
        let mut d = 0;
        // SAFETY: as the caller vouches; columns are within the width.
        unsafe {
            if chunk.masked && !self.finite(s, chunk) {
                self.add_visible::<R>(chunk, running, buffers, alpha, S::LANES / R);
                return;
            }
            // Of 32 registers at most 16 accumulate, of 16 eight.
            while const { R <= 2 && 8 * R * 2 <= S::REGISTERS } && d + 8 * S::LANES <= self.width {
                self.columns::<S, R, 8>(s, chunk, buffers, alpha, d, 0);
                d += 8 * S::LANES;
            }
            while const { 4 * R * 2 <= S::REGISTERS } && d + 4 * S::LANES <= self.width {
                self.columns::<S, R, 4>(s, chunk, buffers, alpha, d, 0);
                d += 4 * S::LANES;
            }
            while d + 2 * S::LANES <= self.width {
                self.columns::<S, R, 2>(s, chunk, buffers, alpha, d, 0);
                d += 2 * S::LANES;
            }
            while d < self.width {
                let part = if d + S::LANES <= self.width { 0 } else { self.width - d };
                self.columns::<S, R, 1>(s, chunk, buffers, alpha, d, part);
                d += S::LANES;
            }
        }
    }

    /// `C` vectors of columns from `d` on; with one, `part` elements of it unless 0.
    #[inline(always)]
    unsafe fn columns<S: Simd<T>, const R: usize, const C: usize>(
        &self,
        s: S,
        chunk: &Chunk<T>,
        buffers: &Buffers<T>,
        alpha: &[T; MAX_LANES],
        d: usize,
        part: usize,
    ) {
        let keys = S::LANES / R;
        let mut acc = [[s.splat(T::ZERO); C]; R];
        // SAFETY: as the caller vouches.
        unsafe {
            for r in 0..R {
                let factor = s.splat(alpha[r * keys]);
                for c in 0..C {
                    let at = buffers.out.add(r * buffers.stride + d + c * S::LANES);
                    acc[r][c] = s.mul(factor, s.load_ptr(at));
                }
            }
            let mut row = self.v.row(chunk.start).wrapping_add(d);
            for key in 0..chunk.keys {
                let p = buffers.p.add(key / keys * S::LANES + key % keys);
                let mut v = [s.splat(T::ZERO); C];
                for c in 0..C {
                    v[c] = if part == 0 {
                        E::load_ptr(s, row.add(c * S::LANES))
                    } else {
                        E::load_head_ptr(s, row, part)
                    };
                }
                for r in 0..R {
                    let p = s.splat(*p.add(r * keys));
                    for c in 0..C {
                        acc[r][c] = s.mul_add(p, v[c], acc[r][c]);
                    }
                }
                row = row.wrapping_add(self.v.stride);
            }
            for r in 0..R {
                for c in 0..C {
                    s.store_ptr(buffers.out.add(r * buffers.stride + d + c * S::LANES), acc[r][c]);
                }
            }
        }
    }

    /// Whether the values of a chunk hold neither NaN nor infinity.
    #[inline(always)]
    pub(super) unsafe fn finite<S: Simd<T>>(&self, s: S, chunk: &Chunk<T>) -> bool {
        let zero = s.splat(T::ZERO);
        let whole = self.width - self.width % S::LANES;
        let mut sum = zero;
        for key in 0..chunk.keys {
            let row = self.v.row(chunk.start + key);
            // SAFETY: as the caller vouches.
            unsafe {
                for d in (0..whole).step_by(S::LANES) {
                    sum = s.mul_add(E::load_ptr(s, row.add(d)), zero, sum);
                }
                if whole < self.width {
                    sum = s.mul_add(E::load_head_ptr(s, row.add(whole), self.width - whole), zero, sum);
                }
            }
        }
        s.reduce_sum(sum) == T::ZERO
    }

    /// Like [`values`](Self::values), leaving out what a row does not see, where `0 * inf` would be NaN.
    #[cold]
    unsafe fn add_visible<const R: usize>(
        &self,
        chunk: &Chunk<T>,
        running: &Running<T>,
        buffers: &Buffers<T>,
        alpha: &[T; MAX_LANES],
        keys: usize,
    ) {
        for r in 0..running.rows {
            let query = (running.first + r) % self.queries;
            for d in 0..self.width {
                // SAFETY: as the caller vouches.
                unsafe {
                    let at = buffers.out.add(r * buffers.stride + d);
                    let mut sum = *at * alpha[r * keys];
                    for key in 0..chunk.keys {
                        let number = T::from_usize(key);
                        if chunk.lo[query] <= number && number < chunk.hi[query] {
                            let p = *buffers.p.add(key / keys * (keys * R) + r * keys + key % keys);
                            sum += p * (*self.v.row(chunk.start + key).add(d)).widen();
                        }
                    }
                    *at = sum;
                }
            }
        }
    }
}
