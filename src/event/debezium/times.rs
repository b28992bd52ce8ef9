//! Dates and times, from PostgreSQL's text form (DateStyle ISO, TimeZone UTC, IntervalStyle iso_8601).

use super::form::Unit;
use super::text::{push, push_json};
use crate::config::Intervals;

const MICROS_PER_SECOND: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;
const MICROS_PER_DAY: i64 = SECONDS_PER_DAY * MICROS_PER_SECOND;

/// A date or a point in time, without a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Infinity,
    MinusInfinity,
    At(Civil),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Civil {
    /// 0 is 1 BC.
    year: i64,
    month: i64,
    day: i64,
    micros: i64,
}

/// Where a value is: in an array Debezium has it by way of Java's old classes for dates, which lose parts of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Column,
    Element,
}

fn parse(text: &str) -> Option<Moment> {
    match text {
        "infinity" => return Some(Moment::Infinity),
        "-infinity" => return Some(Moment::MinusInfinity),
        _ => {}
    }
    let (text, before_christ) = text.strip_suffix(" BC").map_or((text, false), |text| (text, true));
    let (date, time) = text.split_once([' ', 'T']).unwrap_or((text, ""));
    let mut parts = date.split('-');
    let mut part = || parts.next()?.parse::<i64>().ok();
    let (year, month, day) = (part()?, part()?, part()?);
    let year = if before_christ { 1 - year } else { year };
    let (time, offset) = split_offset(time)?;
    let micros = if time.is_empty() { 0 } else { micros_of_day(time)? } - offset * MICROS_PER_SECOND;
    Some(Moment::At(Civil { year, month, day, micros: 0 }.later(micros)))
}

/// The time, and how many seconds it is ahead of UTC.
fn split_offset(time: &str) -> Option<(&str, i64)> {
    let Some(at) = time.find(['+', '-', 'Z']) else { return Some((time, 0)) };
    let (time, offset) = time.split_at_checked(at)?;
    let (negative, offset) = match offset.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, offset.trim_start_matches(['+', 'Z'])),
    };
    let mut seconds = 0;
    for (part, weight) in offset.split(':').filter(|part| !part.is_empty()).zip([3_600, 60, 1]) {
        seconds += part.parse::<i64>().ok()? * weight;
    }
    Some((time, if negative { -seconds } else { seconds }))
}

