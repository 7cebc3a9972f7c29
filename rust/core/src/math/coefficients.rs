//! Constants of the elementary functions: minimax polynomials by Remez's exchange, computed with 60 digits.

/// What the functions of [`math`](super) need to know about a float.
pub trait Coefficients: Sized + 'static {
    /// `log2(e)`.
    const LOG2_E: Self;
    /// `ln 2`, cut so that its product with any exponent is exact.
    const LN2_HI: Self;
    /// The rest of `ln 2`.
    const LN2_LO: Self;
    /// Below this, `exp` is zero; below its negative it is infinite.
    const EXP_ZERO: Self;
    /// `q`, lowest first, with `exp(r) = 1 + r + r^2 q(r)` for `|r| <= ln(2) / 2`; relative error 2^-28.2
    /// (`f32`), 2^-57.9 (`f64`).
    const EXP: &[Self];
    /// `q`, lowest first, with `2^r = 1 + r q(r)` for `|r| <= 1/2`; relative error 2^-28.9, 2^-58.0.
    const EXP2: &[Self];
    /// `L`, lowest first, with `ln((1 + s) / (1 - s)) = 2 s + s z L(z)`, `z = s^2`, for the significands of
    /// [`Simd::frexp`](crate::Simd::frexp); relative error 2^-29.2, 2^-58.5.
    const LOG: &[Self];
    /// The same for `s <= 1/3`; relative error 2^-32.0, 2^-63.6.
    const LOG_UNIT: &[Self];
    /// Negative argument of `exp` whose result vanishes beside one.
    const EXP_NIL: Self;
}

impl Coefficients for f32 {
    const LOG2_E: Self = std::f32::consts::LOG2_E;
    const LN2_HI: Self = 0.693_145_75;
    const LN2_LO: Self = 1.428_606_8e-6;
    const EXP_ZERO: Self = -104.0;
    const EXP: &[Self] = &[0.499_999_94, 0.166_665_2, 0.041_668_393, 0.008_368_779, 0.001_381_447_1];
    const EXP2: &[Self] = &[
        std::f32::consts::LN_2,
        0.240_226_48,
        0.055_503_324,
        0.009_618_438,
        0.001_339_893_8,
        0.000_153_533_11,
    ];
    const LOG: &[Self] = &[0.666_667_76, 0.399_774_97, 0.298_730_4];
    const LOG_UNIT: &[Self] = &[0.666_666_75, 0.399_988_74, 0.286_170_3, 0.214_258_94, 0.243_081_48];
    const EXP_NIL: Self = -40.0;
}

impl Coefficients for f64 {
    const LOG2_E: Self = std::f64::consts::LOG2_E;
    const LN2_HI: Self = 0.693_147_180_369_123_8;
    const LN2_LO: Self = 1.908_214_929_270_587_7e-10;
    const EXP_ZERO: Self = -746.0;
    const EXP: &[Self] = &[
        0.500_000_000_000_001_1,
        0.166_666_666_666_664_1,
        0.041_666_666_666_529_21,
        0.008_333_333_333_495_598,
        0.001_388_888_894_391_507_5,
        0.000_198_412_695_048_050_9,
        2.480_149_277_147_420_4e-5,
        2.755_758_732_407_406_5e-6,
        2.763_037_526_111_630_3e-7,
        2.499_996_550_731_570_4e-8,
    ];
    const EXP2: &[Self] = &[
        std::f64::consts::LN_2,
        0.240_226_506_959_101_3,
        0.055_504_108_664_820_08,
        0.009_618_129_107_593_987,
        0.001_333_355_814_677_597_3,
        0.000_154_035_304_572_982_51,
        1.525_273_349_221_708e-5,
        1.321_543_518_198_327e-6,
        1.017_819_979_342_733_6e-7,
        7.073_801_633_175_836e-9,
        4.434_760_805_780_286e-10,
    ];
    const LOG: &[Self] = &[
        0.666_666_666_666_673_5,
        0.399_999_999_994_111_73,
        0.285_714_287_432_423,
        0.222_221_984_782_541_85,
        0.181_835_696_133_590_13,
        0.153_139_066_892_876_74,
        0.147_974_712_869_576_56,
    ];
    const LOG_UNIT: &[Self] = &[
        0.666_666_666_666_666_7,
        0.399_999_999_999_939_1,
        0.285_714_285_725_203_2,
        0.222_222_221_246_464_87,
        0.181_818_232_406_852_33,
        0.153_844_508_657_792_45,
        0.133_368_250_034_211_54,
        0.117_157_302_793_178_92,
        0.109_741_314_993_430_54,
        0.069_879_936_938_159_7,
        0.164_783_914_235_908_1,
    ];
    const EXP_NIL: Self = -80.0;
}
