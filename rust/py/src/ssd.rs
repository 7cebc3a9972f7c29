//! Bindings of structured state-space duality. The Python layer has checked shapes; kernels check lengths again.

use crate::array::{InOut, Input, Output, by_dtype, optional, writable};
use crate::door::{self, ArgumentError, ShapeError};
use crate::packing::sequences;
use crate::tensor::{borrow, measure};
use numpy::{Element, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;
use sensorium_core::Float;
use sensorium_scan::ScanKernels;
use sensorium_scan::ssd::{self, Dims, Grads, Inputs, Rows, Steps, Token, Upstream};

type Array<'py> = Bound<'py, PyAny>;
type Maybe<'py> = Option<Bound<'py, PyAny>>;
/// `x`, `dt`, `A`, `B`, `C`.
type Five<'py> = (Array<'py>, Array<'py>, Array<'py>, Array<'py>, Array<'py>);
/// `D`, `z`, `dt_bias`, the initial states.
type Options<'py> = (Maybe<'py>, Maybe<'py>, Maybe<'py>, Maybe<'py>);
/// `dt_softplus`, and the limits of the step size.
type StepRow = (bool, f64, f64);
/// `seq_idx`, `cu_seqlens`, the chunk's size.
type Packing<'py> = (Maybe<'py>, Maybe<'py>, usize);

/// A borrowed array `(B, L, heads, width)` with rows anywhere.
struct Tensor<'py, T: Element> {
    array: PyReadonlyArrayDyn<'py, T>,
    shape: [usize; 4],
    strides: [usize; 3],
    span: usize,
}

impl<'py, T: Element + Float> Tensor<'py, T> {
    fn new(name: &str, array: &Array<'py>) -> PyResult<Self> {
        let array = borrow::<T>(name, array)?;
        let (shape, strides) = measure(name, array)?;
        let strides = [strides.batch, strides.head, strides.row];
        let span = if shape.contains(&0) {
            0
        } else {
            (0..3).map(|i| (shape[i] - 1) * strides[i]).sum::<usize>() + shape[3]
        };
        let array = array
            .try_readonly()
            .map_err(|_| ArgumentError::new_err(format!("{name} is being written to")))?;
        Ok(Self { array, shape, strides, span })
    }

    fn rows(&self, name: &'static str) -> PyResult<Rows<'_, T>> {
        let data = if self.span == 0 {
            &[][..]
        } else {
            // SAFETY: NumPy vouches for the elements that shape and strides name, which are all within the first and
            // last; memory between them may belong to other elements of the same allocation, and is not written
            // while the borrow lasts.
            unsafe { std::slice::from_raw_parts(self.array.data(), self.span) }
        };
        Rows::new(name, data, self.shape, self.strides).map_err(door::translate)
    }
}

/// What a scan reads, borrowed from Python.
struct Given<'py, T: Element> {
    x: Tensor<'py, T>,
    dt: Input<'py, T>,
    a: Input<'py, T>,
    b: Tensor<'py, T>,
    c: Tensor<'py, T>,
    skip: Option<Input<'py, T>>,
    gate: Option<Tensor<'py, T>>,
    bias: Option<Input<'py, T>>,
    initial: Option<Input<'py, T>>,
    steps: StepRow,
}

impl<'py, T: Element + Float> Given<'py, T> {
    fn new((x, dt, a, b, c): &Five<'py>, options: &Options<'py>, steps: StepRow) -> PyResult<Self> {
        let (skip, gate, bias, initial) = options;
        Ok(Self {
            x: Tensor::new("x", x)?,
            dt: Input::new("dt", dt)?,
            a: Input::new("A", a)?,
            b: Tensor::new("B", b)?,
            c: Tensor::new("C", c)?,
            skip: optional("D", skip.as_ref())?,
            gate: gate.as_ref().map(|z| Tensor::new("z", z)).transpose()?,
            bias: optional("dt_bias", bias.as_ref())?,
            initial: optional("initial_states", initial.as_ref())?,
            steps,
        })
    }