/// `HH:MM:SS[.ffffff]`
fn micros_of_day(text: &str) -> Option<i64> {
    let (clock, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut seconds = 0;
    for (part, weight) in clock.split(':').zip([3_600, 60, 1]) {
        seconds += part.parse::<i64>().ok()? * weight;
    }
    Some(seconds * MICROS_PER_SECOND + micros_of_second(fraction)?)
}

/// Digits behind the point.
fn micros_of_second(fraction: &str) -> Option<i64> {
    const DIGITS: usize = 6;
    let digits = fraction.get(..fraction.len().min(DIGITS))?;
    format!("{digits:0<DIGITS$}").parse().ok()
}

impl Civil {
    fn later(self, micros: i64) -> Civil {
        let micros = self.micros + micros;
        let days = micros.div_euclid(MICROS_PER_DAY);
        let date = if days == 0 { self } else { Civil::from_days(self.days() + days) };
        Civil { micros: micros.rem_euclid(MICROS_PER_DAY), ..date }
    }

    /// Since 1970, in the Gregorian calendar, which has no beginning.
    fn days(self) -> i64 {
        // Years that begin in March have their odd day at the end; they are counted in cycles of 400.
        let year = if self.month > 2 { self.year } else { self.year - 1 };
        let of_cycle = year.rem_euclid(400);
        let of_year = (153 * ((self.month + 9) % 12) + 2) / 5 + self.day - 1;
        year.div_euclid(400) * 146_097 + of_cycle * 365 + of_cycle / 4 - of_cycle / 100 + of_year - 719_468
    }

    fn from_days(days: i64) -> Civil {
        let days = days + 719_468;
        let (cycle, of_cycle) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year = (of_cycle - of_cycle / 1_460 + of_cycle / 36_524 - of_cycle / 146_096) / 365;
        let of_year = of_cycle - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        Civil { year: cycle * 400 + year + i64::from(month <= 2), month, day, micros: 0 }
    }

    /// Since 1970, of a date that is read as one of the Julian calendar.
    fn julian_days(self) -> i64 {
        let year = if self.month > 2 { self.year } else { self.year - 1 };
        let of_year = (153 * ((self.month + 9) % 12) + 2) / 5 + self.day - 1;
        year * 365 + year.div_euclid(4) + of_year - 719_470
    }

    /// Java's old calendar goes from the Julian to the Gregorian one here.
    fn is_julian(self) -> bool {
        (self.year, self.month, self.day) < (1582, 10, 15)
    }

    /// The date that `java.sql.Date` shows: it has no era, and goes on from the ten days that its calendar leaves out.
    fn by_fields_of_sql_date(self) -> Civil {
        let skipped = (1582, 10, 5) <= (self.year, self.month, self.day) && self.is_julian();
        let later = if skipped { self.later(10 * MICROS_PER_DAY) } else { self };
        Civil { year: if self.year < 1 { 1 - self.year } else { later.year }, ..later }
    }

    /// The point in time that `java.sql.Timestamp` takes this for.
    fn by_sql_timestamp(self) -> Civil {
        if self.is_julian() { Civil { micros: self.micros, ..Civil::from_days(self.julian_days()) } } else { self }
    }

    fn push_date(self, out: &mut String) {
        let sign = if self.year > 9_999 { "+" } else { "" };
        let width = if self.year < 0 { 5 } else { 4 };
        out.push_str(&format!("{sign}{:0width$}-{:02}-{:02}", self.year, self.month, self.day));
    }
}

/// `digits`: of the fraction; none: as many as there are.
fn push_time(out: &mut String, micros: i64, digits: Option<usize>) {
    let seconds = micros.div_euclid(MICROS_PER_SECOND);
    out.push_str(&format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60));
    let fraction = format!("{:06}", micros.rem_euclid(MICROS_PER_SECOND));
    let fraction = digits.map_or(fraction.trim_end_matches('0'), |digits| fraction.get(..digits).unwrap_or(&fraction));
    if !fraction.is_empty() {
        out.push('.');
        out.push_str(fraction);
    }
}

/// None: the text is not a date.
pub(super) fn push_date(out: &mut Vec<u8>, text: &str, unit: Unit, place: Place) -> Option<()> {
    // What Debezium's stand-ins for infinity come to.
    let (infinity, minus_infinity) = match place {
        Place::Column => (-2_147_472_692, -2_147_472_691),
        Place::Element => (-622_191_234, -625_821_272),
    };
    let date = match parse(text)? {
        Moment::Infinity => Civil::from_days(infinity),
        Moment::MinusInfinity => Civil::from_days(minus_infinity),
        Moment::At(date) if place == Place::Element => date.by_fields_of_sql_date(),
        Moment::At(date) => date,
    };
    if unit == Unit::Iso {
        let mut iso = String::new();
        date.push_date(&mut iso);
        push_json(out, &(iso + "Z"));
    } else {
        push_json(out, &date.days());
    }
    Some(())
}

pub(super) fn push_time_of_day(out: &mut Vec<u8>, text: &str, unit: Unit, place: Place) -> Option<()> {
    let mut micros = micros_of_day(text)?;
    if place == Place::Element {
        micros = micros % MICROS_PER_DAY / 1_000 * 1_000;
    }
    match unit {
        Unit::Days | Unit::Millis => push_json(out, &(micros / 1_000)),
        Unit::Micros => push_json(out, &micros),
        Unit::Nanos => push_json(out, &(micros * 1_000)),
        Unit::Iso => {
            let mut iso = String::new();
            push_time(&mut iso, micros % MICROS_PER_DAY, None);
            push_json(out, &(iso + "Z"));
        }
    }
    Some(())
}

