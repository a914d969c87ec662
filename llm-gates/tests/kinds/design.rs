//! Kinds of multiplicity, design, drift and quality.

use llm_gates::quality::{self, Comparisons};
use llm_gates::{drift, multiplicity, planner, spending};
use serde_json::{Value, json};

use crate::{Answer, count, number, numbers};

fn adjusted(p: Vec<f64>, alpha: f64) -> Answer {
    let reject: Vec<_> = p.iter().map(|p| *p <= alpha).collect();
    Some(vec![("adjusted", p.into()), ("reject", reject.into())])
}

fn matrix(args: &Value, name: &str) -> Vec<Vec<f64>> {
    args[name]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| {
            r.as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_f64().unwrap())
                .collect()
        })
        .collect()
}

fn counts(args: &Value, name: &str) -> Vec<u64> {
    args[name]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_u64().unwrap())
        .collect()
}

pub(crate) fn answer(file: &str, kind: &str, args: &Value) -> Answer {
    let x = |name| number(args, name);
    let two_sided = args["alternative"] == "two-sided";
    match (file, kind) {
        ("multiple_testing", "bh") => adjusted(
            multiplicity::benjamini_hochberg(&numbers(args, "p")),
            x("alpha"),
        ),
        ("multiple_testing", "by") => adjusted(
            multiplicity::benjamini_yekutieli(&numbers(args, "p")),
            x("alpha"),
        ),
        ("multiple_testing", "holm") => {
            adjusted(multiplicity::holm(&numbers(args, "p")), x("alpha"))
        }
        ("multiple_testing", "hochberg") => {
            adjusted(multiplicity::hochberg(&numbers(args, "p")), x("alpha"))
        }
        ("multiple_testing", "bonferroni") => {
            adjusted(multiplicity::bonferroni(&numbers(args, "p")), x("alpha"))
        }
        ("multiple_testing", "e_bh") => {
            let reject = multiplicity::e_bh(&numbers(args, "e"), x("alpha"));
            Some(vec![
                ("k", json!(reject.iter().filter(|r| **r).count())),
                ("reject", reject.into()),
            ])
        }
        ("multiple_testing", "global_mean_e") => {
            let mean = multiplicity::mean_e(&numbers(args, "e"));
            Some(vec![
                ("mean", mean.into()),
                ("reject", (mean >= 1.0 / x("alpha")).into()),
            ])
        }
        ("multiple_testing", "closed_mean_e_adjusted") => {
            let e = multiplicity::closed_mean_e(&numbers(args, "e"));
            let reject: Vec<_> = e.iter().map(|e| *e >= 1.0 / x("alpha")).collect();
            Some(vec![("adjusted", e.into()), ("reject", reject.into())])
        }
        ("group_sequential", "power_family_spending") if args["sides"] == 1 => Some(vec![(
            "z",
            spending::power_spending(&numbers(args, "information"), x("alpha"), x("rho"))
                .unwrap()
                .into(),
        )]),
        ("planner", "detect") => {
            let d = planner::Detection::new(x("p"), x("theta"), x("w"), x("alpha"), x("c_mix"))
                .unwrap();
            let at = |n: f64| d.probability_by(n);
            let by = json!({"500": at(500.0), "2000": at(2000.0), "10000": at(10000.0), "50000": at(50000.0)});
            Some(vec![
                ("mu", d.drift.into()),
                ("s2", d.variance.into()),
                ("n_expected", d.expected_requests().into()),
                ("p_detect", by),
            ])
        }
        ("planner", "seed_schedule_10000") => {
            let stages: Vec<_> = matrix(args, "stages")
                .into_iter()
                .map(|s| (s[0], s[1]))
                .collect();
            let (ends, reached) =
                planner::schedule(x("total_rps"), &stages, x("n_needed")).unwrap();
            let reached = reached.map(|r| json!({"stage": r.stage + 1, "hours_into_stage": r.hours_into_stage, "hours_total": r.hours}));
            Some(vec![
                ("cumulative_canary_requests", ends.into()),
                ("reached", reached.into()),
            ])
        }
        ("power", "n_two_proportions") => {
            let n = planner::two_proportions_needed(
                x("p1"),
                x("p2"),
                x("alpha"),
                x("power"),
                x("ratio_n2_over_n1"),
                two_sided,
            )
            .unwrap();
            Some(vec![("n1", n.into()), ("n1_ceil", n.ceil().into())])
        }
        ("power", "n_arcsine") => {
            let (n, h) = planner::arcsine_needed(
                x("p1"),
                x("p2"),
                x("alpha"),
                x("power"),
                x("ratio_n2_over_n1"),
                two_sided,
            )
            .unwrap();
            Some(vec![("n1", n.into()), ("effect_h", h.into())])
        }
        ("power", "n_ttest_two_sided") => Some(vec![(
            "n1",
            planner::t_test_needed(x("d"), x("alpha"), x("power"))
                .unwrap()
                .into(),
        )]),
        ("power", "n_quantile_exceedance_lognormal") => {
            let (n, exceed) = planner::quantile_shift_needed(
                x("q"),
                x("sigma"),
                x("rel_shift"),
                x("alpha"),
                x("power"),
            )
            .unwrap();
            Some(vec![("n", n.into()), ("exceed_prob_canary", exceed.into())])
        }
        ("power", "se_sample_quantile") => {
            let (se, density) = planner::quantile_error(x("q"), x("sigma"), x("n")).unwrap();
            Some(vec![
                ("se", se.into()),
                ("density_at_quantile", density.into()),
            ])
        }
        ("drift", "psi") => {
            let d = drift::categories(&counts(args, "base"), &counts(args, "cand")).unwrap();
            Some(vec![
                ("psi", d.psi.into()),
                ("kl_base_cand", d.kullback_leibler.into()),
                ("js", d.jensen_shannon.into()),
                ("null_mean", d.psi_without_drift.into()),
                ("p_approx", d.p.into()),
            ])
        }
        ("drift", "mmd2_rbf") => {
            let (unbiased, biased) =
                drift::mmd_rbf(&matrix(args, "X"), &matrix(args, "Y"), x("gamma")).unwrap();
            Some(vec![
                ("unbiased", unbiased.into()),
                ("biased", biased.into()),
            ])
        }
        ("drift", "wasserstein1_energy") => {
            let (w1, energy) = drift::distances(&numbers(args, "x"), &numbers(args, "y")).unwrap();
            Some(vec![("w1", w1.into()), ("energy", energy.into())])
        }
        ("ppi", "ppi_mean") => {
            let (estimate, lo, hi) = quality::prediction_powered_mean(
                &numbers(args, "Y"),
                &numbers(args, "Yhat"),
                &numbers(args, "Yhat_unlabeled"),
                x("lam"),
                x("alpha"),
            )
            .unwrap();
            Some(vec![
                ("estimate", estimate.into()),
                ("lo", lo.into()),
                ("hi", hi.into()),
            ])
        }
        ("llm_eval", "win_rate") => {
            let c = Comparisons {
                wins: count(args, "win"),
                ties: count(args, "tie"),
                losses: count(args, "loss"),
            };
            let (low, high) = c.decided_interval(0.05).unwrap();
            Some(vec![
                ("win_rate_half_ties", c.win_rate().into()),
                ("se", c.standard_error().into()),
                ("z_vs_half", c.z().into()),
                ("p_sign_greater", c.p_better().into()),
                ("wilson_decided_lo", low.into()),
                ("wilson_decided_hi", high.into()),
            ])
        }
        _ => None,
    }
}
