//! Freezes as people write them: nights, weekends, holidays, in a time zone.

use crate::host::Calendar;
use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp as Instant, ToSpan as _};
use llm_rollout::Timestamp;
use serde::Deserialize;

/// When nothing may advance, as a calendar of one time zone. Going back is never frozen.
///
/// ```
/// use llm_rollout::Timestamp;
/// use llm_serve_adapters::FreezeCalendar;
/// use llm_serve_adapters::host::Calendar;
///
/// let calendar = FreezeCalendar::from_toml(r#"
///     zone = "Europe/Berlin"
///     [[weekly]]
///     days = ["mon", "tue", "wed", "thu", "fri"]
///     from = "18:00"
///     to = "08:00"
///     [[weekly]]
///     days = ["sat", "sun"]
///     from = "00:00"
///     to = "24:00"
///     [[dates]]
///     from = "2026-12-21"
///     to = "2027-01-03"
/// "#)?;
/// // Friday, 4 December 2026, 20:00 in Berlin: nothing before Monday.
/// let friday = Timestamp::from_millis(1_796_410_800_000);
/// let monday = Timestamp::from_millis(1_796_598_000_000);
/// assert_eq!(calendar.frozen_until(friday), Some(monday));
/// assert_eq!(calendar.frozen_until(monday), None);
/// # Ok::<(), llm_serve_adapters::BadCalendar>(())
/// ```
#[derive(Debug, Clone)]
pub struct FreezeCalendar {
    zone: TimeZone,
    weekly: Vec<Weekly>,
    dates: Vec<Dates>,
}

/// Why a calendar cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadCalendar {
    /// It cannot be read.
    #[error("{0}")]
    Syntax(String),
    /// There is no such time zone.
    #[error(
        "{0:?} is no time zone: give a name of the IANA database, such as \"Europe/Berlin\" or \"UTC\""
    )]
    Zone(String),
    /// A time of day makes no sense.
    #[error("{0:?} is no time of day: write 00:00 to 24:00")]
    Time(String),
    /// A freeze that ends before it begins, or lasts for ever.
    #[error("{0}")]
    Order(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    zone: String,
    #[serde(default)]
    weekly: Vec<WrittenWeekly>,
    #[serde(default)]
    dates: Vec<Dates>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenWeekly {
    days: Vec<Day>,
    from: String,
    to: String,
}

#[derive(Deserialize, Clone, Copy, Debug)]
#[serde(rename_all = "lowercase")]
enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

#[derive(Debug, Clone)]
struct Weekly {
    days: Vec<Weekday>,
    /// Minutes after midnight; the end may lie on the next day.
    from: u16,
    to: u16,
}

/// Whole days, both included.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Dates {
    from: Date,
    to: Date,
}

const DAY: u16 = 24 * 60;
/// Freezes that follow each other are joined at most so often.
const JOINED: usize = 1_000;

impl FreezeCalendar {
    /// Reads a calendar: `zone`, `[[weekly]]` with `days`, `from` and `to` (past midnight where `to` is not after `from`), and
    /// `[[dates]]` with `from` and `to`, both included.
    ///
    /// # Errors
    /// See [`BadCalendar`].
    pub fn from_toml(text: &str) -> Result<Self, BadCalendar> {
        let written: Written =
            toml::from_str(text).map_err(|e| BadCalendar::Syntax(e.to_string()))?;
        let zone = TimeZone::get(&written.zone).map_err(|_| BadCalendar::Zone(written.zone))?;
        let mut weekly = Vec::with_capacity(written.weekly.len());
        for WrittenWeekly { days, from, to } in written.weekly {
            let (start, mut end) = (minutes(&from)?, minutes(&to)?);
            if start == end {
                let problem = format!(
                    "a freeze from {from} to {to} is empty or endless: for whole days write 00:00 to 24:00"
                );
                return Err(BadCalendar::Order(problem));
            }
            if end < start {
                end += DAY;
            }
            weekly.push(Weekly {
                days: days.into_iter().map(weekday).collect(),
                from: start,
                to: end,
            });
        }
        for dates in &written.dates {
            if dates.to < dates.from {
                let problem = format!(
                    "the freeze from {} ends before it begins, on {}",
                    dates.from, dates.to
                );
                return Err(BadCalendar::Order(problem));
            }
        }
        Ok(Self {
            zone,
            weekly,
            dates: written.dates,
        })
    }

    /// When this day and time of day begins; none beyond the calendar's years.
    fn instant(&self, date: Date, minutes: u16) -> Option<Instant> {
        let date = date.checked_add(i32::from(minutes / DAY).days()).ok()?;
        let (hour, minute) = ((minutes % DAY) / 60, minutes % 60);
        let time = Time::new(i8::try_from(hour).ok()?, i8::try_from(minute).ok()?, 0, 0).ok()?;
        let zoned = self.zone.to_zoned(date.to_datetime(time)).ok()?;
        Some(zoned.timestamp())
    }

    /// The end of a freeze that this moment lies in.
    fn end_of_freeze(&self, at: Instant) -> Option<Instant> {
        let today = self.zone.to_datetime(at).date();
        let inside = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) if from <= at && at < to => Some(to),
            _ => None,
        };
        let days = [today.yesterday().ok(), Some(today)];
        let weekly = self.weekly.iter().flat_map(|freeze| {
            let days = days.into_iter().flatten();
            days.filter(|day| freeze.days.contains(&day.weekday()))
                .map(|day| inside(self.instant(day, freeze.from), self.instant(day, freeze.to)))
        });
        let dates = self
            .dates
            .iter()
            .map(|freeze| inside(self.instant(freeze.from, 0), self.instant(freeze.to, DAY)));
        weekly.chain(dates).flatten().max()
    }
}

