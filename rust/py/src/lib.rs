//! The one crate that knows Python: convert, detach, call, convert back.
#![allow(clippy::needless_pass_by_value)] // PyO3 hands arguments over by value.

use pyo3::prelude::*;

mod array;
mod attention;
mod conv;
mod core;
mod decode;
mod door;
mod fit;
mod fusion;
mod linear_scan;
mod nn;
mod packing;
mod rotary;
mod scan;
mod search;
mod ssd;
mod subsets;
mod tensor;
mod ttt;

/// The compiled half of sensorium. Private: use `sensorium.ops` and its neighbours.
#[pymodule]
mod _core {
    #[pymodule_export]
    use super::attention::{AttentionLayout, attention_backward, attention_dropout_mask, attention_forward};
    #[pymodule_export]
    use super::conv::{causal_conv1d, causal_conv1d_backward, causal_conv1d_update};
    #[pymodule_export]
    use super::core::{elementary, matmul};
    #[pymodule_export]
    use super::decode::attention_decode;
    use super::door;
    #[pymodule_export]
    use super::fit::{fit, fit_predict};
    #[pymodule_export]
    use super::fusion::{fuse, fuse_backward, normal_numbers};
    #[pymodule_export]
    use super::linear_scan::{linear_scan, linear_scan_backward};
    #[pymodule_export]
    use super::nn::{
        activate, activate_backward, adamw_step, cross_entropy, cross_entropy_backward, embedding,
        embedding_backward, gated_norm, gated_norm_backward, global_norm, linear, linear_backward, norm,
        norm_backward, running_mean, scale_arrays,
    };
    #[pymodule_export]
    use super::rotary::rotary;
    #[pymodule_export]
    use super::scan::{selective_scan, selective_scan_backward, selective_state_update};
    #[pymodule_export]
    use super::search::SearchTree;
    #[pymodule_export]
    use super::ssd::{ssd_backward, ssd_forward, ssd_step};
    #[pymodule_export]
    use super::subsets::{mixture_of_products, mixture_of_products_backward};
    #[pymodule_export]
    use super::ttt::{ttt_backward, ttt_forward};
    use pyo3::prelude::*;
    use sensorium_core::{Level, isa, threads};

    #[pymodule_init]
    fn init(m: &Bound<'_, PyModule>) -> PyResult<()> {
        // A mistyped variable must not pass for the default.
        isa::from_environment().map_err(door::translate)?;
        threads::from_environment().map_err(door::translate)?;
        m.add("__version__", env!("CARGO_PKG_VERSION"))?;
        m.add("MAX_THREADS", threads::MAX_THREADS)
    }

    /// Threads that a call from this thread may use.
    #[pyfunction]
    fn num_threads() -> usize {
        threads::num_threads()
    }

    /// Sets the number of threads for the process; 0 goes back to the default.
    #[pyfunction]
    fn set_num_threads(n: usize) {
        threads::set_num_threads(n);
    }

    /// Sets the number for this thread alone; returns the number set before, 0 where none was.
    #[pyfunction]
    fn set_local_num_threads(n: usize) -> usize {
        threads::set_local_num_threads(n)
    }

    /// Name of the instruction-set level in force.
    #[pyfunction]
    fn isa_level() -> &'static str {
        isa::level().name()
    }

    /// Names of the levels that this processor can run, lowest first.
    #[pyfunction]
    fn isa_available() -> Vec<&'static str> {
        Level::available().into_iter().map(Level::name).collect()
    }

    /// Caps the level for the process; returns the name of the level now in force.
    #[pyfunction]
    fn set_isa(name: &str) -> PyResult<&'static str> {
        Ok(isa::set_level(Level::from_name(name).map_err(door::translate)?).name())
    }
}
