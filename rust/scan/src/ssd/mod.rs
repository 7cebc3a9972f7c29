//! Structured state-space duality, the scan of Mamba-2 (Dao and Gu 2024, arXiv:2405.21060).
//!
//! Of every head, with a state `H (S, P)` and a step size `dt`: `H_t = exp(dt_t A) H_{t-1} + dt_t B_t x_t^T`,
//! `y_t = C_t^T H_t + D x_t`, and `y_t silu(z_t)` where there is a gate. Heads of a group share `B` and `C`.
//!
//! The sequence is taken in chunks of `Q` tokens. Within a chunk `y_i = sum_{j <= i} (C_i . B_j) E_ij dt_j x_j` with
//! decays `E_ij`, a product with a triangle; from chunk to chunk only the state is carried. Multiply-adds of a token
//! and head, with a chunk's triangle counted once:
//!
//! | | |
//! |---|---|
//! | `C B^T`, once for the `H / G` heads of a group | `S (Q + 1) / 2 / (H / G)` |
//! | the triangle times `x` | `P (Q + 1) / 2` |
//! | what the state before the chunk gives | `S P` |
//! | what the chunk adds to the state | `S P` |
//!
//! # What each step brought
//! `f32`, AVX-512, B 1, H 24, P 64, L 2048, S 128; milliseconds on a quiet machine whose SGEMM reaches 107 GFLOP/s with
//! one thread and 211 with two:
//!
//! | | one thread | two | of SGEMM |
//! |---|---|---|---|
//! | forward, chunks of 32 | 20.8 | 10.6 | 0.78 |
//! | 64 | 21.1 | 10.7 | 0.81 |
//! | 96 | - | 11.2 | 0.83 |
//! | 128 | 23.8 | 11.8 | 0.83 |
//! | 256 | 32.1 | 14.2 | 0.85 |
//! | backward, windows of 1,024 tokens | 58.4 | 30.6 | 0.57 |
//! | 512 tokens: states and parts stay in the second-level cache | 55.5 | | 0.62 |
//! | 256 tokens | 54.3 | | 0.64 |
//!
//! Of backward's time at first 12 % went into turning `dH` and `g` element by element, which squares in registers do in
//! a seventh; 6 % go into adding to the parts of `dB` and `dC`. A state is turned rather than kept twice: the products
//! that read it along `P` and along `S` both want it in rows. The sequential form, a token at a time, took 30 ms.
//! Decays are exponentials of differences for every pair, `Q / 2` a token and head: 4 % of forward. To make those of
//! pairs far apart from two factors, one to the border of a block and one from it, was not tried.

mod backward;
mod chunks;
mod decay;
mod forward;
mod rows;
mod scratch;
mod step;
mod tile;

use crate::Sequences;
use sensorium_core::{Error, Float, Result, error::check_len, error::product};

pub use backward::{Grads, Upstream};
pub use decay::Steps;
pub use forward::checkpoints;
pub use rows::Rows;
pub use step::Token;
pub(crate) use {backward::backward, forward::forward, step::step};

/// Sizes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Rows of the batch, `B`.
    pub batch: usize,
    /// Tokens of a row, `L`.
    pub length: usize,
    /// Heads, `H`.
    pub heads: usize,
    /// Channels of a head, `P`.
    pub width: usize,
    /// Groups of heads that share `B` and `C`, `G`.
    pub groups: usize,
    /// Numbers of the state of a channel, `S`.
    pub state: usize,
}

impl Dims {
    /// Shape of `x`, `z` and `y`.
    #[must_use]
    pub const fn tokens(&self) -> [usize; 4] {
        [self.batch, self.length, self.heads, self.width]
    }
    /// Shape of `B` and `C`.
    #[must_use]
    pub const fn inner(&self) -> [usize; 4] {
        [self.batch, self.length, self.groups, self.state]
    }
    /// Heads of a group.
    pub(crate) const fn heads_of_group(&self) -> usize {
        self.heads / self.groups
    }
}

/// What a scan reads.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a, T> {
    /// `(B, L, H, P)`.
    pub x: Rows<'a, T>,
    /// How step sizes are made.
    pub steps: Steps<'a, T>,
    /// `A (H,)`.
    pub a: &'a [T],
    /// `B (B, L, G, S)`.
    pub b: Rows<'a, T>,
    /// `C (B, L, G, S)`.
    pub c: Rows<'a, T>,
    /// `D (H,)` or `(H, P)`.
    pub skip: Option<&'a [T]>,
    /// The gate `z (B, L, H, P)`.
    pub gate: Option<Rows<'a, T>>,
    /// States before the sequences, `(states, H, P, S)`; zeros where there are none.
    pub initial: Option<&'a [T]>,
}

impl<T: Float> Inputs<'_, T> {
    /// Checks what [`Rows::new`] did not see.
    pub(crate) fn check(&self, dims: Dims, sequences: &Sequences) -> Result<()> {
        let Dims { batch, length, heads, width, groups, state } = dims;
        if heads != 0 && (groups == 0 || heads % groups != 0) {
            let what = format!("has G={groups}, which does not divide H={heads} of x");
            return Err(Error::Value { arg: "B", what });
        }
        if sequences.batch() != batch {
            return Err(Error::Dim { arg: "seq_idx", dim: "B", want: batch, got: sequences.batch() });
        }
        if sequences.length() != length {
            return Err(Error::Dim { arg: "seq_idx", dim: "L", want: length, got: sequences.length() });
        }
        check_len("dt", self.steps.dt, product("dt", &[batch, length, heads])?)?;
        check_len("A", self.a, heads)?;
        if let Some(bias) = self.steps.bias {
            check_len("dt_bias", bias, heads)?;
        }
        if let Some(skip) = self.skip.filter(|skip| skip.len() != heads) {
            check_len("D", skip, product("D", &[heads, width])?)?;
        }
        if let Some(initial) = self.initial {
            check_len("initial_states", initial, states_len(dims, sequences, "initial_states")?)?;
        }
        product("x", &[batch, length, heads, width])?;
        product("B", &[batch, length, groups, state]).map(|_| ())
    }
}

/// Elements of `(states, H, P, S)`.
pub(crate) fn states_len(dims: Dims, sequences: &Sequences, arg: &'static str) -> Result<usize> {
    product(arg, &[sequences.states(), dims.heads, dims.width, dims.state])
}
