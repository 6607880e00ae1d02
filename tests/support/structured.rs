//! A checker of structured fields (RFC 9651): the part of them that headers about limits are made of. It refuses
//! whatever a strict reader would.

use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bare {
    Integer(i64),
    String(String),
    Token(String),
}

/// An item with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub value: Bare,
    pub parameters: BTreeMap<String, Bare>,
}

impl Item {
    pub fn integer(&self, key: &str) -> i64 {
        match self.parameters.get(key) {
            Some(Bare::Integer(number)) => *number,
            other => panic!("{key} is {other:?}"),
        }
    }
}

/// The members of a list of items. Inner lists are none of ours: they are refused.
pub fn list(text: &str) -> Vec<Item> {
    let mut rest = text.trim_matches(' ');
    let mut members = Vec::new();
    while !rest.is_empty() {
        members.push(item(&mut rest));
        rest = rest.trim_start_matches([' ', '\t']);
        if rest.is_empty() {
            break;
        }
        rest = rest.strip_prefix(',').unwrap_or_else(|| panic!("no comma at {rest:?} of {text:?}"));
        rest = rest.trim_start_matches([' ', '\t']);
        assert!(!rest.is_empty(), "a comma at the end of {text:?}");
    }
    members
}

fn item(rest: &mut &str) -> Item {
    let value = bare(rest);
    let mut parameters = BTreeMap::new();
    while let Some(after) = rest.strip_prefix(';') {
        *rest = after.trim_start_matches(' ');
        let key =
            taken(rest, |letter| letter.is_ascii_lowercase() || b"0123456789_-.*".contains(&(letter as u8)));
        assert!(key.starts_with(|first: char| first.is_ascii_lowercase() || first == '*'), "key {key:?}");
        let Some(after) = rest.strip_prefix('=') else { panic!("{key} has no value") };
        *rest = after;
        assert!(parameters.insert(key.to_owned(), bare(rest)).is_none(), "{key} is there twice");
    }
    Item { value, parameters }
}

fn bare(rest: &mut &str) -> Bare {
    match rest.chars().next() {
        Some('"') => {
            *rest = &rest[1..];
            let text = taken(rest, |letter| (' '..='~').contains(&letter) && letter != '"' && letter != '\\');
            let text = text.to_owned();
            *rest = rest.strip_prefix('"').unwrap_or_else(|| panic!("a string goes on at {rest:?}"));
            Bare::String(text)
        }
        Some(first) if first.is_ascii_digit() || first == '-' => {
            let digits = taken(rest, |letter| letter.is_ascii_digit() || letter == '-');
            assert!(digits.trim_start_matches('-').len() <= 15, "{digits} is too long for an integer");
            Bare::Integer(digits.parse().unwrap())
        }
        Some(first) if first.is_ascii_alphabetic() || first == '*' => {
            let letters = b"!#$%&'*+-.^_`|~:/";
            let is = |letter: char| letter.is_ascii_alphanumeric() || letters.contains(&(letter as u8));
            Bare::Token(taken(rest, is).to_owned())
        }
        other => panic!("no item begins with {other:?}"),
    }
}

fn taken<'a>(rest: &mut &'a str, is: impl Fn(char) -> bool) -> &'a str {
    let (taken, after) = rest.split_at(rest.find(|letter| !is(letter)).unwrap_or(rest.len()));
    *rest = after;
    taken
}
