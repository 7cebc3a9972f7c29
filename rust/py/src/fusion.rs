//! Gaussian experts across the boundary.

use crate::array::{InOut, Input, by_dtype, optional, writable};
use crate::door::{self, ArgumentError, DTypeError, ShapeError};
use numpy::{Element, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;
use sensorium_fusion::product::{Gradients, Noise, Product, Results, Wanted};
use sensorium_fusion::{Dims, Experts, Prior, Rows};

type Array<'py> = Bound<'py, PyAny>;
type Maybe<'py> = Option<Bound<'py, PyAny>>;

/// Presence, weights, whether the prior is standard, and a prior that is given.
pub(crate) type How<'py> = (Maybe<'py>, Maybe<'py>, bool, Option<(Array<'py>, Array<'py>)>);

/// A borrowed matrix with contiguous rows.
pub(crate) struct Matrix<'py, T: Element> {
    array: PyReadonlyArrayDyn<'py, T>,
    shape: [usize; 2],
    stride: usize,
}

impl<'py, T: Element> Matrix<'py, T> {
    pub(crate) fn new(name: &str, array: &Bound<'py, PyAny>) -> PyResult<Self> {
        let wrong = |what: &str| ArgumentError::new_err(format!("{name} {what}"));
        let array = array
            .cast::<PyArrayDyn<T>>()
            .map_err(|_| DTypeError::new_err(format!("{name} has another dtype than expected")))?;
        let shape: [usize; 2] = array.shape().try_into().map_err(|_| {
            ShapeError::new_err(format!("{name} has {} dimensions, expected 2", array.ndim()))
        })?;
        let ([batch, width], size) = (shape, size_of::<T>());
        let mut stride = width;
        // The distance along an axis of one element is never used, and may be anything.
        if batch > 1 && width > 0 {
            let bytes = usize::try_from(array.strides()[0]).ok().filter(|bytes| bytes % size == 0);
            stride = bytes.map(|bytes| bytes / size).ok_or_else(|| wrong("has odd strides"))?;
        }
        if width > 1 && batch > 0 && usize::try_from(array.strides()[1]) != Ok(size) {
            return Err(wrong("must be contiguous along its last axis"));
        }
        if !array.data().is_aligned() {
            return Err(wrong("must be aligned"));
        }
        let array = array.try_readonly().map_err(|_| wrong("is being written to"))?;
        Ok(Self { array, shape, stride })
    }

    pub(crate) fn rows(&self) -> Rows<'_, T> {
        let [batch, width] = self.shape;
        let len = if batch * width == 0 { 0 } else { (batch - 1) * self.stride + width };
        // SAFETY: NumPy vouches for the elements that shape and strides name, and those between them are of the
        // same memory; the borrow lasts as long as `self`.
        Rows::new(unsafe { std::slice::from_raw_parts(self.array.data(), len) }, self.stride)
    }
}

/// Experts as they are borrowed.
pub(crate) struct Borrowed<'py, T: Element> {
    mu: Vec<Matrix<'py, T>>,
    logvar: Vec<Matrix<'py, T>>,
    mask: Option<Input<'py, bool>>,
    weights: Option<Input<'py, T>>,
    standard: bool,
    prior: Option<(Input<'py, T>, Input<'py, T>)>,
}

impl<'py, T: Element> Borrowed<'py, T> {
    pub(crate) fn new(mu: &[Array<'py>], logvar: &[Array<'py>], how: &How<'py>) -> PyResult<Self> {
        let (mask, weights, standard, prior) = how;
        let matrices = |name: &str, list: &[Array<'py>]| {
            list.iter().map(|array| Matrix::new(name, array)).collect::<PyResult<Vec<_>>>()
        };
        let prior = match prior {
            Some((mean, logvar)) => {
                Some((Input::new("prior mean", mean)?, Input::new("prior logvar", logvar)?))
            }
            None => None,
        };
        let (mu, logvar) = (matrices("mu", mu)?, matrices("logvar", logvar)?);
        let (mask, weights) = (optional("mask", mask.as_ref())?, optional("weights", weights.as_ref())?);
        Ok(Self { mu, logvar, mask, weights, standard: *standard, prior })
    }

    /// Runs `f` with the experts as the kernels take them.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&Experts<'_, T>) -> PyResult<R>) -> PyResult<R> {
        let [batch, width] =
            self.mu.first().map(|m| m.shape).ok_or_else(|| ArgumentError::new_err("mu has no expert"))?;
        for (name, list) in [("mu", &self.mu), ("logvar", &self.logvar)] {
            if list.iter().any(|m| m.shape != [batch, width]) {
                return Err(ShapeError::new_err(format!("{name} has experts of different shapes")));
            }
        }
        let mu: Vec<_> = self.mu.iter().map(Matrix::rows).collect();
        let logvar: Vec<_> = self.logvar.iter().map(Matrix::rows).collect();
        f(&Experts {
            dims: Dims { experts: mu.len(), batch, width },
            mu: &mu,
            logvar: &logvar,
            mask: self.mask.as_ref().map(Input::as_slice),
            weights: self.weights.as_ref().map(Input::as_slice),
            prior: match &self.prior {
                Some((mean, logvar)) => Prior::Given(mean.as_slice(), logvar.as_slice()),
                None if self.standard => Prior::Standard,
                None => Prior::None,
            },
        })
    }
}

