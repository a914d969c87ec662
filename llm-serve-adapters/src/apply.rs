//! What a version makes of a request: its model name, upstream, system prompt, examples and generation settings.
//!
//! A change of prompt on one engine is the commonest rollout: two versions, one server, and a [`Profile`] for each.
//!
//! ```
//! use llm_serve_adapters::apply::{Api, Profile, Profiles};
//! # use llm_serve_adapters::router::Decision;
//! use serde_json::json;
//! # fn with(decision: Decision, v1: &llm_version_core::VersionId, v2: &llm_version_core::VersionId)
//! # -> Result<(), Box<dyn std::error::Error>> {
//!
//! let profiles = Profiles::default()
//!     .version(v1, Profile::new("qwen").system("Answer briefly."))
//!     .version(v2, Profile::new("qwen").system("Answer briefly. Say so if you do not know.").default("temperature", json!(0.2)));
//! let mut body = json!({"model": "chat", "messages": [{"role": "user", "content": "Hello"}]});
//! decision.apply(&profiles, Api::Chat, &mut body)?;
//! # Ok(())
//! # }
//! ```
//!
//! What goes before what:
//!
//! | field | who says it |
//! |---|---|
//! | `model` | the version: what a client calls a model names the endpoint |
//! | system prompt (`messages`, `instructions`, the head of a `prompt`) | the version's first, then what the client says |
//! | examples | after all that is said at the start by the system, before the conversation |
//! | generation settings by [`Profile::default`] | the client, where it says something; else the version |
//! | generation settings by [`Profile::fixed`] | the version, whatever the client says |
//!
//! The three names of the limit on output tokens are one setting: whichever the client uses counts, and a version's is written as
//! the API calls it. A request that cannot be understood is refused and left as it was.