pub(super) fn push_time_tz(out: &mut Vec<u8>, text: &str, place: Place) -> Option<()> {
    let (time, offset) = split_offset(text)?;
    let mut micros = (micros_of_day(time)? - offset * MICROS_PER_SECOND).rem_euclid(MICROS_PER_DAY);
    if place == Place::Element {
        micros = micros / MICROS_PER_SECOND * MICROS_PER_SECOND;
    }
    let mut iso = String::new();
    push_time(&mut iso, micros, None);
    push_json(out, &(iso + "Z"));
    Some(())
}

pub(super) fn push_timestamp(out: &mut Vec<u8>, text: &str, unit: Unit, place: Place) -> Option<()> {
    let moment = match parse(text)? {
        Moment::At(at) if place == Place::Element => Moment::At(at.by_sql_timestamp()),
        moment => moment,
    };
    let number = match (moment, unit) {
        (Moment::Infinity, Unit::Days | Unit::Millis) => 9_223_372_036_825_200,
        (Moment::MinusInfinity, Unit::Days | Unit::Millis) => -9_223_372_036_832_400,
        (Moment::Infinity, Unit::Micros) => 9_223_372_036_825_200_000,
        (Moment::MinusInfinity, Unit::Micros) => -9_223_372_036_832_400_000,
        (Moment::Infinity, Unit::Nanos) => i64::MAX,
        (Moment::MinusInfinity, Unit::Nanos) => i64::MIN,
        (Moment::Infinity, Unit::Iso) => {
            push(out, "\"+294247-01-10T04:00:25.2Z\"");
            return Some(());
        }
        (Moment::MinusInfinity, Unit::Iso) => {
            push(out, "\"-290308-12-21T19:59:27.6Z\"");
            return Some(());
        }
        (Moment::At(at), Unit::Iso) => {
            push_iso(out, at, None);
            return Some(());
        }
        (Moment::At(at), Unit::Days | Unit::Millis) => at.days() * SECONDS_PER_DAY * 1_000 + at.micros / 1_000,
        (Moment::At(at), Unit::Micros) => {
            // Beyond the end of its range Java's multiplication stops, and its addition goes on from the other end.
            let seconds = at.days() * SECONDS_PER_DAY + at.micros / MICROS_PER_SECOND;
            seconds.saturating_mul(MICROS_PER_SECOND).wrapping_add(at.micros % MICROS_PER_SECOND)
        }
        (Moment::At(at), Unit::Nanos) => {
            let nanos = (i128::from(at.days()) * i128::from(MICROS_PER_DAY) + i128::from(at.micros)) * 1_000;
            let Ok(nanos) = i64::try_from(nanos) else {
                push(out, "null");
                return Some(());
            };
            nanos
        }
    };
    push_json(out, &number);
    Some(())
}

pub(super) fn push_timestamp_tz(out: &mut Vec<u8>, text: &str, digits: usize, place: Place) -> Option<()> {
    // Of none, a default may have some.
    let digits = (digits > 0).then_some(digits);
    match (parse(text)?, place) {
        (Moment::Infinity, _) => push(out, "\"infinity\""),
        (Moment::MinusInfinity, Place::Column) => push(out, "\"-infinity\""),
        // What is left of it in Java's old class for dates.
        (Moment::MinusInfinity, Place::Element) => push(out, "\"+292269055-12-02T23:00:00.000000Z\""),
        (Moment::At(at), Place::Column) => push_iso(out, at, digits),
        (Moment::At(at), Place::Element) => push_iso(out, at.by_fields_of_sql_date(), digits),
    }
    Some(())
}

fn push_iso(out: &mut Vec<u8>, at: Civil, digits: Option<usize>) {
    let mut iso = String::new();
    at.push_date(&mut iso);
    iso.push('T');
    push_time(&mut iso, at.micros, digits);
    push_json(out, &(iso + "Z"));
}

#[derive(Debug, Default)]
struct Span {
    years: i64,
    months: i64,
    days: i64,
    hours: i64,
    minutes: i64,
    /// Of the seconds.
    micros: i64,
}

