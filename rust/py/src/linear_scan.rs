//! Gated linear scans across the boundary.

use crate::array::{Input, Output, by_dtype, optional};
use crate::door;
use crate::packing::sequences;
use pyo3::prelude::*;
use sensorium_scan::ScanKernels;
use sensorium_scan::linear::{Dims, Grads};

type Array<'py> = Bound<'py, PyAny>;
type Maybe<'py> = Option<Bound<'py, PyAny>>;

fn dims(shape: &[usize], channels_last: bool, reverse: bool) -> Dims {
    let [batch, rows, cols] = [shape[0], shape[1], shape[2]];
    let (width, length) = if channels_last { (cols, rows) } else { (rows, cols) };
    Dims { batch, width, length, channels_last, reverse }
}

/// `(h, last_state)`; the latter is None unless asked for.
#[pyfunction]
pub(crate) fn linear_scan<'py>(
    py: Python<'py>,
    a: Array<'py>,
    x: Array<'py>,
    initial: Maybe<'py>,
    seq_idx: Maybe<'py>,
    cu_seqlens: Maybe<'py>,
    reverse: bool,
    channels_last: bool,
    keep_last: bool,
) -> PyResult<(Array<'py>, Maybe<'py>)> {
    by_dtype!(&x, T => {
        let (a, x) = (Input::<T>::new("a", &a)?, Input::<T>::new("x", &x)?);
        let initial = optional::<T>("initial_state", initial.as_ref())?;
        let dims = dims(x.shape(), channels_last, reverse);
        let sequences = sequences(dims.batch, dims.length, seq_idx.as_ref(), cu_seqlens.as_ref())?;
        let mut h = Output::<T>::new(py, x.shape());
        let mut last = keep_last.then(|| Output::<T>::new(py, &[sequences.states(), dims.width]));
        let (gates, xs, starts) = (a.as_slice(), x.as_slice(), initial.as_ref().map(Input::as_slice));
        let (hs, lasts) = (h.as_slice_mut(), last.as_mut().map(Output::as_slice_mut));
        door::run(py, || T::linear_scan_forward(dims, &sequences, gates, xs, starts, hs, lasts))?;
        Ok((h.into_any(), last.map(Output::into_any)))
    })
}

/// `(da, dx, dinitial_state)`; the last is None where there is no initial state.
#[pyfunction]
pub(crate) fn linear_scan_backward<'py>(
    py: Python<'py>,
    grad: Array<'py>,
    a: Array<'py>,
    h: Array<'py>,
    initial: Maybe<'py>,
    grad_last: Maybe<'py>,
    seq_idx: Maybe<'py>,
    cu_seqlens: Maybe<'py>,
    reverse: bool,
    channels_last: bool,
) -> PyResult<(Array<'py>, Array<'py>, Maybe<'py>)> {
    by_dtype!(&h, T => {
        let (grad, a, h) =
            (Input::<T>::new("grad_out", &grad)?, Input::<T>::new("a", &a)?, Input::<T>::new("h", &h)?);
        let (initial, grad_last) =
            (optional::<T>("initial_state", initial.as_ref())?, optional::<T>("grad_last_state", grad_last.as_ref())?);
        let dims = dims(h.shape(), channels_last, reverse);
        let sequences = sequences(dims.batch, dims.length, seq_idx.as_ref(), cu_seqlens.as_ref())?;
        let (mut da, mut dx) = (Output::<T>::new(py, h.shape()), Output::<T>::new(py, h.shape()));
        let mut dinitial = initial.as_ref().map(|i| Output::<T>::new(py, i.shape()));
        let (gs, gates, hs) = (grad.as_slice(), a.as_slice(), h.as_slice());
        let (starts, lasts) = (initial.as_ref().map(Input::as_slice), grad_last.as_ref().map(Input::as_slice));
        let grads = Grads {
            a: da.as_slice_mut(),
            x: dx.as_slice_mut(),
            initial: dinitial.as_mut().map(Output::as_slice_mut),
        };
        door::run(py, || T::linear_scan_backward(dims, &sequences, gates, hs, starts, gs, lasts, grads))?;
        Ok((da.into_any(), dx.into_any(), dinitial.map(Output::into_any)))
    })
}
