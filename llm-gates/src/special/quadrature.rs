//! Integrals of smooth functions by composite Gauss-Legendre rules.

/// Nodes in (0, 1) and weights of the rule with 16 points on [-1, 1]; it is symmetric.
const RULE: [(f64, f64); 8] = [
    (0.989_400_934_991_649_9, 0.027_152_459_411_754_096),
    (0.944_575_023_073_232_6, 0.062_253_523_938_647_894),
    (0.865_631_202_387_831_8, 0.095_158_511_682_492_78),
    (0.755_404_408_355_003, 0.124_628_971_255_533_88),
    (0.617_876_244_402_643_8, 0.149_595_988_816_576_74),
    (0.458_016_777_657_227_37, 0.169_156_519_395_002_54),
    (0.281_603_550_779_258_9, 0.182_603_415_044_923_58),
    (0.095_012_509_837_637_44, 0.189_450_610_455_068_5),
];

/// Integral of `f` over [a, b] with `panels` panels of 16 points.
pub(super) fn integral(f: impl Fn(f64) -> f64, a: f64, b: f64, panels: u32) -> f64 {
    let half = 0.5 * (b - a) / f64::from(panels);
    let mut sum = 0.0;
    for panel in 0..panels {
        let middle = a + half * f64::from(2 * panel + 1);
        for (node, weight) in RULE {
            sum += weight * (f(middle - half * node) + f(middle + half * node));
        }
    }
    half * sum
}

/// Integral of exp(h) over [0, inf) for concave h that decreases from h(0) = 0.
pub(super) fn tail(h: impl Fn(f64) -> f64) -> f64 {
    const NOTHING: f64 = -44.0;
    let mut end = 1.0;
    for _ in 0..400 {
        if h(end) >= NOTHING {
            break;
        }
        end *= 0.5;
    }
    for _ in 0..400 {
        if h(end) < NOTHING {
            break;
        }
        end *= 2.0;
    }
    // Now h(end / 2) >= NOTHING > h(end); h is concave, so the rest is negligible.
    for _ in 0..4 {
        let middle = 0.75 * end;
        if h(middle) >= NOTHING {
            break;
        }
        end = middle;
    }
    integral(|s| libm::exp(h(s)), 0.0, end, 8)
}
