//! The command line: one table says which commands there are and what they take.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A command.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    /// What stands without a dash; in brackets where it may be left out.
    pub(crate) positional: &'static [&'static str],
    options: &'static [Opt],
    what: &'static str,
}

/// An option of a command.
#[derive(Debug, Clone, Copy)]
struct Opt {
    name: &'static str,
    /// The word for its value; empty where it has none.
    value: &'static str,
    what: &'static str,
    /// Whether it may be given more than once.
    many: bool,
}

const fn option(name: &'static str, value: &'static str, what: &'static str) -> Opt {
    Opt {
        name,
        value,
        what,
        many: false,
    }
}

const fn many(name: &'static str, value: &'static str, what: &'static str) -> Opt {
    Opt {
        many: true,
        ..option(name, value, what)
    }
}

const REGISTRY: Opt = option("--registry", "FOLDER", "the registry");
const BY: Opt = option("--by", "NAME", "who acts (default: the user's name)");
const WHY: Opt = option("--why", "TEXT", "why; kept in the log");
const THREADS: Opt = option(
    "--threads",
    "N",
    "threads to hash on (default: one per core)",
);
const MANIFEST: Opt = option(
    "--manifest",
    "FILE",
    "the manifest (default: manifest.json in the folder)",
);
const LINKS: Opt = option(
    "--links",
    "",
    "read symbolic links that stay inside the folder",
);
const PICKLES: Opt = option(
    "--allow-pickles",
    "",
    "accept files that run code when they are loaded",
);
const SECRETS: Opt = option("--allow-secrets", "", "accept what looks like a secret");
const SIGNATURE: Opt = option(
    "--signature",
    "FILE",
    "the signature (default: beside the folder, with .sig)",
);

const HOLDER: Opt = option(
    "--holder",
    "NAME",
    "who holds it, such as a rollout (default: who acts)",
);

