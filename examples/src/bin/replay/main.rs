//! An endpoint's log as a story, and what another plan would have made of it.

mod log;

use examples::terminal::Terminal;
use llm_rollout::Plan;
use llm_rollout::incident::Incident;
use llm_rollout::replay::{Fate, Redecided, redecide};
use log::Chapter;
use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "\
replay: an endpoint's log as a story, and what another plan would have made of it

  replay LOG [options]      LOG is a store's SQLite file, or lines of JSON as --dump writes them

  --endpoint NAME  which endpoint of the store (default chat)
  --rollout ID     only this rollout
  --plan NEW.toml  decide again with this plan: would it have caught it sooner?
  --markdown       each rollout's incident record instead of its story
  --html           the same as a page; needs --rollout
  --dump           the log's entries as lines of JSON
  --help           this";

/// What was asked for.
#[derive(Debug, Default)]
struct Args {
    log: PathBuf,
    endpoint: Option<String>,
    rollout: Option<String>,
    plan: Option<PathBuf>,
    form: Form,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Form {
    #[default]
    Story,
    Markdown,
    Html,
    Dump,
    Help,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut args = Args::default();
    let mut log = None;
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--endpoint" => args.endpoint = Some(value()?),
            "--rollout" => args.rollout = Some(value()?),
            "--plan" => args.plan = Some(value()?.into()),
            "--markdown" => args.form = Form::Markdown,
            "--html" => args.form = Form::Html,
            "--dump" => args.form = Form::Dump,
            "--help" | "-h" => args.form = Form::Help,
            option if option.starts_with('-') => {
                return Err(format!("{option:?} is not an option"));
            }
            _ if log.is_some() => return Err(format!("{word:?}: one log is enough")),
            _ => log = Some(PathBuf::from(word)),
        }
    }
    match log {
        Some(log) => args.log = log,
        None if args.form == Form::Help => {}
        None => return Err("which log? Give a store's file, or lines of JSON".to_owned()),
    }
    if args.form == Form::Html && args.rollout.is_none() {
        return Err("--html is one page: say which rollout, with --rollout".to_owned());
    }
    Ok(args)
}

