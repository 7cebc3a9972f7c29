//! Half-precision storage: `bfloat16` and IEEE `float16` in memory, `f32` in arithmetic.
//!
//! To `f32` every value is exact, subnormals and signed zeros included. From `f32` the nearest value is taken, ties to
//! even, in one rounding; what is beyond the largest number by half a step or more becomes infinite. A NaN stays a
//! NaN, with its sign and the bits of its payload that fit, and is quiet.
//!
//! | level | `bfloat16` | `float16` |
//! |---|---|---|
//! | `baseline`, `neon` | integers, left to the compiler | the same |
//! | `avx2` | integers in vectors | F16C |
//! | `avx512` | integers in vectors | AVX-512 F |
//!
//! The instructions of AVX-512 BF16 are not used: they take subnormal numbers for zero. Conversions from and to `f32`
//! do not depend on whether the process flushes subnormal numbers to zero, as other libraries may have set it to.

use crate::{Float, Kernel, Simd, threads};
use std::fmt::Debug;

/// A number of eight exponent bits and seven of significand: the upper half of an `f32`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(u16);

/// A number of five exponent bits and ten of significand: IEEE binary16.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct F16(u16);

/// Bits of `f32` infinity.
const INFINITE: u32 = 0x7f80_0000;
/// Exponent bias of `f32` less that of `F16`, in place.
const REBIAS: u32 = (127 - 15) << 23;
/// Smallest normal `F16` as `f32`.
const F16_NORMAL: u32 = (127 - 14) << 23;
/// `F16`'s largest number and half a step, as `f32`: from here on the nearest is infinity.
const F16_OVERFLOW: u32 = 0x477f_f000;

impl Bf16 {
    /// The number with those bits.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }
    /// Its bits.
    #[must_use]
    pub const fn to_bits(self) -> u16 {
        self.0
    }
    /// The same number.
    #[inline(always)]
    #[must_use]
    pub const fn to_f32(self) -> f32 {
        f32::from_bits((self.0 as u32) << 16)
    }
    /// The nearest number.
    #[inline(always)]
    #[must_use]
    pub const fn from_f32(x: f32) -> Self {
        let bits = x.to_bits();
        let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let nan = (bits >> 16) | 0x40;
        Self(if bits & !(1 << 31) > INFINITE { nan } else { nearest } as u16)
    }
}

impl F16 {
    /// The number with those bits.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }
    /// Its bits.
    #[must_use]
    pub const fn to_bits(self) -> u16 {
        self.0
    }
    /// The same number.
    #[inline(always)]
    #[must_use]
    pub const fn to_f32(self) -> f32 {
        let (sign, low) = ((self.0 as u32 & 0x8000) << 16, (self.0 as u32 & 0x7fff) << 13);
        let exponent = low & (0x7c00 << 13);
        // Infinity and NaN move on to the exponent of theirs.
        let normal = if exponent == 0x7c00 << 13 { low + 2 * REBIAS } else { low + REBIAS };
        // The significand of a subnormal number counts steps below the smallest normal one.
        let subnormal = (f32::from_bits(low + F16_NORMAL) - f32::from_bits(F16_NORMAL)).to_bits();
        f32::from_bits(sign | if exponent == 0 { subnormal } else { normal })
    }
    /// The nearest number.
    #[inline(always)]
    #[must_use]
    pub const fn from_f32(x: f32) -> Self {
        let bits = x.to_bits();
        let (sign, size) = ((bits >> 16) & 0x8000, bits & !(1 << 31));
        let normal = size.wrapping_sub(REBIAS).wrapping_add(0xfff + ((size >> 13) & 1)) >> 13;
        // Numbers from 1/2 to 1 are as far apart as subnormal `F16` are: the sum rounds as it should.
        let subnormal = (f32::from_bits(size) + 0.5).to_bits().wrapping_sub(0.5_f32.to_bits());
        let finite = if size < F16_NORMAL { subnormal } else { normal };
        let infinite = if size > INFINITE { 0x7e00 | ((size >> 13) & 0x3ff) } else { 0x7c00 };
        Self((sign | if size < F16_OVERFLOW { finite } else { infinite }) as u16)
    }
}

/// The `f32` on whose rounding to fewer than 23 bits it makes no difference that `x` was rounded before: where
/// `x` lies between two, the one with an odd significand (Boldo and Melquiond 2008).
fn to_odd(x: f64) -> f32 {
    let near = x as f32;
    let exact = f64::from(near).to_bits() == x.to_bits();
    if exact || !near.is_finite() || near.to_bits() & 1 == 1 {
        return near;
    }
    let away = f64::from(near).abs() < x.abs();
    f32::from_bits(if away { near.to_bits() + 1 } else { near.to_bits() - 1 })
}

