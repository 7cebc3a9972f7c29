//! Normal numbers by position, for use within a kernel: number `i` is a function of seed, stream and `i`, so that a
//! backward pass draws again what the forward pass drew and nothing is kept between them.
//!
//! Numbers `64 c` to `64 c + 63` are made of the 16 counters from `16 c` on, each enciphered to four words by Philox
//! (Salmon, Moraes, Dror and Shaw 2011): words 0 and 1 of counter `16 c + l` give numbers `64 c + l` and `64 c + 16 + l`,
//! words 2 and 3 give `64 c + 32 + l` and `64 c + 48 + l`, by the transformation of Box and Muller (1958). A radius is
//! made of 31 bits, so that no number is beyond 6.65 deviations; an angle of 32. `f32` and `f64` are made of the same
//! words: the former are what the latter are to a few units of `f32`, but for radii below 1e-3.

use sensorium_core::math::log;
use sensorium_core::{Float, Kernel, Simd, rng};

/// Counters that are enciphered together.
const LANES: usize = 16;
/// Numbers of these.
pub const BLOCK: usize = 4 * LANES;

/// `C`, lowest first, with `cos(2 pi y) = C(y^2)` for `|y| <= 1/4`, by Remez's exchange; error 2^-32.1 (of the first
/// kind, for `f32`) and 2^-67.
const COS: (&[f64], &[f64]) = (
    &[
        0.999_999_999_780_654_2,
        -19.739_208_548_914_827,
        64.939_346_629_592_7,
        -85.453_571_629_491_18,
        60.144_115_113_997_02,
        -24.982_237_803_803_93,
    ],
    &[
        1.0,
        -19.739_208_802_178_717,
        64.939_394_022_668_28,
        -85.456_817_206_691_52,
        60.244_641_371_646_98,
        -26.426_256_769_642_977,
        7.903_535_871_423_792,
        -1.714_379_442_199_288_7,
        0.281_852_302_568_662_2,
        -0.035_219_758_172_812_365,
    ],
);
/// `S`, lowest first, with `sin(2 pi y) = y S(y^2)`; error 2^-35.1 and 2^-70.
const SIN: (&[f64], &[f64]) = (
    &[
        6.283_185_307_072_895,
        -41.341_702_117_248_6,
        81.605_226_238_583_4,
        -76.704_282_766_921_46,
        42.009_832_149_467_79,
        -14.394_304_434_886_309,
    ],
    &[
        std::f64::consts::TAU,
        -41.341_702_240_399_76,
        81.605_249_276_075_05,
        -76.705_859_753_060_72,
        42.058_693_944_828_77,
        -15.094_642_572_705_2,
        3.819_952_434_954_373_7,
        -0.718_118_923_276_605_4,
        0.104_183_102_693_151,
        -0.011_683_124_914_473_93,
    ],
);

/// `c[0] + c[1] x + ...`, by Horner's rule.
#[inline(always)]
fn polynomial<T: Float, S: Simd<T>>(s: S, x: S::V, c: (&[f64], &[f64])) -> S::V {
    let c = if T::MANTISSA == 23 { c.0 } else { c.1 };
    let mut sum = s.splat(T::from_f64(c[c.len() - 1]));
    for i in (0..c.len() - 1).rev() {
        sum = s.mul_add(sum, x, s.splat(T::from_f64(c[i])));
    }
    sum
}

/// Numbers `64 c` to `64 c + 63`.
#[inline(always)]
fn block<T: Float, S: Simd<T>>(s: S, seed: u64, stream: u64, c: u64, out: &mut [T]) {
    let first = c.wrapping_mul(LANES as u64);
    let counter = [(first >> 32) as u32, first as u32, stream as u32, (stream >> 32) as u32];
    let mut words = [[0_u32; LANES]; 4];
    rng::lanes(seed, counter, &mut words);
    let (half, fourth) = (s.splat(T::from_f64(0.5)), s.splat(T::from_f64(0.25)));
    let (radius_unit, turn) =
        (s.splat(T::from_f64((-31_f64).exp2())), s.splat(T::from_f64((-32_f64).exp2())));
    for pair in 0..2 {
        let (mut radii, mut turns) = ([T::ZERO; LANES], [T::ZERO; LANES]);
        for l in 0..LANES {
            radii[l] = T::from_f64(f64::from((words[2 * pair][l] >> 1).cast_signed()));
            turns[l] = T::from_f64(f64::from(words[2 * pair + 1][l].cast_signed()));
        }
        let mut l = 0;
        while l < LANES {
            // In (0, 1], so that the logarithm is finite.
            let unit = s.mul(s.add(s.load(&radii[l..]), half), radius_unit);
            let radius = s.sqrt(s.mul(s.splat(T::from_f64(-2.0)), log(s, unit)));
            // From -1/2 to 1/2 of a turn: the sine has the sign, and y is what is missing from a quarter.
            let turn = s.mul(s.load(&turns[l..]), turn);
            let y = s.sub(fourth, s.abs(turn));
            let square = s.mul(y, y);
            let cos = s.mul(y, polynomial(s, square, SIN));
            let sin = s.copysign(polynomial(s, square, COS), turn);
            s.store(&mut out[2 * pair * LANES + l..], s.mul(radius, cos));
            s.store(&mut out[(2 * pair + 1) * LANES + l..], s.mul(radius, sin));
            l += S::LANES;
        }
    }
}

