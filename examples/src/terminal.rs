//! What a person sees of an example: progress bars, a live line, sections. Silent under `--json`.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};

/// Where the story is told.
#[derive(Debug, Clone, Copy)]
pub struct Terminal {
    silent: bool,
    live: bool,
}

impl Terminal {
    /// A terminal; a silent one shows only results.
    pub fn new(silent: bool) -> Self {
        Self {
            silent,
            live: !silent && std::io::stdout().is_terminal(),
        }
    }

    /// One or more lines that stay.
    pub fn say(self, text: &str) {
        if !self.silent {
            put(&format!("{}{text}\n", self.clear()));
        }
    }

    /// The result itself: shown by a silent terminal too.
    pub fn result(self, text: &str) {
        put(&format!("{}{text}\n", self.clear()));
    }

    /// A heading.
    pub fn section(self, text: &str) {
        self.say(&format!("\n{text}\n{}", "─".repeat(text.chars().count())));
    }

    /// A line that the next one replaces, on a terminal; elsewhere it is left out.
    pub fn now(self, text: &str) {
        if self.live {
            put(&format!("{}{text}", self.clear()));
        }
    }

    /// A progress bar.
    pub fn bar(self, label: &str) -> Bar {
        Bar {
            terminal: self,
            label: label.to_owned(),
            shown: AtomicU64::new(u64::MAX),
        }
    }

    fn clear(self) -> &'static str {
        if self.live { "\r\x1b[2K" } else { "" }
    }
}

fn put(text: &str) {
    let mut out = std::io::stdout().lock();
    // A reader that has gone away must not end the rollouts.
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

/// A progress bar; several threads may show it.
#[derive(Debug)]
pub struct Bar {
    terminal: Terminal,
    label: String,
    shown: AtomicU64,
}

impl Bar {
    /// Shows how much is done; most calls show nothing new and cost nothing.
    pub fn show(&self, done: u64, total: u64) {
        let percent = (done * 100).checked_div(total).unwrap_or(100).min(100);
        if self.shown.swap(percent, Ordering::Relaxed) != percent {
            self.terminal.now(&self.line(percent));
        }
    }

    /// Leaves the full bar standing.
    pub fn done(&self) {
        self.terminal.say(&self.line(100));
    }

    fn line(&self, percent: u64) -> String {
        let full = usize::try_from(percent / 4).unwrap_or(0);
        format!(
            "  {:<34} {}{} {percent:>3} %",
            self.label,
            "█".repeat(full),
            "░".repeat(25 - full)
        )
    }
}
