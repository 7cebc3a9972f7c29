//! Half-precision numbers: every one of them, and every boundary between two, at every instruction-set level.
#![allow(clippy::float_cmp)] // Conversions are exact, or the nearest.

use sensorium_core::half::{narrow, widen};
use sensorium_core::{Bf16, F16, Float, Kernel, Level, Simd, Storage, half, threads};

/// What the tests need to know of a format.
trait Half: Storage<Float = f32> {
    const SIGNIFICAND: u32;
    const BIAS: i32;
    fn of(bits: u16) -> Self;
    fn bits(self) -> u16;
}
impl Half for Bf16 {
    const SIGNIFICAND: u32 = 7;
    const BIAS: i32 = 127;
    fn of(bits: u16) -> Self {
        Self::from_bits(bits)
    }
    fn bits(self) -> u16 {
        self.to_bits()
    }
}
impl Half for F16 {
    const SIGNIFICAND: u32 = 10;
    const BIAS: i32 = 15;
    fn of(bits: u16) -> Self {
        Self::from_bits(bits)
    }
    fn bits(self) -> u16 {
        self.to_bits()
    }
}

/// The number by the definition: sign, power of two, significand in steps of its last place.
fn defined<E: Half>(bits: u16) -> f64 {
    let exponent = i32::from((bits & 0x7fff) >> E::SIGNIFICAND);
    let steps = f64::from(bits & ((1 << E::SIGNIFICAND) - 1)) * (-f64::from(E::SIGNIFICAND)).exp2();
    let size = match exponent {
        0 => steps * f64::from(1 - E::BIAS).exp2(),
        e if e == 2 * E::BIAS + 1 => {
            if steps == 0.0 {
                f64::INFINITY
            } else {
                f64::NAN
            }
        }
        e => (1.0 + steps) * f64::from(e - E::BIAS).exp2(),
    };
    if bits >> 15 == 1 { -size } else { size }
}

struct Widen<'a, E: Half>(&'a [E], &'a mut [f32]);
impl<E: Half> Kernel<f32> for Widen<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<f32>>(self, s: S) {
        assert_eq!(self.0.len(), self.1.len());
        // SAFETY: as long as each other.
        unsafe { half::widen_row(s, self.0.as_ptr(), self.1.as_mut_ptr(), self.1.len()) };
    }
}

struct Narrow<'a, E: Half>(&'a [f32], &'a mut [E]);
impl<E: Half> Kernel<f32> for Narrow<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<f32>>(self, s: S) {
        assert_eq!(self.0.len(), self.1.len());
        // SAFETY: as long as each other.
        unsafe { half::narrow_row(s, self.0.as_ptr(), self.1.as_mut_ptr(), self.1.len()) };
    }
}

fn narrowed<E: Half>(level: Level, x: &[f32]) -> Vec<E> {
    let mut out = vec![E::of(0x1234); x.len()];
    f32::dispatch_at(level, Narrow(x, &mut out));
    out
}

fn every_value_is_exact<E: Half>() {
    let all: Vec<E> = (0..=u16::MAX).map(E::of).collect();
    for level in Level::available() {
        let mut wide = vec![7.0_f32; all.len()];
        f32::dispatch_at(level, Widen(&all, &mut wide));
        let back: Vec<E> = narrowed(level, &wide);
        for (i, &x) in all.iter().enumerate() {
            let want = defined::<E>(x.bits());
            for got in [wide[i], x.widen()] {
                if want.is_nan() {
                    assert!(got.is_nan(), "{x:?} at {level:?}");
                    // Both ways keep the sign and the payload; a signalling NaN becomes quiet.
                    let quiet = x.bits() | 1 << (E::SIGNIFICAND - 1);
                    assert_eq!(back[i].bits() | 1 << (E::SIGNIFICAND - 1), quiet, "{x:?} at {level:?}");
                    assert_eq!(E::narrow(got).bits(), quiet, "{x:?} at {level:?}");
                } else {
                    assert_eq!(f64::from(got).to_bits(), want.to_bits(), "{x:?} at {level:?}");
                    assert_eq!(back[i], x, "{got} at {level:?}");
                    assert_eq!(E::narrow(got), x, "{got}");
                }
            }
        }
    }
}

