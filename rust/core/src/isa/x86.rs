//! AVX2 with FMA and F16C, and AVX-512.

use super::Simd;
use crate::half::{Bf16, F16};
#[allow(clippy::wildcard_imports)]
use std::arch::x86_64::*;

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(());

/// Proof that the processor has AVX-512 F, BW, DQ and VL.
#[derive(Debug, Clone, Copy)]
pub struct Avx512(());

impl Avx2 {
    /// The calling function's target features are the proof.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn new() -> Self {
        Self(())
    }
}

impl Avx512 {
    /// The calling function's target features are the proof.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn new() -> Self {
        Self(())
    }
}

/// Methods that are one intrinsic. SAFETY of each: a value of the token type exists only where the processor
/// has the instructions.
macro_rules! intrinsics {
    ($($name:ident($($arg:ident),*) = $body:expr;)*) => {
        $(#[inline(always)]
        fn $name(self, $($arg: Self::V),*) -> Self::V {
            // SAFETY: the token proves that the processor has the instruction.
            unsafe { $body }
        })*
    };
}

macro_rules! load_store {
    ($t:ident, $load:ident, $store:ident, $set1:ident) => {
        #[inline(always)]
        fn splat(self, x: $t) -> Self::V {
            // SAFETY: the token proves that the processor has the instruction.
            unsafe { $set1(x) }
        }
        #[inline(always)]
        unsafe fn load_ptr(self, src: *const $t) -> Self::V {
            // SAFETY: the token proves the instruction; the caller vouches for the elements.
            unsafe { $load(src) }
        }
        #[inline(always)]
        unsafe fn store_ptr(self, dst: *mut $t, v: Self::V) {
            // SAFETY: the token proves the instruction; the caller vouches for the elements.
            unsafe { $store(dst, v) }
        }
    };
}

/// Heads through a buffer on the stack: AVX2 masks by vectors, which costs as much as the copy.
macro_rules! heads_by_buffer {
    ($t:ident, $lanes:literal) => {
        #[inline(always)]
        fn load_head(self, src: &[$t], fill: $t) -> Self::V {
            let mut buffer = [fill; $lanes];
            for (b, &x) in buffer.iter_mut().zip(src) {
                *b = x;
            }
            <Self as Simd<$t>>::load(self, &buffer)
        }
        #[inline(always)]
        fn store_head(self, dst: &mut [$t], v: Self::V) {
            let mut buffer = [0.0; $lanes];
            <Self as Simd<$t>>::store(self, &mut buffer, v);
            for (d, x) in dst.iter_mut().zip(buffer) {
                *d = x;
            }
        }
    };
}

