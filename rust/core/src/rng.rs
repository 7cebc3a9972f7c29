//! Random numbers by position: number `i` of a stream is a function of seed, stream and `i`, and of nothing else.
//!
//! Philox 4x32 with ten rounds (Salmon, Moraes, Dror and Shaw 2011) enciphers the counter `(i, stream)` under
//! the key `seed`. So any part of a stream can be drawn by any thread, in any order, and a stream can be
//! continued or repeated from anywhere; there is no state.
//!
//! A uniform number is a multiple of `2^-24` (`f32`) or `2^-53` (`f64`) in `[0, 1)`. Normal numbers come in pairs
//! from two uniform ones (Box and Muller 1958), the larger of `f32` at 6.7 and of `f64` at 8.6 deviations at most.

use crate::Float;
use crate::threads;

/// Multipliers of a round.
const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
/// What is added to the key between rounds: the golden ratio and `sqrt(3) - 1`.
const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
const ROUNDS: usize = 10;

/// Elements of a task.
const BLOCK: usize = 1 << 12;
/// Work of an element, in floating-point operations: uniform, normal.
const WORK: [usize; 2] = [10, 60];

/// An endless sequence of random numbers; streams of one seed have nothing to do with one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    seed: u64,
    stream: u64,
}

impl Stream {
    /// Stream number `stream` of `seed`.
    #[must_use]
    pub const fn new(seed: u64, stream: u64) -> Self {
        Self { seed, stream }
    }

    /// The four words at counter `i`.
    #[inline]
    #[must_use]
    pub fn words(&self, i: u64) -> [u32; 4] {
        philox(
            [i as u32, (i >> 32) as u32, self.stream as u32, (self.stream >> 32) as u32],
            [self.seed as u32, (self.seed >> 32) as u32],
        )
    }

    /// `out[j]` is uniform number `position + j` of the stream, in `[0, 1)`.
    pub fn uniform<T: Float>(&self, position: u64, out: &mut [T]) {
        threads::for_each_block(out, BLOCK, BLOCK * WORK[0], |task, out| {
            let start = position.wrapping_add((task * BLOCK) as u64);
            self.each(start, out, |words, lane| {
                if T::MANTISSA == 23 {
                    T::from_f64(f64::from(words[lane] >> 8) * (-24_f64).exp2())
                } else {
                    T::from_f64((wide(words, lane) >> 11) as f64 * (-53_f64).exp2())
                }
            });
        });
    }

    /// `out[j]` is normal number `position + j` of the stream, of mean 0 and variance 1.
    ///
    /// Made from the same words as the uniform numbers of that stream: use another stream beside them.
    pub fn normal<T: Float>(&self, position: u64, out: &mut [T]) {
        threads::for_each_block(out, BLOCK, BLOCK * WORK[1], |task, out| {
            let start = position.wrapping_add((task * BLOCK) as u64);
            self.each(start, out, |words, lane| {
                let first = lane & !1;
                // In (0, 1], so that the logarithm is finite.
                let unit = |lane: usize| {
                    if T::MANTISSA == 23 {
                        (f64::from(words[lane]) + 1.0) * (-32_f64).exp2()
                    } else {
                        ((wide(words, lane) >> 11) as f64 + 1.0) * (-53_f64).exp2()
                    }
                };
                let radius = (-2.0 * unit(first).ln()).sqrt();
                let (sin, cos) = (std::f64::consts::TAU * unit(first + 1)).sin_cos();
                T::from_f64(radius * if lane == first { cos } else { sin })
            });
        });
    }

    /// `out[j] = draw(words, lane)` for number `start + j`, four (`f32`) or two (`f64`) of which share a counter.
    fn each<T: Float>(&self, start: u64, out: &mut [T], draw: impl Fn(&[u32; 4], usize) -> T) {
        let lanes = if T::MANTISSA == 23 { 4 } else { 2 };
        let (mut counter, mut lane) = (start / lanes, (start % lanes) as usize);
        let mut rest = out;
        while !rest.is_empty() {
            let words = self.words(counter);
            let (now, later) = rest.split_at_mut(rest.len().min(lanes as usize - lane));
            for (x, lane) in now.iter_mut().zip(lane..) {
                *x = draw(&words, lane);
            }
            (rest, lane, counter) = (later, 0, counter.wrapping_add(1));
        }
    }
}

/// The two words of an `f64`.
fn wide(words: &[u32; 4], lane: usize) -> u64 {
    u64::from(words[2 * lane]) | u64::from(words[2 * lane + 1]) << 32
}

/// Words of counters that differ in their second word: `out[w][l]` is word `w` of the counter
/// `(c[0], c[1] + l, c[2], c[3])`, for use within a kernel.
///
/// The loop over lanes is left to the compiler, which vectorises it at every level: 16 lanes take 29 ns at AVX-512,
/// 45 at AVX2 and 75 at the baseline of a Zen 4, with the comparisons of dropout.
#[inline(always)]
pub fn lanes<const L: usize>(seed: u64, c: [u32; 4], out: &mut [[u32; L]; 4]) {
    #[allow(clippy::needless_range_loop)] // Four arrays are written at once.
    for l in 0..L {
        let words =
            philox([c[0], c[1].wrapping_add(l as u32), c[2], c[3]], [seed as u32, (seed >> 32) as u32]);
        for w in 0..4 {
            out[w][l] = words[w];
        }
    }
}

