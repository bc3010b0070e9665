//! System calls a request, counted by strace in runs of their own.

use crate::{
    row::{CALLS, Group, How, Load, Rounds, Row},
    rows::plain,
};

pub const SYSCALLS: Group = Group {
    name: "syscalls",
    files: plain::FILES,
    workers: 1,
    rounds: Rounds::Once,
    how: How::Alternating,
    rows: &[
        Row { name: "syscalls-http1", title: "HTTP/1.1, small", load: Load::Syscalls(plain::SMALL), figures: &[CALLS] },
        Row { name: "syscalls-h2c", title: "HTTP/2, 100 streams", load: Load::Syscalls(plain::H2C), figures: &[CALLS] },
    ],
};
