//! Gradients of the experts, of their weights and of a given prior.

use super::forward::{check_noise, draw, noise_row, part};
use super::fuse::{bounded_exp, bounded_square, by_count, divergence, fuse};
use super::normaliser::{self, Sums};
use super::{Noise, WIDE, WORK, rows_of_a_task};
use crate::Experts;
use crate::experts::{Checked, Present};
use sensorium_core::error::{check_len, product};
use sensorium_core::isa::part::{load, store};
use sensorium_core::math::exp;
use sensorium_core::threads::{Disjoint, for_each};
use sensorium_core::{Error, Float, Kernel, Result, Simd};
use std::ops::Range;

/// Gradients of the results; one that is not given is zero.
#[derive(Debug, Clone, Copy)]
pub struct Gradients<'a, T> {
    /// `(B, D)`.
    pub mean: Option<&'a [T]>,
    /// `(B, D)`.
    pub logvar: Option<&'a [T]>,
    /// `(B, D)`; asks for noise.
    pub z: Option<&'a [T]>,
    /// `(B,)`.
    pub kl: Option<&'a [T]>,
    /// `(B,)`.
    pub log_normaliser: Option<&'a [T]>,
}

/// Where gradients go; all that is given is overwritten.
#[derive(Debug)]
pub struct Wanted<'a, T> {
    /// `(M, B, D)`; zero for a missing expert.
    pub mu: &'a mut [T],
    /// `(M, B, D)`.
    pub logvar: &'a mut [T],
    /// `(M, B)`; asks for weights. Zero for a missing expert; finite or not as it is for one of weight 0.
    pub weights: Option<&'a mut [T]>,
    /// `(2, D)`: of the mean and the logarithm of the variance of a given prior.
    pub prior: Option<&'a mut [T]>,
}

pub(super) fn run<T: Float>(
    experts: &Experts<'_, T>,
    noise: Option<Noise<'_, T>>,
    gradients: Gradients<'_, T>,
    wanted: Wanted<'_, T>,
) -> Result<()> {
    let checked = Checked::new(experts)?;
    let dims = experts.dims;
    let size = dims.batch * dims.width;
    let all = product("dmu", &[dims.experts, size])?;
    for (arg, slice, want) in [
        ("grad_mean", gradients.mean, size),
        ("grad_logvar", gradients.logvar, size),
        ("grad_z", gradients.z, size),
        ("grad_kl", gradients.kl, dims.batch),
        ("grad_log_normaliser", gradients.log_normaliser, dims.batch),
        ("dmu", Some(&*wanted.mu), all),
        ("dlogvar", Some(&*wanted.logvar), all),
        ("dweights", wanted.weights.as_deref(), dims.experts * dims.batch),
        ("dprior", wanted.prior.as_deref(), 2 * dims.width),
    ] {
        slice.map_or(Ok(()), |slice| check_len(arg, slice, want))?;
    }
    check_noise(noise, experts, gradients.z.is_some())?;
    if wanted.weights.is_some() && experts.weights.is_none() {
        return Err(Error::Value { arg: "weights", what: "must be given for a gradient".into() });
    }
    let rows = rows_of_a_task(dims.width);
    let tasks = dims.batch.div_ceil(rows);
    let mut partial = match wanted.prior {
        Some(_) => vec![T::ZERO; product("prior", &[tasks, 2, dims.width])?],
        None => Vec::new(),
    };
    let call = Call {
        checked: &checked,
        noise,
        gradients,
        mu: Disjoint::new(wanted.mu),
        logvar: Disjoint::new(wanted.logvar),
        weights: wanted.weights.map(Disjoint::new),
        prior: wanted.prior.is_some().then(|| Disjoint::new(&mut partial)),
    };
    let work = rows.min(dims.batch) * dims.width * (dims.experts + 1) * WORK;
    for_each(tasks, work, |task| {
        T::dispatch(Task {
            call: &call,
            index: task,
            rows: task * rows..((task + 1) * rows).min(dims.batch),
        });
    });
    if let Some(prior) = wanted.prior {
        prior.fill(T::ZERO);
        for part in partial.chunks_exact(prior.len().max(1)) {
            for (sum, x) in prior.iter_mut().zip(part) {
                *sum += *x;
            }
        }
    }
    Ok(())
}

