//! Against sums over the subsets that are written as they stand, in `f64`.

use super::*;
use crate::levels::at_every_level;
use crate::product::Noise;
use crate::{Prior, Rows};
use sensorium_core::rng::Stream;

struct Case<T> {
    dims: Dims,
    mu: Vec<Vec<T>>,
    logvar: Vec<Vec<T>>,
    mask: Vec<bool>,
    weights: Vec<T>,
    prior: Option<(Vec<T>, Vec<T>)>,
    has_prior: bool,
    subsets: Option<Vec<u32>>,
    chosen: Vec<u32>,
    noise: Vec<T>,
}

impl<T: Subsets> Case<T> {
    fn new(dims: Dims, seed: u64, spread: f64, has_prior: bool, given: bool, list: bool) -> Self {
        let mut stream = 0;
        let mut draw = |n: usize, scale: f64| {
            stream += 1;
            let mut out = vec![0.0; n];
            Stream::new(seed, stream).normal(0, &mut out);
            out.iter().map(|x: &f64| T::from_f64(x * scale)).collect::<Vec<T>>()
        };
        let (m, size) = (dims.experts, dims.batch * dims.width);
        let mut mask: Vec<bool> = draw(m * dims.batch, 1.0).iter().map(|x| x.to_f64() < 0.8).collect();
        for row in 0..dims.batch {
            mask[row % m * dims.batch + row] = true;
        }
        let all: Vec<u32> = (1..1 << m).collect();
        let listed: Vec<u32> = all.iter().copied().filter(|s| s.is_power_of_two() || s % 3 == 0).collect();
        let present =
            |row: usize| (0..m).fold(0, |bits, e| bits | u32::from(mask[e * dims.batch + row]) << e);
        let from = if list { &listed } else { &all };
        let chosen = (0..dims.batch)
            .map(|row| {
                let mine: Vec<u32> = from.iter().copied().filter(|s| s & !present(row) == 0).collect();
                mine[row * 7 % mine.len()]
            })
            .collect();
        Self {
            dims,
            mu: (0..m).map(|_| draw(size, 2.0)).collect(),
            // Within what `f32` holds the exponential of.
            logvar: (0..m)
                .map(|_| {
                    draw(size, spread).iter().map(|x| T::from_f64(x.to_f64().clamp(-80.0, 80.0))).collect()
                })
                .collect(),
            weights: draw(m * dims.batch, 1.0).iter().map(|x| T::from_f64(x.to_f64().abs() + 0.1)).collect(),
            prior: given.then(|| (draw(dims.width, 1.0), draw(dims.width, 1.0))),
            has_prior,
            subsets: list.then_some(listed),
            noise: draw(size, 1.0),
            chosen,
            mask,
        }
    }

    /// Calls `f` with what the kernels take.
    fn with<R>(&self, f: impl FnOnce(&Experts<'_, T>, &Draw<'_, T>) -> R) -> R {
        let width = self.dims.width;
        let mu: Vec<_> = self.mu.iter().map(|x| Rows::contiguous(x, width)).collect();
        let logvar: Vec<_> = self.logvar.iter().map(|x| Rows::contiguous(x, width)).collect();
        let prior = match &self.prior {
            _ if !self.has_prior => Prior::None,
            Some((mean, logvar)) => Prior::Given(mean, logvar),
            None => Prior::Standard,
        };
        let experts = Experts {
            dims: self.dims,
            mu: &mu,
            logvar: &logvar,
            mask: Some(&self.mask),
            weights: Some(&self.weights),
            prior,
        };
        let noise = Noise::Given(Rows::contiguous(&self.noise, width));
        let draw = Draw { subsets: self.subsets.as_deref(), chosen: &self.chosen, noise };
        f(&experts, &draw)
    }

