//! Kayenta's judge NetflixACAJudge-v1.0 (2025-04): a rank-sum interval per metric, and a score over metrics.

use llm_gates::special::normal;

/// Percentile `p` in [0, 100] of sorted values, linear between ranks (R's type 7); 0 of none.
pub fn percentile(sorted: &[f64], p: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let rank = p / 100.0 * last as f64;
    let at = |x: f64| sorted.iter().copied().nth(index(x)).unwrap_or(f64::NAN);
    let (low, high) = (at(rank.floor()), at(rank.ceil()));
    low + (rank - rank.floor()) * (high - low)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rank"
)]
fn index(x: f64) -> usize {
    x.max(0.0) as usize
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Mean; 0 of none.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() {
        0.0
    } else {
        values.iter().sum::<f64>() / values.len() as f64
    }
}

/// Standard deviation of a sample; 0 of fewer than two.
pub fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let centre = mean(values);
    let squares: f64 = values.iter().map(|x| (x - centre) * (x - centre)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

/// Mean of the experiment over that of the control; NaN where either is 0.
pub fn mean_ratio(experiment: &[f64], control: &[f64]) -> f64 {
    let (e, c) = (mean(experiment), mean(control));
    if e == 0.0 || c == 0.0 {
        f64::NAN
    } else {
        e / c
    }
}

/// Distance of the means in pooled standard deviations.
pub fn cohen_d(experiment: &[f64], control: &[f64]) -> f64 {
    let (n, m) = (experiment.len() as f64, control.len() as f64);
    let squares =
        (n - 1.0) * deviation(experiment).powi(2) + (m - 1.0) * deviation(control).powi(2);
    (mean(experiment) - mean(control)).abs() / (squares / (n + m - 2.0)).sqrt()
}

/// Probability that a value of the experiment exceeds one of the control, ties half.
pub fn cles(experiment: &[f64], control: &[f64]) -> f64 {
    let n = experiment.len() as f64;
    (rank_sum(experiment, control, 0.0).0 - n * (n + 1.0) / 2.0) / (n * control.len() as f64)
}

/// Indices of values outside the quartiles by more than `factor` interquartile ranges; the judge itself also keeps what lies within the 1st and 99th percentile (`widened`).
pub fn outliers(values: &[f64], factor: f64, widened: bool) -> Vec<usize> {
    let sorted = sorted(values);
    let (q1, q3) = (percentile(&sorted, 25.0), percentile(&sorted, 75.0));
    let (mut low, mut high) = (q1 - factor * (q3 - q1), q3 + factor * (q3 - q1));
    if widened {
        low = low.min(percentile(&sorted, 1.0));
        high = high.max(percentile(&sorted, 99.0));
    }
    let out = |(i, x): (usize, &f64)| (*x < low || *x > high).then_some(i);
    values.iter().enumerate().filter_map(out).collect()
}

/// Indices of values more than `k` standard deviations from the mean.
pub fn far(values: &[f64], k: f64) -> Vec<usize> {
    let (centre, limit) = (mean(values), k * deviation(values));
    let out = |(i, x): (usize, &f64)| ((x - centre).abs() > limit).then_some(i);
    values.iter().enumerate().filter_map(out).collect()
}

/// Sum of the ranks of `x` less `shift` among both, ties averaged, and the sum of t^3 - t over ties.
#[expect(clippy::float_cmp, reason = "ties are equal values")]
fn rank_sum(x: &[f64], y: &[f64], shift: f64) -> (f64, f64) {
    let mut pooled: Vec<(f64, bool)> = x.iter().map(|v| (v - shift, true)).collect();
    pooled.extend(y.iter().map(|v| (*v, false)));
    pooled.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut sum, mut ties, mut before) = (0.0, 0.0, 0.0);
    // Zeros of either sign are one value.
    for run in pooled.chunk_by(|a, b| a.0 == b.0) {
        let t = run.len() as f64;
        let mine = run.iter().filter(|(_, own)| *own).count() as f64;
        sum += mine * (before + f64::midpoint(t, 1.0));
        ties += t * t * t - t;
        before += t;
    }
    (sum, ties)
}

