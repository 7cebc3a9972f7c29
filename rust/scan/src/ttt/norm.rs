//! The layer norm of the fast network's output: its reading, the inner loss, and the gradients of both.
//!
//! With `h = (z - mean) r`, `r = 1 / sqrt(var + eps)` (Ba, Kiros and Hinton, 2016), a row is read as
//! `q + w h + b`. The inner loss is `1/2 |w h + b - t|^2`; its gradient by `z` is
//! `g = r (e - mean(e) - h mean(e h))` with `e = w (w h + b - t)`. That of a function of `g`, whose gradient by `g`
//! is `u`, follows from `de = r (u - mean(u) - h mean(u h))`, `dh = w^2 de - r u mean(e h) - r mean(u h) e`,
//! `dz = r (dh - mean(dh) - h mean(dh h)) - r h mean(u g)`, `dt = -w de`, `dw = sum de (w h + b - t + w h)`,
//! `db = sum w de`.
//!
//! The mean is corrected by the mean of what it leaves. Rows of `f32` whose squares overflow are measured in double
//! precision.

use super::scratch::padded;
use sensorium_core::{Float, Kernel, Simd};

/// The norm's parameters, padded to whole lines.
#[derive(Debug, Clone, Copy)]
pub(super) struct Norm<'a, T> {
    pub(super) weight: &'a [T],
    pub(super) bias: &'a [T],
    /// One for each of the `d` columns, zero in the padding.
    pub(super) mask: &'a [T],
    pub(super) d: usize,
    pub(super) eps: T,
}

/// Where a row stands: the mean in two parts, and `r`.
struct Stats<V> {
    first: V,
    rest: V,
    r: V,
}

impl<T: Float> Norm<'_, T> {
    /// Elements of a row.
    pub(super) fn ld(&self) -> usize {
        padded::<T>(self.d)
    }

    #[inline(always)]
    fn mean(&self) -> T {
        T::ONE / T::from_usize(self.d)
    }

    #[inline(always)]
    fn stats<S: Simd<T>>(&self, s: S, z: &[T]) -> Stats<S::V> {
        let scale = self.mean();
        let mut sum = s.splat(T::ZERO);
        for j in (0..z.len()).step_by(S::LANES) {
            sum = s.add(sum, s.load(&z[j..]));
        }
        let first = s.reduce_sum(sum) * scale;
        let (mut sum, mut squares) = (s.splat(T::ZERO), s.splat(T::ZERO));
        for j in (0..z.len()).step_by(S::LANES) {
            let x = s.mul(s.sub(s.load(&z[j..]), s.splat(first)), s.load(&self.mask[j..]));
            sum = s.add(sum, x);
            squares = s.mul_add(x, x, squares);
        }
        let squares = s.reduce_sum(squares);
        let (first, rest, r) = if squares.is_finite() {
            let rest = s.reduce_sum(sum) * scale;
            let var = (squares * scale - rest * rest).max(T::ZERO);
            (first, rest, T::ONE / (var + self.eps).sqrt())
        } else {
            self.wide_stats(&z[..self.d])
        };
        Stats { first: s.splat(first), rest: s.splat(rest), r: s.splat(r) }
    }

    #[cold]
    #[inline(never)]
    fn wide_stats(&self, z: &[T]) -> (T, T, T) {
        let mean = |f: &dyn Fn(f64) -> f64| z.iter().map(|x| f(x.to_f64())).sum::<f64>() / z.len() as f64;
        let first = T::from_f64(mean(&|x| x));
        let rest = mean(&|x| x - first.to_f64());
        let centre = first.to_f64() + rest;
        let var = mean(&|x| (x - centre) * (x - centre));
        (first, T::from_f64(rest), T::from_f64(1.0 / (var + self.eps.to_f64()).sqrt()))
    }

    /// `h` at `j`; zero in the padding.
    #[inline(always)]
    fn normal<S: Simd<T>>(&self, s: S, at: &Stats<S::V>, z: &[T], j: usize) -> S::V {
        let centred = s.sub(s.sub(s.load(&z[j..]), at.first), at.rest);
        s.mul(s.mul(centred, at.r), s.load(&self.mask[j..]))
    }
}

/// `z` becomes `q + w h + b`, row by row.
pub(super) struct Read<'a, T> {
    pub(super) norm: Norm<'a, T>,
    pub(super) q: &'a [T],
    pub(super) z: &'a mut [T],
}

