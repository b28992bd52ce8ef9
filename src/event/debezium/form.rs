//! Which form the values of a type have: Debezium's schema of a column.

use crate::config::{Binary, Debezium, Decimals, Hstore, Intervals, Times};
use crate::event::shape::{TypeKind, TypeShape};

/// OIDs of built-in types: `pg_type.dat`.
pub(super) mod oid {
    pub(in crate::event::debezium) const BOOL: u32 = 16;
    pub(in crate::event::debezium) const BYTEA: u32 = 17;
    pub(in crate::event::debezium) const CHAR: u32 = 18;
    pub(in crate::event::debezium) const NAME: u32 = 19;
    pub(in crate::event::debezium) const INT8: u32 = 20;
    pub(in crate::event::debezium) const INT2: u32 = 21;
    pub(in crate::event::debezium) const INT2VECTOR: u32 = 22;
    pub(in crate::event::debezium) const INT4: u32 = 23;
    pub(in crate::event::debezium) const TEXT: u32 = 25;
    pub(in crate::event::debezium) const OID: u32 = 26;
    pub(in crate::event::debezium) const OIDVECTOR: u32 = 30;
    pub(in crate::event::debezium) const JSON: u32 = 114;
    pub(in crate::event::debezium) const XML: u32 = 142;
    pub(in crate::event::debezium) const POINT: u32 = 600;
    pub(in crate::event::debezium) const LSEG: u32 = 601;
    pub(in crate::event::debezium) const PATH: u32 = 602;
    pub(in crate::event::debezium) const BOX: u32 = 603;
    pub(in crate::event::debezium) const POLYGON: u32 = 604;
    pub(in crate::event::debezium) const LINE: u32 = 628;
    pub(in crate::event::debezium) const CIDR: u32 = 650;
    pub(in crate::event::debezium) const FLOAT4: u32 = 700;
    pub(in crate::event::debezium) const FLOAT8: u32 = 701;
    pub(in crate::event::debezium) const CIRCLE: u32 = 718;
    pub(in crate::event::debezium) const MACADDR8: u32 = 774;
    pub(in crate::event::debezium) const MONEY: u32 = 790;
    pub(in crate::event::debezium) const MACADDR: u32 = 829;
    pub(in crate::event::debezium) const INET: u32 = 869;
    pub(in crate::event::debezium) const BPCHAR: u32 = 1042;
    pub(in crate::event::debezium) const VARCHAR: u32 = 1043;
    pub(in crate::event::debezium) const DATE: u32 = 1082;
    pub(in crate::event::debezium) const TIME: u32 = 1083;
    pub(in crate::event::debezium) const TIMESTAMP: u32 = 1114;
    pub(in crate::event::debezium) const TIMESTAMPTZ: u32 = 1184;
    pub(in crate::event::debezium) const INTERVAL: u32 = 1186;
    pub(in crate::event::debezium) const TIMETZ: u32 = 1266;
    pub(in crate::event::debezium) const BIT: u32 = 1560;
    pub(in crate::event::debezium) const VARBIT: u32 = 1562;
    pub(in crate::event::debezium) const NUMERIC: u32 = 1700;
    pub(in crate::event::debezium) const REFCURSOR: u32 = 1790;
    pub(in crate::event::debezium) const UUID: u32 = 2950;
    pub(in crate::event::debezium) const TSVECTOR: u32 = 3614;
    pub(in crate::event::debezium) const JSONB: u32 = 3802;
    pub(in crate::event::debezium) const INT4RANGE: u32 = 3904;
    pub(in crate::event::debezium) const NUMRANGE: u32 = 3906;
    pub(in crate::event::debezium) const TSRANGE: u32 = 3908;
    pub(in crate::event::debezium) const TSTZRANGE: u32 = 3910;
    pub(in crate::event::debezium) const DATERANGE: u32 = 3912;
    pub(in crate::event::debezium) const INT8RANGE: u32 = 3926;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Bool,
    /// Also `oid`.
    Integer,
    Real,
    Double,
    /// Digits behind the point; none: each value has its own number.
    Decimal(Decimals, Option<usize>),
    Money(Decimals),
    Text,
    Date(Unit),
    Time(Unit),
    TimeTz,
    Timestamp(Unit),
    /// Digits of the second.
    TimestampTz(usize),
    Interval(Intervals),
    Bytes(Binary),
    /// A type that Debezium does not know (`include.unknown.datatypes`): the text's bytes.
    Unknown(Binary),
    /// The same of a type that the JDBC driver knows, and prints in its own way.
    Geometric(Binary),
    Bit,
    Bits,
    Hstore(Hstore),
    Point,
    Array(Array),
    /// `oidvector`, `int2vector`: Debezium sends none of their elements.
    Empty,
    /// Arrays of `bit`: Debezium's converter and schema do not fit each other, so that every value is null.
    Null,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Array {
    pub(super) delimiter: char,
    pub(super) element: Box<Form>,
    /// A null element is null; otherwise it makes the array null, because Debezium's schema has no place for it.
    pub(super) nullable: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Of dates.
    Days,
    Millis,
    Micros,
    Nanos,
    Iso,
}

impl Form {
    /// None of a type that Debezium leaves out.
    pub(super) fn of(shape: &TypeShape, settings: &Debezium) -> Option<Form> {
        let unknown = || settings.unknown_types.then_some(Form::Unknown(settings.binary));
        match &shape.kind {
            // To the catalogue they are arrays.
            _ if matches!(shape.oid, oid::OIDVECTOR | oid::INT2VECTOR) => return Some(Form::Empty),
            TypeKind::Array(delimiter, element) => return array(*delimiter, element, settings),
            TypeKind::Enum => return Some(Form::Text),
            TypeKind::Composite | TypeKind::Multirange => return unknown(),
            TypeKind::Base | TypeKind::Range => {}
        }
        let precision = u8::try_from(shape.modifier).ok();
        let form = match shape.oid {
            oid::BOOL => Form::Bool,
            oid::INT2 | oid::INT4 | oid::INT8 | oid::OID => Form::Integer,
            oid::FLOAT4 => Form::Real,
            oid::FLOAT8 => Form::Double,
            oid::NUMERIC => Form::Decimal(settings.decimals, scale(shape.modifier)),
            oid::MONEY => Form::Money(settings.decimals),
            oid::CHAR | oid::NAME | oid::TEXT | oid::BPCHAR | oid::VARCHAR | oid::XML | oid::JSON | oid::JSONB => {
                Form::Text
            }
            oid::UUID | oid::INET | oid::CIDR | oid::MACADDR | oid::MACADDR8 | oid::TSVECTOR => Form::Text,
            oid::INT4RANGE | oid::NUMRANGE | oid::TSRANGE | oid::TSTZRANGE | oid::DATERANGE | oid::INT8RANGE => {
                Form::Text
            }
            oid::DATE => Form::Date(date_unit(settings.times)),
            oid::TIME => Form::Time(time_unit(settings.times, precision, Unit::Micros)),
            oid::TIMETZ => Form::TimeTz,
            oid::TIMESTAMP => Form::Timestamp(time_unit(settings.times, precision, adaptive(precision))),
            oid::TIMESTAMPTZ => Form::TimestampTz(precision.map_or(6, usize::from)),
            oid::INTERVAL => Form::Interval(settings.intervals),
            oid::BYTEA => Form::Bytes(settings.binary),
            oid::BIT | oid::VARBIT if shape.modifier == 1 => Form::Bit,
            oid::BIT | oid::VARBIT => Form::Bits,
            oid::POINT => Form::Point,
            oid::LSEG | oid::PATH | oid::BOX | oid::POLYGON | oid::LINE | oid::CIRCLE => {
                return settings.unknown_types.then_some(Form::Geometric(settings.binary));
            }
            _ => match shape.name.as_str() {
                "hstore" => Form::Hstore(settings.hstore),
                "citext" | "ltree" | "isbn" => Form::Text,
                _ => return unknown(),
            },
        };
        Some(form)
    }
}

fn array(delimiter: char, element: &TypeShape, settings: &Debezium) -> Option<Form> {
    if element.domain {
        let element = Box::new(Form::Unknown(settings.binary));
        return settings.unknown_types.then_some(Form::Array(Array { delimiter, element, nullable: false }));
    }
    match element.oid {
        oid::MONEY | oid::NAME | oid::INTERVAL | oid::VARBIT | oid::XML | oid::POINT | oid::REFCURSOR => return None,
        oid::BIT => return Some(Form::Null),
        _ => {}
    }
    let form = Form::of(element, settings)?;
    let nullable = match form {
        Form::Unknown(_) | Form::Geometric(_) | Form::Empty => false,
        Form::Text => element.kind != TypeKind::Enum && element.oid != oid::TSVECTOR && element.name != "isbn",
        _ => true,
    };
    Some(Form::Array(Array { delimiter, element: Box::new(form), nullable }))
}

/// Behind four bytes of length: precision and scale. Debezium does not know that the scale has a sign, so that one of
/// -2 is one of 2046.
fn scale(modifier: i32) -> Option<usize> {
    const LENGTH: i32 = 4;
    const MASK: i32 = 0x7ff;
    if modifier < LENGTH { None } else { usize::try_from((modifier - LENGTH) & MASK).ok() }
}

/// Days in any mode but `isostring`. In the mode `connect` they are a date of Java's, whose milliseconds become days
/// only in JSON.
fn date_unit(times: Times) -> Unit {
    match times {
        Times::IsoString => Unit::Iso,
        Times::Connect => Unit::Millis,
        _ => Unit::Days,
    }
}

fn adaptive(precision: Option<u8>) -> Unit {
    if precision.is_some_and(|precision| precision <= 3) { Unit::Millis } else { Unit::Micros }
}

/// `as_micros`: what `adaptive_time_microseconds` makes of it.
fn time_unit(times: Times, precision: Option<u8>, as_micros: Unit) -> Unit {
    match times {
        Times::Adaptive => adaptive(precision),
        Times::AdaptiveTimeMicroseconds => as_micros,
        Times::Connect => Unit::Millis,
        Times::IsoString => Unit::Iso,
        Times::Microseconds => Unit::Micros,
        Times::Nanoseconds => Unit::Nanos,
    }
}
