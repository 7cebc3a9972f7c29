//! Instruction sets, chosen at run time: one wheel runs everywhere and uses what the processor has.
//!
//! A kernel is a struct with a generic [`Kernel::run`]; [`Float::dispatch`] runs it
//! compiled under `#[target_feature]` for the level in force. Everything between the dispatch and the
//! intrinsics is `#[inline(always)]`, so that it is compiled with those features too: a plain function or a
//! loop left to the compiler inside `run` is vectorised for the level as well.
//! Not so a closure or an iterator adapter: it is a function of its own, compiled for the baseline, and the
//! intrinsics called in it become calls through memory. In attention that cost a factor of 30.
//!
//! | level | `f32` lanes | multiply-add | compiled on |
//! |---|---|---|---|
//! | `baseline` | 4, plain arrays | two roundings | every target |
//! | `neon` | 4, plain arrays (NEON is in the `AArch64` baseline) | fused | aarch64 |
//! | `avx2` | 8 | fused | `x86_64` |
//! | `avx512` | 16 | fused | `x86_64` |
//!
//! `SENSORIUM_ISA` caps the level at start; [`set_level`] does so in a running process (tests use it to cover
//! every path). Results may differ between levels by rounding; they never differ between thread counts.

pub mod part;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::half::{Bf16, F16, load_lanes, store_lanes};
use crate::{Error, Float, Result};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

pub use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

/// A kernel, generic over the vector instructions it is compiled for.
pub trait Kernel<T: Float> {
    /// What the kernel returns.
    type Output;
    /// The kernel's body; implementations are `#[inline(always)]`.
    fn run<S: Simd<T>>(self, simd: S) -> Self::Output;
}

