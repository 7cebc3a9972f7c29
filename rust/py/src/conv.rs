//! Causal convolutions across the boundary.

use crate::array::{InOut, Input, Output, by_dtype, optional};
use crate::door::{self, ArgumentError, DTypeError, ShapeError};
use crate::packing::sequences;
use numpy::{Element, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;
use sensorium_scan::ScanKernels;
use sensorium_scan::conv::{Dims, Grads, Inputs, Rows};

type Array<'py> = Bound<'py, PyAny>;
type Maybe<'py> = Option<Bound<'py, PyAny>>;

/// A borrowed array of three dimensions with contiguous rows.
struct Strided<'py, T: Element> {
    array: PyReadonlyArrayDyn<'py, T>,
    shape: [usize; 3],
    sample: usize,
    row: usize,
}

impl<'py, T: Element> Strided<'py, T> {
    fn new(name: &str, array: &Bound<'py, PyAny>) -> PyResult<Self> {
        let wrong = |what: &str| ArgumentError::new_err(format!("{name} {what}"));
        let array = array
            .cast::<PyArrayDyn<T>>()
            .map_err(|_| DTypeError::new_err(format!("{name} has another dtype than expected")))?;
        let shape: [usize; 3] = array.shape().try_into().map_err(|_| {
            ShapeError::new_err(format!("{name} has {} dimensions, expected 3", array.ndim()))
        })?;
        let mut strides = [0; 3];
        let empty = shape.contains(&0);
        for (axis, stride) in strides.iter_mut().enumerate() {
            // The distance along an axis of one element is never used, and may be anything.
            if shape[axis] > 1 && !empty {
                let bytes = usize::try_from(array.strides()[axis]).ok().filter(|b| b % size_of::<T>() == 0);
                *stride = bytes.map(|b| b / size_of::<T>()).ok_or_else(|| wrong("has odd strides"))?;
            }
        }
        if shape[2] > 1 && strides[2] != 1 && !empty {
            return Err(wrong("must be contiguous along its last axis"));
        }
        if !array.data().is_aligned() {
            return Err(wrong("must be aligned"));
        }
        let array = array.try_readonly().map_err(|_| wrong("is being written to"))?;
        Ok(Self { array, shape, sample: strides[0], row: strides[1] })
    }

    fn rows(&self) -> Rows<'_, T> {
        let [samples, rows, cols] = self.shape;
        let len = if samples * rows * cols == 0 {
            0
        } else {
            (samples - 1) * self.sample + (rows - 1) * self.row + cols
        };
        // SAFETY: NumPy vouches for the elements that shape and strides name, and those between them are of the
        // same memory; the borrow lasts as long as `self`.
        let data = unsafe { std::slice::from_raw_parts(self.array.data(), len) };
        Rows { data, sample: self.sample, row: self.row }
    }
}

fn dims(shape: [usize; 3], taps: usize, channels_last: bool) -> Dims {
    let [batch, rows, cols] = shape;
    let (width, length) = if channels_last { (cols, rows) } else { (rows, cols) };
    Dims { batch, width, length, taps, channels_last }
}

/// `(y, last_state)`; the latter is None unless asked for.
#[pyfunction]
pub(crate) fn causal_conv1d<'py>(
    py: Python<'py>,
    x: Array<'py>,
    weight: Array<'py>,
    bias: Maybe<'py>,
    initial: Maybe<'py>,
    seq_idx: Maybe<'py>,
    cu_seqlens: Maybe<'py>,
    silu: bool,
    channels_last: bool,
    keep_last: bool,
) -> PyResult<(Array<'py>, Maybe<'py>)> {
    by_dtype!(&weight, T => {
        let (x, weight) = (Strided::<T>::new("x", &x)?, Input::<T>::new("weight", &weight)?);
        let (bias, initial) = (optional::<T>("bias", bias.as_ref())?, optional::<T>("initial_state", initial.as_ref())?);
        let dims = dims(x.shape, weight.shape()[1], channels_last);
        let sequences = sequences(dims.batch, dims.length, seq_idx.as_ref(), cu_seqlens.as_ref())?;
        let mut y = Output::<T>::new(py, &x.shape);
        let state = [sequences.states(), dims.width, dims.taps.saturating_sub(1)];
        let mut last = keep_last.then(|| Output::<T>::new(py, &state));
        let inputs = Inputs {
            x: x.rows(),
            weight: weight.as_slice(),
            bias: bias.as_ref().map(Input::as_slice),
            initial: initial.as_ref().map(Input::as_slice),
            silu,
        };
        let (ys, lasts) = (y.as_slice_mut(), last.as_mut().map(Output::as_slice_mut));
        door::run(py, || T::conv_forward(dims, &sequences, inputs, ys, lasts))?;
        Ok((y.into_any(), last.map(Output::into_any)))
    })
}

