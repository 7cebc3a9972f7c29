//! Arrays across the boundary. The Python layer has made them contiguous, native-endian `float32` or `float64`.

use crate::door::{ArgumentError, DTypeError};
use numpy::{
    Element, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn, PyUntypedArrayMethods,
};
use pyo3::prelude::*;

/// A contiguous array to read.
pub(crate) struct Input<'py, T: Element>(PyReadonlyArrayDyn<'py, T>);

impl<'py, T: Element> Input<'py, T> {
    /// Borrows `array`.
    pub(crate) fn new(name: &str, array: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = array.cast::<PyArrayDyn<T>>().map_err(|_| wrong_dtype::<T>(name, array))?;
        if !array.is_c_contiguous() {
            return Err(ArgumentError::new_err(format!("{name} must be C-contiguous")));
        }
        array
            .try_readonly()
            .map(Self)
            .map_err(|_| ArgumentError::new_err(format!("{name} is being written to")))
    }
    /// Its elements.
    pub(crate) fn as_slice(&self) -> &[T] {
        self.0.as_slice().expect("contiguous since `new`")
    }
    /// Its shape.
    pub(crate) fn shape(&self) -> &[usize] {
        self.0.shape()
    }
}

/// [`Input`], where there is an array.
pub(crate) fn optional<'py, T: Element>(
    name: &str,
    array: Option<&Bound<'py, PyAny>>,
) -> PyResult<Option<Input<'py, T>>> {
    array.map(|array| Input::new(name, array)).transpose()
}

/// [`InOut`], where there is an array.
pub(crate) fn writable<'py, T: Element>(
    name: &str,
    array: Option<&Bound<'py, PyAny>>,
) -> PyResult<Option<InOut<'py, T>>> {
    array.map(|array| InOut::new(name, array)).transpose()
}

/// A contiguous array to update in place.
pub(crate) struct InOut<'py, T: Element>(PyReadwriteArrayDyn<'py, T>);

impl<'py, T: Element> InOut<'py, T> {
    /// Borrows `array` for writing.
    pub(crate) fn new(name: &str, array: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = array.cast::<PyArrayDyn<T>>().map_err(|_| wrong_dtype::<T>(name, array))?;
        if !array.is_c_contiguous() {
            return Err(ArgumentError::new_err(format!(
                "{name} must be C-contiguous to be updated in place"
            )));
        }
        array.try_readwrite().map(Self).map_err(|_| {
            ArgumentError::new_err(format!(
                "{name} must be writeable and share memory with no other argument"
            ))
        })
    }
    /// Its elements.
    pub(crate) fn as_slice_mut(&mut self) -> &mut [T] {
        self.0.as_slice_mut().expect("contiguous since `new`")
    }
}

/// A new array whose elements `fill` writes, all of them, before anybody else sees it.
pub(crate) struct Output<'py, T: Element>(Bound<'py, PyArrayDyn<T>>);

impl<'py, T: Element + Default> Output<'py, T> {
    /// Memory from NumPy's allocator, not yet written.
    pub(crate) fn new(py: Python<'py>, shape: &[usize]) -> Self {
        // SAFETY: plain numbers; every kernel overwrites the whole of its output.
        Self(unsafe { PyArrayDyn::new(py, shape, false) })
    }
    /// Its elements.
    pub(crate) fn as_slice_mut(&mut self) -> &mut [T] {
        // SAFETY: the array is new and this is its only reference.
        unsafe { self.0.as_slice_mut() }.expect("new arrays are contiguous")
    }
    /// Hands the array to Python.
    pub(crate) fn into_any(self) -> Bound<'py, PyAny> {
        self.0.into_any()
    }
}

fn wrong_dtype<T: Element>(name: &str, got: &Bound<'_, PyAny>) -> PyErr {
    let got = got.getattr("dtype").map_or_else(|_| got.get_type().to_string(), |d| d.to_string());
    Python::attach(|py| DTypeError::new_err(format!("{name} has dtype {got}, expected {}", T::get_dtype(py))))
}

/// Whether `array` is `float32`; the alternative is `float64`, which [`Input::new`] then checks.
pub(crate) fn is_f32(array: &Bound<'_, PyAny>) -> bool {
    array.cast::<PyArrayDyn<f32>>().is_ok()
}

/// Runs `$body` with `$T` the element type of `$array`.
macro_rules! by_dtype {
    ($array:expr, $T:ident => $body:expr) => {
        if $crate::array::is_f32($array) {
            type $T = f32;
            $body
        } else {
            type $T = f64;
            $body
        }
    };
}
pub(crate) use by_dtype;
