//! BLEU and ROUGE, as the reference implementations compute them: agreeing with sacrebleu 2.6 and rouge-score 0.1.2 on the cases of `text/vectors.json`.

use std::collections::BTreeMap;

/// Words of one text; what is longer is refused, as the time that it takes rises with the square.
const WORDS: usize = 10_000;
/// The longest run of words that BLEU counts.
const ORDER: usize = 4;

/// A text has too many words to be scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a text has {words} words: at most {WORDS} can be scored; ask for shorter answers")]
#[non_exhaustive]
pub struct TooLong {
    /// How many words it has.
    pub words: usize,
}

fn short(words: Vec<String>) -> Result<Vec<String>, TooLong> {
    match words.len() {
        0..=WORDS => Ok(words),
        words => Err(TooLong { words }),
    }
}

/// BLEU of a text against references (Papineni et al. 2002), from 0 to 100: tokens of mteval-v13a, case kept, exponential smoothing, runs of up to four words, or as
/// many as the text has (`sentence_bleu` of sacrebleu). 0 without references.
///
/// ```
/// use llm_serve_adapters::evaluate::text::bleu;
///
/// let references = ["The cat sat on the mat.".to_owned()];
/// assert!((bleu("The cat sat on the mat.", &references)? - 100.0).abs() < 1e-9);
/// # Ok::<(), llm_serve_adapters::evaluate::text::TooLong>(())
/// ```
///
/// # Errors
/// [`TooLong`].
pub fn bleu(text: &str, references: &[String]) -> Result<f64, TooLong> {
    Ok(Statistics::of(text, references)?.score(true))
}

/// BLEU of many texts together, each with its references, from 0 to 100 (`corpus_bleu` of sacrebleu): counts are summed up before anything is divided. 0 without texts.
///
/// # Errors
/// [`TooLong`].
pub fn corpus_bleu<'a>(
    texts: impl IntoIterator<Item = (&'a str, &'a [String])>,
) -> Result<f64, TooLong> {
    let mut all = Statistics::default();
    for (text, references) in texts {
        let one = Statistics::of(text, references)?;
        all.length += one.length;
        all.reference += one.reference;
        for n in 0..ORDER {
            all.correct[n] += one.correct[n];
            all.total[n] += one.total[n];
        }
    }
    Ok(all.score(false))
}

/// What BLEU is computed from.
#[derive(Debug, Default)]
struct Statistics {
    length: usize,
    /// Of the reference whose length is nearest.
    reference: usize,
    /// Runs that a reference has too, by their length.
    correct: [usize; ORDER],
    /// Runs, by their length.
    total: [usize; ORDER],
}

impl Statistics {
    fn of(text: &str, references: &[String]) -> Result<Self, TooLong> {
        let words = short(tokens_13a(text))?;
        let mut most = BTreeMap::new();
        let mut nearest: Option<usize> = None;
        let references: Vec<_> = references
            .iter()
            .map(|r| short(tokens_13a(r)))
            .collect::<Result<_, _>>()?;
        for reference in &references {
            for (run, count) in runs(reference, 1..=ORDER) {
                let known = most.entry(run).or_insert(0);
                *known = count.max(*known);
            }
            let length = reference.len();
            let key = |length: usize| (length.abs_diff(words.len()), length);
            if nearest.is_none_or(|n| key(length) < key(n)) {
                nearest = Some(length);
            }
        }
        let mut statistics = Self {
            length: words.len(),
            reference: nearest.unwrap_or(0),
            ..Self::default()
        };
        for (run, count) in runs(&words, 1..=ORDER) {
            statistics.total[run.len() - 1] += count;
            statistics.correct[run.len() - 1] += count.min(most.get(run).copied().unwrap_or(0));
        }
        Ok(statistics)
    }

    /// With only those runs that the text is long enough for, or with all.
    fn score(&self, effective: bool) -> f64 {
        if self.correct.iter().all(|&c| c == 0) {
            return 0.0;
        }
        let (mut ln, mut order, mut smooth) = (0.0, ORDER, 1.0);
        for n in 0..ORDER {
            let (correct, total) = (self.correct[n] as f64, self.total[n] as f64);
            if self.total[n] == 0 {
                if !effective {
                    // A precision of nothing, as sacrebleu has it.
                    return 0.0;
                }
                break;
            }
            if effective {
                order = n + 1;
            }
            ln += if self.correct[n] == 0 {
                smooth *= 2.0;
                (100.0 / (smooth * total)).ln()
            } else {
                (100.0 * correct / total).ln()
            };
        }
        let (length, reference) = (self.length as f64, self.reference as f64);
        let brevity = if self.length < self.reference {
            (1.0 - reference / length).exp()
        } else {
            1.0
        };
        brevity * (ln / order as f64).exp()
    }
}

