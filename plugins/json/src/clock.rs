//! The time in the names of backups and journals. Entities are stamped with the time that the host gives.

use std::{
    hash::{BuildHasher, RandomState},
    time::{SystemTime, UNIX_EPOCH},
};

/// The time now, UTC, as `20261123T051513.123456Z`: later times sort behind earlier ones.
pub(crate) fn compact_now() -> String {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    compact(since_1970.as_secs(), since_1970.subsec_micros())
}

/// A name that nothing else has: the time now, and chance.
pub(crate) fn unique_now() -> String {
    let chance = RandomState::new().hash_one(0);
    format!("{}-{chance:016x}", compact_now())
}

fn compact(seconds: u64, micros: u32) -> String {
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}.{micros:06}Z")
}

/// The Gregorian date that is `days` after 1970-01-01. Years are counted from March, so that the leap day is the last.
fn date(days: u64) -> (u64, u64, u64) {
    const DAYS_IN_400_YEARS: u64 = 146_097;
    // Day 0 is 0000-03-01.
    let day = days + 719_468;
    let (era, day_of_era) = (day / DAYS_IN_400_YEARS, day % DAYS_IN_400_YEARS);
    let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months from March have 31, 30, 31, 30, 31 days, again and again: 153 days in five of them.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "19700101T000000.000007Z"),
            (951_782_400, "20000229T000000.000007Z"),
            (1_709_251_199, "20240229T235959.000007Z"),
            (1_795_410_913, "20261123T051513.000007Z"),
            (4_107_542_400, "21000301T000000.000007Z"),
        ] {
            assert_eq!(compact(seconds, 7), expected);
        }
    }
}
