//! Kinds of the fixed-horizon families and of the special functions.

use llm_gates::Counts;
use llm_gates::fixed::{self, Side, Tested};
use llm_gates::special::{beta, gamma, normal, student};
use serde_json::{Value, json};

use crate::{Answer, count, number, numbers};

fn side(args: &Value) -> Side {
    match args["alternative"].as_str() {
        Some("less") => Side::Less,
        Some("greater") => Side::Greater,
        _ => Side::TwoSided,
    }
}

fn arms(args: &Value) -> (Counts, Counts) {
    (
        Counts::new(count(args, "n1"), count(args, "k1")),
        Counts::new(count(args, "n2"), count(args, "k2")),
    )
}

fn named(statistic: &'static str, t: Tested) -> Answer {
    Some(vec![(statistic, t.statistic.into()), ("p", t.p.into())])
}

fn real(x: f64) -> Value {
    if x.is_finite() {
        x.into()
    } else {
        if x > 0.0 { "Infinity" } else { "-Infinity" }.into()
    }
}

fn interval((low, high): (f64, f64)) -> Answer {
    Some(vec![("lo", low.into()), ("hi", high.into())])
}

pub(crate) fn answer(file: &str, kind: &str, args: &Value) -> Answer {
    let x = |name| number(args, name);
    let v = |value: f64| Some(vec![("v", value.into())]);
    match (file, kind) {
        ("special_functions", "log_ndtr") => v(normal::ln_cdf(x("x"))),
        ("special_functions", "ndtri") => v(normal::quantile(x("p"))),
        ("special_functions", "log_betainc_reg") => {
            v(beta::ln_tails(x("a"), x("b"), x("x"), 1.0 - x("x")).0)
        }
        ("special_functions", "log_beta") => v(beta::ln_beta(x("a"), x("b"))),
        ("special_functions", "log_gammainc_p_q") => {
            let (p, q) = gamma::ln_p_q(x("s"), x("x"));
            Some(vec![("logP", p.into()), ("logQ", q.into())])
        }
        ("special_functions", "student_t_sf") => v(student::sf(x("df"), x("t"))),
        ("special_functions", "chi2_sf") => v(gamma::chi2_sf(x("df"), x("x"))),
        ("binomial_ci", "wilson") => interval(
            fixed::wilson(Counts::new(count(args, "n"), count(args, "k")), x("alpha")).unwrap(),
        ),
        ("binomial_ci", "clopper_pearson") => interval(
            fixed::clopper_pearson(Counts::new(count(args, "n"), count(args, "k")), x("alpha"))
                .unwrap(),
        ),
        ("binomial_ci", "clopper_pearson_one_sided") => {
            let c = Counts::new(count(args, "n"), count(args, "k"));
            let (low, high) = fixed::clopper_pearson_one_sided(c, x("alpha")).unwrap();
            Some(vec![("lower", low.into()), ("upper", high.into())])
        }
        ("binomial_test", "binomtest") => {
            let c = Counts::new(count(args, "n"), count(args, "k"));
            Some(vec![(
                "p",
                fixed::binomial(c, x("p0"), side(args)).unwrap().p.into(),
            )])
        }
        ("two_proportion", "z_pooled") => {
            let (c, b) = arms(args);
            named("z", fixed::two_proportions(c, b, side(args)).unwrap())
        }
        ("two_proportion", "newcombe_ci_diff") => {
            let (c, b) = arms(args);
            interval(fixed::newcombe(c, b, x("alpha")).unwrap())
        }
        ("two_proportion", "farrington_manning_noninferiority") => {
            let (c, b) = arms(args);
            named(
                "z",
                fixed::difference_score(c, b, x("margin"), reference_estimate(c, b, x("margin")))
                    .unwrap(),
            )
        }
        ("two_proportion", "difference_score_likelihood") => {
            let (c, b) = arms(args);
            named(
                "z",
                fixed::difference_non_inferiority(c, b, x("margin")).unwrap(),
            )
        }
        ("rates", "conditional_binomial") => {
            let tested = fixed::rates(
                count(args, "k_c"),
                x("t_c"),
                count(args, "k_b"),
                x("t_b"),
                x("ratio"),
                side(args),
            );
            Some(vec![("p", tested.unwrap().p.into())])
        }
        ("shift", "hodges_lehmann") => {
            let (a, b) = (numbers(args, "a"), numbers(args, "b"));
            let found = fixed::hodges_lehmann(&a, &b, x("alpha")).unwrap();
            let (low, high) = found.interval;
            Some(vec![
                ("shift", found.shift.into()),
                ("lo", low.into()),
                ("hi", high.into()),
            ])
        }
        ("shift", "woodruff") => {
            let found = fixed::woodruff(&numbers(args, "x"), x("q"), x("alpha")).unwrap();
            Some(vec![
                ("value", found.value.into()),
                ("lo", found.lower.into()),
                ("hi", found.upper.into()),
            ])
        }
        ("two_proportion", "score_ratio_noninferiority") => {
            let (c, b) = arms(args);
            named(
                "z",
                fixed::ratio_non_inferiority(c, b, x("ratio0")).unwrap(),
            )
        }
        ("exact_2x2", "fisher") => {
            let (c, b) = arms(args);
            Some(vec![(
                "p",
                fixed::fisher(c, b, side(args)).unwrap().p.into(),
            )])
        }
        ("exact_2x2", "nchypergeom_fisher_logpmf") => {
            let p = fixed::ln_noncentral_hypergeometric(
                count(args, "N"),
                count(args, "K_events"),
                count(args, "n_canary"),
                x("odds"),
                count(args, "x"),
            );
            Some(vec![("logpmf", p.unwrap().into())])
        }
        ("mcnemar", "exact_two_sided") => Some(vec![(
            "p",
            fixed::mcnemar(count(args, "b"), count(args, "c"), Side::TwoSided)
                .p
                .into(),
        )]),
        ("mcnemar", "exact_one_sided_more_negative_flips") => Some(vec![(
            "p",
            fixed::mcnemar(count(args, "b"), count(args, "c"), Side::Greater)
                .p
                .into(),
        )]),
        ("mcnemar", "chi2") => named(
            "chi2",
            fixed::mcnemar_chi_square(count(args, "b"), count(args, "c")),
        ),
        ("chisq", "gof") => {
            let observed = counts(&args["observed"]);
            let tested = fixed::chi_square_weights(&observed, &numbers(args, "weights")).unwrap();
            Some(vec![
                ("chi2", tested.statistic.into()),
                ("p", tested.p.into()),
                ("df", json!(observed.len() - 1)),
            ])
        }
        ("chisq", "independence") => {
            let table = args["table"].as_array().unwrap();
            if table.len() != 2 {
                return None;
            }
            let (a, b) = (counts(&table[0]), counts(&table[1]));
            let tested = fixed::chi_square_independence(&a, &b).unwrap();
            Some(vec![
                ("chi2", tested.statistic.into()),
                ("p", tested.p.into()),
                ("df", json!(a.len() - 1)),
            ])
        }
        ("welch_t", "welch") => {
            let w = fixed::welch(&numbers(args, "a"), &numbers(args, "b"), side(args)).unwrap();
            let (low, high) = w.interval;
            Some(vec![
                ("t", w.t.into()),
                ("df", w.df.into()),
                ("p", w.p.into()),
                ("ci_lo", real(low)),
                ("ci_hi", real(high)),
            ])
        }
        ("mann_whitney", "mwu_exact") => named(
            "U1",
            fixed::mann_whitney_exact(&numbers(args, "a"), &numbers(args, "b"), side(args))
                .unwrap(),
        ),
        ("mann_whitney", "mwu_asymptotic") if args["continuity"] == true => named(
            "U1",
            fixed::mann_whitney(&numbers(args, "a"), &numbers(args, "b"), side(args)).unwrap(),
        ),
        ("wilcoxon", "wilcoxon_exact") => named(
            "W",
            fixed::wilcoxon_exact(&numbers(args, "d"), side(args)).unwrap(),
        ),
        ("wilcoxon", "wilcoxon_asymptotic")
            if args["correction"] == true && args["zero_method"] == "wilcox" =>
        {
            named(
                "W",
                fixed::wilcoxon(&numbers(args, "d"), side(args)).unwrap(),
            )
        }
        ("ks_2samp", "ks_exact") => named(
            "D",
            fixed::kolmogorov_smirnov(&numbers(args, "a"), &numbers(args, "b"), side(args))
                .unwrap(),
        ),
        ("ks_2samp", "ks_asymp") => named(
            "D",
            fixed::kolmogorov_smirnov_asymptotic(
                &numbers(args, "a"),
                &numbers(args, "b"),
                side(args),
            )
            .unwrap(),
        ),
        _ => None,
    }
}

