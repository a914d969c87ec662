//! Bundles on the command line: build, verify, compare, publish, sign and exchange versions.
//!
//! Everything is done by `llm-version-core`; here are only the words, the clock, the acting person, progress bars and exit
//! codes. `bundle --help` lists the commands.

mod args;
mod exchange;
mod failure;
mod folder;
mod lineage;
mod registry;
mod statements;
mod target;

use std::process::ExitCode;

use args::Request;
use examples::terminal::Terminal;
use failure::Failure;
use serde_json::{Map, Value, json};

/// What a command has to say: words for people, fields for programs.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) text: String,
    pub(crate) fields: Map<String, Value>,
}

impl Outcome {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            fields: Map::new(),
        }
    }

    pub(crate) fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(key.to_owned(), value.into());
        self
    }
}

type Done = Result<Outcome, Failure>;

fn main() -> ExitCode {
    let words: Result<Vec<String>, _> = std::env::args_os()
        .skip(1)
        .map(std::ffi::OsString::into_string)
        .collect();
    let plain = Terminal::new(false);
    let words = match words {
        Ok(words) => words,
        Err(odd) => {
            return complain(
                &Failure::usage(format!("{} is not UTF-8", odd.display())),
                false,
            );
        }
    };
    let json = words.iter().any(|w| w == "--json");
    if let Some("--help" | "-h" | "help") = words.first().map(String::as_str) {
        plain.result(&args::usage());
        return ExitCode::SUCCESS;
    }
    let request = match Request::parse(words.into_iter()) {
        Ok(request) => request,
        Err(wrong) => return complain(&Failure::usage(wrong), json),
    };
    if request.help {
        plain.result(&request.command.help());
        return ExitCode::SUCCESS;
    }
    let terminal = Terminal::new(request.json);
    match run(&request, terminal) {
        Ok(outcome) if request.json => {
            let mut fields = outcome.fields;
            fields.insert("ok".to_owned(), Value::Bool(true));
            terminal.result(&Value::Object(fields).to_string());
            ExitCode::SUCCESS
        }
        Ok(outcome) => {
            terminal.result(outcome.text.trim_end());
            ExitCode::SUCCESS
        }
        Err(failure) => complain(&failure, request.json),
    }
}

fn run(request: &Request, terminal: Terminal) -> Done {
    match request.command.name {
        "init" => folder::init(request),
        "build" => folder::build_folder(request, terminal),
        "verify" => folder::verify_folder(request, terminal),
        "show" => folder::show(request, terminal),
        "diff" => folder::compare(request, terminal),
        "publish" => registry::publish(request, terminal),
        "alias" => registry::alias(request),
        "log" => registry::log(request),
        "check" => registry::check(request, terminal),
        "pin" | "unpin" => statements::hold(request),
        "tag" => statements::tag(request),
        "revoke" => statements::revoke(request),
        "floor" => statements::floor(request),
        "evaluate" => statements::evaluate(request),
        "lineage" => lineage::lineage(request),
        "trace" => registry::trace(request),
        "fetch" => registry::fetch(request),
        "gc" => registry::gc(request),
        "sign" => exchange::sign(request),
        "verify-signature" => exchange::verify_signature(request),
        "public-key" => exchange::public_key(request),
        "import-hf" => exchange::import_hf(request, terminal),
        "import-wandb" => exchange::import_wandb(request, terminal),
        "export-oci" => exchange::to_oci(request, terminal),
        "import-oci" => exchange::from_oci(request),
        "sbom" => exchange::bill(request),
        other => Err(Failure::usage(format!("{other:?} is not a command"))),
    }
}

/// Says what went wrong, and ends with its exit code.
fn complain(failure: &Failure, json: bool) -> ExitCode {
    let code = failure.code as u8;
    if json {
        let mut fields = failure.details.clone();
        fields.insert("ok".to_owned(), Value::Bool(false));
        fields.insert("exit".to_owned(), json!(code));
        fields.insert("error".to_owned(), json!(failure.message));
        Terminal::new(true).result(&Value::Object(fields).to_string());
    } else {
        last_word(&format!("bundle: {}", failure.message));
    }
    ExitCode::from(code)
}

#[expect(clippy::print_stderr, reason = "the last word of a program that fails")]
fn last_word(text: &str) {
    eprintln!("{text}");
}
