//! Images from registries (distribution-spec), through the `oci-client` crate.
//!
//! Owns which host is asked, how (TLS, or plain HTTP on loopback), with which credentials, and what
//! is tried again. Content goes through the [`Store`], which verifies it. Names resolve by
//! hickory-dns and /etc/hosts: a static binary has no getaddrinfo. Certificates come from the
//! system's store (`SSL_CERT_FILE` and `SSL_CERT_DIR` override it).

use std::net::IpAddr;
use std::sync::mpsc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use oci_spec::image::Descriptor;

use super::Image;
use super::auth;
use super::digest::Digest;
use super::inflate::Layer;
use super::media::{self, Document, LayerRef, MAX_DOCUMENT, MAX_NESTING, Platform};
use super::progress::Progress;
use super::store::{Claim, Store};
use crate::{Error, Result};

/// Media types asked for, in the order of preference.
const ACCEPT: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// Layers downloaded at once (Docker's default).
const AT_ONCE: usize = 3;
/// Attempts in a row that make no headway before a pull gives up.
const ATTEMPTS: u32 = 5;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest silence of a server.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Finds an image. Its layers download in the background, in order, while they are unpacked.
pub fn image(
    reference: &Reference,
    mirror: Option<&str>,
    platform: &Platform,
    store: &Store,
    progress: &Progress,
    warnings: &mut Vec<String>,
) -> Result<Image> {
    // Harmless where another part of the process was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::step("start", "the download runtime", e))?;

    let mut origins = Vec::new();
    if let Some(host) = mirror {
        if host.is_empty() || host.contains(['/', '@', '?', '#']) {
            return Err(Error::msg(format!("--mirror {host:?}: write HOST[:PORT]")));
        }
        let mut through = reference.clone();
        through.set_mirror_registry(host.to_string());
        origins.push(through);
    }
    origins.push(reference.clone());
    let last = origins.len() - 1;
    for (number, reference) in origins.into_iter().enumerate() {
        match runtime.block_on(resolve(&reference, platform, store)) {
            Ok((remote, found)) => {
                return start(runtime, remote, &reference, found, store, progress);
            }
            Err(error) if number < last => warnings.push(format!("mirror: {error}")),
            Err(error) => return Err(error),
        }
    }
    Err(Error::msg("no registry to ask"))
}

/// A registry that answers, and the image in it.
#[derive(Clone)]
struct Remote {
    client: Client,
    reference: Reference,
    auth: RegistryAuth,
}

/// What the manifest says.
struct Found {
    digest: Digest,
    config: oci_spec::image::ImageConfiguration,
    layers: Vec<LayerRef>,
}

async fn resolve(
    reference: &Reference,
    platform: &Platform,
    store: &Store,
) -> Result<(Option<Remote>, Found)> {
    let name = reference.whole();
    let mut remote = None;
    let mut want = match reference.digest() {
        Some(digest) => Some(Digest::parse(digest)?),
        None => None,
    };
    for _ in 0..MAX_NESTING {
        let kept = want.as_ref().and_then(|d| store.document(d, MAX_DOCUMENT));
        let (digest, json) = match (kept, &want) {
            (Some(json), Some(digest)) => (digest.clone(), json),
            (_, want) => {
                let remote = connected(&mut remote, reference).await?;
                remote.manifest(want.as_ref(), store).await?
            }
        };
        match media::document(&name, &json)? {
            Document::Index(index) => {
                want = Some(media::digest_of(media::select(&name, &index, platform)?)?);
            }
            Document::Manifest(manifest) => {
                let config_digest = media::digest_of(manifest.config())?;
                let json = match store.document(&config_digest, MAX_DOCUMENT) {
                    Some(json) => json,
                    None => {
                        let remote = connected(&mut remote, reference).await?;
                        remote
                            .config(manifest.config(), &config_digest, store)
                            .await?
                    }
                };
                let config = media::config(&format!("{name}: config"), &json)?;
                let layers = media::layers(&name, &manifest, &config)?;
                // With all of it in the store, a digest needs no network at all.
                let missing = layers.iter().any(|l| !store.has(&l.digest, Some(l.size)));
                if missing && remote.is_none() {
                    remote = Some(connect(reference).await?);
                }
                return Ok((
                    remote,
                    Found {
                        digest,
                        config,
                        layers,
                    },
                ));
            }
        }
    }
    Err(Error::msg(format!("{name}: indexes nested too deep")))
}

