//! Makes layers, layouts and registries for the image tests, and compares trees.
#![allow(dead_code)] // Each test program uses its part.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// A tar writer with full control over names and headers, hostile ones too.
#[derive(Default)]
pub struct Layer(Vec<u8>);

/// One entry to write.
pub struct Item<'a> {
    pub kind: u8,
    pub name: &'a [u8],
    pub link: &'a [u8],
    pub data: &'a [u8],
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: i64,
    pub nanos: u32,
    pub device: (u32, u32),
    pub xattrs: &'a [(&'a str, &'a [u8])],
}

impl Default for Item<'_> {
    fn default() -> Self {
        Item {
            kind: b'0',
            name: b"",
            link: b"",
            data: b"",
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
            nanos: 0,
            device: (0, 0),
            xattrs: &[],
        }
    }
}

impl Layer {
    pub fn new() -> Self {
        Layer::default()
    }

    pub fn item(mut self, item: Item<'_>) -> Self {
        let mut pax = Vec::new();
        let mut record = |key: &[u8], value: &[u8]| {
            // The length counts its own digits.
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length.to_string().len() + rest != length {
                length = length.to_string().len() + rest;
            }
            pax.extend_from_slice(length.to_string().as_bytes());
            pax.push(b' ');
            pax.extend_from_slice(key);
            pax.push(b'=');
            pax.extend_from_slice(value);
            pax.push(b'\n');
        };
        if item.name.len() > 100 {
            record(b"path", item.name);
        }
        if item.link.len() > 100 {
            record(b"linkpath", item.link);
        }
        if item.nanos > 0 || item.mtime < 0 {
            let text = if item.mtime < 0 {
                item.mtime.to_string()
            } else {
                format!("{}.{:09}", item.mtime, item.nanos)
            };
            record(b"mtime", text.as_bytes());
        }
        for (id, value) in [("uid", item.uid), ("gid", item.gid)] {
            if value > 0o7777777 {
                record(id.as_bytes(), value.to_string().as_bytes());
            }
        }
        for (key, value) in item.xattrs {
            record(format!("SCHILY.xattr.{key}").as_bytes(), value);
        }
        if !pax.is_empty() {
            self.header(b'x', b"PaxHeader", b"", pax.len() as u64, &Item::default());
            self.data(&pax);
        }
        self.header(
            item.kind,
            item.name,
            item.link,
            item.data.len() as u64,
            &item,
        );
        self.data(item.data);
        self
    }

    fn header(&mut self, kind: u8, name: &[u8], link: &[u8], size: u64, item: &Item<'_>) {
        let mut block = [0u8; 512];
        let n = name.len().min(100);
        block[..n].copy_from_slice(&name[..n]);
        let n = link.len().min(100);
        block[157..157 + n].copy_from_slice(&link[..n]);
        let mut octal = |at: usize, width: usize, value: u64| {
            let text = format!("{value:0width$o}", width = width - 1);
            block[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        octal(100, 8, item.mode.into());
        octal(108, 8, item.uid.min(0o7777777));
        octal(116, 8, item.gid.min(0o7777777));
        octal(124, 12, size);
        octal(136, 12, item.mtime.max(0) as u64);
        octal(329, 8, item.device.0.into());
        octal(337, 8, item.device.1.into());
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&block);
    }

    fn data(&mut self, data: &[u8]) {
        self.0.extend_from_slice(data);
        let fill = (512 - data.len() % 512) % 512;
        self.0.extend(std::iter::repeat_n(0, fill));
    }

    /// Raw blocks, for headers that [`Layer::item`] can't write.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn dir(self, name: &str, mode: u32) -> Self {
        self.item(Item {
            kind: b'5',
            name: name.as_bytes(),
            mode,
            ..Item::default()
        })
    }

    pub fn file(self, name: &str, data: &str) -> Self {
        self.item(Item {
            name: name.as_bytes(),
            data: data.as_bytes(),
            ..Item::default()
        })
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.item(Item {
            kind: b'2',
            name: name.as_bytes(),
            link: target.as_bytes(),
            mode: 0o777,
            ..Item::default()
        })
    }

    pub fn hardlink(self, name: &str, target: &str) -> Self {
        self.item(Item {
            kind: b'1',
            name: name.as_bytes(),
            link: target.as_bytes(),
            ..Item::default()
        })
    }

