//! Prints every measured claim: its value, its limit, and whether it holds.

use benches::figure::table;
use benches::{Error, GROUPS, Scale, select};
use std::io::{self, Write as _};
use std::process::ExitCode;

const USAGE: &str = "\
Every measured claim, as a row: group, name, value, unit, limit, and whether it holds.

Usage: report [--only GROUP]... [--json] [--full]

  --only GROUP  only this group; may be given more than once
  --json        one JSON object a line with the keys group, name, value, unit, limit and pass
  --full        the large trees too (200,000 files, 2 GiB), which takes minutes
  --help        this text

Claims are ratios to a floor or to a peer taken in the same run. Rows without a limit are for information: in JSON their
limit is null and pass is true. What cannot be measured on this machine has the value null and no limit, and its name
says why. Group verify compares with model-signing if it is installed: set MODEL_SIGNING_PYTHON to the Python that has it,
or have model_signing on the path. In JSON a limit is the number alone; the table shows its direction.
The exit code is 0 whatever holds; 1 if a group could not be measured, 2 for a wrong command line.

Groups:
";

struct Arguments {
    only: Vec<String>,
    json: bool,
    full: bool,
    help: bool,
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut parsed = Arguments {
        only: Vec::new(),
        json: false,
        full: false,
        help: false,
    };
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--only" => parsed
                .only
                .push(arguments.next().ok_or("--only needs a group")?),
            "--json" => parsed.json = true,
            "--full" => parsed.full = true,
            "--help" | "-h" => parsed.help = true,
            other => match other.strip_prefix("--only=") {
                Some(group) => parsed.only.push(group.to_owned()),
                None => return Err(format!("unknown argument {other:?}; see --help")),
            },
        }
    }
    Ok(parsed)
}

fn usage() -> String {
    let line = |group: &benches::Group| format!("  {:<12}  {}\n", group.name, group.about);
    USAGE.to_owned() + &GROUPS.iter().map(line).collect::<String>()
}

fn run(arguments: &Arguments, groups: &[benches::Group]) -> Result<(), Error> {
    let mut figures = Vec::new();
    for group in groups {
        writeln!(io::stderr(), "measuring {}: {}", group.name, group.about)?;
        let found =
            (group.run)(Scale::new(arguments.full)).map_err(|e| format!("{}: {e}", group.name))?;
        if arguments.json {
            for figure in &found {
                writeln!(io::stdout(), "{}", figure.json())?;
            }
        }
        figures.extend(found);
    }
    if !arguments.json {
        let limited = figures.iter().filter(|f| f.limit.is_some());
        let missed = limited.clone().filter(|f| !f.pass()).count();
        write!(
            io::stdout(),
            "{}\n{} of {} limits hold\n",
            table(&figures),
            limited.clone().count() - missed,
            limited.count()
        )?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let complain = |code: u8, error: &dyn std::fmt::Display| {
        // There is nobody left to tell when this fails.
        let _ = writeln!(io::stderr(), "report: {error}");
        ExitCode::from(code)
    };
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => return complain(2, &error),
    };
    if arguments.help {
        let _ = io::stdout().write_all(usage().as_bytes());
        return ExitCode::SUCCESS;
    }
    match select(&arguments.only) {
        Err(error) => complain(2, &error),
        Ok(groups) => match run(&arguments, &groups) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(1, &error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Arguments, String> {
        parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn arguments_are_read() {
        let arguments = parsed("--only routing --json --only=verify").unwrap();
        assert_eq!(arguments.only, ["routing", "verify"]);
        assert!(arguments.json && !arguments.full && !arguments.help);
        assert!(parsed("--help").unwrap().help);
        assert!(parsed("--only").is_err());
        assert!(parsed("--fast").is_err());
    }

    #[test]
    fn the_usage_names_every_group() {
        assert!(GROUPS.iter().all(|group| usage().contains(group.name)));
    }
}