/// `out[j]` is normal number `position + j` of the stream, of mean 0 and variance 1. For use within a kernel.
#[inline(always)]
pub fn fill<T: Float, S: Simd<T>>(s: S, seed: u64, stream: u64, position: u64, out: &mut [T]) {
    let (mut c, mut skip) = (position / BLOCK as u64, (position % BLOCK as u64) as usize);
    let mut at = 0;
    while at < out.len() {
        let n = (BLOCK - skip).min(out.len() - at);
        if n == BLOCK {
            block(s, seed, stream, c, &mut out[at..at + BLOCK]);
        } else {
            let mut whole = [T::ZERO; BLOCK];
            block(s, seed, stream, c, &mut whole);
            out[at..at + n].copy_from_slice(&whole[skip..skip + n]);
        }
        (c, skip, at) = (c.wrapping_add(1), 0, at + n);
    }
}

struct Fill<'a, T> {
    seed: u64,
    stream: u64,
    position: u64,
    out: &'a mut [T],
}

impl<T: Float> Kernel<T> for Fill<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        fill(s, self.seed, self.stream, self.position, self.out);
    }
}

/// Elements of a task.
const TASK: usize = 1 << 12;
/// Work of an element, in the units of [`for_each_block`](sensorium_core::threads::for_each_block).
const WORK: usize = 16;

/// Normal numbers over threads.
pub trait Noise: Float {
    /// `out[j]` is normal number `position + j` of the stream.
    fn normal(seed: u64, stream: u64, position: u64, out: &mut [Self]);
}

macro_rules! noise {
    ($t:ident) => {
        impl Noise for $t {
            fn normal(seed: u64, stream: u64, position: u64, out: &mut [Self]) {
                sensorium_core::threads::for_each_block(out, TASK, TASK * WORK, |task, out| {
                    let position = position.wrapping_add((task * TASK) as u64);
                    Self::dispatch(Fill { seed, stream, position, out });
                });
            }
        }
    };
}
noise!(f32);
noise!(f64);

#[cfg(test)]
mod tests {
    use super::*;
    use sensorium_core::Level;

    /// As the module says it, number by number, with the platform's functions.
    fn want(seed: u64, stream: u64, i: u64) -> f64 {
        let (c, group, l) = (i / 64, i % 64 / 16, i % 16);
        let counter = 16 * c + l;
        // The stream's counter has its halves the other way round.
        let words = rng::Stream::new(seed, stream).words(counter.rotate_right(32));
        let pair = 2 * (group as usize / 2);
        let unit = (f64::from(words[pair] >> 1) + 0.5) * (-31_f64).exp2();
        let angle = f64::from(words[pair + 1].cast_signed()) * (-32_f64).exp2() * std::f64::consts::TAU;
        let radius = (-2.0 * unit.ln()).sqrt();
        radius * if group % 2 == 0 { angle.cos() } else { angle.sin() }
    }

    fn agrees<T: Noise>(tolerance: f64) {
        let (seed, stream) = (0x1234_5678_9abc_def0, 0x0f0f_1234_5678_9abc);
        for level in Level::available() {
            for position in [0, 1, 63, 64, 70, (1 << 36) - 100] {
                for len in [0, 1, 63, 64, 65, 300] {
                    let mut out = vec![T::ZERO; len];
                    T::dispatch_at(level, Fill { seed, stream, position, out: &mut out });
                    for (j, x) in out.iter().enumerate() {
                        let want = want(seed, stream, position + j as u64);
                        let error = (x.to_f64() - want).abs();
                        assert!(
                            error <= tolerance * (1.0 + want.abs()),
                            "{level:?} {position}+{j}: {x} {want}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn numbers_are_those_of_their_positions() {
        agrees::<f32>(1e-5);
        agrees::<f64>(1e-14);
    }

    /// Sample moments lie within five standard errors of the distribution's, whose errors are known.
    #[test]
    fn moments_are_those_of_the_distribution() {
        const N: usize = 1 << 20;
        let mut x = vec![0.0_f32; N];
        f32::normal(3, 0, 0, &mut x);
        let (n, error) = (N as f64, 5.0 / (N as f64).sqrt());
        let moment = |p: i32| x.iter().map(|x| f64::from(*x).powi(p)).sum::<f64>() / n;
        assert!(moment(1).abs() < error);
        assert!((moment(2) - 1.0).abs() < error * 2_f64.sqrt());
        assert!(moment(3).abs() < error * 15_f64.sqrt());
        assert!((moment(4) - 3.0).abs() < error * 96_f64.sqrt());
        for lag in [1, 16, 32, 48, 64] {
            let product = x.windows(lag + 1).map(|w| f64::from(w[0]) * f64::from(w[lag])).sum::<f64>() / n;
            assert!(product.abs() < error, "lag {lag}: {product}");
        }
    }
}
