//! Decoding: a few new queries against keys and values that a cache holds.
//!
//! The rows that share a key head, `R = H / H_kv` query heads times the new queries, make one pass over its keys
//! and values: at one query the kernel reads every cached number once and does `R / 2` operations a byte (`f32`),
//! so the memory bounds it up to `R` of four to eight (`docs/decoding.md` has the measurement). The visible keys of
//! a row are cut into at most [`SPLITS`] parts, by their number alone; a part gives a maximum, a sum and an
//! unnormalised row, and the parts are merged in order. So results depend neither on the number of threads nor on
//! what else is in the batch.
//!
//! Few rows (`few.rs`): lanes lie along `D`; a key is loaded once and multiplied with every row, and the sums over
//! lanes are made for a vector of (row, key) pairs at once. More rows (`many.rs`): lanes lie along the rows, in the tiles of
//! `forward.rs`. Edges are those of `forward.rs`.

mod few;
mod many;
mod pieces;

use crate::layout::Layout;
use crate::score::{Score, Scoring};
use crate::scratch::Scratch;
use crate::view::{Dims, Rows, View, ViewMut};
use pieces::Piece;
use sensorium_core::half::narrow_row;
use sensorium_core::math::{exp2_nonpositive, log, tanh};
use sensorium_core::{Error, Float, Kernel, MAX_LANES, Result, Simd, Storage, error::check_len, threads};
use std::ops::Range;

/// Most parts of a row's keys: with one key head, enough for many threads to end together.
const SPLITS: usize = 64;
/// Fewest keys of a part, for few and for many rows: writing and merging a part costs about two keys a row.
const LEAST_KEYS: usize = 512;
const LEAST_KEYS_A_ROW: usize = 64;
/// Up to so many rows lanes lie along `D`, where a vector has 16 lanes, and as many fewer where it has fewer. Cached
/// numbers read at D 64, GB/s, with lanes along `D` / along rows: 4 rows 43 / 19, 8 rows 26 / 19, 12 rows 19 / 19,
/// 16 rows 16 / 19 (two cores of a Zen 4; AVX2: 24 / 22, 18 / 22, 14 / 18, 12 / 17).
const FEW: usize = 12;

/// New queries of one sample.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    /// Who sees whom; none means that a query sees itself and what comes before it. At least `length` tokens long.
    pub layout: Option<&'a Layout>,
    /// Token that the first query is.
    pub start: usize,
    /// Queries; the rest of the sample's rows give 0 and `-inf`.
    pub count: usize,
    /// Cached tokens.
    pub length: usize,
}