impl<T: Float> Kernel<T> for Read<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let ld = self.norm.ld();
        for i in (0..self.z.len()).step_by(ld) {
            let (q, z) = (&self.q[i..i + ld], &mut self.z[i..i + ld]);
            let at = self.norm.stats(s, z);
            for j in (0..ld).step_by(S::LANES) {
                let h = self.norm.normal(s, &at, z, j);
                let y = s.mul_add(h, s.load(&self.norm.weight[j..]), s.load(&self.norm.bias[j..]));
                s.store(&mut z[j..], s.add(s.load(&q[j..]), y));
            }
        }
    }
}

/// `grad`, the gradient of what was read, becomes that of `z`.
pub(super) struct ReadBackward<'a, T> {
    pub(super) norm: Norm<'a, T>,
    pub(super) z: &'a [T],
    pub(super) grad: &'a mut [T],
    /// Added to.
    pub(super) dweight: &'a mut [T],
    /// Added to.
    pub(super) dbias: &'a mut [T],
}

impl<T: Float> Kernel<T> for ReadBackward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let Self { norm, z, grad, dweight, dbias } = self;
        let (ld, scale) = (norm.ld(), norm.mean());
        for i in (0..z.len()).step_by(ld) {
            let (z, grad) = (&z[i..i + ld], &mut grad[i..i + ld]);
            let at = norm.stats(s, z);
            let (mut sum, mut along) = (s.splat(T::ZERO), s.splat(T::ZERO));
            for j in (0..ld).step_by(S::LANES) {
                let (h, g) = (norm.normal(s, &at, z, j), s.load(&grad[j..]));
                let new = s.mul_add(g, h, s.load(&dweight[j..]));
                s.store(&mut dweight[j..], new);
                let new = s.add(g, s.load(&dbias[j..]));
                s.store(&mut dbias[j..], new);
                let g = s.mul(g, s.load(&norm.weight[j..]));
                sum = s.add(sum, g);
                along = s.mul_add(g, h, along);
            }
            let (mean, along) = (average(s, sum, scale), average(s, along, scale));
            for j in (0..ld).step_by(S::LANES) {
                let h = norm.normal(s, &at, z, j);
                let g = s.mul(s.load(&grad[j..]), s.load(&norm.weight[j..]));
                let g = s.neg_mul_add(h, along, s.sub(g, mean));
                s.store(&mut grad[j..], s.mul(s.mul(g, at.r), s.load(&norm.mask[j..])));
            }
        }
    }
}

/// `g`, the gradient of the inner loss by `z`.
pub(super) struct Loss<'a, T> {
    pub(super) norm: Norm<'a, T>,
    pub(super) z: &'a [T],
    pub(super) target: &'a [T],
    pub(super) g: &'a mut [T],
}

impl<T: Float> Norm<'_, T> {
    /// `w h + b - t` and `e`.
    #[inline(always)]
    fn error<S: Simd<T>>(&self, s: S, h: S::V, target: &[T], j: usize) -> (S::V, S::V) {
        let w = s.load(&self.weight[j..]);
        let error = s.sub(s.mul_add(h, w, s.load(&self.bias[j..])), s.load(&target[j..]));
        (error, s.mul(error, w))
    }
}

impl<T: Float> Kernel<T> for Loss<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let Self { norm, z, target, g } = self;
        let (ld, scale) = (norm.ld(), norm.mean());
        for i in (0..z.len()).step_by(ld) {
            let (z, target, g) = (&z[i..i + ld], &target[i..i + ld], &mut g[i..i + ld]);
            let at = norm.stats(s, z);
            let (mut sum, mut along) = (s.splat(T::ZERO), s.splat(T::ZERO));
            for j in (0..ld).step_by(S::LANES) {
                let h = norm.normal(s, &at, z, j);
                let (_, e) = norm.error(s, h, target, j);
                sum = s.add(sum, e);
                along = s.mul_add(e, h, along);
            }
            let (mean, along) = (average(s, sum, scale), average(s, along, scale));
            for j in (0..ld).step_by(S::LANES) {
                let h = norm.normal(s, &at, z, j);
                let (_, e) = norm.error(s, h, target, j);
                let e = s.neg_mul_add(h, along, s.sub(e, mean));
                s.store(&mut g[j..], s.mul(s.mul(e, at.r), s.load(&norm.mask[j..])));
            }
        }
    }
}

