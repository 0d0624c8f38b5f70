//! Cron schedules: five fields, or one of the `@` words, in a time zone.
//!
//! A schedule is five sets of numbers, kept as bits. The next time is found by
//! walking days, then hours, then minutes of the civil calendar and asking the
//! time zone what instant each is: an hour that the clocks skip has none, one
//! that they repeat has two.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// A schedule like 30 February never comes; the search ends after this.
const HORIZON_DAYS: i32 = 5 * 366;

/// Why a schedule is no schedule.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ScheduleError {
    /// Not five fields.
    #[error("schedule {0:?}: expected five fields or one of the @ words")]
    Shape(String),
    /// A field that cannot be read.
    #[error("schedule field {0:?}: expected numbers from {1} to {2}")]
    Field(String, u32, u32),
    /// An interval that cannot be read.
    #[error("schedule {0:?}: expected @every and a duration of at least one second")]
    Every(String),
    /// A time zone that is not in the database.
    #[error("unknown time zone {0:?}")]
    Zone(String),
}

/// When something is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Schedule {
    /// At the times whose parts are all in these sets.
    Fields {
        minutes: u64,
        hours: u64,
        days: u64,
        months: u64,
        weekdays: u64,
        /// Both day fields are restricted: a day needs to be in only one.
        either_day: bool,
    },
    /// Again and again after so many seconds.
    Every(i64),
}

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// A schedule and its time zone. A `TZ=` or `CRON_TZ=` before the fields is
/// the older way to name the zone.
pub(crate) fn parse(text: &str, zone: Option<&str>) -> Result<(Schedule, TimeZone), ScheduleError> {
    let text = text.trim();
    let prefixed = text.strip_prefix("CRON_TZ=").or_else(|| text.strip_prefix("TZ="));
    let (named, fields) = match prefixed.map(|rest| rest.split_once(' ').unwrap_or((rest, ""))) {
        Some((named, fields)) => (Some(named), fields.trim()),
        None => (None, text),
    };
    let zone = match zone.or(named) {
        Some(name) => TimeZone::get(name).map_err(|_| ScheduleError::Zone(name.to_owned()))?,
        None => TimeZone::system(),
    };
    Ok((read(fields)?, zone))
}

fn read(text: &str) -> Result<Schedule, ScheduleError> {
    let fields = match text {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        other => other,
    };
    if let Some(interval) = fields.strip_prefix("@every ") {
        let duration: Result<jiff::SignedDuration, _> = interval.trim().parse();
        return match duration.map(|duration| duration.as_secs()) {
            Ok(seconds @ 1..) => Ok(Schedule::Every(seconds)),
            _ => Err(ScheduleError::Every(text.to_owned())),
        };
    }
    let parts: Vec<&str> = fields.split_whitespace().collect();
    let [minutes, hours, days, months, weekdays] = parts[..] else {
        return Err(ScheduleError::Shape(text.to_owned()));
    };
    let open = |field: &str| field.split(',').any(|part| part.starts_with(['*', '?']));
    Ok(Schedule::Fields {
        minutes: field(minutes, 0, 59, &[])?,
        hours: field(hours, 0, 23, &[])?,
        days: field(days, 1, 31, &[])?,
        months: field(months, 1, 12, &MONTHS)?,
        weekdays: field(weekdays, 0, 6, &WEEKDAYS)?,
        either_day: !open(days) && !open(weekdays),
    })
}

/// A comma-separated list of `*`, `n`, `a-b`, each with an optional `/step`.
fn field(text: &str, least: u32, most: u32, names: &[&str]) -> Result<u64, ScheduleError> {
    let wrong = || ScheduleError::Field(text.to_owned(), least, most);
    let number = |word: &str| {
        let named = names.iter().position(|name| name.eq_ignore_ascii_case(word));
        // Months are counted from one, weekdays from zero: `least` is both.
        let value = match named.and_then(|at| u32::try_from(at).ok()) {
            Some(at) => at + least,
            None => word.parse().map_err(|_| wrong())?,
        };
        if (least..=most).contains(&value) {
            Ok(value)
        } else {
            Err(wrong())
        }
    };
    let mut bits = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step.parse::<u32>().map_err(|_| wrong())?)),
            None => (part, None),
        };
        let (first, last) = match range.split_once('-') {
            _ if matches!(range, "*" | "?") => (least, most),
            Some((first, last)) => (number(first)?, number(last)?),
            // `5/15` means from five on.
            None if step.is_some() => (number(range)?, most),
            None => (number(range)?, number(range)?),
        };
        if first > last || step == Some(0) {
            return Err(wrong());
        }
        let step = usize::try_from(step.unwrap_or(1)).map_err(|_| wrong())?;
        for value in (first..=last).step_by(step) {
            bits |= 1u64 << value;
        }
    }
    Ok(bits)
}

fn has(bits: u64, value: i8) -> bool {
    u32::try_from(value).is_ok_and(|value| bits >> value & 1 == 1)
}

