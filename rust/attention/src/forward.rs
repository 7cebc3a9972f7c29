//! Forward: `out` and `lse`.
//!
//! A task is a head and some blocks of queries. For each block the queries are transposed, so that they lie along
//! the lanes, and the keys are taken in chunks: scores `S^T = K Q^T`, the running maximum, `P^T = exp(S^T - max)` in
//! place, and `O^T = alpha O^T + V^T P^T`. Scores stay unscaled; scale and maximum enter the exponential in one
//! fused multiply-add, so a large score loses no digits to scaling.
//!
//! Edges: a query that sees nothing, or only scores of `-inf`, gives 0 and `-inf`; a score of `+inf` or NaN makes its
//! row NaN; what a query does not see never reaches its row, NaN and infinity included.

use crate::batch::{self, Place, Tasks};
use crate::dropout::Thin;
use crate::pack::{transpose_in, transpose_out};
use crate::plan::{BLOCK, Block, Plan};
use crate::score::{Score, Scoring, Shape, Tile};
use crate::scratch::Scratch;
use crate::source::{Ready, Sink, Source};
use crate::tile::{Product, Start};
use crate::view::{Dims, Rows, View, ViewMut};
use crate::visit::{CHUNK, Chunk, Chunks};
use sensorium_core::math::{exp2_nonpositive, log};
use sensorium_core::{Error, Float, Kernel, Result, Simd, Storage, error::check_len, threads};
use std::ops::Range;

/// Floating-point operations worth a task of its own: about 20 microseconds.
const TASK_WORK: u64 = 1 << 21;

/// Exponents of two up to this over the rounding unit are shifted in one rounding, off by half of this at most;
/// beyond, neighbouring scores are further apart than their exponentials have digits.
const EXACT: f64 = 32.0;

