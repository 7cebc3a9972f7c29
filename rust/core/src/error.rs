//! Errors are data; their words are written here and nowhere else.

use std::fmt;

/// What a kernel can refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A dimension differs from what another argument fixed.
    Dim {
        /// Argument that was wrong.
        arg: &'static str,
        /// Letter of the dimension.
        dim: &'static str,
        /// Expected size.
        want: usize,
        /// Size found.
        got: usize,
    },
    /// A slice does not hold as many elements as its shape says.
    Len {
        /// Argument that was wrong.
        arg: &'static str,
        /// Expected number of elements.
        want: usize,
        /// Number found.
        got: usize,
    },
    /// A product of sizes does not fit the address space.
    Overflow {
        /// Argument whose size overflows.
        arg: &'static str,
    },
    /// A value outside what the argument allows.
    Value {
        /// Argument that was wrong.
        arg: &'static str,
        /// What was expected and what was found, as the end of a sentence that begins with the argument.
        what: String,
    },
}

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dim { arg, dim, want, got } => write!(f, "{arg} has {dim}={got}, expected {dim}={want}"),
            Self::Len { arg, want, got } => write!(f, "{arg} has {got} elements, expected {want}"),
            Self::Overflow { arg } => write!(f, "{arg} is too large: its size overflows"),
            Self::Value { arg, what } => write!(f, "{arg} {what}"),
        }
    }
}

impl std::error::Error for Error {}

/// Checks that `slice` has `want` elements.
///
/// # Errors
/// [`Error::Len`] where it has not.
pub fn check_len<T>(arg: &'static str, slice: &[T], want: usize) -> Result<()> {
    if slice.len() == want { Ok(()) } else { Err(Error::Len { arg, want, got: slice.len() }) }
}

/// Product of `sizes`.
///
/// # Errors
/// [`Error::Overflow`] where it does not fit `isize` (the most that a slice can hold).
pub fn product(arg: &'static str, sizes: &[usize]) -> Result<usize> {
    sizes
        .iter()
        .try_fold(1_usize, |n, &size| n.checked_mul(size))
        .filter(|&n| isize::try_from(n).is_ok())
        .ok_or(Error::Overflow { arg })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_argument() {
        let error = Error::Dim { arg: "k", dim: "D", want: 4, got: 3 };
        assert_eq!(error.to_string(), "k has D=3, expected D=4");
        assert_eq!(check_len("q", &[0.0_f32; 3], 4).unwrap_err().to_string(), "q has 3 elements, expected 4");
        assert_eq!(
            product("q", &[usize::MAX, 2]).unwrap_err().to_string(),
            "q is too large: its size overflows"
        );
        assert_eq!(product("q", &[3, 0, 5]), Ok(0));
    }
}
