//! Which subsets of a row count, in the numbering of the experts that it has.

/// The experts of a row, and its subsets in fours.
#[derive(Debug)]
pub(super) struct Counted {
    present: u32,
    /// Expert of each bit.
    pub(super) experts: Vec<usize>,
    /// For every choice of the experts from the third on, a flag for each choice of the first two.
    pub(super) quads: Vec<u8>,
    /// Subsets that count.
    pub(super) count: usize,
}

impl Counted {
    /// Of no row yet.
    pub(super) fn new() -> Self {
        Self { present: 0, experts: Vec::new(), quads: Vec::new(), count: 0 }
    }

    /// Those of a row that has the experts `present`; nothing to do where the row before had the same.
    pub(super) fn become_of(&mut self, present: u32, subsets: Option<&[u32]>) {
        if self.present == present {
            return;
        }
        self.present = present;
        self.experts.clear();
        self.experts.extend((0..u32::BITS as usize).filter(|m| present >> m & 1 == 1));
        self.quads.clear();
        let number = self.experts.len();
        self.quads.resize(1 << number.saturating_sub(2), 0);
        let Some(subsets) = subsets else {
            self.count = (1 << number) - 1;
            self.quads.fill(15);
            // The empty subset does not count, nor does what a single expert lacks a second for.
            self.quads[0] = if number == 1 { 0b10 } else { 0b1110 };
            return;
        };
        for &subset in subsets.iter().filter(|&&s| s & !present == 0) {
            let bits = self.compact(subset);
            self.quads[bits >> 2] |= 1 << (bits & 3);
        }
        self.count = self.quads.iter().map(|q| q.count_ones() as usize).sum();
    }

    /// A subset's bits in the numbering of the row.
    pub(super) fn compact(&self, subset: u32) -> usize {
        let bits = self.experts.iter().enumerate();
        bits.fold(0, |sum, (bit, m)| sum | ((subset >> m & 1) as usize) << bit)
    }

    /// Whether a subset in the numbering of the row counts.
    #[inline(always)]
    pub(super) fn counts(&self, bits: usize) -> bool {
        self.quads[bits >> 2] >> (bits & 3) & 1 == 1
    }
}
