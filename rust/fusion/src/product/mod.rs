//! The product of Gaussian experts (Hinton 2002), and what a variational autoencoder does with it: a sample and the
//! divergence from a prior (Wu and Goodman 2018, arXiv:1802.05335).
//!
//! With `a_m = ln w_m - logvar_m` over the experts of a row, the prior among them with weight 1, all in one softmax:
//! `s = softmax(a)`, `logvar = -logsumexp(a)`, `mean = sum_m s_m mu_m`. Nothing overflows, whatever logarithm of a
//! variance a float holds. Backward, with `g` and `l` the gradients of `mean` and `logvar`: `dmu_m = s_m g` and
//! `dlogvar_m = s_m (l - g (mu_m - mean))`, and `dw_m = -sum_d dlogvar_m / w_m`.
//!
//! The sample is `z = mean + exp(logvar / 2) e`, and the divergence from `N(m, exp(v))` is
//! `kl = 1/2 sum_d (exp(logvar - v) + (mean - m)^2 exp(-v) - 1 - logvar + v)`. So that it cannot overflow, an exponential
//! in it is `e^80` at most (`f64`: `e^700`). Of these `g = dz + dkl (mean - m) exp(-v)` and
//! `l = dz e exp(logvar / 2) / 2 + dkl (exp(logvar - v) - 1) / 2`.
//!
//! # In one pass
//! Forward reads the experts once and writes results; backward reads them once more, fuses them again in registers, and
//! writes gradients: nothing is kept between the two. The noise `e` is drawn by position ([`noise`](crate::noise)), and
//! drawn again by the backward. Tasks are some rows each; only the gradient of a given prior is a sum over rows, of
//! partial sums in the order of tasks, so that results do not depend on the number of threads.
//!
//! # The ladder
//! Nanoseconds an element of `f32`, two experts and the prior, 8,192 elements that lie in the second-level cache, one core of
//! a Zen 4 at AVX-512 that others kept busy: product; backward of the product; backward of the posterior, noise given.
//!
//! | form | product | backward | posterior's |
//! |---|---|---|---|
//! | maximum, three exponentials, logarithm and division apart, a vector at a time | 1.54 | 1.90 | 2.93 |
//! | relative to the last expert: two exponentials; one division; powers without the range that cannot occur | 1.26 | 1.63 | 2.52 |
//! | the same, two vectors at a time | 1.12 | 1.27 | 2.08 |
//! | an estimate and a step of Newton's for the division | 1.15 | 1.22 | 2.05 |
//!
//! The last is within the noise and is not kept: what is left is multiplications, 11 an expert and 15 of the logarithm,
//! and the caches. Rows of 32 take 15 % more an element than rows of 1,024. Noise that is drawn costs 0.87 an element,
//! half of which is Philox. Five experts backward take 4.7: their 20 streams fall on the same sets of the cache
//! where `B D` is a power of two.

mod backward;
mod forward;
mod fuse;
mod normaliser;
#[cfg(test)]
mod tests;

use crate::Rows;
pub use backward::{Gradients, Wanted};
pub use forward::Results;

/// The noise of a sample.
#[derive(Debug, Clone, Copy)]
pub enum Noise<'a, T> {
    /// `(B, D)`.
    Given(Rows<'a, T>),
    /// Number `b D + d` of stream 0 of this seed, from [`noise`](crate::noise).
    Drawn(u64),
}

/// Elements of a task: its rows of experts stay in the first-level cache between the passes over them.
const TASK: usize = 1 << 12;
/// Work of an element of an expert, in the units of [`for_each`](sensorium_core::threads::for_each).
const WORK: usize = 24;

/// Vectors that are worked on together, see [`fuse`].
const WIDE: usize = 2;

/// Rows of a task.
fn rows_of_a_task(width: usize) -> usize {
    (TASK / width.max(1)).max(1)
}

/// Entry points: one for each element type, compiled here.
pub trait Product: sensorium_core::Float {
    /// Writes what `results` has room for.
    ///
    /// # Errors
    /// Where sizes do not fit, a weight is negative or not finite, or a row has no expert.
    fn fuse(
        experts: &crate::Experts<'_, Self>,
        noise: Option<Noise<'_, Self>>,
        results: Results<'_, Self>,
    ) -> sensorium_core::Result<()>;

    /// Writes the gradients that `wanted` has room for.
    ///
    /// # Errors
    /// As [`Product::fuse`].
    fn fuse_backward(
        experts: &crate::Experts<'_, Self>,
        noise: Option<Noise<'_, Self>>,
        gradients: Gradients<'_, Self>,
        wanted: Wanted<'_, Self>,
    ) -> sensorium_core::Result<()>;
}

macro_rules! entry_points {
    ($t:ident) => {
        impl Product for $t {
            fn fuse(
                experts: &crate::Experts<'_, Self>,
                noise: Option<Noise<'_, Self>>,
                results: Results<'_, Self>,
            ) -> sensorium_core::Result<()> {
                forward::run(experts, noise, results)
            }
            fn fuse_backward(
                experts: &crate::Experts<'_, Self>,
                noise: Option<Noise<'_, Self>>,
                gradients: Gradients<'_, Self>,
                wanted: Wanted<'_, Self>,
            ) -> sensorium_core::Result<()> {
                backward::run(experts, noise, gradients, wanted)
            }
        }
    };
}
entry_points!(f32);
entry_points!(f64);