    /// The archive with its end marker.
    pub fn tar(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub fn sha256(data: &[u8]) -> String {
    Sha256::digest(data)
        .iter()
        .fold("sha256:".to_string(), |out, b| format!("{out}{b:02x}"))
}

/// An OCI image layout on disk.
pub struct Layout {
    pub dir: PathBuf,
    manifests: Vec<serde_json::Value>,
}

impl Layout {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Layout {
            dir,
            manifests: Vec::new(),
        }
    }

    pub fn blob(&self, data: &[u8]) -> String {
        let digest = sha256(data);
        fs::write(self.dir.join("blobs").join(digest.replace(':', "/")), data).unwrap();
        digest
    }

    /// Adds an image of `(stored bytes, tar bytes, media type ending)` layers; its manifest digest.
    pub fn image(
        &mut self,
        tag: &str,
        layers: &[(Vec<u8>, Vec<u8>, &str)],
        config: serde_json::Value,
        platform: Option<(&str, &str)>,
    ) -> String {
        let diff_ids: Vec<String> = layers.iter().map(|(_, tar, _)| sha256(tar)).collect();
        let (os, arch) = platform.unwrap_or(("linux", "amd64"));
        let config = serde_json::json!({
            "architecture": arch, "os": os, "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
        .to_string();
        let descriptors: Vec<_> = layers
            .iter()
            .map(|(stored, _, kind)| {
                serde_json::json!({
                    "mediaType": format!("application/vnd.oci.image.layer.v1.tar{kind}"),
                    "digest": self.blob(stored), "size": stored.len(),
                })
            })
            .collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": self.blob(config.as_bytes()), "size": config.len(),
            },
            "layers": descriptors,
        })
        .to_string();
        let digest = self.blob(manifest.as_bytes());
        let mut entry = serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest, "size": manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": tag},
        });
        if let Some((os, arch)) = platform {
            entry["platform"] = serde_json::json!({"os": os, "architecture": arch});
        }
        self.manifests.push(entry);
        let index = serde_json::json!({"schemaVersion": 2, "manifests": self.manifests});
        fs::write(self.dir.join("index.json"), index.to_string()).unwrap();
        digest
    }

    /// Adds an image of plain tar layers, stored with gzip.
    pub fn simple(&mut self, tag: &str, layers: Vec<Layer>) -> String {
        let layers: Vec<_> = layers
            .into_iter()
            .map(|layer| {
                let tar = layer.tar();
                (gzip(&tar), tar, "+gzip")
            })
            .collect();
        self.image(tag, &layers, serde_json::json!({"Cmd": ["/bin/sh"]}), None)
    }
}

/// What one name of a tree is, as text that two trees can be compared by.
pub fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut out = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    walk(root, Path::new(""), &mut out, &mut inodes);
    out
}

fn walk(
    root: &Path,
    path: &Path,
    out: &mut BTreeMap<PathBuf, String>,
    inodes: &mut BTreeMap<u64, PathBuf>,
) {
    let full = root.join(path);
    let meta = fs::symlink_metadata(&full).unwrap();
    let kind = meta.file_type();
    let mut text = format!(
        "mode={:o} owner={}:{} mtime={}.{:09}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.mtime(),
        meta.mtime_nsec()
    );
    for key in xattr_names(&full) {
        let mut value = vec![0u8; 65536];
        let n = rustix::fs::lgetxattr(&full, key.as_slice(), &mut value[..]).unwrap();
        text += &format!(" xattr {}={:?}", String::from_utf8_lossy(&key), &value[..n]);
    }
    if kind.is_symlink() {
        text += &format!(" -> {}", fs::read_link(&full).unwrap().display());
    } else if kind.is_file() {
        text += &format!(" size={} {}", meta.len(), sha256(&fs::read(&full).unwrap()));
    } else if kind.is_block_device() || kind.is_char_device() {
        text += &format!(" device={:x}", meta.rdev());
    }
    if !kind.is_dir() && meta.nlink() > 1 {
        // Names of one file: all tell the first of them.
        let first = inodes
            .entry(meta.ino())
            .or_insert_with(|| path.to_path_buf());
        text += &format!(" links={} same as {}", meta.nlink(), first.display());
    }
    out.insert(path.to_path_buf(), text);
    if kind.is_dir() {
        let mut names: Vec<_> = fs::read_dir(&full)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        for name in names {
            walk(root, &path.join(name), out, inodes);
        }
    }
}

