//! Mixtures of products of Gaussian experts across the boundary.

use crate::array::{InOut, Input, by_dtype, optional, writable};
use crate::door::{self, ArgumentError};
use crate::fusion::{Borrowed, How, Matrix, noise_of};
use pyo3::prelude::*;
use sensorium_fusion::product::Noise;
use sensorium_fusion::subsets::{Draw, Grads, Subsets};

type Array<'py> = Bound<'py, PyAny>;
type Maybe<'py> = Option<Bound<'py, PyAny>>;

fn drawn<'a, T: numpy::Element>(
    given: Option<&'a Matrix<'_, T>>,
    seed: Option<u64>,
) -> PyResult<Noise<'a, T>> {
    noise_of(given, seed).ok_or_else(|| ArgumentError::new_err("noise or rng must be given"))
}

/// Numbers of the subsets that count, or none for all, and of the one that each row's sample is drawn from.
struct Chosen<'py> {
    subsets: Option<Input<'py, u32>>,
    chosen: Input<'py, u32>,
}

impl<'py> Chosen<'py> {
    fn new((subsets, chosen): &(Maybe<'py>, Array<'py>)) -> PyResult<Self> {
        Ok(Self { subsets: optional("subsets", subsets.as_ref())?, chosen: Input::new("component", chosen)? })
    }
}

/// Writes the sample and the mean divergence.
#[pyfunction]
pub(crate) fn mixture_of_products<'py>(
    py: Python<'py>,
    mu: Vec<Array<'py>>,
    logvar: Vec<Array<'py>>,
    how: How<'py>,
    draw: (Maybe<'py>, Array<'py>),
    noise: Maybe<'py>,
    seed: Option<u64>,
    results: (Array<'py>, Array<'py>),
) -> PyResult<()> {
    let first = mu.first().ok_or_else(|| ArgumentError::new_err("mu has no expert"))?;
    by_dtype!(first, T => {
        let borrowed = Borrowed::<T>::new(&mu, &logvar, &how)?;
        let chosen = Chosen::new(&draw)?;
        let given = noise.as_ref().map(|array| Matrix::<T>::new("noise", array)).transpose()?;
        let noise = drawn(given.as_ref(), seed)?;
        let (mut z, mut kl) = (InOut::<T>::new("z", &results.0)?, InOut::<T>::new("kl", &results.1)?);
        let (zs, kls) = (z.as_slice_mut(), kl.as_slice_mut());
        let (subsets, chosen) = (chosen.subsets.as_ref().map(Input::as_slice), chosen.chosen.as_slice());
        borrowed.with(|experts| {
            let draw = Draw { subsets, chosen, noise };
            door::run(py, || T::mixture_of_products(experts, &draw, zs, kls))
        })
    })
}

/// Writes gradients by the experts, and by weights and prior where there are arrays for them.
#[pyfunction]
pub(crate) fn mixture_of_products_backward<'py>(
    py: Python<'py>,
    mu: Vec<Array<'py>>,
    logvar: Vec<Array<'py>>,
    how: How<'py>,
    draw: (Maybe<'py>, Array<'py>),
    noise: Maybe<'py>,
    seed: Option<u64>,
    grads: (Array<'py>, Array<'py>),
    wanted: (Array<'py>, Array<'py>, Maybe<'py>, Maybe<'py>),
) -> PyResult<()> {
    let first = mu.first().ok_or_else(|| ArgumentError::new_err("mu has no expert"))?;
    by_dtype!(first, T => {
        let borrowed = Borrowed::<T>::new(&mu, &logvar, &how)?;
        let chosen = Chosen::new(&draw)?;
        let given = noise.as_ref().map(|array| Matrix::<T>::new("noise", array)).transpose()?;
        let noise = drawn(given.as_ref(), seed)?;
        let (of_z, of_kl) = (Input::<T>::new("grad_z", &grads.0)?, Input::<T>::new("grad_kl", &grads.1)?);
        let (mut dmu, mut dlogvar) =
            (InOut::<T>::new("dmu", &wanted.0)?, InOut::<T>::new("dlogvar", &wanted.1)?);
        let mut weights = writable::<T>("dweights", wanted.2.as_ref())?;
        let mut prior = writable::<T>("dprior", wanted.3.as_ref())?;
        let (of_z, of_kl) = (of_z.as_slice(), of_kl.as_slice());
        let (dmu, dlogvar) = (dmu.as_slice_mut(), dlogvar.as_slice_mut());
        let weights = weights.as_mut().map(InOut::as_slice_mut);
        let prior = prior.as_mut().map(InOut::as_slice_mut);
        let (subsets, chosen) = (chosen.subsets.as_ref().map(Input::as_slice), chosen.chosen.as_slice());
        borrowed.with(|experts| {
            let draw = Draw { subsets, chosen, noise };
            let wanted = Grads { mu: dmu, logvar: dlogvar, weights, prior };
            door::run(py, || T::mixture_of_products_backward(experts, &draw, of_z, of_kl, wanted))
        })
    })
}
