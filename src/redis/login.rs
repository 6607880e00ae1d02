//! How Redis lets us in: user, password and certificates, from the URL and from files that may change under a running
//! process.

mod tls;

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use rustls::ClientConfig;
use tokio::sync::watch;

use super::target::Target;

/// Longer than any password or bundle of certificates; a device named by mistake is not read to its end.
const LONGEST: u64 = 1024 * 1024;

/// The files that it is read from.
#[derive(Clone, Debug, Default)]
pub struct LoginFiles {
    /// The user's name.
    pub username: Option<PathBuf>,
    /// The password.
    pub password: Option<PathBuf>,
    /// The user's name at the sentinels.
    pub sentinel_username: Option<PathBuf>,
    /// The password of the sentinels.
    pub sentinel_password: Option<PathBuf>,
    /// Authorities to believe in place of the system's, PEM.
    pub ca_cert: Option<PathBuf>,
    /// Our certificate and those that vouch for it, PEM; there exactly when the key is.
    pub client_cert: Option<PathBuf>,
    /// Its key, PEM.
    pub client_key: Option<PathBuf>,
}

impl LoginFiles {
    /// All that are set.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let Self {
            username,
            password,
            sentinel_username,
            sentinel_password,
            ca_cert,
            client_cert,
            client_key,
        } = self;
        let all =
            [username, password, sentinel_username, sentinel_password, ca_cert, client_cert, client_key];
        all.into_iter().flatten().map(PathBuf::as_path)
    }
}

/// Why a file is of no use. It holds nothing of what stands in the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {why}")]
pub struct BadLogin {
    /// Which.
    pub file: String,
    /// What is wrong and what is accepted.
    pub why: String,
}

/// One reading of it all, sound in itself; whether Redis accepts it is another matter.
#[derive(Clone)]
pub struct Login {
    said: Said,
    pub(super) tls: Option<Arc<ClientConfig>>,
}

/// What was written. The system's authorities are not a part of it.
#[derive(Clone, PartialEq, Eq)]
struct Said {
    username: Option<String>,
    password: Option<String>,
    sentinel_username: Option<String>,
    sentinel_password: Option<String>,
    ca_cert: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Login {
    /// What the URL and the files say now.
    ///
    /// # Errors
    /// When a file is of no use.
    pub fn read(target: &Target, files: &LoginFiles) -> Result<Self, BadLogin> {
        read(target, files)
    }

    /// The user to authenticate as; none with a password is Redis' own `default`.
    pub(crate) fn username(&self) -> Option<&str> {
        self.said.username.as_deref()
    }

    /// The password. Not to be printed.
    pub(crate) fn password(&self) -> Option<&str> {
        self.said.password.as_deref()
    }

    /// By which the sentinels let us in: user and password of their own, the same certificates.
    pub(crate) fn of_sentinels(&self) -> Self {
        let said = Said {
            username: self.said.sentinel_username.clone(),
            password: self.said.sentinel_password.clone(),
            ..self.said.clone()
        };
        Self { said, tls: self.tls.clone() }
    }

    /// Whether the same was written.
    pub fn is_same(&self, other: &Self) -> bool {
        self.said == other.said
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login([redacted])")
    }
}

/// The login in force, which another reading may replace at any time.
pub struct Logins {
    files: LoginFiles,
    target: Target,
    wanted: ArcSwap<Login>,
    /// How often something was taken.
    takes: watch::Sender<u64>,
}

impl Logins {
    /// Reads it for the first time.
    ///
    /// # Errors
    /// When a file can't be read or makes no sense.
    pub fn new(target: Target, files: LoginFiles) -> Result<Self, BadLogin> {
        let login = read(&target, &files)?;
        Ok(Self { files, target, wanted: ArcSwap::from_pointee(login), takes: watch::Sender::new(0) })
    }

    /// The files that it is read from.
    pub fn files(&self) -> &LoginFiles {
        &self.files
    }

    /// What was last taken.
    pub fn wanted(&self) -> Arc<Login> {
        self.wanted.load_full()
    }

    /// Reads the files, and takes nothing. Blocking.
    ///
    /// # Errors
    /// As [`Logins::new`].
    pub fn read_again(&self) -> Result<Login, BadLogin> {
        read(&self.target, &self.files)
    }

    /// From now on connections are made with this, the next at once.
    pub fn take(&self, fresh: Login) {
        self.wanted.store(Arc::new(fresh));
        self.takes.send_modify(|takes| *takes += 1);
    }

    /// What the files hold now, or what they held last and what is wrong with them. For whoever makes a connection.
    pub(super) async fn newest(self: &Arc<Self>) -> (Arc<Login>, Option<BadLogin>) {
        // Without files the system's authorities may have changed.
        if self.files.paths().next().is_some() || self.target.uses_tls() {
            let this = Arc::clone(self);
            match tokio::task::spawn_blocking(move || this.read_again()).await {
                Ok(Ok(fresh)) => self.wanted.store(Arc::new(fresh)),
                Ok(Err(bad)) => return (self.wanted(), Some(bad)),
                // The process ends.
                Err(_) => {}
            }
        }
        (self.wanted(), None)
    }

