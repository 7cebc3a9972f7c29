//! Test-time training layers (Sun et al., 2024, arXiv:2407.04620): the state of a head is a small network that
//! learns while the sequence is read.
//!
//! The network `f` is a matrix and a bias (TTT-Linear), or two of them with GELU between (TTT-MLP). For token `t`
//! with key `k`, value `v` and query `q`, its loss is `l_t(W) = 1/2 |LN(f(k; W)) - (v - k)|^2` with a layer norm of
//! its own for every head. Tokens are taken in mini-batches of `b`; all gradients of a mini-batch are taken at the
//! weights `W` that it began with. Token `i` of it reads
//!
//! `y_i = q_i + LN(f(q_i; W_i))`, `W_i = W - scale_i sum over j <= i of eta_j grad l_j(W)`,
//!
//! and the next mini-batch begins with `W_b`. Each layer's gradient is an outer product `x_j g_j^T`, so no `W_i` is
//! made: with `P_ij = -scale_i eta_j (x_i . x_j + 1)` for `j <= i`, a layer's outputs are `X W + b + P G` (the dual
//! form). A mini-batch costs 3.5 (linear) or 7 (MLP) products of `b` rows with a layer's matrix forward.
//!
//! A sequence may be cut anywhere: the state is the weights that the mini-batch began with, the sums
//! `sum eta_j grad l_j(W)` over the tokens of it that were read, and their number.
//!
//! Backward through the inner steps: mini-batches in reverse, the gradient by the fast weights carried along.
//! Weights are kept at the start of every group of about `sqrt(L / b)` mini-batches, and made again within a group.
//! Heads are tasks; nothing else is cut, so that results do not depend on threads.
//!
//! # What each step brought
//! Milliseconds, `f32`, AVX-512, one thread of two busy cores, 2048 tokens, `b = 16`, 4 heads of 64, forward / with
//! backward (234 Mflop / 0.94 Gflop linear, 2.1 / 8.2 MLP):
//!
//! | | linear | MLP |
//! |---|---|---|
//! | products of a register tile, operands padded to whole vectors, transposes element by element | - | 36.3 / 153 |
//! | transposes in squares in registers, sixteen rows together | 3.3 / 13.5 | 33.8 / 135 |
//! | causal diagonals row by row: in one loop over both indices every product spilt its sums | 3.7 / 14.3 | 23.1 / 96 |
//!
//! The last is 89 and 85 GFLOP/s. A state with whole lines is worked on where it is, which spares one token's call
//! two copies of it. Not tried: several products in one tile that add to the same output.

mod backward;
mod forward;
mod gelu;
mod layer;
mod mix;
mod norm;
mod product;
mod scratch;
mod view;

use forward::{Batch, Results, SharedState};
use layer::{Fast, Size};
use sensorium_core::error::{check_len, product as product_of};
use sensorium_core::threads::Disjoint;
use sensorium_core::{Error, Float, Result};

pub use view::{Strides, View, ViewMut, contiguous};

/// Sizes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Rows of the batch, `B`.
    pub batch: usize,
    /// Heads, `H`.
    pub heads: usize,
    /// Tokens, `L`.
    pub length: usize,
    /// Width of a head, `D`; at least 1.
    pub width: usize,
    /// Width of the hidden layer, `F`; none in TTT-Linear.
    pub hidden: Option<usize>,
}

impl Dims {
    fn sizes(&self) -> Vec<Size> {
        let d = self.width;
        match self.hidden {
            None => vec![Size { inputs: d, outputs: d }],
            Some(f) => vec![Size { inputs: d, outputs: f }, Size { inputs: f, outputs: d }],
        }
    }

    fn rows(&self) -> [usize; 4] {
        [self.batch, self.heads, self.length, self.width]
    }
}

/// Fast weights and what an unfinished mini-batch has summed up, in the order `W, b` or `W1, b1, W2, b2`:
/// arrays `(B, H, inputs, outputs)` and `(B, H, outputs)`.
#[derive(Debug, Clone, Copy)]
pub struct State<'a, T> {
    /// Weights at the start of the mini-batch.
    pub weights: &'a [&'a [T]],
    /// Sums over its tokens so far; not read where none were.
    pub sums: &'a [&'a [T]],
}