/// Every command.
pub(crate) const COMMANDS: &[Spec] = &[
    Spec {
        name: "init",
        positional: &["DIR"],
        options: &[
            option(
                "--name",
                "NAME",
                "the bundle's name (default: the folder's)",
            ),
            option("--version", "VERSION", "the version (default 0.1.0)"),
            option("--licence", "SPDX", "the licence of the whole"),
            option("--base-model", "NAME", "the model it is made from"),
        ],
        what: "start a bundle folder: its layout, metadata.json, a prompt and sampling parameters",
    },
    Spec {
        name: "build",
        positional: &["DIR"],
        options: &[
            option(
                "--out",
                "FILE",
                "where the manifest goes (default: manifest.json in the folder)",
            ),
            option(
                "--chunks",
                "",
                "record digests of 64 MiB chunks, so that a huge file verifies on all cores",
            ),
            option("--no-tensors", "", "record no digests of single tensors"),
            PICKLES,
            SECRETS,
            LINKS,
            THREADS,
        ],
        what: "hash a bundle folder and write its manifest",
    },
    Spec {
        name: "verify",
        positional: &["DIR"],
        options: &[
            MANIFEST,
            option(
                "--id",
                "REFERENCE",
                "what it must be: a version id or NAME/vX.Y.Z-HASH; with --registry also NAME@ALIAS",
            ),
            REGISTRY,
            option(
                "--allow-extra",
                "",
                "tolerate files that the manifest does not list",
            ),
            LINKS,
            THREADS,
        ],
        what: "read every byte of a bundle folder and compare it with its manifest",
    },
    Spec {
        name: "show",
        positional: &["WHAT"],
        options: &[REGISTRY],
        what: "what a bundle is: its parts, contract, licences and lineage",
    },
    Spec {
        name: "diff",
        positional: &["OLD", "NEW"],
        options: &[
            REGISTRY,
            option(
                "--check",
                "",
                "fail when the version number moved too little",
            ),
        ],
        what: "what changed, the least bump that this requires, the risk, and whether going back is safe",
    },
    Spec {
        name: "publish",
        positional: &["DIR"],
        options: &[
            REGISTRY,
            option(
                "--small-bump",
                "WHY",
                "why a version number that moved too little is right",
            ),
            option(
                "--previous",
                "REFERENCE",
                "compare with this version (default: the highest below)",
            ),
            BY,
            WHY,
        ],
        what: "put a verified bundle folder into a registry",
    },
    Spec {
        name: "alias",
        positional: &["NAME", "[ALIAS]"],
        options: &[
            REGISTRY,
            option("--to", "REFERENCE", "move it there"),
            option("--clear", "", "let it point nowhere"),
            option(
                "--from",
                "REFERENCE",
                "only if it points there; `nothing` for nowhere (default: where it points now)",
            ),
            option("--history", "", "every move, oldest first"),
            option("--at", "TIME", "where it pointed then (RFC 3339, UTC)"),
            BY,
            WHY,
        ],
        what: "show or move what `production` and the like stand for",
    },
    Spec {
        name: "log",
        positional: &[],
        options: &[
            REGISTRY,
            option(
                "--known",
                "HEAD",
                "a head that was printed before (ENTRIES:DIGEST); the log must contain it",
            ),
        ],
        what: "check the registry's chained log and show it",
    },
    Spec {
        name: "check",
        positional: &[],
        options: &[
            REGISTRY,
            option(
                "--known",
                "HEAD",
                "a head that was printed before (ENTRIES:DIGEST); the log must contain it",
            ),
        ],
        what: "read everything a registry holds: its log, every version's files, their protection",
    },
    Spec {
        name: "pin",
        positional: &["REFERENCE"],
        options: &[REGISTRY, HOLDER, BY, WHY],
        what: "hold a version against garbage collection, as a running rollout does",
    },
    Spec {
        name: "unpin",
        positional: &["REFERENCE"],
        options: &[REGISTRY, HOLDER, BY, WHY],
        what: "let go of a version that `pin` holds",
    },
    Spec {
        name: "tag",
        positional: &["REFERENCE", "KEY", "[VALUE]"],
        options: &[REGISTRY, BY, WHY],
        what: "set a label of a version; without a value remove it",
    },
    Spec {
        name: "revoke",
        positional: &["REFERENCE"],
        options: &[REGISTRY, BY, WHY],
        what: "declare that a version must never serve again; say why",
    },
    Spec {
        name: "floor",
        positional: &["NAME", "[VERSION]"],
        options: &[REGISTRY, BY, WHY],
        what: "show or raise the lowest version that may be given an alias",
    },
    Spec {
        name: "evaluate",
        positional: &["REFERENCE", "[FILE]"],
        options: &[
            REGISTRY,
            option("--kind", "WORD", "what it is (default: evaluation)"),
            BY,
            WHY,
        ],
        what: "keep a file of results about a version, or list what is kept",
    },
    Spec {
        name: "lineage",
        positional: &["DIR"],
        options: &[
            option(
                "--code",
                "FOLDER",
                "a git checkout: its commit, and whether it differs",
            ),
            option(
                "--config",
                "FILE",
                "the resolved configuration of the run (Hydra: .hydra/config.yaml)",
            ),
            option(
                "--overrides",
                "FILE",
                "its overrides (Hydra: .hydra/overrides.yaml)",
            ),
            option("--packages", "FILE", "what `pip freeze` wrote"),
            option(
                "--base-model",
                "NAME[@REVISION]",
                "the model it is made from",
            ),
            many("--parent", "ID", "a version it is made from"),
            many(
                "--dataset",
                "NAME@VERSION[=PATH]",
                "a data set; with a path, the digest by which DVC knows it",
            ),
            many("--seed", "NAME=NUMBER", "a seed"),
            many("--parameter", "NAME=VALUE", "a hyper-parameter"),
        ],
        what: "show where a bundle comes from, or state it in its metadata.json",
    },
    Spec {
        name: "trace",
        positional: &["REFERENCE"],
        options: &[REGISTRY],
        what: "from a version back over its parents to base models, data sets and code",
    },
    Spec {
        name: "fetch",
        positional: &["REFERENCE", "DIR"],
        options: &[REGISTRY],
        what: "lay a version of a registry out as a new folder, verified",
    },
    Spec {
        name: "gc",
        positional: &[],
        options: &[
            REGISTRY,
            option("--dry-run", "", "only report"),
            option(
                "--keep-latest",
                "N",
                "remove versions that nothing holds, but for the N highest of each bundle",
            ),
            option(
                "--keep-previous",
                "N",
                "earlier targets of each alias that are held (default 1)",
            ),
            BY,
            WHY,
        ],
        what: "remove what nothing holds",
    },
    Spec {
        name: "sign",
        positional: &["DIR"],
        options: &[
            option(
                "--key",
                "FILE",
                "a PEM private key on P-256 or P-384 (PKCS#8)",
            ),
            SIGNATURE,
        ],
        what: "sign every file of a folder (OpenSSF Model Signing)",
    },
    Spec {
        name: "verify-signature",
        positional: &["DIR"],
        options: &[
            option("--key", "FILE", "the signer's PEM public key"),
            SIGNATURE,
        ],
        what: "check that a folder holds what its signer signed, and nothing else",
    },
    Spec {
        name: "public-key",
        positional: &["KEY"],
        options: &[],
        what: "the public half of a PEM private key",
    },
    Spec {
        name: "import-hf",
        positional: &["SNAPSHOT", "DIR"],
        options: &[
            option(
                "--name",
                "NAME",
                "the bundle's name (default: the folder's)",
            ),
            option("--version", "VERSION", "the version (default 0.1.0)"),
            option("--licence", "SPDX", "the licence of the whole"),
            option(
                "--part",
                "",
                "the download may lack files of the repository",
            ),
            PICKLES,
            SECRETS,
        ],
        what: "verify a Hugging Face snapshot or download folder offline and make a bundle of it",
    },
    Spec {
        name: "import-wandb",
        positional: &["FOLDER", "DIR"],
        options: &[
            option(
                "--manifest",
                "FILE",
                "the artifact's manifest, to check the files against",
            ),
            option("--cache", "", "FOLDER is the client's cache of artifacts"),
            option(
                "--run",
                "",
                "FOLDER is a run, such as wandb/run-...; its saved files are taken",
            ),
            option(
                "--links",
                "FOLDER",
                "where the files of a run may be links into",
            ),
            option(
                "--name",
                "NAME",
                "the bundle's name (default: the folder's)",
            ),
            option("--version", "VERSION", "the version (default 0.1.0)"),
            option("--licence", "SPDX", "the licence of the whole"),
            PICKLES,
            SECRETS,
        ],
        what: "verify an artifact of Weights & Biases offline and make a bundle of it",
    },
    Spec {
        name: "export-oci",
        positional: &["DIR", "LAYOUT"],
        options: &[option("--tag", "TAG", "its tag (default: VERSION-HASH)")],
        what: "write a bundle into an OCI image layout (CNCF ModelPack)",
    },
    Spec {
        name: "import-oci",
        positional: &["LAYOUT", "DIR"],
        options: &[option("--tag", "TAG", "its tag (default: the only one)")],
        what: "unpack a bundle from an OCI image layout into a new folder, verified",
    },
    Spec {
        name: "sbom",
        positional: &["WHAT"],
        options: &[
            REGISTRY,
            option(
                "--task",
                "TEXT",
                "what the model is for (default: text-generation)",
            ),
            option(
                "--out",
                "FILE",
                "where it goes (default: standard output; under --json the field `bom`)",
            ),
        ],
        what: "a bill of materials: CycloneDX 1.6 for machine learning",
    },
];

