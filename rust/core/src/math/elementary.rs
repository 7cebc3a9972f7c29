//! The functions of this module by name, over slices: for tests and benches.

use super::{exp, exp_nonpositive, exp2, exp2_nonpositive, log, log1p, map, sigmoid, softplus, tanh};
use crate::error::check_len;
use crate::{Error, Float, Kernel, Result, Simd, threads};

/// Elements of a task: some microseconds of work.
const BLOCK: usize = 1 << 13;
/// Work of an element, in floating-point operations.
const OPERATIONS: usize = 20;

crate::instances! {
    /// The elementary functions by name.
    pub trait Elementary: Float for [f32, f64] {
        /// `out = f(x)` for the function `f` of that name. An unknown name, or another length, is an error.
        fn elementary(name: &str, x: &[Self], out: &mut [Self]) -> Result<()> = elementary;
    }
}

fn elementary<T: Float>(name: &str, x: &[T], out: &mut [T]) -> Result<()> {
    check_len("out", out, x.len())?;
    // An unknown name is found before the threads start.
    T::dispatch(Block::<T> { name, x: &[], out: &mut [] })?;
    threads::for_each_block(out, BLOCK, BLOCK * OPERATIONS, |i, out| {
        let x = &x[i * BLOCK..i * BLOCK + out.len()];
        T::dispatch(Block { name, x, out }).expect("a known name");
    });
    Ok(())
}

struct Block<'a, T> {
    name: &'a str,
    x: &'a [T],
    out: &'a mut [T],
}

impl<T: Float> Kernel<T> for Block<'_, T> {
    type Output = Result<()>;
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) -> Self::Output {
        let Self { name, x, out } = self;
        macro_rules! functions {
            ($($f:ident),*) => {
                match name {
                    $(stringify!($f) => map(s, x, out, #[inline(always)] |v| $f(s, v)),)*
                    _ => {
                        let known = [$(stringify!($f)),*].join(", ");
                        let what = format!("must be one of {known}, not {name:?}");
                        return Err(Error::Value { arg: "name", what });
                    }
                }
            };
        }
        functions!(exp, exp_nonpositive, exp2, exp2_nonpositive, log, log1p, sigmoid, softplus, tanh);
        Ok(())
    }
}
