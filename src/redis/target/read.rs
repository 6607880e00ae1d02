//! Reads a connection URL, strictly.
//!
//! A password that is pasted into a URL unescaped is the commonest reason why Redis "does not work": the URL
//! still parses, with another host or database in it. So this reader is our own: it refuses what is ambiguous,
//! says which character to escape and how, and never repeats a piece of the URL, since any piece may be a part
//! of the password.

use std::net::Ipv6Addr;

use percent_encoding::percent_decode_str;

use super::error::BadParameter;
use super::sentinels::Sentinels;
use super::{DEFAULT_PORT, DEFAULT_SENTINEL_PORT, Password, Place, Protocol, Target, TargetError};

impl Target {
    /// Reads a connection URL.
    ///
    /// # Errors
    /// When it is malformed, ambiguous, or asks for what this version cannot do.
    pub fn parse(url: &str) -> Result<Self, TargetError> {
        let (scheme, rest) = url.split_once("://").ok_or(TargetError::Scheme)?;
        match scheme.to_ascii_lowercase().as_str() {
            // What providers of Valkey hand out: the same protocol.
            "redis" | "valkey" => Self::parse_tcp(rest, false),
            "rediss" | "valkeys" => Self::parse_tcp(rest, true),
            "unix" => Self::parse_unix(rest),
            "redis+sentinel" => Self::parse_sentinels(rest, false),
            "rediss+sentinel" => Self::parse_sentinels(rest, true),
            _ => Err(TargetError::Scheme),
        }
    }

    fn parse_tcp(rest: &str, tls: bool) -> Result<Self, TargetError> {
        let Parts { user_info, address, path, query } = Parts::of(rest)?;
        let (username, password) = read_user_info(user_info)?;
        let (host, port) = read_address(address, DEFAULT_PORT)?;
        let db = read_db(path.strip_prefix('/').unwrap_or(path))?;
        let mut protocol = None;
        for (given, value) in parameters(query) {
            let fresh = match given.key {
                "protocol" => {
                    let value =
                        read_protocol(value).ok_or(TargetError::Parameter(given.with_other_value()))?;
                    protocol.replace(value).is_none()
                }
                _ => return Err(TargetError::Parameter(given.unknown())),
            };
            if !fresh {
                return Err(TargetError::Parameter(given.repeated()));
            }
        }
        let place = Place::Tcp { tls, host, port };
        Ok(Self { place, username, password, db, protocol: protocol.unwrap_or_default() })
    }

    /// `[USER:PASSWORD@]HOST[:PORT],…/MASTER[/DB][?…]`: user and password are those of the servers, each host is a
    /// sentinel.
    fn parse_sentinels(rest: &str, tls: bool) -> Result<Self, TargetError> {
        let Parts { user_info, address, path, query } = Parts::of(rest)?;
        let (username, password) = read_user_info(user_info)?;
        let mut addresses = Vec::new();
        for one in address.split(',') {
            let one = read_address(one, DEFAULT_SENTINEL_PORT)?;
            if addresses.contains(&one) {
                return Err(TargetError::SentinelTwice);
            }
            addresses.push(one);
        }
        let path = path.strip_prefix('/').unwrap_or(path);
        let (master, db) = path.split_once('/').unwrap_or((path, ""));
        // What Sentinel itself takes for a name.
        let is_in_names = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if master.is_empty() || !master.bytes().all(is_in_names) {
            return Err(TargetError::MasterName);
        }
        let db = read_db(db)?;
        let (mut protocol, mut user, mut pass, mut own_tls) = (None, None, None, None);
        for (given, value) in parameters(query) {
            let wrong = TargetError::SentinelParameter(given.with_other_value());
            let fresh = match given.key {
                "protocol" => protocol.replace(read_protocol(value).ok_or(wrong)?).is_none(),
                "sentinel_user" => user.replace(decode(value)?).is_none(),
                "sentinel_password" => pass.replace(decode(value)?).is_none(),
                "sentinel_tls" => own_tls.replace(value.parse::<bool>().map_err(|_| wrong)?).is_none(),
                _ => return Err(TargetError::SentinelParameter(given.unknown())),
            };
            if !fresh {
                return Err(TargetError::SentinelParameter(given.repeated()));
            }
        }
        let (user, pass) = login(user, pass)?;
        let sentinels =
            Sentinels { tls, own_tls, addresses, master: master.to_owned(), username: user, password: pass };
        let place = Place::Sentinels(Box::new(sentinels));
        Ok(Self { place, username, password, db, protocol: protocol.unwrap_or_default() })
    }

    fn parse_unix(rest: &str) -> Result<Self, TargetError> {
        if rest.contains('#') {
            return Err(TargetError::Fragment);
        }
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if !path.starts_with('/') || path.len() == 1 {
            return Err(TargetError::SocketPath);
        }
        let path = decode(path)?;
        if path.contains('\0') {
            return Err(TargetError::SocketPath);
        }
        let (mut db, mut username, mut password, mut protocol) = (None, None, None, None);
        for (given, value) in parameters(query) {
            let fresh = match given.key {
                "db" => db.replace(read_db(value)?).is_none(),
                "user" => username.replace(decode(value)?).is_none(),
                "pass" => password.replace(decode(value)?).is_none(),
                "protocol" => {
                    let value = read_protocol(value);
                    let value = value.ok_or(TargetError::UnixParameter(given.with_other_value()))?;
                    protocol.replace(value).is_none()
                }
                _ => return Err(TargetError::UnixParameter(given.unknown())),
            };
            if !fresh {
                return Err(TargetError::UnixParameter(given.repeated()));
            }
        }
        let (username, password) = login(username, password)?;
        let place = Place::Unix { path };
        Ok(Self {
            place,
            username,
            password,
            db: db.unwrap_or_default(),
            protocol: protocol.unwrap_or_default(),
        })
    }
}