/// What the exit codes mean.
const EXITS: &str = "\
exit codes:
  0  done; the check holds
  1  the check failed: a mismatch, an unfit folder, a bump that is too small, a bad signature, an altered log
  2  the command line is wrong, or a key, name, reference or tag on it
  3  something cannot be read or written
  4  the state does not allow it: unknown or taken version, an alias that points elsewhere, revoked, exists already";

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) command: &'static Spec,
    pub(crate) positional: Vec<String>,
    values: BTreeMap<&'static str, Vec<String>>,
    pub(crate) json: bool,
    pub(crate) help: bool,
}

/// The general help.
pub(crate) fn usage() -> String {
    let mut text =
        "bundle: build, verify, compare, publish and exchange versions of language models\n\n"
            .to_owned();
    for spec in COMMANDS {
        let words = [&[spec.name], spec.positional].concat().join(" ");
        let _ = writeln!(text, "  {words:<24} {}", spec.what);
    }
    let _ = write!(
        text,
        "\n`bundle COMMAND --help` lists the options of a command; every command takes --json (one object on standard\n\
         output). WHAT, OLD and NEW are bundle folders, manifest files or, with --registry, NAME/vX.Y.Z-HASH or NAME@ALIAS.\n\n{EXITS}"
    );
    text
}

