//! How a conversation becomes the one text that the model continues.

use serde::{Deserialize, Serialize};

/// The three parts of a prompt; `{system}` and `{user}` stand for the texts.
///
/// The part with the system prompt is left out when that prompt is empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ChatTemplate {
    /// Around the system prompt.
    pub system: String,
    /// Around the user's message.
    pub user: String,
    /// What the answer follows.
    pub reply: String,
}

impl Default for ChatTemplate {
    fn default() -> Self {
        Self {
            system: "{system}\n".to_owned(),
            user: "Customer: {user}\n".to_owned(),
            reply: "Desk:\n".to_owned(),
        }
    }
}

impl ChatTemplate {
    /// The text to continue.
    pub fn render(&self, system: &str, user: &str) -> String {
        let mut out = String::with_capacity(system.len() + user.len() + 32);
        if !system.is_empty() {
            out.push_str(&self.system.replace("{system}", system));
        }
        out.push_str(&self.user.replace("{user}", user));
        out.push_str(&self.reply);
        out
    }
}