impl Calendar for FreezeCalendar {
    fn frozen_until(&self, now: Timestamp) -> Option<Timestamp> {
        let now = Instant::from_millisecond(i64::try_from(now.as_millis()).ok()?).ok()?;
        let mut until = None;
        for _ in 0..JOINED {
            match self.end_of_freeze(until.unwrap_or(now)) {
                Some(end) => until = Some(end),
                None => break,
            }
        }
        let millis = u64::try_from(until?.as_millisecond()).ok()?;
        Some(Timestamp::from_millis(millis))
    }
}

fn minutes(text: &str) -> Result<u16, BadCalendar> {
    let parts = text.split_once(':').and_then(|(hour, minute)| {
        let two = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
        (two(hour) && two(minute)).then_some(())?;
        Some((hour.parse::<u16>().ok()?, minute.parse::<u16>().ok()?))
    });
    match parts {
        Some((hour, minute)) if minute < 60 && hour * 60 + minute <= DAY => Ok(hour * 60 + minute),
        _ => Err(BadCalendar::Time(text.to_owned())),
    }
}

const fn weekday(day: Day) -> Weekday {
    match day {
        Day::Mon => Weekday::Monday,
        Day::Tue => Weekday::Tuesday,
        Day::Wed => Weekday::Wednesday,
        Day::Thu => Weekday::Thursday,
        Day::Fri => Weekday::Friday,
        Day::Sat => Weekday::Saturday,
        Day::Sun => Weekday::Sunday,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NIGHTS: &str = r#"
        zone = "Europe/Berlin"
        [[weekly]]
        days = ["mon", "tue", "wed", "thu", "fri"]
        from = "18:00"
        to = "08:00"
        [[weekly]]
        days = ["sat", "sun"]
        from = "00:00"
        to = "24:00"
        [[dates]]
        from = "2026-12-21"
        to = "2027-01-03"
    "#;

    fn at(text: &str) -> Timestamp {
        let instant: Instant = text.parse().unwrap();
        Timestamp::from_millis(u64::try_from(instant.as_millisecond()).unwrap())
    }

    #[test]
    fn freezes_that_meet_are_one_and_clock_changes_are_minded() {
        let calendar = FreezeCalendar::from_toml(NIGHTS).unwrap();
        let cases = [
            ("2026-11-24T12:00:00+01:00", None),
            ("2026-11-24T17:59:59+01:00", None),
            (
                "2026-11-24T18:00:00+01:00",
                Some("2026-11-25T08:00:00+01:00"),
            ),
            (
                "2026-11-25T03:00:00+01:00",
                Some("2026-11-25T08:00:00+01:00"),
            ),
            // From Friday evening over Christmas and New Year to the first Monday.
            (
                "2026-12-18T19:00:00+01:00",
                Some("2027-01-04T00:00:00+01:00"),
            ),
            // The weekend on which clocks go forward: Monday begins in summer time.
            (
                "2027-03-26T18:30:00+01:00",
                Some("2027-03-29T00:00:00+02:00"),
            ),
        ];
        for (now, until) in cases {
            assert_eq!(calendar.frozen_until(at(now)), until.map(at), "{now}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let refused = |change: (&str, &str), expect: &str| {
            let error =
                FreezeCalendar::from_toml(&NIGHTS.replacen(change.0, change.1, 1)).unwrap_err();
            assert!(error.to_string().contains(expect), "{error}");
        };
        refused(("Europe/Berlin", "Europe/Bonn"), "Europe/Bonn");
        refused(("18:00", "25:00"), "25:00");
        refused(("18:00", "6 pm"), "6 pm");
        refused(("18:00", "08:00"), "00:00 to 24:00");
        refused(("2026-12-21", "2027-12-21"), "ends before");
        refused(("\"mon\"", "\"moon\""), "moon");
        refused(("[[dates]]", "[[date]]"), "date");
    }

    proptest! {
        /// It is frozen until just that moment, and not at it.
        #[test]
        fn the_end_is_the_end(minutes in 0i64..(2 * 366 * 24 * 60), inside in 0u64..1_000) {
            let calendar = FreezeCalendar::from_toml(NIGHTS).unwrap();
            let start: Instant = "2026-01-01T00:00:00Z".parse().unwrap();
            let now = Timestamp::from_millis(u64::try_from(start.as_millisecond() + minutes * 60_000).unwrap());
            if let Some(until) = calendar.frozen_until(now) {
                prop_assert!(until > now);
                prop_assert_eq!(calendar.frozen_until(until), None);
                let within = now.as_millis() + (until.as_millis() - now.as_millis()) * inside / 1_000;
                prop_assert_eq!(calendar.frozen_until(Timestamp::from_millis(within)), Some(until));
            }
        }
    }

    #[test]
    fn far_beyond_every_calendar_nothing_is_frozen() {
        let calendar = FreezeCalendar::from_toml(NIGHTS).unwrap();
        assert_eq!(
            calendar.frozen_until(Timestamp::from_millis(u64::MAX)),
            None
        );
    }
}
