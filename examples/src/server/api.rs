//! The shapes of the OpenAI-compatible API: what is asked, and what is said.

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// What is wrong with a request, or with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) kind: &'static str,
    pub(super) code: Option<&'static str>,
    pub(super) param: Option<&'static str>,
    pub(super) message: String,
}

impl ApiError {
    /// The client's mistake.
    pub(super) fn invalid(param: Option<&'static str>, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            kind: "invalid_request_error",
            code: None,
            param,
            message: message.into(),
        }
    }

    /// The version's fault, not a matter of load: recorded as such.
    pub(super) fn server(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            kind: "server_error",
            code: Some(code),
            param: None,
            message: message.into(),
        }
    }

    /// Too much to do.
    pub(super) fn overload(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            kind: "requests",
            code: Some("rate_limit_exceeded"),
            param: None,
            message: message.into(),
        }
    }

    pub(super) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    pub(super) fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }});
        let mut response = (self.status, axum::Json(body)).into_response();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            let soon = http::HeaderValue::from_static("1");
            response.headers_mut().insert(header::RETRY_AFTER, soon);
        }
        response
    }
}

/// A request as it arrives. What else a client may send is not looked at: the
/// version's bundle decides.
#[derive(Debug, Deserialize)]
struct Wire {
    model: Option<String>,
    messages: Vec<Message>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    max_tokens: Option<usize>,
    #[serde(default)]
    max_completion_tokens: Option<usize>,
    #[serde(default)]
    seed: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Value,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// The last message of the user.
    pub(super) text: String,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    /// The client may ask for fewer tokens than the bundle gives, not for more.
    pub(super) max_tokens: Option<usize>,
    pub(super) seed: u64,
}

impl Asked {
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let wire: Wire = serde_json::from_slice(body).map_err(|error| {
            ApiError::invalid(None, format!("the request is malformed: {error}"))
        })?;
        match wire.model.as_deref() {
            Some(super::MODEL) => {}
            Some(other) => {
                let message = format!("there is no model {other:?}; there is {:?}", super::MODEL);
                return Err(ApiError::invalid(Some("model"), message)
                    .with_status(StatusCode::NOT_FOUND)
                    .with_code("model_not_found"));
            }
            None => return Err(ApiError::invalid(Some("model"), "`model` is missing")),
        }
        let last = wire.messages.iter().rev().find(|m| m.role == "user");
        let text = last
            .and_then(|message| content(&message.content))
            .ok_or_else(|| {
                let message = "`messages` needs a user message with text";
                ApiError::invalid(Some("messages"), message)
            })?;
        let max_tokens = wire.max_completion_tokens.or(wire.max_tokens);
        if max_tokens == Some(0) {
            let message = "`max_tokens` must be at least 1";
            return Err(ApiError::invalid(Some("max_tokens"), message));
        }
        Ok(Self {
            text,
            stream: wire.stream.unwrap_or(false),
            include_usage: wire.stream_options.is_some_and(|o| o.include_usage),
            max_tokens,
            seed: wire.seed.unwrap_or(0).cast_unsigned(),
        })
    }
}

/// A message's text: a string, or the text parts of a list.
fn content(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            let texts = parts.iter().filter(|part| part["type"] == "text");
            let texts: Option<Vec<&str>> = texts.map(|part| part["text"].as_str()).collect();
            texts.filter(|t| !t.is_empty()).map(|t| t.concat())
        }
        _ => None,
    }
}

/// How many tokens went in and came out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) prompt: usize,
    pub(super) completion: usize,
}

impl Usage {
    fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        })
    }
}

/// Writes the pieces of one answer.
#[derive(Debug)]
pub(super) struct Wording {
    id: String,
    created: u64,
    model: String,
    include_usage: bool,
}

impl Wording {
    /// For the `number`-th answer of a version.
    pub(super) fn new(number: u64, version: &str, asked: &Asked) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let since = since.unwrap_or_default();
        Self {
            id: format!("chatcmpl-{:x}-{number:x}", since.as_millis()),
            created: since.as_secs(),
            model: version.to_owned(),
            include_usage: asked.include_usage,
        }
    }

    fn chunk(&self, choices: &Value, usage: Option<Usage>) -> Bytes {
        let mut chunk = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if self.include_usage {
            chunk["usage"] = usage.map_or(Value::Null, Usage::json);
        }
        Bytes::from(format!("data: {chunk}\n\n"))
    }

    fn delta(&self, delta: &Value, finish: Option<&str>) -> Bytes {
        let choice = json!([{
            "index": 0,
            "delta": delta,
            "logprobs": null,
            "finish_reason": finish,
        }]);
        self.chunk(&choice, None)
    }

    /// The beginning of a stream.
    pub(super) fn opening(&self) -> Bytes {
        self.delta(&json!({"role": "assistant", "content": ""}), None)
    }

    /// A piece of text.
    pub(super) fn piece(&self, text: &str) -> Bytes {
        self.delta(&json!({"content": text}), None)
    }

    /// The end of a stream.
    pub(super) fn closing(&self, finish: &str, usage: Usage) -> Bytes {
        let mut end = self.delta(&json!({}), Some(finish)).to_vec();
        if self.include_usage {
            end.extend_from_slice(&self.chunk(&json!([]), Some(usage)));
        }
        end.extend_from_slice(b"data: [DONE]\n\n");
        Bytes::from(end)
    }

    /// The whole answer at once.
    pub(super) fn whole(&self, text: &str, finish: &str, usage: Usage) -> Bytes {
        let whole = json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": null},
                "logprobs": null,
                "finish_reason": finish,
            }],
            "usage": usage.json(),
        });
        Bytes::from(whole.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &Value) -> Result<Asked, ApiError> {
        Asked::parse(body.to_string().as_bytes())
    }

    #[test]
    fn the_last_message_of_the_user_counts() {
        let asked = parse(&json!({
            "model": "desk",
            "messages": [
                {"role": "system", "content": "ignored: the bundle has its own"},
                {"role": "user", "content": "first"},
                {"role": "assistant", "content": null},
                {"role": "user", "content": [
                    {"type": "text", "text": "two "},
                    {"type": "image_url"},
                    {"type": "text", "text": "parts"},
                ]},
            ],
            "stream": null,
            "max_completion_tokens": 5,
            "unheard_of": {},
        }));
        let asked = asked.unwrap();
        assert_eq!(
            (asked.text.as_str(), asked.max_tokens),
            ("two parts", Some(5))
        );
        assert!(!asked.stream && !asked.include_usage);
    }

    #[test]
    fn mistakes_are_named() {
        let user = json!([{"role": "user", "content": "x"}]);
        for (body, param, status) in [
            (json!([]), None, 400),
            (json!({"messages": user}), Some("model"), 400),
            (
                json!({"model": "gpt", "messages": user}),
                Some("model"),
                404,
            ),
            (
                json!({"model": "desk", "messages": []}),
                Some("messages"),
                400,
            ),
            (
                json!({"model": "desk", "messages": [{"role": "user", "content": 7}]}),
                Some("messages"),
                400,
            ),
            (
                json!({"model": "desk", "messages": user, "max_tokens": 0}),
                Some("max_tokens"),
                400,
            ),
        ] {
            let error = parse(&body).unwrap_err();
            assert_eq!(
                (error.param, error.status.as_u16()),
                (param, status),
                "{body}"
            );
        }
    }
}
