//! Line plots as inline SVG.

use super::markup::escape;
use std::fmt::Write as _;

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 246.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 46.0;

/// How a line goes from point to point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Straight.
    Straight,
    /// Level until the next point, the last one until the end.
    Steps,
}

/// One line.
#[derive(Debug)]
pub(super) struct Line<'a> {
    pub(super) name: &'a str,
    /// Which of the page's colours, from 0.
    pub(super) colour: usize,
    pub(super) points: &'a [(f64, f64)],
}

/// A plot over time.
#[derive(Debug)]
pub(super) struct Plot<'a> {
    /// What it shows, for those who do not see it.
    pub(super) label: &'a str,
    /// The unit of the y axis.
    pub(super) unit: &'a str,
    pub(super) lines: &'a [Line<'a>],
    pub(super) shape: Shape,
    /// The end of the time axis, in seconds.
    pub(super) seconds: f64,
    /// The range of the y axis.
    pub(super) range: (f64, f64),
    /// Ticks of the y axis; by themselves if empty.
    pub(super) ticks: &'a [f64],
    /// A limit that matters, and its name.
    pub(super) bound: Option<(f64, &'a str)>,
}

/// Ticks at round distances, about as many as wanted.
pub(super) fn ticks(from: f64, to: f64, wanted: f64) -> Vec<f64> {
    let span = to - from;
    if !(span.is_finite() && span > 0.0) {
        return vec![from];
    }
    let rough = span / wanted.max(1.0);
    let power = 10_f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
    let step = steps.into_iter().find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(10.0 * power);
    let mut place = (from / step - 1e-9).ceil();
    let mut out = Vec::new();
    while place * step <= to + step * 1e-9 && out.len() < 32 {
        out.push(if place == 0.0 { 0.0 } else { place * step });
        place += 1.0;
    }
    out
}

