//! Rows of a table by index, and their scatter-add backward.
//!
//! Backward sorts the positions by index (counting sort, stable), then adds the gradients of each table row in
//! the order of the positions: the result is the same for any number of threads, and no row is written twice.

use crate::vector::ROWS;
use sensorium_core::error::{check_len, product};
use sensorium_core::threads::for_each_block;
use sensorium_core::{Error, Float, Result};

/// Sizes: a table of `v` rows of `d`, and `n` positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Rows of the table.
    pub v: usize,
    /// Elements of a row.
    pub d: usize,
    /// Positions.
    pub n: usize,
}

fn check(dims: Dims, indices: &[i64]) -> Result<()> {
    check_len("indices", indices, dims.n)?;
    match indices.iter().find(|&&i| usize::try_from(i).map_or(true, |i| i >= dims.v)) {
        Some(bad) => Err(Error::Value {
            arg: "indices",
            what: format!("holds {bad}, expected indices from 0 to {}", dims.v as i64 - 1),
        }),
        None => Ok(()),
    }
}

/// `out[i] = table[indices[i]]`.
///
/// # Errors
/// Where a length does not fit `dims`, or an index is out of range.
pub(crate) fn forward<T: Float>(dims: Dims, table: &[T], indices: &[i64], out: &mut [T]) -> Result<()> {
    let Dims { v, d, n } = dims;
    check(dims, indices)?;
    check_len("table", table, product("table", &[v, d])?)?;
    check_len("out", out, product("out", &[n, d])?)?;
    if d == 0 {
        return Ok(());
    }
    for_each_block(out, ROWS * d, ROWS * d, |b, out| {
        for (row, &i) in out.chunks_exact_mut(d).zip(&indices[b * ROWS..]) {
            row.copy_from_slice(&table[i as usize * d..][..d]);
        }
    });
    Ok(())
}

/// `dtable[v] = sum of grad[i] over positions i of index v`.
///
/// # Errors
/// Where a length does not fit `dims`, or an index is out of range.
pub(crate) fn backward<T: Float>(dims: Dims, grad: &[T], indices: &[i64], dtable: &mut [T]) -> Result<()> {
    let Dims { v, d, n } = dims;
    check(dims, indices)?;
    check_len("grad", grad, product("grad", &[n, d])?)?;
    check_len("dtable", dtable, product("dtable", &[v, d])?)?;
    if d == 0 || v == 0 {
        return Ok(());
    }
    let (starts, order) = sort(v, indices);
    let add = |b: usize, rows: &mut [T]| {
        rows.fill(T::ZERO);
        for (row, r) in rows.chunks_exact_mut(d).zip(b * ROWS..) {
            for &i in &order[starts[r]..starts[r + 1]] {
                for (o, &g) in row.iter_mut().zip(&grad[i * d..(i + 1) * d]) {
                    *o += g;
                }
            }
        }
    };
    let work = (n * d / v.div_ceil(ROWS)).max(1);
    for_each_block(dtable, ROWS * d, work, add);
    Ok(())
}

/// Positions in the order of their index, and where each index starts.
fn sort(v: usize, indices: &[i64]) -> (Vec<usize>, Vec<usize>) {
    let mut starts = vec![0_usize; v + 1];
    for &i in indices {
        starts[i as usize + 1] += 1;
    }
    for r in 0..v {
        starts[r + 1] += starts[r];
    }
    let mut next = starts.clone();
    let mut order = vec![0; indices.len()];
    for (position, &i) in indices.iter().enumerate() {
        order[next[i as usize]] = position;
        next[i as usize] += 1;
    }
    (starts, order)
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // What is compared is exact.
mod tests {
    use super::*;

    #[test]
    fn gradients_of_equal_indices_add_up() {
        let dims = Dims { v: 3, d: 2, n: 4 };
        let mut table = [9.0_f32; 6];
        let grad = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        backward(dims, &grad, &[2, 0, 2, 2], &mut table).unwrap();
        assert_eq!(table, [3.0, 4.0, 0.0, 0.0, 13.0, 16.0]);
    }
}
