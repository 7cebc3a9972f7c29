//! The one door across the boundary: releases the interpreter, runs the kernel, translates what went wrong.

use pyo3::exceptions::PyMemoryError;
use pyo3::import_exception;
use pyo3::prelude::*;
use sensorium_core::{Error, Result};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

import_exception!(sensorium.errors, ShapeError);
import_exception!(sensorium.errors, ArgumentError);
import_exception!(sensorium.errors, DTypeError);
import_exception!(sensorium.errors, MemoryLimitError);
import_exception!(sensorium.errors, SensoriumError);

/// Runs `kernel` without the interpreter lock. No panic passes: it becomes a `SensoriumError`.
pub(crate) fn run<T: Send>(py: Python<'_>, kernel: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    match py.detach(|| catch_unwind(AssertUnwindSafe(kernel))) {
        Ok(done) => done.map_err(translate),
        Err(panic) => Err(internal(panic.as_ref())),
    }
}

/// The exception that a panic becomes.
pub(crate) fn internal(panic: &(dyn Any + Send)) -> PyErr {
    let words = panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    SensoriumError::new_err(format!("internal error, please report it: {words}"))
}

/// The Python exception that says what `error` says.
pub(crate) fn translate(error: Error) -> PyErr {
    let words = error.to_string();
    match error {
        Error::Dim { .. } | Error::Len { .. } => ShapeError::new_err(words),
        Error::Overflow { .. } => PyMemoryError::new_err(words),
        _ => ArgumentError::new_err(words),
    }
}