/// `out = softmax(score(Q K^T) over visible pairs) V` and `lse (B, H, N)`, query `i` of sample `b` being token
/// `tokens[b].start + i`, key `j` token `j`, and only the first `tokens[b].length` keys of a sample being there.
/// Keys and values are widened as they are loaded; queries and results may be of another element type than they.
///
/// # Errors
/// [`Error::Dim`], [`Error::Len`] or [`Error::Value`] naming the argument.
#[allow(clippy::needless_pass_by_value)] // A view to write is an exclusive borrow: the caller gives it away.
pub(crate) fn decode<E: Storage, Q: Storage<Float = E::Float>>(
    dims: Dims,
    tokens: &[Tokens<'_>],
    scoring: Scoring<'_>,
    q: View<'_, Q>,
    k: View<'_, E>,
    v: View<'_, E>,
    out: ViewMut<'_, Q>,
    lse: &mut [E::Float],
) -> Result<()> {
    check(dims, tokens)?;
    check_scoring::<E::Float>(
        dims,
        scoring,
        [q.turning().is_some(), k.turning().is_some(), v.turning().is_some()],
    )?;
    q.check("q", dims.query_shape())?;
    k.check("k", dims.key_shape())?;
    v.check("v", dims.key_shape())?;
    out.check("out", dims.query_shape())?;
    check_len("lse", lse, dims.batch * dims.heads * dims.queries)?;
    let group = dims.heads.checked_div(dims.kv_heads).unwrap_or(0);
    let bands = bands(tokens, &dims);
    let rows = gather(&bands, &dims, &q);
    let (tasks, room) = bands.last().map_or((0, 0), |b| (b.tasks.end, b.first + b.room(&dims)));
    let mut parts = vec![E::Float::ZERO; room];
    let shared = threads::Disjoint::new(&mut parts);
    let pairs = bands.iter().fold(0_usize, |sum, b| sum.saturating_add(b.keys.saturating_mul(b.rows)));
    let work = pairs.saturating_mul(4 * dims.width * dims.kv_heads);
    threads::for_each(tasks, work / tasks.max(1), |task| {
        let band = &bands[bands.partition_point(|b| b.tasks.end <= task)];
        let (kv_head, part) =
            ((task - band.tasks.start) / band.parts, (task - band.tasks.start) % band.parts);
        let size = band.rows * (dims.width + 2);
        let at = band.first + (task - band.tasks.start) * size;
        let queries = (band.first_row + kv_head * band.rows) * dims.width;
        <E::Float as Float>::dispatch(Task {
            pieces: &band.pieces,
            range: band.keys * part / band.parts..band.keys * (part + 1) / band.parts,
            queries: band.queries.len(),
            rows: band.rows,
            width: dims.width,
            q: &rows[queries..queries + band.rows * dims.width],
            k: k.head(band.batch, kv_head),
            v: v.head(band.batch, kv_head),
            scoring,
            score: Score::new(scoring, band.batch, kv_head * group),
            head: kv_head * group,
            start: tokens[band.batch].start + band.queries.start,
            // SAFETY: each task has its own part.
            out: unsafe { shared.slice(at..at + size) },
        });
    });
    let lse = threads::Disjoint::new(lse);
    let merged = room / bands.len().max(1) / dims.kv_heads.max(1);
    threads::for_each(bands.len() * dims.kv_heads, merged, |task| {
        let (band, kv_head) = (&bands[task / dims.kv_heads], task % dims.kv_heads);
        let score = Score::new(scoring, band.batch, kv_head * group);
        <E::Float as Float>::dispatch(Merge {
            dims,
            band,
            kv_head,
            group,
            score,
            parts: &parts,
            out: &out,
            lse: &lse,
        });
    });
    for (b, tokens) in tokens.iter().enumerate() {
        for h in 0..dims.heads {
            let (head, first) = (out.head(b, h), (b * dims.heads + h) * dims.queries);
            for i in tokens.count..dims.queries {
                // SAFETY: rows that no band has; the views were checked.
                unsafe {
                    std::slice::from_raw_parts_mut(head.row(i), dims.width).fill(Q::narrow(E::Float::ZERO));
                    lse.slice(first + i..first + i + 1)[0] = E::Float::NEG_INFINITY;
                }
            }
        }
    }
    Ok(())
}

/// The queries of all bands and key heads, in rows one after the other, as numbers of arithmetic.
fn gather<Q: Storage>(bands: &[Band], dims: &Dims, q: &View<'_, Q>) -> Vec<Q::Float> {
    let mut rows = Vec::with_capacity(dims.batch * dims.heads * dims.queries * dims.width);
    for band in bands {
        for head in 0..dims.heads {
            let head = q.head(band.batch, head);
            for query in band.queries.clone() {
                // SAFETY: the view was checked against the sizes.
                let row = unsafe { std::slice::from_raw_parts(head.row(query), dims.width) };
                rows.extend(row.iter().map(|x| x.widen()));
            }
        }
    }
    rows
}

fn check_scoring<T: Float>(dims: Dims, scoring: Scoring<'_>, turned: [bool; 3]) -> Result<()> {
    scoring.check(dims.heads)?;
    if !T::from_f64(scoring.scale * std::f64::consts::LOG2_E).to_f64().is_finite() {
        let what = format!("is {}, too large for float{}", scoring.scale, 8 * size_of::<T>());
        return Err(Error::Value { arg: "scale", what });
    }
    if scoring.dropout.is_some() {
        return Err(Error::Value { arg: "dropout", what: "is for training".into() });
    }
    for (arg, turned) in ["q", "k", "v"].into_iter().zip(turned) {
        if turned {
            return Err(Error::Value { arg, what: "must be turned before it is cached".into() });
        }
    }
    Ok(())
}

fn check(dims: Dims, tokens: &[Tokens<'_>]) -> Result<()> {
    let Dims { heads, kv_heads, .. } = dims;
    if heads != 0 && (kv_heads == 0 || heads % kv_heads != 0) {
        let what = format!("has H_kv={kv_heads}, which does not divide H={heads} of q");
        return Err(Error::Value { arg: "k", what });
    }
    check_len("tokens", tokens, dims.batch)?;
    for (b, &Tokens { layout, start, count, length }) in tokens.iter().enumerate() {
        let value = |arg, what| Err(Error::Value { arg, what });
        if length > dims.keys.min(i32::MAX as usize) {
            return value(
                "lengths",
                format!("has {length} for sample {b}, but k holds {} tokens", dims.keys),
            );
        }
        if count > dims.queries {
            return value("counts", format!("has {count} for sample {b}, but q has N={}", dims.queries));
        }
        if start.checked_add(count).is_none_or(|end| end > length) {
            let what = format!("has {start} for sample {b}: {count} queries end beyond its {length} tokens");
            return value("start", what);
        }
        if layout.is_some_and(|layout| layout.len() < length) {
            let got = layout.map_or(0, Layout::len);
            return value("layout", format!("has length {got}, but sample {b} has {length} tokens"));
        }
    }
    Ok(())
}

/// Consecutive queries of a sample: what is the same for all key heads.
struct Band {
    batch: usize,
    queries: Range<usize>,
    pieces: Vec<Piece>,
    /// Keys of the pieces.
    keys: usize,
    /// Rows that share a key head.
    rows: usize,
    /// Parts that the keys are cut into.
    parts: usize,
    /// Tasks of all key heads, a part each.
    tasks: Range<usize>,
    /// Where their results start.
    first: usize,
    /// Rows of queries before its own.
    first_row: usize,
}

impl Band {
    /// Elements of all its results.
    fn room(&self, dims: &Dims) -> usize {
        self.tasks.len() * self.rows * (dims.width + 2)
    }
}

fn bands(tokens: &[Tokens<'_>], dims: &Dims) -> Vec<Band> {
    let mut bands: Vec<Band> = Vec::new();
    if dims.heads == 0 {
        return bands;
    }
    let (mut task, mut first, mut first_row) = (0, 0, 0);
    for (batch, tokens) in tokens.iter().enumerate() {
        for (queries, pieces) in pieces::bands(tokens) {
            let (keys, rows) = (pieces::count(&pieces), dims.heads / dims.kv_heads * queries.len());
            let least = LEAST_KEYS.max(LEAST_KEYS_A_ROW * rows);
            let parts = keys.div_ceil(least).min(SPLITS);
            let tasks = task..task + parts * dims.kv_heads;
            let band = Band { batch, queries, pieces, keys, rows, parts, tasks, first, first_row };
            (task, first) = (band.tasks.end, first + band.room(dims));
            first_row += rows * dims.kv_heads;
            bands.push(band);
        }
    }
    bands
}

/// A part of the keys, for all rows that share a key head.
struct Task<'a, T, E> {
    pieces: &'a [Piece],
    /// Keys of the pieces, counted over all.
    range: Range<usize>,
    /// Row `r` is query `r % queries` of query head `head + r / queries`.
    queries: usize,
    rows: usize,
    width: usize,
    /// `(rows, D)`.
    q: &'a [T],
    k: Rows<E>,
    v: Rows<E>,
    scoring: Scoring<'a>,
    /// Of the first head.
    score: Score<T>,
    head: usize,
    /// Position of query 0.
    start: usize,
    /// `(rows, D)`: unnormalised rows; then the maximum of each row, unscaled, and then the sums.
    out: &'a mut [T],
}

impl<T: Float, E: Storage<Float = T>> Kernel<T> for Task<'_, T, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(mut self, s: S) {
        // SAFETY: the views were checked against the sizes, the pieces lie within the keys.
        unsafe {
            if self.rows * 16 <= FEW * S::LANES {
                self.few(s);
            } else {
                self.many(s);
            }
        }
    }
}

