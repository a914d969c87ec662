//! The command-line tool, driven as people drive it: every command, and everything that must be refused.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

/// The exit codes that `--help` documents.
const DONE: i32 = 0;
const CHECK: i32 = 1;
const USAGE: i32 = 2;
const ENVIRONMENT: i32 = 3;
const REFUSED: i32 = 4;

/// Runs the tool with `--json`; returns the one object it prints, and checks that code and object agree.
fn run(words: &[&str]) -> (i32, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bundle"));
    let output = command.args(words).arg("--json").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    let code = output.status.code().unwrap();
    assert_eq!(value["ok"], code == DONE, "{words:?}: {value}");
    assert!(code == DONE || (value["exit"] == code && value["error"] != ""));
    (code, value)
}

/// Runs what must succeed.
fn done(words: &[&str]) -> Value {
    let (code, value) = run(words);
    assert_eq!(code, DONE, "{words:?}: {value:#}");
    value
}

/// Runs what must fail, with this code.
fn fails(code: i32, words: &[&str]) -> Value {
    let (found, value) = run(words);
    assert_eq!(found, code, "{words:?}: {value:#}");
    value
}

/// Runs without `--json`.
fn plain(words: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bundle"));
    let output = command.args(words).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code().unwrap(),
        String::from_utf8(text).unwrap(),
    )
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// A checkpoint of one tensor of two numbers.
fn checkpoint(numbers: [f32; 2]) -> Vec<u8> {
    let header = br#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  "#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
    bytes
}

const WEIGHTS: &str = "model/weights/model.safetensors";
const PROMPT: &str = "prompt/system.txt";

/// A place for a test.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn word(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A built bundle `chat` in the folder `name`.
    fn bundle(&self, name: &str, version: &str, prompt: &str) -> (String, Value) {
        let dir = self.word(name);
        done(&["init", &dir, "--name", "chat", "--version", version]);
        self.write(name, WEIGHTS, checkpoint([1.0, 2.0]));
        self.write(name, "model/config.json", "{\"hidden_size\":2}");
        self.write(name, PROMPT, prompt);
        let built = done(&["build", &dir]);
        (dir, built)
    }

    fn write(&self, name: &str, path: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name).join(path), bytes).unwrap();
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_folder_becomes_a_bundle_and_verifies() {
    let bench = Bench::new();
    let (dir, built) = bench.bundle("chat", "1.0.0", "Be brief.\n");
    assert!(text(&built["id"]).starts_with("chat/v1.0.0-"));
    assert_eq!(built["files"], 4);

    let verified = done(&["verify", &dir]);
    assert_eq!(verified["id"], built["id"]);
    assert_eq!(verified["pinned"], false);
    let pinned = done(&["verify", &dir, "--id", text(&built["reference"])]);
    assert_eq!(pinned["pinned"], true);

    let shown = done(&["show", &dir]);
    assert_eq!(shown["id"], built["id"]);
    assert_eq!(shown["components"].as_array().unwrap().len(), 4);
    let (code, words) = plain(&["show", &dir]);
    assert!(code == DONE && words.contains("1 tensors") && words.contains(PROMPT));

    // The same content elsewhere is the same version; a manifest file stands for it too.
    let (other, again) = bench.bundle("again", "1.0.0", "Be brief.\n");
    assert_eq!(again["id"], built["id"]);
    let manifest = format!("{other}/manifest.json");
    let diff = done(&["diff", &dir, &manifest, "--check"]);
    assert_eq!(diff["required"], "none");
    assert_eq!(done(&["show", &manifest])["id"], built["id"]);

    fails(REFUSED, &["init", &dir, "--name", "chat"]);
    let nowhere = bench.word("nowhere");
    fails(ENVIRONMENT, &["build", &nowhere]);
    fails(ENVIRONMENT, &["verify", &nowhere]);
    fails(USAGE, &["show", &nowhere]);
    fails(USAGE, &["verify", &dir, "--id", "chat"]);
    fails(USAGE, &["verify", &dir, "--threads", "many"]);
    fails(USAGE, &["polish", &dir]);
    let (code, help) = plain(&["--help"]);
    assert!(code == DONE && help.contains("exit codes") && help.contains("verify-signature"));
    assert_eq!(plain(&["verify", "--help"]).0, DONE);
    assert_eq!(plain(&["verify"]).0, USAGE);
}

type Damage = fn(&Path);

