//! The two element types that kernels are written over.

use crate::gemm::Products;
use crate::half::Storage;
use crate::isa::{self, Kernel, Level};
use crate::math::Coefficients;
use std::fmt::{Debug, Display};
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

/// `f32` or `f64`.
pub trait Float:
    Copy
    + Send
    + Sync
    + Debug
    + Display
    + Default
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
    + Sum
    + Coefficients
    + Storage<Float = Self>
    + Products
    + 'static
{
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// Negative infinity: the maximum of nothing.
    const NEG_INFINITY: Self;
    /// Distance from one to the next number.
    const EPSILON: Self;
    /// Explicit bits of the significand.
    const MANTISSA: u32;
    /// Largest exponent of a finite number, which is also the exponent's bias.
    const MAX_EXPONENT: f64;
    /// Smallest normal number.
    const MIN_POSITIVE: Self;
    /// `1.5 * 2^MANTISSA` plus the exponent's bias: adding it rounds to an integer, whose exponent pattern is
    /// then in the low bits.
    const MAGIC: Self;

    /// Nearest number.
    fn from_f64(x: f64) -> Self;
    /// The same number, wide.
    fn to_f64(self) -> f64;
    /// Nearest number to a count.
    #[must_use]
    fn from_usize(n: usize) -> Self {
        Self::from_f64(n as f64)
    }
    /// `self * b + c`, rounded once: a library call unless compiled for a level whose vectors fuse.
    #[must_use]
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// Scalar square root.
    #[must_use]
    fn sqrt(self) -> Self;
    /// Scalar exponential from the platform's library: for tails and tests, not for inner loops.
    #[must_use]
    fn exp(self) -> Self;
    /// Scalar natural logarithm.
    #[must_use]
    fn ln(self) -> Self;
    /// The larger; a NaN loses.
    #[must_use]
    fn max(self, other: Self) -> Self;
    /// Not NaN and not infinite.
    fn is_finite(self) -> bool;

    /// Runs `kernel` compiled for the instruction set in force (see [`isa::level`]).
    fn dispatch<K: Kernel<Self>>(kernel: K) -> K::Output;

    /// Runs `kernel` compiled for the highest level that the processor has and that is not above `level`,
    /// whatever the level in force: for tests and comparisons.
    fn dispatch_at<K: Kernel<Self>>(level: Level, kernel: K) -> K::Output;
}

macro_rules! float {
    ($t:ident) => {
        impl Float for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $t::NEG_INFINITY;
            const EPSILON: Self = $t::EPSILON;
            const MANTISSA: u32 = $t::MANTISSA_DIGITS - 1;
            const MAX_EXPONENT: f64 = ($t::MAX_EXP - 1) as f64;
            const MIN_POSITIVE: Self = $t::MIN_POSITIVE;
            const MAGIC: Self = (3_u64 << ($t::MANTISSA_DIGITS - 2)) as $t + ($t::MAX_EXP - 1) as $t;

            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn mul_add(self, b: Self, c: Self) -> Self {
                $t::mul_add(self, b, c)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $t::exp(self)
            }
            #[inline(always)]
            fn ln(self) -> Self {
                $t::ln(self)
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                $t::max(self, other)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                $t::is_finite(self)
            }
            #[inline]
            fn dispatch<K: Kernel<Self>>(kernel: K) -> K::Output {
                isa::dispatch_to!($t, isa::level(), kernel)
            }
            fn dispatch_at<K: Kernel<Self>>(level: Level, kernel: K) -> K::Output {
                isa::dispatch_to!($t, isa::capped(level), kernel)
            }
        }
    };
}

float!(f32);
float!(f64);