/// Checks what [`forward`] and [`backward`](crate::backward) have in common.
pub(crate) fn check<E: Storage>(
    dims: Dims,
    plans: &[&Plan],
    scoring: Scoring<'_>,
    [q, k, v]: [&View<'_, E>; 3],
) -> Result<()> {
    let Dims { heads, kv_heads, .. } = dims;
    batch::check(dims, plans)?;
    if heads != 0 && (kv_heads == 0 || heads % kv_heads != 0) {
        let what = format!("has H_kv={kv_heads}, which does not divide H={heads} of q");
        return Err(Error::Value { arg: "k", what });
    }
    scoring.check(heads)?;
    if !E::Float::from_f64(scoring.scale * std::f64::consts::LOG2_E).to_f64().is_finite() {
        let what = format!("is {}, too large for float{}", scoring.scale, 8 * size_of::<E::Float>());
        return Err(Error::Value { arg: "scale", what });
    }
    q.check("q", dims.query_shape())?;
    k.check("k", dims.key_shape())?;
    v.check("v", dims.key_shape())
}

/// `out = softmax(scale Q K^T over visible pairs) V`, and `lse (B, H, N_q)`; `plans` is one for all samples of the
/// batch, or one for each. Half precision is widened as it is loaded and rounded as it is stored; rows of
/// [`View::turned`] tensors are turned as they are loaded.
///
/// # Errors
/// [`Error::Dim`], [`Error::Len`] or [`Error::Value`] naming the argument.
#[allow(clippy::needless_pass_by_value)] // A view to write is an exclusive borrow: the caller gives it away.
pub(crate) fn forward<E: Storage>(
    dims: Dims,
    plans: &[&Plan],
    scoring: Scoring<'_>,
    q: View<'_, E>,
    k: View<'_, E>,
    v: View<'_, E>,
    out: ViewMut<'_, E>,
    lse: &mut [E::Float],
) -> Result<()> {
    check(dims, plans, scoring, [&q, &k, &v])?;
    out.check("out", dims.query_shape())?;
    check_len("lse", lse, dims.batch * dims.heads * dims.queries)?;
    let head_work = |plan: &Plan| plan.work().saturating_mul(4 * dims.width as u64 + 16);
    let parts =
        |plan: &&Plan| (head_work(plan) / TASK_WORK).clamp(1, plan.blocks().len().max(1) as u64) as usize;
    let tasks = Tasks::new(dims.batch, dims.heads, plans.iter().map(parts).collect());
    let work = plans.iter().map(|plan| head_work(plan) / parts(plan) as u64).max().unwrap_or(0);
    let lse = threads::Disjoint::new(lse);
    let (k, v) = (Ready::new(&k), Ready::new(&v));
    threads::for_each(tasks.count, work as usize, |task| {
        let Place { batch, plan, group: head, part, parts } = tasks.place(task);
        let plan = plans[plan];
        let kv_head = head / (dims.heads / dims.kv_heads);
        let blocks = plan.part(part, parts);
        let first = (batch * dims.heads + head) * dims.queries;
        let queries = queries(plan, &blocks);
        E::Float::dispatch(Task {
            plan,
            blocks,
            width: dims.width,
            q: Source::new(&q, batch, head),
            k: k.head(batch, kv_head),
            v: v.head(batch, kv_head),
            score: Score::new(scoring, batch, head),
            out: Sink::new(&out, batch, head, None),
            first: queries.start,
            // SAFETY: the rows of different heads and parts do not overlap.
            lse: unsafe { lse.slice(first + queries.start..first + queries.end) },
        });
    });
    Ok(())
}

/// Queries of consecutive blocks.
fn queries(plan: &Plan, blocks: &Range<usize>) -> Range<usize> {
    match (plan.blocks().get(blocks.start), blocks.end.checked_sub(1).map(|b| &plan.blocks()[b])) {
        (Some(first), Some(last)) if !blocks.is_empty() => {
            first.queries.start as usize..last.queries.end as usize
        }
        _ => 0..0,
    }
}

/// Some blocks of one head.
struct Task<'a, T> {
    plan: &'a Plan,
    blocks: Range<usize>,
    width: usize,
    q: Source<T>,
    k: Rows<T>,
    v: Rows<T>,
    score: Score<T>,
    out: Sink<T>,
    /// Query that `lse` starts with.
    first: usize,
    lse: &'a mut [T],
}

/// Scratch of a task; `lanes` is the number of queries of the block in hand, in whole vectors.
struct Buffers<T> {
    /// `(D, lanes)`: queries.
    qt: *mut T,
    /// `(D, lanes)`: the sum so far.
    ot: *mut T,
    /// `(CHUNK, lanes)`: scores, then probabilities.
    p: *mut T,
    /// `(lanes, D)`: queries, then results, where memory holds them in another form.
    rows: *mut T,
}

/// Running softmax of a block of queries, a lane each.
struct Running<T> {
    /// Largest score so far.
    max: [T; BLOCK],
    /// The same as an exponent of two; `-inf` before the first finite score.
    shift: [T; BLOCK],
    /// Sum of `2^(score - shift)`.
    sum: [T; BLOCK],
    /// What the sums before the chunk in hand are to be multiplied by.
    alpha: [T; BLOCK],
}

impl<T: Float> Kernel<T> for Task<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(mut self, s: S) {
        let columns = self.width * BLOCK;
        let rows = if self.q.in_place() && self.out.in_place() { 0 } else { columns };
        let mut scratch = Scratch::new::<T>(&[columns, columns, CHUNK * BLOCK, rows]);
        let buffers = Buffers {
            qt: scratch.take(columns),
            ot: scratch.take(columns),
            p: scratch.take(CHUNK * BLOCK),
            rows: scratch.take(rows),
        };
        let plan = self.plan;
        for block in &plan.blocks()[self.blocks.clone()] {
            // SAFETY: the buffers have room for a block; the rows exist, since the views were checked against the
            // plan.
            unsafe { self.block(s, &buffers, block) };
        }
    }
}

