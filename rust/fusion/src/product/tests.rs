//! Results against the formulas in scalar `f64`, gradients against differences of these, at every level.

use super::{Gradients, Noise, Product, Results, Wanted};
use crate::levels::{at_every_level, turn};
use crate::noise::Noise as Numbers;
use crate::{Dims, Experts, Prior, Rows};
use sensorium_core::threads;

fn matrices<T>(x: &[T], batch: usize, width: usize) -> Vec<Rows<'_, T>> {
    x.chunks(batch * width).map(|x| Rows::contiguous(x, width)).collect()
}

/// Means, logarithms of variances, both of the prior, noise and weights, one after the other.
struct Case<T> {
    dims: Dims,
    values: Vec<T>,
    mask: Vec<bool>,
}

impl<T: Product + Numbers> Case<T> {
    fn new(experts: usize, batch: usize, width: usize) -> Self {
        let n = experts * batch * width;
        let weights = 2 * n + 2 * width + batch * width;
        let mut values = vec![T::ZERO; weights + experts * batch];
        T::normal(1, 0, 0, &mut values);
        for w in &mut values[weights..] {
            *w = T::from_f64(0.3 + w.to_f64().abs());
        }
        let mask = (0..experts * batch).map(|i| i % 3 != 1).collect();
        Self { dims: Dims { experts, batch, width }, values, mask }
    }

    /// Where the parts end.
    fn ends(&self) -> [usize; 6] {
        let Dims { experts, batch, width } = self.dims;
        let (n, rows) = (experts * batch * width, batch * width);
        [n, 2 * n, 2 * n + width, 2 * n + 2 * width, 2 * n + 2 * width + rows, self.values.len()]
    }

    fn call<R>(&self, f: impl FnOnce(&Experts<'_, T>, Noise<'_, T>) -> R) -> R {
        let ([a, b, c, d, e, _], Dims { batch, width, .. }) = (self.ends(), self.dims);
        let (mu, logvar) =
            (matrices(&self.values[..a], batch, width), matrices(&self.values[a..b], batch, width));
        let experts = Experts {
            dims: self.dims,
            mu: &mu,
            logvar: &logvar,
            mask: Some(&self.mask),
            weights: Some(&self.values[e..]),
            prior: Prior::Given(&self.values[b..c], &self.values[c..d]),
        };
        f(&experts, Noise::Given(Rows::contiguous(&self.values[d..e], width)))
    }

    /// Mean, logarithm of the variance, sample, divergence and logarithm of the normaliser, one after the other.
    fn results(&self) -> Vec<T> {
        let rows = self.dims.batch * self.dims.width;
        let mut out = vec![T::ZERO; 3 * rows + 2 * self.dims.batch];
        let (mean, rest) = out.split_at_mut(rows);
        let (logvar, rest) = rest.split_at_mut(rows);
        let (z, rest) = rest.split_at_mut(rows);
        let (kl, log_normaliser) = rest.split_at_mut(self.dims.batch);
        let results = Results {
            mean: Some(mean),
            logvar: Some(logvar),
            z: Some(z),
            kl: Some(kl),
            log_normaliser: Some(log_normaliser),
        };
        self.call(|experts, noise| T::fuse(experts, Some(noise), results)).unwrap();
        out
    }

    /// Gradients by `values`, those by the noise left at zero, of the results times `seeds`.
    fn gradients(&self, seeds: &[T]) -> Vec<T> {
        let ([a, b, _, d, e, f], rows) = (self.ends(), self.dims.batch * self.dims.width);
        let kl = 3 * rows + self.dims.batch;
        let gradients = Gradients {
            mean: Some(&seeds[..rows]),
            logvar: Some(&seeds[rows..2 * rows]),
            z: Some(&seeds[2 * rows..3 * rows]),
            kl: Some(&seeds[3 * rows..kl]),
            log_normaliser: Some(&seeds[kl..]),
        };
        let mut out = vec![T::ZERO; f];
        let (mu, rest) = out.split_at_mut(a);
        let (logvar, rest) = rest.split_at_mut(b - a);
        let (prior, rest) = rest.split_at_mut(d - b);
        let weights = &mut rest[e - d..];
        let wanted = Wanted { mu, logvar, weights: Some(weights), prior: Some(prior) };
        self.call(|experts, noise| T::fuse_backward(experts, Some(noise), gradients, wanted)).unwrap();
        out
    }
}

