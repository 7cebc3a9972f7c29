//! The selective scan across the boundary. The Python layer has checked shapes; kernels check them again.

use crate::array::{InOut, Input, Output, by_dtype, optional};
use crate::door::{self, ArgumentError, ShapeError};
use crate::packing::sequences;
use crate::tensor::borrow;
use numpy::{
    Element, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn, PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use sensorium_core::Float;
use sensorium_scan::selective::{
    CoefficientGradient, Coefficients, Dims, Gradients, Inputs, Outputs, Shape, Step, Strides, View, ViewMut,
};
use sensorium_scan::{ScanKernels, Sequences, selective};

type Array<'py> = Bound<'py, PyAny>;
type Maybe<'py> = Option<Bound<'py, PyAny>>;

/// Which axis of an array holds rows, groups, tokens and features; `None` where there is one group.
type Axes = [Option<usize>; 4];

/// Axes of `(B, D, L)` or `(B, L, D)`, and of `(B, G, S, L)` or `(B, L, G, S)`, with or without groups.
fn axes(name: &str, dimensions: usize, channels_last: bool) -> PyResult<Axes> {
    match (dimensions, channels_last) {
        (3, false) => Ok([Some(0), None, Some(2), Some(1)]),
        (3, true) => Ok([Some(0), None, Some(1), Some(2)]),
        (4, false) => Ok([Some(0), Some(1), Some(3), Some(2)]),
        (4, true) => Ok([Some(0), Some(2), Some(1), Some(3)]),
        _ => Err(ShapeError::new_err(format!("{name} has {dimensions} dimensions, expected 3 or 4"))),
    }
}

/// Shape and distances in elements.
fn measure<T: Element>(
    name: &str,
    array: &Bound<'_, PyArrayDyn<T>>,
    axes: Axes,
) -> PyResult<(Shape, Strides)> {
    let (mut shape, mut strides) = ([1; 4], [0; 4]);
    let empty = array.shape().contains(&0);
    for (i, axis) in axes.into_iter().enumerate() {
        let Some(axis) = axis else { continue };
        shape[i] = array.shape()[axis];
        // The distance along an axis of one element is never used, and may be anything.
        if shape[i] > 1 && !empty {
            let bytes = usize::try_from(array.strides()[axis]).ok().filter(|b| b % size_of::<T>() == 0);
            strides[i] = bytes.map(|b| b / size_of::<T>()).ok_or_else(|| {
                ArgumentError::new_err(format!("{name} has strides that are no whole elements"))
            })?;
        }
    }
    if !array.data().is_aligned() {
        return Err(ArgumentError::new_err(format!("{name} must be aligned")));
    }
    let [batch, group, token, feature] = strides;
    Ok((shape, Strides { batch, group, token, feature }))
}

/// A borrowed array over tokens to read.
struct Tokens<'py, T: Element> {
    array: PyReadonlyArrayDyn<'py, T>,
    shape: Shape,
    strides: Strides,
}

impl<'py, T: Element + Float> Tokens<'py, T> {
    fn new(name: &str, array: &Array<'py>, channels_last: bool) -> PyResult<Self> {
        let array = borrow::<T>(name, array)?;
        let (shape, strides) = measure(name, array, axes(name, array.ndim(), channels_last)?)?;
        let array = array
            .try_readonly()
            .map_err(|_| ArgumentError::new_err(format!("{name} is being written to")))?;
        Ok(Self { array, shape, strides })
    }
    fn view(&self) -> View<'_, T> {
        // SAFETY: NumPy vouches for the elements that shape and strides name; the borrow lasts as long as `self`.
        unsafe { View::from_raw(self.array.data().cast(), self.shape, self.strides) }
    }
}

/// A borrowed array over tokens to write.
struct TokensMut<'py, T: Element> {
    array: PyReadwriteArrayDyn<'py, T>,
    shape: Shape,
    strides: Strides,
}