/// Ways to tamper with a bundle; verification must find each.
const DAMAGES: &[(&str, Damage)] = &[
    ("a changed byte", |d| {
        let mut bytes = fs::read(d.join(WEIGHTS)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(d.join(WEIGHTS), bytes).unwrap();
    }),
    ("an appended byte", |d| {
        let mut bytes = fs::read(d.join(WEIGHTS)).unwrap();
        bytes.push(0);
        fs::write(d.join(WEIGHTS), bytes).unwrap();
    }),
    ("a truncated file", |d| {
        let bytes = fs::read(d.join(WEIGHTS)).unwrap();
        fs::write(d.join(WEIGHTS), &bytes[..bytes.len() - 4]).unwrap();
    }),
    ("a file of no bytes", |d| {
        fs::write(d.join(PROMPT), "").unwrap();
    }),
    ("a removed file", |d| {
        fs::remove_file(d.join(PROMPT)).unwrap();
    }),
    ("an extra file", |d| {
        fs::write(d.join("prompt/more.txt"), "x").unwrap();
    }),
    ("an extra folder's file", |d| {
        fs::create_dir(d.join("model/adapters")).unwrap();
        fs::write(d.join("model/adapters/a.bin"), "x").unwrap();
    }),
    ("a file outside the layout", |d| {
        fs::write(d.join("run.sh"), "x").unwrap();
    }),
    ("a renamed file", |d| {
        fs::rename(d.join(PROMPT), d.join("prompt/System.txt")).unwrap();
    }),
    ("two files that changed places", |d| {
        fs::rename(d.join(PROMPT), d.join("x")).unwrap();
        fs::rename(d.join("model/config.json"), d.join(PROMPT)).unwrap();
        fs::rename(d.join("x"), d.join("model/config.json")).unwrap();
    }),
    ("a twin by letter case", |d| {
        fs::write(d.join("prompt/SYSTEM.txt"), "x").unwrap();
    }),
    ("another version in the metadata", |d| {
        replace(&d.join("metadata.json"), "1.0.0", "1.0.1");
    }),
    ("another contract in the metadata", |d| {
        let stated = "\"contract\": {\"context_length\": 9}";
        replace(&d.join("metadata.json"), "\"contract\": {}", stated);
    }),
    ("no metadata", |d| {
        fs::remove_file(d.join("metadata.json")).unwrap();
    }),
    ("a digest in the manifest", |d| {
        let path = d.join("manifest.json");
        let manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let digest = manifest["components"][0]["digest"].as_str().unwrap();
        replace(&path, digest, &"0".repeat(64));
    }),
    ("a space in the manifest", |d| {
        replace(&d.join("manifest.json"), ":{", ": {");
    }),
    ("a key twice in the manifest", |d| {
        let format = "\"format\":\"llm-manifest/1\"";
        replace(
            &d.join("manifest.json"),
            format,
            &format!("{format},{format}"),
        );
    }),
    ("a path that climbs out in the manifest", |d| {
        replace(&d.join("manifest.json"), PROMPT, "prompt/../../x");
    }),
    ("a manifest cut short", |d| {
        let path = d.join("manifest.json");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    }),
];

/// Symbolic links and odd names, where there are such.
#[cfg(target_os = "linux")]
const LINUX_DAMAGES: &[(&str, Damage)] = &[
    ("a link to the same bytes outside", |d| {
        let outside = d.with_extension("outside");
        fs::rename(d.join(PROMPT), &outside).unwrap();
        std::os::unix::fs::symlink(outside, d.join(PROMPT)).unwrap();
    }),
    ("a link to the same bytes inside", |d| {
        fs::rename(d.join(PROMPT), d.join("tests/system.txt")).unwrap();
        std::os::unix::fs::symlink("../tests/system.txt", d.join(PROMPT)).unwrap();
    }),
    ("a link to nothing", |d| {
        std::os::unix::fs::symlink("gone", d.join("prompt/link.txt")).unwrap();
    }),
    ("a name that is not UTF-8", |d| {
        use std::os::unix::ffi::OsStrExt as _;
        let name = std::ffi::OsStr::from_bytes(b"prompt/\xff.txt");
        fs::write(d.join(name), "x").unwrap();
    }),
];

fn replace(path: &Path, old: &str, new: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(old), "{text}");
    fs::write(path, text.replacen(old, new, 1)).unwrap();
}