macro_rules! heads_by_mask {
    ($t:ident, $lanes:literal, $mask:ident, $load:ident, $store:ident) => {
        #[inline(always)]
        fn load_head(self, src: &[$t], fill: $t) -> Self::V {
            let mask = ((1_u32 << src.len().min($lanes)) - 1) as $mask;
            // SAFETY: the token proves the instruction; lanes outside the mask are not read.
            unsafe { $load(<Self as Simd<$t>>::splat(self, fill), mask, src.as_ptr()) }
        }
        #[inline(always)]
        fn store_head(self, dst: &mut [$t], v: Self::V) {
            let mask = ((1_u32 << dst.len().min($lanes)) - 1) as $mask;
            // SAFETY: the token proves the instruction; lanes outside the mask are not written.
            unsafe { $store(dst.as_mut_ptr(), mask, v) }
        }
    };
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

impl Simd<f32> for Avx2 {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    const FUSED: bool = true;
    type V = __m256;
    type M = __m256;

    load_store!(f32, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps);
    heads_by_buffer!(f32, 8);
    #[inline(always)]
    unsafe fn load_bf16(self, src: *const Bf16) -> __m256 {
        // SAFETY: the token proves the instructions; the caller vouches for the elements.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(src.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, src: *const F16) -> __m256 {
        // SAFETY: the token proves the instruction; the caller vouches for the elements.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(src.cast())) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, dst: *mut Bf16, v: __m256) {
        // SAFETY: the token proves the instructions; the caller vouches for the elements.
        unsafe {
            let bits = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let nearest = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let upper = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(nearest, quiet, nan));
            // Packing works within halves: the first and third quarter are what is wanted.
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(upper, upper));
            _mm_storeu_si128(dst.cast(), _mm256_castsi256_si128(packed));
        }
    }
    #[inline(always)]
    unsafe fn store_f16(self, dst: *mut F16, v: __m256) {
        // SAFETY: the token proves the instruction; the caller vouches for the elements.
        unsafe { _mm_storeu_si128(dst.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    intrinsics! {
        add(a, b) = _mm256_add_ps(a, b);
        sub(a, b) = _mm256_sub_ps(a, b);
        mul(a, b) = _mm256_mul_ps(a, b);
        div(a, b) = _mm256_div_ps(a, b);
        mul_add(a, b, c) = _mm256_fmadd_ps(a, b, c);
        neg_mul_add(a, b, c) = _mm256_fnmadd_ps(a, b, c);
        max(a, b) = _mm256_max_ps(a, b);
        min(a, b) = _mm256_min_ps(a, b);
        swap_pairs(a) = _mm256_permute_ps::<0b10_11_00_01>(a);
        sqrt(a) = _mm256_sqrt_ps(a);
        abs(a) = _mm256_andnot_ps(_mm256_set1_ps(-0.0), a);
        round(a) = _mm256_round_ps::<NEAREST>(a);
        pow2(a) = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(
            _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127))));
    }
    #[inline(always)]
    fn shl_mantissa(self, a: __m256) -> __m256 {
        // SAFETY: the token proves that the processor has the instruction.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(a))) }
    }
    #[inline(always)]
    fn frexp(self, a: __m256) -> (__m256, __m256) {
        let root = std::f32::consts::FRAC_1_SQRT_2.to_bits().cast_signed();
        let (one, low) = (1.0_f32.to_bits().cast_signed(), (1 << 23) - 1);
        let unit = (1_u64 << 23) as f32;
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            // Moves the exponent's step from 1 to sqrt(1/2); what then carries over is the exponent.
            let moved = _mm256_add_epi32(_mm256_castps_si256(a), _mm256_set1_epi32(one - root));
            let m =
                _mm256_add_epi32(_mm256_and_si256(moved, _mm256_set1_epi32(low)), _mm256_set1_epi32(root));
            // The exponent in the low bits of 2^mantissa is that number plus the exponent.
            let e = _mm256_or_si256(
                _mm256_srli_epi32::<23>(moved),
                _mm256_set1_epi32(unit.to_bits().cast_signed()),
            );
            let bias = _mm256_set1_ps(unit + 127.0);
            (_mm256_castsi256_ps(m), _mm256_sub_ps(_mm256_castsi256_ps(e), bias))
        }
    }
    #[inline(always)]
    fn copysign(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            _mm256_or_ps(_mm256_andnot_ps(sign, a), _mm256_and_ps(sign, b))
        }
    }
    #[inline(always)]
    fn eq(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves that the processor has the instruction.
        unsafe { _mm256_cmp_ps::<_CMP_EQ_OQ>(a, b) }
    }
    #[inline(always)]
    fn lt(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves that the processor has the instruction.
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn select(self, mask: __m256, yes: __m256, no: __m256) -> __m256 {
        // SAFETY: the token proves that the processor has the instruction.
        unsafe { _mm256_blendv_ps(no, yes, mask) }
    }
    #[inline(always)]
    fn reduce_sum(self, a: __m256) -> f32 {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            let h = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let h = _mm_add_ps(h, _mm_movehl_ps(h, h));
            _mm_cvtss_f32(_mm_add_ss(h, _mm_shuffle_ps::<1>(h, h)))
        }
    }
    #[inline(always)]
    fn reduce_max(self, a: __m256) -> f32 {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            let h = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let h = _mm_max_ps(h, _mm_movehl_ps(h, h));
            _mm_cvtss_f32(_mm_max_ss(h, _mm_shuffle_ps::<1>(h, h)))
        }
    }
    #[inline(always)]
    fn fold<const H: usize>(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            match H {
                4 => _mm256_add_ps(_mm256_blend_ps::<0xF0>(a, b), _mm256_permute2f128_ps::<0x21>(a, b)),
                2 => _mm256_add_ps(_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xEE>(a, b)),
                _ => _mm256_add_ps(
                    _mm256_blend_ps::<0xAA>(a, _mm256_moveldup_ps(b)),
                    _mm256_blend_ps::<0xAA>(_mm256_movehdup_ps(a), b),
                ),
            }
        }
    }
}

