//! A value with its first and second derivatives by `P` parameters: exact, by the rules of calculus.
//!
//! A law is written once, as its formula over jets. `H` is `P (P + 1) / 2`: the lower half of the symmetric matrix
//! of second derivatives, row by row.

use crate::real::Real;
use sensorium_core::Simd;
use std::ops::{Add, Mul, Neg, Sub};

/// Value, gradient and second derivatives.
#[derive(Clone, Copy)]
pub(crate) struct Jet<S: Simd<f64>, const P: usize, const H: usize> {
    pub(crate) value: Real<S>,
    pub(crate) gradient: [Real<S>; P],
    pub(crate) hessian: [Real<S>; H],
}

/// Place of `(i, j)`, `j <= i`, in a lower half.
#[inline(always)]
pub(crate) const fn at(i: usize, j: usize) -> usize {
    i * (i + 1) / 2 + j
}

impl<S: Simd<f64>, const P: usize, const H: usize> Jet<S, P, H> {
    /// A constant.
    #[inline(always)]
    pub(crate) fn constant(value: Real<S>) -> Self {
        let zero = value.constant(0.0);
        Self { value, gradient: [zero; P], hessian: [zero; H] }
    }

    /// The `i`-th parameter.
    #[inline(always)]
    pub(crate) fn parameter(theta: &[Real<S>; P], i: usize) -> Self {
        let mut jet = Self::constant(theta[i]);
        jet.gradient[i] = theta[i].constant(1.0);
        jet
    }

    /// `f(self)`, from `f`, `f'` and `f''` there.
    #[inline(always)]
    fn chain(self, value: Real<S>, slope: Real<S>, curvature: Real<S>) -> Self {
        let mut jet = Self::constant(value);
        for i in 0..P {
            jet.gradient[i] = slope * self.gradient[i];
            for j in 0..=i {
                let bend = curvature * self.gradient[i] * self.gradient[j];
                jet.hessian[at(i, j)] = slope.mul_add(self.hessian[at(i, j)], bend);
            }
        }
        jet
    }

    /// `e^self`.
    #[inline(always)]
    pub(crate) fn exp(self) -> Self {
        let value = self.value.exp();
        self.chain(value, value, value)
    }

    /// `ln self`.
    #[inline(always)]
    pub(crate) fn ln(self) -> Self {
        let slope = self.value.recip();
        self.chain(self.value.ln(), slope, -(slope * slope))
    }

    /// `1 / self`.
    #[inline(always)]
    pub(crate) fn recip(self) -> Self {
        let value = self.value.recip();
        let slope = -(value * value);
        self.chain(value, slope, slope * value * -2.0)
    }

    /// `ln(1 + e^self)`, without overflow.
    #[inline(always)]
    pub(crate) fn softplus(self) -> Self {
        let x = self.value;
        let small = (-x.abs()).exp();
        let value = x.max(x.constant(0.0)) + x.of(sensorium_core::math::log1p(x.s, small.v));
        let slope = x.of(sensorium_core::math::sigmoid(x.s, x.v));
        self.chain(value, slope, slope * (-slope + 1.0))
    }

    /// `1 / (1 + e^-self)`.
    #[inline(always)]
    pub(crate) fn sigmoid(self) -> Self {
        let x = self.value;
        let value = x.of(sensorium_core::math::sigmoid(x.s, x.v));
        let slope = value * (-value + 1.0);
        self.chain(value, slope, slope * (value * -2.0 + 1.0))
    }

    /// `self` times a number.
    #[inline(always)]
    pub(crate) fn times(self, x: f64) -> Self {
        let x = self.value.constant(x);
        let mut jet = self;
        jet.value = self.value * x;
        for i in 0..P {
            jet.gradient[i] = self.gradient[i] * x;
        }
        for i in 0..H {
            jet.hessian[i] = self.hessian[i] * x;
        }
        jet
    }

    /// `self` plus a number.
    #[inline(always)]
    pub(crate) fn plus(self, x: f64) -> Self {
        Self { value: self.value + x, ..self }
    }
}

impl<S: Simd<f64>, const P: usize, const H: usize> Add for Jet<S, P, H> {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        let mut jet = self;
        jet.value = self.value + other.value;
        for i in 0..P {
            jet.gradient[i] = self.gradient[i] + other.gradient[i];
        }
        for i in 0..H {
            jet.hessian[i] = self.hessian[i] + other.hessian[i];
        }
        jet
    }
}

impl<S: Simd<f64>, const P: usize, const H: usize> Neg for Jet<S, P, H> {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        self.times(-1.0)
    }
}

impl<S: Simd<f64>, const P: usize, const H: usize> Sub for Jet<S, P, H> {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl<S: Simd<f64>, const P: usize, const H: usize> Mul for Jet<S, P, H> {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        let mut jet = Self::constant(self.value * other.value);
        for i in 0..P {
            jet.gradient[i] = self.value.mul_add(other.gradient[i], other.value * self.gradient[i]);
            for j in 0..=i {
                let mixed = self.gradient[i].mul_add(other.gradient[j], self.gradient[j] * other.gradient[i]);
                let own = self.value.mul_add(other.hessian[at(i, j)], other.value * self.hessian[at(i, j)]);
                jet.hessian[at(i, j)] = own + mixed;
            }
        }
        jet
    }
}
