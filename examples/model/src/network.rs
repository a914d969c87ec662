//! The forward pass, with a cache of keys and values.

use super::config::Config;
use super::error::LmError;
use super::matrix::{Matrix, add_scaled, dot};
use super::weights::Weights;

#[derive(Debug, Clone)]
struct Layer {
    norm_attention: Vec<f32>,
    query: Matrix,
    key: Matrix,
    value: Matrix,
    output: Matrix,
    norm_mlp: Vec<f32>,
    up: Matrix,
    down: Matrix,
}

/// The weights, laid out for the forward pass.
#[derive(Debug, Clone)]
pub(super) struct Network {
    config: Config,
    embedding: Vec<f32>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    unembedding: Matrix,
    /// Cosine and sine for each position and each pair of a head.
    angles: Vec<(f32, f32)>,
}

/// Keys and values of the tokens so far.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    layers: Vec<(Vec<f32>, Vec<f32>)>,
    len: usize,
}

impl Network {
    pub(super) fn new(config: &Config, weights: &Weights) -> Result<Self, LmError> {
        config.validate()?;
        let (d, h) = (config.width, config.hidden);
        let embedding = weights.get("embedding", &[config.vocabulary, d])?;
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            let matrix = |name: &str, inputs: usize, outputs: usize| {
                let values = weights.get(&format!("layers.{index}.{name}"), &[inputs, outputs])?;
                Ok::<_, LmError>(Matrix::new(inputs, outputs, values))
            };
            let gain = |name: &str| {
                Ok::<_, LmError>(
                    weights
                        .get(&format!("layers.{index}.{name}"), &[d])?
                        .to_vec(),
                )
            };
            layers.push(Layer {
                norm_attention: gain("norm_attention")?,
                query: matrix("query", d, d)?,
                key: matrix("key", d, d)?,
                value: matrix("value", d, d)?,
                output: matrix("output", d, d)?,
                norm_mlp: gain("norm_mlp")?,
                up: matrix("up", d, h)?,
                down: matrix("down", h, d)?,
            });
        }
        Ok(Self {
            embedding: embedding.to_vec(),
            norm: weights.get("norm", &[d])?.to_vec(),
            unembedding: Matrix::transposed(d, config.vocabulary, embedding),
            angles: angles(config),
            layers,
            config: config.clone(),
        })
    }

    pub(super) fn cache(&self) -> Cache {
        Cache {
            layers: vec![(Vec::new(), Vec::new()); self.config.layers],
            len: 0,
        }
    }

    /// Takes `ids` in after what the cache holds and returns the last hidden
    /// state of each, ready for [`Network::logits`]. An id out of range counts
    /// as the zero vector; loading has made sure that the tokenizer has none.
    pub(super) fn advance(&self, cache: &mut Cache, ids: &[u16]) -> Vec<f32> {
        self.run(cache, ids, false)
    }

    /// As [`Network::advance`], for the hidden state of the last of `ids` alone:
    /// the last layer then needs only keys and values of the others.
    pub(super) fn advance_to_last(&self, cache: &mut Cache, ids: &[u16]) -> Vec<f32> {
        self.run(cache, ids, true)
    }

    fn run(&self, cache: &mut Cache, ids: &[u16], only_last: bool) -> Vec<f32> {
        let d = self.config.width;
        let mut stream = Vec::with_capacity(ids.len() * d);
        for &id in ids {
            let start = usize::from(id) * d;
            match self.embedding.get(start..start + d) {
                Some(row) => stream.extend_from_slice(row),
                None => stream.resize(stream.len() + d, 0.0),
            }
        }
        let mut first = cache.len;
        let mut left = self.layers.len();
        let (mut normed, mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut mixed, mut inner, mut delta) = (Vec::new(), Vec::new(), Vec::new());
        for (layer, (keys, values)) in self.layers.iter().zip(&mut cache.layers) {
            self.normalise(&stream, &layer.norm_attention, &mut normed);
            layer.key.apply(&normed, &mut k);
            layer.value.apply(&normed, &mut v);
            self.rotate(&mut k, first);
            keys.extend_from_slice(&k);
            values.extend_from_slice(&v);
            left -= 1;
            if only_last && left == 0 && !ids.is_empty() {
                first += ids.len() - 1;
                let others = stream.len() - d;
                stream.drain(..others);
                normed.drain(..others);
            }
            layer.query.apply(&normed, &mut q);
            self.rotate(&mut q, first);
            self.attend(&q, keys, values, first, &mut mixed);
            layer.output.apply(&mixed, &mut delta);
            add_scaled(&mut stream, 1.0, &delta);

            self.normalise(&stream, &layer.norm_mlp, &mut normed);
            layer.up.apply(&normed, &mut inner);
            for value in &mut inner {
                let positive = value.max(0.0);
                *value = positive * positive;
            }
            layer.down.apply(&inner, &mut delta);
            add_scaled(&mut stream, 1.0, &delta);
        }
        cache.len += ids.len();
        self.normalise(&stream, &self.norm, &mut normed);
        normed
    }

    /// The scores of every next token, for each hidden state.
    pub(super) fn logits(&self, hidden: &[f32], out: &mut Vec<f32>) {
        self.unembedding.apply(hidden, out);
    }

    fn normalise(&self, rows: &[f32], gain: &[f32], out: &mut Vec<f32>) {
        out.clear();
        for row in rows.chunks_exact(self.config.width) {
            let mean = dot(row, row) / self.config.width as f32;
            let scale = 1.0 / (mean + self.config.norm_epsilon).sqrt();
            out.extend(
                row.iter()
                    .zip(gain)
                    .map(|(value, gain)| value * scale * gain),
            );
        }
    }

    fn rotate(&self, rows: &mut [f32], first: usize) {
        let half = self.config.head_size() / 2;
        let angles = self.angles.chunks_exact(half).skip(first);
        for (row, angles) in rows.chunks_exact_mut(self.config.width).zip(angles) {
            for head in row.chunks_exact_mut(2 * half) {
                let (low, high) = head.split_at_mut(half);
                for ((a, b), (cos, sin)) in low.iter_mut().zip(high).zip(angles) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
        }
    }

    /// Each query sees the keys up to its own place.
    fn attend(
        &self,
        queries: &[f32],
        keys: &[f32],
        values: &[f32],
        first: usize,
        out: &mut Vec<f32>,
    ) {
        let d = self.config.width;
        let size = self.config.head_size();
        let scale = 1.0 / (size as f32).sqrt();
        out.clear();
        out.resize(queries.len(), 0.0);
        let mut scores = Vec::new();
        for (place, (query, out)) in queries
            .chunks_exact(d)
            .zip(out.chunks_exact_mut(d))
            .enumerate()
        {
            let seen = first + place + 1;
            let heads = query
                .chunks_exact(size)
                .zip(out.chunks_exact_mut(size))
                .enumerate();
            for (head, (query, out)) in heads {
                let columns = head * size..(head + 1) * size;
                let part = |row: &'_ [f32]| -> Option<f32> {
                    row.get(columns.clone()).map(|key| dot(query, key))
                };
                scores.clear();
                scores.extend(
                    keys.chunks_exact(d)
                        .take(seen)
                        .map(|row| part(row).unwrap_or(0.0) * scale),
                );
                softmax(&mut scores);
                for (score, row) in scores.iter().zip(values.chunks_exact(d)) {
                    if let Some(value) = row.get(columns.clone()) {
                        add_scaled(out, *score, value);
                    }
                }
            }
        }
    }
}