fn counts(values: &Value) -> Vec<u64> {
    values
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_u64().unwrap())
        .collect()
}

/// The estimate of the reference program (statsmodels 0.15), which has `k2 d` where the cubic of Miettinen and Nurminen (1985) has `n2 d` and so is not
/// the maximum of the likelihood; z differs by some 1e-4. The statistic is compared at its estimate, and ours with the likelihood in a unit test.
fn reference_estimate(c: Counts, b: Counts, d: f64) -> f64 {
    let [k1, n1, k2, n2] = [c.k, c.n, b.k, b.n].map(|x| x as f64);
    let (n, k) = (n1 + n2, k1 + k2);
    let t2 = (n1 + 2.0 * n2) * d - n - k;
    let t1 = (k2 * d - n - 2.0 * k2) * d + k;
    let t0 = k2 * d * (1.0 - d);
    let q = (t2 / (3.0 * n)).powi(3) - t1 * t2 / (6.0 * n * n) + t0 / (2.0 * n);
    let p = q.signum() * ((t2 / (3.0 * n)).powi(2) - t1 / (3.0 * n)).sqrt();
    let a = (std::f64::consts::PI + (q / p.powi(3)).acos()) / 3.0;
    2.0 * p * a.cos() - t2 / (3.0 * n)
}