/// An element as it lies in memory, which a kernel reads and writes as a [`Float`].
pub trait Storage: Copy + Send + Sync + Debug + Default + PartialEq + 'static {
    /// What arithmetic is done in.
    type Float: Float;
    /// Whether that is what is stored.
    const IS_FLOAT: bool;

    /// The same number.
    fn widen(self) -> Self::Float;
    /// The nearest number.
    fn narrow(x: Self::Float) -> Self;

    /// `S::LANES` elements from `src`, which need only be aligned as one element is.
    ///
    /// # Safety
    /// `src` is readable for `S::LANES` elements.
    unsafe fn load_ptr<S: Simd<Self::Float>>(s: S, src: *const Self) -> S::V;
    /// Writes `S::LANES` elements at `dst`, which need only be aligned as one element is.
    ///
    /// # Safety
    /// `dst` is writable for `S::LANES` elements.
    unsafe fn store_ptr<S: Simd<Self::Float>>(s: S, dst: *mut Self, v: S::V);

    /// `n` elements from `src`, at most `S::LANES`, and zeros after them.
    ///
    /// # Safety
    /// `src` is readable for `n` elements.
    #[inline(always)]
    unsafe fn load_head_ptr<S: Simd<Self::Float>>(s: S, src: *const Self, n: usize) -> S::V {
        let mut buffer = [Self::default(); MOST_LANES];
        for (i, x) in buffer.iter_mut().enumerate().take(n.min(S::LANES)) {
            // SAFETY: as the caller vouches.
            *x = unsafe { *src.add(i) };
        }
        // SAFETY: the buffer has a whole vector.
        unsafe { Self::load_ptr(s, buffer.as_ptr()) }
    }
    /// Writes the first `n` elements, at most `S::LANES`, at `dst`.
    ///
    /// # Safety
    /// `dst` is writable for `n` elements.
    #[inline(always)]
    unsafe fn store_head_ptr<S: Simd<Self::Float>>(s: S, dst: *mut Self, n: usize, v: S::V) {
        let mut buffer = [Self::default(); MOST_LANES];
        // SAFETY: the buffer has a whole vector, and the caller vouches for `dst`.
        unsafe {
            Self::store_ptr(s, buffer.as_mut_ptr(), v);
            for (i, &x) in buffer.iter().enumerate().take(n.min(S::LANES)) {
                *dst.add(i) = x;
            }
        }
    }
}

/// Lanes of the widest vector.
const MOST_LANES: usize = 16;

/// A vector of any float from half-precision numbers, one by one.
///
/// # Safety
/// `src` is readable for `S::LANES` elements.
#[inline(always)]
pub(crate) unsafe fn load_lanes<T: Float, S: Simd<T>, E: Storage<Float = f32>>(s: S, src: *const E) -> S::V {
    let mut wide = [T::ZERO; MOST_LANES];
    for (i, x) in wide.iter_mut().enumerate().take(S::LANES) {
        // SAFETY: as the caller vouches.
        *x = T::from_f64(f64::from(unsafe { *src.add(i) }.widen()));
    }
    s.load(&wide)
}

/// Half-precision numbers from a vector of any float, one by one and rounded once.
///
/// # Safety
/// `dst` is writable for `S::LANES` elements.
#[inline(always)]
pub(crate) unsafe fn store_lanes<T: Float, S: Simd<T>, E: Storage<Float = f32>>(s: S, dst: *mut E, v: S::V) {
    let mut wide = [T::ZERO; MOST_LANES];
    s.store(&mut wide, v);
    for (i, x) in wide.iter().enumerate().take(S::LANES) {
        // SAFETY: as the caller vouches.
        unsafe { *dst.add(i) = E::narrow(to_odd(x.to_f64())) };
    }
}

macro_rules! plain {
    ($t:ident) => {
        impl Storage for $t {
            type Float = $t;
            const IS_FLOAT: bool = true;
            #[inline(always)]
            fn widen(self) -> $t {
                self
            }
            #[inline(always)]
            fn narrow(x: $t) -> $t {
                x
            }
            #[inline(always)]
            unsafe fn load_ptr<S: Simd<$t>>(s: S, src: *const $t) -> S::V {
                // SAFETY: as the caller vouches.
                unsafe { s.load_ptr(src) }
            }
            #[inline(always)]
            unsafe fn store_ptr<S: Simd<$t>>(s: S, dst: *mut $t, v: S::V) {
                // SAFETY: as the caller vouches.
                unsafe { s.store_ptr(dst, v) }
            }
            #[inline(always)]
            unsafe fn load_head_ptr<S: Simd<$t>>(s: S, src: *const $t, n: usize) -> S::V {
                // SAFETY: as the caller vouches.
                s.load_head(unsafe { std::slice::from_raw_parts(src, n) }, 0.0)
            }
            #[inline(always)]
            unsafe fn store_head_ptr<S: Simd<$t>>(s: S, dst: *mut $t, n: usize, v: S::V) {
                // SAFETY: as the caller vouches.
                s.store_head(unsafe { std::slice::from_raw_parts_mut(dst, n) }, v);
            }
        }
    };
}
plain!(f32);
plain!(f64);