/// Standardised rank-sum statistic of `x` less `shift` against `y`, with continuity correction; `None` where all values tie.
pub fn statistic(x: &[f64], y: &[f64], shift: f64) -> Option<f64> {
    let (n, m) = (x.len() as f64, y.len() as f64);
    let (sum, ties) = rank_sum(x, y, shift);
    let d = sum - n * (n + 1.0) / 2.0 - n * m / 2.0;
    let correction = if d > 0.0 {
        0.5
    } else if d < 0.0 {
        -0.5
    } else {
        0.0
    };
    let variance = n * m / 12.0 * (n + m + 1.0 - ties / ((n + m) * (n + m - 1.0)));
    (variance > 0.0).then(|| (d - correction) / variance.sqrt())
}

/// Root between two ends, by Brent's method as in R (1973, `zeroin`): of a bracket within the tolerance the end nearer to a root.
#[expect(clippy::float_cmp, reason = "the same end of the bracket")]
fn root(f: impl Fn(f64) -> Option<f64>, low: f64, high: f64) -> Option<f64> {
    const TOLERANCE: f64 = 1e-4;
    let (mut a, mut b) = (low, high);
    let (mut fa, mut fb) = (f(a)?, f(b)?);
    let (mut c, mut fc) = (a, fa);
    for _ in 0..1_001 {
        let before = b - a;
        if fc.abs() < fb.abs() {
            (a, b, c) = (b, c, b);
            (fa, fb, fc) = (fb, fc, fb);
        }
        let least = 2.0 * f64::EPSILON * b.abs() + TOLERANCE / 2.0;
        let mut step = (c - b) / 2.0;
        if step.abs() <= least || fb == 0.0 {
            return Some(b);
        }
        if before.abs() >= least && fa.abs() > fb.abs() {
            let cb = c - b;
            let (mut p, mut q) = if a == c {
                let t1 = fb / fa;
                (cb * t1, 1.0 - t1)
            } else {
                let (q, t1, t2) = (fa / fc, fb / fc, fb / fa);
                (
                    t2 * (cb * q * (q - t1) - (b - a) * (t1 - 1.0)),
                    (q - 1.0) * (t1 - 1.0) * (t2 - 1.0),
                )
            };
            if p > 0.0 {
                q = -q;
            } else {
                p = -p;
            }
            if p < 0.75 * cb * q - (least * q).abs() / 2.0 && p < (before * q / 2.0).abs() {
                step = p / q;
            }
        }
        if step.abs() < least {
            step = if step > 0.0 { least } else { -least };
        }
        (a, fa) = (b, fb);
        b += step;
        fb = f(b)?;
        if (fb > 0.0 && fc > 0.0) || (fb < 0.0 && fc < 0.0) {
            (c, fc) = (a, fa);
        }
    }
    Some(b)
}

/// Interval and Hodges-Lehmann estimate of how much the experiment exceeds the control; `None` where the peer throws.
pub fn interval(experiment: &[f64], control: &[f64], confidence: f64) -> Option<([f64; 2], f64)> {
    let least = |v: &[f64]| v.iter().copied().fold(f64::INFINITY, f64::min);
    let most = |v: &[f64]| v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (left, right) = (
        least(experiment) - most(control),
        most(experiment) - least(control),
    );
    let find = |z: f64, ends: bool| {
        let f = |shift: f64| statistic(experiment, control, shift).map(|s| s - z);
        if ends && f(left)? <= 0.0 {
            Some(left)
        } else if ends && f(right)? >= 0.0 {
            Some(right)
        } else {
            root(f, left, right)
        }
    };
    let z = normal::quantile(1.0 - (1.0 - confidence) / 2.0);
    Some(([find(z, true)?, find(-z, true)?], find(0.0, false)?))
}

