//! The product, and where asked a sample of it and its divergence.

use super::fuse::{bounded_exp, bounded_square, by_count, divergence, fuse};
use super::{Noise, WIDE, WORK, normaliser, rows_of_a_task};
use crate::experts::{Checked, Present};
use crate::{Experts, noise};
use sensorium_core::error::check_len;
use sensorium_core::isa::part::{load, store};
use sensorium_core::threads::{Disjoint, for_each};
use sensorium_core::{Error, Float, Kernel, Result, Simd};
use std::ops::Range;

/// Where results go; all that is given is overwritten.
#[derive(Debug)]
pub struct Results<'a, T> {
    /// `(B, D)`.
    pub mean: Option<&'a mut [T]>,
    /// `(B, D)`, logarithm of the variance.
    pub logvar: Option<&'a mut [T]>,
    /// `(B, D)`, a sample; asks for noise.
    pub z: Option<&'a mut [T]>,
    /// `(B,)`, divergence from the prior, and from `N(0, I)` where there is none.
    pub kl: Option<&'a mut [T]>,
    /// `(B,)`, logarithm of what the densities' product integrates to.
    pub log_normaliser: Option<&'a mut [T]>,
}

pub(super) fn run<T: Float>(
    experts: &Experts<'_, T>,
    noise: Option<Noise<'_, T>>,
    results: Results<'_, T>,
) -> Result<()> {
    let checked = Checked::new(experts)?;
    let dims = experts.dims;
    let size = dims.batch * dims.width;
    for (arg, slice, want) in [
        ("mean", &results.mean, size),
        ("logvar", &results.logvar, size),
        ("z", &results.z, size),
        ("kl", &results.kl, dims.batch),
        ("log_normaliser", &results.log_normaliser, dims.batch),
    ] {
        slice.as_deref().map_or(Ok(()), |slice| check_len(arg, slice, want))?;
    }
    check_noise(noise, experts, results.z.is_some())?;
    let call = Call {
        checked: &checked,
        noise,
        mean: results.mean.map(Disjoint::new),
        logvar: results.logvar.map(Disjoint::new),
        z: results.z.map(Disjoint::new),
        kl: results.kl.map(Disjoint::new),
        log_normaliser: results.log_normaliser.map(Disjoint::new),
    };
    let rows = rows_of_a_task(dims.width);
    let work = rows.min(dims.batch) * dims.width * (dims.experts + 1) * WORK;
    for_each(dims.batch.div_ceil(rows), work, |task| {
        T::dispatch(Task { call: &call, rows: task * rows..((task + 1) * rows).min(dims.batch) });
    });
    Ok(())
}

/// That there is noise of the right size where a sample is drawn.
pub(super) fn check_noise<T: Float>(
    noise: Option<Noise<'_, T>>,
    experts: &Experts<'_, T>,
    drawn: bool,
) -> Result<()> {
    match noise {
        Some(Noise::Given(rows)) => rows.check("noise", experts.dims.batch, experts.dims.width),
        None if drawn => Err(Error::Value { arg: "noise", what: "must be given for a sample".into() }),
        _ => Ok(()),
    }
}

struct Call<'a, T> {
    checked: &'a Checked<'a, T>,
    noise: Option<Noise<'a, T>>,
    mean: Option<Disjoint<'a, T>>,
    logvar: Option<Disjoint<'a, T>>,
    z: Option<Disjoint<'a, T>>,
    kl: Option<Disjoint<'a, T>>,
    log_normaliser: Option<Disjoint<'a, T>>,
}

/// Some rows.
struct Task<'a, T> {
    call: &'a Call<'a, T>,
    rows: Range<usize>,
}

/// Where the results of a row go: null where they are not asked for.
struct Row<T> {
    mean: *mut T,
    logvar: *mut T,
    z: *mut T,
    noise: *const T,
}

/// Numbers of a task's noise, where it is drawn.
#[inline(always)]
pub(super) fn draw<T: Float, S: Simd<T>>(
    s: S,
    noise: Option<Noise<'_, T>>,
    rows: &Range<usize>,
    width: usize,
) -> Vec<T> {
    let Some(Noise::Drawn(seed)) = noise else { return Vec::new() };
    let mut drawn = vec![T::ZERO; rows.len() * width];
    noise::fill(s, seed, 0, (rows.start * width) as u64, &mut drawn);
    drawn
}

/// Where the noise of row `b` begins; null where there is none.
#[inline(always)]
pub(super) fn noise_row<T: Float>(
    noise: Option<Noise<'_, T>>,
    drawn: &[T],
    rows: &Range<usize>,
    b: usize,
    width: usize,
) -> *const T {
    match noise {
        Some(Noise::Given(rows)) => rows.row(b),
        Some(Noise::Drawn(_)) => drawn.as_ptr().wrapping_add((b - rows.start) * width),
        None => std::ptr::null(),
    }
}

