//! What senders write.

use super::Raised;
use super::sns::Message;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Longest name and detail of an alarm, in characters.
const NAME: usize = 200;
const DETAIL: usize = 500;
/// How this family's own alerts are called.
const OWN: &str = "LlmRollout";

/// A message, by who writes like this.
#[derive(Debug)]
pub(super) enum Payload {
    Alertmanager(Alerts),
    Sns(Box<Message>),
    Plain(Plain),
}

/// What Alertmanager posts (version 4), as far as it matters.
#[derive(Debug, Deserialize)]
pub(super) struct Alerts {
    version: String,
    alerts: Vec<Alert>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Alert {
    status: String,
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    starts_at: String,
    #[serde(default)]
    fingerprint: String,
}

/// What `CloudWatch` writes into an SNS message, as far as it matters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CloudWatch {
    alarm_name: String,
    #[serde(default)]
    alarm_arn: String,
    new_state_value: String,
    #[serde(default)]
    new_state_reason: String,
    state_change_time: String,
}

/// What hosts write themselves.
#[derive(Debug, Deserialize)]
pub(super) struct Plain {
    name: String,
    #[serde(default)]
    detail: String,
}

/// An alarm, and by what to tell whether it was delivered before.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) id: String,
    pub(super) alarm: Raised,
}

fn line(text: &str, most: usize) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let short = text.chars().take(most).map(clean);
    short.collect::<String>().trim().to_owned()
}

fn found(id: String, name: &str, detail: &str) -> Result<Found, String> {
    let (name, detail) = (line(name, NAME), line(detail, DETAIL));
    if name.is_empty() {
        return Err("an alarm has no name".to_owned());
    }
    let alarm = Raised { name, detail };
    Ok(Found { id, alarm })
}

impl Payload {
    pub(super) fn read(body: &[u8]) -> Result<Self, String> {
        /// By what a message tells whose it is.
        #[derive(Deserialize)]
        struct Marks {
            #[serde(rename = "Type")]
            sns: Option<serde::de::IgnoredAny>,
            alerts: Option<serde::de::IgnoredAny>,
        }
        let read = |e: serde_json::Error| e.to_string();
        let marks: Marks = serde_json::from_slice(body).map_err(read)?;
        Ok(match marks {
            Marks { sns: Some(_), .. } => Self::Sns(serde_json::from_slice(body).map_err(read)?),
            Marks {
                alerts: Some(_), ..
            } => Self::Alertmanager(serde_json::from_slice(body).map_err(read)?),
            Marks { .. } => Self::Plain(serde_json::from_slice(body).map_err(read)?),
        })
    }

    /// What has gone off, of those of Alertmanager's that carry these labels.
    pub(super) fn alarms(&self, only: &BTreeMap<String, String>) -> Result<Vec<Found>, String> {
        match self {
            Self::Plain(plain) => {
                let id = format!("{} {}", plain.name, plain.detail);
                Ok(vec![found(id, &plain.name, &plain.detail)?])
            }
            Self::Sns(message) => {
                let alarm: CloudWatch = serde_json::from_str(&message.text)
                    .map_err(|e| format!("the SNS message is no alarm of CloudWatch: {e}"))?;
                if alarm.new_state_value != "ALARM" {
                    return Ok(Vec::new());
                }
                let id = format!("{} {}", alarm.alarm_arn, alarm.state_change_time);
                Ok(vec![found(id, &alarm.alarm_name, &alarm.new_state_reason)?])
            }
            Self::Alertmanager(alerts) => alerts.alarms(only),
        }
    }
}

impl Alerts {
    fn alarms(&self, only: &BTreeMap<String, String>) -> Result<Vec<Found>, String> {
        if self.version != "4" {
            return Err(format!(
                "it is version {:?} of Alertmanager's webhook, and 4 is known",
                line(&self.version, 20)
            ));
        }
        let ours = self.alerts.iter().filter(|alert| {
            let carries =
                |(label, value): (&String, &String)| alert.labels.get(label) == Some(value);
            alert.status == "firing" && only.iter().all(carries)
        });
        let read = |alert: &Alert| {
            let name = alert.labels.get("alertname").map_or("", String::as_str);
            // What this family tells people must not come back as an alarm.
            if name == OWN {
                return None;
            }
            let told = ["summary", "description", "message"];
            let told = told.iter().find_map(|key| alert.annotations.get(*key));
            let detail = told.map_or_else(
                || format!("firing since {}", alert.starts_at),
                ToString::to_string,
            );
            let labels = match alert.fingerprint.as_str() {
                "" => format!("{:?}", alert.labels),
                fingerprint => fingerprint.to_owned(),
            };
            Some(found(
                format!("{labels} {}", alert.starts_at),
                name,
                &detail,
            ))
        };
        ours.filter_map(read).collect()
    }
}