impl<T: Float> Task<'_, T> {
    /// The queries of a block.
    ///
    /// # Safety
    /// The buffers have room for a block, and the rows of the plan exist.
    #[inline(always)]
    unsafe fn block<S: Simd<T>>(&mut self, s: S, buffers: &Buffers<T>, block: &Block) {
        let (query, lanes) = (block.queries.start as usize, block.queries.len());
        let width = lanes.next_multiple_of(S::LANES);
        let mut running = Running {
            max: [T::NEG_INFINITY; BLOCK],
            shift: [T::NEG_INFINITY; BLOCK],
            sum: [T::ZERO; BLOCK],
            alpha: [T::ZERO; BLOCK],
        };
        // SAFETY: row `query + lanes - 1` exists, and the buffers hold `width` lanes.
        unsafe {
            let q = self.q.rows(query, lanes, self.width, buffers.rows, self.width);
            transpose_in(q.data, q.stride, lanes, self.width, self.score.sign, buffers.qt, width);
            std::slice::from_raw_parts_mut(buffers.ot, self.width * width).fill(T::ZERO);
        }
        let mut chunk = Chunk::new(width);
        for visit in self.plan.visits(block) {
            let mut chunks = Chunks::new(visit, self.plan.mask(visit), lanes);
            while chunks.next(&mut chunk) {
                // SAFETY: as this function's; the keys of a visit exist.
                unsafe {
                    for band in chunk.bands() {
                        Product {
                            a: self.k.row(chunk.start + band.key),
                            row: self.k.stride,
                            col: 1,
                            b: buffers.qt.add(band.lane),
                            ldb: width,
                            n: self.width,
                            c: buffers.p.add(band.key * width + band.lane),
                            ldc: width,
                            rows: band.keys,
                            columns: band.lanes,
                            start: Start::Zero,
                        }
                        .run_in_halves();
                    }
                    let tile = Tile::new(self.plan, query, &chunk, buffers.p, width);
                    if self.score.shapes() {
                        Shape { score: &self.score, tile }.run();
                    }
                    self.softmax(s, buffers.p, &chunk, &mut running, width);
                    if let Some(draw) = &self.score.dropout {
                        Thin { draw, tile }.run();
                    }
                    self.values(s, buffers, &chunk, &running, width);
                }
            }
        }
        let mut lse = [T::ZERO; BLOCK];
        let mut inverse = [T::ZERO; BLOCK];
        let zero = s.splat(T::ZERO);
        for j in (0..width).step_by(S::LANES) {
            let sum = s.load(&running.sum[j..]);
            let value = s.mul_add(s.load(&running.shift[j..]), s.splat(self.score.back), log(s, sum));
            s.store(&mut lse[j..], value);
            // A NaN sum takes the zero too, and its row is NaN already.
            s.store(&mut inverse[j..], s.select(s.lt(zero, sum), s.div(s.splat(T::ONE), sum), zero));
        }
        self.lse[query - self.first..][..lanes].copy_from_slice(&lse[..lanes]);
        // SAFETY: as above; the rows of `out` belong to this task.
        unsafe {
            let out = self.out.rows(query, buffers.rows, self.width);
            transpose_out(buffers.ot, width, lanes, self.width, inverse.as_ptr(), out.data, out.stride);
            self.out.finish(query, lanes, self.width, buffers.rows, self.width);
        }
    }

    /// Scores of a chunk to `2^(factor score - shift)`, 0 where masked, and the running maximum and sum.
    #[inline(always)]
    unsafe fn softmax<S: Simd<T>>(
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
            if chunk.masked {
                // SAFETY: as above.
                unsafe { hide(s, p, width, chunk, j, T::NEG_INFINITY) };
            }
            let [first, last] = chunk.seen(j);
            let before = s.load(&running.max[j..]);
            let mut max = before;
            for key in first..last {
                // A NaN score leaves the maximum alone and shows in the sum.
                // SAFETY: as above.
                max = s.max(unsafe { s.load_ptr(p.add(key * width)) }, max);
            }
            s.store(&mut running.max[j..], max);
            let some = s.lt(lowest, max);
            let (shift, top) = (s.mul(max, factor), s.select(some, max, zero));
            let used = s.select(some, shift, zero);
            let mut minus = s.sub(zero, used);
            let limit = T::from_f64(EXACT / T::EPSILON.to_f64());
            let mut alpha = s.sub(s.load(&running.shift[j..]), used);
            if const { !S::FUSED } {
                alpha = s.mul(s.sub(before, top), factor);
            } else if s.reduce_max(s.abs(used)) > limit {
                // The rounding of the shift, which sums and `lse` share, could leave the range of the exponential:
                // such lanes subtract the maximum first.
                let far = s.lt(s.splat(limit), s.abs(used));
                for key in first..last {
                    // SAFETY: as above.
                    unsafe {
                        let at = p.add(key * width);
                        let score = s.load_ptr(at);
                        s.store_ptr(at, s.select(far, s.sub(score, max), score));
                    }
                }
                alpha = s.select(far, s.mul(s.sub(before, max), factor), alpha);
                minus = s.select(far, zero, minus);
            }
            let alpha = exp2_nonpositive(s, alpha);
            s.store(&mut running.alpha[j..], alpha);
            s.store(&mut running.shift[j..], s.select(some, shift, lowest));
            // Four sums a chunk, then the chunks: a long sum, one term after another, would cost the most digits.
            let mut sums = [zero; 4];
            let mut key = first;
            while key + 4 <= last {
                for part in 0..4 {
                    // SAFETY: as above.
                    unsafe {
                        let at = p.add((key + part) * width);
                        let value = exp2_nonpositive(s, exponent(s, s.load_ptr(at), factor, minus, top));
                        sums[part] = s.add(sums[part], value);
                        s.store_ptr(at, value);
                    }
                }
                key += 4;
            }
            while key < last {
                // SAFETY: as above.
                unsafe {
                    let at = p.add(key * width);
                    let value = exp2_nonpositive(s, exponent(s, s.load_ptr(at), factor, minus, top));
                    sums[0] = s.add(sums[0], value);
                    s.store_ptr(at, value);
                }
                key += 1;
            }
            let sum = s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]));
            let sum = s.mul_add(s.load(&running.sum[j..]), alpha, sum);
            s.store(&mut running.sum[j..], sum);
        }
    }

    /// `O^T = alpha O^T + V^T P^T` over a chunk.
    #[inline(always)]
    unsafe fn values<S: Simd<T>>(
        &self,
        s: S,
        buffers: &Buffers<T>,
        chunk: &Chunk<T>,
        running: &Running<T>,
        width: usize,
    ) {
        let v = self.v.row(chunk.start);
        // SAFETY: the chunk's values exist, and the buffers hold `width` lanes.
        unsafe {
            if chunk.masked && !finite(s, v, self.v.stride, chunk.keys, self.width) {
                scale_lanes(s, buffers.ot, &running.alpha, width, self.width);
                add_visible(chunk, v, self.v.stride, buffers.p, buffers.ot, width, self.width);
                return;
            }
            let mut start = Start::Scaled(running.alpha.as_ptr());
            if chunk.bands().first().is_none_or(|band| band.lanes < width) {
                scale_lanes(s, buffers.ot, &running.alpha, width, self.width);
                start = Start::Add;
            }
            for band in chunk.bands() {
                Product {
                    a: v.add(band.key * self.v.stride),
                    row: 1,
                    col: self.v.stride,
                    b: buffers.p.add(band.key * width + band.lane),
                    ldb: width,
                    n: band.keys,
                    c: buffers.ot.add(band.lane),
                    ldc: width,
                    rows: self.width,
                    columns: band.lanes,
                    start,
                }
                .run();
                start = Start::Add;
            }
        }
    }
}

