//! Many small fits at once: a law with a handful of parameters, from thousands of starts or to thousands of
//! resampled data sets.
//!
//! A vector holds one parameter of as many problems as it has lanes; a lane whose problem is solved takes the next.
//! So nothing is ever summed across lanes, every problem's result is its own alone, and the arithmetic of the
//! steps (small Cholesky factors included) is as wide as that of the law.

// An index counts parameters of several arrays at once; an iterator over one of them would hide the others.
#![allow(clippy::needless_range_loop)]

mod jet;
mod laws;
mod newton;
mod predict;
mod problem;
mod real;

pub use laws::{Family, LAWS};
pub use predict::predict;
pub use problem::{Data, Ends, Options, Problems, minimise};
