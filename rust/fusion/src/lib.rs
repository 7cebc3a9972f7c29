//! Gaussian experts: their product, the sample and divergence that are drawn from it, forward and backward.
//!
//! An expert is a mean and a logarithm of a variance for each of `B` rows of `D` numbers. Experts may be missing row by
//! row: nothing of a missing one is read.

// An index counts experts of several lists at once; an iterator over one of them would hide the others.
#![allow(clippy::needless_range_loop)]

mod experts;
pub mod noise;
pub mod product;
pub mod subsets;

pub use experts::{Dims, Experts, Prior, Rows};
