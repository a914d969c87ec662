//! Whose certificates are trusted.

use crate::host::{Error, Result};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::fmt;

/// Certificate authorities that are trusted beside those of the system: a company's own, a cluster's, a test's.
///
/// Names, dates and signatures are checked as ever; there is no way to switch that off. A server's own certificate may be given
/// if it is its own authority.
///
/// ```no_run
/// use llm_serve_adapters::Authorities;
/// use llm_serve_adapters::notify::AlertmanagerNotifier;
///
/// let cluster = Authorities::from_pem(std::fs::read("/var/run/secrets/cluster/ca.crt")?)?;
/// let pager = AlertmanagerNotifier::new("https://alertmanager.monitoring:9093")?.trust(&cluster)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Authorities(Vec<CertificateDer<'static>>);

impl Authorities {
    /// Every certificate in a PEM text; what else is in it is passed over.
    ///
    /// # Errors
    /// `Permanent` if there is none, or one that cannot be an authority's.
    pub fn from_pem(pem: impl AsRef<[u8]>) -> Result<Self> {
        let unusable = |e: &dyn fmt::Display| {
            Error::permanent(format!(
                "the certificate authorities cannot be used ({e}): give PEM, with -----BEGIN CERTIFICATE----- lines"
            ))
        };
        let found = CertificateDer::pem_slice_iter(pem.as_ref());
        let found = found
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|e| unusable(&e))?;
        if found.is_empty() {
            return Err(unusable(&"there is no certificate"));
        }
        let mut store = RootCertStore::empty();
        for certificate in &found {
            store.add(certificate.clone()).map_err(|e| unusable(&e))?;
        }
        Ok(Self(found))
    }

    pub(super) fn certificates(&self) -> impl Iterator<Item = CertificateDer<'static>> {
        self.0.iter().cloned()
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authorities({})", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::ErrorKind;
    use crate::http_client::{Address, Call, Http};
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    struct Authority(CertifiedIssuer<'static, KeyPair>);

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            Self(CertifiedIssuer::self_signed(params, key).unwrap())
        }

        fn trusted(&self) -> Authorities {
            Authorities::from_pem(self.0.pem()).unwrap()
        }

        /// A server whose certificate is for this name; says at which port it listens.
        async fn serve(&self, name: &str) -> u16 {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new([name.to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &self.0).unwrap();
            let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.der().clone()], private)
                .unwrap();
            let acceptor = TlsAcceptor::from(Arc::new(config));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    // Who does not trust it hangs up.
                    let Ok(mut stream) = acceptor.accept(stream).await else {
                        continue;
                    };
                    let mut request = [0; 4096];
                    let asked = stream.read(&mut request).await.unwrap();
                    let bearer = String::from_utf8_lossy(&request[..asked]).contains("Bearer K3Y");
                    let body = if bearer { "with key" } else { "no key" };
                    let reply = format!(
                        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                        body.len()
                    );
                    stream.write_all(reply.as_bytes()).await.unwrap();
                    stream.shutdown().await.unwrap();
                }
            });
            port
        }
    }

    async fn get(authorities: &Authorities, address: &str) -> Result<String> {
        let to = Address::parse(address)?;
        let call = Call {
            to: &to,
            headers: crate::http_client::bearer("K3Y")?,
            json: None,
            timeout: Duration::from_secs(30),
            limit: 100,
        };
        let reply = Http::trusting(authorities)?.send(call).await?;
        Ok(String::from_utf8(reply.body).unwrap())
    }

    #[tokio::test]
    async fn a_server_is_trusted_by_its_authority_and_its_name_alone() {
        let (ours, theirs) = (Authority::new(), Authority::new());
        let port = ours.serve("127.0.0.1").await;
        let address = format!("https://127.0.0.1:{port}/");
        assert_eq!(get(&ours.trusted(), &address).await.unwrap(), "with key");
        let both = [theirs.0.pem(), ours.0.pem()].concat();
        let both = Authorities::from_pem(both).unwrap();
        assert_eq!(get(&both, &address).await.unwrap(), "with key");
        // An authority that it is not of; nothing but the system's; another name.
        let renamed = ours.serve("prometheus.example").await;
        for (authorities, port) in [
            (theirs.trusted(), port),
            (Authorities::default(), port),
            (ours.trusted(), renamed),
        ] {
            let address = format!("https://127.0.0.1:{port}/");
            let error = get(&authorities, &address).await.unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(
                text.contains("certificate") && !text.contains("K3Y"),
                "{text}"
            );
        }
    }

    /// Backends and MLflow; the others are told in the same words.
    #[cfg(feature = "full")]
    #[tokio::test]
    async fn adapters_trust_what_they_are_told_to() {
        use crate::backend::{Archive, EngineBackend, EngineVersion, KServeBackend, KServeModel};
        use crate::backend::{LlamaCpp, LlamaCppBackend, TorchServeBackend, Upstream};
        use crate::host::ServingBackend;
        use crate::registry::MlflowModel;
        use llm_rollout::Position;

        let ours = Authority::new();
        let to = format!("https://127.0.0.1:{}", ours.serve("127.0.0.1").await);
        let version: llm_version_core::VersionId =
            format!("chat/v1.0.0-{}", "1".repeat(64)).parse().unwrap();
        let (v, short) = (|| version.clone(), Duration::from_millis(500));
        for (authorities, trusted) in [(ours.trusted(), true), (Authority::new().trusted(), false)]
        {
            let a = || authorities.clone();
            let llama = LlamaCppBackend::builder().trust(a()).deadline(short);
            let engine = EngineBackend::vllm().trust(a()).deadline(short);
            let kserve = KServeBackend::builder(&to).trust(a()).deadline(short);
            let torchserve = TorchServeBackend::builder(&to, &to)
                .trust(a())
                .deadline(short);
            let backends: [Box<dyn ServingBackend>; 4] = [
                Box::new(
                    llama
                        .version(v(), LlamaCpp::server(Upstream::new(&to, "m")))
                        .build()
                        .unwrap(),
                ),
                Box::new(
                    engine
                        .version(v(), EngineVersion::server(&to, "m"))
                        .build()
                        .unwrap(),
                ),
                Box::new(kserve.version(v(), KServeModel::new("m")).build().unwrap()),
                Box::new(
                    torchserve
                        .version(v(), Archive::new("m", "1", "m.mar"))
                        .build()
                        .unwrap(),
                ),
            ];
            // Whoever trusts the server finds that it is none of theirs.
            for (n, backend) in backends.iter().enumerate() {
                let error = backend
                    .prepare(&v(), Position::default())
                    .await
                    .unwrap_err();
                let text = format!("{error} {error:?}");
                assert_eq!(text.contains("certificate"), !trusted, "{n}: {text}");
            }
            let model = MlflowModel::open(&to, "m")
                .unwrap()
                .trust(&authorities)
                .unwrap();
            let text = format!("{:?}", model.find(&v()).await.unwrap_err());
            assert_eq!(text.contains("certificate"), !trusted, "{text}");
        }
    }

    #[test]
    fn what_is_no_authority_is_refused() {
        let cut = "-----BEGIN CERTIFICATE-----\nMIIB\n";
        let bad = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
        for pem in ["", "hello", cut, bad] {
            let error = Authorities::from_pem(pem).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Permanent, "{pem:?}: {error}");
        }
    }
}
