//! Bindings of `sensorium-nn`. The Python layer has checked shapes; kernels check lengths again.

use crate::array::{InOut, Input, Output, by_dtype, optional};
use crate::door;
use crate::tensor::{Held, by_storage};
use numpy::Element;
use pyo3::prelude::*;
use pyo3::types::PyAny;
use sensorium_core::{Error, Float, Storage};
use sensorium_nn::{self as nn, Activation, NnKernels};

type Array<'py> = Bound<'py, PyAny>;
type Maybe<'py> = Option<Bound<'py, PyAny>>;

/// Sizes of an array as rows of its last axis.
fn rows_of(shape: &[usize]) -> (usize, usize) {
    let (d, outer) = shape.split_last().map_or((0, &[][..]), |(d, outer)| (*d, outer));
    (outer.iter().product(), d)
}

fn outer(shape: &[usize]) -> &[usize] {
    &shape[..shape.len().saturating_sub(1)]
}

fn activation_of(name: &str) -> PyResult<Activation> {
    match name {
        "gelu" => Ok(Activation::Gelu),
        "silu" => Ok(Activation::Silu),
        _ => Err(door::translate(Error::Value {
            arg: "activation",
            what: format!("must be None, \"gelu\" or \"silu\", not {name:?}"),
        })),
    }
}

/// `(y, mean, rstd)`; `mean` is None for RMS norm.
#[pyfunction]
pub(crate) fn norm<'py>(
    py: Python<'py>,
    x: Array<'py>,
    weight: Array<'py>,
    bias: Maybe<'py>,
    eps: f64,
    centred: bool,
) -> PyResult<(Array<'py>, Maybe<'py>, Array<'py>)> {
    by_dtype!(&x, T => {
        let (x, weight) = (Input::<T>::new("x", &x)?, Input::<T>::new("weight", &weight)?);
        let bias = optional::<T>("bias", bias.as_ref())?;
        let mut y = Output::<T>::new(py, x.shape());
        let mut mean = centred.then(|| Output::<T>::new(py, outer(x.shape())));
        let mut rstd = Output::<T>::new(py, outer(x.shape()));
        let (rows, d) = rows_of(x.shape());
        let (xs, ws, bs) = (x.as_slice(), weight.as_slice(), bias.as_ref().map(Input::as_slice));
        let (ys, rs) = (y.as_slice_mut(), rstd.as_slice_mut());
        let ms = mean.as_mut().map(Output::as_slice_mut);
        let eps = T::from_f64(eps);
        door::run(py, || {
            T::norm_forward(nn::norm::Dims { rows, d }, xs, ws, bs, eps, ys, nn::norm::Stats { mean: ms, rstd: rs })
        })?;
        Ok((y.into_any(), mean.map(Output::into_any), rstd.into_any()))
    })
}

/// `(dx, dweight, dbias)`; `residual` is added to `dx`.
#[pyfunction]
pub(crate) fn norm_backward<'py>(
    py: Python<'py>,
    grad: Array<'py>,
    x: Array<'py>,
    weight: Array<'py>,
    mean: Maybe<'py>,
    rstd: Array<'py>,
    residual: Maybe<'py>,
    has_bias: bool,
) -> PyResult<(Array<'py>, Array<'py>, Maybe<'py>)> {
    by_dtype!(&x, T => {
        let grad = Input::<T>::new("grad", &grad)?;
        let (x, weight) = (Input::<T>::new("x", &x)?, Input::<T>::new("weight", &weight)?);
        let (mean, rstd) = (optional::<T>("mean", mean.as_ref())?, Input::<T>::new("rstd", &rstd)?);
        let residual = optional::<T>("residual", residual.as_ref())?;
        let mut dx = Output::<T>::new(py, x.shape());
        let mut dweight = Output::<T>::new(py, weight.shape());
        let mut dbias = has_bias.then(|| Output::<T>::new(py, weight.shape()));
        let (rows, d) = rows_of(x.shape());
        let (gs, xs, ws) = (grad.as_slice(), x.as_slice(), weight.as_slice());
        let stats = nn::norm::Stats { mean: mean.as_ref().map(Input::as_slice), rstd: rstd.as_slice() };
        let around = residual.as_ref().map(Input::as_slice);
        let (dxs, dws) = (dx.as_slice_mut(), dweight.as_slice_mut());
        let dbs = dbias.as_mut().map(Output::as_slice_mut);
        door::run(py, || {
            T::norm_backward(nn::norm::Dims { rows, d }, gs, xs, ws, stats, around, dxs, dws, dbs)
        })?;
        Ok((dx.into_any(), dweight.into_any(), dbias.map(Output::into_any)))
    })
}

