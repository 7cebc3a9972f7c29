//! Foundations of every kernel: floats, instruction sets, elementary functions, matrix products, random numbers,
//! threads, errors.
//!
//! Kernels know nothing of Python. They take contiguous slices and a `Dims` struct, and write into slices.

pub mod error;
pub mod float;
pub mod gemm;
pub mod half;
mod instances;
pub mod isa;
pub mod math;
pub mod rng;
pub mod squares;
pub mod threads;

pub use error::{Error, Result};
pub use float::Float;
pub use half::{Bf16, F16, Storage};
pub use isa::{Kernel, Level, MAX_LANES, Simd};