/// `out[d, i] *= factors[i]`.
///
/// # Safety
/// `out` has `depth` rows of `width` lanes.
#[inline(always)]
unsafe fn scale_lanes<T: Float, S: Simd<T>>(
    s: S,
    out: *mut T,
    factors: &[T; BLOCK],
    width: usize,
    depth: usize,
) {
    for j in (0..width).step_by(S::LANES) {
        let factor = s.load(&factors[j..]);
        for d in 0..depth {
            // SAFETY: as the caller vouches.
            unsafe {
                let at = out.add(d * width + j);
                s.store_ptr(at, s.mul(factor, s.load_ptr(at)));
            }
        }
    }
}

/// `factor (score - top)`, with `minus` the rounded `-factor top`: in one rounding where there is a fused instruction
/// for it, and the rounding of `minus` is then that of sums and `lse` too.
#[inline(always)]
fn exponent<T: Float, S: Simd<T>>(s: S, score: S::V, factor: S::V, minus: S::V, top: S::V) -> S::V {
    if const { S::FUSED } { s.mul_add(score, factor, minus) } else { s.mul(s.sub(score, top), factor) }
}

/// Sets those of lanes `j..j + LANES` that do not see a key of the chunk's bands to `to`, in rows `width` apart.
///
/// # Safety
/// `p` has the chunk's rows.
#[inline(always)]
pub(crate) unsafe fn hide<T: Float, S: Simd<T>>(
    s: S,
    p: *mut T,
    width: usize,
    chunk: &Chunk<T>,
    j: usize,
    to: T,
) {
    let (lo, hi, to) = (s.load(&chunk.lo[j..]), s.load(&chunk.hi[j..]), s.splat(to));
    let [first, last] = chunk.seen(j);
    let (mut key, one) = (s.splat(T::from_usize(first)), s.splat(T::ONE));
    for i in first..last {
        // SAFETY: as the caller vouches.
        unsafe {
            let at = p.add(i * width);
            s.store_ptr(at, s.select(s.lt(key, lo), to, s.select(s.lt(key, hi), s.load_ptr(at), to)));
        }
        key = s.add(key, one);
    }
}

