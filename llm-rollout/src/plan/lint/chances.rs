//! How often chance alone breaks what has no false-alarm bound.

use llm_gates::special::{binomial, normal};
use llm_gates::{Sustained, Threshold};

/// Requests of which the binomial tail is summed; beyond, it is taken for normal.
const EXACT: f64 = 100_000.0;

/// Probability that at least (or, strictly, more than) this share of `n` requests is bad where each is with probability `p`.
pub(super) fn share_reached(n: f64, p: f64, share: f64, strictly: bool) -> f64 {
    let n = n.max(1.0).round();
    if n > EXACT {
        return normal::sf((share - p) / (p * (1.0 - p) / n).sqrt());
    }
    let least = if strictly {
        (share * n).floor() + 1.0
    } else {
        (share * n).ceil()
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at least 0, at most 100,000, and whole"
    )]
    let (n, least) = (n as u64, least.clamp(0.0, EXACT + 1.0) as u64);
    if least == 0 {
        1.0
    } else if least > n {
        0.0
    } else {
        binomial::sf_inclusive(n, least, p).clamp(0.0, 1.0)
    }
}

/// Probability that a window of an equal candidate is a breach: `n` of its requests, `others` of the baseline's, each bad with probability `p`.
pub(super) fn breach(worse_than: Threshold, n: f64, others: f64, p: f64) -> Option<f64> {
    match worse_than {
        Threshold::Absolute(limit) if limit >= 0.0 => Some(share_reached(n, p, limit, true)),
        Threshold::BaselinePlus(more) if more > 0.0 && n > 0.0 && others > 0.0 => {
            let factor = 1.0 + more;
            let sd = (p * (1.0 - p) * (1.0 / n + factor * factor / others)).sqrt();
            Some(normal::sf(more * p / sd))
        }
        _ => None,
    }
}

/// Probability that breaches which come with probability `q` are sustained in some of `windows`; nearly, as runs overlap.
pub(super) fn sustained(how: Sustained, q: f64, windows: f64) -> f64 {
    let windows = windows.floor().max(0.0);
    let of_last = |m: u32, of: u32| {
        // A new chance comes with each breach that has enough others right before it.
        let (others, before) = (f64::from(of - 1), f64::from(m - 1));
        let joined = if m == 1 {
            1.0
        } else {
            share_reached(others, q, before / others, false)
        };
        let chances = (windows - before).max(0.0) * q * joined;
        1.0 - (-chances).exp()
    };
    match how {
        Sustained::Total(n) => share_reached(windows, q, f64::from(n) / windows, false),
        Sustained::Consecutive(n) => run(q, n, windows),
        Sustained::OfLast { breaches, windows } => of_last(breaches, windows),
    }
}

