//! Kolmogorov-Smirnov: whole distributions of two samples.

use super::{BadSample, Side, Tested, finite, sorted};
use crate::numbers::{index, whole};
use crate::special::binomial;

/// Most lattice points that the exact test walks.
const EXACT_PAIRS: usize = 4_000_000;

/// Greatest excess of one empirical distribution function over the other, times both sizes: (first over second, second over first).
fn excesses(a: &[f64], b: &[f64]) -> Result<(i128, i128), BadSample> {
    finite(a, 1)?;
    finite(b, 1)?;
    let (a, b) = (sorted(a), sorted(b));
    let (m, n) = (a.len() as i128, b.len() as i128);
    let (mut i, mut j, mut over, mut under) = (0, 0, 0, 0);
    while i < a.len() || j < b.len() {
        let at = match (a.get(i), b.get(j)) {
            (Some(x), Some(y)) => x.min(*y),
            (Some(x), None) => *x,
            (None, Some(y)) => *y,
            (None, None) => break,
        };
        while i < a.len() && a[i] <= at {
            i += 1;
        }
        while j < b.len() && b[j] <= at {
            j += 1;
        }
        let d = i as i128 * n - j as i128 * m;
        over = over.max(d);
        under = under.max(-d);
    }
    Ok((over, under))
}

/// The two-sample test by the exact distribution (as without ties), for sizes that multiply to at most 4,000,000. `Greater`: the first distribution function exceeds the second,
/// so that its values are the lesser ones. The statistic is the greatest difference.
///
/// # Errors
/// [`BadSample`] for an empty sample, values that are not finite, or samples that are too large.
pub fn kolmogorov_smirnov(a: &[f64], b: &[f64], side: Side) -> Result<Tested, BadSample> {
    let (over, under) = excesses(a, b)?;
    let (m, n) = (a.len(), b.len());
    if m * n > EXACT_PAIRS {
        return Err(BadSample::TooMany {
            limit: EXACT_PAIRS,
            got: m * n,
        });
    }
    let d = pick(over, under, side);
    let statistic = d as f64 / (m * n) as f64;
    if d <= 0 {
        return Ok(Tested { statistic, p: 1.0 });
    }
    // P(a random path to (i, j) has reached the difference), from its last step.
    let reached = |i: usize, j: usize| {
        let excess = i as i128 * n as i128 - j as i128 * m as i128;
        match side {
            Side::Greater => excess >= d,
            Side::Less => -excess >= d,
            Side::TwoSided => excess.abs() >= d,
        }
    };
    let mut row = vec![0.0; n + 1];
    for i in 0..=m {
        for j in 0..=n {
            row[j] = if reached(i, j) {
                1.0
            } else if i == 0 && j == 0 {
                0.0
            } else {
                let from_left = if j > 0 { row[j - 1] } else { 0.0 };
                let from_above = if i > 0 { row[j] } else { 0.0 };
                (i as f64 * from_above + j as f64 * from_left) / (i + j) as f64
            };
        }
    }
    Ok(Tested {
        statistic,
        p: f64::min(row[n], 1.0),
    })
}

fn pick(over: i128, under: i128, side: Side) -> i128 {
    match side {
        Side::Greater => over,
        Side::Less => under,
        Side::TwoSided => over.max(under),
    }
}

/// The two-sample test for large samples: two-sided by the one-sample distribution of Kolmogorov at the effective size mn / (m + n), one-sided by Hodges' approximation (1957).
///
/// # Errors
/// [`BadSample`] for an empty sample or values that are not finite.
pub fn kolmogorov_smirnov_asymptotic(
    a: &[f64],
    b: &[f64],
    side: Side,
) -> Result<Tested, BadSample> {
    let (over, under) = excesses(a, b)?;
    let (m, n) = (a.len().max(b.len()) as f64, a.len().min(b.len()) as f64);
    let statistic = pick(over, under, side) as f64 / (m * n);
    let effective = m * n / (m + n);
    let p = if side == Side::TwoSided {
        kolmogorov_sf(whole(libm::rint(effective)), statistic)
    } else {
        let z = libm::sqrt(effective) * statistic;
        libm::exp(-2.0 * z * z - 2.0 * z * (m + 2.0 * n) / libm::sqrt(m * n * (m + n)) / 3.0)
    };
    Ok(Tested {
        statistic,
        p: p.clamp(0.0, 1.0),
    })
}

/// P(D_n >= d) of Kolmogorov's one-sample statistic: twice Smirnov's one-sided tail where that is exact to 1e-12 (Miller 1956), Durbin's matrix up to n = 10,000
/// (Marsaglia, Tsang and Wang 2003), Pelz and Good's expansion (1976) beyond.
fn kolmogorov_sf(n: u64, d: f64) -> f64 {
    let size = n as f64;
    if n == 0 || d * size <= 0.5 {
        return 1.0;
    }
    if d >= 1.0 {
        return 0.0;
    }
    if size * d * d > 4.0 || d * 2.0 >= 1.0 {
        return (2.0 * smirnov_sf(n, d)).min(1.0);
    }
    if n <= 10_000 {
        1.0 - durbin(n, d)
    } else {
        1.0 - pelz_good(size, d)
    }
}

