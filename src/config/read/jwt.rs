//! How tokens are verified.

use super::boolean;
use crate::config::error::quoted;
use crate::config::parse;
use crate::config::take::Taken;
use crate::doors::jwt::{Algorithm, KeyFile, Options, Place, Verifier};

const ONE: &str = "jwt.key_file";
const SET: &str = "jwt.jwks_file";

/// What a token must be like; `None` when there is no key, or a wrong one.
pub(super) fn jwt(taken: &mut Taken, warnings: &mut Vec<String>) -> Option<Options> {
    let problems = taken.problems.len();
    let mut algorithms = Vec::new();
    for item in taken.list("jwt.algorithms") {
        match item.parse::<Algorithm>() {
            Ok(algorithm) => algorithms.push(algorithm),
            Err(accepted) => {
                taken.refuse("jwt.algorithms", format!("read {}; {accepted}", quoted(&item)));
            }
        }
    }
    let leeway = taken.get("jwt.leeway_s", Default::default(), |text| parse::seconds(text, 0..=60));
    let require_exp = boolean(taken, "jwt.require_exp");
    let place = taken.get("jwt.header", Place::Header("authorization".into()), place);
    let keys = match (taken.is_set(ONE), taken.is_set(SET)) {
        (true, true) => {
            let other = taken.place(SET);
            taken.refuse(ONE, format!("{other} is set as well; accepted: one of the two, unset the other"));
            return None;
        }
        (true, false) => KeyFile::One(taken.text(ONE).into()),
        (false, true) => KeyFile::Jwks(taken.text(SET).into()),
        (false, false) => {
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
    if let Err(bad) = Verifier::new(options.clone()) {
        taken.refuse_read(key, &bad.why);
        return None;
    }
    Some(options)
}

fn warn_of_what_has_no_effect(taken: &Taken, warnings: &mut Vec<String>) {
    for key in
        ["jwt.algorithms", "jwt.issuer", "jwt.audience", "jwt.leeway_s", "jwt.require_exp", "jwt.header"]
    {
        if taken.is_chosen(key) {
            let place = taken.place(key);
            warnings.push(format!("{place}: it has no effect without {ONE} or {SET}"));
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
