#!/usr/bin/env python3
"""Writes tests/oracles/scipy_*.json: 50 random cases and more per family, with scipy, statsmodels and mpmath as references.

    python3 -m venv v && v/bin/pip install numpy==2.4.6 scipy==1.17.1 statsmodels==0.15.0 mpmath==1.4.1
    v/bin/python llm-gates/tests/scripts/scipy_cases.py

The files are frozen: run it only to add families, and say why in the commit."""
import json
import pathlib

import mpmath as mp
import numpy as np
from scipy import special, stats
from statsmodels.stats import contingency_tables, multitest, proportion

OUT = pathlib.Path(__file__).resolve().parent.parent / "oracles"
SIDES = ["two-sided", "less", "greater"]
rng = np.random.default_rng(20261123)
mp.mp.dps = 40


def write(family, cases, library):
    """Cases of (fn, args, expect, rtol, atol)."""
    keys = ["fn", "args", "expect", "rtol", "atol"]
    rows = [{"id": f"scipy_{family}-{i:03}", **dict(zip(keys, c))} for i, c in enumerate(cases)]
    lines = ",\n".join(json.dumps(r, separators=(",", ":")) for r in rows)
    text = '{"meta":{"lib":"%s","seed":20261123},"cases":[\n%s\n]}\n' % (library, lines)
    (OUT / f"scipy_{family}.json").write_text(text)
    print(family, len(rows))


def log_uniform(low, high):
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def sample(n, discrete=False):
    if discrete:
        return [float(v) for v in rng.integers(0, 8, n)]
    return [round(float(v), 4) for v in rng.normal(rng.uniform(-0.5, 0.5), rng.uniform(0.5, 2), n)]


def beta_log_lower(a, b, x):
    """ln I_x(a, b) by integrating the density of the logit at 40 digits."""
    a, b, x = mp.mpf(a), mp.mpf(b), mp.mpf(x)
    u, mode = mp.log(x / (1 - x)), mp.log(a / b)
    sd = mp.sqrt(1 / a + 1 / b)
    ln = lambda t: a * t - (a + b) * mp.log1p(mp.exp(t)) - (a * mode - (a + b) * mp.log1p(mp.exp(mode)))
    f = lambda t: mp.exp(ln(t))
    edges = lambda c, d: mp.linspace(c, d, 41)
    low, high = mode - 60 * sd - 200 / a, mode + 60 * sd + 200 / b
    if u < mode:
        start = u - min(60 * sd + 200 / a, 200 / max((a + b) * (a / (a + b) - x), mp.mpf(10) ** -30))
        return mp.log(mp.quad(f, edges(start, u))) + (a * mode - (a + b) * mp.log1p(mp.exp(mode))) - ln_beta(a, b)
    upper = mp.quad(f, edges(u, min(high, u + 200 / max((a + b) * (x - a / (a + b)), mp.mpf(10) ** -30))))
    upper *= mp.exp((a * mode - (a + b) * mp.log1p(mp.exp(mode))) - ln_beta(a, b))
    return mp.log1p(-upper)


def ln_beta(a, b):
    return mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(a + b)


def special_functions():
    cases = []
    for _ in range(50):
        x = float(rng.uniform(-40, 10))
        cases.append(("log_ndtr", {"x": x}, {"v": float(mp.log(mp.ncdf(x)))}, 1e-13, 1e-15))
    for _ in range(50):
        p = log_uniform(1e-300, 0.5)
        v = mp.findroot(lambda t: mp.log(mp.ncdf(t)) - mp.log(p), float(special.ndtri(p)))
        cases.append(("ndtri", {"p": p}, {"v": float(v)}, 1e-13, 1e-15))
    for _ in range(100):
        a, b = log_uniform(0.3, 1e9), log_uniform(0.3, 1e9)
        mean, sd = a / (a + b), np.sqrt(a * b / (a + b) ** 3)
        x = float(np.clip(mean + rng.uniform(-8, 4) * sd, mean * 1e-3, 1 - (1 - mean) * 1e-3))
        cases.append(("log_betainc_reg", {"a": a, "b": b, "x": x}, {"v": float(beta_log_lower(a, b, x))}, 1e-10, 1e-12))
    for _ in range(50):
        a, b = log_uniform(1e-3, 1e12), log_uniform(1e-3, 1e12)
        cases.append(("log_beta", {"a": a, "b": b}, {"v": float(ln_beta(mp.mpf(a), mp.mpf(b)))}, 1e-13, 1e-13))
    for _ in range(50):
        s = log_uniform(0.3, 1e4)
        x = max(s + rng.uniform(-8, 8) * np.sqrt(s), s * 0.01)
        p, q = mp.gammainc(s, 0, x, regularized=True), mp.gammainc(s, x, mp.inf, regularized=True)
        expect = {"logP": float(mp.log(p)), "logQ": float(mp.log(q))}
        cases.append(("log_gammainc_p_q", {"s": s, "x": float(x)}, expect, 1e-11, 1e-13))
    for _ in range(50):
        df, t = log_uniform(0.5, 1e9), log_uniform(0.01, 30)
        x = mp.mpf(df) / (mp.mpf(df) + mp.mpf(t) ** 2)
        if df < 1e5:
            v = mp.betainc(mp.mpf(df) / 2, 0.5, 0, x, regularized=True) / 2
        else:
            c = mp.loggamma((mp.mpf(df) + 1) / 2) - mp.loggamma(mp.mpf(df) / 2) - mp.log(mp.mpf(df) * mp.pi) / 2
            f = lambda u: mp.exp(c - (mp.mpf(df) + 1) / 2 * mp.log1p(u * u / mp.mpf(df)))
            v = mp.quad(f, mp.linspace(t, t + 40, 81))
        cases.append(("student_t_sf", {"df": df, "t": t}, {"v": float(v)}, 1e-10, 1e-300))
    for _ in range(50):
        df = log_uniform(1, 1e4)
        x = max(df + rng.uniform(-6, 10) * np.sqrt(2 * df), 0.01)
        v = mp.gammainc(mp.mpf(df) / 2, mp.mpf(float(x)) / 2, mp.inf, regularized=True)
        cases.append(("chi2_sf", {"df": df, "x": float(x)}, {"v": float(v)}, 1e-11, 1e-300))
    write("special_functions", cases, "mpmath 1.4.1, 40 digits")