/// Vector operations over lanes of `T`. A value of the type proves that the processor has the instructions.
pub trait Simd<T: Float>: Copy + Send + Sync + 'static {
    /// Elements in a vector.
    const LANES: usize;
    /// Vector registers of the instruction set: what bounds a register tile.
    const REGISTERS: usize;
    /// Whether [`mul_add`](Self::mul_add) rounds once.
    const FUSED: bool;
    /// A vector.
    type V: Copy;
    /// One truth value a lane.
    type M: Copy;

    /// All lanes `x`.
    fn splat(self, x: T) -> Self::V;
    /// First `LANES` elements of `src`.
    ///
    /// # Panics
    /// Where `src` is shorter.
    #[inline(always)]
    fn load(self, src: &[T]) -> Self::V {
        let src = &src[..Self::LANES];
        // SAFETY: the slice has LANES elements.
        unsafe { self.load_ptr(src.as_ptr()) }
    }
    /// `LANES` elements from `src`, which need not be aligned.
    ///
    /// # Safety
    /// `src` is readable for `LANES` elements.
    unsafe fn load_ptr(self, src: *const T) -> Self::V;
    /// At most `LANES` elements of `src`, the rest filled up.
    fn load_head(self, src: &[T], fill: T) -> Self::V;
    /// Writes the first `LANES` elements of `dst`.
    ///
    /// # Panics
    /// Where `dst` is shorter.
    #[inline(always)]
    fn store(self, dst: &mut [T], v: Self::V) {
        let dst = &mut dst[..Self::LANES];
        // SAFETY: the slice has LANES elements.
        unsafe { self.store_ptr(dst.as_mut_ptr(), v) }
    }
    /// Writes `LANES` elements at `dst`, which need not be aligned.
    ///
    /// # Safety
    /// `dst` is writable for `LANES` elements.
    unsafe fn store_ptr(self, dst: *mut T, v: Self::V);
    /// Writes at most `LANES` elements of `dst`.
    fn store_head(self, dst: &mut [T], v: Self::V);

    /// `LANES` numbers from `src`, exactly.
    ///
    /// # Safety
    /// `src` is readable for `LANES` elements.
    #[inline(always)]
    unsafe fn load_bf16(self, src: *const Bf16) -> Self::V {
        // SAFETY: as the caller vouches.
        unsafe { load_lanes(self, src) }
    }
    /// `LANES` numbers from `src`, exactly.
    ///
    /// # Safety
    /// `src` is readable for `LANES` elements.
    #[inline(always)]
    unsafe fn load_f16(self, src: *const F16) -> Self::V {
        // SAFETY: as the caller vouches.
        unsafe { load_lanes(self, src) }
    }
    /// Writes the nearest `LANES` numbers at `dst`, ties to even.
    ///
    /// # Safety
    /// `dst` is writable for `LANES` elements.
    #[inline(always)]
    unsafe fn store_bf16(self, dst: *mut Bf16, v: Self::V) {
        // SAFETY: as the caller vouches.
        unsafe { store_lanes(self, dst, v) };
    }
    /// Writes the nearest `LANES` numbers at `dst`, ties to even.
    ///
    /// # Safety
    /// `dst` is writable for `LANES` elements.
    #[inline(always)]
    unsafe fn store_f16(self, dst: *mut F16, v: Self::V) {
        // SAFETY: as the caller vouches.
        unsafe { store_lanes(self, dst, v) };
    }

    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, fused where the level fuses.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `c - a * b`, fused where the level fuses.
    fn neg_mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// Square root.
    fn sqrt(self, a: Self::V) -> Self::V;
    /// Nearest integer, ties to even; `|a| < 2^22` (`f32`) or `2^51` (`f64`).
    fn round(self, a: Self::V) -> Self::V;
    /// `2^a` for integral `a` within the exponents of normal numbers.
    fn pow2(self, a: Self::V) -> Self::V;
    /// `a * 2^n` for integral `n`, rounded once: overflows to infinity, underflows gradually to zero.
    /// `|a|` is 0, or within `[1/2, 2]`; `|n| <= 256` (`f32`) or `2048` (`f64`).
    #[inline(always)]
    fn scale(self, a: Self::V, n: Self::V) -> Self::V {
        // In two steps, as `2^n` alone may be out of range; only the second can round.
        let half = self.round(self.mul(n, self.splat(T::from_f64(0.5))));
        self.mul(self.mul(a, self.pow2(half)), self.pow2(self.sub(n, half)))
    }
    /// `(n, a - n)` with `n` the nearest integer, ties to even. Where `2^a` is 0 or infinite, `n` is some integer
    /// (or infinity) of which the same holds, and the rest is within `[-1/2, 1/2]` too.
    #[inline(always)]
    fn split_exponent(self, a: Self::V) -> (Self::V, Self::V) {
        let most = T::from_f64(T::MAX_EXPONENT + f64::from(T::MANTISSA) + 3.0);
        // `max` and `min` return their second argument where either is NaN.
        let a = self.min(self.splat(most), self.max(self.splat(-most), a));
        let n = self.round(a);
        (n, self.sub(a, n))
    }
    /// The bits of `a` shifted up by the width of the explicit significand: `2^n` where `a` is
    /// [`Float::MAGIC`] + `n`, for `n` from minus the exponent's bias, which gives 0, to the largest exponent.
    fn shl_mantissa(self, a: Self::V) -> Self::V;
    /// `(m, e)` with `a = m * 2^e`, `sqrt(1/2) <= m < sqrt(2)` and integral `e`, for positive normal `a`.
    fn frexp(self, a: Self::V) -> (Self::V, Self::V);
    /// Magnitude.
    fn abs(self, a: Self::V) -> Self::V;
    /// The magnitude of `a` with the sign of `b`.
    fn copysign(self, a: Self::V, b: Self::V) -> Self::V;
    /// Each two lanes in the other order.
    fn swap_pairs(self, a: Self::V) -> Self::V;
    /// Where `a == b`.
    fn eq(self, a: Self::V, b: Self::V) -> Self::M;
    /// Where `a < b`.
    fn lt(self, a: Self::V, b: Self::V) -> Self::M;
    /// `yes` where `mask`, else `no`.
    fn select(self, mask: Self::M, yes: Self::V, no: Self::V) -> Self::V;
    /// Sum of the lanes, by halves: the order is fixed for a level.
    fn reduce_sum(self, a: Self::V) -> T;
    /// Largest lane.
    fn reduce_max(self, a: Self::V) -> T;
    /// Half-way sums of two vectors in one: lane `l` is `a[l] + a[l ^ H]` where bit `H` of `l` is clear, and
    /// `b[l ^ H] + b[l]` where it is set; `H` is a power of two below `LANES`.
    fn fold<const H: usize>(self, a: Self::V, b: Self::V) -> Self::V;
    /// Sums of the lanes of the first `LANES` vectors, in the lane of each; the order is fixed for a level.
    ///
    /// Three instructions a sum, where [`Simd::reduce_sum`] takes `3 log2(LANES)`.
    #[inline(always)]
    fn reduce_sums(self, mut a: [Self::V; MAX_LANES]) -> Self::V {
        if const { Self::LANES > 8 } {
            for i in 0..8 {
                a[i] = self.fold::<8>(a[i], a[i + 8]);
            }
        }
        if const { Self::LANES > 4 } {
            for i in 0..4 {
                a[i] = self.fold::<4>(a[i], a[i + 4]);
            }
        }
        if const { Self::LANES > 2 } {
            for i in 0..2 {
                a[i] = self.fold::<2>(a[i], a[i + 2]);
            }
        }
        self.fold::<1>(a[0], a[1])
    }
}