#[test]
fn tampering_is_found() {
    let bench = Bench::new();
    let (dir, built) = bench.bundle("chat", "1.0.0", "Be brief.\n");
    let damages = DAMAGES.iter();
    #[cfg(target_os = "linux")]
    let damages = damages.chain(LINUX_DAMAGES);
    for (n, (name, damage)) in damages.enumerate() {
        let copy = bench.path(&format!("copy-{n}"));
        copy_tree(Path::new(&dir), &copy);
        done(&["verify", copy.to_str().unwrap()]);
        damage(&copy);
        let (code, said) = run(&["verify", copy.to_str().unwrap()]);
        assert_eq!(code, CHECK, "{name}: {said:#}");
    }

    // Missing, extra and modified are told apart, and extra files can be tolerated.
    let damaged = bench.path("damaged");
    copy_tree(Path::new(&dir), &damaged);
    fs::remove_file(damaged.join("model/config.json")).unwrap();
    fs::write(damaged.join("prompt/more.txt"), "x").unwrap();
    fs::write(damaged.join(PROMPT), "x").unwrap();
    let said = fails(CHECK, &["verify", damaged.to_str().unwrap()]);
    assert_eq!(said["missing"], json!(["model/config.json"]));
    assert_eq!(said["extra"], json!(["prompt/more.txt"]));
    assert_eq!(said["modified"], json!([PROMPT]));
    bench.write("chat", "prompt/more.txt", "x");
    done(&["verify", &dir, "--allow-extra"]);

    // A whole other bundle with its own manifest is in order by itself, and is not what was asked for.
    let (other, _) = bench.bundle("other", "1.0.0", "Be evil.\n");
    done(&["verify", &other]);
    let said = fails(CHECK, &["verify", &other, "--id", text(&built["id"])]);
    assert!(text(&said["error"]).contains("not of chat/v1.0.0-"));
}

#[test]
fn unfit_folders_are_not_built() {
    let bench = Bench::new();
    let (dir, _) = bench.bundle("chat", "1.0.0", "Be brief.\n");
    let cases: [(&str, &[u8], &str); 5] = [
        (
            "model/weights/x.safetensors",
            b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
            "",
        ),
        (
            "model/weights/y.bin",
            b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00K\x01.",
            "--allow-pickles",
        ),
        (
            "model/weights/z.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0000000000000000000000000000000000000000000000000000000000000000\nsize 9\n",
            "",
        ),
        (
            "prompt/key.txt",
            b"-----BEGIN RSA PRIVATE KEY-----",
            "--allow-secrets",
        ),
        ("prompt/a.txt.incomplete", b"x", ""),
    ];
    for (path, bytes, allow) in cases {
        bench.write("chat", path, bytes);
        let said = fails(CHECK, &["build", &dir]);
        let problems = said["problems"].as_array().unwrap();
        assert!(
            problems.iter().all(|p| text(p).starts_with(path)),
            "{said:#}"
        );
        if !allow.is_empty() {
            let built = done(&["build", &dir, allow]);
            let warnings = built["warnings"].as_array().unwrap();
            assert!(
                warnings.iter().any(|w| text(w).starts_with(path)),
                "{built}"
            );
        }
        fs::remove_file(bench.path("chat").join(path)).unwrap();
    }
}