async fn connected<'a>(
    remote: &'a mut Option<Remote>,
    reference: &Reference,
) -> Result<&'a Remote> {
    match remote {
        Some(remote) => Ok(remote),
        None => Ok(remote.insert(connect(reference).await?)),
    }
}

/// Reaches the registry and logs in where it asks for that.
async fn connect(reference: &Reference) -> Result<Remote> {
    let registry = reference.resolve_registry();
    let auth = auth::lookup(registry)?;
    let name = reference.whole();
    let loopback = is_loopback(registry);
    let client = self::client(registry, false)?;
    let secure = match client.auth(reference, &auth, RegistryOperation::Pull).await {
        Ok(_) => {
            return Ok(Remote {
                client,
                reference: reference.clone(),
                auth,
            });
        }
        Err(e) => e,
    };
    // On loopback nobody listens in: what speaks no TLS there may speak plain HTTP, as Docker has
    // it. Anywhere else that would hand credentials and trust to the network.
    // A server whose certificate is wrong does speak TLS: no way around that.
    let no_tls = match &secure {
        OciDistributionError::RequestError(e) => {
            e.is_connect() && !with_causes(e).contains("certificate")
        }
        _ => false,
    };
    if !(loopback && no_tls) {
        return Err(explain(&name, secure));
    }
    let client = self::client(registry, true)?;
    client
        .auth(reference, &auth, RegistryOperation::Pull)
        .await
        .map_err(|e| explain(&name, e))?;
    Ok(Remote {
        client,
        reference: reference.clone(),
        auth,
    })
}