/// Most lanes of any vector.
pub const MAX_LANES: usize = 16;

/// An instruction-set level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// What every processor of the target has.
    Baseline = 1,
    /// 128-bit NEON with fused multiply-add.
    Neon = 2,
    /// 256-bit AVX2 with FMA and F16C.
    Avx2 = 3,
    /// 512-bit AVX-512 F, BW, DQ, VL.
    Avx512 = 4,
}

impl Level {
    /// Name as `SENSORIUM_ISA` spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Level of that name.
    ///
    /// # Errors
    /// [`Error::Value`] for any other name.
    pub fn from_name(name: &str) -> Result<Self> {
        [Self::Baseline, Self::Neon, Self::Avx2, Self::Avx512]
            .into_iter()
            .find(|l| l.name() == name)
            .ok_or_else(|| Error::Value {
                arg: "SENSORIUM_ISA",
                what: format!("must be one of baseline, neon, avx2, avx512, not {name:?}"),
            })
    }

    /// Levels that this processor can run, lowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        detected().to_vec()
    }
}

fn detected() -> &'static [Level] {
    static DETECTED: OnceLock<Vec<Level>> = OnceLock::new();
    DETECTED.get_or_init(detect)
}

fn detect() -> Vec<Level> {
    #[cfg(target_arch = "x86_64")]
    {
        let mut levels = vec![Level::Baseline];
        if std::is_x86_feature_detected!("avx2")
            && std::is_x86_feature_detected!("fma")
            && std::is_x86_feature_detected!("f16c")
        {
            levels.push(Level::Avx2);
            if std::is_x86_feature_detected!("avx512f")
                && std::is_x86_feature_detected!("avx512bw")
                && std::is_x86_feature_detected!("avx512dq")
                && std::is_x86_feature_detected!("avx512vl")
            {
                levels.push(Level::Avx512);
            }
        }
        levels
    }
    #[cfg(target_arch = "aarch64")]
    {
        vec![Level::Neon]
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        vec![Level::Baseline]
    }
}

/// Level in force; 0 until first asked for.
static LEVEL: AtomicU8 = AtomicU8::new(0);

/// The level in force: the highest available that `SENSORIUM_ISA` allows.
#[inline]
#[must_use]
pub fn level() -> Level {
    match LEVEL.load(Ordering::Relaxed) {
        1 => Level::Baseline,
        2 => Level::Neon,
        3 => Level::Avx2,
        4 => Level::Avx512,
        _ => first_level(),
    }
}

#[cold]
fn first_level() -> Level {
    set_level(from_environment().ok().flatten().unwrap_or(Level::Avx512))
}

