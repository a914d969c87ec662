//! Where an object of Kubernetes holds weights and what a router remembers, and how they are read and written. No I/O.

use crate::host::{Error, Result};
use crate::router::core::RouterCore;
use llm_rollout::Share;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What an object remembers for its router.
pub(super) const ANNOTATION: &str = "llm-serve-adapters/router";

/// Which object holds the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `HTTPRoute` of the Gateway API: each weight is a part of their sum, 1 if it is not said.
    HttpRoute,
    /// `VirtualService` of Istio: weights are percent; a destination alone gets everything.
    VirtualService,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::HttpRoute => "HTTPRoute",
            Self::VirtualService => "VirtualService",
        }
    }

    /// Where objects of a namespace are.
    pub(super) fn path(self, namespace: &str) -> String {
        match self {
            Self::HttpRoute => {
                format!("/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/httproutes")
            }
            Self::VirtualService => {
                format!("/apis/networking.istio.io/v1/namespaces/{namespace}/virtualservices")
            }
        }
    }

    /// The weight of all users together.
    fn whole(self) -> u64 {
        match self {
            Self::HttpRoute => u64::from(Share::ALL.basis_points()),
            Self::VirtualService => 100,
        }
    }

    /// The weights of a candidate and a baseline. A finer share than the object can hold is refused: rounded down, fewer would be
    /// served than are evaluated; rounded up, more than was decided.
    ///
    /// # Errors
    /// It is too fine.
    pub(super) fn weights(self, share: Share) -> Result<(u64, u64)> {
        let points = u64::from(share.basis_points());
        let step = u64::from(Share::ALL.basis_points()) / self.whole();
        if points % step != 0 {
            return Err(Error::permanent(format!(
                "a {} cannot give a candidate {points} of 10000: its weights are whole percents; change the stages of the plan",
                self.name()
            )));
        }
        Ok((points / step, self.whole() - points / step))
    }

    fn rules(self) -> &'static str {
        match self {
            Self::HttpRoute => "/spec/rules",
            Self::VirtualService => "/spec/http",
        }
    }

    fn targets(self) -> &'static str {
        match self {
            Self::HttpRoute => "backendRefs",
            Self::VirtualService => "route",
        }
    }

    /// `NAME` of a service; `HOST` or `HOST/SUBSET` of a destination.
    fn target(self, target: &Value) -> Option<String> {
        match self {
            Self::HttpRoute => target.get("name")?.as_str().map(str::to_owned),
            Self::VirtualService => {
                let destination = target.get("destination")?;
                let host = destination.get("host")?.as_str()?;
                let subset = destination.get("subset").and_then(Value::as_str);
                Some(subset.map_or_else(|| host.to_owned(), |subset| format!("{host}/{subset}")))
            }
        }
    }

    /// The weight that is in force where none is said.
    fn unsaid(self, targets: usize) -> u64 {
        match (self, targets) {
            (Self::HttpRoute, _) => 1,
            (Self::VirtualService, 1) => 100,
            (Self::VirtualService, _) => 0,
        }
    }

    /// The weights of each rule that serves one of these targets; rules of others (another path, say) are left alone. A target that
    /// a rule lacks is not in its map.
    ///
    /// # Errors
    /// No rule does, or one serves others beside them: what its users get could not be told.
    pub(super) fn read(self, object: &Value, known: &[&str]) -> Result<Vec<BTreeMap<String, u64>>> {
        let rules = object.pointer(self.rules()).and_then(Value::as_array);
        let mut found = Vec::new();
        for rule in rules.into_iter().flatten() {
            let Some(targets) = rule.get(self.targets()).and_then(Value::as_array) else {
                continue;
            };
            let mut weights = BTreeMap::new();
            let (mut ours, mut strange) = (false, None);
            for target in targets {
                let name = self.target(target).unwrap_or_default();
                ours |= known.contains(&&*name);
                let weight = match target.get("weight") {
                    None => Some(self.unsaid(targets.len())),
                    Some(weight) => weight.as_u64(),
                };
                match weight {
                    Some(weight) if known.contains(&&*name) && !weights.contains_key(&name) => {
                        weights.insert(name, weight);
                    }
                    _ => strange = Some(name),
                }
            }
            match strange {
                _ if !ours => {}
                Some(name) => {
                    return Err(Error::permanent(format!(
                        "a rule of the {} has the target {name:?}, twice or of no known version: name the version that it serves, or \
                         take it out",
                        self.name()
                    )));
                }
                None => found.push(weights),
            }
        }
        if found.is_empty() {
            return Err(Error::permanent(format!(
                "no rule of the {} has a target of a known version: it needs one for each version",
                self.name()
            )));
        }
        Ok(found)
    }

    /// Gives these targets these weights in every rule that [`Self::read`] reads, and 0 to the others.
    pub(super) fn write(self, object: &mut Value, known: &[&str], to: &[(&str, u64)]) {
        let rules = object
            .pointer_mut(self.rules())
            .and_then(Value::as_array_mut);
        for rule in rules.into_iter().flatten() {
            let targets = rule.get_mut(self.targets()).and_then(Value::as_array_mut);
            for target in targets.into_iter().flatten() {
                let Some(name) = self.target(target).filter(|name| known.contains(&&**name)) else {
                    continue;
                };
                let weight = to.iter().find(|(of, _)| *of == name);
                if let Some(target) = target.as_object_mut() {
                    let weight = weight.map_or(0, |(_, weight)| *weight);
                    target.insert("weight".to_owned(), json!(weight));
                }
            }
        }
    }

    /// Whether every gateway serves what is written. A `VirtualService` says nothing of that.
    ///
    /// # Errors
    /// `Transient`: not yet. `Permanent`: it refuses to, or finds no service.
    pub(super) fn taken(self, object: &Value) -> Result<()> {
        if self == Self::VirtualService {
            return Ok(());
        }
        let written = object.pointer("/metadata/generation");
        let written = written.and_then(Value::as_u64).unwrap_or(0);
        let parents = object.pointer("/status/parents").and_then(Value::as_array);
        let parents = parents.map(Vec::as_slice).unwrap_or_default();
        if parents.is_empty() {
            return Err(Error::transient(
                "no gateway serves the HTTPRoute yet: check its parentRefs",
            ));
        }
        for parent in parents {
            let gateway = parent.pointer("/parentRef/name").and_then(Value::as_str);
            let gateway = gateway.unwrap_or("?");
            for wanted in ["Accepted", "ResolvedRefs"] {
                let conditions = parent.get("conditions").and_then(Value::as_array);
                let mut conditions = conditions.into_iter().flatten();
                let Some(condition) = conditions.find(|c| c["type"] == wanted) else {
                    return Err(Error::transient(format!(
                        "gateway {gateway} does not say yet whether the HTTPRoute is {wanted}"
                    )));
                };
                // Who does not say what it has seen has seen what is there.
                let seen = condition["observedGeneration"].as_u64().unwrap_or(written);
                if seen < written {
                    return Err(Error::transient(format!(
                        "gateway {gateway} serves generation {seen} of the HTTPRoute, {written} is written"
                    )));
                }
                if condition["status"] != "True" {
                    return Err(Error::permanent(format!(
                        "gateway {gateway} refuses the HTTPRoute: {wanted} is {}, {} ({})",
                        condition["status"], condition["reason"], condition["message"]
                    )));
                }
            }
        }
        Ok(())
    }
}