impl<'py, T: Element + Float> TokensMut<'py, T> {
    fn new(name: &str, array: &Array<'py>, channels_last: bool) -> PyResult<Self> {
        let array = borrow::<T>(name, array)?;
        let (shape, strides) = measure(name, array, axes(name, array.ndim(), channels_last)?)?;
        if !strides.injective(shape) {
            return Err(ArgumentError::new_err(format!("{name} has elements that share memory")));
        }
        let array = array.try_readwrite().map_err(|_| {
            ArgumentError::new_err(format!(
                "{name} must be writeable and share memory with no other argument"
            ))
        })?;
        Ok(Self { array, shape, strides })
    }
    fn view(&mut self) -> ViewMut<'_, T> {
        // SAFETY: as for `Tokens`; NumPy's borrow is exclusive, and `new` saw that elements are apart.
        unsafe { ViewMut::from_raw(self.array.data().cast(), self.shape, self.strides) }
    }
}

/// `B` or `C`: `(D, S)`, or over tokens.
enum Coefficient<'py, T: Element> {
    Constant(Input<'py, T>),
    Varying(Tokens<'py, T>),
}

impl<'py, T: Element + Float> Coefficient<'py, T> {
    fn new(name: &str, array: &Array<'py>, channels_last: bool) -> PyResult<Self> {
        if borrow::<T>(name, array)?.ndim() == 2 {
            Ok(Self::Constant(Input::new(name, array)?))
        } else {
            Ok(Self::Varying(Tokens::new(name, array, channels_last)?))
        }
    }
    fn get(&self) -> Coefficients<'_, T> {
        match self {
            Self::Constant(data) => Coefficients::Constant(data.as_slice()),
            Self::Varying(tokens) => Coefficients::Varying(tokens.view()),
        }
    }
    fn groups(&self) -> Option<usize> {
        match self {
            Self::Constant(_) => None,
            Self::Varying(tokens) => Some(tokens.shape[1]),
        }
    }
}

/// All that a scan reads, borrowed.
struct Arguments<'py, T: Element> {
    u: Tokens<'py, T>,
    delta: Tokens<'py, T>,
    a: Input<'py, T>,
    b: Coefficient<'py, T>,
    c: Coefficient<'py, T>,
    d: Option<Input<'py, T>>,
    z: Option<Tokens<'py, T>>,
    delta_bias: Option<Input<'py, T>>,
    softplus: bool,
    initial: Option<Input<'py, T>>,
    sequences: Sequences,
}

/// `u, delta, A, B, C`, then `D, z, delta_bias, initial_state`, then `seq_idx, cu_seqlens`, then whether `delta` goes
/// through a softplus, and whether channels come last.
type Given<'py> = ([Array<'py>; 5], [Maybe<'py>; 4], [Maybe<'py>; 2], (bool, bool));

impl<'py, T: Element + Float> Arguments<'py, T> {
    fn new(given: &Given<'py>) -> PyResult<Self> {
        let ([u, delta, a, b, c], [d, z, delta_bias, initial], packing, (softplus, last)) = given;
        let u = Tokens::<T>::new("u", u, *last)?;
        let sequences = sequences(u.shape[0], u.shape[2], packing[0].as_ref(), packing[1].as_ref())?;
        Ok(Self {
            delta: Tokens::new("delta", delta, *last)?,
            a: Input::new("A", a)?,
            b: Coefficient::new("B", b, *last)?,
            c: Coefficient::new("C", c, *last)?,
            d: optional("D", d.as_ref())?,
            z: z.as_ref().map(|z| Tokens::new("z", z, *last)).transpose()?,
            delta_bias: optional("delta_bias", delta_bias.as_ref())?,
            softplus: *softplus,
            initial: optional("initial_state", initial.as_ref())?,
            sequences,
            u,
        })
    }
    fn dims(&self) -> Dims {
        let [batch, _, length, channels] = self.u.shape;
        let groups = self.b.groups().or(self.c.groups()).unwrap_or(1);
        let states = self.a.shape().get(1).copied().unwrap_or(0);
        Dims { batch, channels, length, states, groups }
    }
    fn state_shape(&self) -> [usize; 3] {
        let dims = self.dims();
        [self.sequences.states(), dims.channels, dims.states]
    }
    fn checkpoint_shape(&self) -> [usize; 3] {
        let dims = self.dims();
        [selective::checkpoints(&self.sequences), dims.states, dims.channels]
    }
    fn inputs(&self) -> Inputs<'_, T> {
        Inputs {
            u: self.u.view(),
            delta: self.delta.view(),
            a: self.a.as_slice(),
            b: self.b.get(),
            c: self.c.get(),
            d: self.d.as_ref().map(Input::as_slice),
            z: self.z.as_ref().map(Tokens::view),
            delta_bias: self.delta_bias.as_ref().map(Input::as_slice),
            softplus: self.softplus,
            initial: self.initial.as_ref().map(Input::as_slice),
        }
    }
}