#[test]
fn a_registry_keeps_versions_aliases_and_their_history() {
    let bench = Bench::new();
    let registry = bench.word("registry");
    let at = |words: &[&str]| {
        let tail = ["--registry", &registry, "--by", "ana"];
        run(&[words, &tail].concat())
    };
    let reads = |words: &[&str]| run(&[words, &["--registry", &registry]].concat());
    let (one, first) = bench.bundle("one", "1.0.0", "Be brief.\n");
    let (small, _) = bench.bundle("small", "1.0.1", "Be kind.\n");
    let (two, second) = bench.bundle("two", "1.1.0", "Be kind.\n");
    let (taken, _) = bench.bundle("taken", "1.0.0", "Be rude.\n");
    let (three, third) = bench.bundle("three", "1.2.0", "Be helpful.\n");

    assert_eq!(at(&["publish", &one]).1["new"], true);
    assert_eq!(at(&["publish", &one]).1["new"], false);
    let (code, said) = at(&["publish", &small]);
    assert_eq!(
        (code, &said["required"], &said["next"]),
        (CHECK, &json!("minor"), &json!("1.1.0"))
    );
    assert_eq!(at(&["publish", &taken]).0, REFUSED);
    assert_eq!(at(&["publish", &two]).0, DONE);
    let diff = done(&["diff", &one, &two]);
    assert_eq!(
        (&diff["required"], &diff["risk"]),
        (&json!("minor"), &json!("behavioural"))
    );
    fails(CHECK, &["diff", &one, &small, "--check"]);
    done(&["diff", &one, &small]);

    // Aliases move by compare-and-set, and remember.
    let (id1, id2) = (text(&first["id"]), text(&second["id"]));
    assert_eq!(at(&["alias", "chat", "production", "--to", id1]).0, DONE);
    let stale = [
        "alias",
        "chat",
        "production",
        "--from",
        "nothing",
        "--to",
        id2,
    ];
    assert_eq!(at(&stale).0, REFUSED);
    let reference = text(&second["reference"]);
    let moved = at(&[
        "alias",
        "chat",
        "production",
        "--from",
        id1,
        "--to",
        reference,
        "--why",
        "better",
    ]);
    assert_eq!((moved.0, &moved.1["to"]), (DONE, &second["id"]));
    let (_, shown) = reads(&["alias", "chat", "production"]);
    assert_eq!(shown["to"], second["id"]);
    let (_, history) = reads(&["alias", "chat", "production", "--history"]);
    let moves = history["moves"].as_array().unwrap();
    assert_eq!(moves.len(), 2);
    assert_eq!(
        (&moves[0]["from"], &moves[0]["to"]),
        (&Value::Null, &first["id"])
    );
    assert_eq!(
        (&moves[1]["from"], &moves[1]["to"]),
        (&first["id"], &second["id"])
    );
    assert_eq!(moves[1]["note"]["by"], "ana");
    assert_eq!(moves[1]["note"]["why"], "better");
    let long_ago = [
        "alias",
        "chat",
        "production",
        "--at",
        "2001-01-01T00:00:00Z",
    ];
    assert_eq!(reads(&long_ago).1["to"], Value::Null);
    let (_, all) = reads(&["alias", "chat"]);
    assert_eq!(all["aliases"]["production"], second["id"]);
    assert_eq!(
        reads(&["show", "chat@production"]).1["aliases"],
        json!(["production"])
    );
    assert_eq!(reads(&["trace", "chat@production"]).1["root"], second["id"]);
    assert_eq!(
        at(&[
            "alias",
            "chat",
            "production",
            "--to",
            "chat/v9.0.0-000000000000"
        ])
        .0,
        REFUSED
    );

    // What production is can be laid out, and a folder be held against it.
    let fetched = bench.word("fetched");
    assert_eq!(
        reads(&["fetch", "chat@production", &fetched]).1["id"],
        second["id"]
    );
    assert_eq!(reads(&["fetch", "chat@production", &fetched]).0, REFUSED);
    assert_eq!(
        reads(&["verify", &fetched, "--id", "chat@production"]).0,
        DONE
    );
    assert_eq!(reads(&["verify", &one, "--id", "chat@production"]).0, CHECK);

    // Two versions on, nothing holds the first any more.
    at(&["publish", &three]);
    let moved = at(&["alias", "chat", "production", "--to", text(&third["id"])]);
    assert_eq!(moved.0, DONE);
    let (_, head) = reads(&["log"]);
    let gc = ["gc", "--keep-latest", "1", "--keep-previous", "1"];
    let (_, planned) = at(&[&gc[..], &["--dry-run"]].concat());
    assert_eq!(planned["versions"], json!([first["id"]]));
    assert_eq!(
        reads(&["log"]).1["head"],
        head["head"],
        "a dry run is not logged"
    );
    let (_, collected) = at(&gc);
    assert_eq!(collected["versions"], planned["versions"]);
    assert_eq!(collected["blobs"], planned["blobs"]);
    assert_eq!(reads(&["fetch", id1, &bench.word("gone")]).0, REFUSED);
    assert_eq!(reads(&["fetch", id2, &bench.word("kept")]).0, DONE);

    // The log holds all of it, and shows when it was altered or cut.
    let known = text(&head["head"]);
    assert_eq!(reads(&["log", "--known", known]).0, DONE);
    let (code, words) = plain(&["log", "--registry", &registry]);
    assert!(code == DONE && words.contains("better") && words.contains("chat@production"));
    let newest = text(&reads(&["log"]).1["head"]).to_owned();
    let last = fs::read_dir(bench.path("registry/objects/log")).unwrap();
    let last = last.map(|e| e.unwrap().path()).max().unwrap();
    let kept = fs::read_to_string(&last).unwrap();
    replace(&last, "ana", "bob");
    assert_eq!(reads(&["log"]).0, CHECK, "an altered last entry");
    fs::remove_file(&last).unwrap();
    assert_eq!(reads(&["log"]).0, DONE, "nothing says that there was more");
    assert_eq!(reads(&["log", "--known", &newest]).0, CHECK, "a cut log");
    fs::write(&last, kept).unwrap();
    let second_entry = bench.path("registry/objects/log/00000000000000000001.json");
    replace(&second_entry, "ana", "bob");
    assert_eq!(reads(&["log"]).0, CHECK, "an altered entry");
    fs::remove_file(&second_entry).unwrap();
    assert_eq!(reads(&["log"]).0, CHECK, "a missing entry");
    fails(USAGE, &["log"]);
    let typo = bench.word("registrty");
    fails(ENVIRONMENT, &["log", "--registry", &typo]);
    assert!(!Path::new(&typo).exists());
}

