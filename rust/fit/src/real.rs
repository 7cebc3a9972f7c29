//! Vectors of `f64` with the usual operators, so that formulas read as such.

use sensorium_core::{Simd, math};
use std::ops::{Add, Mul, Neg, Sub};

/// A number in each lane.
#[derive(Clone, Copy)]
pub(crate) struct Real<S: Simd<f64>> {
    pub(crate) s: S,
    pub(crate) v: S::V,
}

impl<S: Simd<f64>> Real<S> {
    #[inline(always)]
    pub(crate) fn splat(s: S, x: f64) -> Self {
        Self { s, v: s.splat(x) }
    }
    #[inline(always)]
    pub(crate) fn of(self, v: S::V) -> Self {
        Self { s: self.s, v }
    }
    /// The same number in every lane.
    #[inline(always)]
    pub(crate) fn constant(self, x: f64) -> Self {
        Self::splat(self.s, x)
    }
    /// `self * b + c`.
    #[inline(always)]
    pub(crate) fn mul_add(self, b: Self, c: Self) -> Self {
        self.of(self.s.mul_add(self.v, b.v, c.v))
    }
    #[inline(always)]
    pub(crate) fn recip(self) -> Self {
        self.of(self.s.div(self.s.splat(1.0), self.v))
    }
    #[inline(always)]
    pub(crate) fn max(self, other: Self) -> Self {
        self.of(self.s.max(self.v, other.v))
    }
    #[inline(always)]
    pub(crate) fn abs(self) -> Self {
        self.of(self.s.abs(self.v))
    }
    #[inline(always)]
    pub(crate) fn exp(self) -> Self {
        self.of(math::exp(self.s, self.v))
    }
    #[inline(always)]
    pub(crate) fn ln(self) -> Self {
        self.of(math::log(self.s, self.v))
    }
    #[inline(always)]
    pub(crate) fn sqrt(self) -> Self {
        self.of(self.s.sqrt(self.v))
    }
}

impl<S: Simd<f64>> Add for Real<S> {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.of(self.s.add(self.v, other.v))
    }
}
impl<S: Simd<f64>> Sub for Real<S> {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.of(self.s.sub(self.v, other.v))
    }
}
impl<S: Simd<f64>> Mul for Real<S> {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.of(self.s.mul(self.v, other.v))
    }
}
impl<S: Simd<f64>> Mul<f64> for Real<S> {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: f64) -> Self {
        self * self.constant(other)
    }
}
impl<S: Simd<f64>> Add<f64> for Real<S> {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: f64) -> Self {
        self + self.constant(other)
    }
}
impl<S: Simd<f64>> Neg for Real<S> {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        self.constant(0.0) - self
    }
}
