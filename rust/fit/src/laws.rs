//! The laws, each as its formula over [`Jet`]s.
//!
//! Sizes enter by their logarithms, and what a law predicts is the logarithm of the loss where that is positive:
//! sums of powers become log-sum-exp, which no number of parameters or tokens overflows. Chinchilla's law, of which
//! people fit thousands, has its derivatives written out: with shares `p = softmax(u)` of its three terms `u_k`, linear in
//! the parameters with gradients `v_k`, the gradient is `sum_k p_k v_k` and the second derivatives are
//! `sum_k p_k v_k v_k^T` less the square of that.

use crate::jet::{Jet, at};
use crate::real::Real;
use sensorium_core::{Simd, math};

/// A formula with `P` parameters.
pub(crate) trait Law<const P: usize, const H: usize>: Copy + Send + Sync {
    /// Value and derivatives at the features of one point.
    fn jet<S: Simd<f64>>(self, theta: &[Real<S>; P], x: &[f64]) -> Jet<S, P, H>;
}

/// What the outside names a law by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `ln(e^e + e^(a - alpha x_0) + e^(b - beta x_1))`; parameters `e, a, b, alpha, beta` (Hoffmann et al. 2022).
    Chinchilla,
    /// `alpha_D ln(e^((alpha_N / alpha_D) (n - x_0)) + e^(d - x_1))`; `n, d, alpha_N, alpha_D` (Kaplan et al. 2020).
    Kaplan,
    /// Chinchilla's with `x_1 = ln U` unique tokens seen `1 + x_2` times, which count for
    /// `U (1 + R (1 - e^(-x_2 / R)))`; `e, a, b, alpha, beta, ln R` (Muennighoff et al. 2023).
    DataConstrained,
    /// `ln(e^e + e^(a + eta (x_1 - x_0)) + e^(b - eta (x_1 + x_0)))` of compute and tokens a parameter;
    /// `e, a, b, eta` (Gadre et al. 2024).
    OverTraining,
    /// `a - alpha x_0`; `a, alpha`.
    Power,
    /// `ln(e^e + e^(a - alpha x_0))`; `e, a, alpha`.
    PowerFloor,
    /// `ln(e^e + e^(b - c_0 x_0 - c_1 f softplus((x_0 - d) / f)))`; `e, b, c_0, c_1, d, ln f` (Caballero et al. 2023,
    /// one break).
    BrokenPower,
    /// `ln(e^e + e^(a - alpha x_0 - beta x_1))`; `e, a, alpha, beta`.
    JointCompute,
    /// `q (1 - e^(-x_0 e^l))`; `q, l`.
    SaturatingExponential,
    /// `q - e^(c - gamma x_0)`; `q, c, gamma`.
    InverseRoot,
    /// `q_0 + (q_1 - q_0) sigmoid(k (x_0 - m))`; `q_0, q_1, k, m`.
    Sigmoid,
}

/// Every law: its name, its parameters and its features.
pub const LAWS: [(&str, Family, usize, usize); 11] = [
    ("chinchilla", Family::Chinchilla, 5, 2),
    ("kaplan", Family::Kaplan, 4, 2),
    ("data_constrained", Family::DataConstrained, 6, 3),
    ("over_training", Family::OverTraining, 4, 2),
    ("power", Family::Power, 2, 1),
    ("power_floor", Family::PowerFloor, 3, 1),
    ("broken_power", Family::BrokenPower, 6, 1),
    ("joint_compute", Family::JointCompute, 4, 2),
    ("saturating_exponential", Family::SaturatingExponential, 2, 1),
    ("inverse_root", Family::InverseRoot, 3, 1),
    ("sigmoid", Family::Sigmoid, 4, 1),
];

impl Family {
    /// The law of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        LAWS.iter().find(|law| law.0 == name).map(|law| law.1)
    }
    /// Parameters and features.
    #[must_use]
    pub fn sizes(self) -> (usize, usize) {
        LAWS.iter().find(|law| law.1 == self).map_or((0, 0), |law| (law.2, law.3))
    }
}

/// `ln(e^u + e^v)`.
#[inline(always)]
fn log_add<S: Simd<f64>, const P: usize, const H: usize>(u: Jet<S, P, H>, v: Jet<S, P, H>) -> Jet<S, P, H> {
    u + (v - u).softplus()
}

#[derive(Clone, Copy)]
pub(crate) struct Chinchilla;

