//! The kernels of this crate, for each type that they are compiled for.

use crate::{Activation, activation, embedding, gated, linear, loss, norm, optim};
use sensorium_core::gemm::Products;
use sensorium_core::{Bf16, F16, Float, Result, instances};

instances! {
    /// Linear maps by a matrix of this type. A kernel refuses, and names, an argument whose length does not fit.
    pub trait LinearKernels: Products for [f32, f64, Bf16, F16] {
        /// `out = residual + act(x W + b)`; `act'(x W + b)` is kept in `slope` where asked, which needs an activation.
        fn linear_forward(
            dims: linear::Dims,
            x: &[Self::Float],
            weight: linear::Weight<'_, Self>,
            after: linear::Epilogue<'_, Self::Float>,
            slope: Option<&mut [Self::Float]>,
            out: &mut [Self::Float],
        ) -> Result<()> = linear::forward;
    }
}

instances! {
    /// Every kernel refuses, and names, an argument whose length does not fit the others.
    pub trait NnKernels: Float for [f32, f64] {
        /// `y = act(x)`.
        fn activate(act: Activation, x: &[Self], y: &mut [Self]) -> Result<()> = activation::forward;
        /// `dx = grad * act'(x)`.
        fn activate_backward(
            act: Activation,
            grad: &[Self],
            x: &[Self],
            dx: &mut [Self],
        ) -> Result<()> = activation::backward;

        /// Rows of `table (V, D)`: `out[i] = table[indices[i]]`.
        fn embedding_forward(
            dims: embedding::Dims,
            table: &[Self],
            indices: &[i64],
            out: &mut [Self],
        ) -> Result<()> = embedding::forward;
        /// Gradient of the table.
        fn embedding_backward(
            dims: embedding::Dims,
            grad: &[Self],
            indices: &[i64],
            dtable: &mut [Self],
        ) -> Result<()> = embedding::backward;

        /// Gated RMS norm, and what its gradients need of it.
        fn gated_norm_forward(
            dims: gated::Dims,
            x: &[Self],
            z: &[Self],
            weight: &[Self],
            eps: Self,
            y: &mut [Self],
            rstd: &mut [Self],
        ) -> Result<()> = gated::forward;
        /// Gradients of `gated_norm_forward`.
        fn gated_norm_backward(
            dims: gated::Dims,
            grad: &[Self],
            x: &[Self],
            z: &[Self],
            weight: &[Self],
            rstd: &[Self],
            dx: &mut [Self],
            dz: &mut [Self],
            dweight: &mut [Self],
        ) -> Result<()> = gated::backward;

        /// Gradients of `linear_forward` from `dp`, the gradient of `x W + b`. Where `below` is `act'(q)` with
        /// `x = act(q)`, `dx` is the gradient of `q` instead.
        fn linear_backward(
            dims: linear::Dims,
            dp: &[Self],
            x: &[Self],
            weight: &[Self],
            below: Option<&[Self]>,
            dx: &mut [Self],
            dweight: &mut [Self],
            dbias: Option<&mut [Self]>,
        ) -> Result<()> = linear::backward;

        /// Weighted mean of cross-entropies; keeps the rows' log-sum-exp.
        fn cross_entropy_forward(
            dims: loss::Dims,
            logits: &[Self],
            targets: &[i64],
            weights: Option<&[Self]>,
            lse: &mut [Self],
        ) -> Result<f64> = loss::forward;
        /// Gradient of `cross_entropy_forward`.
        fn cross_entropy_backward(
            dims: loss::Dims,
            grad: f64,
            logits: &[Self],
            targets: &[i64],
            weights: Option<&[Self]>,
            lse: &[Self],
            dlogits: &mut [Self],
        ) -> Result<()> = loss::backward;

        /// Layer norm, or RMS norm where no means are kept.
        fn norm_forward(
            dims: norm::Dims,
            x: &[Self],
            weight: &[Self],
            bias: Option<&[Self]>,
            eps: Self,
            y: &mut [Self],
            stats: norm::Stats<&mut [Self], &mut [Self]>,
        ) -> Result<()> = norm::forward;
        /// Gradients of `norm_forward`; `residual` is added to `dx`.
        fn norm_backward(
            dims: norm::Dims,
            grad: &[Self],
            x: &[Self],
            weight: &[Self],
            stats: norm::Stats<&[Self], &[Self]>,
            residual: Option<&[Self]>,
            dx: &mut [Self],
            dweight: &mut [Self],
            dbias: Option<&mut [Self]>,
        ) -> Result<()> = norm::backward;

        /// One step of `AdamW`: updates parameters and moments of every leaf.
        fn adamw(leaves: &mut [optim::Leaf<'_, Self>], how: optim::AdamW) -> Result<()> = optim::adamw;
        /// Sum of squares of all elements, in double precision.
        fn sum_of_squares(arrays: &[&[Self]]) -> f64 = optim::sum_of_squares;
        /// Multiplies every element by `factor`.
        fn scale(arrays: &mut [&mut [Self]], factor: Self) = optim::scale;
        /// `mean = decay * mean + (1 - decay) * value` for each pair of arrays.
        fn running_mean(pairs: &mut [(&mut [Self], &[Self])], decay: f64) -> Result<()> = optim::running_mean;
    }
}
