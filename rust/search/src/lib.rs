//! The search tree: select leaves, expand them, tell their values.
//!
//! The caller evaluates: a leaf is asked for, valued in any way, and told; many may be under way at once. A tree is
//! a struct of arrays, every walk a loop, so that depth costs no stack.
//!
//! The return of a node is what whoever chose it gets: `g = reward + gamma v`, with `v` the value of the state as its
//! own player sees it, and `gamma` the discount, negated where two players take turns. The root has no chooser; its
//! return is `v`.

mod config;
mod error;
mod expand;
mod nodes;
mod open;
mod proof;
mod random;
mod reroot;
mod restore;
mod score;
mod select;
mod tell;
mod tree;

pub use config::{Config, Policy, Widening};
pub use error::{Error, Result};
pub use expand::{Counts, Expansion};
pub use nodes::{NONE, Nodes, flag};
pub use restore::Counters;
pub use tree::{MAX_SIMULATIONS, Tree};
