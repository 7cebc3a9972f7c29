//! Numbers of two `f64` (about 106 bits): the reference that `f64` functions are held to.
//! Sums and products without error after Dekker 1971 and Knuth 1969.
#![allow(clippy::should_implement_trait)]

/// `hi + lo`, with `lo` below half an ulp of `hi`.
#[derive(Debug, Clone, Copy)]
pub struct Double {
    pub hi: f64,
    pub lo: f64,
}

/// `ln 2` to 160 bits.
const LN2: [f64; 3] =
    [f64::from_bits(0x3fe6_2e42_fefa_39ef), 2.319_046_813_846_299_6e-17, 5.707_708_438_416_212e-34];

#[allow(dead_code)] // Some tests need less.
impl Double {
    pub const fn new(hi: f64) -> Self {
        Self { hi, lo: 0.0 }
    }

    fn sum(a: f64, b: f64) -> Self {
        let hi = a + b;
        let part = hi - a;
        Self { hi, lo: (a - (hi - part)) + (b - part) }
    }

    fn product(a: f64, b: f64) -> Self {
        let hi = a * b;
        Self { hi, lo: a.mul_add(b, -hi) }
    }

    pub fn add(self, other: Self) -> Self {
        let hi = Self::sum(self.hi, other.hi);
        let lo = Self::sum(self.lo, other.lo);
        let hi = Self::sum(hi.hi, hi.lo + lo.hi);
        Self::sum(hi.hi, hi.lo + lo.lo)
    }

    pub fn neg(self) -> Self {
        Self { hi: -self.hi, lo: -self.lo }
    }

    pub fn abs(self) -> Self {
        if self.hi < 0.0 { self.neg() } else { self }
    }

    /// The larger of it and 0.
    pub fn max_zero(self) -> Self {
        if self.hi < 0.0 { Self::new(0.0) } else { self }
    }

    pub fn mul(self, other: Self) -> Self {
        let p = Self::product(self.hi, other.hi);
        Self::sum(p.hi, p.lo + (self.hi * other.lo + self.lo * other.hi))
    }

    pub fn div(self, other: Self) -> Self {
        let first = self.hi / other.hi;
        let rest = self.add(other.mul(Self::new(first)).neg());
        let second = rest.hi / other.hi;
        let rest = rest.add(other.mul(Self::new(second)).neg());
        Self::sum(first, second).add(Self::new(rest.hi / other.hi))
    }

    /// `(e^x - 1) 2^-n` and `n`, for `|x| <= 1000`: series of `x / 2^8`, then squared eight times.
    fn expm1_parts(self) -> (Self, i32) {
        let n = (self.hi / LN2[0]).round();
        let r = LN2.iter().fold(self, |r, &part| r.add(Self::product(part, -n)));
        let r = Self { hi: r.hi / 256.0, lo: r.lo / 256.0 };
        let mut m = Self::new(0.0);
        for k in (1..=16).rev() {
            // m = r / k (1 + m)
            m = r.div(Self::new(f64::from(k))).mul(m.add(Self::new(1.0)));
        }
        for _ in 0..8 {
            // (1 + m)^2 - 1
            m = m.mul(m.add(Self::new(2.0)));
        }
        #[allow(clippy::cast_possible_truncation)]
        (m, n as i32)
    }

    /// `e^x` as a number and a power of two, which may lie outside of `f64`'s range.
    pub fn exp_scaled(self) -> (Self, i32) {
        let (m, n) = self.expm1_parts();
        (m.add(Self::new(1.0)), n)
    }

    /// `e^x` where that is a normal number.
    pub fn exp(self) -> Self {
        let (m, n) = self.exp_scaled();
        m.scale(n)
    }

    /// `e^x - 1` for `|x| < 700`.
    pub fn expm1(self) -> Self {
        let (m, n) = self.expm1_parts();
        if n == 0 { m } else { m.add(Self::new(1.0)).scale(n).add(Self::new(-1.0)) }
    }

    /// Times `2^n`.
    pub fn scale(self, n: i32) -> Self {
        let half = n / 2;
        let (a, b) = (f64::from(half).exp2(), f64::from(n - half).exp2());
        Self { hi: self.hi * a * b, lo: self.lo * a * b }
    }

    /// `ln x` for normal `x > 0`, by Newton's step from `f64`'s logarithm.
    pub fn ln(self) -> Self {
        let first = self.hi.ln();
        let (m, n) = Self::new(-first).exp_scaled();
        // x e^-first - 1 is tiny: log1p of it is its series.
        let t = self.scale(n).mul(m).add(Self::new(-1.0));
        let square = t.mul(t);
        let half = Self { hi: square.hi / 2.0, lo: square.lo / 2.0 };
        Self::new(first).add(t.add(half.neg()))
    }

    /// `ln(1 + x)` for `x > -1`.
    pub fn ln_1p(self) -> Self {
        if self.hi.abs() > 1e-3 {
            return self.add(Self::new(1.0)).ln();
        }
        // x (1 - x (1/2 - x (1/3 - ...))), which loses nothing near zero.
        let mut sum = Self::new(0.0);
        for k in (1..=14).rev() {
            sum = Self::new(1.0).div(Self::new(f64::from(k))).add(self.mul(sum).neg());
        }
        self.mul(sum)
    }
}
