//! [`larder_fuzz::filter_json`] under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| larder_fuzz::filter_json(data));
