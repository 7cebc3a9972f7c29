//! How a product of a query and a key becomes a score, and what is done to its probability.
//!
//! `score_ij = c tanh(scale q_i.k_j / c) - slope_h |i - j|`: soft-capping at `c` (Bello et al. 2017; Gemma Team 2024) and
//! linear biases (Press, Smith and Lewis 2022); and `out_i = sum_j m_ij P_ij v_j` with the factors of `dropout.rs`. `i` and
//! `j` are positions in the row that the layout describes.
//!
//! What is asked for is applied to a chunk of the tile at a time, in passes of their own between the products: without
//! options the kernels run no other instruction than a branch a chunk. Backward, `dP = m (V dO^T)` and
//! `dS = P (dP - delta) (1 - tanh^2)`; slopes have no gradient.
//!
//! Edges: a product of +-inf is soft-capped like any large one, NaN stays NaN; a NaN or infinite value that a query sees
//! spoils its row even where the pair is dropped.

use crate::dropout::{DRAWN, Draw, Dropout};
use crate::plan::{BLOCK, Plan};
use crate::visit::Chunk;
use sensorium_core::math::{exp2_nonpositive, tanh_derivative};
use sensorium_core::{Error, Float, Kernel, Result, Simd};
use std::ops::Range;

/// How scores are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scoring<'a> {
    /// Factor of the products.
    pub scale: f64,
    /// `c` of `c tanh(x / c)`, above 0.
    pub softcap: Option<f64>,
    /// For each query head, what a pair's score loses for each token that it is apart.
    pub slopes: Option<&'a [f64]>,
    /// Dropout of probabilities.
    pub dropout: Option<Dropout>,
}

impl Scoring<'_> {
    /// Scores `scale q.k`, and nothing else.
    #[must_use]
    pub const fn new(scale: f64) -> Self {
        Self { scale, softcap: None, slopes: None, dropout: None }
    }

    pub(crate) fn check(self, heads: usize) -> Result<()> {
        if !self.scale.is_finite() {
            return Err(Error::Value { arg: "scale", what: format!("must be finite, not {}", self.scale) });
        }
        if let Some(c) = self.softcap
            && !(c > 0.0 && c.is_finite())
        {
            return Err(Error::Value {
                arg: "softcap",
                what: format!("must be finite and above 0, not {c}"),
            });
        }
        if let Some(slopes) = self.slopes {
            if slopes.len() != heads {
                return Err(Error::Dim { arg: "alibi", dim: "H", want: heads, got: slopes.len() });
            }
            if let Some(bad) = slopes.iter().find(|s| !s.is_finite()) {
                return Err(Error::Value { arg: "alibi", what: format!("must be finite, not {bad}") });
            }
        }
        match self.dropout {
            Some(Dropout { p, .. }) if !(0.0..1.0).contains(&p) => {
                Err(Error::Value { arg: "dropout", what: format!("must be in [0, 1), not {p}") })
            }
            _ => Ok(()),
        }
    }
}

/// How the scores of one head are made, in the precision of the tile.
///
/// The tile holds numbers `x` of which `2^(factor x)` is `e^score`: products, or what [`Shape`] makes of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Score<T> {
    /// Of the scale: -1, 0 or 1, and enters with the queries.
    pub(crate) sign: T,
    /// What `x` is multiplied by to be an exponent of two.
    pub(crate) factor: T,
    /// What takes the rounded exponents of two back to the scores.
    pub(crate) back: T,
    /// The scale itself: of the gradient by a product.
    pub(crate) scale: T,
    /// Scale over cap, without its sign.
    pub(crate) cap: Option<T>,
    pub(crate) bias: Option<Bias<T>>,
    pub(crate) dropout: Option<Draw<T>>,
}

/// `x` becomes `factor x - slope |i - j|`, an exponent of two.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bias<T> {
    pub(crate) factor: T,
    pub(crate) slope: T,
}

