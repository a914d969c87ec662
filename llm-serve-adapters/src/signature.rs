//! Signatures as the Standard Webhooks specification has them.

use crate::host::{Error, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

const SHORTEST_SECRET: usize = 16;

/// A secret that both sides have.
#[derive(Clone)]
pub(crate) struct Secret(Hmac<Sha256>);

impl Secret {
    /// Of at least 16 bytes, used as they are.
    pub(crate) fn new(secret: &[u8]) -> Result<Self> {
        if secret.len() < SHORTEST_SECRET {
            return Err(Error::permanent(format!(
                "the webhook's secret has {} bytes: give at least {SHORTEST_SECRET} random ones",
                secret.len()
            )));
        }
        let key = Hmac::new_from_slice(secret).map_err(|e| {
            Error::permanent("the webhook's secret cannot be used: give another").because(e)
        })?;
        Ok(Self(key))
    }

    fn mac(&self, id: &str, seconds: u64, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(format!("{id}.{seconds}.").as_bytes());
        mac.update(body);
        mac
    }

    /// The value of the header `webhook-signature`.
    #[cfg(feature = "webhook")]
    pub(crate) fn sign(&self, id: &str, seconds: u64, body: &[u8]) -> String {
        let mac = self.mac(id, seconds, body).finalize();
        format!("v1,{}", STANDARD.encode(mac.into_bytes()))
    }

    /// Whether one of the signatures in the header is right; there are several while a secret is being replaced.
    #[cfg(feature = "alarm-webhook")]
    pub(crate) fn verifies(&self, id: &str, seconds: u64, body: &[u8], header: &str) -> bool {
        let mut signatures = header.split(' ').filter_map(|s| s.strip_prefix("v1,"));
        signatures.any(|signature| {
            let signature = STANDARD.decode(signature);
            signature.is_ok_and(|s| self.mac(id, seconds, body).verify_slice(&s).is_ok())
        })
    }
}
