//! Rows on their way between memory and arithmetic: widened, turned by their position, narrowed.

use crate::rotary::{Turn, turn_halves, turn_neighbours};
use crate::source::Turning;
use crate::view::{View, ViewMut};
use sensorium_core::{Float, Kernel, Simd, Storage, threads};

/// Elements to a task.
const TASK: usize = 1 << 14;
/// Work of an element, in the units of [`threads::for_each`]: moving it is bound by memory.
const ELEMENT_WORK: usize = 8;

/// `to[i] = from[i]` for `rows` rows of `width` elements, turned where asked, rounded where `F` is narrower.
///
/// `from` and `to` may be the same rows.
#[derive(Debug)]
pub(crate) struct Carry<E: Storage, F> {
    pub(crate) from: *const E,
    pub(crate) from_stride: usize,
    pub(crate) to: *mut F,
    pub(crate) to_stride: usize,
    pub(crate) rows: usize,
    pub(crate) width: usize,
    /// From row 0 on.
    pub(crate) turn: Option<Turn<E::Float>>,
}

impl<E: Storage, F: Storage<Float = E::Float>> Carry<E, F> {
    /// Does it.
    ///
    /// # Safety
    /// The rows of `from` are readable, those of `to` writable, and the table of `turn` has as many.
    pub(crate) unsafe fn run(self) {
        E::Float::dispatch(self);
    }
}

impl<E: Storage, F: Storage<Float = E::Float>> Kernel<E::Float> for Carry<E, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<E::Float>>(self, s: S) {
        for i in 0..self.rows {
            let from = self.from.wrapping_add(i * self.from_stride);
            let to = self.to.wrapping_add(i * self.to_stride);
            // SAFETY: as the caller of `Carry::run` vouches.
            unsafe {
                let mut turned = 0;
                if let Some(turn) = self.turn {
                    let turn = turn.from(i);
                    if turn.neighbours {
                        turn_neighbours(s, from, to, turn);
                    } else {
                        turn_halves(s, from, to, turn);
                    }
                    turned = 2 * turn.pairs;
                }
                carry_elements(s, from.add(turned), to.add(turned), self.width - turned);
            }
        }
    }
}

/// `to[i] = from[i]` for `n` elements.
///
/// # Safety
/// They are readable and writable.
#[inline(always)]
pub(crate) unsafe fn carry_elements<E: Storage, F: Storage<Float = E::Float>, S: Simd<E::Float>>(
    s: S,
    from: *const E,
    to: *mut F,
    n: usize,
) {
    let whole = n - n % S::LANES;
    // SAFETY: as the caller vouches.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            F::store_ptr(s, to.add(i), E::load_ptr(s, from.add(i)));
        }
        if whole < n {
            F::store_head_ptr(s, to.add(whole), n - whole, E::load_head_ptr(s, from.add(whole), n - whole));
        }
    }
}

/// Carries every row of `from` to the same row of `to`, which is of the same shape and may be the same tensor.
pub(crate) fn carry<E: Storage, F: Storage<Float = E::Float>>(
    from: &View<'_, E>,
    to: &ViewMut<'_, F>,
    turning: Option<Turning<'_, E::Float>>,
    inverse: bool,
) {
    let [batch, heads, tokens, width] = from.shape();
    let rows = (TASK / width.max(1)).max(1);
    let parts = tokens.div_ceil(rows);
    threads::for_each(batch * heads * parts, rows * width * ELEMENT_WORK, |task| {
        let (head, first) = (task / parts, task % parts * rows);
        let (batch, head) = (head / heads, head % heads);
        let (from, to) = (from.head(batch, head), to.head(batch, head));
        let carry = Carry {
            from: from.row(first),
            from_stride: from.stride,
            to: to.row(first),
            to_stride: to.stride,
            rows: rows.min(tokens - first),
            width,
            turn: turning.map(|t| t.turn(batch, first, inverse)),
        };
        // SAFETY: the views vouch for their rows, the caller for the table's; tasks have rows of their own.
        unsafe { carry.run() };
    });
}
