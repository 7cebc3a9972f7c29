//! Rotary embeddings across the boundary.

use crate::array::Input;
use crate::door::{self, ShapeError};
use crate::tensor::{Held, Tensor, TensorMut, by_storage};
use numpy::Element;
use pyo3::prelude::*;
use sensorium_attention::Rotation;
use sensorium_core::{Float, Storage};

/// Cosines and sines by token, `(1 or B, N, 2, pairs)`, or `2 pairs` of neighbours.
pub(crate) struct Table<'py, T: Element> {
    table: Input<'py, T>,
    neighbours: bool,
}

impl<'py, T: Element + Float> Table<'py, T> {
    pub(crate) fn new(table: &Bound<'py, PyAny>, neighbours: bool) -> PyResult<Self> {
        let table = Input::new("table", table)?;
        match *table.shape() {
            [_, _, 2, columns] if !neighbours || columns % 2 == 0 => Ok(Self { table, neighbours }),
            ref shape => {
                Err(ShapeError::new_err(format!("table has shape {shape:?}, expected (B, N, 2, pairs)")))
            }
        }
    }
    pub(crate) fn rotation(&self) -> PyResult<Rotation<'_, T>> {
        let shape = self.table.shape();
        let pairs = if self.neighbours { shape[3] / 2 } else { shape[3] };
        Rotation::new(self.table.as_slice(), [shape[0], shape[1], pairs], self.neighbours)
            .map_err(door::translate)
    }
}

fn run<E: Held>(
    py: Python<'_>,
    [x, table, out]: [&Bound<'_, PyAny>; 3],
    interleaved: bool,
    inverse: bool,
) -> PyResult<()> {
    let x = Tensor::<E>::new("x", x)?;
    let table = Table::<<E as Storage>::Float>::new(table, interleaved)?;
    let mut out = TensorMut::<E>::new("out", out)?;
    let (x, rotation, out) = (x.view(), table.rotation()?, out.view());
    door::run(py, || E::rotate(x, &rotation, inverse, out))
}

/// Writes `x (B, H, N, D)`, turned by the angles of a table, to `out`.
#[pyfunction]
pub(crate) fn rotary(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    table: &Bound<'_, PyAny>,
    interleaved: bool,
    inverse: bool,
    out: &Bound<'_, PyAny>,
    half: Option<&str>,
) -> PyResult<()> {
    by_storage!(x, half, E => run::<E>(py, [x, table, out], interleaved, inverse))
}
