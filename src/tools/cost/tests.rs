//! The reckoning by hand.

use super::*;
use crate::config::{Sources, load as read};
use crate::redis::needs::MINUTES_A_DAY;
use crate::tools::providers;

/// Who is alone speaks once a minute.
const BEATS_ALONE: f64 = 1_440.0;

fn settings(env: &[(&str, &str)]) -> Settings {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    read(&Sources { env, ..Sources::default() }).unwrap().settings
}

fn plan<'a>(all: &'a [Judgement], name: &str) -> &'a Judgement {
    all.iter().find(|one| one.plan == name).unwrap()
}

#[test]
fn a_hundred_requests_a_minute_do_not_fit_into_10_000_commands_a_day_which_are_6_9_a_minute() {
    let settings = settings(&[("TIDEGATE_SECRET", "0123456789abcdef")]);
    let needs = needs(&settings, load(&settings, 100.0, None, None, None)).unwrap();
    assert_eq!(
        (needs.calls_a_day, needs.commands_a_day),
        (144_000.0 + 4.0 * BEATS_ALONE, 576_000.0 + 4.0 * BEATS_ALONE)
    );
    let text = providers::COMPILED_IN.replace("commands_per_month = 500_000", "commands_per_day = 10_000");
    let judged = judge(&needs, &providers::parse("old", &text).unwrap());
    let free = plan(&judged, "Free");
    assert_eq!(free.fits, Some(false));
    assert_eq!(free.exceeded[0], "commands a day: 581 760 of 10 000");
    assert_eq!(format!("{:.1}", 10_000.0 / MINUTES_A_DAY), "6.9");
}

#[test]
fn the_percentage_and_the_background_count() {
    let settings = settings(&[]);
    let tenth = Percent::from_basis_points(1_000);
    let needs = needs(&settings, load(&settings, 100.0, tenth, Some(3), None)).unwrap();
    // Three of them speak every ten seconds, and look at the secret in Redis.
    let beats = 3.0 * 8_640.0;
    assert_eq!(needs.calls_a_day, 14_400.0 + 3.0 * 144.0 + 5.0 * beats);
    assert_eq!(needs.connections, 9);
    let judged = judge(&needs, &providers::parse("in", providers::COMPILED_IN).unwrap());
    let payg = plan(&judged, "Pay as you go");
    let billed = 4.0 * 14_400.0 + 432.0 + 5.0 * beats;
    assert_eq!((payg.billed_a_day, payg.usd_a_month), (billed, Some(billed * 31.0 / 100_000.0 * 0.2)));
    assert_eq!(payg.fits, None, "nobody says how many connections");
}

#[test]
fn map_of_a_cluster_is_read_each_minute_by_two_commands() {
    let cost = |cluster: &str| {
        let settings = settings(&[("REDIS_URL", "redis://127.0.0.1:1"), ("REDIS_CLUSTER", cluster)]);
        needs(&settings, load(&settings, 100.0, None, Some(3), None)).unwrap()
    };
    let (one, cluster) = (cost("false"), cost("true"));
    assert_eq!(cluster.calls_a_day - one.calls_a_day, 3.0 * 1_440.0 * 2.0);
    assert_eq!(cluster.commands_a_day - one.commands_a_day, 3.0 * 1_440.0 * 2.0);
    assert!(cluster.bandwidth_bytes_a_month > one.bandwidth_bytes_a_month);
    assert_eq!(cost("auto").calls_a_day, one.calls_a_day, "it is not known to be a cluster");
}

#[test]
fn a_figure_that_is_exceeded_decides_and_one_that_is_unknown_leaves_it_open() {
    let settings = settings(&[]);
    let needs = needs(&settings, load(&settings, 20_000.0, None, Some(16), None)).unwrap();
    let judged = judge(&needs, &providers::parse("in", providers::COMPILED_IN).unwrap());
    let free = plan(&judged, "Essentials, free");
    assert_eq!(free.fits, Some(false));
    assert_eq!(free.exceeded[0], "commands a second: 1 334 of 100");
    assert_eq!(free.exceeded[1], "connections: 48 of 30");
    assert_eq!(plan(&judged, "Essentials, 250 MB").usd_a_month, None);
}

