//! The admin API's tokens as they are written: one a line in a file, or a few in one option.

use std::path::{Path, PathBuf};

use super::error::Problem;
use super::parse;
use super::secret::Secret;
use super::seen::Seen;

/// More than a team needs, few enough to compare each of them with every guess.
const MOST: usize = 64;

/// Old and new, while one replaces the other.
const OF_ONE_NAME: usize = 2;

const LONGEST_NAME: usize = 32;

const FORM: &str =
    "accepted: a line \"TOKEN\", or \"SCOPE NAME TOKEN\" with SCOPE one of read, operate, admin";

/// What the bearer of a token may do. Each may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// See everything.
    Read,
    /// Make things safer, or kinder to one client: lower, roll back, forgive.
    Operate,
    /// Raise the share of Redis, reload.
    Admin,
}

impl Scope {
    /// The word of the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

/// A token and what its bearer may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminToken {
    /// Who bears it, for logs; a token without a name goes by the beginning of its hash.
    pub name: Option<String>,
    /// What it is good for.
    pub scope: Scope,
    /// The token itself.
    pub secret: Secret,
}

impl AdminToken {
    /// A token for everything, without a name.
    pub fn of_admin(secret: Secret) -> Self {
        Self { name: None, scope: Scope::Admin, secret }
    }
}

/// A file of tokens, which can be read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenFile(PathBuf);

impl TokenFile {
    /// The file at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Its tokens, or everything that is wrong, each with its line and never with what the line holds; and what was
    /// seen of the file. A problem of the whole file has no line.
    pub fn read(&self) -> (Result<Vec<AdminToken>, Vec<Problem>>, Seen) {
        let mut seen = Seen::default();
        let name = self.0.display().to_string();
        let tokens = match seen.text(&self.0) {
            Ok(Some(text)) => of_text(&name, &text),
            Ok(None) => Err(vec![Problem::new(name, "there is no such file; accepted: a readable file")]),
            Err(why) => Err(vec![Problem::new(name, why)]),
        };
        (tokens, seen)
    }
}

fn of_text(file: &str, text: &str) -> Result<Vec<AdminToken>, Vec<Problem>> {
    let mut tokens: Vec<AdminToken> = Vec::new();
    let mut problems = Vec::new();
    // A byte order mark is what some editors leave; it is no part of a token.
    for (index, line) in text.trim_start_matches('\u{feff}').lines().map(str::trim).enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match of_line(line).and_then(|token| fits(&tokens, &token).map(|()| token)) {
            Ok(token) => tokens.push(token),
            Err(why) => problems.push(Problem::new(format!("{file}:{}", index + 1), why)),
        }
    }
    if tokens.is_empty() && problems.is_empty() {
        problems.push(Problem::new(file, format!("there is no token in it; {FORM}")));
    }
    if problems.is_empty() { Ok(tokens) } else { Err(problems) }
}

fn of_line(line: &str) -> Result<AdminToken, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        [one] => parse::token(one).map(AdminToken::of_admin),
        [scope, name, secret] => {
            let scope =
                [Scope::Read, Scope::Operate, Scope::Admin].into_iter().find(|s| s.as_str() == *scope);
            // Not repeated: in a line of another form it may be the token.
            let scope = scope.ok_or_else(|| format!("the first word (not shown) is no scope; {FORM}"))?;
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
            if name.len() > LONGEST_NAME || !name.bytes().all(plain) {
                return Err(format!(
                    "the name (not shown) is none; accepted: at most {LONGEST_NAME} of A-Z, a-z, 0-9, \"-\", \
                     \"_\", \".\" and \"@\""
                ));
            }
            Ok(AdminToken { name: Some((*name).to_owned()), scope, secret: parse::token(secret)? })
        }
        words => Err(format!("there are {} words; {FORM}", words.len())),
    }
}

/// Whether a token can stand beside those before it.
fn fits(before: &[AdminToken], token: &AdminToken) -> Result<(), String> {
    if before.iter().any(|other| other.secret == token.secret) {
        return Err("the same token stands further up; accepted: each token once".to_owned());
    }
    if before.iter().filter(|other| other.name == token.name).count() >= OF_ONE_NAME {
        let whose = token.name.as_deref().map_or("without a name".to_owned(), |name| format!("of {name}"));
        return Err(format!(
            "it is the third token {whose}; accepted: one, or two while one replaces the other"
        ));
    }
    if before.len() >= MOST {
        return Err(format!("there are more than {MOST} tokens; accepted: at most {MOST}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        of_text("tokens", text).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_file_names_scope_and_bearer_or_only_a_token_which_is_good_for_everything() {
        let text = "\u{feff}# who may do what\n\n  read grafana grafana-token-of-24-ch\r\noperate on-call on-call-token-of-24-ch\n\
                    admin on-call another-token-of-24-ch\na-token-of-16-chars\n";
        let tokens = of_text("tokens", text).unwrap();
        let told: Vec<(Option<&str>, Scope, &str)> =
            tokens.iter().map(|token| (token.name.as_deref(), token.scope, token.secret.expose())).collect();
        assert_eq!(
            told,
            [
                (Some("grafana"), Scope::Read, "grafana-token-of-24-ch"),
                (Some("on-call"), Scope::Operate, "on-call-token-of-24-ch"),
                (Some("on-call"), Scope::Admin, "another-token-of-24-ch"),
                (None, Scope::Admin, "a-token-of-16-chars"),
            ]
        );
        assert!(Scope::Read < Scope::Operate && Scope::Operate < Scope::Admin);
    }

    #[test]
    fn every_bad_line_is_named_by_its_number_and_nothing_of_it_is_repeated() {
        let text = "short\n# fine\nhunter2marker-of-24-ch operate x\nread a/b hunter2marker-of-24-ch\nread x hunter2marker extra\n\
                    read twice hunter2marker-of-24-ch\nadmin again hunter2marker-of-24-ch\n";
        let problems = problems(text);
        let places: Vec<&str> = problems.iter().map(|line| line.split_once(": ").unwrap().0).collect();
        assert_eq!(places, ["tokens:1", "tokens:3", "tokens:4", "tokens:5", "tokens:7"]);
        assert!(problems.iter().all(|line| line.contains("accepted: ")), "{problems:?}");
        assert!(!problems.concat().contains("hunter2marker") && !problems.concat().contains("a/b"));
    }

    #[test]
    fn a_file_without_a_token_is_no_file_of_tokens_and_one_bearer_has_two_at_most() {
        assert!(problems("# nobody\n\n")[0].starts_with("tokens: there is no token in it"));
        let three: String = (0..3).map(|n| format!("read a a-token-of-16-chars-{n}\n")).collect();
        assert!(problems(&three)[0].starts_with("tokens:3: it is the third token of a"));
        let unnamed: String = (0..3).map(|n| format!("a-token-of-16-chars-{n}\n")).collect();
        assert!(problems(&unnamed)[0].starts_with("tokens:3: it is the third token without a name"));
        let many: String = (0..=MOST).map(|n| format!("read a{n} a-token-of-16-chars-{n}\n")).collect();
        assert!(problems(&many)[0].starts_with("tokens:65: there are more than 64"));
    }
}
