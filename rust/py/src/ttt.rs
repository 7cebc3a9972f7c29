//! Test-time-training layers across the boundary.

use crate::array::{InOut, Input, Output, by_dtype, optional};
use crate::door::{self, ArgumentError};
use crate::tensor::{borrow, measure};
use numpy::{Element, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn};
use pyo3::prelude::*;
use sensorium_core::Float;
use sensorium_scan::ScanKernels;
use sensorium_scan::ttt::{self, Dims, Grads, Inputs, State, StateMut, View, ViewMut};

type Array<'py> = Bound<'py, PyAny>;
/// Weights `W, b` or `W1, b1, W2, b2`, and sums in the same order.
type Parts<'py> = (Vec<Array<'py>>, Vec<Array<'py>>);

/// An array `(B, H, L, D)` with any distance between rows, to read.
struct Rows<'py, T: Element> {
    array: PyReadonlyArrayDyn<'py, T>,
    shape: [usize; 4],
    strides: ttt::Strides,
}

impl<'py, T: Element> Rows<'py, T> {
    fn new(name: &str, array: &Array<'py>) -> PyResult<Self> {
        let array = borrow::<T>(name, array)?;
        let (shape, strides) = measure(name, array)?;
        let array = array
            .try_readonly()
            .map_err(|_| ArgumentError::new_err(format!("{name} is being written to")))?;
        Ok(Self { array, shape, strides: [strides.batch, strides.head, strides.row] })
    }
    fn view(&self) -> View<'_, T> {
        // SAFETY: NumPy vouches for the elements that shape and strides name; the borrow lasts as long as `self`.
        unsafe { View::from_raw(self.array.data(), self.shape, self.strides) }
    }
}

/// The same to write.
struct RowsMut<'py, T: Element> {
    array: PyReadwriteArrayDyn<'py, T>,
    shape: [usize; 4],
    strides: ttt::Strides,
}

impl<'py, T: Element> RowsMut<'py, T> {
    fn new(name: &str, array: &Array<'py>) -> PyResult<Self> {
        let array = borrow::<T>(name, array)?;
        let (shape, strides) = measure(name, array)?;
        if !strides.injective(shape) {
            return Err(ArgumentError::new_err(format!("{name} has elements that share memory")));
        }
        let array = array.try_readwrite().map_err(|_| {
            ArgumentError::new_err(format!(
                "{name} must be writeable and share memory with no other argument"
            ))
        })?;
        Ok(Self { array, shape, strides: [strides.batch, strides.head, strides.row] })
    }
    fn view(&mut self) -> ViewMut<'_, T> {
        // SAFETY: as for `Rows`; NumPy's borrow is exclusive, and `new` saw that elements are apart.
        unsafe { ViewMut::from_raw(self.array.data(), self.shape, self.strides) }
    }
}

fn inputs<'py, T: Element>(name: &str, arrays: &[Array<'py>]) -> PyResult<Vec<Input<'py, T>>> {
    arrays.iter().map(|array| Input::new(name, array)).collect()
}

fn in_outs<'py, T: Element>(name: &str, arrays: &[Array<'py>]) -> PyResult<Vec<InOut<'py, T>>> {
    arrays.iter().map(|array| InOut::new(name, array)).collect()
}

fn slices<'a, T: Element>(arrays: &'a [Input<'_, T>]) -> Vec<&'a [T]> {
    arrays.iter().map(Input::as_slice).collect()
}

/// What both passes take: everything but the arrays that they write.
#[derive(FromPyObject)]
pub(crate) struct Call<'py> {
    q: Array<'py>,
    k: Array<'py>,
    v: Array<'py>,
    eta: Array<'py>,
    weights: Vec<Array<'py>>,
    norm_weight: Array<'py>,
    norm_bias: Array<'py>,
    token_scale: Option<Array<'py>>,
    mini_batch_size: usize,
    eps: f64,
    initial: Option<Parts<'py>>,
    position: usize,
}