struct Call<'a, T> {
    checked: &'a Checked<'a, T>,
    noise: Option<Noise<'a, T>>,
    gradients: Gradients<'a, T>,
    mu: Disjoint<'a, T>,
    logvar: Disjoint<'a, T>,
    weights: Option<Disjoint<'a, T>>,
    /// `(2, D)` for each task.
    prior: Option<Disjoint<'a, T>>,
}

/// Some rows.
struct Task<'a, T> {
    call: &'a Call<'a, T>,
    index: usize,
    rows: Range<usize>,
}

/// A row: gradients of its results, null where they are zero, and where those of its experts go.
struct Row<T> {
    mean: *const T,
    logvar: *const T,
    z: *const T,
    noise: *const T,
    kl: Option<T>,
    /// Of expert 0; those of the others follow `step` elements apart.
    dmu: *mut T,
    dlogvar: *mut T,
    step: usize,
    /// Experts without the prior.
    experts: usize,
    /// Sums over the rows of the task, null where they are not asked for.
    prior_mean: *mut T,
    prior_logvar: *mut T,
    target: Option<Target<T>>,
}

/// Mean of what the divergence is taken to, and the logarithm of its variance.
type Target<T> = (*const T, *const T);

#[inline(always)]
fn from<T>(slice: Option<&[T]>, at: usize) -> *const T {
    match slice {
        Some(slice) => slice.as_ptr().wrapping_add(at),
        None => std::ptr::null(),
    }
}

impl<T: Float> Kernel<T> for Task<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let Self { call, index, rows } = self;
        let dims = call.checked.experts.dims;
        let (width, step) = (dims.width, dims.batch * dims.width);
        let noise = if call.gradients.z.is_some() { call.noise } else { None };
        let drawn = draw(s, noise, &rows, width);
        let target = if call.checked.prior_is_given() {
            let (mean, logvar) = call.checked.target();
            Some((mean.as_ptr(), logvar.as_ptr()))
        } else {
            None
        };
        let sums = part(call.prior.as_ref(), 2 * index * width..2 * (index + 1) * width);
        let mut list: Vec<Present<T>> = Vec::with_capacity(dims.experts + 1);
        for b in rows.clone() {
            call.checked.row(b, &mut list);
            let at = b * width;
            let all = if dims.experts == 0 { 0..0 } else { at..(dims.experts - 1) * step + at + width };
            let row = Row {
                mean: from(call.gradients.mean, at),
                logvar: from(call.gradients.logvar, at),
                z: from(call.gradients.z, at),
                noise: noise_row(noise, &drawn, &rows, b, width),
                kl: call.gradients.kl.map(|kl| kl[b]),
                dmu: part(Some(&call.mu), all.clone()),
                dlogvar: part(Some(&call.logvar), all),
                step,
                experts: dims.experts,
                prior_mean: sums,
                prior_logvar: if sums.is_null() { sums } else { sums.wrapping_add(width) },
                target,
            };
            // SAFETY: `Checked` vouches for the experts, `run` has checked the rest, and the row is this task's.
            unsafe {
                by_count!(list.len(), N => row.all::<S, N>(s, &list, width));
                call.missing(&list, &row);
                if let Some(weights) = &call.weights {
                    call.weights(s, weights, &list, &row, b);
                }
                if let Some(log_normaliser) = call.gradients.log_normaliser {
                    call.normaliser(s, log_normaliser[b], &list, &row, b);
                }
            }
        }
    }
}

impl<T: Float> Row<T> {
    /// Gradients of the experts in the list.
    #[inline(always)]
    unsafe fn all<S: Simd<T>, const N: usize>(&self, s: S, list: &[Present<T>], width: usize) {
        let mut d = 0;
        // SAFETY: as the caller vouches.
        unsafe {
            while d + WIDE * S::LANES <= width {
                self.block::<S, N, WIDE, true>(s, list, d, S::LANES);
                d += WIDE * S::LANES;
            }
            while d < width {
                let n = S::LANES.min(width - d);
                self.block::<S, N, 1, false>(s, list, d, n);
                d += n;
            }
        }
    }

    #[inline(always)]
    unsafe fn load<S: Simd<T>, const FULL: bool>(s: S, x: *const T, d: usize, n: usize) -> S::V {
        if x.is_null() {
            return s.splat(T::ZERO);
        }
        // SAFETY: as the caller vouches.
        unsafe { load::<T, S, FULL>(s, x.add(d), n) }
    }

