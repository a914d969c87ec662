//! The race: peers' decision rules and ours on the same simulated traffic.

use benches::Error;
use benches::race::{Lives, chart, json, markdown, race, replace, text};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "\
Peers' decision rules and ours on the same simulated traffic: 77 hours at 1, 5, 25 and 50 %, 20 requests a second, a look each minute.

Usage: race [--quick] [--json] [--chart FILE] [--update FILE]

  --quick        fewer lives and wider intervals, in less than a minute on two idle cores
  --json         one JSON object instead of tables
  --chart FILE   also writes charts, as a page that needs nothing else
  --update FILE  also replaces the race's block in a Markdown document (COMPARE.md)
  --help         this text

Each peer's rule runs as documented and as tuned: with the settings, of all that are tried, that find a middling regression after fewest
requests among those that roll back at most 5 % of harmless candidates while nothing drifts. Seeds are fixed: a run repeats.
";

#[derive(Debug, Default)]
struct Arguments {
    quick: bool,
    json: bool,
    chart: Option<PathBuf>,
    update: Option<PathBuf>,
    help: bool,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut parsed = Arguments::default();
    while let Some(argument) = arguments.next() {
        let mut file = || {
            arguments
                .next()
                .map(PathBuf::from)
                .ok_or(format!("{argument} needs a file"))
        };
        match argument.as_str() {
            "--quick" => parsed.quick = true,
            "--json" => parsed.json = true,
            "--chart" => parsed.chart = Some(file()?),
            "--update" => parsed.update = Some(file()?),
            "--help" | "-h" => parsed.help = true,
            other => return Err(format!("unknown argument {other:?}; see --help")),
        }
    }
    Ok(parsed)
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    let document = match &arguments.update {
        Some(path) => Some((path, std::fs::read_to_string(path)?)),
        None => None,
    };
    let found = race(if arguments.quick {
        Lives::QUICK
    } else {
        Lives::FULL
    });
    if arguments.json {
        writeln!(io::stdout(), "{}", json(&found))?;
    } else {
        write!(io::stdout(), "{}", text(&found))?;
    }
    if let Some(path) = &arguments.chart {
        std::fs::write(path, chart(&found))?;
    }
    if let Some((path, document)) = document {
        let replaced = replace(&document, &markdown(&found))
            .ok_or_else(|| format!("{} has no block of the race", path.display()))?;
        std::fs::write(path, replaced)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let complain = |code: u8, error: &dyn std::fmt::Display| {
        // There is nobody left to tell when this fails.
        let _ = writeln!(io::stderr(), "race: {error}");
        ExitCode::from(code)
    };
    match parse(std::env::args().skip(1)) {
        Err(error) => complain(2, &error),
        Ok(arguments) if arguments.help => {
            let _ = io::stdout().write_all(USAGE.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(arguments) => match run(&arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(1, &error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read() {
        let parsed = |text: &str| parse(text.split_whitespace().map(str::to_owned));
        let all = parsed("--quick --json --chart a.html --update b.md").unwrap();
        assert!(all.quick && all.json && !all.help);
        assert_eq!(all.chart, Some(PathBuf::from("a.html")));
        assert_eq!(all.update, Some(PathBuf::from("b.md")));
        assert!(parsed("--help").unwrap().help);
        assert!(parsed("--chart").is_err());
        assert!(parsed("--fast").is_err());
    }
}
