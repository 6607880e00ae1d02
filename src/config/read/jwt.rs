//! How tokens are verified.

use std::path::PathBuf;

use super::boolean;
use crate::config::parse;
use crate::config::take::Taken;
use crate::doors::jwt::{Algorithm, KeyFile, Options, Place, Verifier};

const ONE: &str = "jwt.key_file";
const SET: &str = "jwt.jwks_file";
const URL: &str = "jwt.jwks_url";

/// What a token must be like; `None` when there is no key, or a wrong one.
pub(super) fn jwt(taken: &mut Taken, warnings: &mut Vec<String>) -> Option<Options> {
    let problems = taken.problems.len();
    let mut algorithms = Vec::new();
    for item in taken.list("jwt.algorithms") {
        match item.parse::<Algorithm>() {
            Ok(algorithm) => algorithms.push(algorithm),
            Err(accepted) => taken.refuse_item("jwt.algorithms", &item, accepted),
        }
    }
    let leeway = taken.get("jwt.leeway_s", Default::default(), |text| parse::seconds(text, 0..=60));
    let require_exp = boolean(taken, "jwt.require_exp");
    let place = taken.get("jwt.header", Place::Header("authorization".into()), place);
    let url = taken.optional(URL, parse::jwks_url);
    let others = [SET, URL].into_iter().find(|other| taken.is_set(other));
    let file = |key| PathBuf::from(taken.text(key));
    let keys = match (taken.is_set(ONE), others, url) {
        (true, Some(other), _) => {
            let other = taken.place(other);
            taken.refuse(ONE, format!("{other} is set as well; accepted: one of the two, unset the other"));
            return None;
        }
        (true, None, _) => KeyFile::One(file(ONE)),
        (false, Some(_), Some(url)) => KeyFile::Url { url, copy: taken.is_set(SET).then(|| file(SET)) },
        (false, Some(SET), None) if !taken.is_set(URL) => KeyFile::Jwks(file(SET)),
        // The URL is refused already.
        (false, Some(_), None) => return None,
        (false, None, _) => {
            warn_of_what_has_no_effect(taken, warnings);
            return None;
        }
    };
    let key = if matches!(keys, KeyFile::One(_)) { ONE } else { SET };
    let (issuers, audiences) = (taken.list("jwt.issuer"), taken.list("jwt.audience"));
    let options = Options { keys, algorithms, issuers, audiences, leeway, require_exp, place };
    if taken.problems.len() > problems {
        return None;
    }
    match Verifier::new(options.clone()) {
        Ok(verifier) => {
            let place = taken.place(key);
            warnings.extend(verifier.warning().map(|warning| format!("{place}: {warning}")));
        }
        Err(bad) => {
            taken.refuse_read(key, &bad.why);
            return None;
        }
    }
    Some(options)
}

fn warn_of_what_has_no_effect(taken: &Taken, warnings: &mut Vec<String>) {
    for key in
        ["jwt.algorithms", "jwt.issuer", "jwt.audience", "jwt.leeway_s", "jwt.require_exp", "jwt.header"]
    {
        if taken.is_chosen(key) {
            let place = taken.place(key);
            warnings.push(format!("{place}: it has no effect without {ONE}, {SET} or {URL}"));
        }
    }
}

fn place(text: &str) -> Result<Place, String> {
    match text.split_once(':') {
        Some(("cookie", name)) if parse::is_token(name) => Ok(Place::Cookie(name.into())),
        None if parse::is_token(text) => Ok(Place::Header(text.to_ascii_lowercase().into())),
        _ => Err("accepted: the name of a header such as authorization, or cookie:NAME".to_owned()),
    }
}