#[test]
fn every_bfloat16_is_exact() {
    every_value_is_exact::<Bf16>();
}

#[test]
fn every_float16_is_exact() {
    every_value_is_exact::<F16>();
}

/// `x` and what it must round to.
fn boundaries<E: Half>() -> Vec<(f32, u16)> {
    let infinite = ((2 * E::BIAS + 1) as u16) << E::SIGNIFICAND;
    let mut cases = Vec::new();
    for low in 0..infinite {
        let a = defined::<E>(low);
        // Past the largest number lies what the next one would be, had the format more exponents.
        let b = if low + 1 == infinite { 2.0 * a - defined::<E>(low - 1) } else { defined::<E>(low + 1) };
        let middle = f64::midpoint(a, b) as f32;
        assert_eq!(f64::from(middle), f64::midpoint(a, b), "an f32 has the bit that is needed");
        let even = if low & 1 == 0 { low } else { low + 1 };
        for (x, want) in [(middle, even), (middle.next_down(), low), (middle.next_up(), low + 1)] {
            cases.extend([(x, want), (-x, want | 0x8000)]);
        }
    }
    cases
}

fn the_nearest_is_taken<E: Half>() {
    let cases = boundaries::<E>();
    let x: Vec<f32> = cases.iter().map(|case| case.0).collect();
    for level in Level::available() {
        let got: Vec<E> = narrowed(level, &x);
        for (&(x, want), got) in cases.iter().zip(got) {
            assert_eq!(got.bits(), want, "{x:e} at {level:?}");
            assert_eq!(E::narrow(x).bits(), want, "{x:e}");
        }
    }
    // Any number at all, against a search among all that there are.
    let infinite = ((2 * E::BIAS + 1) as u16) << E::SIGNIFICAND;
    let values: Vec<f64> = (0..infinite).map(defined::<E>).collect();
    let overflow = 1.5 * values[values.len() - 1] - 0.5 * values[values.len() - 2];
    let mut bits = 1_u32;
    let x: Vec<f32> = (0..200_000)
        .map(|_| {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from_bits(bits)
        })
        .collect();
    for level in Level::available() {
        let got: Vec<E> = narrowed(level, &x);
        for (&x, got) in x.iter().zip(got) {
            let size = f64::from(x.abs());
            if size.is_nan() {
                assert!(got.widen().is_nan(), "{x}");
                continue;
            }
            assert_eq!(got.bits() >> 15 == 1, x.is_sign_negative(), "{x:e}");
            let got = got.bits() & 0x7fff;
            if size >= overflow {
                assert_eq!(got, infinite, "{x:e}");
                continue;
            }
            let at = values.partition_point(|&v| v <= size);
            let near = (at - 1..(at + 1).min(values.len())).map(|i| (values[i] - size).abs());
            assert_eq!((values[usize::from(got)] - size).abs(), near.fold(f64::INFINITY, f64::min), "{x:e}");
        }
    }
}

#[test]
fn the_nearest_bfloat16_is_taken_and_ties_go_to_even() {
    the_nearest_is_taken::<Bf16>();
}

#[test]
fn the_nearest_float16_is_taken_and_ties_go_to_even() {
    the_nearest_is_taken::<F16>();
}

fn a_nan_stays_one<E: Half>() {
    // Payloads in the bits that are cut off, too: those cut alone would leave infinity.
    let x: Vec<f32> = (0..23)
        .flat_map(|bit| [0x7f80_0000 | 1 << bit, 0xff80_0000 | 1 << bit, 0x7fff_ffff, 0xffff_ffff])
        .map(f32::from_bits)
        .collect();
    for level in Level::available() {
        for (x, got) in x.iter().zip(narrowed::<E>(level, &x)) {
            assert!(got.widen().is_nan(), "{:x} at {level:?}", x.to_bits());
            assert_eq!(got.widen().is_sign_negative(), x.is_sign_negative());
            assert_eq!(got, E::narrow(*x), "{:x} at {level:?}", x.to_bits());
        }
    }
}

