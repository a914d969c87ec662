//! Exact tests on counts.

use super::{BadSample, Side, Tested, open_unit, parameter};
use crate::Counts;
use crate::numbers::whole;
use crate::special::{binomial as law, gamma};

/// Relative slack when outcomes are ranked by probability, as in common practice, so that equal ones count as equal.
const SLACK: f64 = 1e-7;

/// Test of k ~ Bin(n, p0). Two-sided: the outcomes no more probable than the observed one.
///
/// # Errors
/// [`BadSample`] for k > n, n = 0 or p0 outside (0, 1).
pub fn binomial(c: Counts, p0: f64, side: Side) -> Result<Tested, BadSample> {
    c.check()?;
    open_unit("p0", p0)?;
    if c.n == 0 {
        return Err(BadSample::TooFew { needed: 1, got: 0 });
    }
    let Counts { n, k } = c;
    let p = match side {
        Side::Less => law::cdf(n, k, p0),
        Side::Greater => law::sf_inclusive(n, k, p0),
        Side::TwoSided => {
            let mode = whole((n as f64 + 1.0) * p0);
            let (below, above) = less_probable(0, n, mode.min(n), k, |x| law::ln_pmf(n, x, p0));
            below.map_or(0.0, |x| law::cdf(n, x, p0))
                + above.map_or(0.0, |x| law::sf_inclusive(n, x, p0))
        }
    };
    Ok(Tested {
        statistic: k as f64 / n as f64,
        p: p.min(1.0),
    })
}

/// For a law with one mode on [low, high]: the last outcome below the mode and the first above it that are no more probable than `x`.
fn less_probable(
    low: u64,
    high: u64,
    mode: u64,
    x: u64,
    ln_pmf: impl Fn(u64) -> f64,
) -> (Option<u64>, Option<u64>) {
    let level = ln_pmf(x) + libm::log1p(SLACK);
    let rare = |y| ln_pmf(y) <= level;
    // Below the mode: rare outcomes are a prefix.
    let (mut a, mut b) = (low, mode);
    while a < b {
        let middle = a + (b - a) / 2;
        if rare(middle) {
            a = middle + 1;
        } else {
            b = middle;
        }
    }
    let below = if a == mode && rare(mode) {
        Some(mode)
    } else {
        a.checked_sub(1).filter(|y| *y >= low)
    };
    let (mut c, mut d) = (mode, high);
    while c < d {
        let middle = c + (d - c).div_ceil(2);
        if rare(middle) {
            d = middle - 1;
        } else {
            c = middle;
        }
    }
    let first = if rare(c) { c } else { c + 1 };
    let first = first.max(below.map_or(low, |y| y + 1));
    (below, (first <= high).then_some(first))
}

/// Fisher's exact test (1934) of equal proportions, for small counts. Two-sided: the tables no more probable than the observed one. The statistic is the odds ratio,
/// greatest float where it is infinite.
///
/// # Errors
/// [`BadSample`] for k > n or totals beyond 64 bits.
pub fn fisher(candidate: Counts, baseline: Counts, side: Side) -> Result<Tested, BadSample> {
    candidate.check()?;
    baseline.check()?;
    let Counts {
        n: total,
        k: marked,
    } = candidate.plus(baseline)?;
    let drawn = candidate.n;
    let (low, high) = (marked.saturating_sub(total - drawn), marked.min(drawn));
    let x = candidate.k;
    let ln_pmf = |y| law::ln_hypergeometric(total, marked, drawn, y);
    // Sums from the mode outwards: each term follows from the one before.
    let up = |from: u64| {
        tail_sum(ln_pmf(from), high - from, |i| {
            let y = (from + i) as f64;
            (marked as f64 - y) / (y + 1.0) * (drawn as f64 - y)
                / (total as f64 - marked as f64 - drawn as f64 + y + 1.0)
        })
    };
    let down = |from: u64| {
        tail_sum(ln_pmf(from), from - low, |i| {
            let y = (from - i) as f64;
            y / (marked as f64 - y + 1.0) * (total as f64 - marked as f64 - drawn as f64 + y)
                / (drawn as f64 - y + 1.0)
        })
    };
    let mode =
        whole((drawn as f64 + 1.0) * (marked as f64 + 1.0) / (total as f64 + 2.0)).clamp(low, high);
    // The tail that holds the mode is one minus the other.
    let greater = |x: u64| {
        if x > mode {
            up(x)
        } else if x == low {
            1.0
        } else {
            1.0 - down(x - 1)
        }
    };
    let less = |x: u64| {
        if x < mode {
            down(x)
        } else if x == high {
            1.0
        } else {
            1.0 - up(x + 1)
        }
    };
    let p = match side {
        Side::Less => less(x),
        Side::Greater => greater(x),
        Side::TwoSided => {
            let (below, above) = less_probable(low, high, mode, x, ln_pmf);
            below.map_or(0.0, less) + above.map_or(0.0, greater)
        }
    };
    let (a, b) = (candidate.k as f64, (candidate.n - candidate.k) as f64);
    let (c, d) = (baseline.k as f64, (baseline.n - baseline.k) as f64);
    let odds = if b * c > 0.0 {
        a * d / (b * c)
    } else if a * d > 0.0 {
        f64::MAX
    } else {
        1.0
    };
    Ok(Tested {
        statistic: odds,
        p: p.clamp(0.0, 1.0),
    })
}

