//! What operators can say, and where.

use crate::life::{Life, plan};
use llm_gates::Verdict;
use llm_rollout::{Cause, Input, Phase, Recovery, Rejected, RolloutId, Verb};
use std::time::Duration;

#[test]
fn a_stage_is_skipped_without_its_gates_but_not_past_a_hold_or_a_freeze() {
    let mut life = Life::soaking();
    life.operator(Verb::Hold {
        name: "demo".into(),
    })
    .unwrap();
    assert_eq!(
        life.operator(Verb::Skip),
        Err(Rejected::Standing(vec!["demo".into()]))
    );
    life.operator(Verb::Resume {
        name: "demo".into(),
    })
    .unwrap();
    let until = life.now.after(Duration::from_secs(60));
    life.give(Input::Frozen { until }).unwrap();
    assert_eq!(life.operator(Verb::Skip), Err(Rejected::Frozen(until)));
    life.wait(Duration::from_secs(60));
    life.operator(Verb::Skip).unwrap();
    assert_eq!(life.rollout.phase(), Phase::Shifting { stage: 1 });
    assert!(
        matches!(life.operator(Verb::Skip), Err(Rejected::NotNow { .. })),
        "nothing is soaking"
    );
    life.found();
    life.judged(Verdict::Pass).unwrap();
    assert!(life.rollout.state().holds.contains_key("approval"));
    life.operator(Verb::Skip).unwrap();
    assert_eq!(
        life.rollout.phase(),
        Phase::Shifting { stage: 2 },
        "skipping needs no approval"
    );
    life.found();
    life.operator(Verb::Skip).unwrap();
    assert_eq!(
        life.rollout.phase(),
        Phase::Promoting,
        "after the last stage comes promotion"
    );
}

#[test]
fn promoting_now_overrides_everything_but_going_back() {
    let mut life = Life::soaking();
    let until = life.now.after(Duration::from_secs(60));
    life.give(Input::Frozen { until }).unwrap();
    life.operator(Verb::Hold {
        name: "demo".into(),
    })
    .unwrap();
    life.operator(Verb::PromoteNow).unwrap();
    assert_eq!(life.rollout.phase(), Phase::Promoting);

    let mut back = Life::soaking();
    back.judged(Verdict::Fail).unwrap();
    for verb in [
        Verb::PromoteNow,
        Verb::Skip,
        Verb::Approve,
        Verb::Abort,
        Verb::AbortNow,
    ] {
        assert!(matches!(back.operator(verb), Err(Rejected::NotNow { .. })));
    }
    let mut early = Life::new();
    assert!(matches!(
        early.operator(Verb::PromoteNow),
        Err(Rejected::NotNow { .. })
    ));
}

#[test]
fn approvals_say_who_and_why_and_abort_does_not_page() {
    let mut life = Life::soaking();
    life.operator(Verb::Approve).unwrap();
    let approval = &life.rollout.state().approvals[&1];
    assert_eq!(
        (approval.by.as_str(), approval.why.as_str()),
        ("ana", "because")
    );
    assert_eq!(
        life.operator(Verb::Approve),
        Err(Rejected::NothingToApprove)
    );
    life.operator(Verb::Abort).unwrap();
    assert_eq!(life.pages(), 0, "who aborts knows");
    assert!(matches!(&life.rollout.state().cause, Some(Cause::Operator { by, .. }) if by == "ana"));
}

#[test]
fn a_superseded_rollout_goes_back_and_a_superseded_bake_ends() {
    let by = RolloutId::new("r2").unwrap();
    let mut life = Life::soaking();
    life.operator(Verb::Supersede { by: by.clone() }).unwrap();
    assert_eq!(
        life.rollout.phase(),
        Phase::RollingBack {
            part: Recovery::Redirecting
        }
    );
    assert_eq!(
        life.rollout.state().cause,
        Some(Cause::Superseded { by: by.clone() })
    );

    let mut baking = Life::baking(plan());
    baking.operator(Verb::Supersede { by }).unwrap();
    assert!(
        !baking.give(Input::Tick).unwrap(),
        "the old baseline still drains"
    );
    baking.serve();
    baking.give(Input::Tick).unwrap();
    assert_eq!(
        baking.rollout.phase(),
        Phase::Promoted,
        "a promoted candidate is not taken back for a newer one"
    );
}

#[test]
fn a_hold_keeps_the_old_baseline_through_baking() {
    let mut life = Life::baking(plan());
    life.serve();
    life.operator(Verb::Hold {
        name: "watch".into(),
    })
    .unwrap();
    life.wait(Duration::from_secs(2 * 3600));
    assert!(!life.give(Input::Tick).unwrap());
    life.operator(Verb::Resume {
        name: "watch".into(),
    })
    .unwrap();
    life.give(Input::Tick).unwrap();
    assert_eq!(life.rollout.phase(), Phase::Promoted);
}
