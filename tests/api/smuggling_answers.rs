//! Answers that could be read in two ways. What an upstream sends beside the rules is 502, or a broken body where its head
//! was sound, and never a part of the answer to somebody else.
//!
//! In the tables `|` is CRLF; every other control character stands as it is.

use Told::{Broken, Either, Gateway, Whole};

use crate::smuggling::{before, wire};
use crate::support::recorder::{Recorder, speak};

/// What the client is told.
#[derive(Clone, Copy, Debug)]
enum Told {
    /// A status and a body.
    Whole(&'static str, &'static str),
    /// The upstream is at fault: 502 by us.
    Gateway,
    /// A head, and a body that breaks off.
    Broken,
    /// 502, or the answer without what was beside the rules.
    Either(&'static str, &'static str),
}

/// A name, what is asked, what the upstream says and whether it closes then, what the client is told.
type Case = (&'static str, &'static str, &'static str, bool, Told);

const CASES: &[Case] = &[
    ("a length", "GET", "HTTP/1.1 200 OK|Content-Length: 2||ok", false, Whole("200", "ok")),
    ("chunks", "GET", "HTTP/1.1 200 OK|Transfer-Encoding: chunked||2|ok|0||", false, Whole("200", "ok")),
    ("until it closes", "GET", "HTTP/1.1 200 OK||ok", true, Whole("200", "ok")),
    ("HTTP/1.0", "GET", "HTTP/1.0 200 OK|Content-Length: 2||ok", true, Whole("200", "ok")),
    ("no reason", "GET", "HTTP/1.1 200|Content-Length: 2||ok", false, Whole("200", "ok")),
    ("two lengths", "GET", "HTTP/1.1 200 OK|Content-Length: 2|Content-Length: 3||okk", false, Gateway),
    (
        "twice the same length",
        "GET",
        "HTTP/1.1 200 OK|Content-Length: 2|Content-Length: 2||ok",
        false,
        Gateway,
    ),
    ("a list of lengths", "GET", "HTTP/1.1 200 OK|Content-Length: 2, 2||ok", false, Gateway),
    ("a list of two lengths", "GET", "HTTP/1.1 200 OK|Content-Length: 2, 3||okk", false, Gateway),
    ("+2", "GET", "HTTP/1.1 200 OK|Content-Length: +2||ok", false, Gateway),
    ("-2", "GET", "HTTP/1.1 200 OK|Content-Length: -2||ok", false, Gateway),
    ("002", "GET", "HTTP/1.1 200 OK|Content-Length: 002||ok", false, Gateway),
    ("0x2", "GET", "HTTP/1.1 200 OK|Content-Length: 0x2||ok", false, Gateway),
    ("2 2", "GET", "HTTP/1.1 200 OK|Content-Length: 2 2||ok", false, Gateway),
    ("a length that is a word", "GET", "HTTP/1.1 200 OK|Content-Length: two||ok", false, Gateway),
    ("an empty length", "GET", "HTTP/1.1 200 OK|Content-Length:||ok", false, Gateway),
    ("more than 64 bits", "GET", "HTTP/1.1 200 OK|Content-Length: 18446744073709551618||ok", false, Gateway),
    (
        "a length and chunks",
        "GET",
        "HTTP/1.1 200 OK|Content-Length: 2|Transfer-Encoding: chunked||2|ok|0||",
        false,
        Gateway,
    ),
    (
        "chunks and a length",
        "GET",
        "HTTP/1.1 200 OK|Transfer-Encoding: chunked|Content-Length: 2||2|ok|0||",
        false,
        Gateway,
    ),
    (
        "chunked twice",
        "GET",
        "HTTP/1.1 200 OK|Transfer-Encoding: chunked|Transfer-Encoding: chunked||2|ok|0||",
        false,
        Gateway,
    ),
    (
        "chunked, chunked",
        "GET",
        "HTTP/1.1 200 OK|Transfer-Encoding: chunked, chunked||2|ok|0||",
        false,
        Gateway,
    ),
    ("gzip, chunked", "GET", "HTTP/1.1 200 OK|Transfer-Encoding: gzip, chunked||2|ok|0||", false, Gateway),
    (
        "chunked, identity",
        "GET",
        "HTTP/1.1 200 OK|Transfer-Encoding: chunked, identity||2|ok|0||",
        true,
        Gateway,
    ),
    ("xchunked", "GET", "HTTP/1.1 200 OK|Transfer-Encoding: xchunked||2|ok|0||", true, Gateway),
    ("an unknown coding", "GET", "HTTP/1.1 200 OK|Transfer-Encoding: x||ok", true, Gateway),
    ("chunks with HTTP/1.0", "GET", "HTTP/1.0 200 OK|Transfer-Encoding: chunked||2|ok|0||", true, Gateway),
    (
        "a space before the colon of TE",
        "GET",
        "HTTP/1.1 200 OK|Transfer-Encoding : chunked||2|ok|0||",
        true,
        Gateway,
    ),
    ("TE folded", "GET", "HTTP/1.1 200 OK|Transfer-Encoding:| chunked||2|ok|0||", true, Gateway),
    ("a folded value", "GET", "HTTP/1.1 200 OK|X: y| z|Content-Length: 2||ok", false, Gateway),
    ("a bare CR in a value", "GET", "HTTP/1.1 200 OK|X: y\rz|Content-Length: 2||ok", false, Gateway),
    ("a NUL in a value", "GET", "HTTP/1.1 200 OK|X: y\0z|Content-Length: 2||ok", false, Gateway),
    ("a NUL in a name", "GET", "HTTP/1.1 200 OK|X\0: y|Content-Length: 2||ok", false, Gateway),
    ("a space in a name", "GET", "HTTP/1.1 200 OK|X Y: z|Content-Length: 2||ok", false, Gateway),
    ("a header without a colon", "GET", "HTTP/1.1 200 OK|Nothing|Content-Length: 2||ok", false, Gateway),
    ("a header without a name", "GET", "HTTP/1.1 200 OK|: y|Content-Length: 2||ok", false, Gateway),
    ("HTTP/9.9", "GET", "HTTP/9.9 200 OK|Content-Length: 2||ok", false, Gateway),
    ("http/1.1", "GET", "http/1.1 200 OK|Content-Length: 2||ok", false, Gateway),
    ("a status of two digits", "GET", "HTTP/1.1 20 OK|Content-Length: 2||ok", false, Gateway),
    ("a status of four digits", "GET", "HTTP/1.1 2000 OK|Content-Length: 2||ok", false, Gateway),
    ("a status that is a word", "GET", "HTTP/1.1 two OK|Content-Length: 2||ok", false, Gateway),
    ("a status of 099", "GET", "HTTP/1.1 099 OK|Content-Length: 2||ok", false, Gateway),
    ("SSH", "GET", "SSH-2.0-OpenSSH_9.2|", true, Gateway),
    ("HTML", "GET", "<html>ok</html>", true, Gateway),
    ("nothing at all", "GET", "", true, Gateway),
    ("half a head", "GET", "HTTP/1.1 200 OK|Content-Le", true, Gateway),
    (
        "a 101 that nobody asked for",
        "GET",
        "HTTP/1.1 101 Switching Protocols|Connection: upgrade|Upgrade: x||HTTP/1.1 200 OK|Content-Length: 2||ok",
        false,
        Gateway,
    ),
    (
        "a chunk's size that is a word",
        "GET",
        "HTTP/1.1 200 OK|Transfer-Encoding: chunked||two|ok|0||",
        false,
        Broken,
    ),
    ("a chunk's size of -2", "GET", "HTTP/1.1 200 OK|Transfer-Encoding: chunked||-2|ok|0||", false, Broken),
    (
        "a chunk's size of 65 bits",
        "GET",
        "HTTP/1.1 200 OK|Transfer-Encoding: chunked||10000000000000002|ok|0||",
        false,
        Broken,
    ),
    (
        "a chunk longer than its size",
        "GET",
        "HTTP/1.1 200 OK|Transfer-Encoding: chunked||1|ok|0||",
        false,
        Broken,
    ),
    (
        "a bare LF in a chunk's extension",
        "GET",
        "HTTP/1.1 200 OK|Transfer-Encoding: chunked||2;a\nb|ok|0||",
        false,
        Broken,
    ),
    ("an end in a chunk", "GET", "HTTP/1.1 200 OK|Transfer-Encoding: chunked||5|ok", true, Broken),
    ("an end between chunks", "GET", "HTTP/1.1 200 OK|Transfer-Encoding: chunked||2|ok|", true, Broken),
    (
        "an end before the last line of chunks",
        "GET",
        "HTTP/1.1 200 OK|Transfer-Encoding: chunked||2|ok|0|",
        true,
        Broken,
    ),
    ("an end before the length", "GET", "HTTP/1.1 200 OK|Content-Length: 5||ok", true, Broken),
    (
        "chunks with extensions",
        "GET",
        "HTTP/1.1 200 OK|Transfer-Encoding: chunked||2;a=b|ok|0||",
        false,
        Whole("200", "ok"),
    ),
    (
        "chunks with trailers that name framing",
        "GET",
        "HTTP/1.1 200 OK|Transfer-Encoding: chunked||2|ok|0|Content-Length: 50|X: y||",
        false,
        Whole("200", "ok"),
    ),
    (
        "more than its length",
        "GET",
        "HTTP/1.1 200 OK|Content-Length: 2||ok and more",
        false,
        Whole("200", "ok"),
    ),
    (
        "two answers",
        "GET",
        "HTTP/1.1 200 OK|Content-Length: 2||okHTTP/1.1 200 OK|Content-Length: 3||two",
        false,
        Whole("200", "ok"),
    ),
    (
        "more after the last chunk",
        "GET",
        "HTTP/1.1 200 OK|Transfer-Encoding: chunked||2|ok|0||HTTP/1.1 200 OK|Content-Length: 3||two",
        false,
        Whole("200", "ok"),
    ),
    ("204 with a length", "GET", "HTTP/1.1 204 No Content|Content-Length: 2||ok", false, Whole("204", "")),
    (
        "204 with chunks",
        "GET",
        "HTTP/1.1 204 No Content|Transfer-Encoding: chunked||2|ok|0||",
        false,
        Either("204", ""),
    ),
    ("304 with a length", "GET", "HTTP/1.1 304 Not Modified|Content-Length: 2||", false, Whole("304", "")),
    ("304 with a body", "GET", "HTTP/1.1 304 Not Modified|Content-Length: 2||ok", false, Whole("304", "")),
    ("HEAD with a length", "HEAD", "HTTP/1.1 200 OK|Content-Length: 2||", false, Whole("200", "")),
    ("HEAD with a body", "HEAD", "HTTP/1.1 200 OK|Content-Length: 2||ok", false, Whole("200", "")),
    (
        "HEAD with a body of another answer",
        "HEAD",
        "HTTP/1.1 200 OK|Content-Length: 2||HTTP/1.1 200 OK|Content-Length: 3||two",
        false,
        Whole("200", ""),
    ),
    (
        "100, then the answer",
        "GET",
        "HTTP/1.1 100 Continue||HTTP/1.1 200 OK|Content-Length: 2||ok",
        false,
        Whole("200", "ok"),
    ),
    (
        "103, then the answer",
        "GET",
        "HTTP/1.1 103 Early Hints|Link: </a>||HTTP/1.1 200 OK|Content-Length: 2||ok",
        false,
        Whole("200", "ok"),
    ),
    (
        "a length named in Connection",
        "GET",
        "HTTP/1.1 200 OK|Connection: content-length|Content-Length: 2||ok",
        false,
        Whole("200", "ok"),
    ),
];

#[tokio::test]
async fn an_answer_that_can_be_read_in_two_ways_is_502_or_broken_and_no_part_of_the_next() {
    let recorder = Recorder::start().await;
    let tidegate = before(&recorder).await;
    let mut wrong = Vec::new();
    for (at, &(name, method, says, closes, told)) in CASES.iter().enumerate() {
        recorder.answers((wire(says), closes));
        let asked = format!("{method} /canned HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        let verdict = judge(told, method, speak(tidegate.main, asked.as_bytes(), 0).await);
        if let Err(what) = verdict {
            wrong.push(format!("{name}: {what} for {told:?}"));
        }
        let next = format!("GET /next/{at} HTTP/1.1\r\nHost: h\r\n\r\n");
        let (answers, ..) = speak(tidegate.main, next.as_bytes(), 1).await;
        if answers.first().is_none_or(|answer| answer.body != format!("GET /next/{at}").as_bytes()) {
            wrong.push(format!("after {name}: {answers:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), CASES.len(), wrong.join("\n"));
}

fn judge(
    told: Told,
    method: &str,
    got: (Vec<crate::support::recorder::Message>, Vec<u8>, bool),
) -> Result<(), String> {
    let (answers, rest, closed) = got;
    let rest = String::from_utf8_lossy(&rest).into_owned();
    let say = || Err(format!("{answers:?}, {rest:?}, closed: {closed}"));
    if !closed {
        return say();
    }
    // A strict reader waits for the body that an answer to HEAD or a 304 only tells the length of.
    let (status, body) = match answers.as_slice() {
        [one] if rest.is_empty() => {
            (one.line[9..12].to_owned(), String::from_utf8_lossy(&one.body).into_owned())
        }
        [] if rest.len() > 12
            && rest.ends_with("\r\n\r\n")
            && (method == "HEAD" || rest[9..12] == *"304") =>
        {
            (rest[9..12].to_owned(), String::new())
        }
        // Its head may not even have gone out.
        [] if (rest.is_empty() || rest.starts_with("HTTP/1.1 200")) && matches!(told, Broken) => {
            return Ok(());
        }
        _ => return say(),
    };
    let fits = match told {
        Whole(wanted, text) => status == wanted && body == text,
        Gateway => status == "502" && body.contains("upstream"),
        Either(wanted, text) => status == "502" || (status == wanted && body == text),
        Broken => status == "502",
    };
    if fits { Ok(()) } else { say() }
}

#[tokio::test]
async fn an_upstream_that_never_stops_to_announce_or_to_head_its_answer_is_502_in_bounded_memory() {
    let recorder = Recorder::start().await;
    let tidegate = before(&recorder).await;
    let floods = [
        (
            "1xx without end",
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(400_000).into_bytes(),
            true,
        ),
        ("a head of 16 MiB", [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'y'; 16 << 20]].concat(), true),
        (
            "a million headers",
            [b"HTTP/1.1 200 OK\r\n".to_vec(), b"X: y\r\n".repeat(1_000_000)].concat(),
            true,
        ),
    ];
    for (name, says, closes) in floods {
        recorder.answers((says, closes));
        let asked = "GET /canned HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
        let (answers, ..) = speak(tidegate.main, asked.as_bytes(), 0).await;
        // The 1xx among them may be passed on.
        assert_eq!(answers.last().map(|answer| &answer.line[9..12]), Some("502"), "{name}");
        let (answers, ..) = speak(tidegate.main, b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n", 1).await;
        assert_eq!(answers[0].body, b"GET /next", "after {name}");
    }
    let peak = crate::support::process::peak_mib(tidegate.pid());
    assert!(peak < 100, "{peak} MiB");
}
