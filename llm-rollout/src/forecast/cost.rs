//! What the candidate runs on, which shares that carries, and what a rollout costs.

use super::Planner;
use crate::{Finish, Share};
use std::time::Duration;

/// What the candidate runs on.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "plain data, written by people")]
pub struct Fleet {
    /// GPUs of one replica: 4 for a model of 70 billion parameters in 16 bits on 80 GB each with room for its cache.
    pub gpus: f64,
    /// Requests a second that one replica carries within its latency target.
    pub requests_per_second: f64,
    /// Replicas of the candidate that there are GPUs for.
    pub replicas: u32,
    /// Traffic at the peak of the day over its average, 1 or more.
    pub peak: f64,
    /// Tokens of a request, prompt and answer.
    pub tokens: f64,
    /// Tokens that a judge reads and writes for one pair of answers.
    pub judge_tokens: f64,
    /// Share of the mirrored pairs that are judged, 0 to 1.
    pub judged: f64,
    /// What may be spent; beyond it, pairs are skipped.
    pub caps: Caps,
}

/// What may be spent on shadow traffic.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "plain data, written by people")]
pub struct Caps {
    /// Tokens of mirrored requests.
    pub shadow_tokens: f64,
    /// Tokens of judges.
    pub judge_tokens: f64,
}

impl Default for Caps {
    /// No caps.
    fn default() -> Self {
        Self {
            shadow_tokens: f64::INFINITY,
            judge_tokens: f64::INFINITY,
        }
    }
}

impl Default for Fleet {
    /// One GPU a replica, 10 requests a second each, room for one, a flat day, 1,000 tokens a request, 1,500 a judgement of each pair.
    fn default() -> Self {
        Self {
            gpus: 1.0,
            requests_per_second: 10.0,
            replicas: 1,
            peak: 1.0,
            tokens: 1_000.0,
            judge_tokens: 1_500.0,
            judged: 1.0,
            caps: Caps::default(),
        }
    }
}

impl Fleet {
    /// The largest share of so many requests a second (on average over the day) that its replicas carry at the peak.
    pub fn largest_share(&self, requests_per_second: f64) -> Share {
        let carried = self.requests_per_second * f64::from(self.replicas);
        let part = carried / (requests_per_second * self.peak.max(1.0));
        let points = (part * 10_000.0 + 1e-9).floor().clamp(0.0, 10_000.0);
        Share::from_percent(points / 100.0).unwrap_or(Share::NONE)
    }

    /// Replicas that this many requests a second (on average over the day) need at the peak.
    fn needed(&self, requests_per_second: f64) -> f64 {
        let peak = requests_per_second * self.peak.max(1.0);
        (peak / self.requests_per_second - 1e-9).ceil().max(0.0)
    }
}

/// What a rollout costs where nothing is found: an upper bound, as what is found ends it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Cost {
    /// Each stage, in order.
    pub stages: Vec<StageCost>,
    /// GPU-hours of the candidate over all stages.
    pub candidate_gpu_hours: f64,
    /// GPU-hours of the old version, kept warm after promotion for an instant return.
    pub standby_gpu_hours: f64,
    /// Tokens of mirrored requests, up to their cap.
    pub shadow_tokens: f64,
    /// Tokens of judges, up to their cap.
    pub judge_tokens: f64,
}

/// What one stage needs.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct StageCost {
    /// Replicas of the candidate for what it answers and what is mirrored to it, at the peak; at least one.
    pub replicas: f64,
    /// Whether there are GPUs for them.
    pub fits: bool,
    /// GPU-hours of the candidate.
    pub gpu_hours: f64,
    /// Tokens of mirrored requests, up to their cap.
    pub shadow_tokens: f64,
    /// Tokens of judges, up to their cap.
    pub judge_tokens: f64,
    /// How long into the stage the first cap is reached, where one is: pairs are skipped from then on.
    pub capped_after: Option<Duration>,
}

impl Planner {
    /// What the rollout costs on this fleet where nothing is found.
    pub fn cost(&self, fleet: &Fleet) -> Cost {
        let all = self.traffic().requests_per_second;
        let lasts = self.forecast(&[]).map(|f| f.stages).unwrap_or_default();
        let spec = self.plan().spec();
        let mut left = fleet.caps;
        let mut stages = Vec::with_capacity(spec.stages.len());
        for (i, stage) in spec.stages.iter().enumerate() {
            let time = lasts.get(i).map_or(stage.dwell, |s| s.lasts);
            let (hours, seconds) = (time.as_secs_f64() / 3600.0, time.as_secs_f64());
            let mirrored = all * stage.mirror.0.percent() / 100.0;
            let served = all * stage.serve.0.percent() / 100.0;
            let replicas = fleet.needed(served + mirrored).max(1.0);
            let rates = (
                mirrored * fleet.tokens,
                mirrored * fleet.judged * fleet.judge_tokens,
            );
            let until = |left: f64, rate: f64| {
                if rate > 0.0 {
                    left / rate
                } else {
                    f64::INFINITY
                }
            };
            let first = until(left.shadow_tokens, rates.0).min(until(left.judge_tokens, rates.1));
            let pairs = seconds.min(first);
            left.shadow_tokens -= rates.0 * pairs;
            left.judge_tokens -= rates.1 * pairs;
            stages.push(StageCost {
                replicas,
                fits: replicas <= f64::from(fleet.replicas),
                gpu_hours: replicas * fleet.gpus * hours,
                shadow_tokens: rates.0 * pairs,
                judge_tokens: rates.1 * pairs,
                capped_after: (first < seconds)
                    .then(|| Duration::try_from_secs_f64(first).ok())
                    .flatten(),
            });
        }
        let sum = |f: fn(&StageCost) -> f64| stages.iter().map(f).sum::<f64>();
        let keeps = spec.finish == Finish::Promote;
        let bake = if keeps {
            spec.bake.as_secs_f64() / 3600.0
        } else {
            0.0
        };
        Cost {
            candidate_gpu_hours: sum(|s| s.gpu_hours),
            standby_gpu_hours: fleet.needed(all).max(1.0) * fleet.gpus * bake,
            shadow_tokens: sum(|s| s.shadow_tokens),
            judge_tokens: sum(|s| s.judge_tokens),
            stages,
        }
    }
}