/// Writes `y`; returns the last states and the checkpoints, where they are wanted.
#[pyfunction]
pub(crate) fn selective_scan<'py>(
    py: Python<'py>,
    given: Given<'py>,
    y: &Array<'py>,
    want: (bool, bool),
) -> PyResult<(Maybe<'py>, Maybe<'py>)> {
    by_dtype!(&given.0[0], T => {
        let arguments = Arguments::<T>::new(&given)?;
        let mut y = TokensMut::<T>::new("out", y, given.3.1)?;
        let mut last = want.0.then(|| Output::<T>::new(py, &arguments.state_shape()));
        let mut checkpoints = want.1.then(|| Output::<T>::new(py, &arguments.checkpoint_shape()));
        let outputs = Outputs {
            y: Some(y.view()),
            last: last.as_mut().map(Output::as_slice_mut),
            checkpoints: checkpoints.as_mut().map(Output::as_slice_mut),
        };
        let (dims, inputs, sequences) = (arguments.dims(), arguments.inputs(), &arguments.sequences);
        door::run(py, || T::selective_forward(dims, sequences, &inputs, outputs))?;
        Ok((last.map(Output::into_any), checkpoints.map(Output::into_any)))
    })
}

/// An array of the shape of another.
fn shaped_like<'py, T: Element + Float>(name: &str, array: &Array<'py>) -> PyResult<Output<'py, T>> {
    Ok(Output::new(array.py(), borrow::<T>(name, array)?.shape()))
}

/// A new array as a tensor over tokens.
fn over_tokens<'a, T: Element + Float>(
    name: &'static str,
    array: &'a mut Output<'_, T>,
    shape: Shape,
    channels_last: bool,
) -> PyResult<ViewMut<'a, T>> {
    let strides = if channels_last { Strides::channels_last(shape) } else { Strides::channels_first(shape) };
    ViewMut::new(name, array.as_slice_mut(), shape, strides).map_err(door::translate)
}

/// A new array as the gradient of a coefficient.
fn over_coefficients<'a, T: Element + Float>(
    name: &'static str,
    array: &'a mut Output<'_, T>,
    of: &Coefficients<'_, T>,
    dims: Dims,
    channels_last: bool,
) -> PyResult<CoefficientGradient<'a, T>> {
    Ok(match of {
        Coefficients::Constant(_) => CoefficientGradient::Constant(array.as_slice_mut()),
        Coefficients::Varying(_) => {
            CoefficientGradient::Varying(over_tokens(name, array, dims.coefficients(), channels_last)?)
        }
    })
}