/// `(y, rstd)` of the gated RMS norm.
#[pyfunction]
pub(crate) fn gated_norm<'py>(
    py: Python<'py>,
    x: Array<'py>,
    z: Array<'py>,
    weight: Array<'py>,
    groups: usize,
    eps: f64,
) -> PyResult<(Array<'py>, Array<'py>)> {
    by_dtype!(&x, T => {
        let (x, z, weight) =
            (Input::<T>::new("x", &x)?, Input::<T>::new("z", &z)?, Input::<T>::new("weight", &weight)?);
        let (rows, d) = rows_of(x.shape());
        let mut y = Output::<T>::new(py, x.shape());
        let mut rstd = Output::<T>::new(py, &[outer(x.shape()), &[groups]].concat());
        let (xs, zs, ws) = (x.as_slice(), z.as_slice(), weight.as_slice());
        let (ys, rs) = (y.as_slice_mut(), rstd.as_slice_mut());
        let dims = nn::gated::Dims { rows, d, groups };
        door::run(py, || T::gated_norm_forward(dims, xs, zs, ws, T::from_f64(eps), ys, rs))?;
        Ok((y.into_any(), rstd.into_any()))
    })
}

/// `(dx, dz, dweight)` of the gated RMS norm.
#[pyfunction]
pub(crate) fn gated_norm_backward<'py>(
    py: Python<'py>,
    grad: Array<'py>,
    x: Array<'py>,
    z: Array<'py>,
    weight: Array<'py>,
    rstd: Array<'py>,
    groups: usize,
) -> PyResult<(Array<'py>, Array<'py>, Array<'py>)> {
    by_dtype!(&x, T => {
        let (grad, rstd) = (Input::<T>::new("grad", &grad)?, Input::<T>::new("rstd", &rstd)?);
        let (x, z, weight) =
            (Input::<T>::new("x", &x)?, Input::<T>::new("z", &z)?, Input::<T>::new("weight", &weight)?);
        let (rows, d) = rows_of(x.shape());
        let (mut dx, mut dz) = (Output::<T>::new(py, x.shape()), Output::<T>::new(py, x.shape()));
        let mut dweight = Output::<T>::new(py, weight.shape());
        let (gs, rs) = (grad.as_slice(), rstd.as_slice());
        let (xs, zs, ws) = (x.as_slice(), z.as_slice(), weight.as_slice());
        let (dxs, dzs, dws) = (dx.as_slice_mut(), dz.as_slice_mut(), dweight.as_slice_mut());
        let dims = nn::gated::Dims { rows, d, groups };
        door::run(py, || T::gated_norm_backward(dims, gs, xs, zs, ws, rs, dxs, dzs, dws))?;
        Ok((dx.into_any(), dz.into_any(), dweight.into_any()))
    })
}

/// `act(x)`.
#[pyfunction]
pub(crate) fn activate<'py>(py: Python<'py>, x: Array<'py>, name: &str) -> PyResult<Array<'py>> {
    let act = activation_of(name)?;
    by_dtype!(&x, T => {
        let x = Input::<T>::new("x", &x)?;
        let mut y = Output::<T>::new(py, x.shape());
        let (xs, ys) = (x.as_slice(), y.as_slice_mut());
        door::run(py, || T::activate(act, xs, ys))?;
        Ok(y.into_any())
    })
}

