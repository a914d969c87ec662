"""Trains the order desk's model with JAX on a CPU.

    pip install jax optax numpy safetensors
    cargo run --release -p examples --bin desk_corpus -- /tmp/desk
    python train.py --corpus /tmp/desk --work /tmp/desk/work --out /tmp/desk/out --steps 6000 --fall 2000 --name first

The learning rate rises, stays level, and falls to zero at the end. A run keeps
its level checkpoints: `--leave STEP` goes on from one of them, `--start FILE`
from saved weights.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import load_file, save_file

CONFIG = {
    "architecture": "desk-decoder-v1",
    "vocabulary": 768,
    "width": 96,
    "layers": 4,
    "heads": 4,
    "hidden": 288,
    "rope_base": 10000.0,
    "norm_epsilon": 1e-5,
    "longest": 320,
}
PAD = 258
PROSE, INSTRUCTED = 1, 2


def init(key, c):
    d, h, layers = c["width"], c["hidden"], c["layers"]
    keys = iter(jax.random.split(key, 1 + 6 * layers))

    def normal(shape, scale):
        return jax.random.normal(next(keys), shape, jnp.float32) * scale

    p = {"embedding": normal((c["vocabulary"], d), 0.05), "norm": jnp.ones((d,))}
    for i in range(layers):
        p[f"layers.{i}.norm_attention"] = jnp.ones((d,))
        p[f"layers.{i}.query"] = normal((d, d), d**-0.5)
        p[f"layers.{i}.key"] = normal((d, d), d**-0.5)
        p[f"layers.{i}.value"] = normal((d, d), d**-0.5)
        p[f"layers.{i}.output"] = normal((d, d), d**-0.5 / (2 * layers) ** 0.5)
        p[f"layers.{i}.norm_mlp"] = jnp.ones((d,))
        p[f"layers.{i}.up"] = normal((d, h), d**-0.5)
        p[f"layers.{i}.down"] = normal((h, d), h**-0.5 / (2 * layers) ** 0.5)
    return p


def rms(x, gain, eps):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps) * gain


def rotate(x, base):
    """Rotary positions on [batch, time, head, size]; the halves are pairs."""
    t, size = x.shape[1], x.shape[3]
    freq = base ** (-jnp.arange(0, size // 2) * 2.0 / size)
    angle = jnp.arange(t)[:, None] * freq[None, :]
    cos, sin = jnp.cos(angle)[None, :, None, :], jnp.sin(angle)[None, :, None, :]
    a, b = x[..., : size // 2], x[..., size // 2 :]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def forward(p, ids, segments, c):
    """Logits of [batch, time] ids; documents of one row do not see each other."""
    heads, eps = c["heads"], c["norm_epsilon"]
    n, t = ids.shape
    size = c["width"] // heads
    mask = (segments[:, :, None] == segments[:, None, :]) & jnp.tril(jnp.ones((t, t), bool))
    bias = jnp.where(mask, 0.0, -1e9)[:, None]
    x = p["embedding"][ids]
    for i in range(c["layers"]):
        w = lambda name: p[f"layers.{i}.{name}"]  # noqa: B023, E731
        y = rms(x, w("norm_attention"), eps)
        q = rotate((y @ w("query")).reshape(n, t, heads, size), c["rope_base"])
        k = rotate((y @ w("key")).reshape(n, t, heads, size), c["rope_base"])
        v = (y @ w("value")).reshape(n, t, heads, size)
        scores = jnp.einsum("nqhs,nkhs->nhqk", q, k) * size**-0.5 + bias
        y = jnp.einsum("nhqk,nkhs->nqhs", jax.nn.softmax(scores, -1), v)
        x = x + y.reshape(n, t, -1) @ w("output")
        y = rms(x, w("norm_mlp"), eps)
        x = x + jnp.square(jax.nn.relu(y @ w("up"))) @ w("down")
    return rms(x, p["norm"], eps) @ p["embedding"].T


def losses(p, ids, segments, c):
    """Negative log likelihood of each next id, and where one counts."""
    logits = forward(p, ids[:, :-1], segments[:, :-1], c)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
    return nll, (segments[:, 1:] == segments[:, :-1]) & (ids[:, 1:] != PAD)


def orthogonal_momentum(decay=0.95, rounds=5):
    """Muon: momentum whose singular values are pulled towards one."""

    def orthogonal(m):
        wide = m if m.shape[0] <= m.shape[1] else m.T
        x = wide / (jnp.linalg.norm(wide) + 1e-7)
        for _ in range(rounds):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        x = x if m.shape[0] <= m.shape[1] else x.T
        return x * max(1.0, m.shape[1] / m.shape[0]) ** 0.5

    def update(grads, momentum, params=None):
        del params
        momentum = jax.tree.map(lambda m, g: decay * m + g, momentum, grads)
        ahead = jax.tree.map(lambda m, g: decay * m + g, momentum, grads)
        return jax.tree.map(orthogonal, ahead), momentum

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def rows(corpus, name, length, below):
    """Packs whole documents of less than `below` ids into rows of ids, answer flags and segments."""
    ids = np.fromfile(corpus / f"{name}.ids.u16", np.uint16)
    answers = np.fromfile(corpus / f"{name}.answers.u8", np.uint8)
    ends = np.fromfile(corpus / f"{name}.ends.u32", np.uint32)
    starts = np.concatenate([[0], ends[:-1]])
    out, open_rows = [], []
    for start, end in zip(starts, ends):
        size = int(end - start)
        if size >= below:
            continue
        for slot, (used, members) in enumerate(open_rows):
            if used + size <= length:
                members.append((start, end))
                open_rows[slot] = (used + size, members)
                break
        else:
            open_rows.append((size, [(start, end)]))
            if len(open_rows) > 12:
                open_rows.sort(key=lambda row: -row[0])
                out.append(open_rows.pop(0)[1])
    out += [members for _, members in open_rows]
    packed = np.full((len(out), length), PAD, np.int32)
    flags = np.zeros((len(out), length), np.int32)
    segments = np.zeros((len(out), length), np.int32)
    for row, members in enumerate(out):
        at = 0
        for number, (start, end) in enumerate(members):
            size = int(end - start)
            packed[row, at : at + size] = ids[start:end]
            flags[row, at : at + size] = answers[start:end]
            segments[row, at : at + size] = number + 1
            at += size
    return packed, flags, segments


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--corpus", type=Path, required=True)
    args.add_argument("--out", type=Path, required=True)
    args.add_argument("--work", type=Path, required=True, help="where the level checkpoints are kept")
    args.add_argument("--start", type=Path, help="weights to begin from")
    args.add_argument("--below", type=int, default=257, help="learn only documents of fewer ids")
    args.add_argument("--name", required=True)
    args.add_argument("--leave", type=int, default=0, help="the level checkpoint to go on from")
    args.add_argument("--steps", type=int, required=True)
    args.add_argument("--fall", type=int, required=True)
    args.add_argument("--batch", type=int, default=16)
    args.add_argument("--rate", type=float, default=3e-3)
    args.add_argument("--prose-weight", type=float, default=2.0, help="of answers in prose")
    args.add_argument("--answer-weight", type=float, default=3.0, help="of answers to a system prompt")
    args.add_argument("--seed", type=int, default=1)
    args = args.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    c = CONFIG

    train = rows(args.corpus, "train", 256, args.below)
    held = rows(args.corpus, "heldout", 256, 257)
    held_bytes = int((args.corpus / "heldout.bytes.txt").read_text())
    print(f"{len(train[0])} rows, {np.mean(train[0] != PAD):.1%} full", flush=True)

    params = init(jax.random.PRNGKey(args.seed), c)
    print(f"{sum(x.size for x in params.values())} parameters", flush=True)
    kinds = {k: "matrix" if x.ndim == 2 and k != "embedding" else "other" for k, x in params.items()}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.multi_transform(
            {
                # five times the rate: an orthogonal update of this size has entries of 0.1
                "matrix": optax.chain(orthogonal_momentum(), optax.scale(5.0)),
                "other": optax.scale_by_adam(b1=0.9, b2=0.98),
            },
            kinds,
        ),
        optax.add_decayed_weights(0.02, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    )
    state = optimizer.init(params)

    def objective(p, ids, flags, segments):
        nll, counts = losses(p, ids, segments, c)
        answers = counts * (flags[:, 1:] == INSTRUCTED)
        prose = counts * (flags[:, 1:] == PROSE)
        weight = counts + (args.answer_weight - 1.0) * answers + (args.prose_weight - 1.0) * prose
        return (nll * weight).sum() / weight.sum(), (nll * answers).sum() / answers.sum()

    @jax.jit
    def step(p, state, ids, flags, segments, rate):
        (loss, answer), grads = jax.value_and_grad(objective, has_aux=True)(p, ids, flags, segments)
        updates, state = optimizer.update(grads, state, p)
        return jax.tree.map(lambda x, u: x - rate * u, p, updates), state, loss, answer

    total = jax.jit(lambda p, ids, segments: (lambda nll, counts: (nll * counts).sum())(*losses(p, ids, segments, c)))

    def bits_per_byte(p):
        nats = sum(float(total(p, held[0][i : i + 16], held[2][i : i + 16])) for i in range(0, len(held[0]), 16))
        return nats / np.log(2) / held_bytes

    order = np.random.default_rng(args.seed).permutation(len(train[0]))
    began = time.time()

    def run(p, state, first, last, rate_at, label):
        smooth = None
        for number in range(first, last):
            pick = [order[(number * args.batch + j) % len(order)] for j in range(args.batch)]
            p, state, loss, answer = step(
                p, state, train[0][pick], train[1][pick], train[2][pick], rate_at(number)
            )
            pair = np.array([float(loss), float(answer)])
            smooth = pair if smooth is None else 0.95 * smooth + 0.05 * pair
            if number % 25 == 0 or number + 1 == last:
                print(
                    f"{label} {number} loss {smooth[0]:.4f} answer {smooth[1]:.4f} "
                    f"{time.time() - began:.0f} s",
                    flush=True,
                )
            if label == "level" and number % 200 == 199:
                kept = jax.tree.leaves((p, state))
                np.savez(args.work / f"level-{number + 1}.npz", *[np.asarray(x) for x in kept])
                save("latest", p)
        return p, state

    def save(name, p):
        where = args.work if name == "latest" else args.out
        save_file({k: np.asarray(v).astype(np.float16) for k, v in p.items()}, where / f"{name}.safetensors")

    def finish(name, p):
        save(name, p)
        stored = {k: jnp.asarray(np.asarray(v).astype(np.float16).astype(np.float32)) for k, v in p.items()}
        print(f"{name}: {bits_per_byte(stored):.4f} bits per byte held out", flush=True)

    if args.leave:
        kept = np.load(args.work / f"level-{args.leave}.npz")
        shape = jax.tree.structure((params, state))
        params, state = jax.tree.unflatten(shape, [jnp.asarray(kept[f"arr_{i}"]) for i in range(len(kept.files))])
    if args.start:
        params = {k: jnp.asarray(v.astype(np.float32)) for k, v in load_file(args.start).items()}
    turn = args.steps - args.fall
    params, state = run(params, state, args.leave, turn, lambda n: args.rate * min(1.0, (n + 1) / 150), "level")
    params, state = run(
        params, state, max(turn, args.leave), args.steps, lambda n: args.rate * (args.steps - n) / args.fall, "fall"
    )
    finish(args.name, params)
    (args.out / "config.json").write_text(json.dumps(c, indent=2) + "\n")


if __name__ == "__main__":
    main()
