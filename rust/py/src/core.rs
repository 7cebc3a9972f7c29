//! Bindings of `sensorium-core`: matrix products, and the elementary functions for tests and benches.

use crate::array::{Input, Output, by_dtype};
use crate::door;
use pyo3::prelude::*;
use pyo3::types::PyAny;
use sensorium_core::gemm::{self, Dims, MatRef};
use sensorium_core::math::Elementary;
use sensorium_core::{Error, Float, error};

type Array<'py> = Bound<'py, PyAny>;

/// Rows and columns of the matrix that `array` stores, or whose transpose it stores.
fn sizes(arg: &'static str, shape: &[usize], transposed: bool) -> Result<(usize, usize), Error> {
    match *shape {
        [rows, cols] => Ok(if transposed { (cols, rows) } else { (rows, cols) }),
        _ => Err(Error::Dim { arg, dim: "number of dimensions", want: 2, got: shape.len() }),
    }
}

fn matrix<T>(data: &[T], cols: usize, rows: usize, transposed: bool) -> MatRef<'_, T> {
    if transposed { MatRef::rows(data, rows).t() } else { MatRef::rows(data, cols) }
}

/// `a @ b`; where a flag says so, the array holds the transpose of its operand.
#[pyfunction]
pub(crate) fn matmul<'py>(
    py: Python<'py>,
    a: Array<'py>,
    b: Array<'py>,
    transposed_a: bool,
    transposed_b: bool,
) -> PyResult<Array<'py>> {
    by_dtype!(&a, T => {
        let (a, b) = (Input::<T>::new("a", &a)?, Input::<T>::new("b", &b)?);
        let (m, k) = sizes("a", a.shape(), transposed_a).map_err(door::translate)?;
        let (of_b, n) = sizes("b", b.shape(), transposed_b).map_err(door::translate)?;
        if of_b != k {
            return Err(door::translate(Error::Dim { arg: "b", dim: "K", want: k, got: of_b }));
        }
        error::product("out", &[m, n, size_of::<T>()]).map_err(door::translate)?;
        let mut out = Output::<T>::new(py, &[m, n]);
        let (xs, ys, zs) = (a.as_slice(), b.as_slice(), out.as_slice_mut());
        door::run(py, || {
            let (a, b) = (matrix(xs, k, m, transposed_a), matrix(ys, n, k, transposed_b));
            gemm::gemm(Dims { m, n, k }, a, b, T::ZERO, zs)
        })?;
        Ok(out.into_any())
    })
}

/// The elementary function `name`, element by element.
#[pyfunction]
pub(crate) fn elementary<'py>(py: Python<'py>, x: Array<'py>, name: &str) -> PyResult<Array<'py>> {
    by_dtype!(&x, T => {
        let x = Input::<T>::new("x", &x)?;
        let mut out = Output::<T>::new(py, x.shape());
        let (xs, ys) = (x.as_slice(), out.as_slice_mut());
        door::run(py, || T::elementary(name, xs, ys))?;
        Ok(out.into_any())
    })
}