/// Turns scores into probabilities.
pub(super) fn softmax(scores: &mut [f32]) {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in &mut *scores {
        *score = libm::expf(*score - most);
        sum += *score;
    }
    let scale = 1.0 / sum;
    for score in scores {
        *score *= scale;
    }
}

fn angles(config: &Config) -> Vec<(f32, f32)> {
    let half = config.head_size() / 2;
    let mut out = Vec::with_capacity(config.longest * half);
    for place in 0..config.longest {
        for pair in 0..half {
            let exponent = -(pair as f64) / half as f64;
            let angle = place as f64 * libm::pow(config.rope_base, exponent);
            out.push((single(libm::cos(angle)), single(libm::sin(angle))));
        }
    }
    out
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a cosine loses digits only, never its range"
)]
fn single(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use super::Network;
    use crate::{Config, Variant, Weights};
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static NETWORK: LazyLock<Network> = LazyLock::new(|| {
        let config: Config = serde_json::from_str(include_str!("../weights/config.json")).unwrap();
        Network::new(
            &config,
            &Weights::read(&Variant::Base.weights().unwrap()).unwrap(),
        )
        .unwrap()
    });

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// However a text is cut into steps, every hidden state has the same bits.
        #[test]
        fn steps_do_not_matter(ids in prop::collection::vec(0_u16..768, 1..60), cuts in prop::collection::vec(1_usize..9, 60)) {
            let whole = NETWORK.advance(&mut NETWORK.cache(), &ids);
            let mut cache = NETWORK.cache();
            let mut rest = ids.as_slice();
            let mut stepped = Vec::new();
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                stepped.extend(NETWORK.advance(&mut cache, now));
                rest = later;
            }
            prop_assert_eq!(rest.len(), 0);
            let last = NETWORK.advance_to_last(&mut NETWORK.cache(), &ids);
            prop_assert_eq!(&last[..], &whole[whole.len() - last.len()..]);
            prop_assert_eq!(whole, stepped);
        }
    }
}
