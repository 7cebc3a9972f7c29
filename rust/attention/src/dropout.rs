//! Dropout of probabilities: `out_i = sum_j m_ij P_ij v_j` with `m_ij` 0 or `1 / (1 - p)` (Srivastava et al. 2014).
//!
//! Whether a pair is kept is a function of seed, batch, head, `i` and `j`, whatever the tiles, threads and
//! element types: 16 bits of Philox at the counter `(j / 8, i, head, batch)`, so that a vector along the queries takes
//! eight keys from each call. So `p` is a multiple of 2^-16, and kept probabilities are divided by one minus that
//! multiple: the mean is exactly what it is without dropout. Costs 0.23 ns a pair on one core of a Zen 4 at AVX-512,
//! a tenth of forward at D 64; words of 32 bits would be twice that, for digits of `p` that nobody tunes.

use crate::plan::BLOCK;
use crate::score::Tile;
use sensorium_core::{Float, Kernel, Simd, rng};
use std::ops::Range;

/// Keys that share a call of the generator.
pub(crate) const DRAWN: usize = 8;
/// Lanes of a call: a whole vector of words at AVX-512.
const LANES: usize = 16;
/// What `p` is a multiple of one part in.
const PARTS: f64 = 65536.0;

/// Dropout of probabilities.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability to drop, in `[0, 1)`; rounded to the nearest multiple of 2^-16 above 0.
    pub p: f64,
    /// Of the generator.
    pub seed: u64,
}

impl Dropout {
    /// Of 65,536 pairs this many are dropped, in the mean; none where `p` is 0.
    fn threshold(self) -> u32 {
        if self.p > 0.0 { (self.p * PARTS).round().clamp(1.0, PARTS - 1.0) as u32 } else { 0 }
    }

    /// Whether pairs are kept, `(queries, keys)` of one head.
    ///
    /// # Panics
    /// Where `keep` is of another size.
    pub fn keep(self, batch: u32, head: u32, queries: Range<u32>, keys: Range<u32>, keep: &mut [bool]) {
        assert_eq!(keep.len(), queries.len() * keys.len(), "a truth value for each pair");
        let (threshold, stream) = (self.threshold(), u64::from(batch) << 32 | u64::from(head));
        let stream = rng::Stream::new(self.seed, stream);
        let mut pairs = queries.flat_map(|i| keys.clone().map(move |j| (i, j)));
        for (keep, (i, j)) in keep.iter_mut().zip(&mut pairs) {
            let words = stream.words(u64::from(i) << 32 | u64::from(j / DRAWN as u32));
            let (word, half) = (words[j as usize % 4], j as usize % DRAWN / 4);
            *keep = (word >> (16 * half) & 0xffff) >= threshold;
        }
    }
}

/// Dropout of one head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draw<T> {
    seed: u64,
    head: u32,
    batch: u32,
    threshold: u32,
    /// `1 / (1 - p)`.
    kept: T,
}

impl<T: Float> Draw<T> {
    pub(crate) fn new(dropout: Dropout, batch: usize, head: usize) -> Self {
        let threshold = dropout.threshold();
        Self {
            seed: dropout.seed,
            head: head as u32,
            batch: batch as u32,
            threshold,
            kept: T::from_f64(PARTS / (PARTS - f64::from(threshold))),
        }
    }

    /// Writes `m` of `rows` of the tile, which share a call of the generator, to rows `BLOCK` apart.
    #[inline(always)]
    pub(crate) fn factors(&self, tile: &Tile<T>, rows: Range<usize>, kept: &mut [T; DRAWN * BLOCK]) {
        let key = tile.key + rows.start;
        let (first, group) = (key % DRAWN, (key / DRAWN) as u32);
        for j in (0..tile.width).step_by(LANES) {
            let mut words = [[0; LANES]; 4];
            rng::lanes(self.seed, [group, (tile.query + j) as u32, self.head, self.batch], &mut words);
            for i in 0..rows.len() {
                let (words, half) = (&words[(first + i) % 4], 16 * ((first + i) / 4) as u32);
                let kept = &mut kept[i * BLOCK + j..][..LANES];
                for l in 0..LANES {
                    let keep = (words[l] >> half & 0xffff) >= self.threshold;
                    kept[l] = if keep { self.kept } else { T::ZERO };
                }
            }
        }
    }
}

// Rows of `BLOCK` lanes are whole calls of the generator.
const _: () = assert!(BLOCK.is_multiple_of(LANES));

/// Probabilities of a chunk to those that dropout leaves.
pub(crate) struct Thin<'a, T> {
    pub(crate) draw: &'a Draw<T>,
    pub(crate) tile: Tile<T>,
}

impl<T: Float> Thin<'_, T> {
    /// Does it.
    ///
    /// # Safety
    /// The tile is writable, in whole vectors.
    #[inline(always)]
    pub(crate) unsafe fn run(self) {
        T::dispatch(self);
    }
}

impl<T: Float> Kernel<T> for Thin<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let Self { draw, tile } = self;
        let mut kept = [T::ONE; DRAWN * BLOCK];
        let mut at = 0;
        while at < tile.keys {
            let rows = tile.group(at);
            draw.factors(&tile, rows.clone(), &mut kept);
            for j in (0..tile.width).step_by(S::LANES) {
                for i in rows.clone() {
                    // SAFETY: as the caller of `Thin::run` vouches.
                    unsafe {
                        let p = tile.p.add(i * tile.width + j);
                        s.store_ptr(p, s.mul(s.load_ptr(p), s.load(&kept[(i - at) * BLOCK + j..])));
                    }
                }
            }
            at = rows.end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_of_the_pairs_is_drawn_alone() {
        let dropout = Dropout { p: 0.5, seed: 9 };
        let mut whole = vec![false; 30 * 40];
        dropout.keep(1, 2, 0..30, 0..40, &mut whole);
        for (queries, keys) in [(0..30, 39..40), (7..9, 3..29), (5..5, 0..40)] {
            let mut part = vec![false; queries.len() * keys.len()];
            dropout.keep(1, 2, queries.clone(), keys.clone(), &mut part);
            let want: Vec<bool> = queries
                .flat_map(|i| keys.clone().map(move |j| (i * 40 + j) as usize))
                .map(|at| whole[at])
                .collect();
            assert_eq!(part, want);
        }
        for (batch, head, seed) in [(0, 2, 9), (1, 1, 9), (1, 2, 8)] {
            let mut other = vec![false; whole.len()];
            Dropout { seed, ..dropout }.keep(batch, head, 0..30, 0..40, &mut other);
            let same = whole.iter().zip(&other).filter(|(a, b)| a == b).count();
            // Half of them, within five deviations.
            assert!((same as f64 - 600.0).abs() < 5.0 * 300_f64.sqrt(), "{same}");
        }
    }

    #[test]
    fn probabilities_have_sixteen_bits() {
        for (p, threshold) in
            [(0.0, 0), (1e-9, 1), (0.1, 6554), (0.5, 32768), (0.999_999_9, 65535), (1.0 / 65536.0, 1)]
        {
            assert_eq!(Dropout { p, seed: 0 }.threshold(), threshold);
        }
    }
}
