//! Backward: `dq`, `dk`, `dv` from `grad_out` and what [`forward`](crate::forward) returned.
//!
//! `delta_i = dO_i . O_i`, `P_ij = exp(scale q_i.k_j - lse_i)`, `dV = P^T dO`, `dS = P * (dO V^T - delta)`,
//! `dQ = scale dS K`, `dK = scale dS^T Q` (Dao et al. 2022, 2023), in one pass over the visible tiles. A task is a key
//! head of a batch and some of the blocks of the query heads that share it, so `dk` and `dv` are sums within a task.
//! Where there are few heads, several tasks share one: the first adds to the results themselves, each other to an
//! array of its own over the keys that its blocks see, and these are added in order at the end. How work is cut
//! depends on sizes alone, so results do not depend on threads.
//!
//! Edges: a query that saw nothing has `lse = -inf`, gets a zero gradient and adds nothing to any key.

use crate::batch::{Place, Tasks};
use crate::forward::{add_visible, check, finite, hide};
use crate::pack::{transpose_in, transpose_out};
use crate::plan::{BLOCK, Block, Plan};
use crate::score::{Gradient, Score, Scoring, Tile};
use crate::scratch::Scratch;
use crate::source::{Ready, Sink, Source, Sum};
use crate::tile::{Product, Start};
use crate::view::{Dims, Rows, RowsMut, View, ViewMut};
use crate::visit::{CHUNK, Chunk, Chunks};
use sensorium_core::math::exp2_nonpositive;
use sensorium_core::{Float, Kernel, Result, Simd, Storage, error::check_len, threads};
use std::ops::Range;

/// Tasks that there should be, for a machine with as many threads.
const TASKS: usize = 16;
/// Floating-point operations worth a task of its own: about 40 microseconds.
const TASK_WORK: u64 = 1 << 22;

