//! Bindings of `sensorium-fit`.

use crate::array::{Input, Output, optional};
use crate::door::{self, ArgumentError};
use pyo3::prelude::*;
use sensorium_core::error;
use sensorium_fit::{Data, Ends, Family, LAWS, Options, Problems, minimise, predict};

type Array<'py> = Bound<'py, PyAny>;
type Solved<'py> = (Array<'py>, Array<'py>, Array<'py>, Array<'py>, Array<'py>);

/// Indices of rows; none where nothing is given.
fn rows(name: &str, array: Option<&Array<'_>>) -> PyResult<Vec<usize>> {
    let Some(array) = optional::<i64>(name, array)? else { return Ok(Vec::new()) };
    array
        .as_slice()
        .iter()
        .map(|&row| usize::try_from(row))
        .collect::<Result<_, _>>()
        .map_err(|_| ArgumentError::new_err(format!("{name} must not be negative")))
}

/// The law of that name.
fn named(law: &str) -> PyResult<Family> {
    Family::from_name(law).ok_or_else(|| {
        let known: Vec<_> = LAWS.iter().map(|law| law.0).collect();
        ArgumentError::new_err(format!("law must be one of {}, not {law:?}", known.join(", ")))
    })
}

/// Solves all problems: parameters, objectives, gradients, second derivatives and steps (negative where the end is
/// not stationary).
#[pyfunction]
pub(crate) fn fit<'py>(
    py: Python<'py>,
    law: &str,
    x: Array<'py>,
    y: Array<'py>,
    weights: Array<'py>,
    starts: Array<'py>,
    y_row: Option<Array<'py>>,
    weight_row: Option<Array<'py>>,
    delta: f64,
    free: Vec<bool>,
    steps: usize,
) -> PyResult<Solved<'py>> {
    let family = named(law)?;
    let (parameters, features) = family.sizes();
    let (x, y) = (Input::<f64>::new("x", &x)?, Input::<f64>::new("y", &y)?);
    let (weights, starts) = (Input::<f64>::new("weights", &weights)?, Input::<f64>::new("starts", &starts)?);
    let (y_row, weight_row) = (rows("y_row", y_row.as_ref())?, rows("weight_row", weight_row.as_ref())?);
    let points = x.as_slice().len() / features;
    let count = starts.as_slice().len() / parameters;
    let half = parameters * (parameters + 1) / 2;
    error::product("starts", &[count, half, size_of::<f64>()]).map_err(door::translate)?;
    let mut theta = Output::<f64>::new(py, &[count, parameters]);
    let mut objective = Output::<f64>::new(py, &[count]);
    let mut gradient = Output::<f64>::new(py, &[count, parameters]);
    let mut hessian = Output::<f64>::new(py, &[count, half]);
    let mut taken = Output::<i32>::new(py, &[count]);
    let data = Data { points, x: x.as_slice(), y: y.as_slice(), weights: weights.as_slice() };
    let problems = Problems { starts: starts.as_slice(), y_row: &y_row, weight_row: &weight_row };
    let options = Options { delta, free: &free, steps };
    let mut ends = Ends {
        theta: theta.as_slice_mut(),
        objective: objective.as_slice_mut(),
        gradient: gradient.as_slice_mut(),
        hessian: hessian.as_slice_mut(),
        steps: taken.as_slice_mut(),
    };
    door::run(py, || minimise(family, data, problems, options, &mut ends))?;
    Ok((theta.into_any(), objective.into_any(), gradient.into_any(), hessian.into_any(), taken.into_any()))
}

/// What a law predicts for every set of parameters `(K, P)` at every point: `(K, n)`, and how that changes with them,
/// `(K, n, P)`, where asked for.
#[pyfunction]
pub(crate) fn fit_predict<'py>(
    py: Python<'py>,
    law: &str,
    theta: Array<'py>,
    x: Array<'py>,
    slopes: bool,
) -> PyResult<(Array<'py>, Option<Array<'py>>)> {
    let family = named(law)?;
    let (parameters, features) = family.sizes();
    let (theta, x) = (Input::<f64>::new("theta", &theta)?, Input::<f64>::new("x", &x)?);
    let (sets, points) = (theta.as_slice().len() / parameters, x.as_slice().len() / features);
    error::product("theta", &[sets, points, parameters, size_of::<f64>()]).map_err(door::translate)?;
    let mut values = Output::<f64>::new(py, &[sets, points]);
    let mut by = slopes.then(|| Output::<f64>::new(py, &[sets, points, parameters]));
    let (to, by_to) = (values.as_slice_mut(), by.as_mut().map(Output::as_slice_mut));
    let (theta, x) = (theta.as_slice(), x.as_slice());
    door::run(py, || predict(family, theta, x, to, by_to))?;
    Ok((values.into_any(), by.map(Output::into_any)))
}