impl Spec {
    /// The help of one command.
    pub(crate) fn help(&self) -> String {
        let words = [&[self.name], self.positional].concat().join(" ");
        let mut text = format!("bundle {words}\n{}\n\n", self.what);
        for opt in self.options {
            let words = format!("{} {}", opt.name, opt.value);
            let _ = writeln!(text, "  {words:<24} {}", opt.what);
        }
        let _ = write!(
            text,
            "  {:<24} one object on standard output\n\n{EXITS}",
            "--json"
        );
        text
    }
}

impl Request {
    /// Reads the words after the program's name; the first is the command.
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let name = words.next().ok_or("give a command; --help lists them")?;
        let command = COMMANDS
            .iter()
            .find(|c| c.name == name)
            .ok_or_else(|| format!("{name:?} is not a command; --help lists them"))?;
        let mut request = Self {
            command,
            positional: Vec::new(),
            values: BTreeMap::new(),
            json: false,
            help: false,
        };
        let mut only_positional = false;
        while let Some(word) = words.next() {
            if only_positional || !word.starts_with('-') || word == "-" {
                request.positional.push(word);
                continue;
            }
            match word.as_str() {
                "--" => only_positional = true,
                "--json" => request.json = true,
                "--help" | "-h" => request.help = true,
                _ => {
                    let opt = command
                        .options
                        .iter()
                        .find(|o| o.name == word)
                        .ok_or_else(|| format!("{word:?} is not an option of `{name}`"))?;
                    let value = if opt.value.is_empty() {
                        String::new()
                    } else {
                        let missing = || format!("{word} needs a value ({})", opt.value);
                        words.next().ok_or_else(missing)?
                    };
                    let values = request.values.entry(opt.name).or_default();
                    if !values.is_empty() && !opt.many {
                        return Err(format!("{word} is given twice"));
                    }
                    values.push(value);
                }
            }
        }
        if request.help {
            return Ok(request);
        }
        let most = command.positional.len();
        let least = command.positional.iter().filter(|p| !p.starts_with('['));
        let given = request.positional.len();
        if given < least.count() || given > most {
            let expected = command.positional.join(" ");
            return Err(format!(
                "`{name}` takes {}, {given} word(s) were given",
                if most == 0 { "no words" } else { &expected }
            ));
        }
        Ok(request)
    }

    /// The positional word number `at`; empty where it was left out.
    pub(crate) fn word(&self, at: usize) -> &str {
        self.positional.get(at).map_or("", String::as_str)
    }

    /// The value of an option.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.values(name).next()
    }

    /// The values of an option that may be given more than once.
    pub(crate) fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.values
            .get(name)
            .into_iter()
            .flatten()
            .map(String::as_str)
    }

    /// Whether an option without a value is there.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Request, String> {
        Request::parse(words.split_whitespace().map(ToOwned::to_owned))
    }

    #[test]
    fn words_are_read_and_mistakes_named() {
        let request = parse("diff a --registry r b --check --json").unwrap();
        assert_eq!((request.word(0), request.word(1)), ("a", "b"));
        assert_eq!(request.value("--registry"), Some("r"));
        assert!(request.flag("--check") && request.json && !request.help);
        assert_eq!(parse("build -- --odd").unwrap().word(0), "--odd");
        assert!(parse("build --help").unwrap().help);
        let request = parse("lineage a --seed torch=1 --seed numpy=2").unwrap();
        assert!(request.values("--seed").eq(["torch=1", "numpy=2"]));
        for (words, said) in [
            ("", "give a command"),
            ("bild x", "bild"),
            ("build", "takes DIR"),
            ("build a b", "2 word(s)"),
            ("log x", "no words"),
            ("build a --fast", "--fast"),
            ("build a --out", "needs a value (FILE)"),
            ("build a --out x --out y", "twice"),
        ] {
            let error = parse(words).unwrap_err();
            assert!(error.contains(said), "{words}: {error}");
        }
    }

    #[test]
    fn the_help_names_everything() {
        let general = usage();
        for spec in COMMANDS {
            assert!(general.contains(spec.name) && general.contains("exit codes"));
            let help = spec.help();
            for opt in spec.options {
                assert!(help.contains(opt.name), "{}", opt.name);
            }
        }
    }
}
