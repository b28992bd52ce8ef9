//! What an application writes into a row: see `src/fuzz/message.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postrider::fuzz::message::check(data));