impl<T: Float> Score<T> {
    pub(crate) fn new(scoring: Scoring<'_>, batch: usize, head: usize) -> Self {
        let unit = scoring.softcap.unwrap_or(scoring.scale.abs());
        let rounded = T::from_f64(unit * std::f64::consts::LOG2_E);
        let sign = if scoring.scale == 0.0 { T::ZERO } else { T::from_f64(scoring.scale.signum()) };
        // Without a scale all products are 0, and the unit does not matter.
        let (sign, factor, back) = if rounded.to_f64() == 0.0 {
            (T::ZERO, T::ONE, std::f64::consts::LN_2)
        } else {
            (sign, rounded, unit / rounded.to_f64())
        };
        let bias = scoring.slopes.map(|slopes| Bias { factor, slope: T::from_f64(slopes[head] / back) });
        let dropout = scoring.dropout.filter(|d| d.p > 0.0).map(|d| Draw::new(d, batch, head));
        Self {
            sign,
            factor: if bias.is_some() { T::ONE } else { factor },
            back: T::from_f64(back),
            scale: T::from_f64(scoring.scale),
            cap: scoring.softcap.map(|c| T::from_f64((scoring.scale.abs() / c).min(f32::MAX.into()))),
            bias,
            dropout,
        }
    }

    /// Whether the kernels have to do anything beside scaling.
    #[inline(always)]
    pub(crate) fn is_plain(&self) -> bool {
        self.cap.is_none() && self.bias.is_none() && self.dropout.is_none()
    }

    /// Whether [`Shape`] does anything.
    #[inline(always)]
    pub(crate) fn shapes(&self) -> bool {
        self.cap.is_some() || self.bias.is_some()
    }
}

/// A chunk of the tile: `keys` rows of `width` lanes, and where in the row of tokens it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tile<T> {
    pub(crate) p: *mut T,
    pub(crate) keys: usize,
    pub(crate) width: usize,
    /// Position of the query of lane 0.
    pub(crate) query: usize,
    /// Position of the first key.
    pub(crate) key: usize,
}

/// Products to what the softmax takes.
pub(crate) struct Shape<'a, T> {
    pub(crate) score: &'a Score<T>,
    pub(crate) tile: Tile<T>,
}

impl<T: Float> Shape<'_, T> {
    /// Does it.
    ///
    /// # Safety
    /// The tile is writable, in whole vectors.
    #[inline(always)]
    pub(crate) unsafe fn run(self) {
        T::dispatch(self);
    }
}

impl<T: Float> Kernel<T> for Shape<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let all = 0..self.tile.keys;
        // SAFETY: as the caller of `Shape::run` vouches.
        unsafe {
            if let Some(cap) = self.score.cap {
                self.tile.cap(s, cap, all.clone(), None);
            }
            if let Some(bias) = self.score.bias {
                self.tile.bias(s, bias, all);
            }
        }
    }
}

/// Backward: products to `m P` and `scale dP` to `scale dS`, where anything but scaling is asked for.
pub(crate) struct Gradient<'a, T> {
    pub(crate) score: &'a Score<T>,
    pub(crate) tile: Tile<T>,
    /// As the tile.
    pub(crate) ds: *mut T,
    /// `-lse` as an exponent of two.
    pub(crate) shift: &'a [T; BLOCK],
    /// `scale dO . O`.
    pub(crate) delta: &'a [T; BLOCK],
}

impl<T: Float> Gradient<'_, T> {
    /// Does it.
    ///
    /// # Safety
    /// The tile and `ds` are writable, in whole vectors.
    #[inline(always)]
    pub(crate) unsafe fn run(self) {
        T::dispatch(self);
    }
}

