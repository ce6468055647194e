//! Every target: the parser that has the target's name.
#![no_main]

use std::sync::LazyLock;

use reprieve::parsers;

static PARSER: LazyLock<fn(&[u8])> = LazyLock::new(|| parsers::named(env!("CARGO_BIN_NAME")));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| PARSER(bytes));
