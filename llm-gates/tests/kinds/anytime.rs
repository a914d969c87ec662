//! Kinds of the anytime-valid families.

use llm_gates::anytime::{
    self, AutoRatio, BetaBinomialMixture, BettingMean, EProcess, EmpiricalBernstein, EventRate,
    History, Mismatch, NormalMixture, OverdispersedRatio, Sign, Slo, Symmetric,
};
use llm_gates::{Counts, Grid};
use serde_json::Value;

use crate::{Answer, count, number, numbers, rows};

fn log_e(value: f64) -> Answer {
    Some(vec![("log_e", value.into())])
}

fn mixture(args: &Value, v_opt: &str) -> NormalMixture {
    NormalMixture::tight_at(
        number(args, v_opt),
        number(args, "alpha_opt"),
        args["one_sided"] == true,
    )
    .unwrap()
}

fn beta_binomial(args: &Value) -> BetaBinomialMixture {
    let x = |name| number(args, name);
    BetaBinomialMixture::tight_at(
        x("v_opt"),
        x("alpha_opt"),
        x("g"),
        x("h"),
        args["one_sided"] == true,
    )
    .unwrap()
}

pub(crate) fn answer(file: &str, kind: &str, args: &Value) -> Answer {
    let x = |name| number(args, name);
    match (file, kind) {
        ("eprocess_one_sample", "bernoulli_tilt") => {
            let mut process = Slo::new(x("p0"), Grid::Wide16).unwrap();
            process
                .observe(Counts::new(count(args, "n"), count(args, "k")))
                .unwrap();
            log_e(process.log_e())
        }
        ("eprocess_one_sample", "poisson_tilt") => {
            let mut process = EventRate::new(x("lambda0"), Grid::Wide16).unwrap();
            process.observe(count(args, "k"), x("exposure")).unwrap();
            log_e(process.log_e())
        }
        ("eprocess_one_sample", "sign_grid") => {
            let mut process = Sign::new();
            process.observe(
                count(args, "losses"),
                count(args, "decided") - count(args, "losses"),
            );
            log_e(process.log_e())
        }
        ("eprocess_one_sample", "beta_binomial_two_sided") => {
            let c = Counts::new(count(args, "n"), count(args, "k"));
            log_e(anytime::beta_binomial_two_sided(c, x("p0"), x("a"), x("b")).unwrap())
        }
        ("eprocess_one_sample", "beta_binomial_one_sided_truncated_prior") => {
            let c = Counts::new(count(args, "n"), count(args, "k"));
            log_e(anytime::beta_binomial_one_sided(c, x("p0"), x("a"), x("b")).unwrap())
        }
        ("eprocess_betabinomial_lr", "bb_lr_trace") => {
            let mut process = OverdispersedRatio::new(x("s2"), Grid::Wide16).unwrap();
            let trace = rows(args, "blocks")
                .into_iter()
                .map(|[n_c, k_c, n_b, k_b]| {
                    process
                        .observe(Counts::new(n_c, k_c), Counts::new(n_b, k_b))
                        .unwrap();
                    process.log_e()
                });
            Some(vec![("log_e", trace.collect::<Vec<_>>().into())])
        }
        ("eprocess_symmetric", "symmetric_trace") => {
            let mut process = Symmetric::new();
            let trace = numbers(args, "d").into_iter().map(|d| {
                process.observe_scaled(d);
                process.log_e()
            });
            Some(vec![("log_e", trace.collect::<Vec<_>>().into())])
        }
        ("srm_sequential", "dirichlet_multinomial") => {
            let mut process = Mismatch::new(&numbers(args, "p"), x("concentration")).unwrap();
            let counts: Vec<_> = args["counts"]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_u64().unwrap())
                .collect();
            process.observe(&counts).unwrap();
            Some(vec![
                ("log_e", process.log_e().into()),
                ("always_valid_p", process.p().into()),
            ])
        }
        ("betting", "betting_capital_predmix_eb")
            if args["side"] == "pos" && args["trunc_scale"] == 0.5 =>
        {
            let mut process = BettingMean::new(x("m"), x("alpha")).unwrap();
            let trace: Vec<_> = numbers(args, "x")
                .into_iter()
                .map(|value| {
                    process.observe(value).unwrap();
                    process.log_e()
                })
                .collect();
            let every: Vec<_> = trace.into_iter().skip(9).step_by(10).collect();
            Some(vec![("log_capital_every_10", every.into())])
        }
        ("betting", "predmix_empbern_cs") if args["truncation"] == 0.5 => {
            let mut process = EmpiricalBernstein::new(x("alpha")).unwrap();
            let trace: Vec<_> = numbers(args, "x")
                .into_iter()
                .map(|value| {
                    process.observe(value).unwrap();
                    process.interval()
                })
                .collect();
            let (low, high): (Vec<_>, Vec<_>) = trace.into_iter().skip(9).step_by(10).unzip();
            Some(vec![
                ("lo_every_10", low.into()),
                ("hi_every_10", high.into()),
            ])
        }
        ("asymptotic_cs", "halfwidth_two_sided" | "halfwidth_one_sided") => {
            let one_sided = kind == "halfwidth_one_sided";
            let (half, rho) = anytime::asymptotic_half_width(
                x("s2"),
                count(args, "n"),
                x("alpha"),
                x("N_star"),
                one_sided,
            )
            .unwrap();
            Some(vec![("hw", half.into()), ("rho", rho.into())])
        }
        ("asymptotic_cs", "log_e_value") => {
            let mixture = NormalMixture::with_rho(x("rho").powi(-2), false).unwrap();
            log_e(mixture.log_e(x("n") * x("diff") / x("s2").sqrt(), x("n")))
        }
        ("asymptotic_cs", "msprt_log_lambda") => {
            let mixture = NormalMixture::with_rho(x("tau").powi(-2), false).unwrap();
            let v = 1.0 / x("var_of_diff");
            Some(vec![(
                "log_lambda",
                mixture.log_e((x("diff") - x("theta0")) * v, v).into(),
            )])
        }
        ("uniform_boundaries", "normal_log_mixture") => {
            log_e(mixture(args, "v_opt").log_e(x("s"), x("v")))
        }
        ("uniform_boundaries", "normal_mixture_bound") => Some(vec![(
            "bound",
            mixture(args, "v_opt").bound(x("v"), x("alpha")).into(),
        )]),
        ("uniform_boundaries", "beta_binomial_log_mixture") => {
            log_e(beta_binomial(args).log_e(x("s"), x("v")))
        }
        ("uniform_boundaries", "beta_binomial_mixture_bound") => Some(vec![(
            "bound",
            beta_binomial(args).bound(x("v"), x("alpha")).into(),
        )]),
        ("uniform_boundaries", "bernoulli_cs") => {
            let c = Counts::new(count(args, "n"), count(args, "k"));
            let (low, high) = anytime::proportion_sequence(c, x("alpha"), x("t_opt")).unwrap();
            Some(vec![("lo", low.into()), ("hi", high.into())])
        }
        ("quantile_ab", "quantile_ab_p_value") => {
            let p = anytime::quantile_difference(
                &numbers(args, "a"),
                &numbers(args, "b"),
                x("q"),
                x("t_opt"),
            )
            .unwrap();
            Some(vec![("p", p.into())])
        }
        ("auto_ratio", "ar_transition_row") => {
            let row = usize::try_from(count(args, "row")).unwrap();
            Some(vec![(
                "",
                AutoRatio::transition_from(x("phi"), row)
                    .unwrap()
                    .to_vec()
                    .into(),
            )])
        }
        ("auto_ratio", "stationary_weights") if args["n"] == 11 => {
            Some(vec![("", AutoRatio::stationary_nodes().to_vec().into())])
        }
        ("auto_ratio", "block_loglik") => {
            let (c, b) = (
                Counts::new(count(args, "nc"), count(args, "kc")),
                Counts::new(count(args, "nb"), count(args, "kb")),
            );
            Some(vec![(
                "",
                AutoRatio::block_log_likelihood(x("theta"), x("s"), c, b)
                    .unwrap()
                    .into(),
            )])
        }
        ("auto_ratio", "noise_posterior") => {
            let mut process = AutoRatio::new(1.0, history(args), 0.005).unwrap();
            for block in rows(args, "blocks") {
                process.learn(groups(block)).unwrap();
            }
            let levels = process.noise_levels();
            let weights: Vec<_> = levels.iter().map(|l| l.log_weight).collect();
            let set: Vec<_> = levels.iter().map(|l| l.plausible).collect();
            Some(vec![
                ("log_weight_q", weights.into()),
                ("in_set", set.into()),
            ])
        }
        ("auto_ratio", "auto_ratio") => {
            let mut process = AutoRatio::new(1.0, history(args), 0.005).unwrap();
            for block in rows(args, "history") {
                process.learn(groups(block)).unwrap();
            }
            let minutes = args["minutes_nc_kc_n1_k1_n2_k2"].as_array().unwrap();
            let trace = minutes.iter().enumerate().map(|(t, minute)| {
                let v: [u64; 6] = std::array::from_fn(|i| minute[i].as_u64().unwrap());
                process
                    .observe(
                        t as u64 / 5,
                        Counts::new(v[0], v[1]),
                        groups([v[2], v[3], v[4], v[5]]),
                    )
                    .unwrap();
                process.log_e()
            });
            Some(vec![("", trace.collect::<Vec<_>>().into())])
        }
        _ => None,
    }
}

fn groups([n1, k1, n2, k2]: [u64; 4]) -> [Counts; 2] {
    [Counts::new(n1, k1), Counts::new(n2, k2)]
}

fn history(args: &Value) -> History {
    match (args["use_history"] == false, args["mode"] == 1) {
        (true, _) => History::Unknown,
        (false, true) => History::Pooled,
        (false, false) => History::Groups,
    }
}