impl<T: Float> Kernel<T> for Gradient<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let Self { score, tile, ds, .. } = self;
        let factor = s.splat(score.factor);
        let mut kept = [T::ONE; DRAWN * BLOCK];
        let mut steep = [T::ONE; DRAWN * BLOCK];
        let mut at = 0;
        while at < tile.keys {
            let rows = tile.group(at);
            // SAFETY: as the caller of `Gradient::run` vouches.
            unsafe {
                if let Some(cap) = score.cap {
                    tile.cap(s, cap, rows.clone(), Some(&mut steep));
                }
                if let Some(bias) = score.bias {
                    tile.bias(s, bias, rows.clone());
                }
                if let Some(draw) = score.dropout {
                    draw.factors(&tile, rows.clone(), &mut kept);
                }
                for j in (0..tile.width).step_by(S::LANES) {
                    let (shift, delta) = (s.load(&self.shift[j..]), s.load(&self.delta[j..]));
                    for i in rows.clone() {
                        let from = (i - at) * BLOCK + j;
                        let (kept, steep) = (s.load(&kept[from..]), s.load(&steep[from..]));
                        let (x, ds) = (tile.p.add(i * tile.width + j), ds.add(i * tile.width + j));
                        let exponent = s.mul_add(s.load_ptr(x), factor, shift);
                        let p = exp2_nonpositive(s, s.min(s.splat(T::ZERO), exponent));
                        let dp = s.sub(s.mul(s.load_ptr(ds), kept), delta);
                        s.store_ptr(ds, s.mul(s.mul(p, dp), steep));
                        s.store_ptr(x, s.mul(p, kept));
                    }
                }
            }
            at = rows.end;
        }
    }
}

impl<T: Float> Tile<T> {
    /// The chunk of a block of queries that starts with `query`, at `p`.
    #[inline(always)]
    pub(crate) fn new(plan: &Plan, query: usize, chunk: &Chunk<T>, p: *mut T, width: usize) -> Self {
        let [query, key] = plan.positions(query, chunk.start);
        Self { p, keys: chunk.keys, width, query, key }
    }

    /// Rows from `at` to the next key whose position is a multiple of `DRAWN`.
    #[inline(always)]
    pub(crate) fn group(&self, at: usize) -> Range<usize> {
        at..self.keys.min(at + DRAWN - (self.key + at) % DRAWN)
    }

    /// `x` to `tanh(cap x)`, and to `steep`, whose row 0 is that of `rows`, the derivative of the hyperbolic tangent.
    #[inline(always)]
    unsafe fn cap<S: Simd<T>>(
        &self,
        s: S,
        cap: T,
        rows: Range<usize>,
        steep: Option<&mut [T; DRAWN * BLOCK]>,
    ) {
        let cap = s.splat(cap);
        let steep = steep.map_or(std::ptr::null_mut(), |steep| steep.as_mut_ptr());
        for j in (0..self.width).step_by(S::LANES) {
            for i in rows.clone() {
                // SAFETY: as the caller vouches.
                unsafe {
                    let x = self.p.add(i * self.width + j);
                    let (t, derivative) = tanh_derivative(s, s.mul(cap, s.load_ptr(x)));
                    s.store_ptr(x, t);
                    if !steep.is_null() {
                        s.store_ptr(steep.add((i - rows.start) * BLOCK + j), derivative);
                    }
                }
            }
        }
    }

    /// `x` to `factor x - slope |i - j|`.
    #[inline(always)]
    unsafe fn bias<S: Simd<T>>(&self, s: S, bias: Bias<T>, rows: Range<usize>) {
        let (factor, slope) = (s.splat(bias.factor), s.splat(bias.slope));
        let mut apart = [T::ZERO; BLOCK];
        for (lane, apart) in apart.iter_mut().enumerate() {
            *apart = T::from_f64((self.query + lane) as f64 - (self.key + rows.start) as f64);
        }
        for j in (0..self.width).step_by(S::LANES) {
            let first = s.load(&apart[j..]);
            let (mut key, one) = (s.splat(T::ZERO), s.splat(T::ONE));
            for i in rows.clone() {
                // SAFETY: as the caller vouches.
                unsafe {
                    let x = self.p.add(i * self.width + j);
                    let apart = s.abs(s.sub(first, key));
                    s.store_ptr(x, s.neg_mul_add(slope, apart, s.mul(factor, s.load_ptr(x))));
                }
                key = s.add(key, one);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dropout::Thin;
    use sensorium_core::Level;

    struct All<'a, T>(&'a Score<T>, Tile<T>);

    impl<T: Float> Kernel<T> for All<'_, T> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd<T>>(self, s: S) {
            let Self(score, tile) = self;
            Kernel::run(Shape { score, tile }, s);
            if let Some(draw) = &score.dropout {
                Kernel::run(Thin { draw, tile }, s);
            }
        }
    }

