//! What the tokens of a mini-batch are to each other: `P_ij = -scale_i eta_j (x_i . k_j + 1)` for `j <= i`, by which
//! the gradient of token `j` moves what token `i` reads; and the sums over rows that go with it.

use sensorium_core::{Float, Kernel, Simd};

/// `m`, the products `x_i . k_j`, becomes `x_i . k_j + 1` below and on the diagonal, 0 above; `p` becomes `P`.
pub(super) struct Mix<'a, T> {
    pub(super) n: usize,
    pub(super) ld: usize,
    /// `(n,)`, padded with zeros.
    pub(super) eta: &'a [T],
    pub(super) scale: &'a [T],
    pub(super) m: &'a mut [T],
    pub(super) p: &'a mut [T],
}

impl<T: Float> Kernel<T> for Mix<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let one = s.splat(T::ONE);
        for i in 0..self.n {
            let m = &mut self.m[i * self.ld..(i + 1) * self.ld];
            let p = &mut self.p[i * self.ld..(i + 1) * self.ld];
            let minus = s.splat(-self.scale[i]);
            for j in (0..self.ld).step_by(S::LANES) {
                let new = s.add(s.load(&m[j..]), one);
                s.store(&mut m[j..], new);
            }
            m[i + 1..].fill(T::ZERO);
            for j in (0..self.ld).step_by(S::LANES) {
                s.store(&mut p[j..], s.mul(s.mul(s.load(&self.eta[j..]), s.load(&m[j..])), minus));
            }
            p[i + 1..].fill(T::ZERO);
        }
    }
}

/// From the gradient `dp` by `P`: `dp` becomes that by `m`; `deta` and `dscale` are added to.
pub(super) struct MixBackward<'a, T> {
    pub(super) n: usize,
    pub(super) ld: usize,
    pub(super) eta: &'a [T],
    pub(super) scale: &'a [T],
    pub(super) m: &'a [T],
    pub(super) dp: &'a mut [T],
    pub(super) deta: &'a mut [T],
    pub(super) dscale: &'a mut [f64],
}

impl<T: Float> Kernel<T> for MixBackward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        for i in 0..self.n {
            let m = &self.m[i * self.ld..(i + 1) * self.ld];
            let dp = &mut self.dp[i * self.ld..(i + 1) * self.ld];
            dp[i + 1..].fill(T::ZERO);
            let (minus, mut sum) = (s.splat(-self.scale[i]), s.splat(T::ZERO));
            for j in (0..self.ld).step_by(S::LANES) {
                let (x, eta) = (s.load(&dp[j..]), s.load(&self.eta[j..]));
                let by_pair = s.mul(x, s.load(&m[j..]));
                sum = s.mul_add(by_pair, eta, sum);
                let new = s.mul_add(by_pair, minus, s.load(&self.deta[j..]));
                s.store(&mut self.deta[j..], new);
                s.store(&mut dp[j..], s.mul(s.mul(eta, minus), x));
            }
            self.dscale[i] -= s.reduce_sum(sum).to_f64();
        }
    }
}

/// `out_i = by_i x_i` for rows of `ld`.
pub(super) struct Scale<'a, T> {
    pub(super) ld: usize,
    pub(super) by: &'a [T],
    pub(super) factor: T,
    pub(super) x: &'a [T],
    pub(super) out: &'a mut [T],
}

impl<T: Float> Kernel<T> for Scale<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        for (i, &by) in self.by.iter().enumerate() {
            let by = s.splat(by * self.factor);
            for j in (i * self.ld..(i + 1) * self.ld).step_by(S::LANES) {
                s.store(&mut self.out[j..], s.mul(by, s.load(&self.x[j..])));
            }
        }
    }
}

/// `out += sum over rows of x`, in order of rows.
pub(super) struct AddRows<'a, T> {
    pub(super) x: &'a [T],
    pub(super) out: &'a mut [T],
}

impl<T: Float> Kernel<T> for AddRows<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let ld = self.out.len();
        for i in (0..self.x.len()).step_by(ld.max(1)) {
            let row = &self.x[i..i + ld];
            for j in (0..ld).step_by(S::LANES) {
                let new = s.add(s.load(&self.out[j..]), s.load(&row[j..]));
                s.store(&mut self.out[j..], new);
            }
        }
    }
}

/// `y += factor x`.
pub(super) struct AddScaled<'a, T> {
    pub(super) factor: T,
    pub(super) x: &'a [T],
    pub(super) y: &'a mut [T],
}