#[tokio::main]
async fn main() -> ExitCode {
    let terminal = Terminal::new(false);
    let told = match parse(std::env::args().skip(1)) {
        Ok(args) if args.form == Form::Help => Ok(USAGE.to_owned()),
        Ok(args) => tell(&args).await,
        Err(wrong) => Err(format!("{wrong}\n\n{USAGE}").into()),
    };
    match told {
        Ok(text) => {
            terminal.result(text.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => complain(&format!("replay: {error}")),
    }
}

#[expect(clippy::print_stderr, reason = "the last word of a program that fails")]
fn complain(text: &str) -> ExitCode {
    eprintln!("{text}");
    ExitCode::FAILURE
}

async fn tell(args: &Args) -> Result<String, Box<dyn Error>> {
    let endpoint = args.endpoint.as_deref().unwrap_or("chat").parse()?;
    let entries = log::read(&args.log, &endpoint).await?;
    if args.form == Form::Dump {
        let lines: Result<Vec<_>, _> = entries.into_iter().map(String::from_utf8).collect();
        return Ok(lines?.join("\n"));
    }
    let mut chapters = log::chapters(&endpoint, &entries)?;
    if let Some(id) = &args.rollout {
        chapters.retain(|c| c.submitted.id().as_str() == id);
    }
    if chapters.is_empty() {
        return Err(format!("the log of endpoint {endpoint} holds no such rollout").into());
    }
    let plan = match &args.plan {
        Some(path) => Some(
            Plan::from_toml(&std::fs::read_to_string(path)?)
                .map_err(|e| format!("{}: {e}", path.display()))?,
        ),
        None => None,
    };
    let mut text = String::new();
    for chapter in &chapters {
        let incident = Incident::new(&chapter.submitted, &chapter.steps);
        match args.form {
            Form::Markdown => text.push_str(&incident.to_markdown()),
            Form::Html => text.push_str(&incident.to_html()),
            _ => story(&mut text, &incident),
        }
        if let Some(plan) = &plan {
            verdict(&mut text, chapter, plan);
        }
    }
    Ok(text)
}

/// A rollout, moment by moment.
fn story(text: &mut String, incident: &Incident) {
    let title = format!(
        "{}: {} → {}",
        incident.rollout,
        incident.baseline.reference(),
        incident.candidate.reference()
    );
    // Writing to a string cannot fail.
    let _ = writeln!(text, "\n{title}\n{}", "─".repeat(title.chars().count()));
    for moment in &incident.timeline {
        let after = moment.at.since(incident.submitted).as_secs_f64();
        let then = moment.to.map(|p| format!(" → {p}")).unwrap_or_default();
        let share = moment.share.map(|s| format!(" ({s})")).unwrap_or_default();
        let _ = writeln!(text, "{after:10.1} s  {}{then}{share}", moment.what);
    }
    let cause = incident.cause.as_ref().map(|c| format!(", because {c}"));
    let _ = writeln!(
        text,
        "{} with {} requests exposed, at most {}{}",
        incident.phase,
        incident.exposure.requests,
        incident.exposure.largest_share,
        cause.unwrap_or_default()
    );
}

/// What the other plan would have done.
fn verdict(text: &mut String, chapter: &Chapter, plan: &Plan) {
    let own = redecide(&chapter.submitted, &chapter.steps, chapter.submitted.plan());
    let new = redecide(&chapter.submitted, &chapter.steps, plan);
    let _ = writeln!(text, "\nDecided again with the other plan:");
    let fate = |name: &str, fate: &Fate| {
        let what = match &fate.back {
            Some((at, cause)) => format!(
                "goes back after {:.1} s, because {cause}",
                at.since(chapter.submitted.state().since).as_secs_f64()
            ),
            None => format!("does not go back; {} at the end of the log", fate.phase),
        };
        format!("  {name}: {what}; {} requests exposed", fate.exposed)
    };
    let _ = writeln!(
        text,
        "{}\n{}",
        fate("then", &new.then),
        fate("now ", &new.now)
    );
    let _ = writeln!(text, "  {}", sooner(&new));
    if let Some((at, had, has)) = new.parted {
        let _ = writeln!(
            text,
            "  from {:.1} s on it would have given {has} and not {had}: what follows was seen under another share",
            at.since(chapter.submitted.state().since).as_secs_f64()
        );
    }
    for what in &new.unjudged {
        let _ = writeln!(text, "  not judged again: {what}");
    }
    if own.now.back != own.then.back {
        let _ = writeln!(
            text,
            "  not exact: the plan of the log, decided again, does not give what happened (noise that was learnt before is not in the log)"
        );
    }
}

fn sooner(new: &Redecided) -> String {
    match (new.sooner(), &new.now.back, &new.then.back) {
        (Some(by), ..) => format!(
            "sooner by {:.1} s, and {} requests",
            by.as_secs_f64(),
            new.then.exposed.saturating_sub(new.now.exposed)
        ),
        (None, Some(_), None) => "it would have gone back where nobody did".to_owned(),
        (None, None, Some(_)) => "it would not have gone back".to_owned(),
        _ => "no sooner".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &str) -> Result<Args, String> {
        parse(words.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_command_line_says_what_is_wrong() {
        assert!(args("").unwrap_err().contains("which log"));
        assert!(args("a b").unwrap_err().contains("one log"));
        assert!(args("a --plna x").unwrap_err().contains("--plna"));
        assert!(args("a --plan").unwrap_err().contains("needs a value"));
        assert!(args("a --html").unwrap_err().contains("--rollout"));
        assert_eq!(args("--help").unwrap().form, Form::Help);
        let all = args("a.db --endpoint desk --rollout r --plan p.toml --markdown").unwrap();
        assert_eq!(all.form, Form::Markdown);
        assert_eq!(all.endpoint.as_deref(), Some("desk"));
    }
}
