//! Attention over segment layouts.
//!
//! `out_i = sum_j P_ij v_j`, `P_ij = exp(scale q_i.k_j - lse_i)`, `lse_i = log sum_j exp(scale q_i.k_j)`, the sums
//! over the keys `j` that query `i` sees. A query that sees nothing gives 0 and `lse = -inf`. Blockwise with a
//! running softmax (Milakov and Gimelshein 2018; Rabe and Staats 2021; Dao et al. 2022): no array of `N x N`
//! numbers is ever made, and the work grows with the number of visible pairs.
//!
//! What sees what is a [`Layout`]; a [`Plan`] is the layout, or a window of it, cut into blocks of queries, made once
//! and used by every forward and backward pass of the [`AttentionKernels`]. The tiles are described in `tile.rs`, the
//! ladder of attempts in `forward.rs` and `backward.rs`.

// An index counts lanes or rows of several buffers at once; an iterator over one of them would hide the others.
#![allow(clippy::needless_range_loop)]

mod backward;
mod batch;
mod carry;
mod decode;
mod dropout;
mod forward;
mod kernels;
mod layout;
mod pack;
mod plan;
mod rotary;
mod score;
mod scratch;
mod source;
mod tile;
mod view;
mod visit;

pub use decode::Tokens;
pub use dropout::Dropout;
pub use kernels::AttentionKernels;
pub use layout::{Inner, Layout, Sample, Segment};
pub use plan::Plan;
pub use rotary::Rotation;
pub use score::Scoring;
pub use view::{Dims, Strides, View, ViewMut};
