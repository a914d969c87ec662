//! An input that is no news allocates nothing. A binary of its own: it counts with a global allocator.

#![allow(dead_code, reason = "uses its part of the helpers")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "machine/life.rs"]
mod life;

use life::{FENCE, Life, plan};
use llm_gates::Verdict;
use llm_rollout::{Heartbeat, Input, Phase};
use std::time::Duration;

#[test]
fn an_input_that_is_no_news_allocates_nothing() {
    let mut soaking = Life::soaking();
    soaking.judged(Verdict::Inconclusive).unwrap();
    let mut ended = Life::soaking();
    ended.judged(Verdict::Fail).unwrap();
    for _ in 0..3 {
        ended.found();
        ended.serve();
    }
    assert_eq!(ended.rollout.phase(), Phase::RolledBack);
    for life in [soaking, Life::baking(plan()), ended] {
        let routers = life.routers();
        let inputs = [
            Input::Tick,
            Input::Found {
                fence: FENCE,
                routers,
            },
            Input::Heartbeat(Heartbeat {
                exposed: 1,
                waiting: Duration::ZERO,
            }),
            Input::Health { baseline: true },
            Input::SourceFailed {
                reason: String::new(),
            },
        ];
        for input in inputs {
            let phase = life.rollout.phase();
            let mut step = Ok(None);
            let counted = allocation_counter::measure(|| {
                step = life.rollout.decide(life.seq, life.now, input);
            });
            assert_eq!(step, Ok(None), "{phase}");
            // The input is the caller's: giving it up may free, not allocate.
            assert_eq!(counted.count_total, 0, "{phase}");
        }
    }
}