/// `dq`, `dk` and `dv`, given `grad_out (B, H, N, D)` and the results of [`forward`](crate::forward).
///
/// # Errors
/// [`Error::Dim`](sensorium_core::Error), `Len` or `Value` naming the argument.
pub(crate) fn backward<E: Storage>(
    dims: Dims,
    plans: &[&Plan],
    scoring: Scoring<'_>,
    grad_out: View<'_, E>,
    q: View<'_, E>,
    k: View<'_, E>,
    v: View<'_, E>,
    out: View<'_, E>,
    lse: &[E::Float],
    [dq, dk, dv]: [ViewMut<'_, E>; 3],
) -> Result<()> {
    check(dims, plans, scoring, [&q, &k, &v])?;
    grad_out.check("grad_out", dims.query_shape())?;
    out.check("out", dims.query_shape())?;
    check_len("lse", lse, dims.batch * dims.heads * dims.queries)?;
    dq.check("dq", dims.query_shape())?;
    dk.check("dk", dims.key_shape())?;
    dv.check("dv", dims.key_shape())?;
    if dims.batch * dims.kv_heads == 0 {
        return Ok(());
    }
    let group = dims.heads / dims.kv_heads;
    let turning = q.turning();
    let (dk, dv) = (Sum::new(dk, k.turning()), Sum::new(dv, v.turning()));
    let (k, v) = (Ready::new(&k), Ready::new(&v));
    let parts = Parts::all(plans, dims, group);
    let tasks = Tasks::new(dims.batch, dims.kv_heads, parts.iter().map(|p| p.count).collect());
    let work = parts.iter().map(|p| p.work).max().unwrap_or(0);
    let sums = Sums::<E::Float>::new(&parts, plans, dims);
    // SAFETY of every `head` below: a task writes the queries of its own blocks, part 0 alone writes `dk` and `dv`,
    // and the other parts write their own sums.
    threads::for_each(tasks.count, work, |task| {
        let Place { batch, plan: which, group: kv_head, part, .. } = tasks.place(task);
        let (plan, parts) = (plans[which], &parts[which]);
        let (keys, dk, dv) = if part == 0 {
            (0..dims.keys, dk.head(batch, kv_head), dv.head(batch, kv_head))
        } else {
            sums.rows(batch, kv_head, part)
        };
        E::Float::dispatch(Clear { rows: [dk, dv], count: keys.len(), width: dims.width });
        for (i, blocks) in parts.blocks(plan, part) {
            let head = kv_head * group + i;
            E::Float::dispatch(Task {
                plan,
                blocks,
                width: dims.width,
                grad_out: Source::new(&grad_out, batch, head),
                q: Source::new(&q, batch, head),
                k: k.head(batch, kv_head),
                v: v.head(batch, kv_head),
                out: Source::new(&out, batch, head),
                lse: &lse[(batch * dims.heads + head) * dims.queries..][..dims.queries],
                score: Score::new(scoring, batch, head),
                dq: Sink::new(&dq, batch, head, turning),
                first_key: keys.start,
                dk,
                dv,
            });
        }
    });
    let most = parts.iter().map(|p| p.count).max().unwrap_or(1);
    let kv_heads = if most > 1 { dims.batch * dims.kv_heads } else { 0 };
    threads::for_each(kv_heads, dims.keys * dims.width * most, |kv| {
        let (batch, kv_head) = (kv / dims.kv_heads, kv % dims.kv_heads);
        for part in 1..sums.parts(batch) {
            let (keys, dk_sum, dv_sum) = sums.rows(batch, kv_head, part);
            for (sum, total) in [(dk_sum, dk.head(batch, kv_head)), (dv_sum, dv.head(batch, kv_head))] {
                E::Float::dispatch(Add { sum, total, keys: keys.clone(), width: dims.width });
            }
        }
    });
    dk.finish();
    dv.finish();
    Ok(())
}

/// How the blocks of the query heads that share a key head are cut into tasks.
struct Parts {
    /// Query heads to a key head.
    group: usize,
    /// Parts of the whole group: a multiple of `group`, or a divisor.
    count: usize,
    /// Floating-point operations of a part.
    work: usize,
}

impl Parts {
    /// The parts of each plan: about [`TASKS`] of equal work in the whole call.
    fn all(plans: &[&Plan], dims: Dims, group: usize) -> Vec<Self> {
        let head_work = |plan: &Plan| plan.work().saturating_mul(10 * dims.width as u64 + 24);
        let samples = if plans.len() == 1 { dims.batch } else { 1 };
        let total = plans.iter().map(|plan| u128::from(head_work(plan))).sum::<u128>()
            * (samples * dims.kv_heads * group) as u128;
        let part_work = (total / TASKS as u128).max(1);
        plans
            .iter()
            .map(|plan| {
                let work = u128::from(head_work(plan)) * group as u128;
                let wanted = work.div_ceil(part_work).clamp(1, TASKS as u128);
                let worth = (work / u128::from(TASK_WORK)).max(1);
                Self::new(plan, work, wanted.min(worth) as usize, group)
            })
            .collect()
    }

    fn new(plan: &Plan, work: u128, count: usize, group: usize) -> Self {
        // Whole heads to a part, or whole parts to a head.
        let count = if count <= group {
            (count..=group).find(|c| group.is_multiple_of(*c)).unwrap_or(group)
        } else {
            count.div_ceil(group).min(plan.blocks().len().max(1)) * group
        };
        Self { group, count, work: usize::try_from(work / count as u128).unwrap_or(usize::MAX) }
    }

    /// Heads of the group and their blocks that make up `part`.
    fn blocks(&self, plan: &Plan, part: usize) -> Vec<(usize, Range<usize>)> {
        if self.count <= self.group {
            let heads = self.group / self.count;
            (part * heads..(part + 1) * heads).map(|i| (i, 0..plan.blocks().len())).collect()
        } else {
            let parts = self.count / self.group;
            vec![(part / parts, plan.part(part % parts, parts))]
        }
    }
}

/// Sums of `dk` and `dv` over parts of the blocks: arrays for all parts but the first of each key head.
struct Sums<T> {
    plans: Vec<PlanSums>,
    /// Where each sample starts.
    first: Vec<usize>,
    width: usize,
    start: *mut T,
    _data: Vec<T>,
}

/// The sums of one key head under a plan.
struct PlanSums {
    /// Keys that each part sees.
    keys: Vec<Range<usize>>,
    /// Where each part starts within the sums of a key head.
    first: Vec<usize>,
    /// Elements for a key head.
    total: usize,
}

// SAFETY: tasks share it to find their own rows, which do not overlap.
unsafe impl<T: Send> Sync for Sums<T> {}

impl PlanSums {
    fn new(parts: &Parts, plan: &Plan, width: usize) -> Self {
        let mut keys = Vec::from([Range { start: 0, end: 0 }]);
        let mut first = vec![0, 0];
        for part in 1..parts.count {
            let mut seen = Range { start: usize::MAX, end: 0 };
            for (_, blocks) in parts.blocks(plan, part) {
                for visit in plan.blocks()[blocks].iter().flat_map(|block| plan.visits(block)) {
                    seen.start = seen.start.min(visit.keys.start as usize);
                    seen.end = seen.end.max(visit.keys.end as usize);
                }
            }
            let seen = if seen.is_empty() { 0..0 } else { seen };
            first.push(first[part] + 2 * seen.len() * width);
            keys.push(seen);
        }
        let total = first[parts.count];
        Self { keys, first, total }
    }
}

impl<T: Float> Sums<T> {
    fn new(parts: &[Parts], plans: &[&Plan], dims: Dims) -> Self {
        let sums: Vec<PlanSums> =
            parts.iter().zip(plans).map(|(parts, plan)| PlanSums::new(parts, plan, dims.width)).collect();
        let mut first = Vec::with_capacity(dims.batch);
        let mut total = 0;
        for batch in 0..dims.batch {
            first.push(total);
            total += sums[if sums.len() == 1 { 0 } else { batch }].total * dims.kv_heads;
        }
        // Untouched memory: each task clears its own part, in its own cache.
        let mut data = Vec::with_capacity(total);
        let start = data.as_mut_ptr();
        Self { plans: sums, first, width: dims.width, start, _data: data }
    }

    fn plan(&self, batch: usize) -> &PlanSums {
        &self.plans[if self.plans.len() == 1 { 0 } else { batch }]
    }

    /// Parts of a key head of sample `batch`.
    fn parts(&self, batch: usize) -> usize {
        self.plan(batch).keys.len()
    }

    /// Keys of a part, and its rows of `dk` and `dv`.
    fn rows(&self, batch: usize, kv_head: usize, part: usize) -> (Range<usize>, RowsMut<T>, RowsMut<T>) {
        let plan = self.plan(batch);
        let keys = plan.keys[part].clone();
        let dk = self.start.wrapping_add(self.first[batch] + kv_head * plan.total + plan.first[part]);
        let dv = dk.wrapping_add(keys.len() * self.width);
        (keys, RowsMut { data: dk, stride: self.width }, RowsMut { data: dv, stride: self.width })
    }
}

/// Zeroes rows.
struct Clear<T> {
    rows: [RowsMut<T>; 2],
    count: usize,
    width: usize,
}

impl<T: Float> Kernel<T> for Clear<T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, _: S) {
        for rows in self.rows {
            for i in 0..self.count {
                // SAFETY: the rows exist and belong to the task. The memory may be fresh: it is written, not read.
                unsafe { std::ptr::write_bytes(rows.row(i), 0, self.width) };
            }
        }
    }
}

