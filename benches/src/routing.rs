//! Group `routing`: one decision per request.

use crate::data::{self, SALT, SET};
use crate::figure::{Figure, Limit};
use crate::measure::{Design, Timing, allocations, interleave};
use crate::peers::{ArcSwapLike, TensorZeroLike, WeightedIndexLike};
use crate::{Error, Scale};
use llm_serve_adapters::router::Key;
use std::hint::black_box;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Its name.
pub const GROUP: &str = "routing";

/// A candidate's share of 5 %: the branch is nearly always the same, as it is in a canary stage.
const PERCENT: u32 = 5;

fn each(keys: &[Box<[u8]>], passes: usize, mut run: impl FnMut(&[u8])) {
    for _ in 0..passes {
        for key in keys {
            run(black_box(key));
        }
    }
}

/// Measures the group.
///
/// # Errors
/// A design cannot be set up.
pub fn run(_: Scale) -> Result<Vec<Figure>, Error> {
    let keys = data::keys();
    let (router, even) = (data::router(f64::from(PERCENT))?, data::router(50.0)?);
    let now = router.now();
    let weighted = WeightedIndexLike::new(PERCENT)?;
    let (swap, zero) = (ArcSwapLike::new(PERCENT), TensorZeroLike::new(PERCENT));
    let below = u32::MAX / 100 * PERCENT;
    let designs = [
        Design::new(
            "floor: xxh3 and a comparison with a constant",
            SET,
            |_, passes| {
                each(&keys, passes, |key| {
                    let place = (xxh3_64_with_seed(key, SALT) >> 32) as u32;
                    black_box(place < below);
                });
            },
        ),
        Design::new(
            "decision, two versions, with the lease check",
            SET,
            |_, passes| {
                each(&keys, passes, |key| {
                    black_box(&router.decide(&Key::session(key), now));
                });
            },
        ),
        Design::new(
            "decision of which only the version is used",
            SET,
            |_, passes| {
                each(&keys, passes, |key| {
                    black_box(router.decide(&Key::session(key), now).slot());
                });
            },
        ),
        Design::new(
            "hash with a salt known only when it runs, and a comparison",
            SET,
            |_, passes| {
                let salt = black_box(SALT);
                each(&keys, passes, |key| {
                    let place = (xxh3_64_with_seed(key, salt) >> 32) as u32;
                    black_box(place < below);
                });
            },
        ),
        Design::new("decision by a keyed hash", SET, |_, passes| {
            each(&keys, passes, |key| {
                black_box(&router.decide(&Key::untrusted(key), now));
            });
        }),
        Design::new(
            "decision about a conversation with a date",
            SET,
            |_, passes| {
                each(&keys, passes, |key| {
                    black_box(&router.decide(&Key::session(key).began(now), now));
                });
            },
        ),
        Design::new("decision at a share of 50 %", SET, |_, passes| {
            each(&keys, passes, |key| {
                black_box(&even.decide(&Key::session(key), now));
            });
        }),
        Design::new("decision and the clock", SET, |_, passes| {
            each(&keys, passes, |key| {
                black_box(&router.decide(&Key::session(key), router.now()));
            });
        }),
        Design::new("keyless decision", SET, |_, passes| {
            for _ in 0..passes * SET {
                black_box(&router.decide(&Key::keyless(), now));
            }
        }),
        Design::new(
            "rand WeightedIndex-like, std RwLock, thread rng",
            SET,
            |_, passes| {
                for _ in 0..passes * SET {
                    black_box(weighted.select());
                }
            },
        ),
        Design::new("ArcSwap table-like", SET, |_, passes| {
            each(&keys, passes, |key| {
                black_box(swap.select(key));
            });
        }),
        Design::new("TensorZero-like", SET, |_, passes| {
            each(&keys, passes, |key| {
                black_box(zero.select("chat", key));
            });
        }),
    ];
    let timings = interleave(&designs, Duration::from_secs(15));
    Ok(figures(&designs, &timings))
}

/// The first design is the floor, the second ours.
fn figures(designs: &[Design<'_>], timings: &[Timing]) -> Vec<Figure> {
    let [floor, ours, ..] = timings else {
        return Vec::new();
    };
    let mut figures = vec![
        Figure::new(
            GROUP,
            "decision, two versions, with the lease check",
            ours.one / floor.one,
            "x floor",
        )
        .limit(Limit::AtMost(1.2)),
        scaling("decision, two threads against one", *ours).limit_measured(Limit::AtMost(1.05)),
    ];
    if let Some(design) = designs.get(1) {
        figures.push(
            Figure::new(GROUP, "allocations per decision", allocations(design), "")
                .limit(Limit::AtMost(0.0)),
        );
    }
    for (design, timing) in designs.iter().zip(timings) {
        figures.extend(absolute(GROUP, design.name(), *timing));
    }
    for (design, timing) in designs.iter().zip(timings).skip(9) {
        let name = format!("{}, against a decision", design.name());
        figures.push(Figure::new(GROUP, &name, timing.one / ours.one, "x"));
        if let (Some(theirs), Some(own)) = (timing.two, ours.two) {
            figures.push(Figure::new(
                GROUP,
                format!("{name}, two threads"),
                theirs / own,
                "x",
            ));
        }
        figures.push(Figure::new(
            GROUP,
            format!("{}, allocations", design.name()),
            allocations(design),
            "per request",
        ));
    }
    figures
}

/// Why two threads could not be measured.
pub(crate) const SELDOM: &str = "two threads hardly ever ran at the same time";

/// Nanoseconds, for information.
pub(crate) fn absolute(group: &'static str, name: &str, timing: Timing) -> [Figure; 2] {
    let on_two = format!("{name}, two threads");
    [
        Figure::new(group, name, timing.one, "ns"),
        timing.two.map_or_else(
            || Figure::missing(group, &on_two, "ns", SELDOM),
            |two| Figure::new(group, &on_two, two, "ns"),
        ),
    ]
}

fn scaling(name: &str, timing: Timing) -> Figure {
    match timing.scaling() {
        Some(ratio) => Figure::new(GROUP, name, ratio, "x"),
        None => Figure::missing(GROUP, name, "x", SELDOM),
    }
}
