//! How a model does on a list of requests.

use super::Model;
use super::desk::{Request, check};
use super::generate::Finish;

/// What became of the answers to a list of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Score {
    /// How many requests.
    pub requests: usize,
    /// How many answers are exactly right.
    pub correct: usize,
    /// How many have the form that was asked for, right or wrong.
    pub well_formed: usize,
    /// How many ran into `max_tokens`.
    pub cut_off: usize,
    /// The tokens of all answers.
    pub tokens: usize,
}

impl Score {
    /// Lets `model` answer every request, greedily or as its settings say.
    pub fn of(model: &Model, requests: &[Request]) -> Self {
        let mut score = Self::default();
        for (seed, request) in (0..).zip(requests) {
            let reply = model.answer(&request.text, seed);
            let checked = check(&reply.text, &request.expected);
            score.requests += 1;
            score.correct += usize::from(checked.is_ok());
            score.well_formed += usize::from(!checked.is_err_and(|error| error.is_format()));
            score.cut_off += usize::from(reply.finish == Finish::Length);
            score.tokens += reply.completion_tokens;
        }
        score
    }

    /// The share of answers that are exactly right; 0 of none.
    pub fn exact(&self) -> f64 {
        self.share(self.correct)
    }

    /// The share of answers that a program cannot use; 0 of none.
    pub fn malformed(&self) -> f64 {
        self.share(self.requests - self.well_formed)
    }

    fn share(&self, part: usize) -> f64 {
        if self.requests == 0 {
            0.0
        } else {
            part as f64 / self.requests as f64
        }
    }
}
