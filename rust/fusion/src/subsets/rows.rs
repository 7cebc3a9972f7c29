//! A row after the other, and of a row a vector after the other.

use super::counted::Counted;
use super::tree::{Divergence, Pair};
use super::{Draw, logs, tree};
use crate::experts::{Checked, Present};
use crate::product::Noise;
use crate::{Dims, Prior, noise};
use sensorium_core::threads::Disjoint;
use sensorium_core::{Float, Kernel, MAX_LANES, Simd, math};
use std::ops::Range;
use std::slice::from_raw_parts;

/// What a vector of one expert's elements comes to, with a prior that is standard.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expert<V> {
    /// Precision, and precision times mean.
    pub(super) sums: Pair<V>,
    /// Mean.
    pub(super) mean: V,
    /// Logarithm of the precision.
    pub(super) log: V,
    /// Gradients, as the pass that was taken last defines them.
    pub(super) grads: Pair<V>,
}

/// What the experts of a vector have in common.
#[derive(Debug, Clone, Copy)]
struct Column<V> {
    /// Mean of a given prior, its deviation, and one over that.
    unit: [V; 3],
    /// 1 in the lanes where sums of precisions hold, 0 in the others.
    holds: V,
    /// Whether they hold in all lanes.
    all_hold: bool,
}

/// Vectors of a row that go through each stage together: within one of them the steps wait for each other.
const TOGETHER: usize = 8;

/// Rows of one task.
pub(super) struct Job<'a, T> {
    pub(super) checked: &'a Checked<'a, T>,
    pub(super) draw: &'a Draw<'a, T>,
    /// Number of the task.
    pub(super) index: usize,
    pub(super) rows: Range<usize>,
}

/// A row: the experts that it has, its subsets and its noise.
struct Row<T> {
    index: usize,
    experts: Vec<Present<T>>,
    counted: Counted,
    /// The subset that the sample is drawn from, in the numbering of the row.
    chosen: usize,
    /// The noise of the row, where it is drawn here.
    drawn: Vec<T>,
    noise: *const T,
}

/// The buffers of a task.
struct Scratch<V> {
    /// Those of a vector one after the other, for each vector.
    experts: Vec<Expert<V>>,
    /// Experts that there is room for in each vector.
    room: usize,
    columns: [Column<V>; TOGETHER],
    nodes: Vec<Pair<V>>,
    totals: Vec<Pair<V>>,
    /// Those of subsets from logarithms, where an element took them.
    logs: Vec<Pair<V>>,
    log_totals: Vec<Pair<V>>,
    /// Sums over a row of the experts' gradients by the logarithm of the variance.
    of_logvar: Vec<V>,
}

/// Exponents within which precisions, of which four are multiplied, and means are, for the sums of them to hold.
fn limits<T: Float>() -> (f64, f64) {
    let precision = ((T::MAX_EXPONENT - 3.0) / 4.0).floor();
    (precision, ((T::MAX_EXPONENT - precision) / 2.0).floor() - 8.0)
}

/// The vector at `x`, or its first `n` lanes before zeros.
///
/// # Safety
/// `x` is readable for `n` elements.
#[inline(always)]
unsafe fn load<T: Float, S: Simd<T>>(s: S, x: *const T, n: usize) -> S::V {
    // SAFETY: as the caller vouches.
    unsafe { if n == S::LANES { s.load_ptr(x) } else { s.load_head(from_raw_parts(x, n), T::ZERO) } }
}

/// The same of a slice.
#[inline(always)]
fn load_slice<T: Float, S: Simd<T>>(s: S, x: &[T], at: usize, n: usize) -> S::V {
    let x = &x[at..at + n];
    // SAFETY: the slice has so many elements.
    unsafe { load(s, x.as_ptr(), n) }
}

#[inline(always)]
fn store<T: Float, S: Simd<T>>(s: S, x: &mut [T], v: S::V) {
    if x.len() == S::LANES { s.store(x, v) } else { s.store_head(x, v) }
}

/// `v` in the first `n` lanes, and 0 in the others.
#[inline(always)]
fn head<T: Float, S: Simd<T>>(s: S, v: S::V, n: usize) -> S::V {
    let inside = s.load_head(&[T::ONE; MAX_LANES][..n], T::ZERO);
    s.select(s.eq(inside, s.splat(T::ONE)), v, s.splat(T::ZERO))
}

