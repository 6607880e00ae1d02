//! A Redis URL is refused with words that hold nothing of its password, or is shown without it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::redis::target::Target;

const MARK: &str = "hunter2marker";

fuzz_target!(|text: &str| {
    for url in [
        text.to_owned(),
        format!("redis://user:{MARK}{text}"),
        format!("rediss://:{MARK}{text}@host:1"),
        format!("redis+sentinel://:{MARK}{text}@host,other/m"),
        format!("redis+sentinel://host/m?sentinel_password={MARK}{text}"),
    ] {
        let shown = match Target::parse(&url) {
            Ok(target) => format!("{target} {target:?}"),
            Err(error) => format!("{error} {error:?}"),
        };
        assert!(!shown.contains(MARK), "{shown}");
    }
});
