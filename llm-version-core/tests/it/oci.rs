//! Bundles as `ModelPack` artifacts: out and in again, and everything that must not come in.

use std::fs;
use std::path::{Path, PathBuf};

use llm_version_core::Digest;
use llm_version_core::fs::{OciError, export_oci, import_oci};
use serde_json::Value;

use crate::common::{bundle, manifest};

struct Exported {
    folder: tempfile::TempDir,
    digest: Digest,
}

fn export() -> Exported {
    let folder = tempfile::tempdir().unwrap();
    let source = bundle();
    let manifest = manifest(source.path());
    let layout = folder.path().join("layout");
    let digest = export_oci(
        source.path(),
        &manifest,
        &layout,
        &manifest.id().to_oci_tag(),
    )
    .unwrap();
    Exported { folder, digest }
}

impl Exported {
    fn layout(&self) -> PathBuf {
        self.folder.path().join("layout")
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.layout().join("blobs/sha256").join(digest.to_string())
    }

    fn import(&self) -> Result<Option<llm_version_core::VersionId>, OciError> {
        import_oci(&self.layout(), None, &self.out())
    }

    /// Changes the artifact's manifest and everything that names its digest: a liar who can count.
    fn rewrite(&self, change: impl FnOnce(&mut Value)) {
        let mut image: Value = read(&self.blob(&self.digest));
        change(&mut image);
        let bytes = serde_json::to_vec(&image).unwrap();
        let digest = Digest::of(&bytes);
        fs::write(self.blob(&digest), &bytes).unwrap();
        let path = self.layout().join("index.json");
        let mut index: Value = read(&path);
        index["manifests"][0]["digest"] = format!("sha256:{digest}").into();
        index["manifests"][0]["size"] = bytes.len().into();
        fs::write(path, serde_json::to_vec(&index).unwrap()).unwrap();
    }
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_bundle_goes_out_and_comes_in_the_same() {
    let exported = export();
    let source = bundle();
    let original = manifest(source.path());
    assert_eq!(exported.import().unwrap().as_ref(), Some(original.id()));
    assert_eq!(
        manifest(&exported.out()),
        original,
        "it builds to the same manifest"
    );
    assert_eq!(
        export().digest,
        exported.digest,
        "an export is reproducible"
    );
    let image = read(&exported.blob(&exported.digest));
    assert_eq!(
        image["artifactType"],
        "application/vnd.cncf.model.manifest.v1+json"
    );
    assert_eq!(
        image["layers"].as_array().unwrap().len(),
        original.components().len() + 2
    );
    // The blob of a layer is the file itself.
    let prompt = original
        .component(&"prompt/system.txt".parse().unwrap())
        .unwrap();
    assert_eq!(
        fs::read(exported.blob(&prompt.digest)).unwrap(),
        b"You are helpful."
    );
    assert_eq!(
        fs::read(exported.layout().join("oci-layout")).unwrap(),
        b"{\"imageLayoutVersion\":\"1.0.0\"}"
    );
    assert!(
        matches!(exported.import(), Err(OciError::Io { .. })),
        "never onto something"
    );
}

#[test]
fn tags_choose_and_are_checked() {
    let exported = export();
    let source = bundle();
    let original = manifest(source.path());
    export_oci(source.path(), &original, &exported.layout(), "second").unwrap();
    export_oci(source.path(), &original, &exported.layout(), "second").unwrap();
    match exported.import() {
        Err(OciError::Choice { tags }) => {
            assert_eq!(tags, [original.id().to_oci_tag(), "second".to_owned()]);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        import_oci(&exported.layout(), Some("third"), &exported.out()),
        Err(OciError::Choice { .. })
    ));
    assert!(import_oci(&exported.layout(), Some("second"), &exported.out()).is_ok());
    for tag in ["", ".a", "-a", "a/b", "a+b", &"a".repeat(129)] {
        assert!(
            matches!(
                export_oci(source.path(), &original, &exported.layout(), tag),
                Err(OciError::Tag { .. })
            ),
            "{tag}"
        );
    }
}

type Damage = fn(&Exported);
type Expected = fn(&OciError) -> bool;

#[test]
fn damaged_and_lying_artifacts_leave_nothing_behind() {
    let cases: [(Damage, Expected); 10] = [
        (
            |e| fs::write(e.blob(&Digest::of(b"You are helpful.")), "You are h3lpful.").unwrap(),
            |e| matches!(e, OciError::Blob(_)),
        ),
        (
            |e| fs::remove_file(e.blob(&Digest::of(b"You are helpful."))).unwrap(),
            |e| matches!(e, OciError::Missing(_)),
        ),
        (
            |e| fs::write(e.blob(&e.digest), "{}").unwrap(),
            |e| matches!(e, OciError::Blob(_)),
        ),
        (
            |e| {
                e.rewrite(|i| {
                    i["layers"][0]["annotations"]["org.cncf.model.filepath"] =
                        "../../escape".into();
                });
            },
            |e| matches!(e, OciError::Path(_)),
        ),
        (
            |e| {
                e.rewrite(|i| {
                    i["layers"][0]["annotations"]["org.cncf.model.filepath"] =
                        "PROMPT/system.txt".into();
                });
            },
            |e| matches!(e, OciError::Conflict(_)),
        ),
        (
            |e| {
                e.rewrite(|i| {
                    let layer = i["layers"][0].clone();
                    i["layers"].as_array_mut().unwrap().push(layer);
                });
            },
            |e| matches!(e, OciError::Conflict(_)),
        ),
        (
            |e| {
                e.rewrite(|i| {
                    i["layers"][0]["mediaType"] = "application/vnd.cncf.model.weight.v1.tar".into();
                });
            },
            |e| matches!(e, OciError::Unsupported { .. }),
        ),
        (
            |e| e.rewrite(|i| i["artifactType"] = "application/vnd.other".into()),
            |e| matches!(e, OciError::Unsupported { .. }),
        ),
        // Two files change places: all digests are right, the bundle is not.
        (
            |e| {
                e.rewrite(|i| {
                    for field in ["digest", "size"] {
                        let value = i["layers"][0][field].take();
                        i["layers"][0][field] = i["layers"][1][field].take();
                        i["layers"][1][field] = value;
                    }
                });
            },
            |e| matches!(e, OciError::Verify(_)),
        ),
        (
            |e| e.rewrite(|i| i["layers"][0]["size"] = 5.into()),
            |e| matches!(e, OciError::Size { stated: 5, .. }),
        ),
    ];
    for (n, (damage, expected)) in cases.iter().enumerate() {
        let exported = export();
        damage(&exported);
        let error = exported.import().unwrap_err();
        assert!(expected(&error), "case {n}: {error}");
        assert!(!exported.out().exists(), "case {n}");
    }
}
