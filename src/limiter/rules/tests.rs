//! Which rule a request meets: as a table, against a scan of every rule, and what is said of rules without requests.

use super::lint::{Hidden, hidden, idle};
use super::*;
use crate::limiter::clock::{Clock, SECOND};
use crate::limiter::memory::Memory;
use crate::limiter::policy::{Mode, OnMissing};
use crate::limiter::route::{normal_path, other_reading};
use crate::limiter::store::NoStore;
use crate::limiter::subject::Part;
use crate::limiter::{Check, Hit, Limiter};
use proptest::prelude::*;
use std::borrow::Cow;
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::sync::Arc;

#[derive(Clone, Debug)]
struct Asked {
    method: String,
    host: String,
    path: String,
}

fn asked(method: &str, host: &str, path: &str) -> Asked {
    Asked { method: method.to_owned(), host: host.to_owned(), path: path.to_owned() }
}

impl Facts for Asked {
    fn ip(&self) -> Option<IpAddr> {
        Some(Ipv4Addr::LOCALHOST.into())
    }
    fn method(&self) -> &str {
        &self.method
    }
    fn host(&self) -> &str {
        &self.host
    }
    fn path(&self) -> &str {
        &self.path
    }
    fn header(&self, _: &str) -> Option<&[u8]> {
        None
    }
    fn query(&self, _: &str) -> Option<Cow<'_, [u8]>> {
        None
    }
    fn cookie(&self, _: &str) -> Option<Cow<'_, [u8]>> {
        None
    }
    fn carries(&self, part: &Part) -> bool {
        *part == Part::Ip
    }
}

fn route(methods: &[&str], host: &str, path: &str) -> Route {
    let methods: Vec<String> = methods.iter().map(|&method| method.to_owned()).collect();
    let given = |text: &'_ str| (!text.is_empty()).then(|| text.to_owned());
    Route::new(&methods, given(host).as_deref(), given(path).as_deref()).unwrap()
}

fn quota(limit: u32, seconds: u64, burst: u32) -> Quota {
    Quota::new(NonZeroU32::new(limit).unwrap(), seconds * SECOND, NonZeroU32::new(burst).unwrap()).unwrap()
}

fn one_an_hour(name: &str) -> Policy {
    Policy::new(name, Subject::ip(), quota(1, 3_600, 1))
}

