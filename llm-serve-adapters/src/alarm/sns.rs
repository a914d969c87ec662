//! Messages of Amazon SNS to an HTTP address: who signed them, of which topic they are.

use super::Refused;
use crate::host::{Error, Result as HostResult};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;
use std::fmt::Write as _;
use webpki::{EndEntityCert, ring};

/// A message, as SNS posts it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Message {
    #[serde(rename = "Type")]
    kind: String,
    #[serde(rename = "MessageId")]
    pub(super) id: String,
    topic_arn: String,
    subject: Option<String>,
    #[serde(rename = "Message")]
    pub(super) text: String,
    pub(super) timestamp: String,
    #[serde(default)]
    signature_version: String,
    #[serde(default)]
    signature: String,
    token: Option<String>,
    #[serde(rename = "SubscribeURL")]
    subscribe_url: Option<String>,
}

impl Message {
    /// What is signed: some fields with their names, in order of these, each on a line.
    fn signed(&self) -> String {
        let confirms = self.kind != "Notification";
        let fields = [
            ("Message", Some(&self.text)),
            ("MessageId", Some(&self.id)),
            ("Subject", self.subject.as_ref().filter(|_| !confirms)),
            (
                "SubscribeURL",
                self.subscribe_url.as_ref().filter(|_| confirms),
            ),
            ("Timestamp", Some(&self.timestamp)),
            ("Token", self.token.as_ref().filter(|_| confirms)),
            ("TopicArn", Some(&self.topic_arn)),
            ("Type", Some(&self.kind)),
        ];
        let mut text = String::new();
        for (name, value) in fields {
            if let Some(value) = value {
                let _to_a_string = write!(text, "{name}\n{value}\n");
            }
        }
        text
    }

    /// Where to say yes to a subscription; none if this is a notification.
    pub(super) fn to_confirm(&self) -> Result<Option<String>, Refused> {
        let malformed = |why: &str| Err(Refused::Malformed(why.to_owned()));
        match (self.kind.as_str(), &self.subscribe_url) {
            ("Notification", _) => Ok(None),
            ("SubscriptionConfirmation", Some(url)) if is_of_sns(url) => Ok(Some(url.clone())),
            ("SubscriptionConfirmation", _) => malformed("its SubscribeURL is not of SNS"),
            // To visit the address of an UnsubscribeConfirmation would subscribe again.
            _ => malformed("it is neither a Notification nor a SubscriptionConfirmation"),
        }
    }
}

/// Whether an address is `https://sns.REGION.amazonaws.com/...` (or `.com.cn`).
fn is_of_sns(url: &str) -> bool {
    let Some((host, _)) = url
        .strip_prefix("https://")
        .and_then(|rest| rest.split_once('/'))
    else {
        return false;
    };
    let region = host.strip_prefix("sns.").and_then(|rest| {
        rest.strip_suffix(".amazonaws.com")
            .or_else(|| rest.strip_suffix(".amazonaws.com.cn"))
    });
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    region.is_some_and(|region| !region.is_empty() && region.chars().all(letter))
}

/// By what messages of SNS are known.
#[derive(Debug)]
pub(super) struct Certificates {
    trusted: Vec<CertificateDer<'static>>,
    topics: Vec<String>,
}

impl Certificates {
    pub(super) fn new(pems: &[String], topics: Vec<String>) -> HostResult<Self> {
        let unusable = |e: &dyn std::fmt::Display| {
            Error::permanent(format!(
                "the certificate of SNS cannot be used ({e}): give the PEM text from the SigningCertURL of its messages"
            ))
        };
        let mut trusted = Vec::new();
        for pem in pems {
            let certificate =
                CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| unusable(&e))?;
            EndEntityCert::try_from(&certificate).map_err(|e| unusable(&e))?;
            trusted.push(certificate);
        }
        Ok(Self { trusted, topics })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.trusted.is_empty()
    }

    /// Whether SNS has signed it.
    pub(super) fn check(&self, message: &Message) -> Result<(), Refused> {
        let unknown = |why: &str| Err(Refused::Unknown(why.to_owned()));
        if message.signature_version != "2" {
            return unknown(
                "SNS has signed it with SHA-1: set the topic's attribute SignatureVersion to 2",
            );
        }
        let Ok(signature) = STANDARD.decode(&message.signature) else {
            return unknown("its Signature is not base64");
        };
        let text = message.signed();
        let fits = |certificate: &CertificateDer<'_>| {
            EndEntityCert::try_from(certificate).is_ok_and(|certificate| {
                let algorithm = ring::RSA_PKCS1_2048_8192_SHA256;
                let signed = certificate.verify_signature(algorithm, text.as_bytes(), &signature);
                signed.is_ok()
            })
        };
        if !self.trusted.iter().any(fits) {
            return unknown(
                "no certificate that was given fits its signature: SNS may have replaced its own, fetch it anew",
            );
        }
        Ok(())
    }

    /// Whether it is of a topic that is taken.
    pub(super) fn check_topic(&self, message: &Message) -> Result<(), Refused> {
        if self.topics.is_empty() || self.topics.contains(&message.topic_arn) {
            return Ok(());
        }
        Err(Refused::Unknown("it is of another topic".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_sns_are_told_from_others() {
        for good in [
            "https://sns.us-west-2.amazonaws.com/?Action=ConfirmSubscription&Token=2336",
            "https://sns.cn-north-1.amazonaws.com.cn/?Action=ConfirmSubscription",
        ] {
            assert!(is_of_sns(good), "{good}");
        }
        for bad in [
            "http://sns.us-west-2.amazonaws.com/",
            "https://sns.us-west-2.amazonaws.com.example/",
            "https://sns.us-west-2.amazonaws.com@evil.example/",
            "https://evil.example/sns.us-west-2.amazonaws.com/",
            "https://sns..amazonaws.com/",
            "https://sns.evil.example#.amazonaws.com/",
            "https://sns.us-west-2.amazonaws.com",
        ] {
            assert!(!is_of_sns(bad), "{bad}");
        }
    }
}