    /// `W` vectors of a row, or the first lanes of one.
    #[inline(always)]
    unsafe fn block<S: Simd<T>, const N: usize, const W: usize, const FULL: bool>(
        &self,
        s: S,
        list: &[Present<T>],
        d: usize,
        n: usize,
    ) {
        let count = if N > 0 { N } else { list.len() };
        let sums = !self.prior_mean.is_null();
        // SAFETY: as the caller vouches.
        unsafe {
            let fused = fuse::<T, S, N, W, FULL>(s, list, d, n);
            let (mut g, mut l) = ([s.splat(T::ZERO); W], [s.splat(T::ZERO); W]);
            for v in 0..W {
                let d = d + v * S::LANES;
                (g[v], l[v]) = self.of_product::<S, FULL>(s, fused.mean[v], fused.logvar[v], d, n, sums);
            }
            for m in 0..count {
                let expert = list.get_unchecked(m);
                for v in 0..W {
                    let d = d + v * S::LANES;
                    let share = fused.share::<T, S, FULL>(s, list, (m, v), d, n);
                    let away = s.sub(load::<T, S, FULL>(s, expert.mu.add(d), n), fused.mean[v]);
                    let (dmu, dlogvar) = (s.mul(share, g[v]), s.mul(share, s.neg_mul_add(g[v], away, l[v])));
                    let at = expert.index * self.step + d;
                    if expert.index < self.experts {
                        store::<T, S, FULL>(s, self.dmu.add(at), n, dmu);
                        store::<T, S, FULL>(s, self.dlogvar.add(at), n, dlogvar);
                    } else if sums {
                        add::<T, S, FULL>(s, self.prior_mean.add(d), n, dmu);
                        add::<T, S, FULL>(s, self.prior_logvar.add(d), n, dlogvar);
                    }
                }
            }
        }
    }

    /// Gradients of mean and logarithm of the variance by all ways; adds what reaches the prior by the divergence to its
    /// sums where there are `sums`.
    #[inline(always)]
    unsafe fn of_product<S: Simd<T>, const FULL: bool>(
        &self,
        s: S,
        mean: S::V,
        logvar: S::V,
        d: usize,
        n: usize,
        sums: bool,
    ) -> (S::V, S::V) {
        let half = s.splat(T::from_f64(0.5));
        // SAFETY: as the caller vouches.
        unsafe {
            let mut g = Self::load::<S, FULL>(s, self.mean, d, n);
            let mut l = Self::load::<S, FULL>(s, self.logvar, d, n);
            if self.z.is_null() && self.kl.is_none() {
                return (g, l);
            }
            let deviation = bounded_exp(s, s.mul(logvar, half));
            if !self.z.is_null() {
                let dz = load::<T, S, FULL>(s, self.z.add(d), n);
                let noise = load::<T, S, FULL>(s, self.noise.add(d), n);
                g = s.add(g, dz);
                l = s.mul_add(s.mul(dz, noise), s.mul(deviation, half), l);
            }
            let Some(dkl) = self.kl else { return (g, l) };
            let variance = bounded_square(s, deviation);
            let kl = divergence::<T, S, FULL>(s, (mean, logvar, variance), self.target, d, n);
            let dkl = s.splat(dkl);
            let (half_dkl, excess) = (s.mul(dkl, half), s.sub(kl.ratio, s.splat(T::ONE)));
            if sums {
                let zero = s.splat(T::ZERO);
                add::<T, S, FULL>(s, self.prior_mean.add(d), n, s.neg_mul_add(dkl, kl.pull, zero));
                let of_logvar = s.neg_mul_add(half_dkl, s.add(excess, kl.square), zero);
                add::<T, S, FULL>(s, self.prior_logvar.add(d), n, of_logvar);
            }
            (s.mul_add(dkl, kl.pull, g), s.mul_add(half_dkl, excess, l))
        }
    }

