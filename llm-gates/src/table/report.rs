//! What a gate table says, for programs and for people.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Bound;
use crate::{Action, Verdict};

/// One row of a report.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableRow {
    /// Name of the metric.
    pub metric: String,
    /// Unit of the metric, where the table states one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// On which side of the threshold it must be.
    pub must_be: Bound,
    /// The candidate's value, in the metric's unit; `None` where it was not measured.
    pub observed: Option<f64>,
    /// The threshold in the metric's unit; `None` where the baseline was not measured.
    pub threshold: Option<f64>,
    /// Confidence interval of what is compared with the threshold, in the metric's unit; for a threshold relative to the
    /// baseline it covers the noise of both.
    pub interval: Option<(f64, f64)>,
    /// What the row says.
    pub verdict: Verdict,
    /// What failing does.
    pub action: Action,
    /// Why.
    pub words: String,
}

/// What a gate table says.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableReport {
    /// Over the rows that do more than warn: `Fail` where one fails, else `Inconclusive` where one is, else `Pass`.
    pub verdict: Verdict,
    /// Action of the worst failing row, warnings included.
    pub action: Option<Action>,
    /// Two-sided confidence of the intervals.
    pub confidence: f64,
    /// The rows, in the order of the table.
    pub rows: Vec<TableRow>,
}

impl fmt::Display for TableReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), |x| format!("{x:.4}"));
        let cells = |row: &TableRow| {
            let sign = match row.must_be {
                Bound::Below => "<",
                Bound::AtMost => "<=",
                Bound::Above => ">",
                Bound::AtLeast => ">=",
            };
            [
                match &row.unit {
                    Some(unit) => format!("{} ({unit})", row.metric),
                    None => row.metric.clone(),
                },
                number(row.observed),
                format!("{sign} {}", number(row.threshold)),
                row.interval.map_or_else(
                    || "-".to_owned(),
                    |(low, high)| format!("[{low:.4}, {high:.4}]"),
                ),
                row.verdict.to_string(),
                row.action.to_string(),
                row.words.clone(),
            ]
        };
        let interval = format!("{} % interval", 100.0 * self.confidence);
        let head = [
            "metric",
            "observed",
            "must be",
            interval.as_str(),
            "verdict",
            "else",
            "why",
        ]
        .map(str::to_owned);
        let lines: Vec<_> = std::iter::once(head)
            .chain(self.rows.iter().map(cells))
            .collect();
        for line in &lines {
            let last = line.len() - 1;
            for (i, cell) in line.iter().enumerate() {
                if i == last {
                    writeln!(f, "{cell}")?;
                } else {
                    let width = lines
                        .iter()
                        .map(|l| l[i].chars().count())
                        .max()
                        .unwrap_or(0);
                    write!(f, "{cell:width$}  ")?;
                }
            }
        }
        match self.action {
            Some(action) => write!(f, "{}: {action}", self.verdict),
            None => write!(f, "{}", self.verdict),
        }
    }
}