#[test]
fn a_nan_stays_one_with_its_sign() {
    a_nan_stays_one::<Bf16>();
    a_nan_stays_one::<F16>();
}

/// Reads and writes vectors of doubles, which are rounded once and not by way of `f32`.
struct Doubles<'a>(&'a [f64; 8], &'a mut [Bf16; 8], &'a mut [F16; 8], &'a mut [[f64; 8]; 2]);
impl Kernel<f64> for Doubles<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<f64>>(self, s: S) {
        for i in (0..8).step_by(S::LANES) {
            // SAFETY: eight is a multiple of every number of lanes.
            unsafe {
                let v = s.load(&self.0[i..]);
                s.store_bf16(self.1.as_mut_ptr().add(i), v);
                s.store_f16(self.2.as_mut_ptr().add(i), v);
                s.store(&mut self.3[0][i..], s.load_bf16(self.1.as_ptr().add(i)));
                s.store(&mut self.3[1][i..], s.load_f16(self.2.as_ptr().add(i)));
            }
        }
    }
}

#[test]
fn doubles_are_rounded_once() {
    // Above a tie by less than an `f32` can say, below it, at it, and past either end.
    let tie = |last: f64| 1.0 + last / 2.0;
    for level in Level::available() {
        for (last, which) in [(2.0_f64.powi(-7), 0), (2.0_f64.powi(-10), 1)] {
            let x = [
                tie(last) + 1e-15,
                tie(last) - 1e-15,
                tie(last),
                -tie(last) - 1e-15,
                1e300,
                -1e300,
                1e-300,
                0.0,
            ];
            let (mut b, mut h, mut back) = ([Bf16::default(); 8], [F16::default(); 8], [[0.0; 8]; 2]);
            f64::dispatch_at(level, Doubles(&x, &mut b, &mut h, &mut back));
            let up = 1.0 + last;
            assert_eq!(
                back[which],
                [up, 1.0, 1.0, -up, f64::INFINITY, f64::NEG_INFINITY, 0.0, 0.0],
                "{level:?}"
            );
        }
    }
}

#[test]
fn rows_of_every_length_and_threads() {
    for n in [0, 1, 3, 4, 15, 16, 17, 100, 50_000] {
        let bits: Vec<Bf16> = (0..n).map(|i| Bf16::from_bits((i * 7 % 0x7f80) as u16)).collect();
        let mut results = Vec::new();
        for count in [1, 3] {
            let before = threads::set_local_num_threads(count);
            let mut wide = vec![0.0_f32; n];
            widen(&bits, &mut wide);
            let mut back = vec![Bf16::default(); n];
            narrow(&wide, &mut back);
            assert_eq!(back, bits);
            results.push(wide);
            threads::set_local_num_threads(before);
        }
        assert_eq!(results[0], results[1]);
    }
    // What lies behind a row is left alone.
    for level in Level::available() {
        for n in 0..40 {
            let x = [1.5_f32; 48];
            let mut out = [F16::from_bits(0x1234); 48];
            f32::dispatch_at(level, Narrow(&x[..n], &mut out[..n]));
            assert!(out[..n].iter().all(|&y| y == F16::from_f32(1.5)));
            assert!(out[n..].iter().all(|&y| y == F16::from_bits(0x1234)), "{n} at {level:?}");
        }
    }
}

#[test]
fn plain_floats_store_themselves() {
    let x = [1.0_f64, -0.0, f64::NAN, 1e-310];
    let mut y = [0.0; 4];
    widen(&x, &mut y);
    assert!(x.iter().zip(y).all(|(a, b)| a.to_bits() == b.to_bits()));
}
