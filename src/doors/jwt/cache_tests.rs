//! What the cache keeps, and for how long.

use serde_json::json;

use super::*;

fn digest(number: usize) -> Digest {
    Digest::of(0, &number.to_be_bytes(), b"")
}

fn claims(text: &str) -> Checked {
    let members = json!({ "sub": text }).as_object().unwrap().clone();
    let options = super::super::Options {
        keys: super::super::KeyFile::One("key".into()),
        algorithms: Vec::new(),
        issuers: Vec::new(),
        audiences: Vec::new(),
        leeway: std::time::Duration::ZERO,
        require_exp: false,
        place: super::super::Place::Header("authorization".into()),
    };
    Claims::check(members, &options).map(Arc::new)
}

fn is_verified(cache: &Cache, number: usize) -> bool {
    matches!(cache.get(&digest(number)), Some(Ok(_)))
}

#[test]
fn flood_of_junk_drives_out_no_verified_token() {
    let cache = Cache::new(256 * 1024, 64 * 1024);
    (0..100).for_each(|number| cache.put(digest(number), &claims("ana")));
    (100..100_000).for_each(|number| cache.put(digest(number), &Err(Refusal::Signature)));
    assert!((0..100).all(|number| is_verified(&cache, number)));
}

#[test]
fn cache_keeps_within_its_room_and_what_is_used() {
    let room = 64 * 1024;
    let cache = Cache::new(room, room);
    let one = claims("ana").map(|claims| claims.weight()).unwrap() + ENTRY;
    for number in 0..10_000 {
        cache.put(digest(number), &claims("ana"));
        cache.put(digest(number), &Err(Refusal::Signature));
        assert!(is_verified(&cache, 0), "used all the time: {number}");
    }
    let (mut verified, mut refused) = (0, 0);
    for shard in &cache.shards {
        let shard = shard.lock();
        verified += shard.verified.young.len() + shard.verified.old.len();
        refused += shard.refused.young.len() + shard.refused.old.len();
    }
    assert!(verified * one <= room && verified * one >= room / 4, "{verified} entries of {one} bytes");
    assert!(refused * ENTRY <= room && refused * ENTRY >= room / 4, "{refused} entries of {ENTRY} bytes");
    cache.put(digest(10_001), &claims(&"x".repeat(room)));
    assert!(!is_verified(&cache, 10_001), "larger than all the room");
}

#[test]
fn digest_differs_by_key_message_and_signature() {
    let digests = [
        Digest::of(0, b"a.b", b"c"),
        Digest::of(1, b"a.b", b"c"),
        Digest::of(0, b"a.x", b"c"),
        Digest::of(0, b"a.b", b"x"),
    ];
    for (at, one) in digests.iter().enumerate() {
        assert!(digests[at + 1..].iter().all(|other| other != one), "{at}");
    }
}
