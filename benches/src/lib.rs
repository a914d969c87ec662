//! Measured claims: the parts of the `report` and `guard` programs, one module for each group of figures.
//!
//! Machines differ and are noisy, so that a claim is a ratio to a floor, or to a peer, taken in the same run: designs run in
//! turn in many short repetitions, and a low quantile of each stands for it. Absolute times are rows without a limit.

pub mod data;
pub mod figure;
mod gateway;
pub mod layer;
pub mod machine;
pub mod measure;
pub mod peers;
pub mod policy;
pub mod race;
pub mod recording;
pub mod routing;
pub mod statistics;
pub mod verify;

use figure::Figure;

/// Whatever went wrong, for people.
pub type Error = Box<dyn std::error::Error>;

/// How much is measured.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Scale {
    /// The large trees too, which take minutes.
    pub full: bool,
}

impl Scale {
    /// The usual scale, or the full one.
    pub const fn new(full: bool) -> Self {
        Self { full }
    }
}

/// Figures that belong together.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Group {
    /// Its name, as in `--only`.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// Measures them.
    pub run: fn(Scale) -> Result<Vec<Figure>, Error>,
}

/// Every group, in the order of the report.
pub const GROUPS: &[Group] = &[
    Group {
        name: routing::GROUP,
        about: "who is served by what: one decision per request",
        run: routing::run,
    },
    Group {
        name: recording::GROUP,
        about: "what became of a request: one outcome per request",
        run: recording::run,
    },
    Group {
        name: statistics::GROUP,
        about: "what the numbers say: one look of every test",
        run: statistics::run,
    },
    Group {
        name: race::GROUP,
        about: "the race's bars: false rollbacks, and requests until harm is found",
        run: race::run,
    },
    Group {
        name: machine::GROUP,
        about: "what to do next: a thousand rollouts in one process",
        run: machine::run,
    },
    Group {
        name: policy::GROUP,
        about: "what a plan would do: simulated lives of the 77-hour plan",
        run: policy::run,
    },
    Group {
        name: layer::GROUP,
        about: "what the tower layer adds to a streamed reply",
        run: layer::run,
    },
    Group {
        name: verify::GROUP,
        about: "building and verifying bundles",
        run: verify::run,
    },
];

/// The groups of these names, in the order of the report; all of them if no name is given.
///
/// # Errors
/// An unknown name; the message lists the known ones.
pub fn select(names: &[String]) -> Result<Vec<Group>, String> {
    let known = |name: &str| GROUPS.iter().any(|group| group.name == name);
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        let groups = GROUPS
            .iter()
            .map(|group| group.name)
            .collect::<Vec<_>>()
            .join(", ");
        return Err(format!(
            "there is no group {unknown:?}; the groups are: {groups}"
        ));
    }
    let wanted = |group: &&Group| names.is_empty() || names.iter().any(|name| name == group.name);
    Ok(GROUPS.iter().filter(wanted).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_selected_by_name_in_the_order_of_the_report() {
        let names = |wanted: &[&str]| {
            let wanted = wanted.iter().map(ToString::to_string).collect::<Vec<_>>();
            select(&wanted).map(|groups| groups.iter().map(|g| g.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap().len(), GROUPS.len());
        assert_eq!(
            names(&["verify", "routing"]).unwrap(),
            ["routing", "verify"]
        );
        let refused = names(&["speed"]).unwrap_err();
        assert!(GROUPS.iter().all(|group| refused.contains(group.name)));
    }
}
