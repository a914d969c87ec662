//! Deterministic simulation: the real endpoint, controller, router and journal in a world of which everything - chance, time,
//! network, store, engines, users, operators - comes from one seed. A life ends when its rollouts have; then every invariant
//! is checked over all that happened.
//!
//! `SIMULATION_SEED=n cargo test -p llm-serve-adapters --test simulation one_life -- --nocapture` tells the life of a seed as
//! a story. `SIMULATION_LIVES=n` with `--release ... many_lives -- --ignored --nocapture` lives n of them.

#![expect(
    clippy::semicolon_if_nothing_returned,
    reason = "arms that only say something"
)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "a story is told on request")]

mod campaign;
mod extract;
mod faults;
mod history;
mod hosts;
mod invariants;
mod life;
mod plans;
mod rng;
mod routers;
mod store;
mod world;

use campaign::{Campaign, of_env};

/// Lives that `cargo test` takes: a look, not the proof.
const FEW: u64 = 300;
/// Lives that a change must survive.
const MANY: u64 = 100_000;

#[test]
fn few_lives_keep_every_invariant() {
    let campaign = Campaign::run(0, FEW);
    println!("{campaign}");
    campaign.assert_clean();
    campaign.assert_both_endings();
}

#[test]
#[ignore = "takes minutes in a release build: .ci/steps/lives"]
fn many_lives_keep_every_invariant() {
    let campaign = Campaign::run(
        of_env("SIMULATION_FIRST").unwrap_or(0),
        of_env("SIMULATION_LIVES").unwrap_or(MANY),
    );
    println!("{campaign}");
    campaign.assert_clean();
    campaign.assert_both_endings();
    campaign.assert_every_fault();
    campaign.assert_just();
}

#[test]
fn the_same_seed_is_the_same_life() {
    for seed in 1_000..1_020 {
        let (one, two) = (life::live(seed, true), life::live(seed, true));
        assert_eq!(one.log, two.log, "seed {seed}: the logs differ");
        assert_eq!(one.trace, two.trace, "seed {seed}: the traces differ");
        assert_eq!(
            one.history, two.history,
            "seed {seed}: the histories differ"
        );
    }
    assert_ne!(life::live(1, false).log, life::live(2, false).log);
}

#[test]
fn one_life_as_a_story() {
    let Some(seed) = of_env("SIMULATION_SEED") else {
        return;
    };
    let life = life::live(seed, true);
    for line in &life.trace {
        println!("{line}");
    }
    println!("ends: {:?}", life.ends);
    let violations = invariants::check(&life.history);
    for violation in &violations {
        println!("{violation:?}");
    }
    assert!(violations.is_empty());
}