/// What a metric's values are.
#[expect(clippy::exhaustive_enums, reason = "the peer's own list")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// As the control's.
    Pass,
    /// Above them.
    High,
    /// Below them.
    Low,
    /// There are none.
    Nodata,
    /// There are none, and must be.
    NodataFailMetric,
    /// The classifier threw.
    Error,
}

/// Which differences matter.
#[expect(clippy::exhaustive_enums, reason = "the peer's own list")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Greater values.
    Increase,
    /// Smaller values.
    Decrease,
    /// Both.
    Either,
}

/// How a classifier is set; the defaults are the judge's.
#[expect(clippy::exhaustive_structs, reason = "plain data")]
#[expect(clippy::struct_excessive_bools, reason = "as the peer has them")]
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Of the estimate, around 0.
    pub tolerance: f64,
    /// Two-sided.
    pub confidence: f64,
    /// Least effect that counts as High.
    pub allowed_increase: f64,
    /// Greatest effect that counts as Low.
    pub allowed_decrease: f64,
    /// Effect from which on a critical metric fails everything.
    pub critical_increase: f64,
    /// The same below.
    pub critical_decrease: f64,
    /// Whether effects are probabilities ([`cles`]) instead of [`mean_ratio`].
    pub cles: bool,
    /// Which differences matter.
    pub direction: Direction,
    /// Whether missing values count as 0 instead of being removed.
    pub replace: bool,
    /// Whether this metric can fail everything.
    pub critical: bool,
    /// Whether it must have values.
    pub must_have_data: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tolerance: 0.25,
            confidence: 0.98,
            allowed_increase: 1.0,
            allowed_decrease: 1.0,
            critical_increase: 1.0,
            critical_decrease: 1.0,
            cles: false,
            direction: Direction::Either,
            replace: false,
            critical: false,
            must_have_data: false,
        }
    }
}

/// A metric's class, with what it rests on.
#[expect(clippy::exhaustive_structs, reason = "plain data")]
#[derive(Debug, Clone, Copy)]
pub struct Classified {
    /// The class.
    pub class: Class,
    /// Whether it fails everything.
    pub critical: bool,
    /// The effect, NaN where it has none.
    pub effect: f64,
    /// Why, where there is something to say.
    pub reason: Option<&'static str>,
}

const fn plain(class: Class, critical: bool, reason: Option<&'static str>) -> Classified {
    Classified {
        class,
        critical,
        effect: 1.0,
        reason,
    }
}

/// Values without NaN, or with 0 instead.
pub fn cleaned(values: &[f64], replace: bool) -> Vec<f64> {
    let keep = |x: &f64| match (x.is_nan(), replace) {
        (false, _) => Some(*x),
        (true, true) => Some(0.0),
        (true, false) => None,
    };
    values.iter().filter_map(keep).collect()
}