impl<T: Float> Job<'_, T> {
    fn dims(&self) -> Dims {
        self.checked.experts.dims
    }

    #[inline(always)]
    fn scratch<S: Simd<T>>(&self, s: S) -> Scratch<S::V> {
        let zero = s.splat(T::ZERO);
        let none = [zero; 2];
        // The second expert of a row that has one: nothing of it counts, but it is added.
        let expert = Expert { sums: none, mean: zero, log: zero, grads: none };
        let room = self.dims().experts.max(2);
        Scratch {
            experts: vec![expert; room * TOGETHER],
            room,
            columns: [Column { unit: [zero; 3], holds: zero, all_hold: true }; TOGETHER],
            nodes: vec![none; 1 << (room - 2)],
            totals: vec![none; 1 << (room - 2)],
            logs: Vec::new(),
            log_totals: Vec::new(),
            of_logvar: vec![zero; room],
        }
    }

    /// Takes up another row.
    #[inline(always)]
    fn open<S: Simd<T>>(&self, s: S, index: usize, row: &mut Row<T>) {
        self.checked.row(index, &mut row.experts);
        if self.has_prior() {
            row.experts.pop();
        }
        let mut present = 0;
        for expert in &row.experts {
            present |= 1 << expert.index;
        }
        row.counted.become_of(present, self.draw.subsets);
        row.chosen = row.counted.compact(self.draw.chosen[index]);
        row.index = index;
        row.noise = match self.draw.noise {
            Noise::Given(noise) => noise.row(index),
            Noise::Drawn(seed) => {
                let width = self.dims().width;
                row.drawn.resize(width, T::ZERO);
                noise::fill(s, seed, 0, (index * width) as u64, &mut row.drawn);
                row.drawn.as_ptr()
            }
        };
    }

    fn has_prior(&self) -> bool {
        !matches!(self.checked.experts.prior, Prior::None)
    }

    /// Sums that every subset begins from: those of a standard prior, or of nothing.
    #[inline(always)]
    fn base<S: Simd<T>>(&self, s: S) -> Pair<S::V> {
        [s.splat(if self.has_prior() { T::ONE } else { T::ZERO }), s.splat(T::ZERO)]
    }

    /// Reads `n` elements of a row from `d` on.
    #[inline(always)]
    fn read<S: Simd<T>>(
        &self,
        s: S,
        row: &Row<T>,
        d: usize,
        n: usize,
        experts: &mut [Expert<S::V>],
    ) -> Column<S::V> {
        let (zero, one) = (s.splat(T::ZERO), s.splat(T::ONE));
        let (mut unit, mut prior_log) = ([zero, one, one], zero);
        let given = if let Prior::Given(mean, logvar) = self.checked.experts.prior {
            let logvar = load_slice(s, logvar, d, n);
            let half = s.mul(logvar, s.splat(T::from_f64(0.5)));
            unit = [load_slice(s, mean, d, n), math::exp(s, half), math::exp(s, s.sub(zero, half))];
            prior_log = logvar;
            true
        } else {
            false
        };
        let mut total = self.base(s)[0];
        let mut least = if self.has_prior() { one } else { s.splat(T::from_f64(T::MAX_EXPONENT.exp2())) };
        let mut means = zero;
        for i in 0..row.experts.len() {
            let from = row.experts[i];
            // SAFETY: the row has these elements.
            let (mut mean, logvar) = unsafe { (load(s, from.mu.add(d), n), load(s, from.logvar.add(d), n)) };
            let mut log = s.sub(s.splat(from.log_weight), logvar);
            if given {
                mean = s.mul(s.sub(mean, unit[0]), unit[2]);
                log = s.add(log, prior_log);
            }
            let precision = math::exp(s, log);
            let expert = &mut experts[i];
            (expert.log, expert.mean) = (log, mean);
            expert.sums = [precision, s.mul(precision, mean)];
            total = s.add(total, precision);
            if !self.has_prior() {
                least = s.min(least, precision);
            }
            means = s.add(means, s.abs(mean));
        }
        let (precision, mean) = limits::<T>();
        // A NaN is in no range.
        let mut holds = s.select(s.lt(total, s.splat(T::from_f64(precision.exp2()))), one, zero);
        holds = s.select(s.lt(s.splat(T::from_f64((-precision).exp2())), least), holds, zero);
        holds = s.select(s.lt(means, s.splat(T::from_f64(mean.exp2()))), holds, zero);
        let all_hold = s.reduce_max(s.sub(one, holds)) == T::ZERO;
        Column { unit, holds, all_hold }
    }
}