/// A tick's number, as short as it can be.
fn number(value: f64) -> String {
    let text = if value.abs() >= 10_000.0 || value.abs() < 1e-9 {
        format!("{value:.0}")
    } else {
        let text = format!("{value:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    text.replace('-', "\u{2212}")
}

/// The unit of the time axis and its seconds.
fn time_unit(seconds: f64) -> (&'static str, f64) {
    if seconds < 300.0 {
        ("seconds", 1.0)
    } else if seconds < 3.0 * 3600.0 {
        ("minutes", 60.0)
    } else {
        ("hours", 3600.0)
    }
}

impl Plot<'_> {
    fn x(&self, seconds: f64) -> f64 {
        let share = (seconds / self.end()).clamp(0.0, 1.0);
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let (low, high) = self.range;
        // what lies outside stays at the edge, where it can be seen
        let share = ((value - low) / (high - low).max(f64::MIN_POSITIVE)).clamp(0.0, 1.0);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }

    fn end(&self) -> f64 {
        if self.seconds.is_finite() {
            self.seconds.max(1e-3)
        } else {
            1.0
        }
    }

    /// The plot with its legend.
    pub(super) fn html(&self) -> String {
        let mut out = String::new();
        // writing to a string cannot fail
        let _ = self.draw(&mut out);
        out
    }

    fn draw(&self, out: &mut String) -> std::fmt::Result {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        out.push_str("<div class=\"legend\">");
        for line in self.lines {
            let (colour, name) = (line.colour, escape(line.name));
            write!(out, "<span class=\"k{colour}\"><em>{name}</em></span>")?;
        }
        out.push_str("</div>");
        write!(
            out,
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            escape(self.label)
        )?;
        if let Some((bound, _)) = self.bound {
            let height = self.y(bound) - TOP;
            let width = right - LEFT;
            write!(
                out,
                "<rect class=\"beyond\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
            )?;
        }
        let own = if self.ticks.is_empty() {
            ticks(self.range.0, self.range.1, 5.0)
        } else {
            self.ticks.to_vec()
        };
        for tick in own {
            let y = self.y(tick);
            let text = number(tick);
            let x = LEFT - 8.0;
            write!(
                out,
                "<line class=\"rule\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{x:.1}\" y=\"{y:.1}\" dy=\".35em\" text-anchor=\"end\">{text}</text>"
            )?;
        }
        let (unit, seconds) = time_unit(self.end());
        for tick in ticks(0.0, self.end() / seconds, 6.0) {
            let x = self.x(tick * seconds);
            let text = number(tick);
            let (y2, below) = (bottom + 5.0, bottom + 20.0);
            write!(
                out,
                "<line class=\"axis\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{bottom}\" y2=\"{y2}\"/>\
                 <text x=\"{x:.1}\" y=\"{below}\" text-anchor=\"middle\">{text}</text>"
            )?;
        }
        let zero = self.y(self.range.0.max(0.0));
        write!(
            out,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{zero:.1}\" y2=\"{zero:.1}\"/>\
             <line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/>\
             <text x=\"{right}\" y=\"{}\" text-anchor=\"end\">{unit} since the start</text>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            HEIGHT - 6.0,
            LEFT - 8.0,
            TOP - 13.0,
            escape(self.unit)
        )?;
        for line in self.lines {
            self.line(out, line)?;
        }
        if let Some((bound, name)) = self.bound {
            let y = self.y(bound);
            let text = y - 6.0;
            let x = LEFT + 6.0;
            write!(
                out,
                "<line class=\"bound\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"strong\" x=\"{x}\" y=\"{text:.1}\">{}</text>",
                escape(name)
            )?;
        }
        out.push_str("</svg>");
        Ok(())
    }

    fn line(&self, out: &mut String, line: &Line<'_>) -> std::fmt::Result {
        let finite = |(x, y): &&(f64, f64)| x.is_finite() && y.is_finite();
        let mut points: Vec<(f64, f64)> = line.points.iter().filter(finite).copied().collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let Some(&(first, _)) = points.first() else {
            return Ok(());
        };
        let mut path = String::new();
        let mut last = None;
        for &(seconds, value) in &points {
            let (x, y) = (self.x(seconds), self.y(value));
            match last {
                None => write!(path, "M{x:.1} {y:.1}")?,
                Some(_) if self.shape == Shape::Steps => write!(path, "H{x:.1}V{y:.1}")?,
                Some(_) => write!(path, "L{x:.1} {y:.1}")?,
            }
            last = Some((x, y));
        }
        write!(out, "<g class=\"k{}\">", line.colour)?;
        if self.shape == Shape::Steps {
            let end = self.x(self.end());
            write!(path, "H{end:.1}")?;
            let (start, bottom) = (self.x(first), self.y(self.range.0));
            write!(
                out,
                "<path class=\"area\" d=\"{path}V{bottom:.1}H{start:.1}Z\"/>"
            )?;
        }
        write!(out, "<path class=\"curve\" d=\"{path}\"/>")?;
        if let (Some((x, y)), Shape::Straight) = (last, self.shape) {
            write!(
                out,
                "<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>"
            )?;
        }
        out.push_str("</g>");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(ticks(0.0, 100.0, 5.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(ticks(-3.0, 4.6, 4.0), [-2.0, 0.0, 2.0, 4.0]);
        assert_eq!(ticks(0.0, 37.0, 6.0), [0.0, 10.0, 20.0, 30.0]);
        assert_eq!(ticks(1.0, 1.0, 5.0), [1.0]);
        assert_eq!(ticks(0.0, f64::NAN, 5.0), [0.0]);
        assert_eq!(number(-0.25), "\u{2212}0.25");
        assert_eq!(number(20.0), "20");
    }

    #[test]
    fn a_plot_of_nothing_or_of_nonsense_is_still_a_plot() {
        for points in [
            vec![],
            vec![(f64::NAN, 1.0), (1.0, f64::INFINITY)],
            vec![(0.0, 0.0)],
        ] {
            let lines = [Line {
                name: "<a>",
                colour: 1,
                points: &points,
            }];
            for shape in [Shape::Steps, Shape::Straight] {
                let plot = Plot {
                    label: "\"x\"",
                    unit: "%",
                    lines: &lines,
                    shape,
                    seconds: f64::NAN,
                    range: (0.0, 0.0),
                    ticks: &[],
                    bound: Some((1.0, "bound")),
                };
                let html = plot.html();
                assert!(html.ends_with("</svg>"));
                assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
            }
        }
    }
}
