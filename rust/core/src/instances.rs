//! Kernels compiled in the crate that wrote them, and nowhere else.

/// A trait whose functions are kernels, and its implementation for every type they are used with.
///
/// A generic function is compiled in each crate that calls it, with all that it calls: for a kernel that is a minute of
/// work, three or four instruction sets for every type. The functions of such a trait are not generic, so a release
/// compiles them here, once. Each calls what is named after `=` with its arguments.
///
/// ```
/// fn double<T: sensorium_core::Float>(x: &mut [T]) {
///     x.iter_mut().for_each(|x| *x += *x);
/// }
///
/// sensorium_core::instances! {
///     /// Kernels of this example.
///     pub trait ExampleKernels: Float for [f32, f64] {
///         /// `x = 2 x`.
///         fn double(x: &mut [Self]) = double;
///     }
/// }
/// use sensorium_core::Float;
///
/// let mut x = [1.0_f32, 2.0];
/// f32::double(&mut x);
/// assert_eq!(x, [2.0, 4.0]);
/// ```
#[macro_export]
macro_rules! instances {
    (
        $(#[$about:meta])*
        $access:vis trait $name:ident: $base:ident for [$($t:ident),+] $functions:tt
    ) => {
        $crate::instances!(@trait [$(#[$about])* $access] $name $base $functions);
        $($crate::instances!(@impl $name $t $functions);)+
    };
    (@trait [$(#[$about:meta])* $access:vis] $name:ident $base:ident {$(
        $(#[$doc:meta])*
        fn $f:ident($($arg:ident: $of:ty),* $(,)?) $(-> $out:ty)? = $generic:path;
    )+}) => {
        $(#[$about])*
        #[allow(clippy::missing_errors_doc)] // Said once, by the trait.
        $access trait $name: $base {
            $($(#[$doc])* fn $f($($arg: $of),*) $(-> $out)?;)+
        }
    };
    (@impl $name:ident $t:ident {$(
        $(#[$doc:meta])*
        fn $f:ident($($arg:ident: $of:ty),* $(,)?) $(-> $out:ty)? = $generic:path;
    )+}) => {
        impl $name for $t {
            $(
                // Debug builds compile what a test calls, where it is called: nothing for its own sake.
                #[cfg_attr(debug_assertions, inline)]
                #[cfg_attr(not(debug_assertions), inline(never))]
                fn $f($($arg: $of),*) $(-> $out)? {
                    $generic($($arg),*)
                }
            )+
        }
    };
}