/// Adds the rows of one part to the result.
struct Add<T> {
    sum: RowsMut<T>,
    total: RowsMut<T>,
    keys: Range<usize>,
    width: usize,
}

impl<T: Float> Kernel<T> for Add<T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, _: S) {
        for (i, key) in self.keys.enumerate() {
            // SAFETY: the rows exist; the task that adds to a key head is alone.
            let (sum, total) = unsafe {
                let sum = std::slice::from_raw_parts(self.sum.row(i), self.width);
                (sum, std::slice::from_raw_parts_mut(self.total.row(key), self.width))
            };
            for (total, &sum) in total.iter_mut().zip(sum) {
                *total += sum;
            }
        }
    }
}

/// Some blocks of one query head.
struct Task<'a, T> {
    plan: &'a Plan,
    blocks: Range<usize>,
    width: usize,
    grad_out: Source<T>,
    q: Source<T>,
    k: Rows<T>,
    v: Rows<T>,
    out: Source<T>,
    lse: &'a [T],
    score: Score<T>,
    dq: Sink<T>,
    /// Key of row 0 of `dk` and `dv`.
    first_key: usize,
    dk: RowsMut<T>,
    dv: RowsMut<T>,
}

/// Scratch of a task; `lanes` is the number of queries of the block in hand, and `depth` is `D` in whole vectors.
struct Buffers<T> {
    /// `(D, lanes)`: queries with the sign of the scale.
    qt: *mut T,
    /// `(D, lanes)`: `scale dO`.
    gt: *mut T,
    /// `(D, lanes)`: the sum of `dQ` so far.
    dqt: *mut T,
    /// `(CHUNK, lanes)`: probabilities.
    p: *mut T,
    /// `(CHUNK, lanes)`: `scale dS`.
    ds: *mut T,
    /// `(lanes, depth)`: rows of queries.
    rows_q: *mut T,
    /// `(lanes, depth)`: rows of `dO`.
    rows_g: *mut T,
    /// `(lanes, depth)`: results, then rows of `dQ`, where memory holds them in another form.
    rows: *mut T,
}