#[test]
fn a_quiet_rule_beside_a_heavy_one_is_not_what_is_reckoned() {
    let text = "
[[rule]]
name = \"one\"
match = { path = \"/one\" }
policy = [{ name = \"a\", by = \"ip\", limit = \"100/minute\" }]
[[rule]]
name = \"two\"
policy = [{ name = \"b\", by = \"ip\", limit = \"100/minute\" }, { name = \"c\", by = \"ip\", limit = \"1000/day\", algorithm = \"fixed_window\" }]
";
    let mut settings = settings(&[]);
    settings.rules = crate::config::policies::parse("p", text).unwrap();
    let needs = needs(&settings, load(&settings, 60.0, None, None, None)).unwrap();
    assert_eq!((&*needs.rule, needs.commands_a_decision), ("two", 5));
    // Each request another client: one hit of 0.6 s, and one that a whole day remembers.
    assert_eq!(needs.keys, 1.0 + 86_400.0);
    let few = super::needs(&settings, load(&settings, 60.0, None, None, Some(50))).unwrap();
    assert_eq!(few.keys, 1.0 + 50.0, "no more than there are clients");
}

#[test]
fn upstash_page_has_the_figures_of_the_cost_command() {
    let page =
        include_str!("../../../docs/providers/upstash.md").split_whitespace().collect::<Vec<_>>().join(" ");
    // With a secret of its own, as the page has it.
    let with_secret = settings(&[("TIDEGATE_SECRET", "0123456789abcdef")]);
    let silent = settings(&[("TIDEGATE_SECRET", "0123456789abcdef"), ("TIDEGATE__FLEET__HEARTBEAT_S", "0")]);
    let providers = providers::parse("in", providers::COMPILED_IN).unwrap();
    let at = |settings: &Settings, rpm: f64, instances: u32| {
        needs(settings, load(settings, rpm, None, Some(instances), None)).unwrap()
    };
    let hundred = at(&with_secret, 100.0, 1);
    let judged = judge(&hundred, &providers);
    let upstash = providers.all.iter().find(|one| one.name == "Upstash").unwrap();
    let Figure::Is(free) = upstash.plans.iter().find(|one| one.name == "Free").unwrap().commands_per_month
    else {
        panic!("the free plan has a figure");
    };
    let a_day = free / DAYS_A_MONTH;
    // How many decisions a minute a plan carries: what a day leaves beside the background.
    let carried = |settings: &Settings| {
        let background = at(settings, 1.0, 1).commands_a_day - MINUTES_A_DAY * 4.0;
        (a_day - background) / 4.0 / MINUTES_A_DAY
    };
    assert_eq!(hundred.commands_a_decision, 4);
    for words in [
        "four of these commands (EVALSHA, TIME, GET, SET".to_owned(),
        format!("free plan is {} commands a month", show::grouped(free)),
        format!("comes to {:.0} a minute", a_day / MINUTES_A_DAY),
        format!("takes {} a day besides", show::grouped(hundred.commands_a_day - 576_000.0)),
        format!(
            "{} each: `fleet.heartbeat_s`",
            show::grouped((at(&with_secret, 100.0, 2).commands_a_day - 576_000.0) / 2.0)
        ),
        format!("about {:.1} decisions a minute around the clock", carried(&with_secret)),
        format!("{:.1} with `fleet.heartbeat_s = 0`", carried(&silent)),
        format!("{:.1} million commands a month", hundred.commands_a_day * DAYS_A_MONTH / 1e6),
        format!("{:.0} dollars pay-as-you-go", plan(&judged, "Pay as you go").usd_a_month.unwrap()),
        format!("COMMANDS_PER_DAY={:.0}000", (a_day / 1_000.0).floor()),
    ] {
        assert!(page.contains(&words), "{words:?} is not in docs/providers/upstash.md");
    }
}
