//! Experts as they are given, and those of a row that are present.

use sensorium_core::error::{check_len, product};
use sensorium_core::{Error, Float, Result};

/// Sizes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Experts, `M`, without the prior.
    pub experts: usize,
    /// Rows, `B`.
    pub batch: usize,
    /// Numbers of a row, `D`.
    pub width: usize,
}

/// A matrix `(B, D)` whose rows are contiguous and any distance apart.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a, T> {
    data: &'a [T],
    stride: usize,
}

impl<'a, T> Rows<'a, T> {
    /// Rows `stride` elements apart; `data` ends with the last row.
    #[must_use]
    pub const fn new(data: &'a [T], stride: usize) -> Self {
        Self { data, stride }
    }

    /// Rows one after the other.
    #[must_use]
    pub const fn contiguous(data: &'a [T], width: usize) -> Self {
        Self { data, stride: width }
    }

    /// That there are `batch` rows of `width` elements.
    pub(crate) fn check(&self, arg: &'static str, batch: usize, width: usize) -> Result<()> {
        let want = match (batch, width) {
            (0, _) | (_, 0) => 0,
            _ => {
                product(arg, &[batch - 1, self.stride])?.checked_add(width).ok_or(Error::Overflow { arg })?
            }
        };
        check_len(arg, self.data, want)
    }

    /// Where row `b` begins. Its elements may be read, once [`Rows::check`] has passed.
    #[inline(always)]
    pub(crate) fn row(&self, b: usize) -> *const T {
        self.data.as_ptr().wrapping_add(b * self.stride)
    }
}

/// An expert that every row has.
#[derive(Debug, Clone, Copy)]
pub enum Prior<'a, T> {
    /// There is none.
    None,
    /// `N(0, I)`.
    Standard,
    /// Of this mean and logarithm of the variance, `(D,)` each.
    Given(&'a [T], &'a [T]),
}

/// What is fused.
#[derive(Debug, Clone, Copy)]
pub struct Experts<'a, T> {
    /// Sizes.
    pub dims: Dims,
    /// Means, one matrix an expert.
    pub mu: &'a [Rows<'a, T>],
    /// Logarithms of variances, one matrix an expert.
    pub logvar: &'a [Rows<'a, T>],
    /// `(M, B)`: whether an expert is present in a row. All are where this is not given.
    pub mask: Option<&'a [bool]>,
    /// `(M, B)`: factors of precisions, at least 0. All are 1 where this is not given.
    pub weights: Option<&'a [T]>,
    /// The expert of all rows.
    pub prior: Prior<'a, T>,
}

/// An expert of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Present<T> {
    /// Its row of means.
    pub(crate) mu: *const T,
    /// Its row of logarithms of variances.
    pub(crate) logvar: *const T,
    /// Its weight, above 0, and the logarithm of that.
    pub(crate) weight: T,
    pub(crate) log_weight: T,
    /// Its place among the experts; the prior comes after them all.
    pub(crate) index: usize,
}

/// Experts that were checked.
pub(crate) struct Checked<'a, T> {
    pub(crate) experts: &'a Experts<'a, T>,
    /// A row of zeros, which is the mean of a standard prior and the logarithm of its variance.
    zeros: Vec<T>,
}

// SAFETY of what reads through pointers: `new` has checked that all of these elements are there.
impl<'a, T: Float> Checked<'a, T> {
    pub(crate) fn new(experts: &'a Experts<'a, T>) -> Result<Self> {
        let Dims { experts: count, batch, width } = experts.dims;
        for (arg, list) in [("mu", experts.mu), ("logvar", experts.logvar)] {
            if list.len() != count {
                return Err(Error::Dim { arg, dim: "M", want: count, got: list.len() });
            }
            for rows in list {
                rows.check(arg, batch, width)?;
            }
        }
        product("mu", &[count, batch, width])?;
        let pairs = product("mask", &[count, batch])?;
        experts.mask.map_or(Ok(()), |mask| check_len("mask", mask, pairs))?;
        if let Some(weights) = experts.weights {
            check_len("weights", weights, pairs)?;
            if let Some(bad) = weights.iter().find(|w| !(w.is_finite() && **w >= T::ZERO)) {
                let what = format!("must be finite and not negative, not {bad}");
                return Err(Error::Value { arg: "weights", what });
            }
        }
        let zeros = match experts.prior {
            Prior::Given(mean, logvar) => {
                check_len("prior mean", mean, width)?;
                check_len("prior logvar", logvar, width)?;
                Vec::new()
            }
            _ => vec![T::ZERO; width],
        };
        let checked = Self { experts, zeros };
        checked.each_row_has_one()?;
        Ok(checked)
    }

    fn each_row_has_one(&self) -> Result<()> {
        let Experts { dims, mask, weights, prior, .. } = *self.experts;
        if !matches!(prior, Prior::None) || (dims.experts > 0 && mask.is_none() && weights.is_none()) {
            return Ok(());
        }
        for b in 0..dims.batch {
            if !(0..dims.experts).any(|m| self.weight(m, b).is_some()) {
                let arg = if mask.is_some() || weights.is_none() { "mask" } else { "weights" };
                let what = format!("leaves row {b} without an expert, and there is no prior");
                return Err(Error::Value { arg, what });
            }
        }
        Ok(())
    }

    /// The weight of expert `m` in row `b`: none where it is missing or its weight is 0.
    #[inline(always)]
    pub(crate) fn weight(&self, m: usize, b: usize) -> Option<T> {
        let at = m * self.experts.dims.batch + b;
        if let Some(mask) = self.experts.mask
            && !mask[at]
        {
            return None;
        }
        match self.experts.weights {
            Some(weights) if weights[at] == T::ZERO => None,
            Some(weights) => Some(weights[at]),
            None => Some(T::ONE),
        }
    }

    /// Mean and logarithm of the variance of what the divergence is taken to: the prior, and `N(0, I)` where there is
    /// none.
    pub(crate) fn target(&self) -> (&[T], &[T]) {
        match self.experts.prior {
            Prior::Given(mean, logvar) => (mean, logvar),
            _ => (&self.zeros, &self.zeros),
        }
    }

    /// Whether the prior is given.
    pub(crate) fn prior_is_given(&self) -> bool {
        matches!(self.experts.prior, Prior::Given(..))
    }

    /// The experts of row `b`, the prior last.
    #[inline(always)]
    pub(crate) fn row(&self, b: usize, list: &mut Vec<Present<T>>) {
        list.clear();
        let count = self.experts.dims.experts;
        for m in 0..count {
            let Some(weight) = self.weight(m, b) else { continue };
            let log_weight = if self.experts.weights.is_some() { weight.ln() } else { T::ZERO };
            let (mu, logvar) = (self.experts.mu[m].row(b), self.experts.logvar[m].row(b));
            list.push(Present { mu, logvar, weight, log_weight, index: m });
        }
        if !matches!(self.experts.prior, Prior::None) {
            let (mu, logvar) = self.target();
            let (mu, logvar) = (mu.as_ptr(), logvar.as_ptr());
            list.push(Present { mu, logvar, weight: T::ONE, log_weight: T::ZERO, index: count });
        }
    }
}