use crate::router::Decision;
use llm_version_core::VersionId;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Which body a request has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Api {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/responses`
    Responses,
}

impl Api {
    /// By the path that a client calls; none for any other.
    pub fn of_path(path: &str) -> Option<Self> {
        let path = path.trim_end_matches('/');
        [
            ("/chat/completions", Self::Chat),
            ("/completions", Self::Completions),
            ("/responses", Self::Responses),
        ]
        .into_iter()
        .find_map(|(end, api)| path.ends_with(end).then_some(api))
    }

    const fn limit(self) -> &'static str {
        match self {
            Self::Chat => "max_completion_tokens",
            Self::Completions => "max_tokens",
            Self::Responses => "max_output_tokens",
        }
    }
}

/// All names of the limit on output tokens.
const LIMITS: [&str; 3] = ["max_tokens", "max_completion_tokens", "max_output_tokens"];

/// What a version makes of requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    model: String,
    upstream: Option<String>,
    system: Option<String>,
    examples: Vec<(String, String)>,
    defaults: Map<String, Value>,
    fixed: Map<String, Value>,
}

impl Profile {
    /// Of a version that its server knows by this name.
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            upstream: None,
            system: None,
            examples: Vec::new(),
            defaults: Map::new(),
            fixed: Map::new(),
        }
    }

    /// Where it is served: whatever the host makes of it, a base address as a rule.
    #[must_use]
    pub fn upstream(mut self, address: impl Into<String>) -> Self {
        self.upstream = Some(address.into());
        self
    }

    /// Its system prompt. An empty one is none.
    #[must_use]
    pub fn system(mut self, prompt: impl Into<String>) -> Self {
        self.system = Some(prompt.into()).filter(|prompt| !prompt.is_empty());
        self
    }

    /// One more example: what a user might say, and the right answer.
    #[must_use]
    pub fn example(mut self, user: impl Into<String>, assistant: impl Into<String>) -> Self {
        self.examples.push((user.into(), assistant.into()));
        self
    }

    /// A generation setting for clients that say nothing about it.
    #[must_use]
    pub fn default(mut self, name: impl Into<String>, value: Value) -> Self {
        self.defaults.insert(name.into(), value);
        self
    }

    /// A generation setting whatever clients say.
    #[must_use]
    pub fn fixed(mut self, name: impl Into<String>, value: Value) -> Self {
        self.fixed.insert(name.into(), value);
        self
    }

    /// The name that its server knows it by.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Where it is served, if that was said.
    pub fn address(&self) -> Option<&str> {
        self.upstream.as_deref()
    }

    /// Makes a request its version's: see the [module](self) for what goes before what.
    ///
    /// # Errors
    /// The request cannot be understood, or says what prompts cannot be joined to; it is left as it was.
    pub fn apply(&self, api: Api, body: &mut Value) -> Result<(), ApplyError> {
        let Value::Object(request) = body else {
            return Err(ApplyError::Shape {
                field: "the body",
                expected: "an object",
            });
        };
        // Whatever can be refused is done on the side.
        let changed = match api {
            Api::Chat => self.chat(request)?,
            Api::Completions => self.completions(request)?,
            Api::Responses => self.responses(request)?,
        };
        request.extend(changed);
        request.insert("model".to_owned(), Value::from(self.model.as_str()));
        for (name, value) in &self.defaults {
            let said = |name: &str| request.get(name).is_some_and(|value| !value.is_null());
            if LIMITS.contains(&name.as_str()) {
                if !LIMITS.into_iter().any(said) {
                    request.insert(api.limit().to_owned(), value.clone());
                }
            } else if !said(name) {
                request.insert(name.clone(), value.clone());
            }
        }
        for (name, value) in &self.fixed {
            if LIMITS.contains(&name.as_str()) {
                for limit in LIMITS {
                    request.remove(limit);
                }
                request.insert(api.limit().to_owned(), value.clone());
            } else {
                request.insert(name.clone(), value.clone());
            }
        }
        Ok(())
    }

    fn chat(&self, request: &Map<String, Value>) -> Result<Map<String, Value>, ApplyError> {
        let field = "messages";
        let Some(Value::Array(said)) = request.get(field) else {
            return Err(ApplyError::Shape {
                field,
                expected: "a list of messages",
            });
        };
        let role = |message: &Value| {
            message
                .get("role")
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        let from_system =
            |message: &&Value| matches!(role(message).as_deref(), Some("system" | "developer"));
        let head = said.iter().take_while(from_system).count();
        let own = self
            .system
            .iter()
            .map(|text| json!({"role": "system", "content": text}));
        let messages = own
            .chain(said.iter().take(head).cloned())
            .chain(self.exchanges())
            .chain(said.iter().skip(head).cloned());
        Ok(Map::from_iter([(field.to_owned(), messages.collect())]))
    }

    fn exchanges(&self) -> impl Iterator<Item = Value> {
        self.examples.iter().flat_map(|(user, assistant)| {
            [
                json!({"role": "user", "content": user}),
                json!({"role": "assistant", "content": assistant}),
            ]
        })
    }

    fn completions(&self, request: &Map<String, Value>) -> Result<Map<String, Value>, ApplyError> {
        let field = "prompt";
        if self.system.is_none() && self.examples.is_empty() {
            return Ok(Map::new());
        }
        let mut head = String::new();
        if let Some(text) = &self.system {
            head = head + text + "\n\n";
        }
        for (user, assistant) in &self.examples {
            head = head + user + "\n" + assistant + "\n\n";
        }
        let with_head = |prompt: &Value| match prompt {
            Value::String(text) => Ok(Value::from(format!("{head}{text}"))),
            _ => Err(ApplyError::Shape {
                field,
                expected: "text: a prompt cannot be joined to token numbers",
            }),
        };
        let prompt = match request.get(field) {
            Some(Value::Array(prompts)) => prompts
                .iter()
                .map(with_head)
                .collect::<Result<Value, _>>()?,
            Some(prompt) => with_head(prompt)?,
            None => {
                return Err(ApplyError::Shape {
                    field,
                    expected: "text",
                });
            }
        };
        Ok(Map::from_iter([(field.to_owned(), prompt)]))
    }

    fn responses(&self, request: &Map<String, Value>) -> Result<Map<String, Value>, ApplyError> {
        let mut changed = Map::new();
        let instructions = match (&self.system, request.get("instructions")) {
            (own, None | Some(Value::Null)) => own.clone(),
            (None, Some(Value::String(said))) => Some(said.clone()),
            (Some(own), Some(Value::String(said))) => Some(format!("{own}\n\n{said}")),
            _ => {
                return Err(ApplyError::Shape {
                    field: "instructions",
                    expected: "text",
                });
            }
        };
        if let Some(instructions) = instructions {
            changed.insert("instructions".to_owned(), Value::from(instructions));
        }
        // What goes on from an earlier response has had the examples.
        let goes_on = ["previous_response_id", "conversation"]
            .into_iter()
            .any(|name| request.get(name).is_some_and(|value| !value.is_null()));
        if !self.examples.is_empty() && !goes_on {
            let said = match request.get("input") {
                Some(Value::String(text)) => vec![json!({"role": "user", "content": text})],
                Some(Value::Array(items)) => items.clone(),
                _ => {
                    return Err(ApplyError::Shape {
                        field: "input",
                        expected: "text or a list of items",
                    });
                }
            };
            let input = self.exchanges().chain(said).collect();
            changed.insert("input".to_owned(), input);
        }
        Ok(changed)
    }
}

/// Why a request could not be made its version's; it was left as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The client's mistake: a reply of status 400 is right.
    #[error("{field} is not what it should be: {expected}")]
    Shape {
        /// Which.
        field: &'static str,
        /// What would be right.
        expected: &'static str,
    },
    /// The host's mistake: no profile was given for the version.
    #[error("version {0} has no profile: give it one before it is served")]
    NoProfile(String),
}

/// The profile of every version that a host serves.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Profiles(BTreeMap<VersionId, Profile>);

impl Profiles {
    /// With this version's.
    #[must_use]
    pub fn version(mut self, id: &VersionId, profile: Profile) -> Self {
        self.0.insert(id.clone(), profile);
        self
    }

    /// A version's.
    pub fn get(&self, id: &VersionId) -> Option<&Profile> {
        self.0.get(id)
    }
}

impl Decision {
    /// Makes a request its version's: see [`crate::apply`] for what goes before what. The profile that was applied comes back,
    /// which says where the version is served.
    ///
    /// # Errors
    /// The request cannot be understood, or the version has no profile; the request is left as it was.
    pub fn apply<'p>(
        self,
        profiles: &'p Profiles,
        api: Api,
        body: &mut Value,
    ) -> Result<&'p Profile, ApplyError> {
        let version = self.version();
        let profile = version.and_then(|version| profiles.get(version.id()));
        let profile = profile.ok_or_else(|| {
            let name = version.map_or("that is unknown", |version| version.reference());
            ApplyError::NoProfile(name.to_owned())
        })?;
        profile.apply(api, body)?;
        Ok(profile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::tests::version;
    use crate::router::{Role, VersionSlot};
    use proptest::prelude::*;

    fn profile() -> Profile {
        Profile::new("own")
            .system("Be brief.")
            .example("2+2?", "4")
            .default("temperature", json!(0.2))
            .default("max_tokens", json!(100))
            .fixed("top_p", json!(0.9))
    }

    fn applied(api: Api, mut body: Value) -> Value {
        profile().apply(api, &mut body).unwrap();
        body
    }

    #[test]
    fn a_chat_begins_with_what_the_version_says() {
        let body = json!({"model": "chat", "stream": true, "top_p": 0.1, "messages": [
            {"role": "developer", "content": "In French."}, {"role": "user", "content": "Hi"},
            {"role": "system", "content": "later"}]});
        assert_eq!(
            applied(Api::Chat, body),
            json!({"model": "own", "stream": true, "top_p": 0.9, "temperature": 0.2, "max_completion_tokens": 100, "messages": [
                {"role": "system", "content": "Be brief."}, {"role": "developer", "content": "In French."},
                {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"},
                {"role": "user", "content": "Hi"}, {"role": "system", "content": "later"}]})
        );
    }

    #[test]
    fn a_client_goes_before_a_default_whatever_it_calls_it() {
        for (name, value) in [
            ("max_tokens", 5),
            ("max_completion_tokens", 6),
            ("max_output_tokens", 7),
        ] {
            let body = applied(
                Api::Chat,
                json!({"messages": [], "temperature": 1.5, name: value}),
            );
            assert_eq!(body["temperature"], 1.5);
            let limits = LIMITS.map(|limit| body.get(limit).and_then(Value::as_u64));
            assert_eq!(limits.into_iter().flatten().collect::<Vec<_>>(), [value]);
        }
        // Nothing said is nothing said, spelt out or not.
        let body = applied(
            Api::Chat,
            json!({"messages": [], "temperature": null, "max_tokens": null}),
        );
        assert_eq!(
            (&body["temperature"], &body["max_completion_tokens"]),
            (&json!(0.2), &json!(100))
        );
        let strict = Profile::new("own").fixed("max_tokens", json!(9));
        let mut body = json!({"messages": [], "max_completion_tokens": 1_000, "max_tokens": 1_000});
        strict.apply(Api::Chat, &mut body).unwrap();
        assert_eq!(
            body,
            json!({"model": "own", "messages": [], "max_completion_tokens": 9})
        );
    }

    #[test]
    fn a_prompt_gets_a_head() {
        let head = "Be brief.\n\n2+2?\n4\n\n";
        let one = applied(Api::Completions, json!({"prompt": "Hi"}));
        assert_eq!(one["prompt"], format!("{head}Hi"));
        assert_eq!(one["max_tokens"], 100);
        let two = applied(Api::Completions, json!({"prompt": ["a", "b"]}));
        assert_eq!(
            two["prompt"],
            json!([format!("{head}a"), format!("{head}b")])
        );
        let mut tokens = json!({"prompt": [1, 2]});
        assert!(profile().apply(Api::Completions, &mut tokens).is_err());
        assert_eq!(tokens, json!({"prompt": [1, 2]}));
        Profile::new("own")
            .apply(Api::Completions, &mut tokens)
            .unwrap();
        assert_eq!(tokens, json!({"model": "own", "prompt": [1, 2]}));
    }

    #[test]
    fn a_response_gets_instructions_and_examples_once() {
        let first = applied(
            Api::Responses,
            json!({"input": "Hi", "instructions": "In French."}),
        );
        assert_eq!(first["instructions"], "Be brief.\n\nIn French.");
        assert_eq!(first["input"].as_array().unwrap().len(), 3);
        assert_eq!(first["input"][2], json!({"role": "user", "content": "Hi"}));
        assert_eq!(first["max_output_tokens"], 100);
        let next = applied(
            Api::Responses,
            json!({"input": "More", "previous_response_id": "r1"}),
        );
        // Instructions are not carried over by that API; a history is.
        assert_eq!(
            (&next["instructions"], &next["input"]),
            (&json!("Be brief."), &json!("More"))
        );
    }

    #[test]
    fn paths_tell_the_api() {
        let of = |path| Api::of_path(path);
        assert_eq!(of("/v1/chat/completions"), Some(Api::Chat));
        assert_eq!(of("/openai/v1/completions/"), Some(Api::Completions));
        assert_eq!(of("/v1/responses"), Some(Api::Responses));
        assert_eq!(of("/v1/models"), None);
    }

    #[test]
    fn a_decision_applies_its_versions_profile() {
        let slot = VersionSlot::intern(&version(1)).unwrap();
        let decision = Decision::new(slot, Role::Baseline, 1, false);
        let mut body = json!({"messages": []});
        let none = Profiles::default();
        assert!(matches!(
            decision.apply(&none, Api::Chat, &mut body),
            Err(ApplyError::NoProfile(_))
        ));
        assert_eq!(body, json!({"messages": []}));
        let some = none.version(&version(1), Profile::new("m").upstream("http://one"));
        let applied = decision.apply(&some, Api::Chat, &mut body).unwrap();
        assert_eq!(
            (applied.address(), &body["model"]),
            (Some("http://one"), &json!("m"))
        );
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-z]{0,4}".prop_map(Value::from),
        ];
        let key = prop_oneof![
            Just("messages"),
            Just("prompt"),
            Just("input"),
            Just("instructions"),
            Just("role"),
            Just("max_tokens"),
        ];
        leaf.prop_recursive(3, 24, 4, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec((key.clone(), inner), 0..4).prop_map(|pairs| pairs
                    .into_iter()
                    .map(|(k, v)| (k.to_owned(), v))
                    .collect::<Value>()),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_refused_is_left_as_it_was(body in json_value(), api in 0..3_usize) {
            let api = [Api::Chat, Api::Completions, Api::Responses][api];
            let mut changed = body.clone();
            if profile().apply(api, &mut changed).is_ok() {
                prop_assert_eq!(&changed["model"], "own");
            } else {
                prop_assert_eq!(changed, body);
            }
        }
    }
}