/// `grad * act'(x)`.
#[pyfunction]
pub(crate) fn activate_backward<'py>(
    py: Python<'py>,
    grad: Array<'py>,
    x: Array<'py>,
    name: &str,
) -> PyResult<Array<'py>> {
    let act = activation_of(name)?;
    by_dtype!(&x, T => {
        let (grad, x) = (Input::<T>::new("grad", &grad)?, Input::<T>::new("x", &x)?);
        let mut dx = Output::<T>::new(py, x.shape());
        let (gs, xs, ds) = (grad.as_slice(), x.as_slice(), dx.as_slice_mut());
        door::run(py, || T::activate_backward(act, gs, xs, ds))?;
        Ok(dx.into_any())
    })
}

/// `(out, slope)`; `slope` is None unless asked for, which needs an activation. The weight is its transpose where
/// `transposed`, and bits of half precision where `half` names what they are.
#[pyfunction]
#[pyo3(signature = (x, weight, bias, activation, residual, keep_slope, transposed=false, half=None))]
pub(crate) fn linear<'py>(
    py: Python<'py>,
    x: Array<'py>,
    weight: Array<'py>,
    bias: Maybe<'py>,
    activation: Option<&str>,
    residual: Maybe<'py>,
    keep_slope: bool,
    transposed: bool,
    half: Option<&str>,
) -> PyResult<(Array<'py>, Maybe<'py>)> {
    let activation = activation.map(activation_of).transpose()?;
    by_storage!(&weight, half, E => {
        linear_of::<E>(py, x, weight, bias, activation, residual, keep_slope, transposed)
    })
}

fn linear_of<'py, E: Held>(
    py: Python<'py>,
    x: Array<'py>,
    weight: Array<'py>,
    bias: Maybe<'py>,
    activation: Option<Activation>,
    residual: Maybe<'py>,
    keep_slope: bool,
    transposed: bool,
) -> PyResult<(Array<'py>, Maybe<'py>)>
where
    E::Float: Element + Default,
{
    type Of<E> = <E as Storage>::Float;
    let (x, weight) = (Input::<Of<E>>::new("x", &x)?, Input::<E::Element>::new("weight", &weight)?);
    let (bias, residual) = (optional("bias", bias.as_ref())?, optional("residual", residual.as_ref())?);
    let (m, k) = rows_of(x.shape());
    let n = weight.shape()[usize::from(!transposed)];
    let shape = [outer(x.shape()), &[n]].concat();
    let mut out = Output::<Of<E>>::new(py, &shape);
    let mut slope = (keep_slope && activation.is_some()).then(|| Output::<Of<E>>::new(py, &shape));
    let (xs, os) = (x.as_slice(), out.as_slice_mut());
    let weight = nn::linear::Weight { data: E::slice(weight.as_slice()), transposed };
    let after = nn::linear::Epilogue {
        bias: bias.as_ref().map(Input::as_slice),
        activation,
        residual: residual.as_ref().map(Input::as_slice),
    };
    let ps = slope.as_mut().map(Output::as_slice_mut);
    door::run(py, || E::linear_forward(nn::linear::Dims { m, k, n }, xs, weight, after, ps, os))?;
    Ok((out.into_any(), slope.map(Output::into_any)))
}

/// `(dx, dweight, dbias)` from the gradient of `x W + b`. With `below = act'(q)`, where `x = act(q)`, the first is
/// the gradient of `q`.
#[pyfunction]
pub(crate) fn linear_backward<'py>(
    py: Python<'py>,
    grad: Array<'py>,
    x: Array<'py>,
    weight: Array<'py>,
    has_bias: bool,
    below: Maybe<'py>,
) -> PyResult<(Array<'py>, Array<'py>, Maybe<'py>)> {
    by_dtype!(&x, T => {
        let grad = Input::<T>::new("grad", &grad)?;
        let (x, weight) = (Input::<T>::new("x", &x)?, Input::<T>::new("weight", &weight)?);
        let below = optional::<T>("below", below.as_ref())?;
        let (m, k) = rows_of(x.shape());
        let n = weight.shape()[1];
        let mut dx = Output::<T>::new(py, x.shape());
        let mut dweight = Output::<T>::new(py, weight.shape());
        let mut dbias = has_bias.then(|| Output::<T>::new(py, &[n]));
        let (gs, xs, ws) = (grad.as_slice(), x.as_slice(), weight.as_slice());
        let (dxs, dws) = (dx.as_slice_mut(), dweight.as_slice_mut());
        let dbs = dbias.as_mut().map(Output::as_slice_mut);
        let qs = below.as_ref().map(Input::as_slice);
        door::run(py, || T::linear_backward(nn::linear::Dims { m, k, n }, gs, xs, ws, qs, dxs, dws, dbs))?;
        Ok((dx.into_any(), dweight.into_any(), dbias.map(Output::into_any)))
    })
}

