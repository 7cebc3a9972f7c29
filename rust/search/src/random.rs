//! Draws of a tree, numbered: a tree that is saved goes on with the next.

use sensorium_core::rng::Stream;

/// A sequence of random numbers and the place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Draws {
    stream: Stream,
    /// Of the next draw.
    pub(crate) position: u64,
}

impl Draws {
    pub(crate) fn new(seed: u64) -> Self {
        Self { stream: Stream::new(seed, 0), position: 0 }
    }

    /// Two uniform numbers in `(0, 1]`.
    fn pair(&mut self) -> (f64, f64) {
        let words = self.stream.words(self.position);
        self.position = self.position.wrapping_add(1);
        let unit = |low: u32, high: u32| {
            let bits = u64::from(low) | u64::from(high) << 32;
            ((bits >> 11) as f64 + 1.0) * (-53_f64).exp2()
        };
        (unit(words[0], words[1]), unit(words[2], words[3]))
    }

    /// Uniform in `(0, 1]`.
    pub(crate) fn uniform(&mut self) -> f64 {
        self.pair().0
    }

    /// Of mean 0 and variance 1 (Box and Muller 1958).
    pub(crate) fn normal(&mut self) -> f64 {
        let (u, v) = self.pair();
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// Of a gamma distribution of this shape and scale 1 (Marsaglia and Tsang 2000).
    pub(crate) fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            // Of shape + 1, times a power of a uniform number; in logarithms, since the power may underflow.
            let log = self.gamma(shape + 1.0).ln() + self.uniform().ln() / shape;
            return log.exp();
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.uniform().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }

    /// Of a beta distribution.
    pub(crate) fn beta(&mut self, alpha: f64, beta: f64) -> f64 {
        let (x, y) = (self.gamma(alpha), self.gamma(beta));
        if x + y > 0.0 { x / (x + y) } else { 0.5 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean and variance of `n` draws.
    fn moments(n: usize, mut draw: impl FnMut() -> f64) -> (f64, f64) {
        let x: Vec<f64> = (0..n).map(|_| draw()).collect();
        let mean = x.iter().sum::<f64>() / n as f64;
        (mean, x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64)
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let n = 200_000;
        let mut draws = Draws::new(3);
        for shape in [0.3, 1.0, 4.5, 60.0] {
            let (mean, variance) = moments(n, || draws.gamma(shape));
            let error = 6.0 * (shape / n as f64).sqrt();
            assert!((mean - shape).abs() < error, "shape {shape}: mean {mean}");
            // Of the fourth moment, 3 shape^2 + 6 shape.
            let error = 6.0 * ((2.0 * shape * shape + 6.0 * shape) / n as f64).sqrt();
            assert!((variance - shape).abs() < error, "shape {shape}: variance {variance}");
        }
        for (a, b) in [(0.5, 0.5), (2.0, 7.0)] {
            let want = a * b / ((a + b) * (a + b) * (a + b + 1.0));
            let (mean, variance) = moments(n, || draws.beta(a, b));
            assert!((mean - a / (a + b)).abs() < 6.0 * (want / n as f64).sqrt(), "mean {mean}");
            assert!((variance - want).abs() < 0.02 * want, "variance {variance}");
        }
        let (mean, variance) = moments(n, || draws.normal());
        assert!(mean.abs() < 6.0 / (n as f64).sqrt() && (variance - 1.0).abs() < 0.02);
    }
}