/// Where a part of a result begins; null where it is not asked for.
#[inline(always)]
pub(super) fn part<T>(result: Option<&Disjoint<'_, T>>, range: Range<usize>) -> *mut T {
    match result {
        // SAFETY: each part belongs to one row, which one task works on.
        Some(result) => unsafe { result.start_of(range) },
        None => std::ptr::null_mut(),
    }
}

impl<T: Float> Kernel<T> for Task<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let Self { call, rows } = self;
        let dims = call.checked.experts.dims;
        let drawn = if call.z.is_some() { draw(s, call.noise, &rows, dims.width) } else { Vec::new() };
        let mut list: Vec<Present<T>> = Vec::with_capacity(dims.experts + 1);
        for b in rows.clone() {
            call.checked.row(b, &mut list);
            let range = b * dims.width..(b + 1) * dims.width;
            let row = Row {
                mean: part(call.mean.as_ref(), range.clone()),
                logvar: part(call.logvar.as_ref(), range.clone()),
                z: part(call.z.as_ref(), range),
                noise: noise_row(call.noise, &drawn, &rows, b, dims.width),
            };
            let kl = part(call.kl.as_ref(), b..b + 1);
            let log_normaliser = part(call.log_normaliser.as_ref(), b..b + 1);
            // SAFETY: `Checked` vouches for the experts, `run` has checked the rest, and the row is this task's.
            unsafe {
                let sum = by_count!(list.len(), N => call.row::<S, N>(s, &list, &row, !kl.is_null()));
                if !kl.is_null() {
                    *kl = sum;
                }
                if !log_normaliser.is_null() {
                    *log_normaliser = normaliser::value(s, &list, dims.width);
                }
            }
        }
    }
}

impl<T: Float> Call<'_, T> {
    /// A row; returns its divergence.
    #[inline(always)]
    unsafe fn row<S: Simd<T>, const N: usize>(
        &self,
        s: S,
        list: &[Present<T>],
        row: &Row<T>,
        diverges: bool,
    ) -> T {
        let width = self.checked.experts.dims.width;
        let target = if self.checked.prior_is_given() {
            let (mean, logvar) = self.checked.target();
            Some((mean.as_ptr(), logvar.as_ptr()))
        } else {
            None
        };
        let (mut sum, mut d) = (s.splat(T::ZERO), 0);
        // SAFETY: as the caller vouches.
        unsafe {
            while d + WIDE * S::LANES <= width {
                sum = block::<T, S, N, WIDE, true>(s, list, row, target, diverges, d, S::LANES, sum);
                d += WIDE * S::LANES;
            }
            while d < width {
                let n = S::LANES.min(width - d);
                sum = block::<T, S, N, 1, false>(s, list, row, target, diverges, d, n, sum);
                d += n;
            }
        }
        s.reduce_sum(sum) * T::from_f64(0.5)
    }
}

/// `W` vectors of a row, or the first lanes of one; adds their divergence to `sum`.
#[inline(always)]
unsafe fn block<T: Float, S: Simd<T>, const N: usize, const W: usize, const FULL: bool>(
    s: S,
    list: &[Present<T>],
    row: &Row<T>,
    target: Option<(*const T, *const T)>,
    diverges: bool,
    d: usize,
    n: usize,
    mut sum: S::V,
) -> S::V {
    // SAFETY: as the caller vouches.
    unsafe {
        let fused = fuse::<T, S, N, W, FULL>(s, list, d, n);
        for v in 0..W {
            let d = d + v * S::LANES;
            if !row.mean.is_null() {
                store::<T, S, FULL>(s, row.mean.add(d), n, fused.mean[v]);
            }
            if !row.logvar.is_null() {
                store::<T, S, FULL>(s, row.logvar.add(d), n, fused.logvar[v]);
            }
        }
        if row.z.is_null() && !diverges {
            return sum;
        }
        for v in 0..W {
            let d = d + v * S::LANES;
            let (mean, logvar) = (fused.mean[v], fused.logvar[v]);
            let deviation = bounded_exp(s, s.mul(logvar, s.splat(T::from_f64(0.5))));
            if !row.z.is_null() {
                let noise = load::<T, S, FULL>(s, row.noise.add(d), n);
                store::<T, S, FULL>(s, row.z.add(d), n, s.mul_add(deviation, noise, mean));
            }
            if diverges {
                let moments = (mean, logvar, bounded_square(s, deviation));
                let kl = divergence::<T, S, FULL>(s, moments, target, d, n);
                // The small terms first: what is nearly one, and one.
                let kl = s.add(s.sub(s.sub(kl.ratio, s.splat(T::ONE)), kl.log_ratio), kl.square);
                if FULL {
                    sum = s.add(sum, kl);
                } else {
                    // Lanes beyond the row have a divergence of their own, which is not the row's.
                    let ones = [T::ONE; sensorium_core::MAX_LANES];
                    sum = s.mul_add(s.load_head(&ones[..n], T::ZERO), kl, sum);
                }
            }
        }
        sum
    }
}