    /// Derivative by the weight of an expert whose weight is 0, at `mu` and `logvar`.
    #[inline(always)]
    unsafe fn of_no_weight<S: Simd<T>>(
        &self,
        s: S,
        list: &[Present<T>],
        (mu, logvar): (*const T, *const T),
        width: usize,
    ) -> T {
        let (mut sum, mut d) = (T::ZERO, 0);
        while d < width {
            let n = S::LANES.min(width - d);
            // SAFETY: as the caller vouches.
            unsafe {
                let fused = fuse::<T, S, 0, 1, false>(s, list, d, n);
                let ([mean], [logvar_of_all]) = (fused.mean, fused.logvar);
                let (g, l) = self.of_product::<S, false>(s, mean, logvar_of_all, d, n, false);
                let away = s.sub(load::<T, S, false>(s, mu.add(d), n), mean);
                let share = exp(s, s.sub(logvar_of_all, load::<T, S, false>(s, logvar.add(d), n)));
                let mut lanes = [T::ZERO; sensorium_core::MAX_LANES];
                s.store(&mut lanes, s.mul(share, s.neg_mul_add(s.splat(T::ONE), l, s.mul(g, away))));
                for x in &lanes[..n] {
                    sum += *x;
                }
            }
            d += n;
        }
        sum
    }
}

/// Adds the vector, or its first `n` lanes, to `x`.
#[inline(always)]
unsafe fn add<T: Float, S: Simd<T>, const FULL: bool>(s: S, x: *mut T, n: usize, v: S::V) {
    // SAFETY: as the caller vouches.
    unsafe { store::<T, S, FULL>(s, x, n, s.add(load::<T, S, FULL>(s, x, n), v)) }
}

impl<T: Float> Call<'_, T> {
    /// Zeros for experts that the list lacks.
    #[inline(always)]
    unsafe fn missing(&self, list: &[Present<T>], row: &Row<T>) {
        let dims = self.checked.experts.dims;
        let mut at = 0;
        for m in 0..dims.experts {
            if at < list.len() && list[at].index == m {
                at += 1;
                continue;
            }
            // SAFETY: as the caller vouches.
            unsafe {
                row.dmu.add(m * row.step).write_bytes(0, dims.width);
                row.dlogvar.add(m * row.step).write_bytes(0, dims.width);
            }
        }
    }

    /// Derivatives by the weights of row `b`, whose experts' gradients are written.
    #[inline(always)]
    unsafe fn weights<S: Simd<T>>(
        &self,
        s: S,
        weights: &Disjoint<'_, T>,
        list: &[Present<T>],
        row: &Row<T>,
        b: usize,
    ) {
        let Experts { dims, mask, weights: given, mu, logvar, .. } = *self.checked.experts;
        let Some(given) = given else { return };
        for m in 0..dims.experts {
            let at = m * dims.batch + b;
            let missing = match mask {
                Some(mask) => !mask[at],
                None => false,
            };
            // SAFETY: as the caller vouches; the weights of a row are its task's.
            unsafe {
                let slope = if missing {
                    T::ZERO
                } else if given[at] == T::ZERO {
                    row.of_no_weight(s, list, (mu[m].row(b), logvar[m].row(b)), dims.width)
                } else {
                    let (mut sum, of_logvar) = (T::ZERO, row.dlogvar.add(m * row.step));
                    for d in 0..dims.width {
                        sum += *of_logvar.add(d);
                    }
                    -sum / given[at]
                };
                *weights.start_of(at..at + 1) = slope;
            }
        }
    }

    /// Adds the gradients of the logarithm of the normaliser of row `b`.
    #[inline(always)]
    unsafe fn normaliser<S: Simd<T>>(&self, s: S, g: T, list: &[Present<T>], row: &Row<T>, b: usize) {
        let Experts { dims, mask, weights, mu, logvar, .. } = *self.checked.experts;
        for m in 0..dims.experts {
            let at = m * dims.batch + b;
            if let Some(mask) = mask
                && !mask[at]
            {
                continue;
            }
            let weight = match weights {
                Some(weights) => weights[at],
                None => T::ONE,
            };
            let expert = (mu[m].row(b), logvar[m].row(b), weight);
            // SAFETY: as the caller vouches; what belongs to a row is its task's.
            unsafe {
                let sums = Sums { mu: row.dmu.add(m * row.step), logvar: row.dlogvar.add(m * row.step) };
                let slope = normaliser::gradient(s, list, expert, g, &sums, dims.width);
                if let Some(weights) = &self.weights {
                    *weights.start_of(at..at + 1) += slope;
                }
            }
        }
        if !row.prior_mean.is_null() {
            let (mu, logvar) = self.checked.target();
            let sums = Sums { mu: row.prior_mean, logvar: row.prior_logvar };
            // SAFETY: as above.
            unsafe {
                normaliser::gradient(s, list, (mu.as_ptr(), logvar.as_ptr(), T::ONE), g, &sums, dims.width);
            }
        }
    }
}
