//! Recurrences along a sequence: state-space scans, causal convolutions and test-time training, forward,
//! backward and one step at a time.
//!
//! Time and memory are linear in the length. Rows may be packed with several sequences: [`Sequences`] says where
//! each begins, and which state it begins from and leaves behind.

// An index counts lanes or rows of several buffers at once; an iterator over one of them would hide the others.
#![allow(clippy::needless_range_loop)]

pub mod conv;
mod kernels;
pub mod linear;
mod scratch;
pub mod selective;
mod sequences;
pub mod ssd;
pub mod ttt;

pub use kernels::ScanKernels;
pub use sequences::{Sequence, Sequences};
