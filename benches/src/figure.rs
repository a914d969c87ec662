//! One figure of the report, and how it is shown.

use serde_json::json;
use std::fmt::Write as _;

/// What a figure must keep to.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Limit {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
    /// Less than this.
    Below(f64),
}

impl Limit {
    /// The number alone.
    pub const fn number(self) -> f64 {
        match self {
            Self::AtMost(limit) | Self::AtLeast(limit) | Self::Below(limit) => limit,
        }
    }

    /// Whether a value keeps to it.
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
            Self::Below(limit) => value < limit,
        }
    }

    fn show(self) -> String {
        let sign = match self {
            Self::AtMost(_) => "<=",
            Self::AtLeast(_) => ">=",
            Self::Below(_) => "<",
        };
        format!("{sign} {}", self.number())
    }
}

/// One measured figure.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Figure {
    /// The group that it belongs to.
    pub group: &'static str,
    /// What was measured.
    pub name: String,
    /// None: it could not be measured here, and the name says why.
    pub value: Option<f64>,
    /// What the value counts.
    pub unit: &'static str,
    /// None: for information, or not measured.
    pub limit: Option<Limit>,
}

impl Figure {
    /// A figure for information.
    pub fn new(
        group: &'static str,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
    ) -> Self {
        Self {
            group,
            name: name.into(),
            value: value.is_finite().then_some(value),
            unit,
            limit: None,
        }
    }

    /// A figure that could not be measured here. Nothing is claimed: it has neither value nor limit.
    pub fn missing(group: &'static str, name: &str, unit: &'static str, why: &str) -> Self {
        Self {
            group,
            name: format!("{name} (not measured: {why})"),
            value: None,
            unit,
            limit: None,
        }
    }

    /// The same, held to a limit.
    #[must_use]
    pub fn limit(mut self, limit: Limit) -> Self {
        self.limit = Some(limit);
        self
    }

    /// The same, held to a limit if it could be measured.
    #[must_use]
    pub fn limit_measured(self, limit: Limit) -> Self {
        if self.value.is_some() {
            self.limit(limit)
        } else {
            self
        }
    }

    /// Whether it keeps to its limit. Without a limit it does; a limit without a value does not hold.
    pub fn pass(&self) -> bool {
        self.limit
            .is_none_or(|limit| self.value.is_some_and(|value| limit.holds(value)))
    }

    /// One line of JSON.
    pub fn json(&self) -> String {
        json!({
            "group": self.group,
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "limit": self.limit.map(Limit::number),
            "pass": self.pass(),
        })
        .to_string()
    }

    fn cells(&self) -> [String; 6] {
        [
            self.group.to_owned(),
            self.name.clone(),
            self.value.map_or_else(|| "-".to_owned(), number),
            self.unit.to_owned(),
            self.limit.map_or_else(String::new, Limit::show),
            match (self.limit, self.pass()) {
                (None, _) => String::new(),
                (_, true) => "holds".to_owned(),
                (_, false) => "MISSED".to_owned(),
            },
        ]
    }
}

/// About four significant digits.
fn number(value: f64) -> String {
    let size = value.abs();
    if value.fract() == 0.0 || size >= 1_000.0 {
        format!("{value:.0}")
    } else if size >= 100.0 {
        format!("{value:.1}")
    } else if size >= 10.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    }
}

/// The figures as a table for people.
pub fn table(figures: &[Figure]) -> String {
    let heads = ["group", "name", "value", "unit", "limit", "holds?"].map(str::to_owned);
    let rows = std::iter::once(heads)
        .chain(figures.iter().map(Figure::cells))
        .collect::<Vec<_>>();
    let widths: [usize; 6] = std::array::from_fn(|column| {
        let width = |row: &[String; 6]| row.get(column).map_or(0, |cell| cell.chars().count());
        rows.iter().map(width).max().unwrap_or(0)
    });
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            // Numbers to the right.
            let _ = if column == 2 {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:<width$}  ")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure() -> Figure {
        Figure::new("routing", "a decision", 1.5, "x floor")
    }

    #[test]
    fn json_has_exactly_the_keys() {
        for figure in [
            figure(),
            figure().limit(Limit::AtMost(2.0)),
            Figure::missing("verify", "rate", "GB/s", "no tool"),
            Figure::new("verify", "rate", f64::NAN, "GB/s"),
        ] {
            let line = figure.json();
            assert!(!line.contains('\n'));
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            let keys = value.as_object().unwrap().keys().collect::<Vec<_>>();
            assert_eq!(keys, ["group", "limit", "name", "pass", "unit", "value"]);
            assert!(value["pass"].is_boolean());
        }
        let value: serde_json::Value =
            serde_json::from_str(&figure().limit(Limit::AtLeast(2.0)).json()).unwrap();
        assert_eq!(value["limit"], 2.0);
        assert_eq!(value["pass"], false);
        assert_eq!(value["value"], 1.5);
    }

    #[test]
    fn a_limit_holds_or_does_not() {
        assert!(figure().limit(Limit::AtMost(1.5)).pass());
        assert!(!figure().limit(Limit::Below(1.5)).pass());
        assert!(figure().limit(Limit::AtLeast(1.5)).pass());
        assert!(figure().pass());
        let unknown = Figure::new("a", "b", f64::INFINITY, "c").limit(Limit::AtLeast(0.0));
        assert!(!unknown.pass());
    }

    #[test]
    fn the_table_is_aligned_and_says_what_is_missed() {
        let text = table(&[
            figure().limit(Limit::AtMost(1.2)),
            Figure::new("verify", "bytes", 123_456.0, "B"),
        ]);
        let lines = text.lines().collect::<Vec<_>>();
        assert_eq!(lines.len(), 3);
        let unit = lines[0].find("unit").unwrap();
        assert_eq!(&lines[1][unit..unit + 7], "x floor");
        assert!(lines[1].contains("1.500") && lines[1].ends_with("<= 1.2  MISSED"));
        assert!(lines[2].ends_with("123456  B"));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0.0, 1.234_56, 12.345_6, 123.456, 1_234.56].map(number),
            ["0", "1.235", "12.35", "123.5", "1235"]
        );
    }
}
