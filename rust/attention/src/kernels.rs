//! The kernels of this crate, for each type that they are compiled for.

use crate::{Dims, Plan, Rotation, Scoring, Tokens, View, ViewMut, backward, decode, forward, rotary};
use sensorium_core::{Bf16, F16, Result, Storage, instances};

instances! {
    /// Every kernel refuses, and names, an argument whose size does not fit the others, or whose value is out of range.
    pub trait AttentionKernels: Storage for [f32, f64, Bf16, F16] {
        /// `out = softmax(scale Q K^T over visible pairs) V`, and `lse (B, H, N_q)`; `plans` is one for all samples of
        /// the batch, or one for each. Half precision is widened as it is loaded and rounded as it is stored; rows of
        /// [`View::turned`] tensors are turned as they are loaded.
        fn attention_forward(
            dims: Dims,
            plans: &[&Plan],
            scoring: Scoring<'_>,
            q: View<'_, Self>,
            k: View<'_, Self>,
            v: View<'_, Self>,
            out: ViewMut<'_, Self>,
            lse: &mut [Self::Float],
        ) -> Result<()> = forward::forward;
        /// `dq`, `dk` and `dv`, given `grad_out (B, H, N, D)` and the results of `attention_forward`.
        fn attention_backward(
            dims: Dims,
            plans: &[&Plan],
            scoring: Scoring<'_>,
            grad_out: View<'_, Self>,
            q: View<'_, Self>,
            k: View<'_, Self>,
            v: View<'_, Self>,
            out: View<'_, Self>,
            lse: &[Self::Float],
            grads: [ViewMut<'_, Self>; 3],
        ) -> Result<()> = backward::backward;
        /// `out = softmax(score(Q K^T) over visible pairs) V` and `lse (B, H, N)`, query `i` of sample `b` being token
        /// `tokens[b].start + i`, key `j` token `j`, and only the first `tokens[b].length` keys of a sample being
        /// there. Keys and values are widened as they are loaded.
        fn attention_decode(
            dims: Dims,
            tokens: &[Tokens<'_>],
            scoring: Scoring<'_>,
            q: View<'_, Self>,
            k: View<'_, Self>,
            v: View<'_, Self>,
            out: ViewMut<'_, Self>,
            lse: &mut [Self::Float],
        ) -> Result<()> = decode::decode;
        /// `attention_decode` where only keys and values are of half precision.
        fn attention_decode_wide(
            dims: Dims,
            tokens: &[Tokens<'_>],
            scoring: Scoring<'_>,
            q: View<'_, Self::Float>,
            k: View<'_, Self>,
            v: View<'_, Self>,
            out: ViewMut<'_, Self::Float>,
            lse: &mut [Self::Float],
        ) -> Result<()> = decode::decode;
        /// `out = x` with every row of `(B, H, N, D)` turned by the angles of its token, or back by them.
        fn rotate(
            x: View<'_, Self>,
            rotation: &Rotation<'_, Self::Float>,
            inverse: bool,
            out: ViewMut<'_, Self>,
        ) -> Result<()> = rotary::rotate;
    }
}
