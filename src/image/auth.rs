//! Registry credentials, from where `docker login` leaves them.
//!
//! Owns `config.json` of the Docker CLI and its credential helpers (docker/docker-credential-helpers,
//! "Development": `docker-credential-NAME get`, the server on stdin, JSON on stdout). A helper is one
//! of the few programs this project runs; it runs as the user, with the user's environment.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use base64::Engine;
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

use crate::{Error, Result};

/// Where Docker keeps the credentials of Docker Hub.
const HUB_KEY: &str = "https://index.docker.io/v1/";
const HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: HashMap<String, Entry>,
    creds_store: Option<String>,
    cred_helpers: HashMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Credentials for a registry host (`host[:port]`); anonymous if there are none.
pub fn lookup(registry: &str) -> Result<RegistryAuth> {
    let Some(path) = path() else {
        return Ok(RegistryAuth::Anonymous);
    };
    let name = path.display().to_string();
    let json = match std::fs::read(&path) {
        Ok(json) => json,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(RegistryAuth::Anonymous),
        // Another user's home (sudo -u) is as good as none.
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            return Ok(RegistryAuth::Anonymous);
        }
        Err(e) => return Err(Error::step("read", name, e)),
    };
    let config: Config = serde_json::from_slice(&json)
        // The text may hold passwords: the error's place is told, not the text.
        .map_err(|e| Error::msg(format!("{name}: line {}: not valid", e.line())))?;
    from_config(&config, registry, &helper)
        .map_err(|e| Error::msg(format!("{name}: {registry}: {e}")))
}

/// `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
fn path() -> Option<PathBuf> {
    let var = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let dir = var("DOCKER_CONFIG").or_else(|| var("HOME").map(|home| home.join(".docker")))?;
    Some(dir.join("config.json"))
}

/// Keys under which a registry may be listed, as Docker has written them over time.
fn keys(registry: &str) -> Vec<String> {
    if HUB.contains(&registry) {
        let mut keys = vec![HUB_KEY.to_string()];
        keys.extend(HUB.map(str::to_string));
        return keys;
    }
    let mut keys = vec![registry.to_string()];
    for scheme in ["https://", "http://"] {
        for path in ["", "/", "/v1/", "/v2/"] {
            keys.push(format!("{scheme}{registry}{path}"));
        }
    }
    keys
}

/// Asks a helper (name, server) for credentials.
type Ask = dyn Fn(&str, &str) -> Result<Option<Answer>, String>;

fn from_config(config: &Config, registry: &str, helper: &Ask) -> Result<RegistryAuth, String> {
    let keys = keys(registry);
    let special = keys.iter().find_map(|key| config.cred_helpers.get(key));
    let entry = keys.iter().find_map(|key| config.auths.get_key_value(key));
    if let Some(name) = special.or(config.creds_store.as_ref()) {
        // With a store, `auths` has an empty entry under the key that the store knows.
        let server = entry.map_or(keys[0].as_str(), |(key, _)| key.as_str());
        if let Some(answer) = helper(name, server)? {
            // A user name of this form marks an identity token (docker-credential-helpers README).
            if answer.username == "<token>" {
                return Err(IDENTITY.to_string());
            }
            return Ok(RegistryAuth::Basic(answer.username, answer.secret));
        }
    }
    let Some((_, entry)) = entry else {
        return Ok(RegistryAuth::Anonymous);
    };
    let set = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
    if let Some(token) = set(&entry.registrytoken) {
        return Ok(RegistryAuth::Bearer(token));
    }
    if set(&entry.identitytoken).is_some() {
        return Err(IDENTITY.to_string());
    }
    if let Some(auth) = set(&entry.auth) {
        let text = base64::engine::general_purpose::STANDARD
            .decode(auth.trim())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = text.as_deref().and_then(|t| t.split_once(':'));
        let (user, password) = pair.ok_or("\"auth\" is not base64 of user:password")?;
        // Docker pads old entries with NUL bytes.
        let password = password.trim_end_matches('\0');
        return Ok(RegistryAuth::Basic(user.to_string(), password.to_string()));
    }
    Ok(match (set(&entry.username), set(&entry.password)) {
        (Some(user), Some(password)) => RegistryAuth::Basic(user, password),
        _ => RegistryAuth::Anonymous,
    })
}

