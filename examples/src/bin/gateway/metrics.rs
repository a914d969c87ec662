//! What dashboards read, in the text format of Prometheus. No key, user or content is in it.

use llm_serve_adapters::DataPlane;
use llm_serve_adapters::host::Result;
use llm_serve_adapters::recorder::{OutcomeClass, Row};
use llm_serve_adapters::shadow::Shadow;
use std::fmt::Write as _;
use std::time::Duration;

/// One page. All lines of a family stand together, under its type.
#[derive(Debug, Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let labels = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{labels}}}")
        };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }
}

/// A quantile of what a row has measured.
type Of = fn(&Row, f64) -> Option<Duration>;

fn labels(row: &Row) -> String {
    let version = row
        .version()
        .version()
        .map_or("unknown", |version| version.reference());
    format!(
        "version=\"{version}\",role=\"{}\",epoch=\"{}\",randomised=\"{}\"",
        row.role(),
        row.epoch(),
        row.randomised()
    )
}

/// # Errors
/// A recording thread was interrupted in the middle of a write: read again.
pub(crate) fn page(plane: &DataPlane, shadow: &Shadow) -> Result<String> {
    let snapshot = plane.recorder.snapshot()?;
    let mut page = Page::default();
    let counter = |page: &mut Page, name: &str, help: &str, of: fn(&Row) -> u64| {
        page.family(name, "counter", help);
        for row in &snapshot.rows {
            page.line(name, &labels(row), of(row));
        }
    };
    counter(
        &mut page,
        "llm_requests_assigned_total",
        "Requests by the version they were assigned to.",
        Row::assigned,
    );
    counter(
        &mut page,
        "llm_output_tokens_total",
        "Output tokens of requests that have ended.",
        Row::tokens,
    );
    let name = "llm_requests_total";
    page.family(
        name,
        "counter",
        "Requests that have ended, by how, on the version they were assigned to.",
    );
    for row in &snapshot.rows {
        for class in OutcomeClass::ALL {
            let labels = format!("{},outcome=\"{class:?}\"", labels(row));
            page.line(name, &labels, row.ended(class));
        }
    }
    let times: [(&str, &str, Of); 3] = [
        (
            "llm_time_to_first_token_seconds",
            "Until the first token, to 1.6 %.",
            Row::first_token,
        ),
        (
            "llm_time_per_output_token_seconds",
            "Per output token after the first.",
            Row::per_token,
        ),
        (
            "llm_request_duration_seconds",
            "From start to end, to 1.6 %.",
            Row::duration,
        ),
    ];
    for (name, help, of) in times {
        page.family(name, "gauge", help);
        for row in &snapshot.rows {
            for quantile in [0.5, 0.99] {
                if let Some(value) = of(row, quantile) {
                    let labels = format!("{},quantile=\"{quantile}\"", labels(row));
                    page.line(name, &labels, value.as_secs_f64());
                }
            }
        }
    }
    let split = plane.router.state().split;
    let name = "llm_requests_in_flight";
    page.family(name, "gauge", "Requests that are running on a version.");
    for version in split.candidate.iter().chain([&split.baseline]) {
        let labels = format!("version=\"{}\"", version.reference());
        page.line(name, &labels, plane.recorder.in_flight(version));
    }
    let realised = snapshot.realised(split.epoch);
    let name = "llm_candidate_share";
    page.family(
        name,
        "gauge",
        "The candidate's part, 0 to 1: as ordered, of requests, and of output tokens.",
    );
    page.line(name, "of=\"ordered\"", split.share.percent() / 100.0);
    for (of, share) in [
        ("requests", realised.request_share()),
        ("tokens", realised.token_share()),
    ] {
        if let Some(share) = share {
            page.line(name, &format!("of=\"{of}\""), share);
        }
    }
    let name = "llm_keyless_requests_total";
    page.family(
        name,
        "counter",
        "Requests without a session, assigned one by one.",
    );
    page.line(name, "", plane.router.keyless());
    let name = "llm_flips_total";
    page.family(name, "counter", "Requests of sessions that may have changed to the candidate in the middle of a conversation.");
    page.line(name, "", plane.flips());
    let mirrored = shadow.counts();
    let name = "llm_mirrored_total";
    page.family(
        name,
        "counter",
        "Requests that were offered to be mirrored, by what became of them.",
    );
    let skipped = mirrored.unsafe_ + mirrored.full + mirrored.spent;
    for (became, n) in [
        ("pairs", mirrored.pairs),
        ("skipped", skipped),
        ("failed", mirrored.failed + mirrored.late),
        ("unpaired", mirrored.single + mirrored.untold),
    ] {
        page.line(name, &format!("became=\"{became}\""), n);
    }
    Ok(page.0)
}