#[test]
fn versions_are_held_labelled_evaluated_and_revoked() {
    let bench = Bench::new();
    let registry = bench.word("registry");
    let at = |words: &[&str]| {
        let tail = ["--registry", &registry, "--by", "ana"];
        run(&[words, &tail].concat())
    };
    let reads = |words: &[&str]| run(&[words, &["--registry", &registry]].concat());
    let (dir, built) = bench.bundle("one", "1.0.0", "Be brief.\n");
    let (next, second) = bench.bundle("two", "1.1.0", "Be kind.\n");
    let (one, two) = (text(&built["id"]), text(&second["id"]));
    assert_eq!(at(&["publish", &dir]).0, DONE);
    assert_eq!(at(&["publish", &next]).0, DONE);

    // A pin holds what nothing else does, until its holder lets go.
    let gc = ["gc", "--keep-latest", "1", "--dry-run"];
    assert_eq!(at(&gc).1["versions"], json!([one]));
    let held = at(&["pin", one, "--holder", "rollout-7"]);
    assert_eq!((held.0, &held.1["pins"]), (DONE, &json!(["rollout-7"])));
    assert_eq!(at(&gc).1["versions"], json!([]));
    assert_eq!(at(&["unpin", one]).0, REFUSED, "ana does not hold it");
    let free = at(&["unpin", one, "--holder", "rollout-7"]);
    assert_eq!((free.0, &free.1["pins"]), (DONE, &json!([])));

    assert_eq!(
        at(&["tag", one, "team", "search"]).1["tags"],
        json!({"team": "search"})
    );
    assert_eq!(reads(&["show", one]).1["tags"], json!({"team": "search"}));
    assert_eq!(at(&["tag", one, "team"]).1["tags"], json!({}));

    // Results are kept beside the version, which stays what it is.
    bench.write("one", "tests/results.json", "{\"accuracy\": \"0.9\"}");
    let results = format!("{dir}/tests/results.json");
    assert_eq!(at(&["evaluate", one, &results]).0, DONE);
    let kept = reads(&["evaluate", one]).1["records"].clone();
    assert_eq!(kept[0]["kind"], "evaluation");
    assert_eq!(kept[0]["body"], "{\"accuracy\": \"0.9\"}");
    assert_eq!(at(&["publish", &dir]).1["new"], false);

    // What was revoked, or lies below the floor, gets no alias.
    assert_eq!(reads(&["floor", "chat"]).1["floor"], Value::Null);
    assert_eq!(at(&["floor", "chat", "1.1.0"]).1["floor"], "1.1.0");
    assert_eq!(at(&["floor", "chat", "1.0.0"]).0, REFUSED, "it only rises");
    assert_eq!(at(&["alias", "chat", "production", "--to", one]).0, REFUSED);
    assert_eq!(at(&["alias", "chat", "production", "--to", two]).0, DONE);
    assert_eq!(at(&["revoke", two]).0, USAGE, "it needs a reason");
    let revoked = at(&["revoke", two, "--why", "it leaks its prompt"]);
    assert_eq!(
        (revoked.0, &revoked.1["aliases"]),
        (DONE, &json!(["production"]))
    );
    assert_eq!(at(&["alias", "chat", "candidate", "--to", two]).0, REFUSED);

    // The whole registry is read and found in order, until a blob changes or can be changed.
    let checked = reads(&["check"]).1;
    assert_eq!(
        (&checked["ok"], &checked["versions"]),
        (&json!(true), &json!(2))
    );
    let digest = reads(&["show", one]).1["components"][0]["digest"].clone();
    let hex = text(&digest);
    let blob = bench
        .path("registry/blobs/sha256")
        .join(&hex[..2])
        .join(hex);
    let bytes = fs::read(&blob).unwrap();
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, &bytes).unwrap();
    let (code, said) = reads(&["check"]);
    assert!(code == CHECK && text(&said["error"]).contains("edited in place"));
    fs::write(&blob, "other").unwrap();
    let (code, said) = reads(&["check"]);
    assert_eq!(
        (code, said["problems"].as_array().unwrap().len()),
        (CHECK, 3)
    );
}