fn xattr_names(path: &Path) -> Vec<Vec<u8>> {
    let mut list = vec![0u8; 65536];
    let n = rustix::fs::llistxattr(path.as_os_str().as_bytes(), &mut list[..]).unwrap();
    let mut names: Vec<Vec<u8>> = list[..n]
        .split(|&b| b == 0)
        .filter(|k| !k.is_empty())
        .map(<[u8]>::to_vec)
        .collect();
    names.sort();
    names
}

/// Panics with the differing lines if two trees are not alike. The times of `timeless` names are
/// not compared.
pub fn same_trees(ours: &Path, theirs: &Path, timeless: &[&str]) {
    let (mut ours, mut theirs) = (tree(ours), tree(theirs));
    for name in timeless {
        for tree in [&mut ours, &mut theirs] {
            if let Some(text) = tree.get_mut(Path::new(name)) {
                let words = text.split(' ').filter(|w| !w.starts_with("mtime="));
                *text = words.collect::<Vec<_>>().join(" ");
            }
        }
    }
    let mut wrong = String::new();
    for (path, text) in &ours {
        match theirs.get(path) {
            None => wrong += &format!("only ours: {} {text}\n", path.display()),
            Some(other) if other != text => {
                wrong += &format!("{}\n  ours:   {text}\n  theirs: {other}\n", path.display());
            }
            Some(_) => {}
        }
    }
    for path in theirs.keys().filter(|path| !ours.contains_key(*path)) {
        wrong += &format!("only theirs: {}\n", path.display());
    }
    assert!(wrong.is_empty(), "trees differ:\n{wrong}");
}

/// Runs a program that must succeed; its output.
pub fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

/// Runs a program that must fail; its output.
pub fn fails(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.code().map(|c| c > 0),
        Some(true),
        "{command:?} succeeded or died: {text}"
    );
    text
}

/// `gpucell pull` with a store of its own.
pub fn pull(store: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpucell"));
    command.arg("pull").arg("--store").arg(store);
    // No login of the person who runs the tests.
    command.env("DOCKER_CONFIG", store.join("no-docker-config"));
    command
}

/// A registry on loopback, stopped and removed when dropped.
pub struct Registry {
    pub port: u16,
    child: Child,
    dir: tempfile::TempDir,
}

impl Registry {
    /// `htpasswd`: lines of a password file, for basic authentication.
    pub fn start(htpasswd: Option<&str>) -> Self {
        Self::serve(htpasswd, None)
    }

    /// A registry with TLS, for 127.0.0.1; the certificate that signs for it.
    pub fn with_tls() -> (Self, PathBuf) {
        let dir = tempfile::tempdir().unwrap().keep();
        let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
        run(Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
            ])
            .args(["-nodes", "-days", "2", "-subj", "/CN=test", "-addext"])
            .arg("subjectAltName=IP:127.0.0.1")
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&cert));
        let tls = format!(
            "tls: {{certificate: {}, key: {}}}",
            cert.display(),
            key.display()
        );
        (Self::serve(None, Some(&tls)), cert)
    }

    fn serve(htpasswd: Option<&str>, tls: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let auth = match htpasswd {
            Some(lines) => {
                let file = dir.path().join("htpasswd");
                fs::write(&file, lines).unwrap();
                format!(
                    "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                    file.display()
                )
            }
            None => String::new(),
        };
        let config = dir.path().join("config.yml");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error}}\n\
                 storage: {{filesystem: {{rootdirectory: {}}}}}\n\
                 http: {{addr: '127.0.0.1:{port}'{}}}\n{auth}",
                dir.path().join("data").display(),
                tls.map_or(String::new(), |tls| format!(", {tls}"))
            ),
        )
        .unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry (package docker-registry)");
        let registry = Registry { port, child, dir };
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "the registry does not answer"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where the registry keeps a blob.
    pub fn blob_path(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.dir
            .path()
            .join("data/docker/registry/v2/blobs/sha256")
            .join(&hex[..2])
            .join(hex)
            .join("data")
    }

    /// Copies an image of a layout into the registry with skopeo.
    pub fn push(&self, layout: &Path, tag: &str, name: &str, credentials: Option<&str>) {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--insecure-policy", "--dest-tls-verify=false", "-q"]);
        if let Some(credentials) = credentials {
            command.args(["--dest-creds", credentials]);
        }
        command
            .arg(format!("oci:{}:{tag}", layout.display()))
            .arg(format!("docker://{}/{name}", self.host()));
        run(&mut command);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
