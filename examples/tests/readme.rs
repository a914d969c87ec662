//! What the README shows is true.

use llm_rollout::Plan;

#[test]
fn the_plan_in_the_readme_is_a_plan() {
    let readme = include_str!("../../README.md");
    let plan = readme
        .split("```toml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let plan = Plan::from_toml(plan.unwrap()).unwrap();
    assert_eq!(plan.stages().len(), 2);
}
