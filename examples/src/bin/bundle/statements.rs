//! Commands that state something about versions of a registry: `pin`, `unpin`, `tag`, `revoke`, `floor`, `evaluate`.
//! None of them changes a version.

use std::fmt::Write as _;
use std::io::Read as _;

use llm_version_core::Version;
use serde_json::json;

use crate::args::Request;
use crate::failure::{Code, Failure};
use crate::registry::because;
use crate::target::{note, open_registry, parse_name, resolve, time};
use crate::{Done, Outcome};

/// The largest file of results that is kept, in bytes.
const RESULTS_LIMIT: u64 = 64 << 20;

pub(crate) fn hold(request: &Request) -> Done {
    let registry = open_registry(request)?;
    let (id, note) = (resolve(&registry, request.word(0))?, note(request)?);
    let holder = request.value("--holder").unwrap_or(&note.by).to_owned();
    let held = request.command.name == "pin";
    if held {
        registry.pin(&id, &holder, &note)?;
    } else if registry.info(&id)?.pins.contains(&holder) {
        registry.unpin(&id, &holder, &note)?;
    } else {
        let message = format!("{holder} does not hold {}", id.reference());
        return Err(Failure::new(Code::Refused, message));
    }
    let pins = registry.info(&id)?.pins;
    let verb = if held { "held by" } else { "let go by" };
    Ok(Outcome::new(format!("{} {verb} {holder}", id.reference()))
        .with("id", json!(id))
        .with("pins", json!(pins)))
}

pub(crate) fn tag(request: &Request) -> Done {
    let registry = open_registry(request)?;
    let (id, note) = (resolve(&registry, request.word(0))?, note(request)?);
    let key = request.word(1);
    let value = request.positional.get(2).map(String::as_str);
    registry.tag(&id, key, value, &note)?;
    let text = format!("{} {key} = {}", id.reference(), value.unwrap_or("nothing"));
    Ok(Outcome::new(text)
        .with("id", json!(id))
        .with("tags", json!(registry.info(&id)?.tags)))
}

pub(crate) fn revoke(request: &Request) -> Done {
    if request.value("--why").is_none() {
        return Err(Failure::usage(
            "say with --why; whoever meets the version later will ask",
        ));
    }
    let registry = open_registry(request)?;
    let (id, note) = (resolve(&registry, request.word(0))?, note(request)?);
    registry.revoke(&id, &note)?;
    let aliases: Vec<String> = registry
        .aliases(id.name())?
        .into_iter()
        .filter(|(_, to)| *to == id)
        .map(|(alias, _)| alias.to_string())
        .collect();
    let mut text = format!("{} is revoked{}", id.reference(), because(&note.why));
    if !aliases.is_empty() {
        let _ = write!(text, "\nSTILL SERVING as {}: move it", aliases.join(", "));
    }
    Ok(Outcome::new(text)
        .with("id", json!(id))
        .with("aliases", aliases))
}

pub(crate) fn floor(request: &Request) -> Done {
    let registry = open_registry(request)?;
    let name = parse_name(request.word(0))?;
    let before = registry.floor(&name)?;
    if let Some(word) = request.positional.get(1) {
        let floor: Version = word
            .parse()
            .map_err(|error| Failure::usage(format!("{word:?}: {error}")))?;
        if before.is_some_and(|before| floor < before) {
            let message = format!("the floor only rises; it is {}", words(before));
            return Err(Failure::new(Code::Refused, message));
        }
        registry.set_floor(&name, floor, &note(request)?)?;
    }
    let floor = registry.floor(&name)?;
    let text = format!("no {name} below {} may be given an alias", words(floor));
    Ok(Outcome::new(text).with("floor", json!(floor)))
}

fn words(floor: Option<Version>) -> String {
    floor.map_or_else(|| "any version".to_owned(), |floor| floor.to_string())
}

pub(crate) fn evaluate(request: &Request) -> Done {
    let registry = open_registry(request)?;
    let id = resolve(&registry, request.word(0))?;
    if let Some(path) = request.positional.get(1) {
        let io = |error| Failure::io(path, &error);
        let mut body = Vec::new();
        let file = std::fs::File::open(path).map_err(io)?;
        file.take(RESULTS_LIMIT + 1)
            .read_to_end(&mut body)
            .map_err(io)?;
        let kind = request.value("--kind").unwrap_or("evaluation");
        registry.record(&id, kind, &body, &note(request)?)?;
    }
    let records = registry.records(&id)?;
    let (mut text, mut rows) = (format!("{}\n", id.reference()), Vec::new());
    for record in &records {
        let body = registry.read_record(record)?;
        let state = body.as_ref().map_or_else(
            || "never finished".to_owned(),
            |body| format!("{} bytes", body.len()),
        );
        let _ = writeln!(
            text,
            "{}  {:<12} {}  {state}  by {}{}",
            time(record.note.at),
            record.kind,
            record.body.short(12),
            record.note.by,
            because(&record.note.why)
        );
        let body = body.map(|body| String::from_utf8_lossy(&body).into_owned());
        rows.push(
            json!({"kind": record.kind, "digest": record.body, "note": record.note, "body": body}),
        );
    }
    Ok(Outcome::new(text)
        .with("id", json!(id))
        .with("records", rows))
}