    fn dims(&self) -> PyResult<Dims> {
        let [batch, length, heads, width] = self.x.shape;
        let dims = Dims { batch, length, heads, width, groups: self.b.shape[2], state: self.b.shape[3] };
        let same = |name: &str, shape: [usize; 4], want: [usize; 4]| {
            if shape == want { Ok(()) } else { Err(wrong(name, &shape, &want)) }
        };
        same("B", self.b.shape, dims.inner())?;
        same("C", self.c.shape, dims.inner())?;
        if let Some(gate) = &self.gate {
            same("z", gate.shape, dims.tokens())?;
        }
        Ok(dims)
    }

    fn inputs(&self) -> PyResult<Inputs<'_, T>> {
        let (softplus, least, most) = self.steps;
        Ok(Inputs {
            x: self.x.rows("x")?,
            steps: Steps {
                dt: self.dt.as_slice(),
                bias: self.bias.as_ref().map(Input::as_slice),
                softplus,
                limit: (T::from_f64(least), T::from_f64(most)),
            },
            a: self.a.as_slice(),
            b: self.b.rows("B")?,
            c: self.c.rows("C")?,
            skip: self.skip.as_ref().map(Input::as_slice),
            gate: self.gate.as_ref().map(|z| z.rows("z")).transpose()?,
            initial: self.initial.as_ref().map(Input::as_slice),
        })
    }
}

fn wrong(name: &str, shape: &[usize], want: &[usize]) -> PyErr {
    ShapeError::new_err(format!("{name} has shape {shape:?}, expected {want:?}"))
}

/// Writes `out`, and the states that sequences leave to `last`; returns the states that backward starts over from
/// where they are wanted.
#[pyfunction]
pub(crate) fn ssd_forward<'py>(
    py: Python<'py>,
    five: Five<'py>,
    options: Options<'py>,
    steps: StepRow,
    packing: Packing<'py>,
    out: Array<'py>,
    last: Maybe<'py>,
    keep: bool,
) -> PyResult<Maybe<'py>> {
    by_dtype!(&five.0, T => {
        let given = Given::<T>::new(&five, &options, steps)?;
        let dims = given.dims()?;
        let sequences = sequences(dims.batch, dims.length, packing.0.as_ref(), packing.1.as_ref())?;
        let chunk = packing.2;
        let mut out = InOut::<T>::new("out", &out)?;
        let mut last = writable::<T>("final_states", last.as_ref())?;
        let kept = keep.then(|| ssd::checkpoints(dims, &sequences, chunk)).transpose();
        let mut kept = kept.map_err(door::translate)?.map(|n| Output::<T>::new(py, &[n]));
        let inputs = given.inputs()?;
        let (y, last) = (out.as_slice_mut(), last.as_mut().map(InOut::as_slice_mut));
        let states = kept.as_mut().map(Output::as_slice_mut);
        door::run(py, || T::ssd_forward(dims, &sequences, chunk, &inputs, y, last, states))?;
        Ok(kept.map(Output::into_any))
    })
}

/// Gradients by `x`, `dt`, `A`, `B`, `C`, and by `D`, `z`, `dt_bias` and the initial states where there are any.
type AllGrads<'py> = (
    Array<'py>,
    Array<'py>,
    Array<'py>,
    Array<'py>,
    Array<'py>,
    Maybe<'py>,
    Maybe<'py>,
    Maybe<'py>,
    Maybe<'py>,
);