impl Span {
    /// `P1Y2M-3DT-4H-5M-6.7S`
    fn parse_iso(text: &str) -> Option<Span> {
        let mut span = Span::default();
        let (mut in_time, mut start) = (false, 0);
        let body = text.strip_prefix('P')?;
        for (index, letter) in body.char_indices() {
            if letter.is_ascii_digit() || matches!(letter, '-' | '+' | '.') {
                continue;
            }
            let number = body.get(start..index)?;
            start = index + 1;
            match (letter, in_time) {
                ('T', _) => in_time = true,
                ('Y', false) => span.years = number.parse().ok()?,
                ('M', false) => span.months = number.parse().ok()?,
                ('W', false) => span.days += number.parse::<i64>().ok()? * 7,
                ('D', false) => span.days += number.parse::<i64>().ok()?,
                ('H', true) => span.hours = number.parse().ok()?,
                ('M', true) => span.minutes = number.parse().ok()?,
                ('S', true) => span.micros = signed_micros(number)?,
                _ => return None,
            }
        }
        (start == body.len()).then_some(span)
    }

    /// `1 year 2 mons -3 days +04:05:06.7`, as a default has it where the session has not set IntervalStyle.
    fn parse_postgres(text: &str) -> Option<Span> {
        let mut span = Span::default();
        let mut words = text.split_ascii_whitespace();
        while let Some(word) = words.next() {
            if word.contains(':') {
                let (negative, clock) =
                    word.strip_prefix('-').map_or((false, word.trim_start_matches('+')), |it| (true, it));
                let sign = if negative { -1 } else { 1 };
                let mut parts = clock.splitn(3, ':');
                span.hours = parts.next()?.parse::<i64>().ok()? * sign;
                span.minutes = parts.next()?.parse::<i64>().ok()? * sign;
                span.micros = signed_micros(parts.next().unwrap_or("0"))? * sign;
                continue;
            }
            let number = word.parse::<i64>().ok()?;
            match words.next()?.trim_end_matches('s') {
                "year" => span.years = number,
                "mon" => span.months = number,
                "day" => span.days = number,
                _ => return None,
            }
        }
        Some(span)
    }

    /// As Debezium reckons it, in floating point: a month is a twelfth of a year of 365.25 days.
    fn total_micros(&self) -> i64 {
        const DAYS_PER_MONTH: f64 = 365.25 / 12.0;
        let months = to_double(self.years * 12 + self.months);
        let days = months * DAYS_PER_MONTH + to_double(self.days);
        let minutes = (days * 24.0 + to_double(self.hours)) * 60.0 + to_double(self.minutes);
        let micros = (minutes * 60.0 + to_double(self.micros) / 1e6) * 1e6;
        // Saturates, as in Java.
        format!("{:.0}", micros.trunc()).parse().unwrap_or(if micros < 0.0 { i64::MIN } else { i64::MAX })
    }

    fn iso(&self) -> String {
        let Span { years, months, days, hours, minutes, .. } = self;
        let sign = if self.micros < 0 { "-" } else { "" };
        let (seconds, fraction) = (self.micros.abs() / MICROS_PER_SECOND, self.micros.abs() % MICROS_PER_SECOND);
        let fraction = format!(".{fraction:06}");
        let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
        format!("P{years}Y{months}M{days}DT{hours}H{minutes}M{sign}{seconds}{fraction}S")
    }
}

/// Far from where a double has gaps between integers.
fn to_double(number: i64) -> f64 {
    i32::try_from(number).map_or_else(|_| number.to_string().parse().unwrap_or_default(), f64::from)
}

fn signed_micros(text: &str) -> Option<i64> {
    let (sign, text) = text.strip_prefix('-').map_or((1, text.trim_start_matches('+')), |rest| (-1, rest));
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    Some(sign * (seconds.parse::<i64>().ok()? * MICROS_PER_SECOND + micros_of_second(fraction)?))
}

pub(super) fn push_interval(out: &mut Vec<u8>, text: &str, intervals: Intervals) -> Option<()> {
    let span = Span::parse_iso(text).or_else(|| Span::parse_postgres(text))?;
    match intervals {
        Intervals::Numeric => push_json(out, &span.total_micros()),
        Intervals::String => push_json(out, &span.iso()),
    }
    Some(())
}
