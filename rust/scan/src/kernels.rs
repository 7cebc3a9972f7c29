//! The kernels of this crate, for each type that they are compiled for.

use crate::{Sequences, conv, linear, selective, ssd, ttt};
use sensorium_core::{Float, Result, instances};

instances! {
    /// Every kernel refuses, and names, an argument whose size does not fit the others.
    pub trait ScanKernels: Float for [f32, f64] {
        /// Causal convolution: writes `y`, contiguous, and where asked the last states `(states, D, K - 1)`.
        fn conv_forward(
            dims: conv::Dims,
            sequences: &Sequences,
            inputs: conv::Inputs<'_, Self>,
            y: &mut [Self],
            last: Option<&mut [Self]>,
        ) -> Result<()> = conv::forward;
        /// Gradients of `conv_forward` from those of `y`, contiguous, and of the last states.
        fn conv_backward(
            dims: conv::Dims,
            sequences: &Sequences,
            inputs: conv::Inputs<'_, Self>,
            grad: &[Self],
            grad_last: Option<&[Self]>,
            grads: conv::Grads<'_, Self>,
        ) -> Result<()> = conv::backward;
        /// Convolution of one input: `y (B, D)` from `x (B, D)` and `state (B, D, K - 1)`, which moves on by it.
        fn conv_update(
            dims: conv::Dims,
            x: &[Self],
            state: &mut [Self],
            weight: &[Self],
            bias: Option<&[Self]>,
            silu: bool,
            y: &mut [Self],
        ) -> Result<()> = conv::update;

        /// Gated linear scan: writes `h`, and where asked the last states `(states, D)`.
        fn linear_scan_forward(
            dims: linear::Dims,
            sequences: &Sequences,
            a: &[Self],
            x: &[Self],
            initial: Option<&[Self]>,
            h: &mut [Self],
            last: Option<&mut [Self]>,
        ) -> Result<()> = linear::forward;
        /// Gradients of `linear_scan_forward`, from its result `h`, the gradient of that and of the last states.
        fn linear_scan_backward(
            dims: linear::Dims,
            sequences: &Sequences,
            a: &[Self],
            h: &[Self],
            initial: Option<&[Self]>,
            grad: &[Self],
            grad_last: Option<&[Self]>,
            grads: linear::Grads<'_, Self>,
        ) -> Result<()> = linear::backward;

        /// Selective scan.
        fn selective_forward(
            dims: selective::Dims,
            sequences: &Sequences,
            inputs: &selective::Inputs<'_, Self>,
            outputs: selective::Outputs<'_, Self>,
        ) -> Result<()> = selective::forward;
        /// Gradients of `selective_forward`, given those of `y` and, where it was used, of the last states.
        /// `checkpoints` are what the forward kept for the same inputs; they are computed where `None`.
        fn selective_backward(
            dims: selective::Dims,
            sequences: &Sequences,
            inputs: &selective::Inputs<'_, Self>,
            grad: selective::View<'_, Self>,
            grad_last: Option<&[Self]>,
            checkpoints: Option<&[Self]>,
            gradients: selective::Gradients<'_, Self>,
        ) -> Result<()> = selective::backward;
        /// Takes the states `(B, D, S)` of a selective scan one token further and writes `y (B, D)`.
        fn selective_step(
            dims: selective::Dims,
            state: &mut [Self],
            inputs: &selective::Step<'_, Self>,
            y: &mut [Self],
        ) -> Result<()> = selective::step;

        /// State-space duality: writes `y`; `last (states, H, P, S)` takes the states that sequences leave, and
        /// `checkpoints` those at the begin of each window, for backward.
        fn ssd_forward(
            dims: ssd::Dims,
            sequences: &Sequences,
            chunk: usize,
            inputs: &ssd::Inputs<'_, Self>,
            y: &mut [Self],
            last: Option<&mut [Self]>,
            checkpoints: Option<&mut [Self]>,
        ) -> Result<()> = ssd::forward;
        /// Gradients of `ssd_forward`.
        fn ssd_backward(
            dims: ssd::Dims,
            sequences: &Sequences,
            chunk: usize,
            inputs: &ssd::Inputs<'_, Self>,
            upstream: ssd::Upstream<'_, Self>,
            grads: ssd::Grads<'_, Self>,
        ) -> Result<()> = ssd::backward;
        /// One token: updates `state (B, H, P, S)` and writes `y (B, H, P)`. The length in `dims` is not read.
        fn ssd_step(
            dims: ssd::Dims,
            token: &ssd::Token<'_, Self>,
            state: &mut [Self],
            y: &mut [Self],
        ) -> Result<()> = ssd::step;

        /// Test-time training: writes what every token reads to `y (B, H, L, D)`, and what `ttt_backward` can use to
        /// `checkpoints`. Returns the position after the last token. A `state` is read instead of `initial` and the
        /// weights, and is afterwards that after the last token.
        fn ttt_forward(
            inputs: ttt::Inputs<'_, Self>,
            y: ttt::ViewMut<'_, Self>,
            state: Option<ttt::StateMut<'_, Self>>,
            checkpoints: Option<&mut [Self]>,
        ) -> Result<usize> = ttt::forward;
        /// Gradients of all inputs of `ttt_forward`: `grad (B, H, L, D)` is that of `y`, `grad_last` that of the last
        /// state. Without `checkpoints` they are computed again.
        fn ttt_backward(
            inputs: ttt::Inputs<'_, Self>,
            grad: &ttt::View<'_, Self>,
            grad_last: Option<ttt::State<'_, Self>>,
            checkpoints: Option<&[Self]>,
            grads: ttt::Grads<'_, Self>,
        ) -> Result<()> = ttt::backward;
    }
}