/// exp(ln_first) (1 + r_0 + r_0 r_1 + ...) with at most `terms` ratios.
fn tail_sum(ln_first: f64, terms: u64, ratio: impl Fn(u64) -> f64) -> f64 {
    let (mut sum, mut term) = (1.0, 1.0);
    for i in 0..terms {
        term *= ratio(i);
        sum += term;
        if term < 1e-18 * sum {
            break;
        }
    }
    libm::exp(ln_first) * sum
}

/// ln P(X = x) of Fisher's noncentral hypergeometric law: x of `drawn` are marked, given that `marked` of `total` are, at the given odds ratio. In time that grows with the
/// standard deviation of x.
///
/// # Errors
/// [`BadSample`] for odds that are not finite and above 0, or counts above the total.
pub fn ln_noncentral_hypergeometric(
    total: u64,
    marked: u64,
    drawn: u64,
    odds: f64,
    x: u64,
) -> Result<f64, BadSample> {
    parameter(
        odds > 0.0 && odds.is_finite(),
        "odds",
        odds,
        "be finite and above 0",
    )?;
    Counts {
        n: total,
        k: marked.max(drawn),
    }
    .check()?;
    let (low, high) = (marked.saturating_sub(total - drawn), marked.min(drawn));
    if x < low || x > high {
        return Ok(f64::NEG_INFINITY);
    }
    let (m, n, rest) = (
        marked as f64,
        drawn as f64,
        total as f64 - marked as f64 - drawn as f64,
    );
    let ratio = |y: f64| odds * (m - y) / (y + 1.0) * (n - y) / (rest + y + 1.0);
    // Ratios fall with y: the mode is where they pass 1.
    let (mut a, mut b) = (low, high);
    while a < b {
        let middle = a + (b - a) / 2;
        if ratio(middle as f64) >= 1.0 {
            a = middle + 1;
        } else {
            b = middle;
        }
    }
    let mode = a;
    let ln = |y: u64| law::ln_hypergeometric(total, marked, drawn, y) + y as f64 * libm::log(odds);
    let up = tail_sum(0.0, high - mode, |i| ratio((mode + i) as f64));
    let down = tail_sum(0.0, mode - low, |i| 1.0 / ratio((mode - i) as f64 - 1.0));
    Ok(ln(x) - ln(mode) - libm::log(up + down - 1.0))
}

/// Conditional test of two Poisson rates (Przyborowski and Wilenski 1940): `candidate` events in exposure `t_candidate` against
/// `ratio` times the baseline's rate. For rare events such as crashes per replica-hour. The statistic is the ratio of the rates, NaN-free: 0 without events.
///
/// # Errors
/// [`BadSample`] for exposures or a ratio that are not finite and above 0.
pub fn rates(
    candidate: u64,
    t_candidate: f64,
    baseline: u64,
    t_baseline: f64,
    ratio: f64,
    side: Side,
) -> Result<Tested, BadSample> {
    for (name, value) in [
        ("t_candidate", t_candidate),
        ("t_baseline", t_baseline),
        ("ratio", ratio),
    ] {
        parameter(
            value > 0.0 && value.is_finite(),
            name,
            value,
            "be finite and above 0",
        )?;
    }
    let total = Counts { n: candidate, k: 0 }
        .plus(Counts { n: baseline, k: 0 })?
        .n;
    if total == 0 {
        return Ok(Tested {
            statistic: 0.0,
            p: 1.0,
        });
    }
    let share = ratio * t_candidate / (ratio * t_candidate + t_baseline);
    let tested = binomial(
        Counts {
            n: total,
            k: candidate,
        },
        share,
        side,
    )?;
    let observed = if baseline == 0 {
        f64::MAX
    } else {
        candidate as f64 / t_candidate / (baseline as f64 / t_baseline)
    };
    Ok(Tested {
        statistic: observed,
        p: tested.p,
    })
}

/// McNemar's exact test (1947) on discordant pairs: `negative` were right and are now wrong, `positive` the other way. `Greater`: more negative flips than positive.
/// The statistic is the share of negative flips.
pub fn mcnemar(negative: u64, positive: u64, side: Side) -> Tested {
    let n = negative.saturating_add(positive);
    if n == 0 {
        return Tested {
            statistic: 0.5,
            p: 1.0,
        };
    }
    let p = match side {
        Side::Less => law::cdf(n, negative, 0.5),
        Side::Greater => law::sf_inclusive(n, negative, 0.5),
        Side::TwoSided => (2.0 * law::cdf(n, negative.min(positive), 0.5)).min(1.0),
    };
    Tested {
        statistic: negative as f64 / n as f64,
        p,
    }
}

/// McNemar's chi-square with continuity correction (Edwards 1948), for 25 discordant pairs and more.
pub fn mcnemar_chi_square(negative: u64, positive: u64) -> Tested {
    let (b, c) = (negative as f64, positive as f64);
    if b + c <= 0.0 {
        return Tested {
            statistic: 0.0,
            p: 1.0,
        };
    }
    let d = (b - c).abs() - 1.0;
    let statistic = d * d / (b + c);
    Tested {
        statistic,
        p: gamma::chi2_sf(1.0, statistic),
    }
}
