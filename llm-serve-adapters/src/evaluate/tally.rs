//! Samples out of values, and what is missing.

use crate::host::{Error, ErrorKind, Result};
use llm_gates::{Moments, Sample};

/// The largest share of replies of a judge, a classifier or a scoring service that may be missing or not understood.
pub(super) const MOST_MISSING: f64 = 0.1;

/// How many of how many.
pub(super) fn share(flags: impl IntoIterator<Item = bool>) -> Sample {
    let (mut k, mut n) = (0, 0);
    for flag in flags {
        k += u64::from(flag);
        n += 1;
    }
    Sample::Proportion { k, n }
}

/// The mean of finite values.
pub(super) fn mean(values: &[f64]) -> Sample {
    let moments = Moments::of(values);
    Sample::Mean {
        mean: moments.mean().unwrap_or(0.0),
        sd: moments.variance().unwrap_or(0.0).sqrt(),
        n: values.len() as u64,
    }
}

/// Refuses if more than this share of the replies is an error. What may pass outweighs what may not.
pub(super) fn not_too_many_missing<'a, R: 'a>(
    who: &str,
    most: f64,
    replies: impl IntoIterator<Item = &'a Result<R>>,
) -> Result<()> {
    let (mut n, mut missing, mut worst) = (0u64, 0u64, None::<&Error>);
    for reply in replies {
        n += 1;
        if let Err(e) = reply {
            missing += 1;
            if worst.is_none_or(|w| w.kind() != ErrorKind::Transient) {
                worst = Some(e);
            }
        }
    }
    match worst {
        Some(e) if missing as f64 > most * n as f64 => Err(Error::new(
            e.kind(),
            format!(
                "{missing} of {n} replies of {who} are missing or cannot be understood, such as: {e}"
            ),
        )),
        _ => Ok(()),
    }
}