impl<T: Float, E> Task<'_, T, E> {
    /// Slope of row `r` by distance, and its distance from key `key`, backwards.
    #[inline(always)]
    fn slope(&self, r: usize, key: usize) -> (T, T) {
        // Neither sample nor head matter to the slope but through `scoring`.
        let score = Score::<T>::new(self.scoring, 0, self.head + r / self.queries);
        let apart = T::from_f64((self.start + r % self.queries) as f64 - key as f64);
        (score.bias.map_or(T::ZERO, |bias| bias.slope), apart)
    }

    /// Products of a vector of pairs to what the softmax takes: soft-capped, and less what distance costs.
    #[inline(always)]
    fn shaped<S: Simd<T>>(&self, s: S, mut x: S::V, slope: S::V, apart: S::V) -> S::V {
        if let Some(cap) = self.score.cap {
            x = tanh(s, s.mul(s.splat(cap), x));
        }
        if let Some(bias) = self.score.bias {
            x = s.neg_mul_add(slope, s.abs(apart), s.mul(s.splat(bias.factor), x));
        }
        x
    }
}

/// The parts of the rows of a key head, put together.
struct Merge<'a, T, Q: Storage> {
    dims: Dims,
    band: &'a Band,
    kv_head: usize,
    group: usize,
    /// Of the first head.
    score: Score<T>,
    parts: &'a [T],
    out: &'a ViewMut<'a, Q>,
    lse: &'a threads::Disjoint<'a, T>,
}