/// `(dx, dweight, dbias, dinitial_state)`; the last two are None where there is no bias or initial state.
#[pyfunction]
pub(crate) fn causal_conv1d_backward<'py>(
    py: Python<'py>,
    grad: Array<'py>,
    x: Array<'py>,
    weight: Array<'py>,
    bias: Maybe<'py>,
    initial: Maybe<'py>,
    grad_last: Maybe<'py>,
    seq_idx: Maybe<'py>,
    cu_seqlens: Maybe<'py>,
    silu: bool,
    channels_last: bool,
) -> PyResult<(Array<'py>, Array<'py>, Maybe<'py>, Maybe<'py>)> {
    by_dtype!(&weight, T => {
        let grad = Input::<T>::new("grad_out", &grad)?;
        let (x, weight) = (Strided::<T>::new("x", &x)?, Input::<T>::new("weight", &weight)?);
        let (bias, initial) = (optional::<T>("bias", bias.as_ref())?, optional::<T>("initial_state", initial.as_ref())?);
        let grad_last = optional::<T>("grad_last_state", grad_last.as_ref())?;
        let dims = dims(x.shape, weight.shape()[1], channels_last);
        let sequences = sequences(dims.batch, dims.length, seq_idx.as_ref(), cu_seqlens.as_ref())?;
        let (mut dx, mut dweight) =
            (Output::<T>::new(py, &x.shape), Output::<T>::new(py, weight.shape()));
        let mut dbias = bias.as_ref().map(|b| Output::<T>::new(py, b.shape()));
        let mut dinitial = initial.as_ref().map(|i| Output::<T>::new(py, i.shape()));
        let inputs = Inputs {
            x: x.rows(),
            weight: weight.as_slice(),
            bias: bias.as_ref().map(Input::as_slice),
            initial: initial.as_ref().map(Input::as_slice),
            silu,
        };
        let (gs, lasts) = (grad.as_slice(), grad_last.as_ref().map(Input::as_slice));
        let grads = Grads {
            x: dx.as_slice_mut(),
            weight: dweight.as_slice_mut(),
            bias: dbias.as_mut().map(Output::as_slice_mut),
            initial: dinitial.as_mut().map(Output::as_slice_mut),
        };
        door::run(py, || T::conv_backward(dims, &sequences, inputs, gs, lasts, grads))?;
        let (dbias, dinitial) = (dbias.map(Output::into_any), dinitial.map(Output::into_any));
        Ok((dx.into_any(), dweight.into_any(), dbias, dinitial))
    })
}

/// `y`; moves `state` on by one input.
#[pyfunction]
pub(crate) fn causal_conv1d_update<'py>(
    py: Python<'py>,
    x: Array<'py>,
    state: Array<'py>,
    weight: Array<'py>,
    bias: Maybe<'py>,
    silu: bool,
) -> PyResult<Array<'py>> {
    by_dtype!(&weight, T => {
        let (x, weight) = (Input::<T>::new("x", &x)?, Input::<T>::new("weight", &weight)?);
        let (bias, mut state) = (optional::<T>("bias", bias.as_ref())?, InOut::<T>::new("state", &state)?);
        let mut y = Output::<T>::new(py, x.shape());
        let [batch, width] = [x.shape()[0], x.shape()[1]];
        let dims = Dims { batch, width, length: 1, taps: weight.shape()[1], channels_last: false };
        let (xs, ws, ss) = (x.as_slice(), weight.as_slice(), state.as_slice_mut());
        let (bs, ys) = (bias.as_ref().map(Input::as_slice), y.as_slice_mut());
        door::run(py, || T::conv_update(dims, xs, ss, ws, bs, silu, ys))?;
        Ok(y.into_any())
    })
}