/// The same to write.
#[derive(Debug)]
pub struct StateMut<'a, T> {
    /// Weights, or gradients by them.
    pub weights: Vec<&'a mut [T]>,
    /// Sums, or gradients by them.
    pub sums: Vec<&'a mut [T]>,
}

impl<'a, T> StateMut<'a, T> {
    fn shared(self) -> SharedState<'a, T> {
        let all = |parts: Vec<&'a mut [T]>| parts.into_iter().map(Disjoint::new).collect();
        SharedState { weights: all(self.weights), sums: all(self.sums) }
    }
}

/// What forward and backward both take.
#[derive(Debug)]
pub struct Inputs<'a, T> {
    /// Sizes.
    pub dims: Dims,
    /// Tokens of a mini-batch, `b`; at least 1.
    pub mini_batch: usize,
    /// Added to the variance.
    pub eps: T,
    /// `(b,)`; `1 / (i + 1)` where none.
    pub token_scale: Option<&'a [T]>,
    /// `(B, H, L, D)`.
    pub q: View<'a, T>,
    /// `(B, H, L, D)`.
    pub k: View<'a, T>,
    /// `(B, H, L, D)`.
    pub v: View<'a, T>,
    /// `(B, H, L)`.
    pub eta: &'a [T],
    /// `W, b` or `W1, b1, W2, b2` of every head, `(H, inputs, outputs)` and `(H, outputs)`: where every row of the
    /// batch begins without an initial state.
    pub weights: &'a [&'a [T]],
    /// `(H, D)`.
    pub norm_weight: &'a [T],
    /// `(H, D)`.
    pub norm_bias: &'a [T],
    /// What the rows begin from instead of `weights`.
    pub initial: Option<State<'a, T>>,
    /// Tokens that the first mini-batch had before the call, fewer than its size; 0 without a state.
    pub position: usize,
}

/// Gradients that [`ttt_backward`](crate::ScanKernels::ttt_backward) writes, all of them.
#[derive(Debug)]
pub struct Grads<'a, T> {
    /// `(B, H, L, D)`.
    pub q: ViewMut<'a, T>,
    /// `(B, H, L, D)`.
    pub k: ViewMut<'a, T>,
    /// `(B, H, L, D)`.
    pub v: ViewMut<'a, T>,
    /// `(B, H, L)`.
    pub eta: &'a mut [T],
    /// `(H, D)`.
    pub norm_weight: &'a mut [T],
    /// `(H, D)`.
    pub norm_bias: &'a mut [T],
    /// `(b,)`.
    pub token_scale: Option<&'a mut [T]>,
    /// By the state that every row began from; sums get zeros where the position is 0.
    pub initial: StateMut<'a, T>,
}

/// A call whose sizes fit.
struct Call<'a, T> {
    dims: Dims,
    mini_batch: usize,
    eps: T,
    /// As many as a mini-batch of this call can have.
    scale: Vec<T>,
    q: View<'a, T>,
    k: View<'a, T>,
    v: View<'a, T>,
    eta: &'a [T],
    weights: &'a [&'a [T]],
    norm_weight: &'a [T],
    norm_bias: &'a [T],
    initial: Option<State<'a, T>>,
    position: usize,
}

const WEIGHTS: [&str; 4] = ["W1", "b1", "W2", "b2"];
const LAST: [&str; 4] = ["W1 of the state", "b1 of the state", "W2 of the state", "b2 of the state"];