impl Schedule {
    /// The first time after `after`, if there is one.
    pub(crate) fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if let Schedule::Every(seconds) = self {
            return Timestamp::from_second(after.as_second().checked_add(*seconds)?).ok();
        }
        let mut date = after.to_zoned(zone.clone()).date();
        for _ in 0..HORIZON_DAYS {
            if let Some(found) = self.in_day(date, after, zone) {
                return Some(found);
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    fn in_day(&self, date: Date, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let Schedule::Fields {
            minutes,
            hours,
            days,
            months,
            weekdays,
            either_day,
        } = self
        else {
            return None;
        };
        let weekday = has(*weekdays, date.weekday().to_sunday_zero_offset());
        let day = has(*days, date.day());
        let fits = if *either_day {
            day || weekday
        } else {
            day && weekday
        };
        if !has(*months, date.month()) || !fits {
            return None;
        }
        // Repeated minutes come twice, so an hour is searched as a whole.
        (0..24i8).filter(|hour| has(*hours, *hour)).find_map(|hour| {
            (0..60i8)
                .filter(|minute| has(*minutes, *minute))
                .flat_map(|minute| {
                    let civil = date.at(hour, minute, 0, 0);
                    let at = zone.to_ambiguous_zoned(civil);
                    let real =
                        |found: Result<jiff::Zoned, _>| found.ok().filter(|found| found.datetime() == civil);
                    [real(at.clone().earlier()), real(at.later())]
                })
                .flatten()
                .map(|found| found.timestamp())
                .filter(|found| *found > after)
                .min()
        })
    }

    /// The last time after `after` and not after `now`.
    ///
    /// It searches ever larger windows before `now`, so that a schedule
    /// missed for months costs as little as one missed for minutes.
    pub(crate) fn last(&self, after: Timestamp, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if let Schedule::Every(seconds) = self {
            let runs = (now.as_second() - after.as_second()) / seconds;
            return (runs > 0).then(|| after + (runs * seconds).seconds());
        }
        let windows =
            [1, 24, 32 * 24, 366 * 24, 6 * 366 * 24].map(|hours: i64| now.checked_sub(hours.hours()).ok());
        windows.into_iter().flatten().find_map(|start| {
            let mut found = self.next(start.max(after), zone).filter(|found| *found <= now)?;
            while let Some(later) = self.next(found, zone).filter(|later| *later <= now) {
                found = later;
            }
            Some(found)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().expect("time")
    }

    #[test]
    fn the_next_time_of_a_schedule() {
        for (schedule, after, next) in [
            ("* * * * *", "2030-01-01T00:00:30Z", "2030-01-01T00:01:00Z"),
            ("*/15 * * * *", "2030-01-01T00:15:00Z", "2030-01-01T00:30:00Z"),
            ("5/20 3 * * *", "2030-01-01T03:25:00Z", "2030-01-01T03:45:00Z"),
            (
                "0 9-17/4 * * mon-fri",
                "2030-01-04T17:00:00Z",
                "2030-01-07T09:00:00Z",
            ),
            ("0 0 13 * FRI", "2030-01-01T00:00:00Z", "2030-01-04T00:00:00Z"),
            ("0 0 13 * *", "2030-01-01T00:00:00Z", "2030-01-13T00:00:00Z"),
            ("0 0 29 2 *", "2030-01-01T00:00:00Z", "2032-02-29T00:00:00Z"),
            ("0 0 1 Jan,JUL ?", "2030-01-01T00:00:00Z", "2030-07-01T00:00:00Z"),
            ("@hourly", "2030-01-01T00:00:00Z", "2030-01-01T01:00:00Z"),
            ("@weekly", "2030-01-01T00:00:00Z", "2030-01-06T00:00:00Z"),
            ("@every 90s", "2030-01-01T00:00:00Z", "2030-01-01T00:01:30Z"),
        ] {
            let parsed = read(schedule).expect(schedule);
            assert_eq!(
                parsed.next(time(after), &TimeZone::UTC),
                Some(time(next)),
                "{schedule}"
            );
        }
        let never = read("0 0 30 2 *").expect("schedule");
        assert_eq!(never.next(time("2030-01-01T00:00:00Z"), &TimeZone::UTC), None);
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for text in [
            "",
            "* * * *",
            "60 * * * *",
            "* * 0 * *",
            "*/0 * * * *",
            "5-1 * * * *",
            "* * * foo *",
            "@every 0s",
            "@often",
            "* * * * 7",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        assert_eq!(
            parse("@daily", Some("Mars/Phobos")),
            Err(ScheduleError::Zone("Mars/Phobos".to_owned()))
        );
    }

    #[test]
    fn clocks_that_change_skip_and_repeat() {
        // A zone with the rules of central Europe, without a database.
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("zone");
        let night = read("30 2 * * *").expect("schedule");
        for (after, next) in [
            ("2030-03-30T12:00:00Z", "2030-04-01T00:30:00Z"),
            ("2030-10-26T12:00:00Z", "2030-10-27T00:30:00Z"),
            ("2030-10-27T00:30:00Z", "2030-10-27T01:30:00Z"),
            ("2030-10-27T01:30:00Z", "2030-10-28T01:30:00Z"),
        ] {
            assert_eq!(night.next(time(after), &zone), Some(time(next)), "{after}");
        }
    }

    #[test]
    fn the_last_missed_time_is_found_near_and_far() {
        let now = time("2030-06-15T10:07:30Z");
        for (schedule, after, last) in [
            (
                "*/5 * * * *",
                "2030-06-15T10:00:00Z",
                Some("2030-06-15T10:05:00Z"),
            ),
            (
                "*/5 * * * *",
                "2029-06-15T10:00:00Z",
                Some("2030-06-15T10:05:00Z"),
            ),
            ("*/5 * * * *", "2030-06-15T10:05:00Z", None),
            ("@monthly", "2030-01-15T00:00:00Z", Some("2030-06-01T00:00:00Z")),
            ("@yearly", "2029-12-01T00:00:00Z", Some("2030-01-01T00:00:00Z")),
            ("@every 1h", "2030-06-15T08:00:00Z", Some("2030-06-15T10:00:00Z")),
        ] {
            let found = read(schedule)
                .expect(schedule)
                .last(time(after), now, &TimeZone::UTC);
            assert_eq!(found, last.map(time), "{schedule} after {after}");
        }
    }
}
