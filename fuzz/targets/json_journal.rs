//! [`larder_fuzz::json_journal`] under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| larder_fuzz::json_journal(data));