impl<T> Row<T> {
    fn new() -> Self {
        let (drawn, noise) = (Vec::new(), std::ptr::null());
        Self { index: 0, experts: Vec::new(), counted: Counted::new(), chosen: 0, drawn, noise }
    }
}

/// Variance and mean of the product over a subset, from sums.
#[inline(always)]
fn product<T: Float, S: Simd<T>>(
    s: S,
    base: Pair<S::V>,
    experts: &[Expert<S::V>],
    subset: usize,
) -> (S::V, S::V) {
    let mut sums = base;
    for i in 0..experts.len() {
        if subset >> i & 1 == 1 {
            sums = [s.add(sums[0], experts[i].sums[0]), s.add(sums[1], experts[i].sums[1])];
        }
    }
    let variance = s.div(s.splat(T::ONE), sums[0]);
    (variance, s.mul(variance, sums[1]))
}

/// Samples and divergences of some rows.
pub(super) struct Forward<'a, T> {
    pub(super) job: Job<'a, T>,
    pub(super) z: &'a mut [T],
    pub(super) kl: &'a mut [T],
}

impl<T: Float> Kernel<T> for Forward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(mut self, s: S) {
        let width = self.job.dims().width;
        let (mut row, mut scratch) = (Row::new(), self.job.scratch(s));
        let first = self.job.rows.start;
        for index in self.job.rows.clone() {
            self.job.open(s, index, &mut row);
            let mut sum = Divergence::none(s);
            let mut d = 0;
            while d < width {
                let n = (width - d).min(TOGETHER * S::LANES);
                self.part(s, &row, d, n, &mut scratch, &mut sum);
                d += n;
            }
            let twice = s.reduce_sum(sum.value(s));
            self.kl[index - first] = twice * T::from_f64(0.5) / T::from_usize(row.counted.count);
        }
    }
}

impl<T: Float> Forward<'_, T> {
    /// `n` elements of a row from `d` on.
    #[inline(always)]
    fn part<S: Simd<T>>(
        &mut self,
        s: S,
        row: &Row<T>,
        d: usize,
        n: usize,
        scratch: &mut Scratch<S::V>,
        sum: &mut Divergence<S::V>,
    ) {
        let Scratch { experts, room, columns, nodes, logs, .. } = scratch;
        let (job, one, room, number) = (&self.job, s.splat(T::ONE), *room, row.experts.len());
        let (base, has_prior) = (job.base(s), job.has_prior());
        let vectors = n.div_ceil(S::LANES);
        for v in 0..vectors {
            let lanes = (n - v * S::LANES).min(S::LANES);
            columns[v] = job.read(s, row, d + v * S::LANES, lanes, &mut experts[v * room..][..room]);
        }
        for v in 0..vectors {
            let mut of_vector = tree::divergence(s, base, &experts[v * room..][..room], &row.counted, nodes);
            if !columns[v].all_hold {
                logs.resize(logs.len().max(1 << number), [one; 2]);
                logs::fill(s, has_prior, &experts[v * room..][..room], number, logs);
                let other = logs::divergence(s, number, &row.counted, logs);
                of_vector = of_vector.or(s, columns[v].holds, other);
            }
            let lanes = (n - v * S::LANES).min(S::LANES);
            if lanes < S::LANES {
                let inside = s.load_head(&[T::ONE; MAX_LANES][..lanes], T::ZERO);
                of_vector = of_vector.or(s, inside, s.splat(T::ZERO));
            }
            sum.add(s, of_vector);
        }
        let at = (row.index - job.rows.start) * job.dims().width + d;
        for v in 0..vectors {
            let (column, from) = (&columns[v], v * S::LANES);
            let lanes = (n - from).min(S::LANES);
            let (variance, mut mean) = product(s, base, &experts[v * room..][..room], row.chosen);
            let mut deviation = s.sqrt(variance);
            if !column.all_hold {
                logs::fill(s, has_prior, &experts[v * room..][..room], number, logs);
                let (holds, [log, other]) = (s.eq(column.holds, one), logs[row.chosen]);
                mean = s.select(holds, mean, other);
                deviation = s.select(holds, deviation, logs::deviation(s, log));
            }
            // SAFETY: the row's noise has these elements.
            let noise = unsafe { load(s, row.noise.add(d + from), lanes) };
            let sample = s.mul_add(deviation, noise, mean);
            let sample = s.mul_add(sample, column.unit[1], column.unit[0]);
            store(s, &mut self.z[at + from..at + from + lanes], sample);
        }
    }
}

