//! The send deadline of streams of HTTP/2.

use super::*;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn window(size: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&[0, 4], &size.to_be_bytes()[..]].concat())
}

fn ask(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, b"xx")
}

fn answer(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, b"xx")
}

fn data(stream: u32, length: usize, flags: u8) -> Vec<u8> {
    frame(DATA, flags, stream, &vec![0; length])
}

fn more(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

fn begun() -> Flow {
    let mut flow = Flow::default();
    flow.received(&[0; PREFACE]);
    flow
}

fn blocked(flow: &Flow) -> Vec<u32> {
    flow.windows.streams.iter().filter(|stream| stream.blocked.is_some()).map(|stream| stream.id).collect()
}

#[test]
fn a_stream_is_blocked_while_its_window_is_used_up() {
    for piece in [1, 7, usize::MAX] {
        let mut flow = begun();
        let got = |flow: &mut Flow, bytes: Vec<u8>| bytes.chunks(piece).for_each(|some| flow.received(some));
        let put = |flow: &mut Flow, bytes: Vec<u8>| bytes.chunks(piece).for_each(|some| flow.sent(some));
        got(&mut flow, [window(10), ask(1), ask(3)].concat());
        assert_eq!(blocked(&flow), [] as [u32; 0], "nothing is answered");
        put(&mut flow, [answer(1), answer(3), data(1, 10, 0), data(3, 9, 0)].concat());
        assert_eq!(blocked(&flow), [1]);
        got(&mut flow, more(1, 5));
        assert_eq!(blocked(&flow), [] as [u32; 0]);
        got(&mut flow, window(0));
        assert_eq!(blocked(&flow), [1, 3], "a smaller window counts for streams that are open");
        got(&mut flow, [more(1, 100_000), more(3, 100_000)].concat());
        put(&mut flow, data(1, 16_000, 0).repeat(5));
        assert_eq!(blocked(&flow), [1, 3], "the window of the connection is used up");
        got(&mut flow, more(0, 100_000));
        assert_eq!(blocked(&flow), [] as [u32; 0]);
        put(&mut flow, [data(1, 0, END_STREAM), frame(RST_STREAM, 0, 3, &[0; 4])].concat());
        assert!(flow.windows.streams.is_empty());
    }
}

#[test]
fn an_overdue_stream_is_reset_on_both_sides_between_frames() {
    let mut flow = begun();
    flow.received(&[window(0), ask(1), ask(3)].concat());
    flow.sent(&[answer(1), data(3, 4, 0)[..5].to_vec()].concat());
    assert_eq!(flow.expire(Duration::from_secs(60)), Overdue::None);
    assert_eq!(flow.expire(Duration::ZERO), Overdue::Streams, "another is not answered");
    flow.received(&frame(HEADERS, 0, 5, b"x"));
    assert_eq!(flow.reset_to_library(), None, "a block of headers goes on");
    flow.received(&frame(CONTINUATION, END_HEADERS, 5, b"x"));
    assert_eq!(flow.reset_to_library(), Some(reset(1)));
    assert_eq!(flow.reset_to_library(), None);
    let mut context = Context::from_waker(std::task::Waker::noop());
    let mut out = Vec::new();
    assert!(flow.poll_resets(&mut out, &mut context).is_ready());
    assert_eq!(out, b"", "a frame is under way");
    flow.sent(&data(3, 4, 0)[5..]);
    assert!(flow.poll_resets(&mut out, &mut context).is_ready());
    assert_eq!(out, reset(1));
}

#[test]
fn a_connection_whose_streams_are_all_overdue_ends() {
    let mut flow = begun();
    flow.received(&[window(0), ask(1), ask(3)].concat());
    flow.sent(&[answer(1), answer(3)].concat());
    assert_eq!(flow.expire(Duration::ZERO), Overdue::Connection);
}
