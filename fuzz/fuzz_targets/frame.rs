//! What comes as CopyData: see `src/fuzz/frame.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postrider::fuzz::frame::check(data));