const IDENTITY: &str = "logged in with an identity token, which gpucell can't exchange; \
                        log in with a user name and an access token instead";

/// Runs `docker-credential-NAME get`. `None` if it knows no credentials.
fn helper(name: &str, server: &str) -> Result<Option<Answer>, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || !name.chars().all(plain) {
        return Err(format!("credential helper {name:?}: not a program's name"));
    }
    let program = format!("docker-credential-{name}");
    let failed = |e: std::io::Error| format!("{program}: {e}");
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that answers without reading closes the pipe; its answer counts.
        let _ = stdin.write_all(server.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        // The protocol's words for "nothing stored" (credentials.errCredentialsNotFoundMessage).
        if text.contains("credentials not found") {
            return Ok(None);
        }
        return Err(format!("{program}: {}", text.trim()));
    }
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|_| format!("{program}: its answer is not credentials"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str, registry: &str) -> Result<RegistryAuth, String> {
        let config: Config = serde_json::from_str(json).unwrap();
        from_config(&config, registry, &|name, server| match name {
            "full" => Ok(Some(Answer {
                username: server.to_string(),
                secret: "s".to_string(),
            })),
            "token" => Ok(Some(Answer {
                username: "<token>".to_string(),
                secret: "s".to_string(),
            })),
            "broken" => Err("broken".to_string()),
            _ => Ok(None),
        })
    }

    fn basic(user: &str, password: &str) -> RegistryAuth {
        RegistryAuth::Basic(user.into(), password.into())
    }

    #[test]
    fn finds_entries_under_their_many_keys() {
        let json = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
            "https://quay.io/v2/": {"username": "q", "password": "p:w"},
            "localhost:5000": {"auth": "dTpwOmM="},
            "tokens.example": {"registrytoken": "abc"},
            "identity.example": {"identitytoken": "abc"},
            "wrong.example": {"auth": "%%%"},
            "empty.example": {}
        }}"#;
        assert_eq!(of(json, "docker.io").unwrap(), basic("hub", "pw"));
        assert_eq!(of(json, "index.docker.io").unwrap(), basic("hub", "pw"));
        assert_eq!(of(json, "quay.io").unwrap(), basic("q", "p:w"));
        assert_eq!(of(json, "localhost:5000").unwrap(), basic("u", "p:c"));
        assert_eq!(of(json, "localhost:5001").unwrap(), RegistryAuth::Anonymous);
        assert_eq!(of(json, "empty.example").unwrap(), RegistryAuth::Anonymous);
        assert_eq!(
            of(json, "tokens.example").unwrap(),
            RegistryAuth::Bearer("abc".into())
        );
        assert!(of(json, "identity.example").is_err());
        assert!(of(json, "wrong.example").is_err());
    }

    #[test]
    fn helpers_come_first() {
        let json = r#"{"auths": {"https://index.docker.io/v1/": {}, "b.example": {"auth": "dTpw"}},
            "credsStore": "none",
            "credHelpers": {"a.example": "full", "c.example": "token", "d.example": "broken"}}"#;
        assert_eq!(of(json, "a.example").unwrap(), basic("a.example", "s"));
        // Nothing in the store: what is in the file counts.
        assert_eq!(of(json, "b.example").unwrap(), basic("u", "p"));
        assert!(of(json, "c.example").is_err());
        assert_eq!(of(json, "d.example").unwrap_err(), "broken");
        let json = r#"{"auths": {"https://index.docker.io/v1/": {}}, "credsStore": "full"}"#;
        assert_eq!(
            of(json, "docker.io").unwrap(),
            basic("https://index.docker.io/v1/", "s")
        );
    }

    #[test]
    fn helper_names_are_no_paths() {
        assert!(helper("../../bin/sh", "x").is_err_and(|e| e.contains("not a program's name")));
        assert!(helper("", "x").is_err());
    }
}