    /// Tiles anywhere in the row, at every level, hold what the formula and [`Dropout::keep`] say of each pair.
    fn tiles_say_what_pairs_say<T: Float>(tolerance: f64) {
        let dropout = Dropout { p: 0.3, seed: 0xfeed_0000_beef };
        let slopes = [0.25, 0.01];
        let scoring =
            Scoring { scale: -0.5, softcap: Some(3.0), slopes: Some(&slopes), dropout: Some(dropout) };
        let score = Score::<T>::new(scoring, 3, 1);
        assert!(!score.is_plain() && score.shapes() && score.dropout.is_some());
        for (query, key, keys) in [(0, 0, 64), (1000, 5, 13), (7, 1 << 20, 9), (1 << 25, 3, 1)] {
            let mut keep = vec![false; BLOCK * keys];
            let (query32, key32) = (query as u32, key as u32);
            dropout.keep(3, 1, query32..query32 + BLOCK as u32, key32..key32 + keys as u32, &mut keep);
            for (level, lanes) in Level::available().into_iter().flat_map(|l| [(l, 16), (l, BLOCK)]) {
                let products: Vec<T> =
                    (0..keys * lanes).map(|i| T::from_f64((i % 37) as f64 - 15.0)).collect();
                let mut p = products.clone();
                let tile = Tile { p: p.as_mut_ptr(), keys, width: lanes, query, key };
                T::dispatch_at(level, All(&score, tile));
                for (at, (&got, &product)) in p.iter().zip(&products).enumerate() {
                    let (j, lane) = (at / lanes, at % lanes);
                    // The sign of the scale enters with the queries.
                    let capped = 3.0 * (0.5 * product.to_f64() / 3.0).tanh();
                    let lost = 0.01 * ((query + lane) as f64 - (key + j) as f64).abs();
                    let kept = if keep[lane * keys + j] { 1.0 / (1.0 - 19661.0 / 65536.0) } else { 0.0 };
                    let want = (capped - lost) * kept;
                    let got = got.to_f64() * score.factor.to_f64() * score.back.to_f64();
                    assert!(
                        (got - want).abs() <= tolerance * (3.0 + lost),
                        "{level:?} {query} {key} {at}: {got} {want}"
                    );
                }
            }
        }
    }

    #[test]
    fn tiles_are_made_of_pairs() {
        tiles_say_what_pairs_say::<f32>(4.0 * f64::from(f32::EPSILON));
        tiles_say_what_pairs_say::<f64>(4.0 * f64::EPSILON);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |scoring: Scoring<'_>| scoring.check(2).unwrap_err().to_string();
        let plain = Scoring::new(1.0);
        assert_eq!(plain.check(2), Ok(()));
        assert_eq!(refused(Scoring::new(f64::NAN)), "scale must be finite, not NaN");
        for c in [0.0, -1.0, f64::INFINITY, f64::NAN] {
            let words = format!("softcap must be finite and above 0, not {c}");
            assert_eq!(refused(Scoring { softcap: Some(c), ..plain }), words);
        }
        assert_eq!(refused(Scoring { slopes: Some(&[1.0]), ..plain }), "alibi has H=1, expected H=2");
        let bad = Scoring { slopes: Some(&[1.0, f64::NAN]), ..plain };
        assert_eq!(refused(bad), "alibi must be finite, not NaN");
        for p in [1.0, -0.1, f64::NAN] {
            let words = format!("dropout must be in [0, 1), not {p}");
            assert_eq!(refused(Scoring { dropout: Some(Dropout { p, seed: 0 }), ..plain }), words);
        }
    }
}
