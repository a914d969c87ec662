//! A plan from the file of another tool: `import argo|flagger|sagemaker FILE`. The plan goes to standard output as TOML, what does not
//! carry over before it as comments.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

use llm_serve_adapters::import::{ImportError, Imported, argo, flagger, sagemaker};
use std::error::Error;
use std::process::ExitCode;

const USAGE: &str =
    "usage: import argo|flagger|sagemaker FILE   (YAML or JSON; `-` reads standard input)";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("import: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [tool, file] = arguments.as_slice() else {
        return Err(USAGE.into());
    };
    let import: fn(&str) -> Result<Imported, ImportError> = match tool.as_str() {
        "argo" => argo,
        "flagger" => flagger,
        "sagemaker" => sagemaker,
        _ => return Err(USAGE.into()),
    };
    let text = if file == "-" {
        std::io::read_to_string(std::io::stdin())?
    } else {
        std::fs::read_to_string(file).map_err(|e| format!("{file}: {e}"))?
    };
    let imported = import(&text).map_err(|e| format!("{file}: {e}"))?;
    for note in &imported.notes {
        println!("# {note}");
    }
    print!("{}", toml::to_string(imported.plan.spec())?);
    Ok(())
}
