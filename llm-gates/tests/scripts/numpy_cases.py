#!/usr/bin/env python3
"""Writes the rest of tests/oracles/scipy_*.json: 50 random cases and more for each family that no library has whole. The formulas of the papers are computed again here,
apart from the crate's code, with numpy, scipy and mpmath.

    python3 -m venv v && v/bin/pip install numpy==2.4.6 scipy==1.17.1 statsmodels==0.15.0 mpmath==1.4.1
    v/bin/python llm-gates/tests/scripts/numpy_cases.py

The files are frozen: run it only to add families, and say why in the commit."""
import json
import pathlib

import mpmath as mp
import numpy as np
from scipy import integrate, optimize, special, stats
from statsmodels.stats import power, proportion

OUT = pathlib.Path(__file__).resolve().parent.parent / "oracles"
rng = np.random.default_rng(20261125)
mp.mp.dps = 40
WIDE = [float(t) for t in np.exp(np.exp(np.linspace(np.log(np.log(1.1)), np.log(np.log(30)), 16)))]
RR7 = [(1.12, 0.05), (1.4, 0.32), (1.7, 0.28), (2.2, 0.15), (3.5, 0.10), (7.0, 0.06), (20.0, 0.04)]


def write(family, cases, library):
    keys = ["fn", "args", "expect", "rtol", "atol"]
    rows = [{"id": f"scipy_{family}-{i:03}", **dict(zip(keys, c))} for i, c in enumerate(cases)]
    lines = ",\n".join(json.dumps(r, separators=(",", ":")) for r in rows)
    (OUT / f"scipy_{family}.json").write_text('{"meta":{"lib":"%s","seed":20261125},"cases":[\n%s\n]}\n' % (library, lines))
    print(family, len(rows))


def log_uniform(low, high):
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def mix(terms):
    """ln of the plain mean of exponentials, with 40 digits."""
    return float(mp.log(mp.fsum(mp.exp(t) for t in terms) / len(terms)))


def lbeta(a, b):
    return mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(a + b)