impl Simd<f64> for Avx2 {
    const LANES: usize = 4;
    const REGISTERS: usize = 16;
    const FUSED: bool = true;
    type V = __m256d;
    type M = __m256d;

    load_store!(f64, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_set1_pd);
    heads_by_buffer!(f64, 4);
    intrinsics! {
        add(a, b) = _mm256_add_pd(a, b);
        sub(a, b) = _mm256_sub_pd(a, b);
        mul(a, b) = _mm256_mul_pd(a, b);
        div(a, b) = _mm256_div_pd(a, b);
        mul_add(a, b, c) = _mm256_fmadd_pd(a, b, c);
        neg_mul_add(a, b, c) = _mm256_fnmadd_pd(a, b, c);
        max(a, b) = _mm256_max_pd(a, b);
        min(a, b) = _mm256_min_pd(a, b);
        swap_pairs(a) = _mm256_permute_pd::<0b0101>(a);
        sqrt(a) = _mm256_sqrt_pd(a);
        abs(a) = _mm256_andnot_pd(_mm256_set1_pd(-0.0), a);
        round(a) = _mm256_round_pd::<NEAREST>(a);
        pow2(a) = _mm256_castsi256_pd(_mm256_slli_epi64::<52>(
            _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(a)), _mm256_set1_epi64x(1023))));
    }
    #[inline(always)]
    fn shl_mantissa(self, a: __m256d) -> __m256d {
        // SAFETY: the token proves that the processor has the instruction.
        unsafe { _mm256_castsi256_pd(_mm256_slli_epi64::<52>(_mm256_castpd_si256(a))) }
    }
    #[inline(always)]
    fn frexp(self, a: __m256d) -> (__m256d, __m256d) {
        let root = std::f64::consts::FRAC_1_SQRT_2.to_bits().cast_signed();
        let (one, low) = (1.0_f64.to_bits().cast_signed(), (1 << 52) - 1);
        let unit = (1_u64 << 52) as f64;
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            // Moves the exponent's step from 1 to sqrt(1/2); what then carries over is the exponent.
            let moved = _mm256_add_epi64(_mm256_castpd_si256(a), _mm256_set1_epi64x(one - root));
            let m =
                _mm256_add_epi64(_mm256_and_si256(moved, _mm256_set1_epi64x(low)), _mm256_set1_epi64x(root));
            // The exponent in the low bits of 2^mantissa is that number plus the exponent.
            let e = _mm256_or_si256(
                _mm256_srli_epi64::<52>(moved),
                _mm256_set1_epi64x(unit.to_bits().cast_signed()),
            );
            let bias = _mm256_set1_pd(unit + 1023.0);
            (_mm256_castsi256_pd(m), _mm256_sub_pd(_mm256_castsi256_pd(e), bias))
        }
    }
    #[inline(always)]
    fn copysign(self, a: __m256d, b: __m256d) -> __m256d {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            let sign = _mm256_set1_pd(-0.0);
            _mm256_or_pd(_mm256_andnot_pd(sign, a), _mm256_and_pd(sign, b))
        }
    }
    #[inline(always)]
    fn eq(self, a: __m256d, b: __m256d) -> __m256d {
        // SAFETY: the token proves that the processor has the instruction.
        unsafe { _mm256_cmp_pd::<_CMP_EQ_OQ>(a, b) }
    }
    #[inline(always)]
    fn lt(self, a: __m256d, b: __m256d) -> __m256d {
        // SAFETY: the token proves that the processor has the instruction.
        unsafe { _mm256_cmp_pd::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn select(self, mask: __m256d, yes: __m256d, no: __m256d) -> __m256d {
        // SAFETY: the token proves that the processor has the instruction.
        unsafe { _mm256_blendv_pd(no, yes, mask) }
    }
    #[inline(always)]
    fn reduce_sum(self, a: __m256d) -> f64 {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            let h = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd::<1>(a));
            _mm_cvtsd_f64(_mm_add_sd(h, _mm_unpackhi_pd(h, h)))
        }
    }
    #[inline(always)]
    fn reduce_max(self, a: __m256d) -> f64 {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            let h = _mm_max_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd::<1>(a));
            _mm_cvtsd_f64(_mm_max_sd(h, _mm_unpackhi_pd(h, h)))
        }
    }
    #[inline(always)]
    fn fold<const H: usize>(self, a: __m256d, b: __m256d) -> __m256d {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            match H {
                2 => _mm256_add_pd(_mm256_blend_pd::<0xC>(a, b), _mm256_permute2f128_pd::<0x21>(a, b)),
                _ => _mm256_hadd_pd(a, b),
            }
        }
    }
}