/// Counts the runs of words of these lengths.
fn runs(words: &[String], lengths: std::ops::RangeInclusive<usize>) -> BTreeMap<&[String], usize> {
    let mut counts = BTreeMap::new();
    for length in lengths {
        for run in words.windows(length) {
            *counts.entry(run).or_insert(0) += 1;
        }
    }
    counts
}

/// White space as Python sees it.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

/// The tokens of mteval-v13a.
fn tokens_13a(text: &str) -> Vec<String> {
    let mut text = text
        .trim_end_matches(is_space)
        .replace("<skipped>", "")
        .replace("-\n", "")
        .replace('\n', " ");
    for (name, char) in [
        ("&quot;", "\""),
        ("&amp;", "&"),
        ("&lt;", "<"),
        ("&gt;", ">"),
    ] {
        text = text.replace(name, char);
    }
    let mut apart = String::with_capacity(text.len() + 16);
    apart.push(' ');
    for c in text.chars() {
        if matches!(c, '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/') {
            apart.extend([' ', c, ' ']);
        } else {
            apart.push(c);
        }
    }
    apart.push(' ');
    let is_point = |c: char| matches!(c, '.' | ',');
    // A point or comma apart from what is before it, unless that is a digit; then from what is after it.
    let apart = pairs(
        &apart,
        |a, b| !a.is_ascii_digit() && is_point(b),
        |a, b, out| out.extend([a, ' ', b, ' ']),
    );
    let apart = pairs(
        &apart,
        |a, b| is_point(a) && !b.is_ascii_digit(),
        |a, b, out| out.extend([' ', a, ' ', b]),
    );
    let apart = pairs(
        &apart,
        |a, b| a.is_ascii_digit() && b == '-',
        |a, b, out| out.extend([a, ' ', b, ' ']),
    );
    let words = apart.split(is_space).filter(|w| !w.is_empty());
    words.map(str::to_owned).collect()
}

/// Replaces pairs of characters, from the left, each character at most once.
fn pairs(
    text: &str,
    is: impl Fn(char, char) -> bool,
    with: impl Fn(char, char, &mut String),
) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut chars = text.chars().peekable();
    while let Some(a) = chars.next() {
        match chars.peek() {
            Some(&b) if is(a, b) => {
                chars.next();
                with(a, b, &mut out);
            }
            _ => out.push(a),
        }
    }
    out
}

/// A ROUGE score (Lin 2004); each number from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Rouge {
    /// How much of the text is in the reference.
    pub precision: f64,
    /// How much of the reference is in the text.
    pub recall: f64,
    /// Their harmonic mean.
    pub f: f64,
}

impl Rouge {
    fn of(common: usize, text: usize, reference: usize) -> Self {
        let share = |of: usize| common as f64 / of.max(1) as f64;
        let (precision, recall) = (share(text), share(reference));
        let f = if common == 0 {
            0.0
        } else {
            2.0 * precision * recall / (precision + recall)
        };
        Self {
            precision,
            recall,
            f,
        }
    }
}

/// ROUGE-N: runs of `n` words in common, without stemming (rouge-score with `use_stemmer=False`). Words are of ASCII letters and digits, in lower case.
///
/// # Errors
/// [`TooLong`].
pub fn rouge_n(text: &str, reference: &str, n: usize) -> Result<Rouge, TooLong> {
    let n = n.max(1);
    let (text, reference) = (rouge_words(text)?, rouge_words(reference)?);
    let (ours, theirs) = (runs(&text, n..=n), runs(&reference, n..=n));
    let common = ours
        .iter()
        .map(|(run, c)| theirs.get(run).map_or(0, |t| *t.min(c)))
        .sum();
    let all = |runs: &BTreeMap<_, usize>| runs.values().sum();
    Ok(Rouge::of(common, all(&ours), all(&theirs)))
}

/// ROUGE-L: the longest common subsequence of words, over the whole text as one sentence, without stemming (`rougeL` of rouge-score).
///
/// # Errors
/// [`TooLong`].
pub fn rouge_l(text: &str, reference: &str) -> Result<Rouge, TooLong> {
    let (text, reference) = (rouge_words(text)?, rouge_words(reference)?);
    let mut row = vec![0usize; reference.len() + 1];
    for word in &text {
        let mut diagonal = 0;
        for (j, other) in reference.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if word == other {
                diagonal + 1
            } else {
                above.max(row[j])
            };
            diagonal = above;
        }
    }
    let common = row.last().copied().unwrap_or(0);
    Ok(Rouge::of(common, text.len(), reference.len()))
}