#[test]
fn lineage_is_captured_into_the_metadata() {
    let bench = Bench::new();
    let (dir, built) = bench.bundle("chat", "1.0.0", "Be brief.\n");
    assert_eq!(done(&["lineage", &dir])["changed"], false);
    fs::write(bench.path("config.yaml"), "lr: 1e-5\n").unwrap();
    fs::write(bench.path("freeze.txt"), "torch==2.7.0\n").unwrap();
    fs::create_dir(bench.path("data")).unwrap();
    fs::write(bench.path("data/train.txt"), "a line\n").unwrap();
    let data = format!("web@2026-01={}", bench.word("data"));
    let said = done(&[
        "lineage",
        &dir,
        "--config",
        &bench.word("config.yaml"),
        "--packages",
        &bench.word("freeze.txt"),
        "--base-model",
        "org/base@abc",
        "--dataset",
        &data,
        "--dataset",
        "books@1",
        "--seed",
        "torch=9007199254740993",
        "--parameter",
        "epochs=3",
        "--parent",
        text(&built["id"]),
    ]);
    let lineage = &said["lineage"];
    assert_eq!(lineage["config"]["text"], "lr: 1e-5\n");
    assert_eq!(lineage["environment"]["torch"], "2.7.0");
    assert_eq!(lineage["base_model"]["revision"], "abc");
    assert_eq!(lineage["seeds"]["torch"], "9007199254740993");
    assert_eq!(lineage["parents"], json!([built["id"]]));
    assert_eq!(lineage["datasets"].as_array().unwrap().len(), 2);
    assert!(text(&lineage["datasets"][0]["digest"]).starts_with("md5:"));
    // It is recorded beside the digest: another record of the same version.
    fails(CHECK, &["verify", &dir]);
    let again = done(&["build", &dir]);
    assert_eq!(again["id"], built["id"]);
    assert_ne!(again["record"], built["record"]);
    fails(USAGE, &["lineage", &dir, "--dataset", "web"]);
    fails(USAGE, &["lineage", &dir, "--parent", "chat"]);
    fails(
        ENVIRONMENT,
        &["lineage", &dir, "--code", &bench.word("data")],
    );
}

/// Test keys on P-256 whose secret numbers are 0x0101... and 0x0202...: known to everybody.
const KEYS: [&str; 2] = [
    "MEECAQAwEwYHKoZIzj0CAQYIKoZIzj0DAQcEJzAlAgEBBCABAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ==",
    "MEECAQAwEwYHKoZIzj0CAQYIKoZIzj0DAQcEJzAlAgEBBCACAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg==",
];

