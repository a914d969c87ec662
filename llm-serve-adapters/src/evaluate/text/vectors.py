"""Writes vectors.json: what the reference implementations say of texts and schemas. Deterministic.

    python3 -m venv v && v/bin/pip install sacrebleu==2.6.0 rouge-score==0.1.2 jsonschema==4.26.0
    v/bin/python vectors.py > vectors.json
"""

import json
import random

from jsonschema import Draft202012Validator
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

draw = random.Random(20240607)
sentence, corpus = BLEU(effective_order=True), BLEU()
rouge = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)

WORDS = "the a cat dog sat on mat Mat, it's 3.5 1,000 10-20 -5 end. U.S.A. e-mail (see) \"so\" [1] x/y & é naïve Straße 北京 “yes” – … $9.99 50% AT&T don't .. ,, ... a.b 1.a".split()
SPECIAL = [
    "", " ", ".", "..", "...", ",.", "1.", ".1", "1.5.2", "a..b", "a, b,c ,d", "5-3", "x-3", "3--4", "end-\nof line", "two\nlines\n",
    "&quot;q&quot; &amp;amp; &lt;b&gt;", "a<skipped>b", "tab\tand\u00a0nbsp\u2003em", "\x1c\x1d file", "Ω≈ç√ 𝔘𝔫𝔦", "İstanbul ΑΣ", "{a}|~`^_[]\\@?=<>;:!*+#",
    "don't 'quote' it''s", "12,345.67", "a.,b", "., 1,.2", "The cat sat on the mat.", "the the the the", "K\u212a",
]


def text():
    return " ".join(draw.choice(WORDS) for _ in range(draw.randrange(0, 14)))


def near(of):
    words = of.split()
    for _ in range(draw.randrange(0, 4)):
        if words:
            words[draw.randrange(len(words))] = draw.choice(WORDS)
    return " ".join(words)


def scores(hypothesis, references):
    against = [rouge.score(reference, hypothesis) for reference in references]
    return {
        "text": hypothesis,
        "references": references,
        "tokens": sentence.tokenizer(hypothesis.rstrip()).split(),
        "bleu": sentence.sentence_score(hypothesis, references).score,
    } | {kind: [[*a[kind]] for a in against] for kind in ("rouge1", "rouge2", "rougeL")}


texts = [scores(t, [t]) for t in SPECIAL] + [scores(t, [draw.choice(SPECIAL), "The cat."]) for t in SPECIAL]
for _ in range(220):
    reference = text()
    hypothesis = near(reference) if draw.random() < 0.7 else text()
    texts.append(scores(hypothesis, [reference] + [text() for _ in range(draw.randrange(0, 3))]))

corpora = []
for _ in range(30):
    n, refs = draw.randrange(1, 6), draw.randrange(1, 3)
    references = [[text() for _ in range(refs)] for _ in range(n)]
    hypotheses = [near(r[0]) if draw.random() < 0.8 else text() for r in references]
    streams = [[r[i] for r in references] for i in range(refs)]
    corpora.append({"texts": hypotheses, "references": references, "bleu": corpus.corpus_score(hypotheses, streams).score})

VALUES = [
    None, True, False, 0, -1, 1, 1.0, 2.5, 3, 1e30, 9007199254740993, 9007199254740992.0, "", "a", "abc", "äöü", "𝔘", [], [1], [1, "a"], [1, 2, 3], [None, [1.0]],
    {}, {"n": 1}, {"n": 1.0}, {"n": "x"}, {"n": 1, "m": "y"}, {"m": 5}, {"a/b": {"c": [1]}}, {"a/b": {"c": ["x"]}}, {"n": {"n": {"n": 1}}},
]
SCHEMAS = [
    True, False, {}, {"type": "null"}, {"type": "boolean"}, {"type": "integer"}, {"type": "number"}, {"type": "string"}, {"type": "array"}, {"type": "object"},
    {"type": ["integer", "string"]}, {"type": []}, {"enum": [1, "a", None, {"n": 1}]}, {"const": 1}, {"const": 1.0}, {"const": [None, [1]]}, {"const": 9007199254740993}, {"enum": []},
    {"const": 0}, {"const": False}, {"minimum": 1}, {"maximum": 1}, {"exclusiveMinimum": 1}, {"exclusiveMaximum": 2.5}, {"minLength": 1, "maxLength": 3}, {"minLength": 2.0},
    {"minItems": 1, "maxItems": 2}, {"items": {"type": "integer"}}, {"items": False}, {"minProperties": 1}, {"maxProperties": 1}, {"required": ["n"]}, {"required": []},
    {"properties": {"n": {"type": "integer"}}}, {"properties": {"n": True}, "additionalProperties": False}, {"additionalProperties": False}, {"additionalProperties": {"type": "string"}, "properties": {"n": {}}},
    {"type": "object", "required": ["n"], "properties": {"n": {"type": "number", "minimum": 1}}, "additionalProperties": False, "title": "t", "description": "d"},
    {"properties": {"a/b": {"properties": {"c": {"items": {"type": "number"}, "minItems": 1}}, "required": ["c"]}}},
    {"allOf": [{"type": "number"}, {"minimum": 1}]}, {"anyOf": [{"type": "string"}, {"maximum": 0}]}, {"oneOf": [{"type": "number"}, {"minimum": 2}]}, {"not": {"type": "object"}},
    {"oneOf": [{"required": ["n"]}, {"required": ["m"]}], "type": "object"}, {"not": {}}, {"default": 5, "examples": [1], "$comment": "c"},
    {"properties": {"n": {"properties": {"n": {"required": ["n"]}}}}}, {"anyOf": [{"const": 1}, {"const": 2.5}], "not": {"const": 1}},
]
schemas = []
for s in SCHEMAS:
    if isinstance(s, dict) and s.get("type") != []:
        Draft202012Validator.check_schema(s)
    schemas.append({"schema": s, "values": [[v, Draft202012Validator(s).is_valid(v)] for v in VALUES]})

print(json.dumps({"texts": texts, "corpora": corpora, "schemas": schemas}, ensure_ascii=False, separators=(",", ":")))