/// Methods, host, path, and whether it limits. Rules are called by their place, from 1.
type Written<'a> = (&'a [&'a str], &'a str, &'a str, bool);

fn written(list: &[Written<'_>]) -> Rules {
    let mut rules = Rules::none();
    for (place, (methods, host, path, limits)) in list.iter().enumerate() {
        let name = (place + 1).to_string();
        let policy = limits.then(|| one_an_hour(&name));
        rules.add(name, route(methods, host, path), 1, policy);
    }
    rules
}

const LIMITS: bool = true;
const EXEMPTS: bool = false;

#[test]
fn the_first_rule_that_matches_decides_however_the_request_is_spelled() {
    let rules = written(&[
        /* 1 */ (&[], "", "/assets/**", EXEMPTS),
        /* 2 */ (&["GET", "HEAD"], "", "/v1/items/{id}", LIMITS),
        /* 3 */ (&[], "", "/v1/items/7", LIMITS),
        /* 4 */ (&[], "", "/v1/items", LIMITS),
        /* 5 */ (&[], "", "/v1/items/", LIMITS),
        /* 6 */ (&["POST"], "api.example.com", "", LIMITS),
        /* 7 */ (&[], "*.example.com", "/v1/**", LIMITS),
        /* 8 */ (&[], "www.example.com", "/v1/**", LIMITS),
        /* 9 */ (&[], "[2001:db8::1]", "", LIMITS),
        /* 10 */ (&[], "", "/Caf%C3%A9", LIMITS),
        /* 11 */ (&[], "", "/v1/{kind}/new", LIMITS),
        /* 12 */ (&[], "", "/", LIMITS),
    ]);
    for (method, host, path, rule) in [
        // Precedence: the order of the file, not the longer path, the literal or the exact host.
        ("GET", "", "/v1/items/7", "2"),
        ("DELETE", "", "/v1/items/7", "3"),
        ("GET", "", "/v1/items/new", "2"),
        ("PUT", "", "/v1/items/new", "11"),
        ("GET", "www.example.com", "/v1/x", "7"),
        ("GET", "api.example.com", "/v1/items", "4"),
        ("POST", "api.example.com", "/v1/x", "6"),
        ("POST", "api.example.com", "/assets/x", "1"),
        // A method is told by its letters, and no rule is for HEAD because it is for GET.
        ("HEAD", "", "/v1/items/8", "2"),
        ("get", "", "/v1/items/8", "none"),
        ("POST", "", "/v1/items/8", "none"),
        // Host: in any case, with a port, with a dot at the end.
        ("POST", "API.Example.Com", "/x", "6"),
        ("POST", "api.example.com:8443", "/x", "6"),
        ("POST", "api.example.com.:8443", "/x", "6"),
        ("POST", "api.example.com.evil.example", "/x", "none"),
        ("GET", "a.b.example.com:80", "/v1/x", "7"),
        ("GET", "example.com", "/v1/x", "none"),
        ("GET", ".example.com", "/v1/x", "none"),
        ("GET", "badexample.com", "/v1/x", "none"),
        ("GET", "[2001:db8::1]:8080", "/x", "9"),
        ("GET", "[2001:DB8::1]", "/x", "9"),
        ("GET", "[2001:db8::2]", "/x", "none"),
        // Trailing slash and case of a path tell two paths apart.
        ("GET", "", "/v1/items", "4"),
        ("GET", "", "/v1/items/", "5"),
        ("GET", "", "/V1/items", "none"),
        ("GET", "", "/v1/items/7/", "none"),
        ("GET", "", "/assets", "1"),
        ("GET", "", "/assets/", "1"),
        ("GET", "", "/assetsx", "none"),
        ("GET", "", "/", "12"),
        ("GET", "", "", "12"),
        // Encoding: undone once, bytes as they are.
        ("GET", "", "/v1/%69tems", "4"),
        ("GET", "", "/%76%31/items", "4"),
        ("GET", "", "/v1/%2569tems", "none"),
        ("GET", "", "/Caf%c3%a9", "10"),
        ("GET", "", "/Café", "10"),
        ("GET", "", "/caf%c3%a9", "none"),
        // Repeated slashes are joined, dots resolved, encoded dots as well.
        ("GET", "", "//v1///items", "4"),
        ("GET", "", "/v1/items//", "5"),
        ("GET", "", "/v1/./items", "4"),
        ("GET", "", "/v1/items/.", "5"),
        ("GET", "", "/assets/../v1/items", "4"),
        ("GET", "", "/assets/%2e%2E/v1/items", "4"),
        ("GET", "", "/../../v1/items", "4"),
        ("GET", "", "/v1/items/x/..", "5"),
        // An encoded slash is read both ways: what limits goes before what does not, then the earlier.
        ("GET", "", "/v1%2Fitems", "4"),
        ("GET", "", "/v1%2fitems%2F7", "2"),
        ("DELETE", "", "/v1%2fitems%2F7", "3"),
        ("GET", "", "/v1/items/a%2Fb", "2"),
        ("GET", "", "/assets/..%2fv1/items", "4"),
        ("GET", "", "/assets%2F..%2Fv1%2Fitems", "4"),
        ("GET", "", "/assets/a%2Fb", "1"),
        ("GET", "", "/assets%2F%2Fa", "1"),
        ("GET", "", "/v1/items/%2e%2e%2fitems", "2"),
        ("GET", "", "/other%2Fpath", "none"),
    ] {
        let found = rules.matching(&asked(method, host, path)).map_or("none", |rule| &*rule.name);
        assert_eq!(found, rule, "{method} {host}{path}");
    }
}

#[test]
fn one_rule_for_everything_asks_for_no_fact_at_all() {
    /// Remembers whether anybody asked.
    struct Watched(Asked, Cell<bool>);
    impl Facts for Watched {
        fn ip(&self) -> Option<IpAddr> {
            self.0.ip()
        }
        fn method(&self) -> &str {
            self.1.set(true);
            &self.0.method
        }
        fn host(&self) -> &str {
            self.1.set(true);
            &self.0.host
        }
        fn path(&self) -> &str {
            self.1.set(true);
            &self.0.path
        }
        fn header(&self, _: &str) -> Option<&[u8]> {
            None
        }
        fn query(&self, _: &str) -> Option<Cow<'_, [u8]>> {
            None
        }
        fn cookie(&self, _: &str) -> Option<Cow<'_, [u8]>> {
            None
        }
        fn carries(&self, _: &Part) -> bool {
            false
        }
    }
    let facts = Watched(asked("GET", "h", "/a//b"), Cell::new(false));
    assert!(Rules::by_ip(quota(1, 1, 1)).matching(&facts).is_some() && !facts.1.get());
    assert!(written(&[(&[], "", "/b", LIMITS)]).matching(&facts).is_none() && facts.1.get());
}