#[test]
fn signatures_hold_until_something_changes() {
    let bench = Bench::new();
    let (dir, _) = bench.bundle("chat", "1.0.0", "Be brief.\n");
    for (n, key) in KEYS.iter().enumerate() {
        let kind = "PRIVATE KEY";
        let (line, rest) = key.split_at(64);
        let pem = format!("-----BEGIN {kind}-----\n{line}\n{rest}\n-----END {kind}-----\n");
        fs::write(bench.path(&format!("key-{n}")), pem).unwrap();
        let public = done(&["public-key", &bench.word(&format!("key-{n}"))]);
        fs::write(bench.path(&format!("public-{n}")), text(&public["pem"])).unwrap();
    }
    let (key, public, other) = (
        bench.word("key-0"),
        bench.word("public-0"),
        bench.word("public-1"),
    );
    let signed = done(&["sign", &dir, "--key", &key]);
    assert_eq!(text(&signed["signature"]), bench.word("chat.sig"));
    let verify = ["verify-signature", &dir, "--key", &public];
    assert_eq!(done(&verify)["files"].as_object().unwrap().len(), 6);
    done(&["verify", &dir]);

    fails(CHECK, &["verify-signature", &dir, "--key", &other]);
    fails(USAGE, &["verify-signature", &dir, "--key", &key]);
    fails(USAGE, &["verify-signature", &dir]);
    fails(ENVIRONMENT, &["sign", &dir, "--key", &bench.word("no-key")]);
    let nowhere = bench.word("no-signature");
    let missing = [&verify[..], &["--signature", &nowhere]].concat();
    fails(ENVIRONMENT, &missing);

    bench.write("chat", PROMPT, "Be evil.\n");
    assert_eq!(fails(CHECK, &verify)["modified"], json!([PROMPT]));
    bench.write("chat", PROMPT, "Be brief.\n");
    bench.write("chat", "tests/extra.json", "{}");
    assert_eq!(fails(CHECK, &verify)["extra"], json!(["tests/extra.json"]));
    fs::remove_file(bench.path("chat/tests/extra.json")).unwrap();
    fs::rename(bench.path("chat/metadata.json"), bench.path("aside")).unwrap();
    assert_eq!(fails(CHECK, &verify)["missing"], json!(["metadata.json"]));
    fs::rename(bench.path("aside"), bench.path("chat/metadata.json")).unwrap();
    done(&verify);

    // The signature itself: another payload, another signature, cut short.
    let whole = fs::read_to_string(bench.path("chat.sig")).unwrap();
    let bundle: Value = serde_json::from_str(&whole).unwrap();
    let mut payload = bundle.clone();
    let swapped = text(&bundle["dsseEnvelope"]["payload"]).replacen('e', "f", 1);
    payload["dsseEnvelope"]["payload"] = swapped.into();
    let mut signature = bundle.clone();
    let words = text(&bundle["dsseEnvelope"]["signatures"][0]["sig"]);
    let last = words.trim_end_matches('=').len() - 5;
    let flipped = if &words[last..=last] == "A" { "B" } else { "A" };
    let words = format!("{}{flipped}{}", &words[..last], &words[last + 1..]);
    signature["dsseEnvelope"]["signatures"][0]["sig"] = words.into();
    for bad in [
        payload.to_string(),
        signature.to_string(),
        whole[..whole.len() / 2].to_owned(),
    ] {
        fs::write(bench.path("chat.sig"), bad).unwrap();
        fails(CHECK, &verify);
    }
    fs::write(bench.path("chat.sig"), whole).unwrap();
    done(&verify);
}

#[test]
fn an_oci_layout_carries_a_bundle_there_and_back() {
    let bench = Bench::new();
    let (dir, built) = bench.bundle("chat", "1.0.0", "Be brief.\n");
    let (layout, back) = (bench.word("layout"), bench.word("back"));
    let out = done(&["export-oci", &dir, &layout]);
    let again = done(&["export-oci", &dir, &bench.word("layout-2")]);
    assert_eq!(out["artifact"], again["artifact"]);
    assert_eq!(done(&["import-oci", &layout, &back])["id"], built["id"]);
    assert_eq!(done(&["verify", &back])["id"], built["id"]);
    assert_eq!(
        fs::read(bench.path("back/manifest.json")).unwrap(),
        fs::read(bench.path("chat/manifest.json")).unwrap()
    );
    done(&["export-oci", &dir, &layout, "--tag", "second"]);
    fails(REFUSED, &["import-oci", &layout, &bench.word("which")]);
    done(&[
        "import-oci",
        &layout,
        &bench.word("which"),
        "--tag",
        "second",
    ]);
    fails(USAGE, &["export-oci", &dir, &layout, "--tag", "a/b"]);

    let blob = done(&["show", &dir])["components"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["path"] == PROMPT)
        .map(|c| text(&c["digest"]).to_owned())
        .unwrap();
    let blob = bench.path("layout/blobs/sha256").join(blob);
    fs::remove_file(&blob).unwrap(); // it may be a link to a read-only file
    fs::write(&blob, "Be evil.!\n").unwrap();
    let bad = bench.word("bad");
    fails(CHECK, &["import-oci", &layout, &bad, "--tag", "second"]);
    assert!(!bench.path("bad").exists());
    bench.write("chat", PROMPT, "Be evil.\n");
    fails(CHECK, &["export-oci", &dir, &layout]);
}