/// P(D+_n >= d): d sum_j C(n, j) (d + j/n)^(j - 1) (1 - d - j/n)^(n - j).
fn smirnov_sf(n: u64, d: f64) -> f64 {
    let size = n as f64;
    let last = whole(size * (1.0 - d));
    let mut sum = 0.0;
    for j in 0..=last.min(10_000_000) {
        let (x, rest) = (j as f64, 1.0 - d - j as f64 / size);
        let power = if rest > 0.0 {
            (size - x) * libm::log(rest)
        } else if j == n {
            0.0
        } else {
            continue;
        };
        sum += libm::exp(binomial::ln_choose(n, j) + (x - 1.0) * libm::log(d + x / size) + power);
    }
    (d * sum).min(1.0)
}

/// P(D_n < d) by the power of a matrix of size 2 floor(n d) + 1.
fn durbin(n: u64, d: f64) -> f64 {
    let scaled = n as f64 * d;
    let k = index(scaled) + 1;
    let h = k as f64 - scaled;
    let size = 2 * k - 1;
    let mut matrix = vec![0.0; size * size];
    for i in 0..size {
        for j in 0..size.min(i + 2) {
            matrix[i * size + j] = 1.0;
        }
    }
    let mut power = 1.0;
    for i in 0..size {
        power *= h;
        matrix[i * size] -= power;
        matrix[(size - 1) * size + size - 1 - i] -= power;
    }
    if 2.0 * h > 1.0 {
        matrix[(size - 1) * size] += libm::pow(2.0 * h - 1.0, size as f64);
    }
    for i in 0..size {
        for j in 0..size.min(i + 2) {
            for g in 1..=(i + 1 - j) {
                matrix[i * size + j] /= g as f64;
            }
        }
    }
    let multiply = |x: &[f64], y: &[f64]| {
        let mut out = vec![0.0; size * size];
        for i in 0..size {
            for l in 0..size {
                let factor = x[i * size + l];
                for j in 0..size {
                    out[i * size + j] += factor * y[l * size + j];
                }
            }
        }
        out
    };
    // result * 2^result_exponent = matrix^n.
    let mut result = vec![0.0; size * size];
    for i in 0..size {
        result[i * size + i] = 1.0;
    }
    let middle = (k - 1) * size + k - 1;
    let (mut exponent, mut result_exponent, mut left) = (0i32, 0i32, n);
    while left > 0 {
        if left & 1 == 1 {
            result = multiply(&result, &matrix);
            result_exponent += exponent;
        }
        left >>= 1;
        if left > 0 {
            matrix = multiply(&matrix, &matrix);
            exponent *= 2;
            for (m, e) in [
                (&mut matrix, &mut exponent),
                (&mut result, &mut result_exponent),
            ] {
                if m[middle].abs() > 1e140 {
                    for v in m.iter_mut() {
                        *v *= 1e-140;
                    }
                    *e += 140;
                }
            }
        }
    }
    // times n! / n^n.
    let mut p = result[middle];
    for i in 1..=n {
        p *= i as f64 / n as f64;
        if p < 1e-140 {
            p *= 1e140;
            result_exponent -= 140;
        }
    }
    (p * libm::pow(10.0, f64::from(result_exponent))).clamp(0.0, 1.0)
}

/// P(D_n < d) to order n^(-3/2), relative to 1 about 1e-8 at n = 10,000.
fn pelz_good(n: f64, d: f64) -> f64 {
    use std::f64::consts::PI;
    let z = libm::sqrt(n) * d;
    let (pi2, z2) = (PI * PI, z * z);
    let (mut k0, mut k1, mut k2, mut k3) = (0.0, 0.0, 0.0, 0.0);
    for k in 0..40 {
        let h = f64::from(k) + 0.5;
        let h2 = h * h;
        let e = libm::exp(-pi2 * h2 / (2.0 * z2));
        k0 += e;
        k1 += (pi2 * h2 - z2) * e;
        k2 += (6.0 * z2 * z2 * z2
            + 2.0 * z2 * z2
            + pi2 * (2.0 * z2 * z2 - 5.0 * z2) * h2
            + pi2 * pi2 * (1.0 - 2.0 * z2) * h2 * h2)
            * e;
        k3 += (-30.0 * z2 * z2 * z2 - 90.0 * z2 * z2 * z2 * z2
            + pi2 * (135.0 * z2 * z2 - 96.0 * z2 * z2 * z2) * h2
            + pi2 * pi2 * (212.0 * z2 * z2 - 60.0 * z2) * h2 * h2
            + pi2 * pi2 * pi2 * (5.0 - 30.0 * z2) * h2 * h2 * h2)
            * e;
    }
    let root = libm::sqrt(2.0 * PI);
    let half = libm::sqrt(PI / 2.0);
    k0 *= root / z;
    k1 *= half / (3.0 * z2 * z2);
    k2 *= half / (36.0 * libm::pow(z, 7.0));
    k3 *= half / (3240.0 * libm::pow(z, 10.0));
    for k in 1..40 {
        let k_sq = f64::from(k) * f64::from(k);
        let e = libm::exp(-pi2 * k_sq / (2.0 * z2));
        k2 -= half * pi2 * k_sq * e / (18.0 * z * z2);
        k3 += half * pi2 * k_sq * (3.0 * z2 - pi2 * k_sq) * e / (108.0 * libm::pow(z, 6.0));
    }
    let root_n = libm::sqrt(n);
    (k0 + k1 / root_n + k2 / n + k3 / (n * root_n)).clamp(0.0, 1.0)
}
