//! What a law predicts, and how that changes with its parameters, for many of both.

use crate::jet::Jet;
use crate::laws::{Family, Law, with_law};
use crate::newton::lanes;
use crate::real::Real;
use sensorium_core::error::{check_len, product};
use sensorium_core::threads::{self, Disjoint};
use sensorium_core::{Float, Kernel, Result, Simd};

/// Writes values `(K, n)` for parameters `theta (K, P)` and points `x (n, F)`, and `slopes (K, n, P)` by the parameters.
///
/// # Errors
/// [`Error`](sensorium_core::Error) naming the argument that does not fit.
pub fn predict(
    family: Family,
    theta: &[f64],
    x: &[f64],
    values: &mut [f64],
    slopes: Option<&mut [f64]>,
) -> Result<()> {
    let (parameters, features) = family.sizes();
    let (sets, points) = (theta.len() / parameters, x.len() / features);
    check_len("theta", theta, sets * parameters)?;
    check_len("x", x, points * features)?;
    check_len("values", values, product("values", &[sets, points])?)?;
    if let Some(slopes) = &slopes {
        check_len("slopes", slopes, product("slopes", &[sets, points, parameters])?)?;
    }
    let (values, slopes) = (Disjoint::new(values), slopes.map(Disjoint::new));
    with_law!(family, |law, P, H| {
        threads::for_each(sets, points * 40 * P, |set| {
            let own = &theta[set * P..(set + 1) * P];
            // SAFETY: each set has its own rows.
            let (values, slopes) = unsafe {
                let rows = set * points * P..(set + 1) * points * P;
                (values.slice(set * points..(set + 1) * points), slopes.as_ref().map(|to| to.slice(rows)))
            };
            <f64 as Float>::dispatch(Row::<_, P, H> { law, theta: own, x, values, slopes });
        });
    });
    Ok(())
}

/// All points at one set of parameters.
struct Row<'a, L, const P: usize, const H: usize> {
    law: L,
    theta: &'a [f64],
    x: &'a [f64],
    values: &'a mut [f64],
    slopes: Option<&'a mut [f64]>,
}

impl<L: Law<P, H>, const P: usize, const H: usize> Kernel<f64> for Row<'_, L, P, H> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<f64>>(self, s: S) {
        let Self { law, theta, x, values, mut slopes } = self;
        let mut all = [Real::splat(s, 0.0); P];
        for j in 0..P {
            all[j] = Real::splat(s, theta[j]);
        }
        let features = if values.is_empty() { 1 } else { x.len() / values.len() };
        for i in 0..values.len() {
            let jet: Jet<S, P, H> = law.jet(&all, &x[i * features..(i + 1) * features]);
            values[i] = lanes(jet.value)[0];
            if let Some(slopes) = &mut slopes {
                for j in 0..P {
                    slopes[i * P + j] = lanes(jet.gradient[j])[0];
                }
            }
        }
    }
}