#[test]
fn a_rule_is_found_by_its_name_among_many() {
    let mut rules = Rules::none();
    for place in 0..1_000 {
        rules.add(format!("rule-{place}"), Route::any(), place, []);
    }
    assert_eq!(rules.named("rule-777").map(|rule| rule.cost), Some(777));
    assert!(rules.named("rule-1000").is_none());
}

#[test]
fn a_path_deeper_than_the_stack_and_a_host_of_dots_are_matched_like_any_other() {
    let deep = "/a".repeat(100_000);
    let mut rules = written(&[(&[][..], "*.example.com", "", LIMITS); 2 * FEW]);
    let mixed = |place: usize| "/a".repeat(place) + "/{x}" + &"/a".repeat(200 - place);
    for place in 0..200 {
        rules.add(format!("mixed-{place}"), route(&[], "", &mixed(place)), 1, []);
    }
    rules.add("deep", route(&[], "", &deep), 1, []);
    let found = |facts: Asked| rules.matching(&facts).map(|rule| rule.name.to_string());
    assert_eq!(found(asked("GET", "", &deep)).as_deref(), Some("deep"));
    assert_eq!(found(asked("GET", &".".repeat(100_000), "/")), None);
    assert_eq!(found(asked("GET", &("a.".repeat(50_000) + "example.com"), "/")).as_deref(), Some("1"));
}

/// A scan of every rule: what the index must answer.
fn scanned(rules: &Rules, facts: &Asked) -> Option<usize> {
    let first = |path: &str| rules.all().iter().position(|rule| rule.route.matches(facts, Some(path)));
    let readings = [Some(normal_path(&facts.path).into_owned()), other_reading(&facts.path)];
    let found = readings.into_iter().flatten().filter_map(|path| first(&path));
    found.min_by_key(|&place| (rules.all()[place].policies.is_empty(), place))
}

fn found(rules: &Rules, facts: &Asked) -> Option<usize> {
    let rule = rules.matching(facts)?;
    rules.all().iter().position(|one| std::ptr::eq(one, rule))
}

const METHODS: [&str; 4] = ["GET", "POST", "PUT", "M-X"];
const HOSTS: [&str; 11] =
    ["", "com", "a.com", "x.a.com", "x.com", "*.com", "*.a.com", "*.x.a.com", "[::1]", "X.A.com.", "*.A.com"];
const SEGMENTS: [&str; 9] = ["a", "b", "x", "{n}", "{n}", "a%2Fb", "%61", "%25", "é"];

prop_compose! {
    fn a_path_pattern()(
        segments in prop::collection::vec(prop::sample::select(&SEGMENTS[..]), 0..4),
        end in prop::sample::select(vec!["", "", "/", "/**", "/**"]),
    ) -> String {
        let path = segments.iter().fold(String::new(), |path, segment| path + "/" + segment) + end;
        if path.is_empty() { "/".to_owned() } else { path }
    }
}

prop_compose! {
    fn a_route()(
        methods in prop_oneof![
            Just(Vec::new()),
            prop::sample::subsequence(&METHODS[..], 1..3),
        ],
        host in prop_oneof![Just(""), prop::sample::select(&HOSTS[..])],
        path in prop_oneof![1 => Just(String::new()), 6 => a_path_pattern()],
    ) -> Route {
        route(&methods, host, &path)
    }
}