/// [`Case::results`] of these values, by precisions.
fn want<T>(case: &Case<T>, values: &[f64]) -> Vec<f64>
where
    T: Product + Numbers,
{
    let ([a, b, c, d, e, _], Dims { experts, batch, width }) = (case.ends(), case.dims);
    let rows = batch * width;
    let mut out = vec![0.0; 3 * rows + 2 * batch];
    for row in 0..batch {
        for i in 0..width {
            let (m, v) = (values[b + i], values[c + i]);
            let mut list = vec![(m, v, 1.0)];
            for expert in (0..experts).filter(|expert| case.mask[expert * batch + row]) {
                let at = (expert * batch + row) * width + i;
                list.push((values[at], values[a + at], values[e + expert * batch + row]));
            }
            let total: f64 = list.iter().map(|(_, v, w)| w * (-v).exp()).sum();
            let mean = list.iter().map(|(m, v, w)| w * (-v).exp() * m).sum::<f64>() / total;
            let (logvar, at) = (-total.ln(), row * width + i);
            out[at] = mean;
            out[rows + at] = logvar;
            out[2 * rows + at] = mean + (logvar / 2.0).exp() * values[d + at];
            let square = (mean - m).powi(2) * (-v).exp();
            out[3 * rows + row] += 0.5 * ((logvar - v).exp() + square - 1.0 - logvar + v);
            let tau = std::f64::consts::TAU.ln();
            let densities = list.iter().map(|(m, v, w)| w * (tau + v + (mean - m).powi(2) * (-v).exp()));
            out[3 * rows + batch + row] += 0.5 * (tau + logvar - densities.sum::<f64>());
        }
    }
    out
}

fn agrees<T: Product + Numbers>(tolerance: f64) {
    at_every_level(|level| {
        for experts in 1..=7 {
            for width in [1, 3, 16, 37, 70] {
                let case = Case::<T>::new(experts, 3, width);
                let values: Vec<f64> = case.values.iter().map(|x| x.to_f64()).collect();
                for (i, (got, want)) in case.results().iter().zip(want(&case, &values)).enumerate() {
                    let error = (got.to_f64() - want).abs();
                    assert!(
                        error <= tolerance * (10.0 + want.abs()),
                        "{level:?} M{experts} D{width} {i}: {got} {want}"
                    );
                }
            }
        }
    });
}

#[test]
fn results_are_those_of_the_formulas() {
    agrees::<f32>(2e-6);
    agrees::<f64>(2e-15);
}

#[test]
fn gradients_are_those_of_differences() {
    at_every_level(|level| {
        for experts in 1..=7 {
            // Rows of 1,500 are worked on in two tasks.
            for width in [3, 33, if experts == 2 { 1500 } else { 16 }] {
                let case = Case::<f64>::new(experts, 3, width);
                let mut random = vec![0.0; case.results().len() + case.values.len()];
                f64::normal(2, 0, 0, &mut random);
                let (seeds, way) = random.split_at(case.results().len());
                let mut way = way.to_vec();
                let [_, _, _, d, e, _] = case.ends();
                way[d..e].fill(0.0);
                let value = |step: f64| -> f64 {
                    let moved: Vec<f64> = case.values.iter().zip(&way).map(|(x, w)| x + step * w).collect();
                    want(&case, &moved).iter().zip(seeds).map(|(x, s)| x * s).sum()
                };
                let h = 1e-3;
                let found = (8.0 * (value(h) - value(-h)) - (value(2.0 * h) - value(-2.0 * h))) / (12.0 * h);
                let products: Vec<f64> = case.gradients(seeds).iter().zip(&way).map(|(g, w)| g * w).collect();
                let (slope, size): (f64, f64) =
                    (products.iter().sum(), products.iter().map(|x| x.abs()).sum());
                assert!(
                    (slope - found).abs() <= 1e-8 * size,
                    "{level:?} M{experts} D{width}: {slope} {found}"
                );
            }
        }
    });
}

#[test]
fn threads_change_no_bit() {
    let case = Case::<f32>::new(3, 900, 70);
    let held = turn();
    let results: Vec<_> = [1, 2, 5]
        .map(|n| {
            let before = threads::set_local_num_threads(n);
            let results = case.results();
            let both = (case.gradients(&results), results);
            threads::set_local_num_threads(before);
            both
        })
        .to_vec();
    drop(held);
    assert!(results[1..].iter().all(|other| *other == results[0]));
}