/// `u`, the gradient by `g`, becomes that by `z`; `target` becomes the gradient by the target.
pub(super) struct LossBackward<'a, T> {
    pub(super) norm: Norm<'a, T>,
    pub(super) z: &'a [T],
    pub(super) target: &'a mut [T],
    pub(super) u: &'a mut [T],
    /// Added to.
    pub(super) dweight: &'a mut [T],
    /// Added to.
    pub(super) dbias: &'a mut [T],
}

impl<T: Float> Kernel<T> for LossBackward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let Self { norm, z, target, u, dweight, dbias } = self;
        let ld = norm.ld();
        for i in (0..z.len()).step_by(ld) {
            let (z, target, u) = (&z[i..i + ld], &mut target[i..i + ld], &mut u[i..i + ld]);
            norm.loss_backward_row(s, z, target, u, dweight, dbias);
        }
    }
}

/// The mean of all lanes' sums, in every lane.
#[inline(always)]
fn average<T: Float, S: Simd<T>>(s: S, sum: S::V, scale: T) -> S::V {
    s.splat(s.reduce_sum(sum) * scale)
}

impl<T: Float> Norm<'_, T> {
    #[inline(always)]
    fn loss_backward_row<S: Simd<T>>(
        &self,
        s: S,
        z: &[T],
        target: &mut [T],
        u: &mut [T],
        dweight: &mut [T],
        dbias: &mut [T],
    ) {
        let (ld, scale, zero) = (self.ld(), self.mean(), s.splat(T::ZERO));
        let at = self.stats(s, z);
        let [mut e_sum, mut eh_sum, mut u_sum, mut uh_sum] = [zero; 4];
        for j in (0..ld).step_by(S::LANES) {
            let (h, x) = (self.normal(s, &at, z, j), s.load(&u[j..]));
            let (_, e) = self.error(s, h, target, j);
            (e_sum, eh_sum) = (s.add(e_sum, e), s.mul_add(e, h, eh_sum));
            (u_sum, uh_sum) = (s.add(u_sum, x), s.mul_add(x, h, uh_sum));
        }
        let (e_mean, eh) = (average(s, e_sum, scale), average(s, eh_sum, scale));
        let (u_mean, uh) = (average(s, u_sum, scale), average(s, uh_sum, scale));
        // Of `u g`, and of `dh` and `dh h`, which take the place of `u`.
        let [mut ug_sum, mut dh_sum, mut dhh_sum] = [zero; 3];
        for j in (0..ld).step_by(S::LANES) {
            let (h, x, w) = (self.normal(s, &at, z, j), s.load(&u[j..]), s.load(&self.weight[j..]));
            let (error, e) = self.error(s, h, target, j);
            ug_sum = s.mul_add(x, s.mul(at.r, s.neg_mul_add(h, eh, s.sub(e, e_mean))), ug_sum);
            let de = s.mul(at.r, s.neg_mul_add(h, uh, s.sub(x, u_mean)));
            let wde = s.mul(w, de);
            s.store(&mut target[j..], s.sub(zero, wde));
            let new = s.add(wde, s.load(&dbias[j..]));
            s.store(&mut dbias[j..], new);
            let new = s.mul_add(de, s.mul_add(w, h, error), s.load(&dweight[j..]));
            s.store(&mut dweight[j..], new);
            let straight = s.mul(at.r, s.mul_add(x, eh, s.mul(uh, e)));
            let dh = s.sub(s.mul(w, wde), straight);
            s.store(&mut u[j..], dh);
            (dh_sum, dhh_sum) = (s.add(dh_sum, dh), s.mul_add(dh, h, dhh_sum));
        }
        let (dh_mean, dhh) = (average(s, dh_sum, scale), average(s, dhh_sum, scale));
        let ug = average(s, ug_sum, scale);
        let along = s.add(dhh, ug);
        for j in (0..ld).step_by(S::LANES) {
            let h = self.normal(s, &at, z, j);
            let dh = s.neg_mul_add(h, along, s.sub(s.load(&u[j..]), dh_mean));
            s.store(&mut u[j..], s.mul(s.mul(at.r, dh), s.load(&self.mask[j..])));
        }
    }
}