def counts():
    n = int(log_uniform(5, 1e6))
    return int(rng.binomial(n, log_uniform(1e-3, 0.9))), n


def proportions():
    interval, test = [], []
    for _ in range(50):
        k, n = counts()
        alpha = float(rng.choice([0.1, 0.05, 0.01]))
        b = stats.binomtest(k, n)
        for fn, method in [("wilson", "wilson"), ("clopper_pearson", "exact")]:
            ci = b.proportion_ci(1 - alpha, method)
            interval.append((fn, {"k": k, "n": n, "alpha": alpha}, {"lo": ci.low, "hi": ci.high}, 1e-9, 1e-12))
        k, n = counts()
        p0 = float(np.clip(k / n * rng.uniform(0.7, 1.4), 1e-4, 0.99))
        side = str(rng.choice(SIDES))
        p = stats.binomtest(k, n, p0, side).pvalue
        test.append(("binomtest", {"k": k, "n": n, "p0": p0, "alternative": side}, {"p": float(p)}, 1e-9, 1e-12))
    write("binomial_ci", interval, "scipy 1.17.1 binomtest.proportion_ci")
    write("binomial_test", test, "scipy 1.17.1 binomtest")


def two_arms(limit):
    n1, n2 = int(log_uniform(5, limit)), int(log_uniform(5, limit))
    p = log_uniform(0.005, 0.6)
    k1, k2 = int(rng.binomial(n1, min(p * rng.uniform(0.5, 2), 0.95))), int(rng.binomial(n2, p))
    return {"k1": k1, "n1": n1, "k2": k2, "n2": n2}


def tables():
    exact, z, flips, chi = [], [], [], []
    for _ in range(50):
        a, side = two_arms(20_000), str(rng.choice(SIDES))
        p = stats.fisher_exact([[a["k1"], a["n1"] - a["k1"]], [a["k2"], a["n2"] - a["k2"]]], side).pvalue
        exact.append(("fisher", {**a, "alternative": side}, {"p": float(p)}, 1e-8, 1e-12))
        x = int(rng.integers(0, 12))
        odds, total, marked, drawn = log_uniform(0.2, 8), 2000, 40, int(rng.integers(100, 1000))
        ln = stats.nchypergeom_fisher.logpmf(x, total, marked, drawn, odds)
        args = {"N": total, "K_events": marked, "n_canary": drawn, "odds": odds, "x": x}
        exact.append(("nchypergeom_fisher_logpmf", args, {"logpmf": float(ln)}, 1e-8, 1e-12))
        a = two_arms(1e6)
        if a["k1"] + a["k2"] > 0:
            s, p = proportion.proportions_ztest([a["k1"], a["k2"]], [a["n1"], a["n2"]])
            z.append(("z_pooled", {**a, "alternative": "two-sided"}, {"z": float(s), "p": float(p)}, 1e-9, 1e-12))
        lo, hi = proportion.confint_proportions_2indep(a["k1"], a["n1"], a["k2"], a["n2"], method="newcomb", compare="diff")
        z.append(("newcombe_ci_diff", {**a, "alpha": 0.05}, {"lo": float(lo), "hi": float(hi)}, 1e-8, 1e-12))
        b, c = int(log_uniform(1, 2000)), int(log_uniform(1, 2000))
        p = contingency_tables.mcnemar([[5, b], [c, 5]], exact=True).pvalue
        flips.append(("exact_two_sided", {"b": b, "c": c}, {"p": float(min(p, 1))}, 1e-9, 1e-12))
        r = contingency_tables.mcnemar([[5, b], [c, 5]], exact=False, correction=True)
        flips.append(("chi2", {"b": b, "c": c, "correction": True}, {"chi2": float(r.statistic), "p": float(r.pvalue)}, 1e-9, 1e-12))
        m = int(rng.integers(2, 9))
        w = [round(float(v), 4) for v in rng.uniform(0.1, 1, m)]
        seen = [int(v) for v in rng.multinomial(int(log_uniform(50, 1e6)), np.array(w) / sum(w))]
        r = stats.chisquare(seen, np.array(w) / sum(w) * sum(seen))
        expect = {"chi2": float(r.statistic), "p": float(r.pvalue), "df": m - 1}
        chi.append(("gof", {"observed": seen, "weights": w}, expect, 1e-8, 1e-12))
        table = [[int(v) for v in rng.integers(5, 400, m)] for _ in range(2)]
        r = stats.chi2_contingency(table)
        expect = {"chi2": float(r.statistic), "p": float(r.pvalue), "df": int(r.dof)}
        chi.append(("independence", {"table": table}, expect, 1e-9, 1e-12))
    write("exact_2x2", exact, "scipy 1.17.1")
    write("two_proportion", z, "statsmodels 0.15.0")
    write("mcnemar", flips, "statsmodels 0.15.0")
    write("chisq", chi, "scipy 1.17.1")


