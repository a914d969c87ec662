//! The versions of the story: written as directories, built into manifests, verified.

use desk_model::{Variant, desk};
use examples::terminal::Terminal;
use llm_version_core::fs::{BuildOptions, Progress, VerifyOptions, build, verify};
use llm_version_core::{
    BaseModel, Dataset, Licence, Manifest, Metadata, Name, Version, VersionId, diff,
};
use std::error::Error;
use std::path::{Path, PathBuf};

/// A version on disk whose content has been verified.
#[derive(Debug, Clone)]
pub(crate) struct Bundle {
    pub(crate) id: VersionId,
    pub(crate) manifest: Manifest,
    pub(crate) directory: PathBuf,
}

/// Who takes part in the story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cast {
    variant: Variant,
    version: (u32, u32, u32),
    what: &'static str,
}

/// In production when the story begins.
pub(crate) const BASELINE: Cast = Cast {
    variant: Variant::Base,
    version: (1, 0, 0),
    what: "in production",
};
/// Trained longer: measurably better on held-out text.
pub(crate) const BETTER: Cast = Cast {
    variant: Variant::Better,
    version: (1, 1, 0),
    what: "trained longer",
};
/// Quantised too far.
pub(crate) const DAMAGED: Cast = Cast {
    variant: Variant::Damaged,
    version: (1, 2, 0),
    what: "quantised to 3 bits",
};
/// Passes the short offline suite, and loses the beginning of long requests.
pub(crate) const NARROW: Cast = Cast {
    variant: Variant::Narrow,
    version: (2, 0, 0),
    what: "half the context, to save memory",
};
/// The baseline's own files under another version.
pub(crate) const TWIN: Cast = Cast {
    variant: Variant::Base,
    version: (1, 0, 1),
    what: "the same files again",
};

impl Cast {
    pub(crate) fn what(self) -> &'static str {
        self.what
    }

    /// Builds the bundle under `parent` (or finds it there), and verifies it byte by byte.
    pub(crate) fn bundle(
        self,
        parent: &Path,
        terminal: Terminal,
    ) -> Result<Bundle, Box<dyn Error>> {
        let (major, minor, patch) = self.version;
        let version = Version::new(major, minor, patch);
        let folder = parent.join("desk");
        let draft = folder.join(format!(".v{version}"));
        if draft.exists() {
            std::fs::remove_dir_all(&draft)?; // what an interrupted start left behind
        }
        self.variant.write(&draft)?;
        std::fs::write(
            draft.join("metadata.json"),
            self.metadata(version)?.to_pretty(),
        )?;

        let bar = terminal.bar(&format!("build  desk {version}"));
        let show = |p: &Progress<'_>| bar.show(p.done_bytes, p.total_bytes);
        let manifest = build(&draft, &BuildOptions::new().progress(&show))?.manifest;
        bar.done();
        let id = manifest.id().clone();
        let reference = id.reference();
        let directory = folder.join(format!("v{version}-{}", reference.hash()));
        if directory.exists() {
            std::fs::remove_dir_all(&draft)?;
        } else {
            std::fs::rename(&draft, &directory)?;
        }

        let bar = terminal.bar(&format!("verify {reference}"));
        let show = |p: &Progress<'_>| bar.show(p.done_bytes, p.total_bytes);
        verify(&directory, &manifest, &VerifyOptions::new().progress(&show))?;
        bar.done();
        Ok(Bundle {
            id,
            manifest,
            directory,
        })
    }

    fn metadata(self, version: Version) -> Result<Metadata, Box<dyn Error>> {
        let mut metadata = Metadata::new(Name::new("desk")?, version);
        let context = u64::try_from(self.variant.generation().context)?;
        metadata.contract.context_length = Some(context);
        metadata.licences.insert(Licence::new("MIT OR Apache-2.0"));
        metadata.lineage.base_model = Some(BaseModel::new("order-desk"));
        metadata
            .lineage
            .datasets
            .push(Dataset::new("order-desk letters (generated)", "1"));
        Ok(metadata)
    }
}

/// What changes from one bundle to the other, in words.
pub(crate) fn difference(old: &Bundle, new: &Bundle) -> String {
    diff(&old.manifest, &new.manifest).to_string()
}

/// Requests of the offline suite.
pub(crate) const SUITE: usize = 80;

/// The held-out text that bits per byte are measured on.
pub(crate) fn held_out() -> Vec<String> {
    desk::heldout(&desk_model::ChatTemplate::default(), 40)
}
