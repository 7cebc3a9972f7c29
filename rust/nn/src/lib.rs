//! Fused operations that training needs.
