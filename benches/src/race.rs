//! The race: peers' decision rules and ours on the same simulated traffic of the 77-hour reference schedule, with a look each minute.

pub mod peers;

mod course;
mod metrics;
mod rules;
mod show;

#[path = "../../llm-gates/tests/simulations/rng.rs"]
mod rng;
#[expect(
    dead_code,
    reason = "shared with the simulations of llm-gates, which use all of it"
)]
#[path = "../../llm-gates/tests/simulations/world.rs"]
mod world;

use crate::figure::{Figure, Limit};
use crate::{Error, Scale};

pub use course::{Found, Lives, Race, Row, Section, Share, race};
pub use show::{BEGIN, END, chart, json, markdown, replace, text};

/// Name of the group.
pub const GROUP: &str = "race";

/// The bars of the race.
///
/// # Errors
/// None: there is nothing that could fail.
pub fn run(scale: Scale) -> Result<Vec<Figure>, Error> {
    let lives = if scale.full {
        Lives::FULL
    } else {
        Lives::QUICK
    };
    Ok(course::bars(lives)
        .into_iter()
        .map(|bar| {
            let figure = Figure::new(GROUP, bar.name, bar.value, bar.unit);
            match bar.limit {
                Some(limit) => figure.limit(Limit::AtMost(limit)),
                None => figure,
            }
        })
        .collect())
}