/// What the annotation holds: who wrote it, and the router's record.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Remembered {
    /// Which life of which program.
    pub(super) boot: u64,
    /// As [`RouterCore::to_json`] says it.
    record: Value,
}

impl Remembered {
    /// As the object has it; none if it has none.
    ///
    /// # Errors
    /// It cannot be read. Nothing should be overwritten.
    pub(super) fn of(object: &Value) -> Result<Option<Self>> {
        let annotations = object.pointer("/metadata/annotations");
        let Some(text) = annotations
            .and_then(|annotations| annotations.get(ANNOTATION))
            .and_then(Value::as_str)
        else {
            return Ok(None);
        };
        let read = serde_json::from_str(text);
        read.map(Some).map_err(|e| unreadable().because(e))
    }

    /// The router that wrote it, in another life.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub(super) fn restored(&self, boot: u64) -> Result<RouterCore> {
        let record = self.record.to_string();
        let core = RouterCore::from_json(boot, record.as_bytes());
        core.map_err(|e| unreadable().because(e))
    }

    /// Has the object remember this router; whether that is news to it.
    pub(super) fn write(object: &mut Value, boot: u64, core: &RouterCore) -> Result<bool> {
        let cannot =
            |e| Error::permanent("the router's record cannot be written as JSON").because(e);
        let json = core.to_json().map_err(cannot)?;
        let record = serde_json::from_slice(&json).map_err(cannot)?;
        let text = serde_json::to_string(&Self { boot, record }).map_err(cannot)?;
        let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
            return Err(Error::permanent("the object has no metadata"));
        };
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if annotations.is_null() {
            *annotations = json!({});
        }
        let Some(annotations) = annotations.as_object_mut() else {
            return Err(Error::permanent("the object's annotations are none"));
        };
        let news = annotations.get(ANNOTATION).and_then(Value::as_str) != Some(&text);
        annotations.insert(ANNOTATION.to_owned(), Value::String(text));
        Ok(news)
    }
}

