//! A log from where it is kept, and its rollouts.

use llm_rollout::{EndpointId, Rollout, Seq, Step};
use llm_serve_adapters::host::StateStore as _;
use llm_serve_adapters::journal::{Entry, Event, Ledger};
use llm_serve_adapters::store::SqliteStore;
use std::error::Error;
use std::io::Read as _;
use std::path::Path;

/// One rollout of a log.
#[derive(Debug)]
pub(crate) struct Chapter {
    /// As submitted.
    pub(crate) submitted: Rollout,
    /// Its steps.
    pub(crate) steps: Vec<Step>,
}

/// Every entry of an endpoint's log, as bytes, from a store's SQLite file or from lines of JSON.
pub(crate) async fn read(
    path: &Path,
    endpoint: &EndpointId,
) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let named = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let mut head = [0; 16];
    let mut file = std::fs::File::open(path).map_err(|e| named(&e))?;
    let is_store = file.read_exact(&mut head).is_ok() && head.starts_with(b"SQLite format 3");
    drop(file);
    if !is_store {
        let text = std::fs::read_to_string(path).map_err(|e| named(&e))?;
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        return Ok(lines.map(|line| line.as_bytes().to_vec()).collect());
    }
    let store = SqliteStore::open(path)?;
    let (mut entries, mut from) = (Vec::new(), Seq::default());
    loop {
        let page = store.read(endpoint, from).await?;
        for (seq, bytes) in page.entries {
            entries.push(bytes);
            from = seq.next();
        }
        if !page.more {
            return Ok(entries);
        }
    }
}

/// The rollouts that the entries tell of, in order. Every entry is checked as a controller checks it when it starts.
pub(crate) fn chapters(
    endpoint: &EndpointId,
    entries: &[Vec<u8>],
) -> Result<Vec<Chapter>, Box<dyn Error>> {
    let (mut chapters, mut ledger) = (Vec::<Chapter>::new(), Ledger::default());
    for bytes in entries {
        let seq = ledger.next;
        let entry = Entry::decode(endpoint, seq, bytes)?;
        ledger.fold(endpoint, seq, &entry)?;
        match entry.event {
            Event::Submitted { rollout, .. } => chapters.push(Chapter {
                submitted: *rollout,
                steps: Vec::new(),
            }),
            Event::Stepped { step, .. } => chapters
                .last_mut()
                .ok_or_else(|| format!("the log of {endpoint} begins in the middle of a rollout"))?
                .steps
                .push(*step),
            _ => {}
        }
    }
    Ok(chapters)
}