/// `(loss, lse)`.
#[pyfunction]
pub(crate) fn cross_entropy<'py>(
    py: Python<'py>,
    logits: Array<'py>,
    targets: Array<'py>,
    weights: Maybe<'py>,
) -> PyResult<(f64, Array<'py>)> {
    by_dtype!(&logits, T => {
        let logits = Input::<T>::new("logits", &logits)?;
        let (targets, weights) = (Input::<i64>::new("targets", &targets)?, optional::<T>("weights", weights.as_ref())?);
        let (rows, k) = rows_of(logits.shape());
        let mut lse = Output::<T>::new(py, outer(logits.shape()));
        let (xs, ts, es) = (logits.as_slice(), targets.as_slice(), lse.as_slice_mut());
        let ws = weights.as_ref().map(Input::as_slice);
        let value = door::run(py, || T::cross_entropy_forward(nn::loss::Dims { rows, k }, xs, ts, ws, es))?;
        Ok((value, lse.into_any()))
    })
}

/// `dlogits`.
#[pyfunction]
pub(crate) fn cross_entropy_backward<'py>(
    py: Python<'py>,
    grad: f64,
    logits: Array<'py>,
    targets: Array<'py>,
    weights: Maybe<'py>,
    lse: Array<'py>,
) -> PyResult<Array<'py>> {
    by_dtype!(&logits, T => {
        let logits = Input::<T>::new("logits", &logits)?;
        let (targets, weights) = (Input::<i64>::new("targets", &targets)?, optional::<T>("weights", weights.as_ref())?);
        let lse = Input::<T>::new("lse", &lse)?;
        let (rows, k) = rows_of(logits.shape());
        let mut dlogits = Output::<T>::new(py, logits.shape());
        let (xs, ts, es) = (logits.as_slice(), targets.as_slice(), lse.as_slice());
        let (ws, ds) = (weights.as_ref().map(Input::as_slice), dlogits.as_slice_mut());
        door::run(py, || T::cross_entropy_backward(nn::loss::Dims { rows, k }, grad, xs, ts, ws, es, ds))?;
        Ok(dlogits.into_any())
    })
}

/// Rows of a table.
#[pyfunction]
pub(crate) fn embedding<'py>(
    py: Python<'py>,
    table: Array<'py>,
    indices: Array<'py>,
) -> PyResult<Array<'py>> {
    by_dtype!(&table, T => {
        let (table, indices) = (Input::<T>::new("table", &table)?, Input::<i64>::new("indices", &indices)?);
        let (v, d) = rows_of(table.shape());
        let n = indices.as_slice().len();
        let mut out = Output::<T>::new(py, &[indices.shape(), &[d]].concat());
        let (ts, is, os) = (table.as_slice(), indices.as_slice(), out.as_slice_mut());
        door::run(py, || T::embedding_forward(nn::embedding::Dims { v, d, n }, ts, is, os))?;
        Ok(out.into_any())
    })
}

/// Gradient of a table of `v` rows.
#[pyfunction]
pub(crate) fn embedding_backward<'py>(
    py: Python<'py>,
    grad: Array<'py>,
    indices: Array<'py>,
    v: usize,
) -> PyResult<Array<'py>> {
    by_dtype!(&grad, T => {
        let (grad, indices) = (Input::<T>::new("grad", &grad)?, Input::<i64>::new("indices", &indices)?);
        let (n, d) = (indices.as_slice().len(), rows_of(grad.shape()).1);
        let mut dtable = Output::<T>::new(py, &[v, d]);
        let (gs, is, ds) = (grad.as_slice(), indices.as_slice(), dtable.as_slice_mut());
        door::run(py, || T::embedding_backward(nn::embedding::Dims { v, d, n }, gs, is, ds))?;
        Ok(dtable.into_any())
    })
}

