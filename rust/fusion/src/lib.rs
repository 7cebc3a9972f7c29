//! Gaussian experts: their product, the sample and divergence that are drawn from it, forward and backward.
//!
//! An expert is a mean and a logarithm of a variance for each of `B` rows of `D` numbers. Experts may be missing row by
//! row: nothing of a missing one is read.

// An index counts experts of several lists at once; an iterator over one of them would hide the others.
#![allow(clippy::needless_range_loop)]

mod experts;
pub mod noise;
pub mod product;
pub mod subsets;

pub use experts::{Dims, Experts, Prior, Rows};

/// The level in force is the process's: tests that set it, or compare bits, take turns.
#[cfg(test)]
mod levels {
    use sensorium_core::{Level, isa};
    use std::sync::{Mutex, MutexGuard, PoisonError};

    static TURN: Mutex<()> = Mutex::new(());

    /// Waits until no other test sets the level.
    pub(crate) fn turn() -> MutexGuard<'static, ()> {
        TURN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a test at every level.
    pub(crate) fn at_every_level(mut test: impl FnMut(Level)) {
        let _turn = turn();
        for level in Level::available() {
            isa::set_level(level);
            test(level);
        }
        isa::set_level(Level::Avx512);
    }
}