fn unreadable() -> Error {
    Error::permanent(format!(
        "the annotation {ANNOTATION} cannot be read, nothing has been changed: put it back as it was, or take it out while no rollout is in progress"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::ErrorKind;

    const KNOWN: [&str; 2] = ["chat-v1", "chat-v2"];

    fn weights(found: &[BTreeMap<String, u64>]) -> Vec<Vec<u64>> {
        let rules = found.iter();
        rules.map(|rule| rule.values().copied().collect()).collect()
    }

    #[test]
    fn weights_of_a_route_are_read_and_written_where_versions_are_served() {
        let mut route = json!({"spec": {"rules": [
            {"backendRefs": [{"name": "chat-v1"}, {"name": "chat-v2", "weight": 0}]},
            {"matches": [{"path": {"value": "/other"}}], "backendRefs": [{"name": "other", "weight": 3}]},
            {"filters": []},
            {"backendRefs": [{"name": "chat-v1", "weight": 7, "port": 80}]},
        ]}});
        let untouched = route["spec"]["rules"][1].clone();
        let found = Kind::HttpRoute.read(&route, &KNOWN).unwrap();
        assert_eq!(weights(&found), [vec![1, 0], vec![7]]);
        Kind::HttpRoute.write(&mut route, &KNOWN, &[("chat-v1", 7500), ("chat-v2", 2500)]);
        let found = Kind::HttpRoute.read(&route, &KNOWN).unwrap();
        assert_eq!(weights(&found), [vec![7500, 2500], vec![7500]]);
        Kind::HttpRoute.write(&mut route, &KNOWN, &[("chat-v2", 1)]);
        let found = Kind::HttpRoute.read(&route, &KNOWN).unwrap();
        assert_eq!(weights(&found), [vec![0, 1], vec![0]]);
        assert_eq!(route["spec"]["rules"][1], untouched);
        assert_eq!(route["spec"]["rules"][3]["backendRefs"][0]["port"], 80);
    }

    #[test]
    fn weights_of_a_virtual_service_are_percent_of_hosts_and_subsets() {
        let to = |host: &str, subset: Option<&str>| {
            let mut to = json!({"destination": {"host": host}});
            if let Some(subset) = subset {
                to["destination"]["subset"] = json!(subset);
            }
            to
        };
        let known = ["chat/v1", "chat/v2", "chat-v3"];
        let service = json!({"spec": {"http": [{"route": [to("chat", Some("v1"))]}]}});
        let found = Kind::VirtualService.read(&service, &known).unwrap();
        assert_eq!(weights(&found), [[100]]);
        let mut service = json!({"spec": {"http": [
            {"route": [to("chat", Some("v1")), to("chat", Some("v2")), to("chat-v3", None)]}
        ]}});
        Kind::VirtualService.write(&mut service, &known, &[("chat/v1", 99), ("chat/v2", 1)]);
        let found = Kind::VirtualService.read(&service, &known).unwrap();
        // By name: chat-v3, chat/v1, chat/v2.
        assert_eq!(weights(&found), [[0, 99, 1]]);
    }

    #[test]
    fn what_cannot_be_told_apart_is_refused() {
        let of = |targets: Value| json!({"spec": {"rules": [{"backendRefs": targets}]}});
        for (bad, part) in [
            (json!([{"name": "chat-v1"}, {"name": "other"}]), "\"other\""),
            (json!([{"name": "chat-v1"}, {"name": "chat-v1"}]), "twice"),
            (json!([{"name": "chat-v1", "weight": -1}]), "\"chat-v1\""),
            (json!([{"name": "other"}]), "no rule"),
            (json!([]), "no rule"),
            (json!(7), "no rule"),
        ] {
            let error = Kind::HttpRoute.read(&of(bad), &KNOWN).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
        assert!(Kind::HttpRoute.read(&json!(null), &KNOWN).is_err());
    }

    #[test]
    fn shares_are_exact_or_refused() {
        let share = |points| Share::new(points).unwrap();
        assert_eq!(Kind::HttpRoute.weights(share(1)).unwrap(), (1, 9_999));
        assert_eq!(Kind::VirtualService.weights(share(100)).unwrap(), (1, 99));
        assert_eq!(Kind::VirtualService.weights(Share::ALL).unwrap(), (100, 0));
        let error = Kind::VirtualService.weights(share(150)).unwrap_err();
        assert!(error.to_string().contains("whole percents"), "{error}");
    }

    #[test]
    fn a_route_is_served_once_every_gateway_says_so() {
        let condition = |kind: &str, status: &str, seen: u64| json!({"type": kind, "status": status, "reason": "x", "message": "y", "observedGeneration": seen});
        let route = |conditions: [Value; 2]| {
            let fine = [
                condition("Accepted", "True", 8),
                condition("ResolvedRefs", "True", 8),
            ];
            json!({"metadata": {"generation": 7}, "status": {"parents": [
                {"parentRef": {"name": "inner"}, "conditions": fine},
                {"parentRef": {"name": "outer"}, "conditions": conditions},
            ]}})
        };
        let resolved = condition("ResolvedRefs", "True", 7);
        let taken = |accepted| Kind::HttpRoute.taken(&route([accepted, resolved.clone()]));
        assert!(taken(condition("Accepted", "True", 7)).is_ok());
        assert!(taken(json!({"type": "Accepted", "status": "True"})).is_ok());
        for (bad, kind, part) in [
            (
                condition("Accepted", "True", 6),
                ErrorKind::Transient,
                "generation 6",
            ),
            (
                condition("Other", "True", 7),
                ErrorKind::Transient,
                "not say yet",
            ),
            (
                condition("Accepted", "False", 7),
                ErrorKind::Permanent,
                "outer refuses",
            ),
        ] {
            let error = taken(bad).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(part), "{error}");
        }
        let unserved = json!({"metadata": {"generation": 7}, "status": {"parents": []}});
        let error = Kind::HttpRoute.taken(&unserved).unwrap_err();
        assert!(error.to_string().contains("parentRefs"), "{error}");
        assert!(Kind::VirtualService.taken(&unserved).is_ok());
    }
}
