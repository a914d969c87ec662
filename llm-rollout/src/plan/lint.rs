//! What is wrong with a valid plan in practice, said before anything is deployed.

mod chances;
mod gates;
mod limits;
mod stages;
mod timing;
mod view;

use super::place::Place;
use crate::{BadTraffic, Plan, Traffic};
use serde::{Deserialize, Serialize};
use std::fmt;
use view::View;

/// How grave a finding is, the least grave first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::exhaustive_enums, reason = "a scale that hosts compare with")]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// It works, and worse than it could.
    Warning,
    /// Something in the plan cannot do what it is there for.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// Something that is wrong with a plan in practice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Finding {
    /// How grave it is.
    pub severity: Severity,
    /// What kind of finding: a name that does not change, such as `stage-too-short`.
    pub code: String,
    /// Where: a path in the plan, such as `stages[1].dwell`.
    pub path: String,
    /// What is wrong, with the numbers.
    pub problem: String,
    /// What to do.
    pub help: String,
}

impl Finding {
    /// The same with the line of the plan's text, TOML or JSON, that it is about.
    ///
    /// ```
    /// use llm_rollout::{Expected, Plan, Traffic};
    /// let text = r#"
    /// alpha = 0.05
    /// bake = "24h"
    /// metrics = { faults = { fault = {} } }
    /// gates = [{ metric = "faults", weight = 1.0 }]
    /// stages = [{ serve = 1.0, dwell = "10m" }, { serve = 10.0, dwell = "24h" }]
    /// "#;
    /// let day = std::time::Duration::from_secs(86_400);
    /// let traffic = Traffic::new(20.0).history(3 * day).metric("faults", Expected::new(0.01, 2.0));
    /// let findings = Plan::from_toml(text)?.lint(&traffic)?;
    /// assert_eq!(findings[0].code, "stage-too-short");
    /// assert!(findings[0].show(text).starts_with(
    ///     "warning[stage-too-short]: line 6, column 34: stages[0].dwell: "
    /// ));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn show(&self, text: &str) -> String {
        Shown {
            finding: self,
            place: Place::find(text, &self.path),
        }
        .to_string()
    }

    /// Line and column, from 1, in the plan's text, where the path or what holds it is there.
    pub fn position(&self, text: &str) -> Option<(usize, usize)> {
        Place::find(text, &self.path).map(|place| (place.line, place.column))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Shown {
            finding: self,
            place: None,
        }
        .fmt(f)
    }
}

struct Shown<'a> {
    finding: &'a Finding,
    place: Option<Place>,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding {
            severity,
            code,
            path,
            problem,
            help,
        } = self.finding;
        write!(f, "{severity}[{code}]: ")?;
        if let Some(place) = &self.place {
            write!(f, "line {}, column {}: ", place.line, place.column)?;
        }
        write!(f, "{path}: {problem}")?;
        let margin = match &self.place {
            Some(place) => {
                place.quote(f)?;
                place.line.to_string().len()
            }
            None => 1,
        };
        write!(f, "\n {:margin$} = help: {help}", "")
    }
}

/// What the checks write down.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(
        &mut self,
        severity: Severity,
        code: &str,
        path: impl Into<String>,
        problem: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.0.push(Finding {
            severity,
            code: code.to_owned(),
            path: path.into(),
            problem: problem.into(),
            help: help.into(),
        });
    }
}

impl Plan {
    /// What is wrong with this plan at this traffic, the gravest first: stages too short to see what they guard against, gates that can never pass or never fire, thresholds that chance
    /// alone breaks, waits that end too early. Nothing found means that the plan can do what it says, if the traffic is as described.
    ///
    /// Probabilities are those of [`llm_gates::planner`], for arms that differ by sampling alone; simulate the plan to see it under noise and drift.
    ///
    /// # Errors
    /// [`BadTraffic`] for a description that makes no sense.
    pub fn lint(&self, traffic: &Traffic) -> Result<Vec<Finding>, BadTraffic> {
        traffic.check()?;
        let view = View::new(self, traffic);
        let mut findings = Findings::default();
        gates::check(&view, &mut findings);
        stages::check(&view, &mut findings);
        limits::check(&view, &mut findings);
        timing::check(&view, &mut findings);
        let mut findings = findings.0;
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        Ok(findings)
    }
}