def samples():
    welch, mann, wilcoxon, smirnov = [], [], [], []
    inf = lambda v: float(v) if np.isfinite(v) else ("Infinity" if v > 0 else "-Infinity")
    for _ in range(50):
        side = str(rng.choice(SIDES))
        a, b = sample(int(rng.integers(3, 40))), sample(int(rng.integers(3, 40)))
        r = stats.ttest_ind(a, b, equal_var=False, alternative=side)
        ci = r.confidence_interval(0.95)
        expect = {"t": float(r.statistic), "df": float(r.df), "p": float(r.pvalue), "ci_lo": inf(ci.low), "ci_hi": inf(ci.high)}
        welch.append(("welch", {"a": a, "b": b, "alternative": side}, expect, 1e-8, 1e-10))
        a, b = sample(int(rng.integers(3, 25))), sample(int(rng.integers(3, 25)))
        if len(set(a + b)) == len(a) + len(b):
            r = stats.mannwhitneyu(a, b, alternative=side, method="exact")
            mann.append(("mwu_exact", {"a": a, "b": b, "alternative": side}, {"U1": float(r.statistic), "p": float(r.pvalue)}, 1e-10, 1e-12))
        args = {"a": a, "b": b, "alternative": side}
        r = stats.ks_2samp(a, b, alternative=side, method="exact")
        smirnov.append(("ks_exact", args, {"D": float(r.statistic), "p": float(r.pvalue)}, 1e-8, 1e-12))
        r = stats.ks_2samp(a, b, alternative=side, method="asymp")
        smirnov.append(("ks_asymp", args, {"D": abs(float(r.statistic)), "p": float(r.pvalue)}, 1e-8, 1e-12))
        a, b = sample(int(rng.integers(5, 60)), True), sample(int(rng.integers(5, 60)), True)
        r = stats.mannwhitneyu(a, b, alternative=side, method="asymptotic", use_continuity=True)
        args = {"a": a, "b": b, "alternative": side, "continuity": True}
        mann.append(("mwu_asymptotic", args, {"U1": float(r.statistic), "p": float(r.pvalue)}, 1e-10, 1e-12))
        d = sample(int(rng.integers(4, 45)))
        if len({abs(v) for v in d}) == len(d) and 0.0 not in d:
            r = stats.wilcoxon(d, alternative=side, method="exact")
            wilcoxon.append(("wilcoxon_exact", {"d": d, "alternative": side}, {"W": float(r.statistic), "p": float(r.pvalue)}, 1e-10, 1e-12))
        d = [float(v) for v in rng.integers(-6, 9, int(rng.integers(12, 60)))]
        r = stats.wilcoxon(d, alternative=side, method="asymptotic", correction=True, zero_method="wilcox")
        args = {"d": d, "alternative": side, "correction": True, "zero_method": "wilcox"}
        wilcoxon.append(("wilcoxon_asymptotic", args, {"W": float(r.statistic), "p": float(r.pvalue)}, 1e-10, 1e-12))
    write("welch_t", welch, "scipy 1.17.1")
    write("mann_whitney", mann, "scipy 1.17.1")
    write("wilcoxon", wilcoxon, "scipy 1.17.1")
    write("ks_2samp", smirnov, "scipy 1.17.1")


def families():
    cases = []
    names = {"bh": "fdr_bh", "by": "fdr_by", "holm": "holm", "hochberg": "simes-hochberg", "bonferroni": "bonferroni"}
    for i in range(50):
        p = [round(float(v), 6) for v in rng.beta(0.4, 1.5, int(rng.integers(2, 30)))]
        for fn, method in names.items():
            reject, adjusted = multitest.multipletests(p, 0.05, method)[:2]
            expect = {"reject": [bool(r) for r in reject], "adjusted": [float(v) for v in adjusted]}
            cases.append((fn, {"p": p, "alpha": 0.05}, expect, 1e-10, 1e-12))
    write("multiple_testing", cases, "statsmodels 0.15.0")


special_functions()
proportions()
tables()
samples()
families()