/// What a URL over TCP is made of.
struct Parts<'a> {
    user_info: &'a str,
    address: &'a str,
    path: &'a str,
    query: &'a str,
}

impl<'a> Parts<'a> {
    fn of(rest: &'a str) -> Result<Self, TargetError> {
        let cut = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(cut);
        // No path, database or parameter has an "@": the password did not end where the URL says it does.
        if let Some(character) = tail.chars().next().filter(|_| tail.contains('@')) {
            // Or it is the sentinels' password, which stands behind the "?".
            let in_parameter = tail
                .split_once("sentinel_")
                .is_some_and(|(before, _)| before.contains('?') && !before.contains('@'));
            return Err(TargetError::Unescaped { character: if in_parameter { '@' } else { character } });
        }
        if tail.contains('#') {
            return Err(TargetError::Fragment);
        }
        let (user_info, address) = match authority.split_once('@') {
            Some((_, address)) if address.contains('@') => {
                return Err(TargetError::Unescaped { character: '@' });
            }
            Some((user_info, address)) => (user_info, address),
            None => ("", authority),
        };
        let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
        Ok(Self { user_info, address, path, query })
    }
}

/// A user and a password that stand in parameters of their own.
fn login(
    username: Option<String>,
    password: Option<String>,
) -> Result<(Option<String>, Option<Password>), TargetError> {
    let username = username.filter(|name| !name.is_empty());
    let password = password.filter(|word| username.is_some() || !word.is_empty()).map(Password);
    if username.is_some() && password.is_none() {
        return Err(TargetError::UserAlone);
    }
    Ok((username, password))
}

/// `[USER]:PASSWORD`, or nothing.
fn read_user_info(text: &str) -> Result<(Option<String>, Option<Password>), TargetError> {
    // "redis://secret@host" is a user to some clients and a password to others.
    let (user, password) = match text.split_once(':') {
        None if text.is_empty() => return Ok((None, None)),
        None => return Err(TargetError::UserAlone),
        Some((user, password)) => (decode(user)?, decode(password)?),
    };
    Ok(match (user.is_empty(), password.is_empty()) {
        (true, true) => (None, None),
        (true, false) => (None, Some(Password(password))),
        (false, _) => (Some(user), Some(Password(password))),
    })
}

/// `HOST[:PORT]`.
fn read_address(text: &str, default_port: u16) -> Result<(String, u16), TargetError> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or(TargetError::Host)?;
        host.parse::<Ipv6Addr>().map_err(|_| TargetError::Host)?;
        (host, port)
    } else {
        let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
        if host.is_empty() {
            return Err(TargetError::EmptyHost);
        }
        // "::1:6379" without brackets.
        if text.matches(':').count() > 1 && text.bytes().all(|byte| byte == b':' || byte.is_ascii_hexdigit())
        {
            return Err(TargetError::Host);
        }
        if !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
            return Err(TargetError::Host);
        }
        (host, port)
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => default_port,
        None => return Err(TargetError::Host),
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().ok().filter(|&port| port != 0).ok_or(TargetError::Port)?
        }
        Some(_) => return Err(TargetError::Port),
    };
    Ok((host.to_owned(), port))
}

fn read_db(text: &str) -> Result<i64, TargetError> {
    if text.is_empty() {
        return Ok(0);
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(TargetError::Db);
    }
    // Redis keeps the number in a C int.
    text.parse::<i32>().map(i64::from).map_err(|_| TargetError::Db)
}

fn read_protocol(text: &str) -> Option<Protocol> {
    match text {
        "resp2" => Some(Protocol::Resp2),
        "resp3" => Some(Protocol::Resp3),
        _ => None,
    }
}

fn parameters(query: &str) -> impl Iterator<Item = (Given<'_>, &str)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).zip(1..).map(|((key, value), place)| {
        let given = Given { key, place };
        (given, value)
    })
}

/// A parameter's name and its place.
#[derive(Clone, Copy)]
struct Given<'a> {
    key: &'a str,
    place: usize,
}

impl Given<'_> {
    fn unknown(self) -> BadParameter {
        BadParameter::new(self.key, self.place, "is not known")
    }

    fn repeated(self) -> BadParameter {
        BadParameter::new(self.key, self.place, "stands there twice")
    }

    fn with_other_value(self) -> BadParameter {
        BadParameter::new(self.key, self.place, "has another value than it may have")
    }
}

/// Undoes percent-encoding. The crate passes a lone `%` through; here it is more likely a password that was
/// never encoded.
fn decode(text: &str) -> Result<String, TargetError> {
    let mut escapes = text.split('%');
    escapes.next();
    for escape in escapes {
        let hex = escape.as_bytes().get(..2);
        if !hex.is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit)) {
            return Err(TargetError::Escape);
        }
    }
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| TargetError::NotUtf8)?;
    Ok(decoded.into_owned())
}