/// The gradients of what [`ssd_forward`] writes, given those of `out` and, maybe, of the last states.
#[pyfunction]
pub(crate) fn ssd_backward<'py>(
    py: Python<'py>,
    grad_out: Array<'py>,
    grad_last: Maybe<'py>,
    five: Five<'py>,
    options: Options<'py>,
    steps: StepRow,
    packing: Packing<'py>,
    kept: Maybe<'py>,
) -> PyResult<AllGrads<'py>> {
    by_dtype!(&five.0, T => {
        let given = Given::<T>::new(&five, &options, steps)?;
        let dims = given.dims()?;
        let sequences = sequences(dims.batch, dims.length, packing.0.as_ref(), packing.1.as_ref())?;
        let grad_out = Tensor::<T>::new("grad_out", &grad_out)?;
        if grad_out.shape != dims.tokens() {
            return Err(wrong("grad_out", &grad_out.shape, &dims.tokens()));
        }
        let grad_last = optional::<T>("grad_final_states", grad_last.as_ref())?;
        let kept = optional::<T>("checkpoints", kept.as_ref())?;
        let inputs = given.inputs()?;
        let fresh = |shape: &[usize]| Output::<T>::new(py, shape);
        let mut x = fresh(&dims.tokens());
        let (mut dt, mut a) = (fresh(given.dt.shape()), fresh(given.a.shape()));
        let (mut b, mut c) = (fresh(&dims.inner()), fresh(&dims.inner()));
        let mut skip = given.skip.as_ref().map(|d| fresh(d.shape()));
        let mut gate = given.gate.as_ref().map(|_| fresh(&dims.tokens()));
        let mut bias = given.bias.as_ref().map(|bias| fresh(bias.shape()));
        let mut initial = given.initial.as_ref().map(|initial| fresh(initial.shape()));
        let grads = Grads {
            x: x.as_slice_mut(),
            dt: dt.as_slice_mut(),
            a: a.as_slice_mut(),
            b: b.as_slice_mut(),
            c: c.as_slice_mut(),
            skip: skip.as_mut().map(Output::as_slice_mut),
            gate: gate.as_mut().map(Output::as_slice_mut),
            bias: bias.as_mut().map(Output::as_slice_mut),
            initial: initial.as_mut().map(Output::as_slice_mut),
        };
        let upstream = Upstream {
            y: grad_out.rows("grad_out")?,
            last: grad_last.as_ref().map(Input::as_slice),
            checkpoints: kept.as_ref().map(Input::as_slice),
        };
        door::run(py, || T::ssd_backward(dims, &sequences, packing.2, &inputs, upstream, grads))?;
        let any = |output: Option<Output<'py, T>>| output.map(Output::into_any);
        let five = (x.into_any(), dt.into_any(), a.into_any(), b.into_any(), c.into_any());
        Ok((five.0, five.1, five.2, five.3, five.4, any(skip), any(gate), any(bias), any(initial)))
    })
}

/// One token: updates `state (B, H, P, S)` and returns `y (B, H, P)`.
#[pyfunction]
pub(crate) fn ssd_step<'py>(
    py: Python<'py>,
    state: Array<'py>,
    five: Five<'py>,
    skip: Maybe<'py>,
    gate: Maybe<'py>,
    bias: Maybe<'py>,
    steps: StepRow,
) -> PyResult<Array<'py>> {
    by_dtype!(&state, T => {
        let shape = |array: &Array<'py>| -> PyResult<Vec<usize>> {
            Ok(borrow::<T>("state", array)?.shape().to_vec())
        };
        let (x, dt, a) = (Input::<T>::new("x", &five.0)?, Input::<T>::new("dt", &five.1)?, Input::<T>::new("A", &five.2)?);
        let (b, c) = (Input::<T>::new("B", &five.3)?, Input::<T>::new("C", &five.4)?);
        let (skip, gate) = (optional::<T>("D", skip.as_ref())?, optional::<T>("z", gate.as_ref())?);
        let bias = optional::<T>("dt_bias", bias.as_ref())?;
        let sizes: [usize; 4] = shape(&state)?
            .try_into()
            .map_err(|s: Vec<usize>| ShapeError::new_err(format!("state has shape {s:?}, expected (B, H, P, S)")))?;
        let &[_, groups, _] = b.shape() else { return Err(wrong("B", b.shape(), &[sizes[0], 1, sizes[3]])) };
        let dims = Dims { batch: sizes[0], length: 1, heads: sizes[1], width: sizes[2], groups, state: sizes[3] };
        let mut state = InOut::<T>::new("state", &state)?;
        let mut y = Output::<T>::new(py, x.shape());
        let token = Token {
            x: x.as_slice(),
            steps: Steps {
                dt: dt.as_slice(),
                bias: bias.as_ref().map(Input::as_slice),
                softplus: steps.0,
                limit: (T::from_f64(steps.1), T::from_f64(steps.2)),
            },
            a: a.as_slice(),
            b: b.as_slice(),
            c: c.as_slice(),
            skip: skip.as_ref().map(Input::as_slice),
            gate: gate.as_ref().map(Input::as_slice),
        };
        let (state, out) = (state.as_slice_mut(), y.as_slice_mut());
        door::run(py, || T::ssd_step(dims, &token, state, out))?;
        Ok(y.into_any())
    })
}