/// Whether `rows` rows of `width` numbers hold neither NaN nor infinity.
///
/// # Safety
/// They exist.
#[inline(always)]
pub(crate) unsafe fn finite<T: Float, S: Simd<T>>(
    s: S,
    data: *const T,
    stride: usize,
    rows: usize,
    width: usize,
) -> bool {
    let zero = s.splat(T::ZERO);
    let mut sum = zero;
    for i in 0..rows {
        // SAFETY: as the caller vouches.
        let row = unsafe { std::slice::from_raw_parts(data.add(i * stride), width) };
        let mut vectors = row.chunks_exact(S::LANES);
        for part in &mut vectors {
            sum = s.mul_add(s.load(part), zero, sum);
        }
        if !vectors.remainder().is_empty() {
            sum = s.mul_add(s.load_head(vectors.remainder(), T::ZERO), zero, sum);
        }
    }
    s.reduce_sum(sum) == T::ZERO
}

/// `out[d, i] += sum_j a[j, d] p[j, i]` over the keys `j` that lane `i` sees: products with what it does not see are
/// left out, where `0 * inf` would be NaN. Slow, and only run for chunks that hold such numbers.
///
/// # Safety
/// `a` has the chunk's rows, `p` and `out` have `lanes` lanes.
#[cold]
pub(crate) unsafe fn add_visible<T: Float>(
    chunk: &Chunk<T>,
    a: *const T,
    stride: usize,
    p: *const T,
    out: *mut T,
    lanes: usize,
    width: usize,
) {
    for j in 0..chunk.keys {
        let key = T::from_usize(j);
        for i in (0..lanes).filter(|&i| chunk.lo[i] <= key && key < chunk.hi[i]) {
            for d in 0..width {
                // SAFETY: as the caller vouches.
                unsafe { *out.add(d * lanes + i) += *a.add(j * stride + d) * *p.add(j * lanes + i) };
            }
        }
    }
}
