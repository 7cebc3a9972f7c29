//! Attention over segment layouts.