    fn forward(&self) -> (Vec<T>, Vec<T>) {
        let (mut z, mut kl) = (vec![T::ZERO; self.noise.len()], vec![T::ZERO; self.dims.batch]);
        self.with(|experts, draw| T::mixture_of_products(experts, draw, &mut z, &mut kl)).unwrap();
        (z, kl)
    }

    /// Gradients of means, of logarithms of variances, of weights and of the prior, one after the other.
    fn backward(&self, grad_z: &[T], grad_kl: &[T]) -> Vec<T> {
        let (m, size) = (self.dims.experts, self.noise.len());
        let given = if self.prior.is_some() && self.has_prior { 2 * self.dims.width } else { 0 };
        let mut out = vec![T::from_f64(f64::NAN); 2 * m * size + m * self.dims.batch + given];
        let (arrays, rest) = out.split_at_mut(2 * m * size);
        let (weights, prior) = rest.split_at_mut(m * self.dims.batch);
        let (mu, logvar) = arrays.split_at_mut(m * size);
        let grads = Grads { mu, logvar, weights: Some(weights), prior: (given > 0).then_some(prior) };
        self.with(|experts, draw| T::mixture_of_products_backward(experts, draw, grad_z, grad_kl, grads))
            .unwrap();
        out
    }

    /// The input that gradient `i` is by.
    fn place(&mut self, i: usize) -> &mut T {
        let (m, size) = (self.dims.experts, self.noise.len());
        match i / size {
            e if e < m => &mut self.mu[e][i % size],
            e if e < 2 * m => &mut self.logvar[e - m][i % size],
            _ => {
                let (i, width) = (i - 2 * m * size, self.dims.width);
                let (mean, logvar) = match &mut self.prior {
                    _ if i < self.weights.len() => return &mut self.weights[i],
                    Some((mean, logvar)) => (mean, logvar),
                    None => unreachable!("only a given prior has gradients"),
                };
                let i = i - self.weights.len();
                if i < width { &mut mean[i] } else { &mut logvar[i - width] }
            }
        }
    }

    /// Sample and divergence by their formulas; a precision is kept as its logarithm.
    fn want(&self) -> (Vec<f64>, Vec<f64>) {
        let Dims { experts, batch, width } = self.dims;
        let (mut z, mut kl) = (Vec::new(), Vec::new());
        for row in 0..batch {
            let present = (0..experts).fold(0, |bits, m| bits | u32::from(self.mask[m * batch + row]) << m);
            let subsets: Vec<u32> = (1..1 << experts)
                .filter(|s| s & !present == 0)
                .filter(|s| self.subsets.as_ref().is_none_or(|list| list.contains(s)))
                .collect();
            let mut sum = 0.0;
            for d in 0..width {
                let target = self
                    .prior
                    .as_ref()
                    .map_or((0.0, 0.0), |(mean, logvar)| (mean[d].to_f64(), logvar[d].to_f64()));
                let target = if self.has_prior { target } else { (0.0, 0.0) };
                let fused = |subset: u32| {
                    let mut parts: Vec<(f64, f64)> = (0..experts)
                        .filter(|m| subset >> m & 1 == 1)
                        .map(|m| {
                            let weight = self.weights[m * batch + row].to_f64().ln();
                            let at = row * width + d;
                            (weight - self.logvar[m][at].to_f64(), self.mu[m][at].to_f64())
                        })
                        .collect();
                    if self.has_prior {
                        parts.push((-target.1, target.0));
                    }
                    let most = parts.iter().map(|p| p.0).fold(f64::NEG_INFINITY, f64::max);
                    let total: f64 = parts.iter().map(|p| (p.0 - most).exp()).sum();
                    let mean = parts.iter().map(|p| (p.0 - most).exp() * p.1).sum::<f64>() / total;
                    (most + total.ln(), mean)
                };
                let mut of_element = 0.0;
                for &subset in &subsets {
                    let (log, mean) = fused(subset);
                    let log = log + target.1;
                    of_element += (-log).exp() + (mean - target.0).powi(2) * (-target.1).exp() - 1.0 + log;
                }
                sum += of_element / 2.0 / subsets.len() as f64;
                let (log, mean) = fused(self.chosen[row]);
                z.push(mean + (-0.5 * log).exp() * self.noise[row * width + d].to_f64());
            }
            kl.push(sum);
        }
        (z, kl)
    }
}