/// Ten rounds over `counter` under `key`.
#[inline(always)]
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        // No closures here: this is compiled within kernels, for their level.
        let first = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let second = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

#[cfg(test)]
#[allow(clippy::float_cmp)]
mod tests {
    use super::*;
    use crate::{Kernel, Level, Simd};

    /// The known answers that the authors publish with their library.
    #[test]
    fn known_answers() {
        let ones = u32::MAX;
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([ones; 4], [ones; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox(pi, [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
        let stream = Stream::new(0x299f_31d0_a409_3822, 0x0370_7344_1319_8a2e);
        assert_eq!(stream.words(0x85a3_08d3_243f_6a88), philox(pi, [0xa409_3822, 0x299f_31d0]));
    }

    #[test]
    fn lanes_are_counters_of_a_stream() {
        struct Lanes<'a>(u64, [u32; 4], &'a mut [[u32; 16]; 4]);
        impl Kernel<f32> for Lanes<'_> {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd<f32>>(self, _: S) {
                lanes(self.0, self.1, self.2);
            }
        }
        let seed = 0x0123_4567_89ab_cdef;
        for level in Level::available() {
            for first in [0, 5, u32::MAX - 7] {
                let mut got = [[0; 16]; 4];
                f32::dispatch_at(level, Lanes(seed, [9, first, 2, 1], &mut got));
                for l in 0..16 {
                    let i = u64::from(first.wrapping_add(l)) << 32 | 9;
                    let want = Stream::new(seed, 1 << 32 | 2).words(i);
                    assert_eq!(
                        [0, 1, 2, 3].map(|w| got[w][l as usize]),
                        want,
                        "{level:?}, lane {l} of {first}"
                    );
                }
            }
        }
    }

    fn parts_and_threads_make_one_stream<T: Float>(fill: impl Fn(&Stream, u64, &mut [T])) {
        let stream = Stream::new(7, 3);
        let mut whole = vec![T::ZERO; 20_000];
        fill(&stream, 5, &mut whole);
        for threads in [1, 2, 5] {
            let before = threads::set_local_num_threads(threads);
            for cut in [0, 1, 2, 3, 5, 4_097, 19_999, 20_000] {
                let mut parts = vec![T::ZERO; whole.len()];
                let (first, second) = parts.split_at_mut(cut);
                fill(&stream, 5, first);
                fill(&stream, 5 + cut as u64, second);
                assert!(parts == whole, "cut at {cut}, {threads} threads");
            }
            threads::set_local_num_threads(before);
        }
        let mut other = vec![T::ZERO; whole.len()];
        fill(&Stream::new(7, 4), 5, &mut other);
        assert!(other.iter().zip(&whole).filter(|(a, b)| a == b).count() < 10);
    }

    #[test]
    fn any_part_of_a_stream_on_any_number_of_threads() {
        parts_and_threads_make_one_stream::<f32>(Stream::uniform);
        parts_and_threads_make_one_stream::<f64>(Stream::uniform);
        parts_and_threads_make_one_stream::<f32>(Stream::normal);
        parts_and_threads_make_one_stream::<f64>(Stream::normal);
    }

    /// Mean, variance, skewness and excess kurtosis; and the correlation of neighbours.
    fn moments<T: Float>(x: &[T]) -> ([f64; 4], f64) {
        let n = x.len() as f64;
        let mean = x.iter().map(|x| x.to_f64()).sum::<f64>() / n;
        let about = |p: i32| x.iter().map(|x| (x.to_f64() - mean).powi(p)).sum::<f64>() / n;
        let variance = about(2);
        let neighbours =
            x.windows(2).map(|w| (w[0].to_f64() - mean) * (w[1].to_f64() - mean)).sum::<f64>() / n;
        (
            [mean, variance, about(3) / variance.powf(1.5), about(4) / variance.powi(2) - 3.0],
            neighbours / variance,
        )
    }

    /// Sample moments lie within five standard errors of the distribution's, whose errors are known.
    fn distributions<T: Float>() {
        const N: usize = 1 << 20;
        let error = 5.0 / (N as f64).sqrt();
        let mut x = vec![T::ZERO; N];
        Stream::new(1, 0).uniform(0, &mut x);
        assert!(x.iter().all(|x| (0.0..1.0).contains(&x.to_f64())));
        let ([mean, variance, _, _], neighbours) = moments(&x);
        assert!((mean - 0.5).abs() < error * (1.0_f64 / 12.0).sqrt(), "{mean}");
        assert!((variance - 1.0 / 12.0).abs() < error * (1.0_f64 / 180.0).sqrt(), "{variance}");
        assert!(neighbours.abs() < error, "{neighbours}");
        Stream::new(1, 0).normal(0, &mut x);
        let ([mean, variance, skewness, kurtosis], neighbours) = moments(&x);
        assert!(mean.abs() < error, "{mean}");
        assert!((variance - 1.0).abs() < error * 2_f64.sqrt(), "{variance}");
        assert!(skewness.abs() < error * 6_f64.sqrt(), "{skewness}");
        assert!(kurtosis.abs() < error * 24_f64.sqrt(), "{kurtosis}");
        assert!(neighbours.abs() < error, "{neighbours}");
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        distributions::<f32>();
        distributions::<f64>();
    }
}