macro_rules! half {
    ($t:ident, $load:ident, $store:ident) => {
        impl Storage for $t {
            type Float = f32;
            const IS_FLOAT: bool = false;
            #[inline(always)]
            fn widen(self) -> f32 {
                self.to_f32()
            }
            #[inline(always)]
            fn narrow(x: f32) -> Self {
                Self::from_f32(x)
            }
            #[inline(always)]
            unsafe fn load_ptr<S: Simd<f32>>(s: S, src: *const Self) -> S::V {
                // SAFETY: as the caller vouches.
                unsafe { s.$load(src) }
            }
            #[inline(always)]
            unsafe fn store_ptr<S: Simd<f32>>(s: S, dst: *mut Self, v: S::V) {
                // SAFETY: as the caller vouches.
                unsafe { s.$store(dst, v) }
            }
        }
    };
}
half!(Bf16, load_bf16, store_bf16);
half!(F16, load_f16, store_f16);

/// `to[i] = from[i]` for `n` numbers.
///
/// # Safety
/// `from` is readable and `to` writable for `n` elements.
#[inline(always)]
pub unsafe fn widen_row<E: Storage, S: Simd<E::Float>>(s: S, from: *const E, to: *mut E::Float, n: usize) {
    let whole = n - n % S::LANES;
    // SAFETY: as the caller vouches.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            s.store_ptr(to.add(i), E::load_ptr(s, from.add(i)));
        }
        if whole < n {
            let tail = std::slice::from_raw_parts_mut(to.add(whole), n - whole);
            s.store_head(tail, E::load_head_ptr(s, from.add(whole), n - whole));
        }
    }
}

/// `to[i] = from[i]`, rounded, for `n` numbers.
///
/// # Safety
/// `from` is readable and `to` writable for `n` elements.
#[inline(always)]
pub unsafe fn narrow_row<E: Storage, S: Simd<E::Float>>(s: S, from: *const E::Float, to: *mut E, n: usize) {
    let whole = n - n % S::LANES;
    // SAFETY: as the caller vouches.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            E::store_ptr(s, to.add(i), s.load_ptr(from.add(i)));
        }
        if whole < n {
            let tail = std::slice::from_raw_parts(from.add(whole), n - whole);
            E::store_head_ptr(s, to.add(whole), n - whole, s.load_head(tail, E::Float::ZERO));
        }
    }
}

/// Elements to a task of [`widen`] and [`narrow`].
const BLOCK: usize = 1 << 14;
/// Work of an element, in the units of [`threads::for_each`]: a conversion is bound by memory.
const ELEMENT_WORK: usize = 8;

/// `to[i] = from[i]`.
///
/// # Panics
/// Where the lengths differ.
pub fn widen<E: Storage>(from: &[E], to: &mut [E::Float]) {
    struct Widen<'a, E: Storage>(&'a [E], &'a mut [E::Float]);
    impl<E: Storage> Kernel<E::Float> for Widen<'_, E> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd<E::Float>>(self, s: S) {
            // SAFETY: the slices are of one length.
            unsafe { widen_row(s, self.0.as_ptr(), self.1.as_mut_ptr(), self.1.len()) };
        }
    }
    assert_eq!(from.len(), to.len(), "slices of one length");
    threads::for_each_block(to, BLOCK, BLOCK * ELEMENT_WORK, |i, to| {
        E::Float::dispatch(Widen(&from[i * BLOCK..][..to.len()], to));
    });
}

/// `to[i] = from[i]`, rounded to the nearest.
///
/// # Panics
/// Where the lengths differ.
pub fn narrow<E: Storage>(from: &[E::Float], to: &mut [E]) {
    struct Narrow<'a, E: Storage>(&'a [E::Float], &'a mut [E]);
    impl<E: Storage> Kernel<E::Float> for Narrow<'_, E> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd<E::Float>>(self, s: S) {
            // SAFETY: the slices are of one length.
            unsafe { narrow_row(s, self.0.as_ptr(), self.1.as_mut_ptr(), self.1.len()) };
        }
    }
    assert_eq!(from.len(), to.len(), "slices of one length");
    threads::for_each_block(to, BLOCK, BLOCK * ELEMENT_WORK, |i, to| {
        E::Float::dispatch(Narrow(&from[i * BLOCK..][..to.len()], to));
    });
}
