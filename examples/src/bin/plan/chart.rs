//! The chart: how probably each gate finds a harm by the end of each stage, as one HTML page that needs nothing else.

use std::fmt::Write as _;

/// How probably a gate has found a harm of each ratio by the end of a stage.
#[derive(Debug, Clone)]
pub(crate) struct Curve {
    pub(crate) gate: String,
    pub(crate) stage: usize,
    /// Ratio and probability.
    pub(crate) points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 46.0;
const BOTTOM: f64 = 34.0;
const TOP: f64 = 14.0;
const COLOURS: [&str; 6] = [
    "#9ecae1", "#4292c6", "#08519c", "#fd8d3c", "#d94801", "#7f2704",
];

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn x(ratio: f64) -> f64 {
    LEFT + (WIDTH - LEFT - 10.0) * ratio.ln() / 10f64.ln()
}

fn y(p: f64) -> f64 {
    TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - p)
}

/// One panel: a gate's curves, a line a stage.
fn panel(gate: &str, curves: &[&Curve]) -> String {
    let mut svg = format!(
        "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" role=\"img\">",
        escape(gate)
    );
    for p in [0.0, 0.5, 0.95, 1.0] {
        let at = y(p);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{:.0} %</text>",
            WIDTH - 10.0,
            LEFT - 6.0,
            at + 4.0,
            100.0 * p
        );
    }
    for ratio in [1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0] {
        let at = x(ratio);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{ratio} x</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 18.0
        );
    }
    for curve in curves {
        let points: Vec<String> = curve
            .points
            .iter()
            .map(|(ratio, p)| format!("{:.1},{:.1}", x(*ratio), y(p.clamp(0.0, 1.0))))
            .collect();
        let colour = COLOURS[curve.stage % COLOURS.len()];
        let _ = write!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"><title>by the end of stage {}</title></polyline>",
            points.join(" "),
            curve.stage
        );
    }
    svg + "</svg></figure>"
}

/// The page.
pub(crate) fn page(curves: &[Curve]) -> String {
    let mut gates: Vec<&str> = curves.iter().map(|c| c.gate.as_str()).collect();
    gates.dedup();
    let stages = curves
        .iter()
        .map(|c| c.stage)
        .max()
        .map_or(0, |last| last + 1);
    let mut legend = String::new();
    for stage in 0..stages {
        let colour = COLOURS[stage % COLOURS.len()];
        let _ = write!(
            legend,
            "<span style=\"color:{colour}\">&#9632;</span> by the end of stage {stage}&ensp;"
        );
    }
    let panels: String = gates
        .iter()
        .map(|gate| {
            let of: Vec<&Curve> = curves.iter().filter(|c| c.gate == *gate).collect();
            panel(gate, &of)
        })
        .collect();
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>What the plan finds</title>\
         <style>body{{font:14px sans-serif;margin:2em;max-width:72em}}figure{{display:inline-block;margin:1em 1em 0 0}}\
         figcaption{{font-weight:bold}}text{{font-size:11px}}.grid{{stroke:#ddd}}</style>\
         <h1>What the plan finds</h1><p>Probability that a gate has sent the candidate back, by how many times as often \
         as on the baseline its requests are bad.</p><p>{legend}</p>{panels}</html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_self_contained_and_escaped() {
        let curve = Curve {
            gate: "a<b".to_owned(),
            stage: 0,
            points: vec![(1.0, 0.05), (10.0, 1.0)],
        };
        let page = page(&[curve]);
        assert!(page.contains("a&lt;b") && !page.contains("a<b"));
        assert!(page.contains("polyline") && !page.contains("http"));
    }
}