impl Law<5, 15> for Chinchilla {
    #[inline(always)]
    fn jet<S: Simd<f64>>(self, theta: &[Real<S>; 5], x: &[f64]) -> Jet<S, 5, 15> {
        let [e, a, b, alpha, beta] = *theta;
        let (n, d) = (e.constant(x[0]), e.constant(x[1]));
        let (u, v) = (a - alpha * n, b - beta * d);
        let most = e.max(u).max(v);
        let share = |term: Real<S>| term.of(math::exp_nonpositive(term.s, (term - most).v));
        let (p_e, p_a, p_b) = (share(e), share(u), share(v));
        let sum = p_e + p_a + p_b;
        let inverse = sum.recip();
        let (p_e, p_a, p_b) = (p_e * inverse, p_a * inverse, p_b * inverse);
        let (n_a, d_b) = (n * p_a, d * p_b);
        let mut jet = Jet::constant(most + sum.ln());
        let g = [p_e, p_a, p_b, -n_a, -d_b];
        jet.gradient = g;
        for i in 0..5 {
            for j in 0..=i {
                jet.hessian[at(i, j)] = -(g[i] * g[j]);
            }
        }
        let mut own = |i: usize, j: usize, term: Real<S>| {
            jet.hessian[at(i, j)] = jet.hessian[at(i, j)] + term;
        };
        own(0, 0, p_e);
        own(1, 1, p_a);
        own(3, 1, -n_a);
        own(3, 3, n * n_a);
        own(2, 2, p_b);
        own(4, 2, -d_b);
        own(4, 4, d * d_b);
        jet
    }
}

/// Runs `$body` with `$law` the formula of `$family`, and the numbers of its parameters and second derivatives.
macro_rules! with_law {
    ($family:expr, |$law:ident, $P:ident, $H:ident| $body:expr) => {
        with_law!(@ $family, $law, $P, $H, $body;
            Chinchilla 5 15, Kaplan 4 10, DataConstrained 6 21, OverTraining 4 10, Power 2 3, PowerFloor 3 6,
            BrokenPower 6 21, JointCompute 4 10, SaturatingExponential 2 3, InverseRoot 3 6, Sigmoid 4 10)
    };
    (@ $family:expr, $law:ident, $P:ident, $H:ident, $body:expr; $($name:ident $p:literal $h:literal),*) => {
        match $family {
            $($crate::laws::Family::$name => {
                const $P: usize = $p;
                const $H: usize = $h;
                let $law = $crate::laws::$name;
                $body
            })*
        }
    };
}
pub(crate) use with_law;

/// A law over jets of its parameters.
macro_rules! law {
    ($name:ident, $p:literal, $h:literal, |$t:ident, $x:ident| $formula:expr) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Law<$p, $h> for $name {
            #[inline(always)]
            fn jet<S: Simd<f64>>(self, theta: &[Real<S>; $p], $x: &[f64]) -> Jet<S, $p, $h> {
                let mut $t = [Jet::<S, $p, $h>::constant(theta[0]); $p];
                for i in 0..$p {
                    $t[i] = Jet::parameter(theta, i);
                }
                $formula
            }
        }
    };
}

law!(Kaplan, 4, 10, |t, x| {
    let ratio = t[2] * t[3].recip();
    t[3] * log_add(ratio * t[0].plus(-x[0]), t[1].plus(-x[1]))
});
law!(DataConstrained, 6, 21, |t, x| {
    let r = t[5].exp();
    let worth = (r * (-(r.recip().times(-x[2]).exp()).plus(-1.0))).plus(1.0).ln().plus(x[1]);
    log_add(log_add(t[0], t[1] - t[3].times(x[0])), t[2] - t[4] * worth)
});
law!(OverTraining, 4, 10, |t, x| {
    let (up, down) = (t[3].times(x[1] - x[0]), t[3].times(-x[1] - x[0]));
    log_add(log_add(t[0], t[1] + up), t[2] + down)
});
law!(Power, 2, 3, |t, x| t[0] - t[1].times(x[0]));
law!(PowerFloor, 3, 6, |t, x| log_add(t[0], t[1] - t[2].times(x[0])));
law!(BrokenPower, 6, 21, |t, x| {
    let width = t[5].exp();
    let bend = width * ((-t[4]).plus(x[0]) * width.recip()).softplus();
    log_add(t[0], t[1] - t[2].times(x[0]) - t[3] * bend)
});
law!(JointCompute, 4, 10, |t, x| log_add(t[0], t[1] - t[2].times(x[0]) - t[3].times(x[1])));
law!(SaturatingExponential, 2, 3, |t, x| t[0] * (-(t[1].exp().times(-x[0]).exp())).plus(1.0));
law!(InverseRoot, 3, 6, |t, x| t[0] - (t[1] - t[2].times(x[0])).exp());
law!(Sigmoid, 4, 10, |t, x| t[0] + (t[1] - t[0]) * (t[2] * (-t[3]).plus(x[0])).sigmoid());
