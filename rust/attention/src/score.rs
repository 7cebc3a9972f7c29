//! What becomes of `q.k` before the softmax.

use sensorium_core::{Error, Float, Result};

/// The score of a pair, as a caller states it.
#[derive(Debug, Clone, Copy)]
pub struct Scoring {
    /// Factor of `q.k`.
    pub scale: f64,
}

impl Scoring {
    /// Scores `scale q.k`.
    #[must_use]
    pub const fn new(scale: f64) -> Self {
        Self { scale }
    }

    pub(crate) fn check(self) -> Result<()> {
        if !self.scale.is_finite() {
            return Err(Error::Value { arg: "scale", what: format!("must be finite, not {}", self.scale) });
        }
        Ok(())
    }
}

/// How scores become exponents of two: `2^(factor * sign * (q.k))` is `e^(scale * q.k)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale<T> {
    /// Of the scale: -1, 0 or 1, and enters with the queries.
    pub(crate) sign: T,
    /// `|scale| log2(e)`, rounded.
    pub(crate) factor: T,
    /// What takes the rounded exponents of two back to the scaled scores.
    pub(crate) back: T,
}

impl<T: Float> Scale<T> {
    pub(crate) fn new(scale: f64) -> Self {
        if scale == 0.0 {
            return Self { sign: T::ZERO, factor: T::ONE, back: T::from_f64(std::f64::consts::LN_2) };
        }
        let factor = T::from_f64(scale.abs() * std::f64::consts::LOG2_E);
        let back = T::from_f64(scale.abs() / factor.to_f64());
        Self { sign: T::from_f64(scale.signum()), factor, back }
    }
}