/// Borrows of a call's arrays.
struct Borrowed<'py, T: Element> {
    rows: [Rows<'py, T>; 3],
    eta: Input<'py, T>,
    weights: Vec<Input<'py, T>>,
    norm: [Input<'py, T>; 2],
    token_scale: Option<Input<'py, T>>,
    initial: Option<[Vec<Input<'py, T>>; 2]>,
}

impl<'py, T: Element> Borrowed<'py, T> {
    fn new(call: &Call<'py>) -> PyResult<Self> {
        let initial = match &call.initial {
            Some((weights, sums)) => {
                Some([inputs::<T>("initial_state", weights)?, inputs::<T>("initial_state", sums)?])
            }
            None => None,
        };
        Ok(Self {
            rows: [Rows::new("q", &call.q)?, Rows::new("k", &call.k)?, Rows::new("v", &call.v)?],
            eta: Input::new("eta", &call.eta)?,
            weights: inputs("W", &call.weights)?,
            norm: [Input::new("norm_weight", &call.norm_weight)?, Input::new("norm_bias", &call.norm_bias)?],
            token_scale: optional("token_scale", call.token_scale.as_ref())?,
            initial,
        })
    }

    fn dims(&self) -> Dims {
        let [batch, heads, length, width] = self.rows[0].shape;
        // Of `W1, b1, W2, b2`, the second is as wide as the hidden layer.
        let hidden = (self.weights.len() == 4).then(|| self.weights[1].shape().last().copied().unwrap_or(0));
        Dims { batch, heads, length, width, hidden }
    }
}

/// The kernel's view of a call; `$weights` and `$initial` outlive it.
macro_rules! kernel_inputs {
    ($call:expr, $borrowed:expr, $T:ty, $weights:ident, $initial:ident) => {{
        let [q, k, v] = &$borrowed.rows;
        Inputs {
            dims: $borrowed.dims(),
            mini_batch: $call.mini_batch_size,
            eps: <$T>::from_f64($call.eps),
            token_scale: $borrowed.token_scale.as_ref().map(Input::as_slice),
            q: q.view(),
            k: k.view(),
            v: v.view(),
            eta: $borrowed.eta.as_slice(),
            weights: &$weights,
            norm_weight: $borrowed.norm[0].as_slice(),
            norm_bias: $borrowed.norm[1].as_slice(),
            initial: $initial.as_ref().map(|[weights, sums]| State { weights, sums }),
            position: $call.position,
        }
    }};
}

/// Writes `y`; a `state` is read instead of the initial one, and updated. Returns the position after the call and,
/// with `keep`, checkpoints.
#[pyfunction]
pub(crate) fn ttt_forward<'py>(
    py: Python<'py>,
    call: Call<'py>,
    y: Array<'py>,
    state: Option<Parts<'py>>,
    keep: bool,
) -> PyResult<(usize, Option<Array<'py>>)> {
    by_dtype!(&call.q, T => {
        let borrowed = Borrowed::<T>::new(&call)?;
        let mut y = RowsMut::<T>::new("y", &y)?;
        let mut state = match &state {
            Some((weights, sums)) => Some([in_outs::<T>("state", weights)?, in_outs::<T>("state", sums)?]),
            None => None,
        };
        let dims = borrowed.dims();
        let len = ttt::checkpoints::<T>(dims, call.mini_batch_size, call.position).map_err(door::translate)?;
        let mut kept = keep.then(|| Output::<T>::new(py, &[len]));
        let weights = slices(&borrowed.weights);
        let initial = borrowed.initial.as_ref().map(|parts| parts.each_ref().map(|part| slices(part)));
        let inputs = kernel_inputs!(call, borrowed, T, weights, initial);
        let y = y.view();
        let state = state.as_mut().map(|[weights, sums]| StateMut {
            weights: weights.iter_mut().map(InOut::as_slice_mut).collect(),
            sums: sums.iter_mut().map(InOut::as_slice_mut).collect(),
        });
        let checkpoints = kept.as_mut().map(Output::as_slice_mut);
        let position = door::run(py, || T::ttt_forward(inputs, y, state, checkpoints))?;
        Ok((position, kept.map(Output::into_any)))
    })
}

/// Writes `dq`, `dk` and `dv`. Returns the gradients of `eta`, `norm_weight`, `norm_bias` and `token_scale`, and of the
/// state that the rows began from.
#[pyfunction]
pub(crate) fn ttt_backward<'py>(
    py: Python<'py>,
    call: Call<'py>,
    grad_out: Array<'py>,
    grad_last: Option<Parts<'py>>,
    checkpoints: Option<Array<'py>>,
    grads: [Array<'py>; 3],
) -> PyResult<([Array<'py>; 3], Option<Array<'py>>, Parts<'py>)> {
    by_dtype!(&call.q, T => {
        let borrowed = Borrowed::<T>::new(&call)?;
        let grad = Rows::<T>::new("grad_out", &grad_out)?;
        let grad_last = match &grad_last {
            Some((weights, sums)) => {
                Some([inputs::<T>("grad_last_state", weights)?, inputs::<T>("grad_last_state", sums)?])
            }
            None => None,
        };
        let checkpoints = optional::<T>("checkpoints", checkpoints.as_ref())?;
        let mut rows = [
            RowsMut::<T>::new("dq", &grads[0])?,
            RowsMut::<T>::new("dk", &grads[1])?,
            RowsMut::<T>::new("dv", &grads[2])?,
        ];
        let dims = borrowed.dims();
        let mut small = [
            Output::<T>::new(py, borrowed.eta.shape()),
            Output::<T>::new(py, borrowed.norm[0].shape()),
            Output::<T>::new(py, borrowed.norm[1].shape()),
        ];
        let mut scale = borrowed.token_scale.as_ref().map(|scale| Output::<T>::new(py, scale.shape()));
        let part = |weights: &Input<'py, T>| {
            let shape: Vec<usize> = std::iter::once(dims.batch).chain(weights.shape().iter().copied()).collect();
            Output::<T>::new(py, &shape)
        };
        let mut dweights: Vec<_> = borrowed.weights.iter().map(part).collect();
        let mut dsums: Vec<_> = borrowed.weights.iter().map(part).collect();
        let weights = slices(&borrowed.weights);
        let initial = borrowed.initial.as_ref().map(|parts| parts.each_ref().map(|part| slices(part)));
        let inputs = kernel_inputs!(call, borrowed, T, weights, initial);
        let [q, k, v] = &mut rows;
        let [eta, norm_weight, norm_bias] = &mut small;
        let out = Grads {
            q: q.view(),
            k: k.view(),
            v: v.view(),
            eta: eta.as_slice_mut(),
            norm_weight: norm_weight.as_slice_mut(),
            norm_bias: norm_bias.as_slice_mut(),
            token_scale: scale.as_mut().map(Output::as_slice_mut),
            initial: StateMut {
                weights: dweights.iter_mut().map(Output::as_slice_mut).collect(),
                sums: dsums.iter_mut().map(Output::as_slice_mut).collect(),
            },
        };
        let last = grad_last.as_ref().map(|parts| parts.each_ref().map(|part| slices(part)));
        let last = last.as_ref().map(|[weights, sums]| State { weights, sums });
        let (grad, checkpoints) = (grad.view(), checkpoints.as_ref().map(Input::as_slice));
        door::run(py, || T::ttt_backward(inputs, &grad, last, checkpoints, out))?;
        let any = |parts: Vec<Output<'py, T>>| parts.into_iter().map(Output::into_any).collect();
        Ok((small.map(Output::into_any), scale.map(Output::into_any), (any(dweights), any(dsums))))
    })
}