/// What stays the same over the chunks of a block of queries, a lane each.
struct Group<T> {
    /// `-lse` as an exponent of two; `-inf` where nothing was seen.
    shift: [T; BLOCK],
    /// `scale dO . O`.
    delta: [T; BLOCK],
    /// Whether the rows of `q` and `grad_out` are.
    finite: bool,
}

impl<T: Float> Kernel<T> for Task<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let depth = self.width.next_multiple_of(S::LANES);
        let (columns, scores, rows) = (self.width * BLOCK, CHUNK * BLOCK, BLOCK * depth);
        let more = if self.out.in_place() && self.dq.in_place() { 0 } else { rows };
        let mut scratch = Scratch::new::<T>(&[columns, columns, columns, scores, scores, rows, rows, more]);
        let buffers = Buffers {
            qt: scratch.take(columns),
            gt: scratch.take(columns),
            dqt: scratch.take(columns),
            p: scratch.take(scores),
            ds: scratch.take(scores),
            rows_q: scratch.take(rows),
            rows_g: scratch.take(rows),
            rows: scratch.take(more),
        };
        for block in &self.plan.blocks()[self.blocks.clone()] {
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
    unsafe fn block<S: Simd<T>>(&self, s: S, buffers: &Buffers<T>, block: &Block) {
        let (query, lanes) = (block.queries.start as usize, block.queries.len());
        let width = lanes.next_multiple_of(S::LANES);
        let depth = self.width.next_multiple_of(S::LANES);
        // SAFETY: row `query + lanes - 1` exists, and the buffers hold `width` lanes.
        let group = unsafe {
            self.q.copy(query, lanes, self.width, buffers.rows_q, depth);
            self.grad_out.copy(query, lanes, self.width, buffers.rows_g, depth);
            transpose_in(buffers.rows_q, depth, lanes, self.width, self.score.sign, buffers.qt, width);
            transpose_in(buffers.rows_g, depth, lanes, self.width, self.score.scale, buffers.gt, width);
            std::slice::from_raw_parts_mut(buffers.dqt, self.width * width).fill(T::ZERO);
            self.start(s, buffers, query, lanes, depth)
        };
        let mut chunk = Chunk::new(width);
        for visit in self.plan.visits(block) {
            let mut chunks = Chunks::new(visit, self.plan.mask(visit), lanes);
            while chunks.next(&mut chunk) {
                // SAFETY: as this function's; the keys of a visit exist.
                unsafe {
                    self.scores(self.k, &chunk, buffers.qt, buffers.p, width);
                    self.scores(self.v, &chunk, buffers.gt, buffers.ds, width);
                    if self.score.is_plain() {
                        self.softmax(s, buffers, &chunk, &group, width);
                    } else {
                        let tile = Tile::new(self.plan, query, &chunk, buffers.p, width);
                        let Group { shift, delta, .. } = &group;
                        Gradient { score: &self.score, tile, ds: buffers.ds, shift, delta }.run();
                    }
                    if chunk.masked {
                        for p in [buffers.p, buffers.ds] {
                            for j in (0..width).step_by(S::LANES) {
                                hide(s, p.add(j), width, &chunk, j, T::ZERO);
                            }
                        }
                    }
                    let k = self.k.row(chunk.start);
                    if chunk.masked && !(group.finite && finite(s, k, self.k.stride, chunk.keys, self.width))
                    {
                        self.add_slowly(buffers, &chunk, width, depth);
                    } else {
                        self.queries(buffers, &chunk, width);
                        self.keys(&chunk, self.dv, buffers.p, width, buffers.rows_g, depth, lanes);
                        self.keys(&chunk, self.dk, buffers.ds, width, buffers.rows_q, depth, lanes);
                    }
                }
            }
        }
        let ones = [T::ONE; BLOCK];
        // SAFETY: as above; the rows of `dq` belong to this task.
        unsafe {
            let dq = self.dq.rows(query, buffers.rows, depth);
            transpose_out(buffers.dqt, width, lanes, self.width, ones.as_ptr(), dq.data, dq.stride);
            self.dq.finish(query, lanes, self.width, buffers.rows, depth);
        }
    }

    /// `lse` and `delta` of a block.
    #[inline(always)]
    unsafe fn start<S: Simd<T>>(
        &self,
        s: S,
        buffers: &Buffers<T>,
        query: usize,
        lanes: usize,
        depth: usize,
    ) -> Group<T> {
        // Padding sees nothing: its exponents are -inf.
        let mut group = Group { shift: [T::NEG_INFINITY; BLOCK], delta: [T::ZERO; BLOCK], finite: false };
        let back = T::ONE / self.score.back;
        // SAFETY: the rows exist.
        let out = unsafe { self.out.rows(query, lanes, self.width, buffers.rows, depth) };
        for i in 0..lanes {
            // SAFETY: as above.
            let (g, o) = unsafe {
                (
                    std::slice::from_raw_parts(buffers.rows_g.add(i * depth), self.width),
                    std::slice::from_raw_parts(out.row(i), self.width),
                )
            };
            group.delta[i] = self.score.scale * dot(s, g, o);
            let lse = self.lse[query + i];
            if lse != T::NEG_INFINITY {
                group.shift[i] = -(lse * back);
            }
        }
        // SAFETY: the rows exist.
        group.finite = unsafe {
            finite(s, buffers.rows_q, depth, lanes, self.width)
                && finite(s, buffers.rows_g, depth, lanes, self.width)
        };
        group
    }

    /// `to (keys, lanes) = rows columns` over a chunk: `K Q^T` or `V dO^T`.
    #[inline(always)]
    unsafe fn scores(&self, rows: Rows<T>, chunk: &Chunk<T>, columns: *const T, to: *mut T, width: usize) {
        // SAFETY: the chunk's keys exist, and the buffers hold `width` lanes.
        unsafe {
            for band in chunk.bands() {
                Product {
                    a: rows.row(chunk.start + band.key),
                    row: rows.stride,
                    col: 1,
                    b: columns.add(band.lane),
                    ldb: width,
                    n: self.width,
                    c: to.add(band.key * width + band.lane),
                    ldc: width,
                    rows: band.keys,
                    columns: band.lanes,
                    start: Start::Zero,
                }
                .run_in_halves();
            }
        }
    }

    /// `p = P^T` from scores, and `ds = scale dS^T` from `scale dP^T`.
    #[inline(always)]
    unsafe fn softmax<S: Simd<T>>(
        &self,
        s: S,
        buffers: &Buffers<T>,
        chunk: &Chunk<T>,
        group: &Group<T>,
        width: usize,
    ) {
        let factor = s.splat(self.score.factor);
        for j in (0..width).step_by(S::LANES) {
            let (shift, delta) = (s.load(&group.shift[j..]), s.load(&group.delta[j..]));
            // SAFETY: the buffers hold `CHUNK` rows of `width` lanes.
            unsafe {
                let [first, last] = chunk.seen(j);
                for key in first..last {
                    let at = key * width + j;
                    let score = s.load_ptr(buffers.p.add(at));
                    // A probability is at most 1, whatever the rounding of a large `lse`.
                    let p = exp2_nonpositive(s, s.min(s.splat(T::ZERO), s.mul_add(score, factor, shift)));
                    s.store_ptr(buffers.p.add(at), p);
                    let dp = s.load_ptr(buffers.ds.add(at));
                    s.store_ptr(buffers.ds.add(at), s.mul(p, s.sub(dp, delta)));
                }
            }
        }
    }

    /// `dQ^T += K^T dS^T` over a chunk.
    #[inline(always)]
    unsafe fn queries(&self, buffers: &Buffers<T>, chunk: &Chunk<T>, width: usize) {
        // SAFETY: the chunk's keys exist, and the buffers hold `width` lanes.
        unsafe {
            for band in chunk.bands() {
                Product {
                    a: self.k.row(chunk.start + band.key),
                    row: 1,
                    col: self.k.stride,
                    b: buffers.ds.add(band.key * width + band.lane),
                    ldb: width,
                    n: band.keys,
                    c: buffers.dqt.add(band.lane),
                    ldc: width,
                    rows: self.width,
                    columns: band.lanes,
                    start: Start::Add,
                }
                .run();
            }
        }
    }

    /// `to[j] += sum_i weights[j, i] rows[i]` over the chunk's keys `j` and the block's queries `i`.
    #[inline(always)]
    unsafe fn keys(
        &self,
        chunk: &Chunk<T>,
        to: RowsMut<T>,
        weights: *const T,
        width: usize,
        rows: *const T,
        depth: usize,
        lanes: usize,
    ) {
        // SAFETY: the keys exist, the buffers hold `width` lanes and `depth` columns.
        unsafe {
            for band in chunk.bands() {
                Product {
                    a: weights.add(band.key * width + band.lane),
                    row: width,
                    col: 1,
                    b: rows.add(band.lane * depth),
                    ldb: depth,
                    n: band.lanes.min(lanes - band.lane),
                    c: to.row(chunk.start + band.key - self.first_key),
                    ldc: to.stride,
                    rows: band.keys,
                    columns: self.width,
                    start: Start::Add,
                }
                .run();
            }
        }
    }

    /// What `queries` and `keys` add, pair by pair over what is seen: for chunks in which a product with what is not
    /// seen would be `0 * inf`.
    #[cold]
    unsafe fn add_slowly(&self, buffers: &Buffers<T>, chunk: &Chunk<T>, width: usize, depth: usize) {
        let k = self.k.row(chunk.start);
        // SAFETY: the chunk's keys and the visible lanes' queries exist.
        unsafe {
            add_visible(chunk, k, self.k.stride, buffers.ds, buffers.dqt, width, self.width);
            for j in 0..chunk.keys {
                let key = T::from_usize(j);
                let row = chunk.start - self.first_key + j;
                for i in (0..width).filter(|&i| chunk.lo[i] <= key && key < chunk.hi[i]) {
                    let (p, ds) = (*buffers.p.add(j * width + i), *buffers.ds.add(j * width + i));
                    for d in 0..self.width {
                        *self.dv.row(row).add(d) += p * *buffers.rows_g.add(i * depth + d);
                        *self.dk.row(row).add(d) += ds * *buffers.rows_q.add(i * depth + d);
                    }
                }
            }
        }
    }
}

/// `sum_d a[d] b[d]`.
#[inline(always)]
fn dot<T: Float, S: Simd<T>>(s: S, a: &[T], b: &[T]) -> T {
    let whole = a.len() - a.len() % S::LANES;
    let mut sum = s.splat(T::ZERO);
    for at in (0..whole).step_by(S::LANES) {
        sum = s.mul_add(s.load(&a[at..]), s.load(&b[at..]), sum);
    }
    let (a, b) = (s.load_head(&a[whole..], T::ZERO), s.load_head(&b[whole..], T::ZERO));
    s.reduce_sum(s.mul_add(a, b, sum))
}