fn check_parts<A: AsRef<[T]>, T>(
    names: [&'static str; 4],
    parts: &[A],
    sizes: &[Size],
    copies: usize,
) -> Result<()> {
    if parts.len() != 2 * sizes.len() {
        return Err(Error::Len { arg: names[0], want: 2 * sizes.len(), got: parts.len() });
    }
    for (l, size) in sizes.iter().enumerate() {
        let w = product_of(names[2 * l], &[copies, size.inputs, size.outputs])?;
        check_len(names[2 * l], parts[2 * l].as_ref(), w)?;
        check_len(names[2 * l + 1], parts[2 * l + 1].as_ref(), copies * size.outputs)?;
    }
    Ok(())
}

impl<'a, T: Float> Call<'a, T> {
    fn new(inputs: Inputs<'a, T>) -> Result<Self> {
        let Inputs {
            dims, mini_batch, eps, token_scale, q, k, v, eta, weights, norm_weight, norm_bias, ..
        } = inputs;
        let Inputs { initial, position, .. } = inputs;
        let at_least_one = |arg, what: &str| Err(Error::Value { arg, what: what.into() });
        if dims.width == 0 {
            return at_least_one("q", "has D=0, expected at least 1");
        }
        if mini_batch == 0 {
            return at_least_one("mini_batch_size", "must be at least 1, not 0");
        }
        let sizes = dims.sizes();
        let heads = product_of("q", &[dims.batch, dims.heads])?;
        product_of("q", &[heads, dims.length, dims.width])?;
        for (arg, array) in [("q", &q), ("k", &k), ("v", &v)] {
            array.check(arg, dims.rows())?;
        }
        check_len("eta", eta, heads * dims.length)?;
        check_len("norm_weight", norm_weight, dims.heads * dims.width)?;
        check_len("norm_bias", norm_bias, dims.heads * dims.width)?;
        check_parts(WEIGHTS, weights, &sizes, dims.heads)?;
        if let Some(State { weights, sums }) = initial {
            check_parts(LAST, weights, &sizes, heads)?;
            check_parts(LAST, sums, &sizes, heads)?;
        }
        if position >= mini_batch {
            let what = format!("has read {position} tokens of a mini-batch of {mini_batch}");
            return Err(Error::Value { arg: "initial_state", what });
        }
        let places = mini_batch.min(position.saturating_add(dims.length));
        let scale = match token_scale {
            Some(scale) => {
                check_len("token_scale", scale, mini_batch)?;
                scale[..places].to_vec()
            }
            None => (0..places).map(|i| T::ONE / T::from_usize(i + 1)).collect(),
        };
        Ok(Self {
            dims,
            mini_batch,
            eps,
            scale,
            q,
            k,
            v,
            eta,
            weights,
            norm_weight,
            norm_bias,
            initial,
            position,
        })
    }

    /// Mini-batches that the call's tokens belong to.
    fn count(&self) -> usize {
        Batch::count(self.position, self.dims.length, self.mini_batch)
    }

    /// The `i`-th of them.
    fn batch(&self, i: usize) -> Batch {
        Batch::of(i, self.position, self.dims.length, self.mini_batch)
    }

    /// Where a token's row is.
    fn at(&self, head: usize, token: usize) -> [usize; 3] {
        [head / self.dims.heads, head % self.dims.heads, token]
    }

    /// Weights that a row's head begins from.
    fn read_weights(&self, head: usize, layer: usize, out: &mut Fast<'_, T>) {
        let (parts, head) = match &self.initial {
            Some(state) => (state.weights, head),
            None => (self.weights, head % self.dims.heads),
        };
        read_part(parts, head, layer, out);
    }

    /// Sums that a row's head begins from; left as they are where there are none.
    fn read_sums(&self, head: usize, layer: usize, out: &mut Fast<'_, T>) {
        if let Some(state) = self.initial.filter(|_| self.position > 0) {
            read_part(state.sums, head, layer, out);
        }
    }

    /// Floating-point operations of a token's forward.
    fn work_per_token(&self) -> usize {
        let weights: usize = self.dims.sizes().iter().map(|s| s.inputs.saturating_mul(s.outputs)).sum();
        weights.saturating_mul(7)
    }
}

fn read_part<T: Float>(parts: &[&[T]], head: usize, layer: usize, out: &mut Fast<'_, T>) {
    let (w, b) = (out.size.inputs * out.size.outputs, out.size.outputs);
    out.read(&parts[2 * layer][head * w..(head + 1) * w], &parts[2 * layer + 1][head * b..(head + 1) * b]);
}

/// Mini-batches between checkpoints, of `count` in all: a group is held in memory, and so is one state a group.
fn group(count: usize) -> usize {
    count.isqrt().max(4)
}

/// Elements that a forward keeps for its backward.
///
/// # Errors
/// [`Error::Overflow`] where they do not fit the address space.
pub fn checkpoints<T: Float>(dims: Dims, mini_batch: usize, position: usize) -> Result<usize> {
    if mini_batch == 0 || position >= mini_batch {
        return Ok(0);
    }
    let count = Batch::count(position, dims.length, mini_batch);
    let later = count.saturating_sub(1) / group(count);
    let each: usize = dims.sizes().iter().map(|s| s.len::<T>()).sum();
    product_of("q", &[dims.batch, dims.heads, later, each])
}

/// Writes what every token reads to `y (B, H, L, D)`, and what [`backward`] can use to `checkpoints`. Returns the
/// position after the last token.
///
/// A `state` is read instead of `initial` and the weights, and is afterwards that after the last token.
///
/// # Errors
/// Where sizes do not fit each other.
pub(crate) fn forward<T: Float>(
    inputs: Inputs<'_, T>,
    y: ViewMut<'_, T>,
    state: Option<StateMut<'_, T>>,
    checkpoints: Option<&mut [T]>,
) -> Result<usize> {
    let call = Call::new(inputs)?;
    y.check("y", call.dims.rows())?;
    let (sizes, heads) = (call.dims.sizes(), call.dims.batch * call.dims.heads);
    if let Some(StateMut { weights, sums }) = &state {
        check_parts(LAST, weights, &sizes, heads)?;
        check_parts(LAST, sums, &sizes, heads)?;
    }
    if let Some(checkpoints) = &checkpoints {
        check_len(
            "checkpoints",
            checkpoints,
            self::checkpoints::<T>(call.dims, call.mini_batch, call.position)?,
        )?;
    }
    forward::run(&call, Results { y: Some(y), state, checkpoints });
    Ok((call.position + call.dims.length) % call.mini_batch)
}

/// Writes the gradients of all inputs: `grad (B, H, L, D)` is that of `y`, and `grad_last` that of the last state.
///
/// Without `checkpoints` they are computed again.
///
/// # Errors
/// Where sizes do not fit each other.
pub(crate) fn backward<T: Float>(
    inputs: Inputs<'_, T>,
    grad: &View<'_, T>,
    grad_last: Option<State<'_, T>>,
    checkpoints: Option<&[T]>,
    grads: Grads<'_, T>,
) -> Result<()> {
    let token_scale = inputs.mini_batch;
    let call = Call::new(inputs)?;
    let (dims, sizes) = (call.dims, call.dims.sizes());
    let heads = dims.batch * dims.heads;
    grad.check("grad_out", dims.rows())?;
    for (arg, array) in [("dq", &grads.q), ("dk", &grads.k), ("dv", &grads.v)] {
        array.check(arg, dims.rows())?;
    }
    check_len("deta", grads.eta, heads * dims.length)?;
    check_len("dnorm_weight", grads.norm_weight, dims.heads * dims.width)?;
    check_len("dnorm_bias", grads.norm_bias, dims.heads * dims.width)?;
    if let Some(scale) = &grads.token_scale {
        check_len("dtoken_scale", scale, token_scale)?;
    }
    check_parts(LAST, &grads.initial.weights, &sizes, heads)?;
    check_parts(LAST, &grads.initial.sums, &sizes, heads)?;
    if let Some(State { weights, sums }) = grad_last {
        check_parts(LAST, weights, &sizes, heads)?;
        check_parts(LAST, sums, &sizes, heads)?;
    }
    let want = self::checkpoints::<T>(dims, call.mini_batch, call.position)?;
    let mut made = Vec::new();
    let checkpoints = if let Some(checkpoints) = checkpoints {
        check_len("checkpoints", checkpoints, want)?;
        checkpoints
    } else {
        made.resize(want, T::ZERO);
        if want > 0 {
            forward::run(&call, Results { y: None, state: None, checkpoints: Some(&mut made) });
        }
        &made
    };
    backward::run(&call, grad, grad_last, checkpoints, grads);
    Ok(())
}