/// Gradients of `u, delta, A, B, C, D, z, delta_bias, initial_state`.
#[pyfunction]
pub(crate) fn selective_scan_backward<'py>(
    py: Python<'py>,
    grad: &Array<'py>,
    given: Given<'py>,
    grad_last: Maybe<'py>,
    checkpoints: Maybe<'py>,
) -> PyResult<([Array<'py>; 5], [Maybe<'py>; 4])> {
    by_dtype!(&given.0[0], T => {
        let arguments = Arguments::<T>::new(&given)?;
        let last = given.3.1;
        let grad = Tokens::<T>::new("grad_out", grad, last)?;
        let grad_last = optional::<T>("grad_last_state", grad_last.as_ref())?;
        let checkpoints = optional::<T>("checkpoints", checkpoints.as_ref())?;
        let (dims, inputs) = (arguments.dims(), arguments.inputs());
        let [mut u, mut delta, mut a, mut b, mut c] = [
            shaped_like::<T>("u", &given.0[0])?,
            shaped_like::<T>("delta", &given.0[1])?,
            shaped_like::<T>("A", &given.0[2])?,
            shaped_like::<T>("B", &given.0[3])?,
            shaped_like::<T>("C", &given.0[4])?,
        ];
        let channels = [dims.channels];
        let mut d = inputs.d.map(|_| Output::<T>::new(py, &channels));
        let mut z = inputs.z.map(|_| shaped_like::<T>("u", &given.0[0])).transpose()?;
        let mut delta_bias = inputs.delta_bias.map(|_| Output::<T>::new(py, &channels));
        let mut initial = inputs.initial.map(|_| Output::<T>::new(py, &arguments.state_shape()));
        let gradients = Gradients {
            u: over_tokens("grad_u", &mut u, dims.inputs(), last)?,
            delta: over_tokens("grad_delta", &mut delta, dims.inputs(), last)?,
            a: a.as_slice_mut(),
            b: over_coefficients("grad_B", &mut b, &inputs.b, dims, last)?,
            c: over_coefficients("grad_C", &mut c, &inputs.c, dims, last)?,
            d: d.as_mut().map(Output::as_slice_mut),
            z: z.as_mut().map(|z| over_tokens("grad_z", z, dims.inputs(), last)).transpose()?,
            delta_bias: delta_bias.as_mut().map(Output::as_slice_mut),
            initial: initial.as_mut().map(Output::as_slice_mut),
        };
        let (of_last, kept) = (grad_last.as_ref().map(Input::as_slice), checkpoints.as_ref().map(Input::as_slice));
        let (sequences, grad) = (&arguments.sequences, grad.view());
        door::run(py, || T::selective_backward(dims, sequences, &inputs, grad, of_last, kept, gradients))?;
        Ok((
            [u, delta, a, b, c].map(Output::into_any),
            [d, z, delta_bias, initial].map(|gradient| gradient.map(Output::into_any)),
        ))
    })
}

/// Takes the states `(B, D, S)` one token further, in place; returns `y (B, D)`.
#[pyfunction]
pub(crate) fn selective_state_update<'py>(
    py: Python<'py>,
    state: &Array<'py>,
    tensors: [Array<'py>; 5],
    optionals: [Maybe<'py>; 3],
    softplus: bool,
) -> PyResult<Array<'py>> {
    by_dtype!(state, T => {
        let [x, delta, a, b, c] = &tensors;
        let (x, delta, a) = (Input::<T>::new("x", x)?, Input::<T>::new("dt", delta)?, Input::<T>::new("A", a)?);
        let (b, c) = (Input::<T>::new("B", b)?, Input::<T>::new("C", c)?);
        let [d, z, delta_bias] = &optionals;
        let (d, z) = (optional::<T>("D", d.as_ref())?, optional::<T>("z", z.as_ref())?);
        let delta_bias = optional::<T>("dt_bias", delta_bias.as_ref())?;
        let mut state = InOut::<T>::new("state", state)?;
        let &[batch, channels] = x.shape() else {
            return Err(ShapeError::new_err("x must have two dimensions, (B, D)"));
        };
        let states = a.shape().get(1).copied().unwrap_or(0);
        let groups = if b.shape().len() == 3 { b.shape()[1] } else { 1 };
        let mut y = Output::<T>::new(py, x.shape());
        let inputs = Step {
            x: x.as_slice(),
            delta: delta.as_slice(),
            a: a.as_slice(),
            b: b.as_slice(),
            c: c.as_slice(),
            d: d.as_ref().map(Input::as_slice),
            z: z.as_ref().map(Input::as_slice),
            delta_bias: delta_bias.as_ref().map(Input::as_slice),
            softplus,
        };
        let dims = Dims { batch, channels, length: 1, states, groups };
        let (state, out) = (state.as_slice_mut(), y.as_slice_mut());
        door::run(py, || T::selective_step(dims, state, &inputs, out))?;
        Ok(y.into_any())
    })
}
