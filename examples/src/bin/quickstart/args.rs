//! The command line.

use std::path::PathBuf;

pub(crate) const USAGE: &str = "\
quickstart: three rollouts of a real small language model, over HTTP, in one process

  --seconds N    about how long the live part takes (default 75, at least 10)
  --report PATH  where the HTML report goes (default: report.html in the state directory)
  --dir PATH     the state directory (default target/quickstart)
  --resume       go on from the log in the state directory, after a kill
  --seed N       seed of the load (default 1)
  --aa           one rollout of the baseline's own files under another version
  --json         only the summary, as one JSON object
  --help         this";

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of its own"
)]
pub(crate) struct Args {
    pub(crate) seconds: u32,
    pub(crate) report: Option<PathBuf>,
    pub(crate) dir: PathBuf,
    pub(crate) resume: bool,
    pub(crate) seed: u64,
    pub(crate) aa: bool,
    pub(crate) json: bool,
    pub(crate) help: bool,
}

impl Args {
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self {
            seconds: 75,
            report: None,
            dir: PathBuf::from("target/quickstart"),
            resume: false,
            seed: 1,
            aa: false,
            json: false,
            help: false,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--seconds" => args.seconds = number(&word, &value()?)?,
                "--seed" => args.seed = number(&word, &value()?)?,
                "--report" => args.report = Some(value()?.into()),
                "--dir" => args.dir = value()?.into(),
                "--resume" => args.resume = true,
                "--aa" => args.aa = true,
                "--json" => args.json = true,
                "--help" | "-h" => args.help = true,
                other => return Err(format!("{other:?} is not an option")),
            }
        }
        if args.seconds < 10 {
            return Err(format!(
                "--seconds {} is too short to see anything: give at least 10",
                args.seconds
            ));
        }
        Ok(args)
    }
}

fn number<T: std::str::FromStr>(word: &str, value: &str) -> Result<T, String> {
    value
        .parse()
        .map_err(|_| format!("{word} needs a whole number, not {value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Args, String> {
        Args::parse(words.iter().map(ToString::to_string))
    }

    #[test]
    fn options_are_read_and_mistakes_named() {
        let args = parse(&["--seconds", "30", "--resume", "--report", "x.html"]).unwrap();
        assert!(args.resume && args.seconds == 30 && args.report == Some("x.html".into()));
        assert!(parse(&["--secs"]).unwrap_err().contains("--secs"));
        assert!(parse(&["--seconds"]).unwrap_err().contains("needs a value"));
        assert!(parse(&["--seconds", "soon"]).unwrap_err().contains("soon"));
        assert!(
            parse(&["--seconds", "3"])
                .unwrap_err()
                .contains("at least 10")
        );
    }
}