def batch(ratio, low=50, high=3000):
    n_c, n_b = int(rng.integers(low // 10, high // 10)), int(rng.integers(low, high))
    p = rng.uniform(0.002, 0.05)
    return [n_c, int(rng.binomial(n_c, min(p * ratio, 1))), n_b, int(rng.binomial(n_b, p))]


def rho_of(v, alpha):
    l = -np.log(alpha)
    return v / (2 * l + np.log1p(2 * l))


def asymptotic():
    cases = []
    for _ in range(50):
        s2, n, alpha, star = log_uniform(1e-4, 100), int(log_uniform(20, 1e6)), float(rng.choice([0.01, 0.05, 0.1])), log_uniform(100, 1e6)
        for fn, a in [("halfwidth_two_sided", alpha), ("halfwidth_one_sided", 2 * alpha)]:
            r2 = 1 / mp.mpf(rho_of(star, a))
            g = mp.sqrt(n * r2 + 1)
            ln = mp.log(g / alpha) if a == alpha else mp.log(1 + g / (2 * alpha))
            hw = mp.sqrt(s2) * mp.sqrt(2 * (n * r2 + 1) / (n * n * r2) * ln)
            cases.append((fn, {"s2": s2, "n": n, "alpha": alpha, "N_star": star}, {"rho": float(mp.sqrt(r2)), "hw": float(hw)}, 1e-11, 1e-12))
        d, rho = float(rng.normal() * np.sqrt(s2 / n) * 3), log_uniform(1e-3, 1)
        x, sd = mp.mpf(d), mp.sqrt(s2)
        e = mp.quad(lambda t: mp.exp(n * (t * x / sd - t * t / 2)) * mp.npdf(t, 0, rho), mp.linspace(-8 * rho, 8 * rho, 81))
        cases.append(("log_e_value", {"diff": d, "s2": s2, "n": n, "rho": rho}, {"log_e": float(mp.log(e))}, 1e-9, 1e-9))
        var, tau, theta0 = log_uniform(1e-8, 1), log_uniform(1e-3, 1), float(rng.normal() * 0.1)
        d = theta0 + float(rng.normal() * 3 * np.sqrt(var))
        ln = stats.norm.logpdf(d, theta0, np.sqrt(var + tau**2)) - stats.norm.logpdf(d, theta0, np.sqrt(var))
        cases.append(("msprt_log_lambda", {"diff": d, "var_of_diff": var, "tau": tau, "theta0": theta0}, {"log_lambda": float(ln)}, 1e-9, 1e-9))
    write("asymptotic_cs", cases, "numpy, mpmath")


def rate_ratios():
    cases, extreme = [], []
    for _ in range(50):
        theta0, ratio = float(rng.choice([0.8, 1.0, 1.2, 2.0])), rng.uniform(0.5, 3)
        rows = [batch(ratio) for _ in range(12)]
        late = float(rng.choice([0.25, 0.5]))
        horizon = int(rng.integers(5, 40))
        plain, started, trace, late_trace = [mp.mpf(0)] * 16, [mp.log((1 - mp.mpf(late)) / 16)] * 16, [], []
        for t, (n_c, k_c, n_b, k_b) in enumerate(rows):
            pi = mp.mpf(n_c) / (n_c + n_b)
            g = lambda x: 1 + pi * (x - 1)
            step = [k_c * mp.log(th) - (k_c + k_b) * mp.log(g(theta0 * mp.mpf(th)) / g(mp.mpf(theta0))) for th in WIDE]
            plain = [a + b for a, b in zip(plain, step)]
            trace.append(mix(plain))
            if t < horizon:
                started = [mp.log(mp.exp(m) + mp.mpf(late) / horizon / 16) for m in started]
            started = [a + b for a, b in zip(started, step)]
            left = mp.mpf(late) * (1 - mp.mpf(min(t + 1, horizon)) / horizon)
            late_trace.append(float(mp.log(mp.fsum(map(mp.exp, started)) + left)))
        cases.append(("rate_ratio_trace", {"batches": rows, "theta0": theta0}, {"log_e": trace}, 1e-10, 1e-10))
        args = {"batches": rows, "theta0": theta0, "horizon": horizon, "prior_start": late}
        cases.append(("rate_ratio_changepoint_trace", args, {"log_e": late_trace}, 1e-10, 1e-10))
    write("eprocess_rate_ratio", cases, "mpmath 1.4.1, 40 digits")
    for _ in range(50):
        s2, rows = log_uniform(1e-3, 1), [batch(rng.uniform(0.7, 2)) for _ in range(8)]
        sums, trace = [mp.mpf(0)] * 16, []
        for n_c, k_c, n_b, k_b in rows:
            pi = mp.mpf(n_c) / (n_c + n_b)
            m = 1 / (pi * (1 - pi) * s2)
            a, b = pi * m, (1 - pi) * m
            null = lbeta(a + k_c, b + k_b) - lbeta(a, b)
            sums = [s + lbeta(th * a + k_c, b + k_b) - lbeta(th * a, b) - null for s, th in zip(sums, map(mp.mpf, WIDE))]
            trace.append(mix(sums))
        extreme.append(("bb_lr_trace", {"blocks": rows, "s2": s2}, {"log_e": trace}, 1e-9, 1e-10))
    write("eprocess_betabinomial_lr", extreme, "mpmath 1.4.1, 40 digits")


def one_sample():
    cases, symmetric, srm = [], [], []
    q_grid = [0.51, 0.525, 0.55, 0.575, 0.6, 0.65, 0.7, 0.8]
    for _ in range(50):
        n, p0 = int(log_uniform(10, 1e5)), log_uniform(1e-3, 0.3)
        k = int(rng.binomial(n, min(p0 * rng.uniform(0.5, 2), 1)))
        ln = mix([k * mp.log(t) - n * mp.log1p(mp.mpf(p0) * (t - 1)) for t in map(mp.mpf, WIDE)])
        cases.append(("bernoulli_tilt", {"k": k, "n": n, "p0": p0}, {"log_e": ln}, 1e-10, 1e-10))
        lam, exposure = log_uniform(1e-3, 5), log_uniform(1, 1e4)
        k = int(rng.poisson(lam * exposure * rng.uniform(0.5, 2)))
        ln = mix([k * mp.log(t) - mp.mpf(lam) * exposure * (t - 1) for t in map(mp.mpf, WIDE)])
        cases.append(("poisson_tilt", {"k": k, "exposure": exposure, "lambda0": lam}, {"log_e": ln}, 1e-10, 1e-10))
        decided = int(log_uniform(1, 1e5))
        k = int(rng.binomial(decided, rng.uniform(0.4, 0.6)))
        ln = mix([k * mp.log(2 * mp.mpf(q)) + (decided - k) * mp.log(2 * (1 - mp.mpf(q))) for q in q_grid])
        cases.append(("sign_grid", {"losses": k, "decided": decided}, {"log_e": ln}, 1e-10, 1e-10))
        a, b, n = log_uniform(0.5, 50), log_uniform(0.5, 500), int(log_uniform(5, 3000))
        k, p0 = int(rng.binomial(n, a / (a + b))), float(np.clip(a / (a + b) * rng.uniform(0.5, 2), 1e-3, 0.9))
        args = {"k": k, "n": n, "p0": p0, "a": a, "b": b}
        two = lbeta(mp.mpf(a) + k, mp.mpf(b) + n - k) - lbeta(mp.mpf(a), mp.mpf(b)) - k * mp.log(p0) - (n - k) * mp.log1p(-mp.mpf(p0))
        cases.append(("beta_binomial_two_sided", args, {"log_e": float(two)}, 1e-10, 1e-11))
        upper = lambda x, y: mp.log(mp.re(mp.betainc(y, x, 0, 1 - mp.mpf(p0), regularized=True)))
        one = two + upper(mp.mpf(a) + k, mp.mpf(b) + n - k) - upper(mp.mpf(a), mp.mpf(b))
        cases.append(("beta_binomial_one_sided_truncated_prior", args, {"log_e": float(one)}, 1e-9, 1e-10))
        d = [round(float(v), 4) for v in rng.normal(rng.uniform(-0.3, 0.6), 1.3, 20)]
        sums, trace = [mp.mpf(0)] * 5, []
        for x in d:
            sums = [s + mp.log(2 / (1 + mp.exp(-2 * mp.mpf(w) * x))) for s, w in zip(sums, [0.1, 0.2, 0.4, 0.8, 1.6])]
            trace.append(mix(sums))
        symmetric.append(("symmetric_trace", {"d": d}, {"log_e": trace}, 1e-10, 1e-10))
        arms = int(rng.integers(2, 6))
        p = [float(v) for v in rng.dirichlet(np.full(arms, 3.0))]
        p[-1] = 1 - sum(p[:-1])
        seen = [int(v) for v in rng.multinomial(int(log_uniform(10, 1e6)), rng.dirichlet(np.array(p) * 500))]
        c, n = log_uniform(100, 1e5), sum(seen)
        ln = mp.loggamma(c) - mp.loggamma(mp.mpf(c) + n)
        for k, share in zip(seen, p):
            prior = mp.mpf(c) * share / mp.fsum(p)
            ln += mp.loggamma(prior + k) - mp.loggamma(prior) - k * mp.log(share / mp.fsum(p))
        expect = {"log_e": float(ln), "always_valid_p": float(min(1, mp.exp(-ln)))}
        srm.append(("dirichlet_multinomial", {"counts": seen, "p": p, "concentration": c}, expect, 1e-8, 1e-9))
    write("eprocess_one_sample", cases, "mpmath 1.4.1, 40 digits")
    write("eprocess_symmetric", symmetric, "mpmath 1.4.1, 40 digits")
    write("srm_sequential", srm, "mpmath 1.4.1, 40 digits")


def betting():
    cases = []
    for _ in range(50):
        x = [round(float(v), 4) for v in rng.beta(rng.uniform(0.5, 4), rng.uniform(0.5, 4), 30)]
        m, alpha = round(float(rng.uniform(0.2, 0.8)), 3), float(rng.choice([0.01, 0.05]))
        v = np.array(x)
        t = np.arange(1, 31)
        means = (0.5 + np.cumsum(v)) / (t + 1)
        spread = (0.25 + np.cumsum((v - means) ** 2)) / (t + 1)
        past = np.concatenate([[0.25], spread[:-1]])
        bets = np.minimum(np.sqrt(2 * np.log(1 / alpha) / (past * t * np.log1p(t))), 0.5 / m)
        log = np.cumsum(np.log1p(bets * (v - m)))
        args = {"x": x, "m": m, "alpha": alpha, "side": "pos", "trunc_scale": 0.5}
        cases.append(("betting_capital_predmix_eb", args, {"log_capital_every_10": list(log[9::10])}, 1e-9, 1e-12))
        lam = np.minimum(np.sqrt(2 * np.log(2 / alpha) / (past * t * np.log1p(t))), 0.5)
        psi, before = -np.log1p(-lam) - lam, np.concatenate([[np.nan], np.cumsum(v)[:-1] / t[:-1]])
        side = lambda first: np.cumsum((v - np.where(t == 1, first, before)) ** 2 * psi)
        centre, total = np.cumsum(lam * v) / np.cumsum(lam), np.cumsum(lam)
        low = np.maximum(centre - (np.log(2 / alpha) + side(0.0)) / total, 0)
        high = np.minimum(centre + (np.log(2 / alpha) + side(1.0)) / total, 1)
        expect = {"lo_every_10": list(low[9::10]), "hi_every_10": list(high[9::10])}
        cases.append(("predmix_empbern_cs", {"x": x, "alpha": alpha, "truncation": 0.5}, expect, 1e-9, 1e-12))
    write("betting", cases, "numpy 2.4.6")


def mixtures():
    cases, pairs = [], []

    def beta_binomial(v_opt, alpha_opt, g, h, one_sided):
        r = max(rho_of(v_opt, 2 * alpha_opt if one_sided else alpha_opt) - g * h, 1e-3 * g * h)

        def whole(s, v):
            a, b = mp.mpf(r + v - g * s) / (g * (g + h)), mp.mpf(r + v + h * s) / (h * (g + h))
            if not one_sided:
                return lbeta(a, b)
            return mp.log(mp.betainc(a, b, 0, mp.mpf(h) / (mp.mpf(g) + h)))

        normaliser = whole(0, 0)
        return lambda s, v: float(
            v / (mp.mpf(g) * h) * mp.log(g + h) - (v + mp.mpf(h) * s) / (mp.mpf(h) * (g + h)) * mp.log(g)
            - (v - mp.mpf(g) * s) / (mp.mpf(g) * (g + h)) * mp.log(h) + whole(s, v) - normaliser)

    for i in range(50):
        one_sided, v_opt, alpha = bool(i % 2), log_uniform(5, 1e4), float(rng.choice([0.01, 0.05]))
        v = v_opt * log_uniform(0.1, 10)
        rho = rho_of(v_opt, 0.1 if one_sided else 0.05)
        s = float(rng.normal() * 2.5 * np.sqrt(v))

        def log_e(s, v=v, rho=rho, one_sided=one_sided):
            w = mp.mpf(v) + rho
            two = mp.log(rho / w) / 2 + mp.mpf(s) ** 2 / (2 * w)
            return two + mp.log(2 * mp.ncdf(s / mp.sqrt(w))) if one_sided else two

        base = {"v_opt": v_opt, "alpha_opt": 0.05, "one_sided": one_sided}
        cases.append(("normal_log_mixture", {"s": s, "v": v, **base}, {"log_e": float(log_e(s))}, 1e-11, 1e-12))
        bound = optimize.brentq(lambda s: float(log_e(s) + mp.log(alpha)), 0, 100 * np.sqrt(v + rho), xtol=1e-12, rtol=1e-14)
        cases.append(("normal_mixture_bound", {"v": v, "alpha": alpha, **base}, {"bound": bound}, 1e-9, 1e-12))
        g = round(float(rng.uniform(0.05, 0.95)), 3)
        h, v_opt = round(1 - g, 3), log_uniform(2, 300)
        v = v_opt * log_uniform(0.2, 4)
        f = beta_binomial(v_opt, 0.05, g, h, one_sided)
        s = float(np.clip(rng.normal() * 2 * np.sqrt(v), -0.7 * v / h, 0.7 * v / g))
        args = {"v": v, "v_opt": v_opt, "g": g, "h": h, "alpha_opt": 0.05, "one_sided": one_sided}
        cases.append(("beta_binomial_log_mixture", {"s": s, **args}, {"log_e": f(s, v)}, 1e-9, 1e-9))
        if f(v / g * 0.999, v) > -np.log(alpha):
            bound = optimize.brentq(lambda s: f(s, v) + np.log(alpha), 0, v / g * 0.999, xtol=1e-11, rtol=1e-13)
            cases.append(("beta_binomial_mixture_bound", {"alpha": alpha, **args}, {"bound": bound}, 1e-8, 1e-9))
        n, t_opt = int(log_uniform(20, 2000)), log_uniform(50, 2000)
        k = int(rng.binomial(n, rng.uniform(0.05, 0.9)))

        def excess(p):
            return beta_binomial(t_opt * p * (1 - p), 0.05, p, 1 - p, False)(k - n * p, n * p * (1 - p)) + np.log(alpha)

        if 0 < k < n:
            low = optimize.brentq(excess, 1e-9, k / n, xtol=1e-13)
            high = optimize.brentq(excess, k / n, 1 - 1e-9, xtol=1e-13)
            args = {"k": k, "n": n, "alpha": alpha, "t_opt": t_opt, "alpha_opt": 0.05}
            cases.append(("bernoulli_cs", args, {"lo": low, "hi": high}, 1e-7, 1e-8))
        q, t_opt = float(rng.choice([0.5, 0.9])), 100
        a = sorted(round(float(v), 3) for v in rng.lognormal(0, 0.6, int(rng.integers(15, 60))))
        b = sorted(round(float(v), 3) for v in rng.lognormal(rng.uniform(0, 1.2), 0.6, int(rng.integers(15, 60))))
        f = beta_binomial(t_opt * q * (1 - q), 0.05, q, 1 - q, False)

        def least(sample, x):
            below, within = np.searchsorted(sample, x, "left"), np.searchsorted(sample, x, "right")
            n = len(sample)
            e = lambda count: f(count - n * q, n * q * (1 - q))
            found = [e(below), e(within)]
            if below < within:
                found.append(optimize.minimize_scalar(e, bounds=(below, within), method="bounded", options={"xatol": 1e-9}).fun)
            return min(found)

        if i < 50:
            p = min(1.0, float(np.exp(-min(least(a, x) + least(b, x) for x in sorted(set(a + b))))))
            pairs.append(("quantile_ab_p_value", {"a": a, "b": b, "q": q, "t_opt": t_opt, "alpha_opt": 0.05}, {"p": p}, 1e-5, 1e-9))
    write("uniform_boundaries", cases, "mpmath 1.4.1, scipy 1.17.1 brentq")
    write("quantile_ab", pairs, "mpmath 1.4.1, scipy 1.17.1")


def noise_grid():
    return [(0.0, 0.0)] + [(s, phi) for s in [0.1, 0.2, 0.3, 0.5, 0.8, 1.2] for phi in [0.0, 0.6, 0.9, 0.97]]


Z = np.linspace(-3, 3, 11)
G = np.exp(-Z * Z / 2) / np.exp(-Z * Z / 2).sum()
LN_Q = np.log(np.array([0.5] + [0.5 / 24] * 24))


def row(phi, i):
    if phi == 0:
        return G
    edges = np.concatenate([[-np.inf], (Z[:-1] + 0.3 - phi * Z[i]) / np.sqrt(1 - phi**2), [np.inf]])
    return np.diff(stats.norm.cdf(edges))


class Learner:
    """Section "noise likelihood": a Kalman filter per noise level."""

    def __init__(self, mode):
        self.mode, self.lb, self.state = mode, np.zeros(25), None

    def learn(self, n1, k1, n2, k2):
        if self.mode == 2:
            if k1 < 1 or k2 < 1 or k1 + k2 < 5:
                return
            y, r = np.log((k2 + 0.5) / n2) - np.log((k1 + 0.5) / n1), 1 / (k1 + 0.5) + 1 / (k2 + 0.5)
            rw, eta, part = 1e-6, 1e-12, 1.0
        else:
            if k1 + k2 < 5:
                return
            y, r = np.log((k1 + k2 + 0.5) / (n1 + n2)), 1 / (k1 + k2 + 0.5)
            rw, eta, part = 2e-4, 0.02, 0.5
        first = self.state is None
        if first:
            self.state = [[y, 0.0, np.array([[100.0, 0.0], [0.0, s * s * part]]), 0] for s, _ in noise_grid()]
        for q, (s, phi) in enumerate(noise_grid()):
            mu, e, p, odd = self.state[q]
            v = s * s * part
            f = np.diag([1.0, phi])
            p = f @ p @ f + np.diag([rw, v * (1 - phi * phi)])
            e *= phi
            big = p.sum() + r
            d = y - mu - e
            l1 = np.log1p(-eta) - np.log(big) / 2 - d * d / (2 * big)
            l2 = np.log(eta) - np.log(big + 1) / 2 - d * d / (2 * (big + 1))
            if not first:
                self.lb[q] += np.logaddexp(l1, l2)
            if l2 > l1:
                odd += 1
                if odd >= 4:
                    p[0, 0] += 1.0
                    odd = 0
            else:
                odd = 0
                gain = p.sum(axis=1) / big
                mu, e = mu + gain[0] * d, e + gain[1] * d
                p = p - np.outer(gain, gain) * big
            self.state[q] = [mu, e, p, odd]
        self.lb -= self.lb.max()


def auto_ratio():
    cases = []
    for _ in range(20):
        phi, i = float(rng.choice([0.0, 0.6, 0.9, 0.97])), int(rng.integers(0, 11))
        cases.append(("ar_transition_row", {"phi": phi, "row": i}, list(row(phi, i)), 1e-9, 1e-10))
        n_c, k_c, n_b, k_b = batch(1.5)
        theta, s = float(rng.choice([1.12, 2.2, 7.0])), float(rng.choice([0.0, 0.2, 0.8]))
        x, pi = np.log(theta) + s * Z, n_c / (n_c + n_b)
        ln = special.logsumexp(k_c * x - (k_c + k_b) * np.log1p(pi * np.expm1(x)), b=G)
        args = {"theta": theta, "s": s, "nc": n_c, "kc": k_c, "nb": n_b, "kb": k_b}
        cases.append(("block_loglik", args, float(ln), 1e-9, 1e-10))

    def history(length, sd):
        return [[3000, int(rng.poisson(30 * np.exp(sd * rng.normal()))), 3000, int(rng.poisson(30 * np.exp(sd * rng.normal())))] for _ in range(length)]

    for i in range(20):
        mode, blocks = 2 - i % 2, history(int(rng.integers(5, 60)), rng.choice([0.0, 0.2, 0.5]))
        learner = Learner(mode)
        for b in blocks:
            learner.learn(*b)
        post = LN_Q + learner.lb
        total = special.logsumexp(post)
        expect = {"log_weight_q": list(post - total), "in_set": [bool(t) for t in total - learner.lb < np.log(1 / 0.005)]}
        cases.append(("noise_posterior", {"mode": mode, "blocks": blocks}, expect, 1e-8, 1e-9))
    thetas, ln_w = [1.0] + [t for t, _ in RR7], np.log([w for _, w in RR7])
    grid = noise_grid()
    for i in range(15):
        mode, past = 2 - i % 2, history(30, rng.choice([0.0, 0.3]))
        learner = Learner(mode)
        for b in past:
            learner.learn(*b)
        L, A = np.zeros((8, 25)), np.tile(G, (8, 25, 1))
        gains, logn, minutes, trace = np.zeros((8, 25, 11)), 0.0, [], []
        x = np.array([[np.log(t) + s * Z for s, _ in grid] for t in thetas])
        block, loge, numerator = [0, 0, 0, 0], 0.0, 0.0
        for t in range(14):
            if t % 5 == 0 and t > 0:
                c = L + special.logsumexp(gains, axis=2, b=A)
                w = A * np.exp(gains - gains.max(axis=2, keepdims=True))
                w /= w.sum(axis=2, keepdims=True)
                A = np.stack([np.stack([w[j, q] @ np.array([row(phi, k) for k in range(11)]) for q, (_, phi) in enumerate(grid)]) for j in range(8)])
                A[:, 0] = G
                L, gains, logn = c, np.zeros_like(gains), numerator
                learner.learn(*block)
                block = [0, 0, 0, 0]
            n_c, n1, n2 = (int(v) for v in rng.poisson([60, 570, 570]))
            k_c, k1, k2 = (int(rng.binomial(n, p)) for n, p in [(n_c, 0.02), (n1, 0.01), (n2, 0.01)])
            minutes.append([n_c, k_c, n1, k1, n2, k2])
            block = [a + b for a, b in zip(block, [n1, k1, n2, k2])]
            n_b, k = n1 + n2, k_c + k1 + k2
            if n_c and n_b and k:
                gains += k_c * x - k * np.log1p(n_c / (n_c + n_b) * np.expm1(x))
                c = L + special.logsumexp(gains, axis=2, b=A)
                w = ln_w[:, None] + (LN_Q + learner.lb)[None, :] + L[1:]
                numerator = logn + special.logsumexp(w + c[1:] - L[1:]) - special.logsumexp(w)
                inside = special.logsumexp(LN_Q + learner.lb) - learner.lb < np.log(1 / 0.005)
                loge = numerator - max(c[0][inside].max(), np.log(0.005) + c[0].max())
            trace.append(float(loge))
        args = {"mode": mode, "use_history": True, "history": past, "minutes_nc_kc_n1_k1_n2_k2": minutes}
        cases.append(("auto_ratio", args, trace, 1e-7, 1e-8))
    write("auto_ratio", cases, "numpy 2.4.6, scipy 1.17.1")


def designs():
    sequential, planner, size, ppi, wins, drift = [], [], [], [], [], []
    nodes, weights = np.polynomial.legendre.leggauss(400)
    for _ in range(50):
        looks, alpha, rho = int(rng.integers(2, 6)), float(rng.choice([0.01, 0.025, 0.05])), float(rng.choice([1.0, 2.0, 3.0]))
        ts = sorted(float(v) for v in rng.choice(np.linspace(0.1, 0.9, 17), looks - 1, replace=False)) + [1.0]
        zs, x, f, before, spent = [], np.array([0.0]), np.array([1.0]), 0.0, 0.0
        for t in ts:
            sd, step = np.sqrt(t - before), alpha * t**rho - spent
            b = optimize.brentq(lambda b: (f * stats.norm.sf((b - x) / sd)).sum() - step, -9, 9, xtol=1e-12)
            low, high = -8 * np.sqrt(t), b
            y = 0.5 * (high - low) * nodes + 0.5 * (high + low)
            density = (f[None, :] * stats.norm.pdf((y[:, None] - x[None, :]) / sd) / sd).sum(axis=1)
            f, x = density * weights * 0.5 * (high - low), y
            zs.append(b / np.sqrt(t))
            before, spent = t, alpha * t**rho
        sequential.append(("power_family_spending", {"information": ts, "alpha": alpha, "rho": rho, "sides": 1}, {"z": zs}, 1e-5, 1e-5))
        p, th, w, c_mix = log_uniform(1e-3, 0.1), float(rng.uniform(1.2, 5)), float(rng.choice([0.01, 0.05, 0.25, 0.5])), float(rng.uniform(0.8, 2.4))
        c = mp.log1p(mp.mpf(w) * (th - 1))
        mu = p * (th * mp.log(th) - (th + (1 - mp.mpf(w)) / w) * c)
        s2 = p * (th * (mp.log(th) - c) ** 2 + (1 - mp.mpf(w)) / w * c * c)
        bar = mp.log(20) + c_mix
        by = lambda n: mp.ncdf((n * mu - bar) / mp.sqrt(s2 * n)) + mp.exp(2 * mu * bar / s2) * mp.ncdf(-(n * mu + bar) / mp.sqrt(s2 * n))
        expect = {"mu": float(mu), "s2": float(s2), "n_expected": float(bar / mu), "p_detect": {str(n): float(by(n)) for n in [500, 2000, 10000, 50000]}}
        planner.append(("detect", {"p": p, "theta": th, "w": w, "alpha": 0.05, "c_mix": c_mix}, expect, 1e-9, 1e-14))
        p1 = float(rng.uniform(0.02, 0.6))
        p2, goal, ratio = p1 * float(rng.uniform(0.4, 0.9)), float(rng.choice([0.8, 0.9])), int(rng.choice([1, 3, 19]))
        side = str(rng.choice(["greater", "two-sided"]))
        z_a, z_b = stats.norm.isf(0.05 if side == "greater" else 0.025), stats.norm.ppf(goal)
        bar = (p1 + ratio * p2) / (1 + ratio)
        n1 = ((z_a * np.sqrt(bar * (1 - bar) * (1 + 1 / ratio)) + z_b * np.sqrt(p1 * (1 - p1) + p2 * (1 - p2) / ratio)) / (p1 - p2)) ** 2
        args = {"p1": p1, "p2": p2, "alpha": 0.05, "power": goal, "ratio_n2_over_n1": ratio, "alternative": side}
        size.append(("n_two_proportions", args, {"n1": float(n1), "n1_ceil": float(np.ceil(n1))}, 1e-9, 1e-12))
        h = float(proportion.proportion_effectsize(p1, p2))
        n1 = power.NormalIndPower().solve_power(h, None, 0.05, goal, ratio, "larger" if side == "greater" else side)
        size.append(("n_arcsine", args, {"effect_h": h, "n1": float(n1)}, 1e-5, 1e-12))
        d = float(rng.uniform(0.1, 1))
        size.append(("n_ttest_two_sided", {"d": d, "alpha": 0.05, "power": goal}, {"n1": float(power.TTestIndPower().solve_power(d, None, 0.05, goal))}, 1e-5, 1e-12))
        q, sigma, n = float(rng.choice([0.5, 0.9, 0.99])), float(rng.uniform(0.3, 1)), int(log_uniform(100, 1e6))
        law = stats.lognorm(sigma)
        density = float(law.pdf(law.ppf(q)))
        expect = {"density_at_quantile": density, "se": float(np.sqrt(q * (1 - q) / n) / density)}
        size.append(("se_sample_quantile", {"q": q, "sigma": sigma, "n": n}, expect, 1e-9, 1e-12))
        m, u, lam, alpha = int(rng.integers(20, 60)), int(rng.integers(60, 150)), float(rng.choice([0.0, 0.5, 1.0])), 0.05
        truth = rng.binomial(1, 0.6, m).astype(float)
        judged = np.clip(truth * 0.7 + rng.normal(0.1, 0.2, m), 0, 1).round(4)
        rest = rng.uniform(0, 1, u).round(4)
        error = truth - lam * judged
        estimate = lam * rest.mean() + error.mean()
        half = stats.norm.isf(alpha / 2) * np.sqrt((lam * rest).var() / u + error.var() / m)
        args = {"Y": list(truth), "Yhat": list(judged), "Yhat_unlabeled": list(rest), "alpha": alpha, "lam": lam}
        ppi.append(("ppi_mean", args, {"estimate": float(estimate), "lo": float(estimate - half), "hi": float(estimate + half)}, 1e-8, 1e-12))
        win, tie, loss = (int(v) for v in rng.integers(1, 300, 3))
        scores = np.repeat([1.0, 0.5, 0.0], [win, tie, loss])
        rate, se = scores.mean(), scores.std() / np.sqrt(len(scores))
        test = stats.binomtest(win, win + loss, 0.5, "greater")
        ci = stats.binomtest(win, win + loss).proportion_ci(0.95, "wilson")
        expect = {"win_rate_half_ties": rate, "se": se, "z_vs_half": (rate - 0.5) / se, "p_sign_greater": test.pvalue, "wilson_decided_lo": ci.low, "wilson_decided_hi": ci.high}
        wins.append(("win_rate", {"win": win, "tie": tie, "loss": loss}, {k: float(v) for k, v in expect.items()}, 1e-9, 1e-12))
        bins = int(rng.integers(2, 12))
        base, cand = ([int(v) for v in rng.integers(0, 300, bins)] for _ in range(2))
        add = 0.5 if 0 in base + cand else 0.0
        a, b = np.array(base) + add, np.array(cand) + add
        pa, pb = a / a.sum(), b / b.sum()
        psi, n, m = stats.entropy(pa, pb) + stats.entropy(pb, pa), sum(base), sum(cand)
        middle = 0.5 * (pa + pb)
        expect = {"psi": psi, "kl_base_cand": stats.entropy(pa, pb), "js": 0.5 * (stats.entropy(pa, middle) + stats.entropy(pb, middle)),
                  "null_mean": (bins - 1) * (1 / n + 1 / m), "p_approx": stats.chi2.sf(psi * n * m / (n + m), bins - 1)}
        drift.append(("psi", {"base": base, "cand": cand}, {k: float(v) for k, v in expect.items()}, 1e-8, 1e-12))
        x, y = ([round(float(v), 4) for v in rng.normal(rng.uniform(-1, 1), 1, int(rng.integers(5, 30)))] for _ in range(2))
        expect = {"w1": float(stats.wasserstein_distance(x, y)), "energy": float(stats.energy_distance(x, y))}
        drift.append(("wasserstein1_energy", {"x": x, "y": y}, expect, 1e-9, 1e-12))
        u, v, gamma = rng.normal(0, 1, (int(rng.integers(3, 12)), 3)).round(4), rng.normal(0.5, 1, (int(rng.integers(3, 12)), 3)).round(4), float(rng.uniform(0.1, 2))
        k = lambda a, b: np.exp(-gamma * ((a[:, None] - b[None]) ** 2).sum(axis=2))
        off = lambda a: k(a, a)[~np.eye(len(a), dtype=bool)].mean()
        expect = {"unbiased": off(u) + off(v) - 2 * k(u, v).mean(), "biased": k(u, u).mean() + k(v, v).mean() - 2 * k(u, v).mean()}
        drift.append(("mmd2_rbf", {"X": u.tolist(), "Y": v.tolist(), "gamma": gamma}, {n: float(e) for n, e in expect.items()}, 1e-9, 1e-12))
    write("group_sequential", sequential, "numpy 2.4.6, scipy 1.17.1")
    write("planner", planner, "mpmath 1.4.1, 40 digits")
    write("power", size, "statsmodels 0.15.0, scipy 1.17.1")
    write("ppi", ppi, "numpy 2.4.6")
    write("llm_eval", wins, "numpy 2.4.6, scipy 1.17.1")
    write("drift", drift, "scipy 1.17.1, numpy 2.4.6")


def fixed():
    rates, shifts, scores, more = [], [], [], []
    for _ in range(70):
        t_c, t_b, ratio = log_uniform(10, 1e3), log_uniform(10, 1e4), float(rng.choice([1.0, 1.2, 2.0]))
        k_c, k_b = int(rng.poisson(0.05 * t_c)), int(rng.poisson(0.05 * t_b))
        side = str(rng.choice(["two-sided", "less", "greater"]))
        if k_c + k_b:
            p = stats.binomtest(k_c, k_c + k_b, ratio * t_c / (ratio * t_c + t_b), side).pvalue
            args = {"k_c": k_c, "t_c": t_c, "k_b": k_b, "t_b": t_b, "ratio": ratio, "alternative": side}
            rates.append(("conditional_binomial", args, {"p": float(p)}, 1e-9, 1e-12))
        a, b = ([round(float(v), 4) for v in rng.normal(rng.uniform(0, 1), 1, int(rng.integers(4, 30)))] for _ in range(2))
        d = np.sort(np.subtract.outer(a, b).ravel())
        reach = max(np.floor(len(d) / 2 - stats.norm.isf(0.025) * np.sqrt(len(d) * (len(a) + len(b) + 1) / 12)), 0)
        expect = {"shift": float(np.median(d)), "lo": float(d[int(reach)]), "hi": float(d[len(d) - 1 - int(reach)])}
        shifts.append(("hodges_lehmann", {"a": a, "b": b, "alpha": 0.05}, expect, 1e-9, 1e-12))
        x, q = [round(float(v), 4) for v in rng.lognormal(5, 0.6, int(rng.integers(20, 400)))], float(rng.choice([0.5, 0.9, 0.95]))
        s, n = np.sort(x), len(x)
        half = stats.norm.isf(0.025) * np.sqrt(n * q * (1 - q))
        rank = lambda r: float(s[int(np.clip(r, 1, n)) - 1])
        expect = {"value": rank(np.ceil(n * q)), "lo": rank(np.floor(max(n * q - half, 1))), "hi": rank(np.ceil(min(n * q + half + 1, n)))}
        shifts.append(("woodruff", {"x": x, "q": q, "alpha": 0.05}, expect, 1e-12, 1e-12))
        n1, n2, p = int(log_uniform(50, 1e5)), int(log_uniform(50, 1e5)), rng.uniform(0.01, 0.4)
        k1, k2, margin = int(rng.binomial(n1, p)), int(rng.binomial(n2, p)), float(rng.choice([0.005, 0.02, 0.05]))
        if not 0 < k1 < n1 or not 0 < k2 < n2:
            continue

        def minus(r2, k1=k1, n1=n1, k2=k2, n2=n2, margin=margin):
            r1 = r2 + margin
            return -(special.xlogy(k1, r1) + special.xlog1py(n1 - k1, -r1) + special.xlogy(k2, r2) + special.xlog1py(n2 - k2, -r2))

        slope = lambda r2: k1 / (r2 + margin) - (n1 - k1) / (1 - r2 - margin) + k2 / r2 - (n2 - k2) / (1 - r2)
        r2 = optimize.brentq(slope, 1e-12, 1 - margin - 1e-12, xtol=1e-15)
        r1 = r2 + margin
        z = (k1 / n1 - k2 / n2 - margin) / np.sqrt(r1 * (1 - r1) / n1 + r2 * (1 - r2) / n2)
        args = {"k1": k1, "n1": n1, "k2": k2, "n2": n2, "margin": margin}
        scores.append(("difference_score_likelihood", args, {"z": float(z), "p": float(stats.norm.cdf(z))}, 1e-7, 1e-12))
        ratio = float(rng.choice([1.1, 1.2, 1.5]))
        slope = lambda r: k1 / r - (n1 - k1) * ratio / (1 - ratio * r) + k2 / r - (n2 - k2) / (1 - r)
        r2 = optimize.brentq(slope, 1e-12, 1 / ratio - 1e-12, xtol=1e-15)
        r1 = ratio * r2
        z = (k1 / n1 - ratio * k2 / n2) / np.sqrt(r1 * (1 - r1) / n1 + ratio**2 * r2 * (1 - r2) / n2)
        args = {"k1": k1, "n1": n1, "k2": k2, "n2": n2, "ratio0": ratio}
        scores.append(("score_ratio_noninferiority", args, {"z": float(z), "p": float(stats.norm.cdf(z))}, 1e-7, 1e-10))
        alpha = 0.05
        expect = {"lower": float(stats.beta.ppf(alpha, k1, n1 - k1 + 1)), "upper": float(stats.beta.isf(alpha, k1 + 1, n1 - k1))}
        more.append(("clopper_pearson_one_sided", {"k": k1, "n": n1, "alpha": alpha}, expect, 1e-9, 1e-12))
    write("rates", rates, "scipy 1.17.1 binomtest")
    write("shift", shifts, "numpy 2.4.6")
    write("two_proportion-score", scores, "scipy 1.17.1 brentq")
    write("binomial_ci-one_sided", more, "scipy 1.17.1")
    flips, families = [], []
    for _ in range(50):
        b, c = int(log_uniform(1, 2000)), int(log_uniform(1, 2000))
        p = stats.binomtest(b, b + c, 0.5, "greater").pvalue
        flips.append(("exact_one_sided_more_negative_flips", {"b": b, "c": c}, {"p": float(p)}, 1e-9, 1e-12))
        e = [round(float(v), 4) for v in rng.lognormal(0.5, 2, int(rng.integers(2, 12)))]
        k = max([i for i in range(1, len(e) + 1) if sorted(e, reverse=True)[i - 1] >= len(e) / (0.05 * i)], default=0)
        edge = sorted(e, reverse=True)[k - 1] if k else np.inf
        families.append(("e_bh", {"e": e, "alpha": 0.05}, {"k": k, "reject": [v >= edge for v in e]}, 1e-10, 1e-12))
        # Every subset, one by one.
        closed = [min(np.mean([e[j] for j in range(len(e)) if bits >> j & 1]) for bits in range(1, 2 ** len(e)) if bits >> i & 1) for i in range(len(e))] if len(e) < 9 else None
        if closed:
            families.append(("closed_mean_e_adjusted", {"e": e, "alpha": 0.05}, {"adjusted": [float(v) for v in closed], "reject": [bool(v >= 20) for v in closed]}, 1e-9, 1e-12))
        families.append(("global_mean_e", {"e": e, "alpha": 0.05}, {"mean": float(np.mean(e)), "reject": bool(np.mean(e) >= 20)}, 1e-10, 1e-12))
    write("mcnemar-one_sided", flips, "scipy 1.17.1 binomtest")
    write("multiple_testing-e", families, "numpy 2.4.6, every subset")


if __name__ == "__main__":
    fixed()
    asymptotic()
    one_sample()
    betting()
    rate_ratios()
    auto_ratio()
    designs()
    mixtures()
