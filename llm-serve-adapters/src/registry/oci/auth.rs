//! Who asks: a password, or the token that the registry wants instead.

use super::OciRegistryError;
use crate::http_client::{Address, secret};
use reqwest::header::HeaderValue;
use std::collections::BTreeMap;
use std::fmt;

/// A user and a password, never shown.
#[derive(Clone)]
pub(super) struct Credentials(HeaderValue);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    pub(super) fn new(user: &str, password: &str) -> Result<Self, OciRegistryError> {
        use base64::Engine as _;
        let refuse = |why: &str| OciRegistryError::Address {
            what: "user or password".to_owned(),
            why: why.to_owned(),
        };
        if user.contains(':') {
            return Err(refuse("a user holds no ':'"));
        }
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        let header = secret("the password", &format!("Basic {pair}"));
        Ok(Self(header.map_err(|e| refuse(&e.to_string()))?))
    }

    pub(super) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

/// What a registry demands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// Reads a `WWW-Authenticate` header.
    pub(super) fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut fields = parameters(rest);
        Some(Self::Bearer {
            realm: fields.remove("realm")?,
            service: fields.remove("service"),
            scope: fields.remove("scope"),
        })
    }
}

/// `name="value"` pairs, separated by commas; values may hold commas.
fn parameters(mut text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    while let Some((name, rest)) = text.split_once('=') {
        let name = name.trim_matches([',', ' ', '\t']).to_ascii_lowercase();
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once(',').unwrap_or((rest, "")),
        };
        found.insert(name, value.to_owned());
        text = rest;
    }
    found
}

/// Where a token is asked for. Credentials do not leave TLS once they are in it.
pub(super) fn token_address(
    registry: &Address,
    realm: &str,
    service: Option<&str>,
    scopes: &[&str],
) -> Result<Address, String> {
    let realm = Address::parse(realm).map_err(|e| e.to_string())?;
    if registry.is_secure() && !realm.is_secure() {
        return Err(format!("it sends to {realm}, without TLS, for a token"));
    }
    let mut pairs: Vec<(&str, &str)> = service.map(|s| ("service", s)).into_iter().collect();
    pairs.extend(scopes.iter().map(|scope| ("scope", *scope)));
    Ok(realm.and_query(&pairs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let docker = r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#;
        let Some(Challenge::Bearer {
            realm,
            service,
            scope,
        }) = Challenge::parse(docker)
        else {
            panic!()
        };
        assert_eq!(realm, "https://auth.example/token");
        assert_eq!(service.as_deref(), Some("registry.example"));
        assert_eq!(scope.as_deref(), Some("repository:a/b:pull,push"));
        assert_eq!(Challenge::parse("basic realm=x"), Some(Challenge::Basic));
        for none in [
            "",
            "Negotiate",
            "Bearer",
            "Bearer realm",
            "Bearer scope=\"x\"",
        ] {
            assert_eq!(Challenge::parse(none), None, "{none}");
        }
        assert!(parameters("a=b, c=\"d").contains_key("c"));
    }

    #[test]
    fn passwords_are_not_shown_and_stay_within_tls() {
        let credentials = Credentials::new("ana", "S3CRET").unwrap();
        assert!(!format!("{credentials:?} {:?}", credentials.header()).contains("S3CRET"));
        assert!(Credentials::new("a:b", "x").is_err());
        let registry = Address::parse("https://registry.example/v2").unwrap();
        assert!(token_address(&registry, "http://auth.example/token", None, &[]).is_err());
        let to = token_address(
            &registry,
            "https://auth.example/t?a=b",
            Some("s"),
            &["x", "y"],
        );
        assert!(to.is_ok());
    }
}