/// The level that `SENSORIUM_ISA` names; `None` where it is unset or empty.
///
/// # Errors
/// [`Error::Value`] for a name that is no level's.
pub fn from_environment() -> Result<Option<Level>> {
    let value = std::env::var_os("SENSORIUM_ISA").filter(|value| !value.is_empty());
    value.map(|value| Level::from_name(value.to_string_lossy().trim())).transpose()
}

/// Caps the level from now on, in the whole process; returns the level in force: the highest available one
/// that is not above `cap`, or the lowest available.
pub fn set_level(cap: Level) -> Level {
    let level = capped(cap);
    LEVEL.store(level as u8, Ordering::Relaxed);
    level
}

/// The highest available level that is not above `cap`, or the lowest available.
pub(crate) fn capped(cap: Level) -> Level {
    let available = detected();
    *available.iter().rev().find(|&&l| l <= cap).unwrap_or(&available[0])
}

/// Runs a kernel at a level from [`level`] or [`capped`], for a concrete float type.
macro_rules! dispatch_to {
    ($t:ident, $level:expr, $kernel:expr) => {{
        #[cfg(target_arch = "x86_64")]
        match $level {
            // SAFETY: `level` and `capped` return AVX-512 only where the processor was seen to have it.
            $crate::isa::Level::Avx512 => unsafe { $crate::isa::run_avx512::<$t, _>($kernel) },
            // SAFETY: `level` and `capped` return AVX2 only where the processor was seen to have it, FMA and F16C.
            $crate::isa::Level::Avx2 => unsafe { $crate::isa::run_avx2::<$t, _>($kernel) },
            _ => $kernel.run($crate::isa::Portable),
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = $level;
            $kernel.run($crate::isa::Portable)
        }
    }};
}
pub(crate) use dispatch_to;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(crate) fn run_avx512<T: Float, K: Kernel<T>>(kernel: K) -> K::Output
where
    Avx512: Simd<T>,
{
    kernel.run(Avx512::new())
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn run_avx2<T: Float, K: Kernel<T>>(kernel: K) -> K::Output
where
    Avx2: Simd<T>,
{
    kernel.run(Avx2::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct EveryOperation;
    impl<T: Float> Kernel<T> for EveryOperation {
        type Output = ();
        fn run<S: Simd<T>>(self, s: S) {
            let n = S::LANES;
            let of = T::from_f64;
            let a: Vec<T> = (0..n).map(|i| of(i as f64 - 2.5)).collect();
            let b: Vec<T> = (0..n).map(|i| of(3.0 - i as f64 * 0.5)).collect();
            let (va, vb) = (s.load(&a), s.load(&b));
            let check = |what: &str, v: S::V, want: &dyn Fn(f64, f64) -> f64| {
                let mut got = vec![T::ZERO; n];
                s.store(&mut got, v);
                for i in 0..n {
                    assert_eq!(got[i], of(want(a[i].to_f64(), b[i].to_f64())), "{what} lane {i}");
                }
            };
            check("add", s.add(va, vb), &|a, b| a + b);
            check("sub", s.sub(va, vb), &|a, b| a - b);
            check("mul", s.mul(va, vb), &|a, b| a * b);
            check("div", s.div(va, s.splat(of(4.0))), &|a, _| a / 4.0);
            check("mul_add", s.mul_add(va, vb, s.splat(of(2.0))), &|a, b| a * b + 2.0);
            check("neg_mul_add", s.neg_mul_add(va, vb, s.splat(of(2.0))), &|a, b| 2.0 - a * b);
            check("max", s.max(va, vb), &f64::max);
            check("min", s.min(va, vb), &f64::min);
            check("sqrt", s.sqrt(s.mul(va, va)), &|a, _| a.abs());
            check("round", s.round(va), &|a, _| a.round_ties_even());
            check("pow2", s.pow2(s.round(va)), &|a, _| a.round_ties_even().exp2());
            let four = s.splat(of(4.0));
            check("scale", s.scale(s.div(va, s.splat(of(16.0))), s.round(vb)), &|a, b| {
                a / 16.0 * b.round_ties_even().exp2()
            });
            check("scale up", s.scale(four, s.splat(of(T::MAX_EXPONENT))), &|_, _| f64::INFINITY);
            let down = T::MAX_EXPONENT + f64::from(T::MANTISSA);
            let least = s.scale(s.splat(T::ONE), s.splat(of(1.0 - down)));
            check("scale down", s.mul(least, s.splat(of((T::MAX_EXPONENT - 1.0).exp2()))), &|_, _| {
                (-f64::from(T::MANTISSA)).exp2()
            });
            check("scale out", s.scale(s.splat(T::ONE), s.splat(of(-1.0 - down))), &|_, _| 0.0);
            check("shl_mantissa", s.shl_mantissa(s.add(s.round(va), s.splat(T::MAGIC))), &|a, _| {
                a.round_ties_even().exp2()
            });
            let zero = s.shl_mantissa(s.splat(T::MAGIC - of(T::MAX_EXPONENT)));
            check("shl_mantissa of least", zero, &|_, _| 0.0);
            let (m, e) = s.frexp(s.add(s.abs(va), s.splat(of(0.3))));
            check("frexp", s.mul(m, s.pow2(e)), &|a, _| of(a.abs()).to_f64() + of(0.3).to_f64());
            check("frexp range", s.select(s.lt(m, s.splat(of(0.707))), four, m), &|a, _| {
                let x = (of(a.abs()) + of(0.3)).to_f64();
                let e = x.log2().round();
                x / e.exp2()
            });
            check("abs", s.abs(va), &|a, _| a.abs());
            check("copysign", s.copysign(va, vb), &f64::copysign);
            let mut swapped = vec![T::ZERO; n];
            s.store(&mut swapped, s.swap_pairs(va));
            assert!((0..n).all(|i| swapped[i] == a[i ^ 1]), "swap_pairs");
            check("eq", s.select(s.eq(va, s.abs(va)), four, vb), &|a, b| if a >= 0.0 { 4.0 } else { b });
            check("select", s.select(s.lt(va, vb), va, vb), &f64::min);
            assert_eq!(s.reduce_sum(va), a.iter().copied().sum());
            assert_eq!(s.reduce_max(vb), of(3.0));
            // Row `i` counts from `100 i`: small integers, whose sums are exact in any order.
            let rows: Vec<T> = (0..MAX_LANES * n).map(|i| of((i / n * 100 + i % n) as f64)).collect();
            let sums = s.reduce_sums(std::array::from_fn(|i| s.load(&rows[i * n..])));
            check("reduce_sums", sums, &|a, _| {
                // Lane `i` holds `a = i - 2.5`.
                (a + 2.5) * 100.0 * n as f64 + (n * (n - 1) / 2) as f64
            });
            for m in 0..=n {
                let v = s.load_head(&a[..m], of(7.0));
                let mut whole = vec![T::ZERO; n];
                s.store(&mut whole, v);
                assert_eq!(&whole[..m], &a[..m]);
                assert!(whole[m..].iter().all(|&x| x == of(7.0)));
                let mut head = vec![T::ZERO; n];
                s.store_head(&mut head[..m], vb);
                assert_eq!(&head[..m], &b[..m]);
                assert!(head[m..].iter().all(|&x| x == T::ZERO));
            }
        }
    }

    #[test]
    fn every_operation_at_every_level() {
        for level in Level::available() {
            assert_eq!(set_level(level), level);
            f32::dispatch(EveryOperation);
            f64::dispatch(EveryOperation);
        }
        set_level(Level::Avx512);
    }

    #[test]
    fn names_round_trip() {
        for level in [Level::Baseline, Level::Neon, Level::Avx2, Level::Avx512] {
            assert_eq!(Level::from_name(level.name()), Ok(level));
        }
        assert!(Level::from_name("sse9").unwrap_err().to_string().contains("baseline"));
    }
}