/// Gradients of some rows.
pub(super) struct Backward<'a, T> {
    pub(super) job: Job<'a, T>,
    pub(super) grad_z: &'a [T],
    pub(super) grad_kl: &'a [T],
    pub(super) mu: &'a Disjoint<'a, T>,
    pub(super) logvar: &'a Disjoint<'a, T>,
    pub(super) weights: Option<&'a Disjoint<'a, T>>,
    /// Those of a given prior are added to this, `(2, D)`; empty where they are not asked for.
    pub(super) prior: &'a mut [T],
}

impl<T: Float> Kernel<T> for Backward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(mut self, s: S) {
        let width = self.job.dims().width;
        let (mut row, mut scratch) = (Row::new(), self.job.scratch(s));
        for index in self.job.rows.clone() {
            self.job.open(s, index, &mut row);
            for of_logvar in &mut scratch.of_logvar {
                *of_logvar = s.splat(T::ZERO);
            }
            let mut d = 0;
            while d < width {
                let n = (width - d).min(TOGETHER * S::LANES);
                self.part(s, &row, d, n, &mut scratch);
                d += n;
            }
            self.close(s, &row, &scratch.of_logvar);
        }
    }
}

impl<T: Float> Backward<'_, T> {
    /// Writes what a row has of the weights' gradients, and zeros for the experts that it lacks.
    #[inline(always)]
    fn close<S: Simd<T>>(&self, s: S, row: &Row<T>, of_logvar: &[S::V]) {
        let Dims { experts, batch, width } = self.job.dims();
        let mut next = 0;
        for m in 0..experts {
            let mut of_weight = T::ZERO;
            if next < row.experts.len() && row.experts[next].index == m {
                if self.weights.is_some() {
                    // By the logarithm of the weight it is the opposite of that by the logarithm of the variance.
                    let weight = self.job.checked.weight(m, row.index).unwrap_or(T::ONE);
                    of_weight = -s.reduce_sum(of_logvar[next]) / weight;
                }
                next += 1;
            } else {
                let at = (m * batch + row.index) * width;
                // SAFETY: each task has its own rows.
                unsafe { self.mu.slice(at..at + width) }.fill(T::ZERO);
                // SAFETY: as above.
                unsafe { self.logvar.slice(at..at + width) }.fill(T::ZERO);
            }
            if let Some(out) = self.weights {
                let at = m * batch + row.index;
                // SAFETY: as above.
                unsafe { out.slice(at..at + 1) }.fill(of_weight);
            }
        }
    }

    /// Gradients of `n` elements of a row from `d` on.
    #[inline(always)]
    fn part<S: Simd<T>>(&mut self, s: S, row: &Row<T>, d: usize, n: usize, scratch: &mut Scratch<S::V>) {
        let (room, base) = (scratch.room, self.job.base(s));
        let vectors = n.div_ceil(S::LANES);
        for v in 0..vectors {
            let lanes = (n - v * S::LANES).min(S::LANES);
            let experts = &mut scratch.experts[v * room..][..room];
            scratch.columns[v] = self.job.read(s, row, d + v * S::LANES, lanes, experts);
        }
        for v in 0..vectors {
            let Scratch { experts, nodes, totals, .. } = scratch;
            tree::gradients(s, base, &mut experts[v * room..][..room], &row.counted, nodes, totals);
        }
        for v in 0..vectors {
            let lanes = (n - v * S::LANES).min(S::LANES);
            self.vector(s, row, v, d + v * S::LANES, lanes, scratch);
        }
    }

    /// What the tree has found, the chosen subset's share, and all that is not found from sums, written for vector `v`.
    #[inline(always)]
    fn vector<S: Simd<T>>(
        &mut self,
        s: S,
        row: &Row<T>,
        v: usize,
        d: usize,
        n: usize,
        scratch: &mut Scratch<S::V>,
    ) {
        let Scratch { experts, room, columns, logs, log_totals, of_logvar: of_weights, .. } = scratch;
        let (job, number, chosen) = (&self.job, row.experts.len(), row.chosen);
        let (experts, column) = (&mut experts[v * *room..][..*room], &columns[v]);
        let (base, zero, half) = (job.base(s), s.splat(T::ZERO), s.splat(T::from_f64(0.5)));
        let at = row.index * job.dims().width + d;
        let scale = s.splat(self.grad_kl[row.index] / T::from_usize(row.counted.count));
        let grad_z = load_slice(s, self.grad_z, at, n);
        let grad = s.mul(grad_z, column.unit[1]);
        // SAFETY: the row's noise has these elements.
        let noise = unsafe { load(s, row.noise.add(d), n) };
        let of_deviation = s.mul(s.mul(grad, noise), half);
        let (variance, mut mean) = product(s, base, experts, chosen);
        let mut deviation = s.sqrt(variance);
        for i in 0..number {
            let expert = &mut experts[i];
            let precision = expert.sums[0];
            let grads = [s.mul(scale, expert.grads[0]), s.mul(scale, expert.grads[1])];
            let mut of_logvar = s.mul(precision, s.neg_mul_add(grads[1], expert.mean, grads[0]));
            let mut of_mean = s.mul(precision, grads[1]);
            if chosen >> i & 1 == 1 {
                let share = s.mul(precision, variance);
                let moved = s.neg_mul_add(grad, s.sub(expert.mean, mean), s.mul(of_deviation, deviation));
                of_logvar = s.mul_add(share, moved, of_logvar);
                of_mean = s.mul_add(share, grad, of_mean);
            }
            // In the place of what is not read any more.
            expert.sums = [of_logvar, of_mean];
        }
        if !column.all_hold {
            logs.resize(logs.len().max(1 << number), [zero; 2]);
            log_totals.resize(logs.len(), [zero; 2]);
            let has_prior = job.has_prior();
            logs::fill(s, has_prior, experts, number, logs);
            let [log, other] = logs[chosen];
            let deviates = logs::deviation(s, log);
            log_totals[chosen] = [s.sub(zero, s.mul(of_deviation, deviates)), grad];
            let counted = &row.counted;
            logs::gradients(s, has_prior, experts, number, counted, chosen, scale, logs, log_totals);
            let holds = s.eq(column.holds, s.splat(T::ONE));
            for i in 0..number {
                let Expert { sums, grads, .. } = experts[i];
                experts[i].sums =
                    [s.select(holds, sums[0], s.sub(zero, grads[0])), s.select(holds, sums[1], grads[1])];
            }
            mean = s.select(holds, mean, other);
            deviation = s.select(holds, deviation, deviates);
        }
        let (mut of_prior, mut of_log) = (grad_z, s.mul(grad, s.mul_add(deviation, noise, mean)));
        for i in 0..number {
            let [of_logvar, of_mean] = experts[i].sums;
            let at = row.experts[i].index * job.dims().batch * job.dims().width + at;
            if self.weights.is_some() {
                let inside = if n < S::LANES { head(s, of_logvar, n) } else { of_logvar };
                of_weights[i] = s.add(of_weights[i], inside);
            }
            of_log = s.neg_mul_add(of_mean, experts[i].mean, of_log);
            of_log = s.sub(of_log, s.add(of_logvar, of_logvar));
            let of_mean = s.mul(of_mean, column.unit[2]);
            of_prior = s.sub(of_prior, of_mean);
            // SAFETY: each task has its own rows.
            store(s, unsafe { self.logvar.slice(at..at + n) }, of_logvar);
            // SAFETY: as above.
            store(s, unsafe { self.mu.slice(at..at + n) }, of_mean);
        }
        if !self.prior.is_empty() {
            let (of_means, of_logs) = self.prior.split_at_mut(job.dims().width);
            let sum = s.add(of_prior, load_slice(s, of_means, d, n));
            store(s, &mut of_means[d..d + n], sum);
            let sum = s.mul_add(of_log, half, load_slice(s, of_logs, d, n));
            store(s, &mut of_logs[d..d + n], sum);
        }
    }
}