fn inputs<'py, T: Element>(name: &str, arrays: &[Array<'py>]) -> PyResult<Vec<Input<'py, T>>> {
    arrays.iter().map(|a| Input::new(name, a)).collect()
}

fn updated<'py, T: Element>(name: &str, arrays: &[Array<'py>]) -> PyResult<Vec<InOut<'py, T>>> {
    arrays.iter().map(|a| InOut::new(name, a)).collect()
}

/// Updates `params`, `ms` and `vs` in place; all arrays of one dtype.
#[pyfunction]
pub(crate) fn adamw_step<'py>(
    py: Python<'py>,
    params: Vec<Array<'py>>,
    grads: Vec<Array<'py>>,
    ms: Vec<Array<'py>>,
    vs: Vec<Array<'py>>,
    decay: Vec<bool>,
    lr: f64,
    betas: (f64, f64),
    eps: f64,
    weight_decay: f64,
    step: u64,
    grad_scale: f64,
) -> PyResult<()> {
    let Some(first) = params.first() else { return Ok(()) };
    by_dtype!(first, T => {
        let grads = inputs::<T>("grads", &grads)?;
        let (mut params, mut ms) = (updated::<T>("params", &params)?, updated::<T>("state m", &ms)?);
        let mut vs = updated::<T>("state v", &vs)?;
        let moments = ms.iter_mut().zip(&mut vs).zip(decay);
        let mut leaves: Vec<_> = (params.iter_mut().zip(&grads).zip(moments))
            .map(|((param, grad), ((m, v), decay))| nn::optim::Leaf {
                param: param.as_slice_mut(),
                grad: grad.as_slice(),
                m: m.as_slice_mut(),
                v: v.as_slice_mut(),
                decay,
            })
            .collect();
        let (beta1, beta2) = betas;
        let how = nn::optim::AdamW { lr, beta1, beta2, eps, weight_decay, step, grad_scale };
        door::run(py, || T::adamw(&mut leaves, how))
    })
}

/// Root of the sum of squares of all elements of all arrays.
#[pyfunction]
pub(crate) fn global_norm<'py>(py: Python<'py>, arrays: Vec<Array<'py>>) -> PyResult<f64> {
    let Some(first) = arrays.first() else { return Ok(0.0) };
    by_dtype!(first, T => {
        let arrays = inputs::<T>("grads", &arrays)?;
        let slices: Vec<_> = arrays.iter().map(Input::as_slice).collect();
        door::run(py, || Ok(T::sum_of_squares(&slices).sqrt()))
    })
}

/// Multiplies all elements of all arrays by `factor`.
#[pyfunction]
pub(crate) fn scale_arrays<'py>(py: Python<'py>, arrays: Vec<Array<'py>>, factor: f64) -> PyResult<()> {
    let Some(first) = arrays.first() else { return Ok(()) };
    by_dtype!(first, T => {
        let mut arrays = updated::<T>("grads", &arrays)?;
        let mut slices: Vec<_> = arrays.iter_mut().map(InOut::as_slice_mut).collect();
        door::run(py, || {
            T::scale(&mut slices, T::from_f64(factor));
            Ok(())
        })
    })
}

/// Moves each mean towards its value.
#[pyfunction]
pub(crate) fn running_mean<'py>(
    py: Python<'py>,
    means: Vec<Array<'py>>,
    values: Vec<Array<'py>>,
    decay: f64,
) -> PyResult<()> {
    let Some(first) = means.first() else { return Ok(()) };
    by_dtype!(first, T => {
        let values = inputs::<T>("params", &values)?;
        let mut means = updated::<T>("ema", &means)?;
        let mut pairs: Vec<_> =
            means.iter_mut().zip(&values).map(|(m, v)| (m.as_slice_mut(), v.as_slice())).collect();
        door::run(py, || T::running_mean(&mut pairs, decay))
    })
}
