//! Fused operations that training needs: norms, activations, linear maps, cross-entropy, embedding, `AdamW`.
//!
//! Each forward has a backward that takes what the forward kept. Rows are cut into blocks of fixed size;
//! sums over rows are made block by block and added in index order, so that results do not depend on the
//! number of threads.

pub mod activation;
pub mod embedding;
pub mod gated;
mod kernels;
pub mod linear;
pub mod loss;
pub mod norm;
pub mod optim;
mod vector;

pub use activation::Activation;
pub use kernels::{LinearKernels, NnKernels};
