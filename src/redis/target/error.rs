//! Why a connection URL is refused, in words that repeat no piece of it.

/// Why a URL is refused. It holds nothing of the URL but, at most, one character with a meaning in URLs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Another scheme, or none.
    #[error(
        "the scheme is not known; accepted: redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss:// (the same with \
         TLS), redis+sentinel://[USER:PASSWORD@]HOST[:PORT],…/MASTER[/DB], rediss+sentinel://, \
         unix:///PATH[?db=N&user=USER&pass=PASSWORD]"
    )]
    Scheme,
    /// No name for the master, or none that Sentinel would take.
    #[error(
        "the name of the master is missing or has other characters than A-Z a-z 0-9 . - _; accepted: \
         redis+sentinel://[USER:PASSWORD@]HOST[:PORT],…/MASTER[/DB]"
    )]
    MasterName,
    /// A sentinel that stands there twice.
    #[error("a sentinel stands there twice; accepted: each once, with commas between")]
    SentinelTwice,
    /// A parameter of a URL with sentinels that is not known.
    #[error(
        "a parameter behind the \"?\" is not known; accepted: sentinel_user=USER, sentinel_password=PASSWORD, \
         sentinel_tls=true or sentinel_tls=false, protocol=resp2 or protocol=resp3, each once"
    )]
    SentinelParameter,
    /// A character of the user or password stands there as itself.
    #[error(
        "an unescaped \"{character}\" in the user or password; accepted: {} in its place",
        escape(*.character)
    )]
    Unescaped {
        /// Which.
        character: char,
    },
    /// A `#` where no password can be.
    #[error("a fragment (\"#\") means nothing here; accepted: no \"#\"; in a password it is written %23")]
    Fragment,
    /// No host.
    #[error("the host is empty; accepted: redis://[USER:PASSWORD@]HOST[:PORT][/DB]")]
    EmptyHost,
    /// Something that is no host.
    #[error(
        "the host is malformed; accepted: a name, an IPv4 address, or an IPv6 address in brackets such as [::1]"
    )]
    Host,
    /// No port number.
    #[error(
        "the port is not a number from 1 to 65535; accepted: HOST:PORT (if a password stands there, \"@HOST\" is \
         missing behind it)"
    )]
    Port,
    /// No database number.
    #[error("the database is not a number; accepted: /0, /1, … behind the host, or nothing for 0")]
    Db,
    /// A user alone.
    #[error(
        "a user without a password; accepted: :PASSWORD@HOST or USER:PASSWORD@HOST, of sentinels \
         sentinel_user=USER and sentinel_password=PASSWORD"
    )]
    UserAlone,
    /// A `%` that begins no escape.
    #[error(
        "a \"%\" in the user, password or path is not followed by two hexadecimal digits; accepted: %25 for a \
         \"%\" itself"
    )]
    Escape,
    /// Escapes that are no text.
    #[error("the %-escapes of the user, password or path are not UTF-8; accepted: UTF-8 text")]
    NotUtf8,
    /// A parameter that is not known.
    #[error("a parameter behind the \"?\" is not known; accepted: protocol=resp2 or protocol=resp3, once")]
    Parameter,
    /// A parameter of a unix socket that is not known.
    #[error(
        "a parameter behind the \"?\" is not known; accepted: db=N, user=USER, pass=PASSWORD, protocol=resp2 or \
         protocol=resp3, each once"
    )]
    UnixParameter,
    /// A socket without an absolute path.
    #[error("the path of the socket is not absolute; accepted: unix:///PATH with three slashes")]
    SocketPath,
}

fn escape(character: char) -> &'static str {
    match character {
        '@' => "%40",
        '/' => "%2F",
        '?' => "%3F",
        _ => "%23",
    }
}