fn some_rules(most: usize) -> impl Strategy<Value = Rules> {
    prop::collection::vec((a_route(), any::<bool>()), 0..most).prop_map(|routes| {
        let mut rules = Rules::none();
        for (place, (route, limits)) in routes.into_iter().enumerate() {
            let name = place.to_string();
            let policy = limits.then(|| one_an_hour(&name));
            rules.add(name, route, 1, policy);
        }
        rules
    })
}

prop_compose! {
    /// Paths of pieces that have a meaning, in any order, and mostly of such as the patterns are made of.
    fn an_odd_path()(
        pieces in prop_oneof![
            prop::collection::vec(prop::sample::select(vec![
                "/", "//", "/", ".", "..", "/..", "/.", "a", "b", "x", "q", "%2F", "%2f", "%2e", "%61", "%25", "%",
                "%2", "%zz", "%ff", "é", "%C3%A9", "%2525", "{n}", "*", "?",
            ]), 0..9),
            prop::collection::vec(prop::sample::select(vec![
                "/a", "/b", "/x", "/q", "/a%2Fb", "/%61", "/%25", "/", "%2F", "/..",
            ]), 0..6),
        ],
    ) -> String {
        pieces.concat()
    }
}

prop_compose! {
    fn a_request()(
        method in prop::sample::select(vec!["GET", "POST", "PUT", "M-X", "get", "", "PATCH"]),
        host in prop_oneof![
            prop::sample::select(vec![
                "", "com", "a.com", "A.Com:80", "x.a.com", "x.a.com.", "X.a.COM.:443", ".a.com", "..a.com", "q.x.a.com",
                "xa.com", "[::1]", "[::1]:80", "x.com:", ":80", ".", "é.com", "x.a.com..",
            ]).prop_map(str::to_owned),
            "[ax.:\\[\\]]{0,9}(com)?",
        ],
        path in an_odd_path(),
    ) -> Asked {
        asked(method, &host, &path)
    }
}

proptest! {
    #[test]
    fn the_index_answers_exactly_as_a_scan_of_every_rule(
        rules in some_rules(40), requests in prop::collection::vec(a_request(), 1..40),
    ) {
        for request in &requests {
            prop_assert_eq!(found(&rules, request), scanned(&rules, request), "{:?}", request);
            // The index of a few rules as well, although these are looked at one by one.
            let path = normal_path(&request.path);
            let one_by_one = rules.all().iter().position(|rule| rule.route.matches(request, Some(&path)));
            prop_assert_eq!(rules.index.first(request, &path), one_by_one, "{:?}", request);
        }
    }

    #[test]
    fn a_rule_that_is_called_out_of_reach_decides_no_request(
        rules in some_rules(30), requests in prop::collection::vec(a_request(), 1..40),
    ) {
        let out_of_reach = hidden(&rules);
        for request in &requests {
            let decides = scanned(&rules, request);
            prop_assert!(!out_of_reach.iter().any(|one| Some(one.rule) == decides), "{:?}", request);
        }
        for Hidden { rule, behind } in out_of_reach {
            prop_assert!(!behind.is_empty() && behind.iter().all(|&earlier| earlier < rule));
            // Those behind which it stands are enough: without all others it is out of reach as well.
            let mut fewer = Rules::none();
            for &place in behind.iter().chain([&rule]) {
                let Rule { name, route, .. } = &rules.all()[place];
                fewer.add(name.clone(), route.clone(), 1, []);
            }
            prop_assert_eq!(hidden(&fewer).last().map(|last| last.rule), Some(behind.len()));
        }
    }

    #[test]
    fn a_rule_that_is_not_called_out_of_reach_decides_some_request(rules in some_rules(30)) {
        let out_of_reach = hidden(&rules);
        for (place, rule) in rules.all().iter().enumerate() {
            let slash = rule.route.path.iter().flat_map(|path| &path.segments).any(|segment| {
                matches!(segment, route::Segment::Literal(name) if name.contains("%2F"))
            });
            if slash || out_of_reach.iter().any(|one| one.rule == place) {
                continue;
            }
            let requests = requests_for(&rule.route);
            let reached = requests.iter().any(|request| found(&rules, request) == Some(place));
            prop_assert!(reached, "rule {}: {:?}", place, rule.route);
        }
    }

    #[test]
    fn a_limit_that_is_called_idle_denies_nothing_that_the_tighter_one_does_not(
        quotas in prop::collection::vec((1u32..6, 1u64..4, 1u32..5, any::<bool>(), 0usize..3), 2..5),
        hits in prop::collection::vec((0u64..1_500_000, 0u32..4, any::<bool>()), 1..80),
    ) {
        let mut rules = Rules::none();
        let missing = [OnMissing::Ip, OnMissing::Skip, OnMissing::Deny];
        let policies = quotas.iter().enumerate().map(|(place, &(limit, seconds, burst, shadow, on_missing))| {
            let by = Subject::new([Part::Header("key".into())]);
            let mode = if shadow { Mode::Shadow } else { Mode::Enforce };
            let policy = Policy::new(place.to_string(), by, quota(limit, seconds, burst));
            Policy { mode, on_missing: missing[on_missing], ..policy }
        });
        rules.add("default", Route::any(), 1, policies);
        let idle = idle(&rules);
        let clock = Clock::manual(1_000 * SECOND);
        let limiter = Arc::new(Limiter::<NoStore>::new(rules, Memory::new(1_000), &[7; 16], clock.clone()));
        for (wait, cost, keyed) in hits {
            clock.advance(wait);
            let facts = Keyed(keyed.then_some(b"k"));
            let Check::Decided(Some(decision)) = limiter.check(&facts, Hit { cost, peek: false }) else {
                panic!("memory decides at once")
            };
            let denies = |id| decision.verdicts().any(|(_, said)| said.policy == id && !said.reading.allowed);
            for one in &idle {
                prop_assert!(!denies(one.policy) || denies(one.behind), "{:?} {:?}", one, quotas);
            }
        }
    }
}