fn rouge_words(text: &str) -> Result<Vec<String>, TooLong> {
    let text = text.to_lowercase();
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit()));
    short(words.filter(|w| !w.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Vectors {
        texts: Vec<Vector>,
        corpora: Vec<Corpus>,
    }

    #[derive(Deserialize)]
    struct Vector {
        text: String,
        references: Vec<String>,
        tokens: Vec<String>,
        bleu: f64,
        /// Precision, recall and F against each reference.
        rouge1: Vec<[f64; 3]>,
        rouge2: Vec<[f64; 3]>,
        #[serde(rename = "rougeL")]
        rouge_l: Vec<[f64; 3]>,
    }

    #[derive(Deserialize)]
    struct Corpus {
        texts: Vec<String>,
        references: Vec<Vec<String>>,
        bleu: f64,
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * b.abs().max(1.0)
    }

    /// What sacrebleu and rouge-score say (vectors.py).
    #[test]
    fn agrees_with_the_references() {
        let vectors: Vectors = serde_json::from_str(include_str!("text/vectors.json")).unwrap();
        assert!(vectors.texts.len() > 250 && vectors.corpora.len() > 20);
        for v in &vectors.texts {
            assert_eq!(tokens_13a(&v.text), v.tokens, "{:?}", v.text);
            let score = bleu(&v.text, &v.references).unwrap();
            assert!(near(score, v.bleu), "{:?}: {score}, {}", v.text, v.bleu);
            for (i, r) in v.references.iter().enumerate() {
                for (ours, theirs) in [
                    (rouge_n(&v.text, r, 1), v.rouge1[i]),
                    (rouge_n(&v.text, r, 2), v.rouge2[i]),
                    (rouge_l(&v.text, r), v.rouge_l[i]),
                ] {
                    let ours = ours.unwrap();
                    let same = near(ours.precision, theirs[0])
                        && near(ours.recall, theirs[1])
                        && near(ours.f, theirs[2]);
                    assert!(same, "{:?} {r:?}: {ours:?}, {theirs:?}", v.text);
                }
            }
        }
        for c in &vectors.corpora {
            let texts = c.texts.iter().map(String::as_str);
            let score = corpus_bleu(texts.zip(c.references.iter().map(Vec::as_slice))).unwrap();
            assert!(near(score, c.bleu), "{:?}: {score}, {}", c.texts, c.bleu);
        }
    }

    #[test]
    fn long_texts_are_refused() {
        let long = "a ".repeat(WORDS + 1);
        let too_long = TooLong { words: WORDS + 1 };
        assert_eq!(bleu(&long, &["a".to_owned()]), Err(too_long));
        assert_eq!(rouge_l("a", &long), Err(too_long));
        assert!(rouge_l(&"a ".repeat(1000), &"a ".repeat(1000)).is_ok_and(|r| near(r.f, 1.0)));
    }

    fn words() -> impl Strategy<Value = String> {
        let word = prop::sample::select(vec!["a", "b", "c", "d", "1.5", "e,", "f."]);
        prop::collection::vec(word, 0..12).prop_map(|words| words.join(" "))
    }

    proptest! {
        #[test]
        fn scores_stay_in_their_bounds(a in "\\PC{0,60}", b in "\\PC{0,60}") {
            let score = bleu(&a, std::slice::from_ref(&b)).unwrap();
            prop_assert!((0.0..=100.0 + 1e-9).contains(&score), "{score}");
            for rouge in [rouge_n(&a, &b, 1).unwrap(), rouge_n(&a, &b, 2).unwrap(), rouge_l(&a, &b).unwrap()] {
                prop_assert!([rouge.precision, rouge.recall, rouge.f].iter().all(|s| (0.0..=1.0).contains(s)));
            }
        }

        #[test]
        fn a_text_is_nearest_to_itself(a in words(), b in words()) {
            let (own, other) = (a.clone(), b.clone());
            let score = |text: &str, of: &String| bleu(text, std::slice::from_ref(of)).unwrap();
            if !tokens_13a(&a).is_empty() {
                prop_assert!((score(&a, &own) - 100.0).abs() < 1e-9);
            }
            prop_assert!(score(&a, &other) <= 100.0 + 1e-9);
            let (first, second) = (rouge_l(&a, &b).unwrap(), rouge_l(&b, &a).unwrap());
            prop_assert!((first.precision - second.recall).abs() < 1e-15 && (first.f - second.f).abs() < 1e-15);
        }

        #[test]
        fn one_run_in_common_is_a_subsequence(a in words(), b in words()) {
            // The longest common subsequence has no more words than are in common at all.
            prop_assert!(rouge_l(&a, &b).unwrap().f <= rouge_n(&a, &b, 1).unwrap().f + 1e-15);
        }
    }
}