fn close<T: Float>(got: &[T], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (got.to_f64() - want).abs();
        assert!(error <= tolerance * (1.0 + want.abs()), "{what} {i}: {got}, expected {want}");
    }
}

/// Sizes, spreads of `logvar`, priors and lists that every path is reached by.
fn cases<T: Subsets>() -> Vec<Case<T>> {
    let mut cases = Vec::new();
    for (seed, &(experts, batch, width)) in
        [(1, 3, 5), (2, 4, 16), (3, 9, 21), (5, 6, 33), (7, 3, 17), (9, 2, 3)].iter().enumerate()
    {
        for (spread, has_prior, given, list) in [
            (1.0, true, false, false),
            (1.0, true, true, true),
            (1.0, false, false, false),
            (15.0, true, false, true),
            (25.0, false, false, false),
        ] {
            let dims = Dims { experts, batch, width };
            cases.push(Case::new(dims, seed as u64 + 1, spread, has_prior, given, list));
        }
    }
    cases
}

fn samples_and_divergences<T: Subsets>(tolerance: f64) {
    at_every_level(|level| {
        for case in cases::<T>() {
            let (z, kl) = case.forward();
            let (want_z, want_kl) = case.want();
            let what = format!("{level:?} {:?}", case.dims);
            let deviates = want_z.iter().fold(1.0, |most, z| z.abs().max(most));
            close(&z, &want_z, tolerance * deviates, &format!("{what} z"));
            close(&kl, &want_kl, tolerance, &format!("{what} kl"));
        }
    });
}

#[test]
fn are_those_of_the_formulas() {
    samples_and_divergences::<f32>(3e-5);
    samples_and_divergences::<f64>(1e-12);
}

/// A weighted sum of the results, whose gradients are the weights.
fn loss(case: &Case<f64>, grad_z: &[f64], grad_kl: &[f64]) -> f64 {
    let (z, kl) = case.want();
    let of_z: f64 = z.iter().zip(grad_z).map(|(a, b)| a * b).sum();
    of_z + kl.iter().zip(grad_kl).map(|(a, b)| a * b).sum::<f64>()
}

#[test]
fn gradients_are_differences() {
    at_every_level(|level| {
        for mut case in cases::<f64>() {
            let Dims { batch, width, .. } = case.dims;
            let size = batch * width;
            // Bounded divergences, so that differences hold, of elements that take both ways.
            for (i, x) in case.logvar.iter_mut().flatten().enumerate() {
                *x = x.clamp(-4.0, 3.0) - if i % size % 3 == 1 { 600.0 } else { 0.0 };
            }
            let (mut grad_z, mut grad_kl) = (vec![0.0; size], vec![0.0; batch]);
            Stream::new(8, 0).normal(0, &mut grad_z);
            Stream::new(9, 0).normal(0, &mut grad_kl);
            let grads = case.backward(&grad_z, &grad_kl);
            for i in (0..grads.len()).step_by(grads.len() / 25 + 1) {
                let h = 1e-5;
                let mut moved = |by: f64| {
                    *case.place(i) += by;
                    let loss = loss(&case, &grad_z, &grad_kl);
                    *case.place(i) -= by;
                    loss
                };
                let want = (moved(h) - moved(-h)) / (2.0 * h);
                let error = (grads[i] - want).abs();
                assert!(
                    error < 1e-5 * (1.0 + want.abs()),
                    "{level:?} {:?} {i}: {}, {want}",
                    case.dims,
                    grads[i]
                );
            }
        }
    });
}