/// Requests that a rule is for, written as plainly as can be, one for each way in which it may be the only one.
fn requests_for(rule: &Route) -> Vec<Asked> {
    let host = match &rule.host {
        None => "nobody.example".to_owned(),
        Some(route::Host::Exactly(name)) => name.to_string(),
        Some(route::Host::Below(suffix)) => format!("nobody{suffix}"),
    };
    let mut path = String::new();
    for segment in rule.path.iter().flat_map(|path| &path.segments) {
        path.push('/');
        match segment {
            route::Segment::Any => path.push_str("nothing"),
            route::Segment::Literal(name) => path.push_str(&name.replace('%', "%25")),
        }
    }
    let open = rule.path.as_ref().is_none_or(|path| path.open);
    let paths = match path.strip_prefix('/') {
        // Not joined, since it does not begin with a slash: so it meets no rule for a deeper path.
        Some(path) if open => vec![format!("{path}//nothing")],
        None => vec!["/".to_owned(), "nothing//nothing".to_owned()],
        Some(_) => vec![path],
    };
    let methods: Vec<&str> = match rule.methods.as_slice() {
        [] => vec!["NONE"],
        some => some.iter().map(|method| &**method).collect(),
    };
    methods.iter().flat_map(|method| paths.iter().map(|path| asked(method, &host, path))).collect()
}

/// A client with a key or without.
struct Keyed(Option<&'static [u8; 1]>);

impl Facts for Keyed {
    fn ip(&self) -> Option<IpAddr> {
        Some(Ipv4Addr::LOCALHOST.into())
    }
    fn method(&self) -> &str {
        "GET"
    }
    fn host(&self) -> &str {
        ""
    }
    fn path(&self) -> &str {
        "/"
    }
    fn header(&self, _: &str) -> Option<&[u8]> {
        self.0.map(|key| &key[..])
    }
    fn query(&self, _: &str) -> Option<Cow<'_, [u8]>> {
        None
    }
    fn cookie(&self, _: &str) -> Option<Cow<'_, [u8]>> {
        None
    }
    fn carries(&self, part: &Part) -> bool {
        *part == Part::Ip || self.0.is_some()
    }
}
