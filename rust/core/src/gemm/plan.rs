//! How a product is cut into tasks, and what is packed.

use super::{Dims, MatRef};
use crate::{Storage, threads};

/// How a product is cut.
///
/// No result depends on it beyond `depth`, which is fixed: every element is summed over `k` in order, in steps
/// of `depth`, wherever it lies. So the plan may look at the number of threads and results still do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Steps of `k` summed in registers before they are added to the output.
    pub depth: usize,
    /// Rows of a task.
    pub block_rows: usize,
    /// Column panels of a task.
    pub block_panels: usize,
    /// Whether `A` is packed, by each task for itself, or read in place.
    pub pack_a: bool,
    /// What becomes of `B`.
    pub pack_b: PackB,
}

/// What becomes of `B`; its ragged last panel is packed in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackB {
    /// Read in place.
    Never,
    /// Packed by each task for itself, panel by panel.
    Local,
    /// Packed as a whole before the tasks start.
    Shared,
}

/// Most steps of `k` between additions to the output: a panel of `B` then takes 96 kB, which the second-level
/// cache feeds without stalls, and adding to the output costs under 1 %.
const DEPTH: usize = 512;
/// Rows of a task where there are plenty.
const BLOCK_ROWS: usize = 128;
/// Multiply-adds below which a task is not cut further: some 20 microseconds, several times what a task costs.
const MIN_TASK: usize = 1 << 21;
/// Row-major `B` read by fewer rows than this is read in place: packing it would not pay.
const PACK_B_ROWS: usize = 512;
/// Row-major `B` of fewer elements than this stays in cache unpacked.
const PACK_B_ELEMENTS: usize = 1 << 16;
/// A `B` of more elements than this is packed by the tasks, so that memory stays bounded.
const SHARE_B_ELEMENTS: usize = 1 << 23;
/// Panels from which it pays to pack an `A` whose columns are contiguous.
const PACK_A_PANELS: usize = 16;

impl Plan {
    pub(super) fn new<T, E: Storage>(dims: Dims, a: &MatRef<'_, T>, b: &MatRef<'_, E>, width: usize) -> Self {
        let Dims { m, n, k } = dims;
        let in_place = E::IS_FLOAT && b.col_stride == 1 && (m <= PACK_B_ROWS || k * n <= PACK_B_ELEMENTS);
        let pack_b = match in_place {
            true => PackB::Never,
            false if k * n <= SHARE_B_ELEMENTS => PackB::Shared,
            false => PackB::Local,
        };
        let rows = if pack_b == PackB::Local { 2 * BLOCK_ROWS } else { BLOCK_ROWS };
        let panels = n.div_ceil(width);
        let pack_a = a.col_stride != 1 && a.row_stride == 1 && panels >= PACK_A_PANELS;
        let (block_rows, block_panels) = cut(dims, rows, panels);
        // Equal steps: a short last one would add to the output for little.
        let depth = k.div_ceil(k.div_ceil(DEPTH).max(1)).max(1);
        Self { depth, block_rows, block_panels, pack_a, pack_b }
    }
}

/// Rows and column panels of a task: at least two tasks a thread, unless they would be too small to be worth it.
fn cut(dims: Dims, most_rows: usize, panels: usize) -> (usize, usize) {
    let tasks_wanted = 2 * threads::num_threads();
    let even = |size: usize, blocks: usize| size.div_ceil(blocks);
    let (mut row_blocks, mut col_blocks) = (dims.m.div_ceil(most_rows), 1);
    let size = dims.m.saturating_mul(dims.n).saturating_mul(dims.k);
    loop {
        let (rows, cols, tasks) =
            (even(dims.m, row_blocks), even(panels, col_blocks), row_blocks * col_blocks);
        if tasks >= tasks_wanted || tasks_wanted <= 2 || size / (2 * tasks) < MIN_TASK {
            break;
        }
        // Squarish blocks read the least: a panel is about as wide as six tiles are high.
        if cols >= 6 || (cols >= 2 && rows < 48) {
            col_blocks *= 2;
        } else if rows >= 16 {
            row_blocks *= 2;
        } else {
            break;
        }
    }
    (even(dims.m, row_blocks).next_multiple_of(8), even(panels, col_blocks))
}