impl Simd<f32> for Avx512 {
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    const FUSED: bool = true;
    type V = __m512;
    type M = __mmask16;

    load_store!(f32, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps);
    heads_by_mask!(f32, 16, __mmask16, _mm512_mask_loadu_ps, _mm512_mask_storeu_ps);
    #[inline(always)]
    unsafe fn load_bf16(self, src: *const Bf16) -> __m512 {
        // SAFETY: the token proves the instructions; the caller vouches for the elements.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(src.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, src: *const F16) -> __m512 {
        // SAFETY: the token proves the instruction; the caller vouches for the elements.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(src.cast())) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, dst: *mut Bf16, v: __m512) {
        // SAFETY: the token proves the instructions; the caller vouches for the elements.
        unsafe {
            let bits = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let nearest = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let quiet = _mm512_mask_or_epi32(nearest, nan, bits, _mm512_set1_epi32(0x0040_0000));
            _mm256_storeu_si256(dst.cast(), _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(quiet)));
        }
    }
    #[inline(always)]
    unsafe fn store_f16(self, dst: *mut F16, v: __m512) {
        // SAFETY: the token proves the instruction; the caller vouches for the elements.
        unsafe { _mm256_storeu_si256(dst.cast(), _mm512_cvtps_ph::<NEAREST>(v)) }
    }
    intrinsics! {
        add(a, b) = _mm512_add_ps(a, b);
        sub(a, b) = _mm512_sub_ps(a, b);
        mul(a, b) = _mm512_mul_ps(a, b);
        div(a, b) = _mm512_div_ps(a, b);
        mul_add(a, b, c) = _mm512_fmadd_ps(a, b, c);
        neg_mul_add(a, b, c) = _mm512_fnmadd_ps(a, b, c);
        max(a, b) = _mm512_max_ps(a, b);
        min(a, b) = _mm512_min_ps(a, b);
        swap_pairs(a) = _mm512_permute_ps::<0b10_11_00_01>(a);
        sqrt(a) = _mm512_sqrt_ps(a);
        abs(a) = _mm512_abs_ps(a);
        scale(a, n) = _mm512_scalef_ps(a, n);
        round(a) = _mm512_roundscale_ps::<NEAREST>(a);
        pow2(a) = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(
            _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127))));
    }
    #[inline(always)]
    fn split_exponent(self, a: __m512) -> (__m512, __m512) {
        // Of an infinity this instruction leaves 0, and `scale` takes any integer: nothing need be bounded.
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            let rest = _mm512_reduce_ps::<NEAREST>(a);
            (_mm512_sub_ps(a, rest), rest)
        }
    }
    #[inline(always)]
    fn shl_mantissa(self, a: __m512) -> __m512 {
        // SAFETY: the token proves that the processor has the instruction.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(a))) }
    }
    #[inline(always)]
    fn frexp(self, a: __m512) -> (__m512, __m512) {
        let root = std::f32::consts::FRAC_1_SQRT_2.to_bits().cast_signed();
        let (one, low) = (1.0_f32.to_bits().cast_signed(), (1 << 23) - 1);
        let unit = (1_u64 << 23) as f32;
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            // Moves the exponent's step from 1 to sqrt(1/2); what then carries over is the exponent.
            let moved = _mm512_add_epi32(_mm512_castps_si512(a), _mm512_set1_epi32(one - root));
            let m =
                _mm512_add_epi32(_mm512_and_si512(moved, _mm512_set1_epi32(low)), _mm512_set1_epi32(root));
            // The exponent in the low bits of 2^mantissa is that number plus the exponent.
            let e = _mm512_or_si512(
                _mm512_srli_epi32::<23>(moved),
                _mm512_set1_epi32(unit.to_bits().cast_signed()),
            );
            let bias = _mm512_set1_ps(unit + 127.0);
            (_mm512_castsi512_ps(m), _mm512_sub_ps(_mm512_castsi512_ps(e), bias))
        }
    }
    #[inline(always)]
    fn copysign(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            let sign = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(sign, a), _mm512_and_ps(sign, b))
        }
    }
    #[inline(always)]
    fn eq(self, a: __m512, b: __m512) -> __mmask16 {
        // SAFETY: the token proves that the processor has the instruction.
        unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b) }
    }
    #[inline(always)]
    fn lt(self, a: __m512, b: __m512) -> __mmask16 {
        // SAFETY: the token proves that the processor has the instruction.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn select(self, mask: __mmask16, yes: __m512, no: __m512) -> __m512 {
        // SAFETY: the token proves that the processor has the instruction.
        unsafe { _mm512_mask_blend_ps(mask, no, yes) }
    }
    #[inline(always)]
    fn reduce_sum(self, a: __m512) -> f32 {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe { _mm512_reduce_add_ps(a) }
    }
    #[inline(always)]
    fn reduce_max(self, a: __m512) -> f32 {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe { _mm512_reduce_max_ps(a) }
    }
    #[inline(always)]
    fn fold<const H: usize>(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            match H {
                8 => _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xEE>(a, b)),
                4 => {
                    let other = _mm512_mask_blend_ps(0xF0F0, b, a);
                    _mm512_add_ps(
                        _mm512_mask_blend_ps(0xF0F0, a, b),
                        _mm512_shuffle_f32x4::<0xB1>(other, other),
                    )
                }
                2 => _mm512_add_ps(_mm512_shuffle_ps::<0x44>(a, b), _mm512_shuffle_ps::<0xEE>(a, b)),
                _ => _mm512_add_ps(
                    _mm512_mask_moveldup_ps(a, 0xAAAA, b),
                    _mm512_mask_movehdup_ps(b, 0x5555, a),
                ),
            }
        }
    }
}