/// Classifies one metric. `normal` draws standard normal numbers, which the peer adds to values that are all alike.
pub fn classify(
    settings: &Settings,
    experiment: &[f64],
    control: &[f64],
    mut normal: impl FnMut() -> f64,
) -> Classified {
    let (mut x, mut y) = (
        cleaned(experiment, settings.replace),
        cleaned(control, settings.replace),
    );
    if x.is_empty() || y.is_empty() {
        return match settings {
            Settings { replace: true, .. } => plain(Class::Pass, false, None),
            Settings {
                must_have_data: true,
                critical: false,
                ..
            } => plain(Class::NodataFailMetric, false, Some("missing values")),
            _ => plain(Class::Nodata, settings.critical, Some("missing values")),
        };
    }
    let (a, b) = (sorted(&x), sorted(&y));
    let alone = |v: &[f64]| v.first() == v.last();
    if a == b || (alone(&a) && alone(&b) && a.first() == b.first()) {
        return plain(Class::Pass, false, None);
    }
    if alone(&a) && alone(&b) {
        for v in x.iter_mut().chain(&mut y) {
            *v += 1e-5 * *v * normal();
        }
    }
    let Some(([lower, upper], estimate)) = interval(&x, &y, settings.confidence) else {
        return plain(Class::Error, false, Some("all values tie"));
    };
    let effect = if settings.cles {
        cles(&x, &y)
    } else {
        mean_ratio(&x, &y)
    };
    let bound = settings.tolerance * estimate.abs();
    let up = settings.direction != Direction::Decrease && lower > bound;
    let down = settings.direction != Direction::Increase && upper < -bound;
    let unknown = effect.is_nan();
    let (class, critical) = if up && (unknown || effect >= settings.allowed_increase) {
        (Class::High, unknown || effect >= settings.critical_increase)
    } else if down && (unknown || effect <= settings.allowed_decrease) {
        (Class::Low, unknown || effect <= settings.critical_decrease)
    } else {
        (Class::Pass, false)
    };
    Classified {
        class,
        critical: critical && settings.critical,
        effect,
        reason: None,
    }
}

/// The simplest classifier: whose mean is greater.
pub fn compare_means(experiment: &[f64], control: &[f64]) -> Class {
    let (e, c) = (mean(experiment), mean(control));
    if experiment.is_empty() || control.is_empty() {
        Class::Nodata
    } else if e > c {
        Class::High
    } else if e < c {
        Class::Low
    } else {
        Class::Pass
    }
}

/// A classified metric among others.
#[expect(clippy::exhaustive_structs, reason = "plain data")]
#[derive(Debug, Clone)]
pub struct Metric {
    /// Its class.
    pub class: Class,
    /// Whether it can fail everything.
    pub critical: bool,
    /// Groups that it counts in.
    pub groups: Vec<String>,
}

/// The score, 0 to 100, rounded to hundredths.
pub fn score(metrics: &[Metric], weights: &[(String, f64)]) -> f64 {
    let bad = |class: Class| matches!(class, Class::High | Class::Low | Class::NodataFailMetric);
    if metrics.iter().any(|m| m.critical && m.class != Class::Pass) {
        return 0.0;
    }
    let silent = metrics.iter().filter(|m| m.class == Class::Nodata).count();
    if 2 * silent >= metrics.len() && silent > 0 {
        return 0.0;
    }
    let mut groups: Vec<&String> = metrics.iter().flat_map(|m| &m.groups).collect();
    groups.sort();
    groups.dedup();
    let declared = |name: &String| weights.iter().find(|(w, _)| w == name).map(|(_, w)| *w);
    let left = 100.0 - weights.iter().map(|(_, w)| w).sum::<f64>();
    let others = groups.iter().filter(|g| declared(g).is_none()).count();
    let sum: f64 = groups
        .iter()
        .map(|group| {
            let mine = || metrics.iter().filter(|m| m.groups.contains(group));
            let passed = mine().filter(|m| m.class == Class::Pass).count() as f64;
            let failed = mine().filter(|m| bad(m.class)).count() as f64;
            // A group in which nothing counts is a good group.
            let share = if passed + failed > 0.0 {
                passed / (passed + failed)
            } else {
                1.0
            };
            share * declared(group).unwrap_or(left / others.max(1) as f64)
        })
        .sum();
    (sum * 100.0).round() / 100.0
}

/// What a score means.
#[expect(clippy::exhaustive_enums, reason = "the peer's own list")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on.
    Pass,
    /// Somebody looks.
    Marginal,
    /// Goes back.
    Fail,
}

/// The verdict of a score.
pub fn verdict(score: f64, pass: f64, marginal: f64) -> Verdict {
    if score >= pass {
        Verdict::Pass
    } else if score >= marginal {
        Verdict::Marginal
    } else {
        Verdict::Fail
    }
}