#[test]
fn a_download_folder_becomes_a_bundle() {
    let bench = Bench::new();
    let folder = bench.path("download");
    let records = folder.join(".cache/huggingface/download");
    fs::create_dir_all(&records).unwrap();
    fs::write(folder.join("config.json"), "{}").unwrap();
    fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    fs::write(folder.join("model.safetensors"), checkpoint([1.0, 2.0])).unwrap();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    // The git blob id of `{}`.
    let record = format!("{commit}\n9e26dfeeb6e641a33dae4961196235bdb965b21b\n0\n");
    fs::write(records.join("config.json.metadata"), &record).unwrap();
    fs::write(records.join("tokenizer.json.metadata"), &record).unwrap();
    let (from, to) = (bench.word("download"), bench.word("chat"));
    let import = ["import-hf", &from, &to, "--version", "1.0.0"];
    let imported = done(&import);
    assert!(text(&imported["id"]).starts_with("chat/v1.0.0-"));
    assert_eq!(imported["commit"], commit);
    assert_eq!(imported["unchecked"], 1);
    assert_eq!(done(&["verify", &to])["id"], imported["id"]);
    assert!(bench.path("chat").join(WEIGHTS).is_file());
    fails(REFUSED, &import);

    fs::write(folder.join("config.json"), "{} ").unwrap();
    fails(CHECK, &["import-hf", &from, &bench.word("altered")]);
    assert!(!bench.path("altered").exists());
}

#[test]
fn an_artifact_of_weights_and_biases_becomes_a_bundle() {
    let bench = Bench::new();
    let folder = bench.path("artifacts/tiny:v3");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("config.json"), r#"{"hidden_size": 8}"#).unwrap();
    fs::write(folder.join("model.safetensors"), checkpoint([1.0, 2.0])).unwrap();
    let size = fs::metadata(folder.join("model.safetensors"))
        .unwrap()
        .len();
    // The weights are only referred to: there is no digest of them.
    let manifest = json!({"version": 1, "contents": {
        "config.json": {"digest": "6HpOAosR7Hv3cMbzq1xjSQ==", "size": 18},
        "model.safetensors": {"digest": "etag", "ref": "s3://models/tiny", "size": size},
    }});
    bench.write("artifacts", "tiny.json", manifest.to_string());
    let (from, to) = (bench.word("artifacts/tiny:v3"), bench.word("tiny"));
    let list = bench.word("artifacts/tiny.json");
    let import = [
        "import-wandb",
        &from,
        &to,
        "--manifest",
        &list,
        "--version",
        "1.0.0",
    ];
    let imported = done(&import);
    assert!(text(&imported["id"]).starts_with("tiny/v1.0.0-"));
    assert_eq!(
        (
            &imported["artifact"],
            &imported["artifact_version"],
            &imported["unchecked"]
        ),
        (&json!("tiny"), &json!("v3"), &json!(1))
    );
    assert_eq!(done(&["verify", &to])["id"], imported["id"]);
    fails(REFUSED, &import);
    let wrong = [
        "import-wandb",
        &from,
        &bench.word("other"),
        "--run",
        "--manifest",
        &list,
    ];
    fails(USAGE, &wrong);

    fs::write(folder.join("config.json"), r#"{"hidden_size": 9}"#).unwrap();
    fails(
        CHECK,
        &[
            "import-wandb",
            &from,
            &bench.word("altered"),
            "--manifest",
            &list,
        ],
    );
    assert!(!bench.path("altered").exists());
}

#[test]
fn a_bill_of_materials_lists_every_file() {
    let bench = Bench::new();
    let (dir, built) = bench.bundle("chat", "1.0.0", "Be brief.\n");
    let bom = done(&["sbom", &dir])["bom"].clone();
    assert_eq!(
        (&bom["bomFormat"], &bom["specVersion"]),
        (&json!("CycloneDX"), &json!("1.6"))
    );
    let model = &bom["metadata"]["component"];
    assert_eq!(model["bom-ref"], built["id"]);
    let shown = done(&["show", &dir])["components"].clone();
    let listed = model["components"].as_array().unwrap();
    assert_eq!(listed.len(), shown.as_array().unwrap().len());
    for (file, component) in listed.iter().zip(shown.as_array().unwrap()) {
        assert_eq!(file["name"], component["path"]);
        assert_eq!(file["hashes"][0]["content"], component["digest"]);
    }
    let out = bench.word("bom.json");
    done(&["sbom", &dir, "--out", &out]);
    let (code, words) = plain(&["sbom", &dir]);
    assert!(code == DONE && words == fs::read_to_string(&out).unwrap());
    bench.write("chat", PROMPT, "Be evil.\n");
    fails(CHECK, &["sbom", &dir]);
}
