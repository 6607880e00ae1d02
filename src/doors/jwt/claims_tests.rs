//! What of a claim names a client.

use super::*;
use serde_json::json;

#[test]
fn claim_is_a_text_or_whole_number_on_a_dotted_path() {
    let claims = json!({
        "sub": "ana", "tenant": 7, "debt": -7, "most": u64::MAX, "zero": 0,
        "https://example.com/tenant": "acme", "https://example.com/app": { "tenant": "inner" },
        "realm": { "client": { "id": "web", "n": 5, "a.b": "dotted" }, "client.id": "literal" },
        "a.b": "whole", "a": { "b": "path" }, "c": { "d": "path" }, "e.f": { "g": "half" },
        "empty": "", "null": null, "yes": true, "half": 1.5, "float": 7.0, "list": ["x"], "object": {}, "": "nameless",
        "shadow.x": { "no": "text" }, "shadow": { "x": "hidden" }, "space": " ",
    });
    let mut text = claims.to_string();
    text.insert_str(1, "\"huge\": 18446744073709551616, \"exponent\": 7e0, \"minus_zero\": -0,");
    let members = serde_json::from_str(&text).unwrap();
    let claims = Claims { members, until: None, from: None };
    for (name, wanted) in [
        ("sub", Some("ana")),
        ("tenant", Some("7")),
        ("debt", Some("-7")),
        ("most", Some("18446744073709551615")),
        ("zero", Some("0")),
        ("space", Some(" ")),
        ("https://example.com/tenant", Some("acme")),
        ("https://example.com/app.tenant", Some("inner")),
        ("a.b", Some("whole")),
        ("c.d", Some("path")),
        ("e.f.g", Some("half")),
        ("realm.client.id", Some("literal")),
        ("realm.client.n", Some("5")),
        ("realm.client.a.b", Some("dotted")),
        ("", Some("nameless")),
        ("Sub", None),
        ("absent", None),
        ("sub.x", None),
        ("realm", None),
        ("realm.client", None),
        ("realm.absent.id", None),
        (".sub", None),
        ("sub.", None),
        ("c..d", None),
        (".", None),
        // The top goes before the path, even where it names no one.
        ("shadow.x", None),
        ("empty", None),
        ("null", None),
        ("yes", None),
        ("half", None),
        ("float", None),
        ("exponent", None),
        ("minus_zero", None),
        ("huge", None),
        ("list", None),
        ("list.0", None),
        ("object", None),
    ] {
        let got = claims.get(name).map(|value| String::from_utf8(value.into_owned()).unwrap());
        assert_eq!(got.as_deref(), wanted, "{name:?}");
    }
}