impl<T: Float> Kernel<T> for AddScaled<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let factor = s.splat(self.factor);
        for j in (0..self.x.len()).step_by(S::LANES) {
            let new = s.mul_add(factor, s.load(&self.x[j..]), s.load(&self.y[j..]));
            s.store(&mut self.y[j..], new);
        }
    }
}

/// `y += x by`, element by element.
pub(super) struct AddProduct<'a, T> {
    pub(super) x: &'a [T],
    pub(super) by: &'a [T],
    pub(super) y: &'a mut [T],
}

impl<T: Float> Kernel<T> for AddProduct<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        for j in (0..self.y.len()).step_by(S::LANES) {
            let new = s.mul_add(s.load(&self.x[j..]), s.load(&self.by[j..]), s.load(&self.y[j..]));
            s.store(&mut self.y[j..], new);
        }
    }
}

/// `y *= by`, element by element.
pub(super) struct Times<'a, T> {
    pub(super) by: &'a [T],
    pub(super) y: &'a mut [T],
}

impl<T: Float> Kernel<T> for Times<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        for j in (0..self.y.len()).step_by(S::LANES) {
            let new = s.mul(s.load(&self.y[j..]), s.load(&self.by[j..]));
            s.store(&mut self.y[j..], new);
        }
    }
}

/// `out_i = x_i . y_i`; then `y_i` becomes `factor by_i y_i`.
pub(super) struct Dots<'a, T> {
    pub(super) ld: usize,
    pub(super) x: &'a [T],
    pub(super) by: &'a [T],
    pub(super) factor: T,
    pub(super) y: &'a mut [T],
    pub(super) out: &'a mut [T],
}

impl<T: Float> Kernel<T> for Dots<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        for (i, &by) in self.by.iter().enumerate() {
            let (mut sum, by) = (s.splat(T::ZERO), s.splat(by * self.factor));
            for j in (i * self.ld..(i + 1) * self.ld).step_by(S::LANES) {
                let y = s.load(&self.y[j..]);
                sum = s.mul_add(s.load(&self.x[j..]), y, sum);
                s.store(&mut self.y[j..], s.mul(by, y));
            }
            self.out[i] = s.reduce_sum(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_causal_and_their_gradient_is_that_of_their_sum() {
        let (n, ld) = (3, 8);
        let base: Vec<f64> = (0..n * ld).map(|i| (i % 7) as f64 * 0.3 - 1.0).collect();
        let weight: Vec<f64> = (0..n * ld).map(|i| (i % 5) as f64 - 2.0).collect();
        let scale = [1.0, 0.5, 0.25];
        let mut eta = vec![0.0; ld];
        eta[..n].copy_from_slice(&[0.1, 0.2, 0.7]);
        let value = |m: &[f64], eta: &[f64], scale: &[f64]| {
            let (mut m, mut p) = (m.to_vec(), vec![0.0; n * ld]);
            f64::dispatch(Mix { n, ld, eta, scale, m: &mut m, p: &mut p });
            assert!(p[1] == 0.0 && p[ld + 2] == 0.0 && p[2 * ld + 3] == 0.0);
            (p.iter().zip(&weight).map(|(p, w)| p * w).sum::<f64>(), m)
        };
        let (_, m) = value(&base, &eta, &scale);
        let (mut dp, mut deta, mut dscale) = (weight.clone(), vec![0.0; ld], vec![0.0; n]);
        let (deta_mut, dscale_mut) = (&mut deta, &mut dscale);
        let kernel = MixBackward {
            n,
            ld,
            eta: &eta,
            scale: &scale,
            m: &m,
            dp: &mut dp,
            deta: deta_mut,
            dscale: dscale_mut,
        };
        f64::dispatch(kernel);
        let close = |got: f64, up: f64, down: f64| assert!((got - (up - down) / 2e-6).abs() < 1e-8);
        for i in 0..n {
            for j in 0..n {
                let moved = |h: f64| {
                    let mut m = base.clone();
                    m[i * ld + j] += h;
                    value(&m, &eta, &scale).0
                };
                close(dp[i * ld + j], moved(1e-6), moved(-1e-6));
            }
            let moved = |h: f64| {
                let mut eta = eta.clone();
                eta[i] += h;
                value(&base, &eta, &scale).0
            };
            close(deta[i], moved(1e-6), moved(-1e-6));
            let moved = |h: f64| {
                let mut scale = scale;
                scale[i] += h;
                value(&base, &eta, &scale).0
            };
            close(dscale[i], moved(1e-6), moved(-1e-6));
        }
    }
}