/// A client, or an error where this system has no certificates. (The crate makes a default client
/// besides ours, which panics there: even plain HTTP can't be had.)
fn client(registry: &str, plain: bool) -> Result<Client> {
    if rustls_native_certs::load_native_certs().certs.is_empty() {
        return Err(Error::msg(
            "this system has no certificates to trust registries by: install the package \
             ca-certificates, or set SSL_CERT_FILE",
        ));
    }
    Client::try_from(ClientConfig {
        protocol: if plain {
            ClientProtocol::HttpsExcept(vec![registry.to_string()])
        } else {
            ClientProtocol::Https
        },
        connect_timeout: Some(CONNECT_TIMEOUT),
        read_timeout: Some(READ_TIMEOUT),
        user_agent: concat!("gpucell/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    })
    .map_err(|e| explain(registry, e))
}

fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.rsplit_once(':').map_or(registry, |(host, _)| host),
    };
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Remote {
    /// Fetches a manifest: the one with this digest, or the reference's own.
    async fn manifest(&self, want: Option<&Digest>, store: &Store) -> Result<(Digest, Vec<u8>)> {
        let reference = match want {
            Some(digest) => self
                .reference
                .clone_with_digest(digest.as_str().to_string()),
            None => self.reference.clone(),
        };
        let name = reference.whole();
        let mut attempt = 0;
        let json = loop {
            match self
                .client
                .pull_manifest_raw(&reference, &self.auth, &ACCEPT)
                .await
            {
                Ok((json, _)) => break json,
                Err(e) if attempt < ATTEMPTS && is_passing(&e) => {
                    attempt += 1;
                    pause(attempt).await;
                }
                Err(e) => return Err(explain(&name, e)),
            }
        };
        let digest = match want {
            Some(digest) => {
                let mut hasher = digest.hasher();
                hasher.update(&json);
                hasher.finish()
            }
            None => Digest::of(&json),
        };
        if want.is_some_and(|want| *want != digest) {
            return Err(Error::msg(format!(
                "{name}: the registry sent a manifest with digest {digest}"
            )));
        }
        store.put(&digest, &json)?;
        Ok((digest, json.to_vec()))
    }

    async fn config(
        &self,
        descriptor: &Descriptor,
        digest: &Digest,
        store: &Store,
    ) -> Result<Vec<u8>> {
        if descriptor.size() > MAX_DOCUMENT {
            return Err(Error::msg(format!(
                "{}: config larger than {MAX_DOCUMENT} bytes",
                self.reference.whole()
            )));
        }
        let blob = LayerRef {
            digest: digest.clone(),
            size: descriptor.size(),
            diff_id: digest.clone(),
            urls: Vec::new(),
        };
        self.download(&blob, store, &Progress::new(false)).await?;
        store
            .document(digest, MAX_DOCUMENT)
            .ok_or_else(|| Error::msg(format!("blob {digest} is damaged")))
    }

    /// Brings a blob into the store. What an earlier pull left is kept and gone on from; a lost
    /// connection too.
    async fn download(&self, blob: &LayerRef, store: &Store, progress: &Progress) -> Result<()> {
        if store.has(&blob.digest, Some(blob.size)) {
            return Ok(());
        }
        let name = blob.digest.short();
        let bar = progress.download(name, blob.size);
        let mut partial = loop {
            match store.partial(&blob.digest, blob.size)? {
                Claim::Here => {
                    bar.done();
                    return Ok(());
                }
                Claim::Mine(partial) => break partial,
                Claim::Busy => {
                    bar.message("waiting");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        };
        bar.message(name);
        let mut attempt = 0;
        while partial.length() < blob.size {
            let before = partial.length();
            match self.stream(blob, &mut partial, &bar).await {
                Ok(()) if partial.length() > before => attempt = 0,
                Ok(()) => attempt += 1,
                Err(Failure::Network(e)) if is_passing(&e) && attempt < ATTEMPTS => {
                    // Headway counts: a slow, broken line gets a large layer in the end.
                    attempt = if partial.length() > before {
                        1
                    } else {
                        attempt + 1
                    };
                    pause(attempt).await;
                }
                Err(Failure::Network(e)) => return Err(explain(&self.reference.whole(), e)),
                Err(Failure::Ours(e)) => return Err(e),
            }
            if attempt > ATTEMPTS {
                return Err(Error::msg(format!(
                    "blob {}: the registry sends only {} of {} bytes",
                    blob.digest,
                    partial.length(),
                    blob.size
                )));
            }
        }
        bar.done();
        partial.commit()
    }

    /// One request's worth of bytes, from where the download stands.
    async fn stream(
        &self,
        blob: &LayerRef,
        partial: &mut super::store::Partial,
        bar: &super::progress::Bar,
    ) -> Result<(), Failure> {
        let layer = oci_client::client::LayerDescriptor {
            digest: blob.digest.as_str(),
            urls: &Some(blob.urls.clone()).filter(|urls| !urls.is_empty()),
        };
        let offset = partial.length();
        let mut bytes = if offset == 0 {
            self.client
                .pull_blob_stream(&self.reference, &layer)
                .await
                .map_err(Failure::Network)?
        } else {
            let answer = self
                .client
                .pull_blob_stream_partial(&self.reference, &layer, offset, None)
                .await
                .map_err(Failure::Network)?;
            match answer {
                BlobResponse::Partial(bytes) => bytes,
                // No ranges here: from the start again.
                BlobResponse::Full(bytes) => {
                    partial.restart().map_err(Failure::Ours)?;
                    bytes
                }
            }
        };
        while let Some(piece) = bytes.next().await {
            match piece {
                Ok(piece) => partial.write(&piece).map_err(Failure::Ours)?,
                Err(e) if e.to_string().contains("digest") => {
                    // The crate compares digests at the end; ours says it with the blob's name.
                    break;
                }
                Err(e) => return Err(Failure::Network(OciDistributionError::IoError(e))),
            }
            bar.set(partial.length());
        }
        Ok(())
    }
}

enum Failure {
    Network(OciDistributionError),
    Ours(Error),
}

async fn pause(attempt: u32) {
    tokio::time::sleep(Duration::from_millis(250 << attempt.min(6))).await;
}

/// Starts the downloads and gives the image whose layers wait for them.
fn start(
    runtime: tokio::runtime::Runtime,
    remote: Option<Remote>,
    reference: &Reference,
    found: Found,
    store: &Store,
    progress: &Progress,
) -> Result<Image> {
    let mut jobs = Vec::new();
    let layers = found
        .layers
        .into_iter()
        .map(|layer| {
            let (done, wait) = mpsc::sync_channel::<Result<()>>(1);
            let (store, digest) = (store.clone(), layer.digest.clone());
            let gone = format!("layer {}: the download was cut off", digest.short());
            let here = remote.is_none();
            let open = move || -> Result<Box<dyn std::io::Read + Send>> {
                if !here {
                    wait.recv().map_err(|_| Error::msg(gone))??;
                }
                Ok(Box::new(store.read(&digest)?))
            };
            let result = Layer {
                name: layer.digest.short().to_string(),
                open: Box::new(open),
                // Verified when it came into the store; the diff ID is verified each time.
                digest: None,
                diff_id: Some(layer.diff_id.clone()),
            };
            jobs.push((layer, done));
            result
        })
        .collect();
    if let Some(remote) = remote {
        let (store, progress) = (store.clone(), progress.clone());
        std::thread::Builder::new()
            .name("download".into())
            .spawn(move || {
                let (remote, store, progress) = (&remote, &store, &progress);
                runtime.block_on(
                    stream::iter(jobs)
                        .map(|(layer, done)| async move {
                            let _ = done.send(remote.download(&layer, store, progress).await);
                        })
                        .buffered(AT_ONCE)
                        .for_each(|()| async {}),
                );
            })
            .map_err(|e| Error::step("start", "the downloads", e))?;
    }
    Ok(Image {
        name: reference.whole(),
        digest: found.digest,
        config: found.config,
        layers,
    })
}

/// Whether trying again may help: lost connections, overload.
fn is_passing(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::RequestError(e) => {
            !e.is_builder() && e.status().is_none_or(|s| s.is_server_error())
        }
        OciDistributionError::IoError(_) => true,
        OciDistributionError::ServerError { code, .. } => *code >= 500 || *code == 429,
        OciDistributionError::RegistryError { envelope, .. } => envelope
            .errors
            .iter()
            .any(|e| e.code == OciErrorCode::Toomanyrequests),
        _ => false,
    }
}

/// An error's text with all causes: reqwest's own stops before the one that matters.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A client's error in one line that says what to do.
fn explain(name: &str, error: OciDistributionError) -> Error {
    let text = match &error {
        OciDistributionError::RequestError(e) => with_causes(e),
        OciDistributionError::UnauthorizedError { .. }
        | OciDistributionError::AuthenticationFailure(_) => {
            "the registry refuses access: it does not exist, is private, or the login is wrong \
             (docker login or skopeo login --authfile ~/.docker/config.json)"
                .to_string()
        }
        OciDistributionError::RegistryError { envelope, .. } => {
            let all: Vec<String> = envelope
                .errors
                .iter()
                .map(|e| match e.code {
                    OciErrorCode::ManifestUnknown | OciErrorCode::NotFound => {
                        "the registry has no such image".to_string()
                    }
                    OciErrorCode::NameUnknown => "the registry has no such repository".to_string(),
                    OciErrorCode::Unauthorized | OciErrorCode::Denied => {
                        "the registry refuses access".to_string()
                    }
                    OciErrorCode::Toomanyrequests => {
                        "the registry has had too many requests".to_string()
                    }
                    _ => format!("{:?} {}", e.code, e.message),
                })
                .collect();
            all.join("; ")
        }
        other => other.to_string(),
    };
    Error::msg(format!("{name}: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_may_speak_plain_http() {
        for host in [
            "localhost:5000",
            "127.0.0.1:5000",
            "127.1.2.3",
            "[::1]:5000",
            "r.localhost",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "docker.io",
            "10.0.0.1:5000",
            "localhost.evil.example",
            "[2001:db8::1]:5000",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
