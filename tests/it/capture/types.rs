//! How a value of each type is to be written: what the server itself says of it, by SQL that has nothing to do with capture.

/// One column.
pub(crate) struct Case {
    pub(crate) kind: &'static str,
    /// SQL, evaluated with the settings of a fresh session.
    pub(crate) value: &'static str,
    /// SQL that gives jsonb, with `x` for the value; settings pinned as those of a replication session.
    pub(crate) expected: &'static str,
}

const fn case(kind: &'static str, value: &'static str, expected: &'static str) -> Case {
    Case { kind, value, expected }
}

/// As PostgreSQL prints it.
const PRINTED: &str = "to_jsonb(format('%s', x))";
const NUMBER: &str = "format('%s', x)::jsonb";

/// What runs before: types of users.
pub(crate) const MAKE: &str = r#"
    create extension hstore; create extension citext; create extension ltree;
    create type mood as enum ('sad', 'so "so"');
    create type pair as (a int, b text);
    create domain positive as int check (value > 0);
    create domain amount as numeric(10, 2);
    create domain tags as text[];
    create type span as range (subtype = timestamptz);
"#;

pub(crate) const CASES: &[Case] = &[
    case("bool", "true", "'true'"),
    case("bool", "false", "'false'"),
    case("int2", "-32768", NUMBER),
    case("int4", "2147483647", NUMBER),
    case("int8", "9223372036854775807", NUMBER),
    case("oid", "4294967295", NUMBER),
    case("float4", "1.1", NUMBER),
    case("float4", "'NaN'", r#"'"NaN"'"#),
    case("float8", "0.1::float8 + 0.2", NUMBER),
    case("float8", "1e300", NUMBER),
    case("float8", "'Infinity'", r#"'"Infinity"'"#),
    case("float8", "'-Infinity'", r#"'"-Infinity"'"#),
    case("numeric", "1.50", r#"'"1.50"'"#),
    case("numeric", "12345678901234567890123456789.000000000000001", PRINTED),
    case("numeric", "'NaN'", r#"'"NaN"'"#),
    case("numeric", "'-Infinity'", r#"'"-Infinity"'"#),
    case("numeric(12, 4)", "7", r#"'"7.0000"'"#),
    case("money", "1234.5", PRINTED),
    case("text", "E'a\"b\\\\ \\n \\t ü 😀'", PRINTED),
    case("text", "''", r#"'""'"#),
    case("text", "'{\"not\": \"embedded\"}'", PRINTED),
    case("varchar(5)", "'abc'", PRINTED),
    case("char(5)", "'ab'", r#"'"ab   "'"#),
    case("\"char\"", "'c'", PRINTED),
    case("name", "'a_name'", PRINTED),
    case("json", r#"'{"b": 1.50, "a": [1, {"c": null}]}'"#, "x::jsonb"),
    case("json", "'null'", "'null'"),
    case("jsonb", r#"'{"b": 1.50, "a": [1, {"c": null}]}'"#, "x"),
    case("jsonb", "'\"text\"'", "x"),
    case("bytea", r"'\x00ff10'", r#"'"AP8Q"'"#),
    case("bytea", "''", r#"'""'"#),
    case("bytea", "decode(repeat('00ff', 100), 'hex')", "to_jsonb(translate(encode(x, 'base64'), E'\\n', ''))"),
    case("date", "date '2026-11-21'", r#"'"2026-11-21"'"#),
    case("date", "date '0044-03-15 BC'", r#"'"0044-03-15 BC"'"#),
    case("date", "'infinity'", r#"'"infinity"'"#),
    case("date", "date '10000-01-01'", r#"'"10000-01-01"'"#),
    case("time", "'10:15:30.123456'", r#"'"10:15:30.123456"'"#),
    case("time", "'24:00:00'", PRINTED),
    case("timetz", "'10:15:30+05:45'", r#"'"10:15:30+05:45"'"#),
    case("timestamp", "timestamp '2026-11-21 10:15:30.123456'", r#"'"2026-11-21T10:15:30.123456"'"#),
    case("timestamp", "timestamp '2026-11-21 10:15:30'", r#"'"2026-11-21T10:15:30"'"#),
    case("timestamp", "'-infinity'", r#"'"-infinity"'"#),
    case("timestamp", "timestamp '0044-03-15 12:00:00 BC'", PRINTED),
    case("timestamp", "timestamp '10000-01-01 00:00:00'", PRINTED),
    case("timestamptz", "timestamptz '2026-11-21 10:15:30.123456+00'", r#"'"2026-11-21T10:15:30.123456Z"'"#),
    case("timestamptz", "timestamptz '2026-11-21 10:15:30+05:45'", r#"'"2026-11-21T04:30:30Z"'"#),
    case("timestamptz", "timestamptz '0001-01-01 00:00:00+00'", r#"'"0001-01-01T00:00:00Z"'"#),
    case("timestamptz", "timestamptz '9999-12-31 23:59:59.999999+00'", r#"'"9999-12-31T23:59:59.999999Z"'"#),
    case("timestamptz", "timestamptz '0044-03-15 12:00:00+00 BC'", r#"'"0044-03-15 12:00:00+00 BC"'"#),
    case("timestamptz", "timestamptz '10000-01-01 00:00:00+00'", r#"'"10000-01-01 00:00:00+00"'"#),
    case("timestamptz", "'infinity'", r#"'"infinity"'"#),
    case("interval", "'1 year 2 months 3 days 04:05:06.789'", r#"'"P1Y2M3DT4H5M6.789S"'"#),
    case("interval", "'-1 day'", r#"'"P-1D"'"#),
    case("uuid", "'6b1f7d3a-3f0e-4a52-9c6e-0d8a0a7f2c11'", PRINTED),
    case("inet", "'10.0.0.1'", r#"'"10.0.0.1"'"#),
    case("cidr", "'10.0.0.0/8'", PRINTED),
    case("macaddr", "'08:00:2b:01:02:03'", PRINTED),
    case("xml", "'<a b=\"1\">ü</a>'", PRINTED),
    case("bit(3)", "'101'", PRINTED),
    case("varbit", "'1011'", PRINTED),
    case("tsvector", "'a fat cat'", PRINTED),
    case("tsquery", "'fat & cat'", PRINTED),
    case("point", "'(1.5,2)'", PRINTED),
    case("box", "'(3,4),(1,2)'", PRINTED),
    case("circle", "'<(1,2),3>'", PRINTED),
    case("pg_lsn", "'16/B374D848'", PRINTED),
    case("xid8", "'12345678901'", PRINTED),
    case("int4range", "'[1,5)'", PRINTED),
    case("int4multirange", "'{[1,3), [5,7)}'", PRINTED),
    case("tstzrange", "tstzrange('2026-11-21 10:15:30+00', null)", r#"'"[\"2026-11-21 10:15:30+00\",)"'"#),
    case("span", "span(timestamptz '2026-11-21 10:15:30+00', null)", r#"'"[\"2026-11-21 10:15:30+00\",)"'"#),
    case("mood", "'so \"so\"'", PRINTED),
    case("pair", "row(1, 'a,\"b')", PRINTED),
    case("pair", "row(null, null)", r#"'"(,)"'"#),
    case("positive", "5", NUMBER),
    case("amount", "1.5", r#"'"1.50"'"#),
    case("tags", "array['a', null, 'b\"c']", r#"'["a", null, "b\"c"]'"#),
    case("hstore", "'a=>1, b=>NULL'", PRINTED),
    case("citext", "'CiTeXt'", PRINTED),
    case("ltree", "'a.b.c'", PRINTED),
    case("regclass", "'public.outbox'", r#"'"public.outbox"'"#),
    case("int4[]", "'{1,NULL,3}'", "'[1, null, 3]'"),
    case("int4[]", "'{{1,2},{3,4}}'", "'[[1, 2], [3, 4]]'"),
    case("int4[]", "'[5:6]={1,2}'", "'[1, 2]'"),
    case("int4[]", "'{}'", "'[]'"),
    case("float8[]", "'{1.5,NaN}'", r#"'[1.5, "NaN"]'"#),
    case("numeric[]", "'{1.50,NaN,NULL}'", r#"'["1.50", "NaN", null]'"#),
    case("bool[]", "'{t,f}'", "'[true, false]'"),
    case("oid[]", "'{1,4294967295}'", "'[1, 4294967295]'"),
    case("text[]", r#"array['a', 'NULL', null, 'b,"c', '{x}']"#, r#"'["a", "NULL", null, "b,\"c", "{x}"]'"#),
    case("char(3)[]", "'{a}'", r#"'["a  "]'"#),
    case("json[]", r#"array['{"a": 1}'::json]"#, r#"'[{"a": 1}]'"#),
    case("bytea[]", r"array['\x00ff'::bytea, null]", r#"'["AP8=", null]'"#),
    case("date[]", "array[date '2026-11-21', 'infinity']", r#"'["2026-11-21", "infinity"]'"#),
    case(
        "timestamptz[]",
        "array[array[timestamptz '2026-11-21 10:15:30+00', null], array['infinity', timestamptz '0044-03-15 12:00:00+00 BC']]",
        r#"'[["2026-11-21T10:15:30Z", null], ["infinity", "0044-03-15 12:00:00+00 BC"]]'"#,
    ),
    case("timestamp[]", "array[timestamp '2026-11-21 10:15:30.5']", r#"'["2026-11-21T10:15:30.5"]'"#),
    case("interval[]", "array[interval '1 day']", r#"'["P1D"]'"#),
    case("inet[]", "'{10.0.0.1}'", r#"'["10.0.0.1"]'"#),
    case("box[]", "'{(2,2),(0,0);(1,1),(0,0)}'", r#"'["(2,2),(0,0)", "(1,1),(0,0)"]'"#),
    case("mood[]", r#"array['so "so"', 'sad']::mood[]"#, r#"'["so \"so\"", "sad"]'"#),
    case("pair[]", r#"array[row(1, 'x"y')::pair, null]"#, r#"'["(1,\"x\"\"y\")", null]'"#),
    case("amount[]", "array[1.5]::amount[]", r#"'["1.50"]'"#),
    case("hstore[]", "array['a=>1'::hstore]", r#"'["\"a\"=>\"1\""]'"#),
    case("int4range[]", "array[int4range(1, 5)]", r#"'["[1,5)"]'"#),
    case("int4", "null", "'null'"),
    case("text[]", "null", "'null'"),
    case("pair", "null", "'null'"),
    case("bytea", "null", "'null'"),
    case("timestamptz", "null", "'null'"),
];