/// The noise that is given, else that of a seed.
pub(crate) fn noise_of<'a, T: Element>(
    given: Option<&'a Matrix<'_, T>>,
    seed: Option<u64>,
) -> Option<Noise<'a, T>> {
    given.map(|matrix| Noise::Given(matrix.rows())).or_else(|| seed.map(Noise::Drawn))
}

/// Writes mean, logarithm of the variance, sample, divergence and logarithm of the normaliser, those that there are arrays for.
#[pyfunction]
pub(crate) fn fuse<'py>(
    py: Python<'py>,
    mu: Vec<Array<'py>>,
    logvar: Vec<Array<'py>>,
    how: How<'py>,
    noise: Maybe<'py>,
    seed: Option<u64>,
    results: (Maybe<'py>, Maybe<'py>, Maybe<'py>, Maybe<'py>, Maybe<'py>),
) -> PyResult<()> {
    let first = mu.first().ok_or_else(|| ArgumentError::new_err("mu has no expert"))?;
    by_dtype!(first, T => {
        let borrowed = Borrowed::<T>::new(&mu, &logvar, &how)?;
        let given = noise.as_ref().map(|array| Matrix::<T>::new("noise", array)).transpose()?;
        let mut mean = writable::<T>("mean", results.0.as_ref())?;
        let mut logvar = writable::<T>("logvar", results.1.as_ref())?;
        let (mut z, mut kl) = (writable::<T>("z", results.2.as_ref())?, writable::<T>("kl", results.3.as_ref())?);
        let mut log_normaliser = writable::<T>("log_normaliser", results.4.as_ref())?;
        let noise = noise_of(given.as_ref(), seed);
        borrowed.with(|experts| {
            let results = Results {
                mean: mean.as_mut().map(InOut::as_slice_mut),
                logvar: logvar.as_mut().map(InOut::as_slice_mut),
                z: z.as_mut().map(InOut::as_slice_mut),
                kl: kl.as_mut().map(InOut::as_slice_mut),
                log_normaliser: log_normaliser.as_mut().map(InOut::as_slice_mut),
            };
            door::run(py, || T::fuse(experts, noise, results))
        })
    })
}

/// Writes gradients by the experts, and by weights and prior where there are arrays for them.
#[pyfunction]
pub(crate) fn fuse_backward<'py>(
    py: Python<'py>,
    mu: Vec<Array<'py>>,
    logvar: Vec<Array<'py>>,
    how: How<'py>,
    noise: Maybe<'py>,
    seed: Option<u64>,
    grads: (Maybe<'py>, Maybe<'py>, Maybe<'py>, Maybe<'py>, Maybe<'py>),
    wanted: (Array<'py>, Array<'py>, Maybe<'py>, Maybe<'py>),
) -> PyResult<()> {
    let first = mu.first().ok_or_else(|| ArgumentError::new_err("mu has no expert"))?;
    by_dtype!(first, T => {
        let borrowed = Borrowed::<T>::new(&mu, &logvar, &how)?;
        let given = noise.as_ref().map(|array| Matrix::<T>::new("noise", array)).transpose()?;
        let mean = optional::<T>("grad_mean", grads.0.as_ref())?;
        let logvar = optional::<T>("grad_logvar", grads.1.as_ref())?;
        let (z, kl) = (optional::<T>("grad_z", grads.2.as_ref())?, optional::<T>("grad_kl", grads.3.as_ref())?);
        let log_normaliser = optional::<T>("grad_log_normaliser", grads.4.as_ref())?;
        let (mut dmu, mut dlogvar) =
            (InOut::<T>::new("dmu", &wanted.0)?, InOut::<T>::new("dlogvar", &wanted.1)?);
        let mut weights = writable::<T>("dweights", wanted.2.as_ref())?;
        let mut prior = writable::<T>("dprior", wanted.3.as_ref())?;
        let noise = noise_of(given.as_ref(), seed);
        borrowed.with(|experts| {
            let grads = Gradients {
                mean: mean.as_ref().map(Input::as_slice),
                logvar: logvar.as_ref().map(Input::as_slice),
                z: z.as_ref().map(Input::as_slice),
                kl: kl.as_ref().map(Input::as_slice),
                log_normaliser: log_normaliser.as_ref().map(Input::as_slice),
            };
            let wanted = Wanted {
                mu: dmu.as_slice_mut(),
                logvar: dlogvar.as_slice_mut(),
                weights: weights.as_mut().map(InOut::as_slice_mut),
                prior: prior.as_mut().map(InOut::as_slice_mut),
            };
            door::run(py, || T::fuse_backward(experts, noise, grads, wanted))
        })
    })
}

/// Writes normal numbers by position.
#[pyfunction]
pub(crate) fn normal_numbers<'py>(
    py: Python<'py>,
    seed: u64,
    stream: u64,
    position: u64,
    out: Array<'py>,
) -> PyResult<()> {
    use sensorium_fusion::noise::Noise;
    by_dtype!(&out, T => {
        let mut out = InOut::<T>::new("out", &out)?;
        let numbers = out.as_slice_mut();
        door::run(py, || {
            T::normal(seed, stream, position, numbers);
            Ok(())
        })
    })
}
