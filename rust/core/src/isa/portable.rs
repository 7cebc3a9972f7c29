//! Vectors as plain arrays of 16 bytes, which every compiler back end keeps in one register.

use super::Simd;
use crate::half::{Bf16, F16};

/// The level that every processor has. On `AArch64` that includes NEON with fused multiply-add.
#[derive(Debug, Clone, Copy)]
pub struct Portable;

macro_rules! portable {
    ($t:ident, $bits:ident, $lanes:literal, $magic:expr, $bias:expr, $mantissa:expr, { $($half:tt)* }) => {
        impl Simd<$t> for Portable {
            const LANES: usize = $lanes;
            const REGISTERS: usize = if cfg!(target_arch = "aarch64") { 32 } else { 16 };
            const FUSED: bool = cfg!(target_arch = "aarch64");
            type V = [$t; $lanes];
            type M = [bool; $lanes];

            #[inline(always)]
            fn splat(self, x: $t) -> Self::V {
                [x; $lanes]
            }
            #[inline(always)]
            unsafe fn load_ptr(self, src: *const $t) -> Self::V {
                // SAFETY: the caller vouches for the elements; an array has its element's alignment.
                unsafe { src.cast::<Self::V>().read() }
            }
            #[inline(always)]
            fn load_head(self, src: &[$t], fill: $t) -> Self::V {
                std::array::from_fn(|i| src.get(i).copied().unwrap_or(fill))
            }
            #[inline(always)]
            unsafe fn store_ptr(self, dst: *mut $t, v: Self::V) {
                // SAFETY: the caller vouches for the elements; an array has its element's alignment.
                unsafe { dst.cast::<Self::V>().write(v) }
            }
            #[inline(always)]
            fn store_head(self, dst: &mut [$t], v: Self::V) {
                for (d, x) in dst.iter_mut().zip(v) {
                    *d = x;
                }
            }
            #[inline(always)]
            fn add(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] + b[i])
            }
            #[inline(always)]
            fn sub(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] - b[i])
            }
            #[inline(always)]
            fn mul(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] * b[i])
            }
            #[inline(always)]
            fn div(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] / b[i])
            }
            #[inline(always)]
            fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                // `mul_add` without the instruction is a library call; two roundings are a hundred times faster.
                if cfg!(target_arch = "aarch64") {
                    std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
                } else {
                    std::array::from_fn(|i| a[i] * b[i] + c[i])
                }
            }
            #[inline(always)]
            fn neg_mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                if cfg!(target_arch = "aarch64") {
                    std::array::from_fn(|i| (-a[i]).mul_add(b[i], c[i]))
                } else {
                    std::array::from_fn(|i| c[i] - a[i] * b[i])
                }
            }
            #[inline(always)]
            fn max(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
            }
            #[inline(always)]
            fn min(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
            }
            #[inline(always)]
            fn sqrt(self, a: Self::V) -> Self::V {
                a.map($t::sqrt)
            }
            #[inline(always)]
            fn round(self, a: Self::V) -> Self::V {
                // Adding 1.5 * 2^mantissa pushes the fraction out of the significand; the default rounding is
                // to even. `round_ties_even` would be a library call without SSE4.1.
                a.map(|x| (x + $magic) - $magic)
            }
            #[inline(always)]
            fn pow2(self, a: Self::V) -> Self::V {
                // 2^mantissa + n holds n + bias in its low bits, which shifted are the exponent of 2^n.
                a.map(|x| {
                    let shifted = x + ($magic + $bias);
                    $t::from_bits(shifted.to_bits() << $mantissa)
                })
            }
            #[inline(always)]
            fn shl_mantissa(self, a: Self::V) -> Self::V {
                a.map(|x| $t::from_bits(x.to_bits() << $mantissa))
            }
            #[inline(always)]
            fn frexp(self, a: Self::V) -> (Self::V, Self::V) {
                let root = std::f64::consts::FRAC_1_SQRT_2 as $t;
                let (one, low) = ((1.0 as $t).to_bits(), (1 << $mantissa) - 1);
                // Moves the exponent's step from 1 to sqrt(1/2); what then carries over is the exponent.
                let moved = a.map(|x| x.to_bits().wrapping_add(one - root.to_bits()));
                let m = moved.map(|x| $t::from_bits((x & low) + root.to_bits()));
                // The exponent in the low bits of 2^mantissa is that number plus the exponent.
                let unit = (1_u64 << $mantissa) as $t;
                let e = moved.map(|x| $t::from_bits((x >> $mantissa) | unit.to_bits()) - (unit + $bias));
                (m, e)
            }
            #[inline(always)]
            fn abs(self, a: Self::V) -> Self::V {
                a.map($t::abs)
            }
            #[inline(always)]
            fn copysign(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i].copysign(b[i]))
            }
            #[inline(always)]
            fn swap_pairs(self, a: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i ^ 1])
            }
            #[inline(always)]
            fn eq(self, a: Self::V, b: Self::V) -> Self::M {
                std::array::from_fn(|i| a[i] == b[i])
            }
            #[inline(always)]
            fn lt(self, a: Self::V, b: Self::V) -> Self::M {
                std::array::from_fn(|i| a[i] < b[i])
            }
            #[inline(always)]
            fn select(self, mask: Self::M, yes: Self::V, no: Self::V) -> Self::V {
                std::array::from_fn(|i| if mask[i] { yes[i] } else { no[i] })
            }
            #[inline(always)]
            fn reduce_sum(self, mut a: Self::V) -> $t {
                let mut n = $lanes / 2;
                while n > 0 {
                    for i in 0..n {
                        a[i] += a[i + n];
                    }
                    n /= 2;
                }
                a[0]
            }
            #[inline(always)]
            fn reduce_max(self, a: Self::V) -> $t {
                a.into_iter().fold($t::NEG_INFINITY, $t::max)
            }
            $($half)*
            #[inline(always)]
            fn fold<const H: usize>(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| if i & H == 0 { a[i] + a[i ^ H] } else { b[i ^ H] + b[i] })
            }
        }
    };
}

portable!(f32, u32, 4, 12_582_912.0_f32, 127.0, 23, {
    #[inline(always)]
    unsafe fn load_bf16(self, src: *const Bf16) -> Self::V {
        // SAFETY: the caller vouches for the elements; an array has its element's alignment.
        unsafe { src.cast::<[Bf16; 4]>().read() }.map(Bf16::to_f32)
    }
    #[inline(always)]
    unsafe fn load_f16(self, src: *const F16) -> Self::V {
        // SAFETY: the caller vouches for the elements; an array has its element's alignment.
        unsafe { src.cast::<[F16; 4]>().read() }.map(F16::to_f32)
    }
    #[inline(always)]
    unsafe fn store_bf16(self, dst: *mut Bf16, v: Self::V) {
        // SAFETY: the caller vouches for the elements; an array has its element's alignment.
        unsafe { dst.cast::<[Bf16; 4]>().write(v.map(Bf16::from_f32)) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, dst: *mut F16, v: Self::V) {
        // SAFETY: the caller vouches for the elements; an array has its element's alignment.
        unsafe { dst.cast::<[F16; 4]>().write(v.map(F16::from_f32)) }
    }
});
portable!(f64, u64, 2, 6_755_399_441_055_744.0_f64, 1023.0, 52, {});