impl Simd<f64> for Avx512 {
    const LANES: usize = 8;
    const REGISTERS: usize = 32;
    const FUSED: bool = true;
    type V = __m512d;
    type M = __mmask8;

    load_store!(f64, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_set1_pd);
    heads_by_mask!(f64, 8, __mmask8, _mm512_mask_loadu_pd, _mm512_mask_storeu_pd);
    intrinsics! {
        add(a, b) = _mm512_add_pd(a, b);
        sub(a, b) = _mm512_sub_pd(a, b);
        mul(a, b) = _mm512_mul_pd(a, b);
        div(a, b) = _mm512_div_pd(a, b);
        mul_add(a, b, c) = _mm512_fmadd_pd(a, b, c);
        neg_mul_add(a, b, c) = _mm512_fnmadd_pd(a, b, c);
        max(a, b) = _mm512_max_pd(a, b);
        min(a, b) = _mm512_min_pd(a, b);
        swap_pairs(a) = _mm512_permute_pd::<0b0101_0101>(a);
        sqrt(a) = _mm512_sqrt_pd(a);
        abs(a) = _mm512_abs_pd(a);
        scale(a, n) = _mm512_scalef_pd(a, n);
        round(a) = _mm512_roundscale_pd::<NEAREST>(a);
        pow2(a) = _mm512_castsi512_pd(_mm512_slli_epi64::<52>(
            _mm512_add_epi64(_mm512_cvtpd_epi64(a), _mm512_set1_epi64(1023))));
    }
    #[inline(always)]
    fn split_exponent(self, a: __m512d) -> (__m512d, __m512d) {
        // Of an infinity this instruction leaves 0, and `scale` takes any integer: nothing need be bounded.
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            let rest = _mm512_reduce_pd::<NEAREST>(a);
            (_mm512_sub_pd(a, rest), rest)
        }
    }
    #[inline(always)]
    fn shl_mantissa(self, a: __m512d) -> __m512d {
        // SAFETY: the token proves that the processor has the instruction.
        unsafe { _mm512_castsi512_pd(_mm512_slli_epi64::<52>(_mm512_castpd_si512(a))) }
    }
    #[inline(always)]
    fn frexp(self, a: __m512d) -> (__m512d, __m512d) {
        let root = std::f64::consts::FRAC_1_SQRT_2.to_bits().cast_signed();
        let (one, low) = (1.0_f64.to_bits().cast_signed(), (1 << 52) - 1);
        let unit = (1_u64 << 52) as f64;
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            // Moves the exponent's step from 1 to sqrt(1/2); what then carries over is the exponent.
            let moved = _mm512_add_epi64(_mm512_castpd_si512(a), _mm512_set1_epi64(one - root));
            let m =
                _mm512_add_epi64(_mm512_and_si512(moved, _mm512_set1_epi64(low)), _mm512_set1_epi64(root));
            // The exponent in the low bits of 2^mantissa is that number plus the exponent.
            let e = _mm512_or_si512(
                _mm512_srli_epi64::<52>(moved),
                _mm512_set1_epi64(unit.to_bits().cast_signed()),
            );
            let bias = _mm512_set1_pd(unit + 1023.0);
            (_mm512_castsi512_pd(m), _mm512_sub_pd(_mm512_castsi512_pd(e), bias))
        }
    }
    #[inline(always)]
    fn copysign(self, a: __m512d, b: __m512d) -> __m512d {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            let sign = _mm512_set1_pd(-0.0);
            _mm512_or_pd(_mm512_andnot_pd(sign, a), _mm512_and_pd(sign, b))
        }
    }
    #[inline(always)]
    fn eq(self, a: __m512d, b: __m512d) -> __mmask8 {
        // SAFETY: the token proves that the processor has the instruction.
        unsafe { _mm512_cmp_pd_mask::<_CMP_EQ_OQ>(a, b) }
    }
    #[inline(always)]
    fn lt(self, a: __m512d, b: __m512d) -> __mmask8 {
        // SAFETY: the token proves that the processor has the instruction.
        unsafe { _mm512_cmp_pd_mask::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn select(self, mask: __mmask8, yes: __m512d, no: __m512d) -> __m512d {
        // SAFETY: the token proves that the processor has the instruction.
        unsafe { _mm512_mask_blend_pd(mask, no, yes) }
    }
    #[inline(always)]
    fn reduce_sum(self, a: __m512d) -> f64 {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe { _mm512_reduce_add_pd(a) }
    }
    #[inline(always)]
    fn reduce_max(self, a: __m512d) -> f64 {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe { _mm512_reduce_max_pd(a) }
    }
    #[inline(always)]
    fn fold<const H: usize>(self, a: __m512d, b: __m512d) -> __m512d {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            match H {
                4 => _mm512_add_pd(_mm512_shuffle_f64x2::<0x44>(a, b), _mm512_shuffle_f64x2::<0xEE>(a, b)),
                2 => {
                    let other = _mm512_mask_blend_pd(0xCC, b, a);
                    _mm512_add_pd(
                        _mm512_mask_blend_pd(0xCC, a, b),
                        _mm512_shuffle_f64x2::<0xB1>(other, other),
                    )
                }
                _ => _mm512_add_pd(_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b)),
            }
        }
    }
}