    /// Something was taken since `heard`, which each link keeps for itself. Whether it is something else is for the caller to
    /// look at.
    pub(super) async fn changed(&self, heard: &AtomicU64) {
        let mut takes = self.takes.subscribe();
        let news = takes.wait_for(|&takes| takes != heard.load(Ordering::Relaxed)).await;
        // The sender is ours, and so never gone.
        if let Ok(takes) = news {
            heard.store(*takes, Ordering::Relaxed);
        }
    }
}

fn read(target: &Target, files: &LoginFiles) -> Result<Login, BadLogin> {
    let word = |path: &Option<PathBuf>, given: Option<&str>| match path {
        Some(path) => word_of(path).map(Some),
        None => Ok(given.map(str::to_owned)),
    };
    let bytes = |path: &Option<PathBuf>| path.as_deref().map(bytes_of).transpose();
    let said = Said {
        username: word(&files.username, target.username())?,
        password: word(&files.password, target.password())?,
        sentinel_username: word(&files.sentinel_username, target.sentinel_username())?,
        sentinel_password: word(&files.sentinel_password, target.sentinel_password())?,
        ca_cert: bytes(&files.ca_cert)?,
        identity: bytes(&files.client_cert)?.zip(bytes(&files.client_key)?),
    };
    let tls = match target.uses_tls() {
        true => Some(Arc::new(tls::config(files, said.ca_cert.as_deref(), said.identity.as_ref())?)),
        false => None,
    };
    Ok(Login { said, tls })
}

/// A name or a password: all of the file but one line end at its end.
fn word_of(path: &Path) -> Result<String, BadLogin> {
    let text = String::from_utf8(bytes_of(path)?)
        .map_err(|_| bad(path, "the file is not UTF-8; accepted: UTF-8 text"))?;
    let word = text.strip_suffix('\n').unwrap_or(&text);
    let word = word.strip_suffix('\r').unwrap_or(word);
    if word.is_empty() {
        return Err(bad(path, "the file is empty; accepted: one line"));
    }
    if word.contains(['\n', '\0']) {
        return Err(bad(path, "the file has more than one line; accepted: one line"));
    }
    Ok(word.to_owned())
}

fn bytes_of(path: &Path) -> Result<Vec<u8>, BadLogin> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes));
    match read {
        Err(error) => Err(bad(path, format!("the file cannot be read ({error}); accepted: a readable file"))),
        Ok(read) if read as u64 > LONGEST => {
            Err(bad(path, "the file is longer than 1 MiB; accepted: a shorter one"))
        }
        Ok(_) => Ok(bytes),
    }
}

fn bad(path: &Path, why: impl Into<String>) -> BadLogin {
    BadLogin { file: path.display().to_string(), why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(bytes: &[u8]) -> Result<Option<String>, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        std::fs::write(&path, bytes).unwrap();
        let files = LoginFiles { password: Some(path), ..LoginFiles::default() };
        let logins = Logins::new(Target::parse("redis://h").unwrap(), files);
        logins.map(|logins| logins.wanted().password().map(str::to_owned)).map_err(|bad| bad.why)
    }

    #[test]
    fn a_password_is_all_of_its_file_but_one_line_end() {
        for (bytes, wanted) in [
            (&b"s3cret"[..], "s3cret"),
            (b"s3cret\n", "s3cret"),
            (b"s3cret\r\n", "s3cret"),
            (b" s3 cret \n", " s3 cret "),
            ("pässwörd\n".as_bytes(), "pässwörd"),
        ] {
            assert_eq!(password(bytes).unwrap().as_deref(), Some(wanted));
        }
    }

    #[test]
    fn a_file_that_holds_no_password_is_refused_and_not_repeated() {
        let long = vec![b'x'; LONGEST as usize + 1];
        for (bytes, words) in [
            (&b""[..], "empty"),
            (b"\n", "empty"),
            (b"s3cret\ns3cret\n", "more than one line"),
            (b"s3cret\xff", "not UTF-8"),
            (&long, "longer than 1 MiB"),
        ] {
            let why = password(bytes).unwrap_err();
            assert!(why.contains(words) && why.contains("accepted") && !why.contains("s3cret"), "{why}");
        }
    }

    #[test]
    fn a_login_prints_nothing_of_itself() {
        let target = Target::parse("redis://tide:s3cret@h").unwrap();
        let logins = Logins::new(target, LoginFiles::default()).unwrap();
        let printed = format!("{:?}", logins.wanted());
        assert!(!printed.contains("s3cret") && !printed.contains("tide"), "{printed}");
    }
}