/// Probability of a run of n among so many windows (de Moivre, by the probability of having had none yet).
fn run(q: f64, n: u32, windows: f64) -> f64 {
    let per = q.powi(i32::try_from(n).unwrap_or(i32::MAX));
    if windows < f64::from(n) {
        return 0.0;
    }
    let starts = 1.0 + (windows - f64::from(n)) * (1.0 - q);
    (1.0 - (1.0 - per).powf(starts)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By counting every sequence of breaches.
    fn counted(how: Sustained, q: f64, windows: u32) -> f64 {
        let fails = |bits: u32| match how {
            Sustained::Total(n) => bits.count_ones() >= n,
            Sustained::Consecutive(n) => (0..windows)
                .any(|at| at + n <= windows && bits >> at & ((1 << n) - 1) == (1 << n) - 1),
            Sustained::OfLast {
                breaches,
                windows: of,
            } => (0..windows).any(|at| (bits >> at & ((1 << of) - 1)).count_ones() >= breaches),
        };
        let weigh = |bits: u32| {
            let k = f64::from(bits.count_ones());
            q.powf(k) * (1.0 - q).powf(f64::from(windows) - k)
        };
        (0..1_u32 << windows).filter(|b| fails(*b)).map(weigh).sum()
    }

    #[test]
    fn chances_are_near_those_of_every_sequence() {
        for q in [0.02, 0.1, 0.3] {
            for (how, factor) in [
                (Sustained::Total(3), 1.001),
                (Sustained::Consecutive(1), 1.05),
                (Sustained::Consecutive(3), 1.1),
                (
                    Sustained::OfLast {
                        breaches: 3,
                        windows: 5,
                    },
                    2.5,
                ),
            ] {
                let (exact, ours) = (counted(how, q, 16), sustained(how, q, 16.0));
                assert!(
                    ours <= exact * factor && exact <= ours * factor,
                    "{how:?} at {q}: {ours} for {exact}"
                );
            }
        }
    }

    #[test]
    fn rare_breaches_near_each_other_are_as_rare_as_runs_of_them() {
        for n in [2, 3] {
            let how = Sustained::OfLast {
                breaches: n,
                windows: n,
            };
            let (exact, ours) = (counted(how, 0.02, 16), sustained(how, 0.02, 16.0));
            assert!((ours / exact - 1.0).abs() < 0.05, "{n}: {ours} for {exact}");
        }
    }

    #[test]
    fn nothing_lasts_longer_than_there_are_windows() {
        for windows in [0.0, 2.0] {
            assert!(sustained(Sustained::Total(3), 0.1, windows) < 1e-12);
            assert!(sustained(Sustained::Consecutive(3), 0.1, windows) < 1e-12);
        }
        let just = sustained(Sustained::Consecutive(3), 0.1, 3.0);
        assert!((just - 0.001).abs() < 1e-12, "{just}");
    }

    /// How often the candidate's share is beyond so many times the baseline's, by counting both.
    fn beyond(factor: f64, n: u32, others: u32, p: f64) -> f64 {
        let pmf = |n: u32, k: u32| {
            let tail = |k| share_reached(f64::from(n), p, f64::from(k) / f64::from(n), false);
            tail(k) - if k < n { tail(k + 1) } else { 0.0 }
        };
        let more = |k: u32| {
            let share = factor * f64::from(k) / f64::from(others);
            share_reached(f64::from(n), p, share, true)
        };
        (0..=others).map(|k| pmf(others, k) * more(k)).sum()
    }

    #[test]
    fn a_window_of_an_equal_candidate_is_a_breach_by_chance() {
        let absolute = |limit| breach(Threshold::Absolute(limit), 20.0, 0.0, 0.05).unwrap();
        assert!((absolute(0.1) - 0.075_483_7).abs() < 1e-6, "more than two");
        assert!((absolute(0.0) - 0.641_514_1).abs() < 1e-6, "any at all");
        assert!(absolute(1.0) < 1e-12, "more than all");
        let relative = |more, n, others| breach(Threshold::BaselinePlus(more), n, others, 0.2);
        let (ours, exact) = (
            relative(0.25, 400.0, 1_600.0).unwrap(),
            beyond(1.25, 400, 1_600, 0.2),
        );
        assert!((ours / exact - 1.0).abs() < 0.1, "{ours} for {exact}");
        for (more, n, others) in [
            (0.0, 400.0, 1_600.0),
            (0.25, 0.0, 1_600.0),
            (0.25, 400.0, 0.0),
        ] {
            assert_eq!(relative(more, n, others), None, "{more} {n} {others}");
        }
        assert_eq!(breach(Threshold::Absolute(-0.1), 20.0, 0.0, 0.05), None);
    }

    #[test]
    fn a_share_is_reached_as_often_as_it_is() {
        assert!(
            share_reached(EXACT, 0.999_999, 2.0, false) < 1e-12,
            "more than all"
        );
        // Beyond what is summed: 1.25 standard deviations, and none.
        assert!((share_reached(1e6, 0.2, 0.2005, false) - 0.105_65).abs() < 1e-5);
        assert!((share_reached(1e9, 0.01, 0.01, false) - 0.5).abs() < 1e-9);
        assert!((share_reached(2.0, 0.5, 0.5, false) - 0.75).abs() < 1e-12);
        assert!((share_reached(2.0, 0.5, 0.5, true) - 0.25).abs() < 1e-12);
        assert!(share_reached(20.0, 0.05, 0.5, false) < 1e-7);
        let (exact, normal) = (
            share_reached(99_999.0, 0.01, 0.0105, false),
            share_reached(100_001.0, 0.01, 0.0105, false),
        );
        assert!((exact / normal - 1.0).abs() < 0.15, "{exact} {normal}");
    }
}