impl<T: Float, Q: Storage<Float = T>> Kernel<T> for Merge<'_, T, Q> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let Self { dims, band, kv_head, score, .. } = self;
        let (rows, width, queries) = (band.rows, dims.width, band.queries.len());
        let size = rows * (width + 2);
        let mut scratch = Scratch::new::<T>(&[width]);
        // SAFETY: room for a row.
        let out = unsafe { std::slice::from_raw_parts_mut(scratch.take::<T>(width), width) };
        let parts = &self.parts[band.first + kv_head * band.parts * size..][..band.parts * size];
        for r in 0..rows {
            let (head, query) = (kv_head * self.group + r / queries, band.queries.start + r % queries);
            let mut max = T::NEG_INFINITY;
            for part in 0..band.parts {
                max = max.max(parts[part * size + rows * width + r]);
            }
            let used = if max > T::NEG_INFINITY { max } else { T::ZERO };
            out.fill(T::ZERO);
            let mut sum = T::ZERO;
            for part in 0..band.parts {
                let part = &parts[part * size..][..size];
                // One lane of a vector, so that the exponential is the kernel's.
                let alpha = exp2_nonpositive(s, s.splat((part[rows * width + r] - used) * score.factor));
                sum += part[rows * width + rows + r] * s.reduce_max(alpha);
                scale_add(s, &part[r * width..][..width], alpha, &mut *out);
            }
            // A NaN sum takes the zero too, and its row is NaN already.
            let inverse = if sum > T::ZERO { T::ONE / sum } else { T::ZERO };
            for x in out.iter_mut() {
                *x *= inverse;
            }
            // SAFETY: each row has one task; the view was checked.
            unsafe { narrow_row(s, out.as_ptr(), self.out.head(band.batch, head).row(query), width) };
            let value = s.mul_add(s.splat(max * score.factor), s.splat(score.back), log(s, s.splat(sum)));
            let mut lanes = [T::ZERO; MAX_LANES];
            s.store(&mut lanes, value);
            let at = (band.batch * dims.heads + head) * dims.queries + query;
            // SAFETY: each row has one task.
            unsafe { self.lse.slice(at..at + 1)[0] = lanes[0] };
        }
    }
}

/// `out += a x`.
#[inline(always)]
fn scale_add<T: Float, S: Simd<T>>(s: S, x: &[T], a: S::V, out: &mut [T]) {
    let whole = x.len() - x.len() % S::LANES;
    for d in (0..whole).step_by(S::LANES) {
        let sum = s.mul_add(a, s.load(&x[d..]), s.load(&out[d..]));
        s.store(&mut out[d..], sum);
    }
    if whole < x.len() {
        let (x, out) = (&x[whole..], &mut out[whole..]);
        let sum = s.mul_add(a, s.load_head(x, T::ZERO), s.load_head(out, T::ZERO));
        s.store_head(out, sum);
    }
}
