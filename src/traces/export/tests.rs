use super::*;

fn read(variables: &[(&str, &str)]) -> Result<Option<Settings>, StartError> {
    settings(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
}

const ENDPOINT: (&str, &str) = (OTEL_EXPORTER_OTLP_ENDPOINT, "http://collector:4318");

#[test]
fn nothing_is_exported_unless_a_collector_is_named() {
    assert!(read(&[]).unwrap().is_none());
    assert!(read(&[(OTEL_EXPORTER_OTLP_ENDPOINT, "")]).unwrap().is_none());
    assert!(read(&[("OTEL_SERVICE_NAME", "relay")]).unwrap().is_none());
    assert!(read(&[ENDPOINT]).unwrap().is_some());
    assert!(read(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4318/v1/traces")]).unwrap().is_some());
}

#[test]
fn the_standard_switches_turn_it_off() {
    assert!(read(&[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")]).unwrap().is_none());
    assert!(read(&[ENDPOINT, ("OTEL_SDK_DISABLED", "false")]).unwrap().is_some());
    assert!(read(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]).unwrap().is_none());
    assert!(read(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "otlp")]).unwrap().is_some());
}

#[test]
fn what_is_for_traces_comes_first() {
    let settings = read(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://everything:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://user:secret@traces/v1/traces"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2500"),
        ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "ca.pem"),
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "client.pem"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "client.key"),
    ]);
    let settings = settings.unwrap().unwrap();
    assert_eq!(settings.collector, "traces:443", "nothing secret of the URL");
    assert_eq!(settings.timeout, Duration::from_millis(2_500));
    assert_eq!(settings.trust.ca_file, Some("ca.pem".into()));
    assert!(settings.trust.system_roots && settings.identity.is_some());
    let plain = read(&[ENDPOINT]).unwrap().unwrap();
    assert_eq!((plain.timeout, plain.trust.system_roots), (TIMEOUT, false));
}

#[test]
fn what_cannot_work_is_said_without_the_value_of_the_url() {
    let error = |variables: &[(&str, &str)]| match read(variables) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{variables:?}"),
    };
    let no_url = "OTEL_EXPORTER_OTLP_ENDPOINT is no http or https URL";
    assert_eq!(error(&[(OTEL_EXPORTER_OTLP_ENDPOINT, "user:secret@collector:4317")]), no_url);
    assert_eq!(error(&[(OTEL_EXPORTER_OTLP_ENDPOINT, "grpc://u:secret@collector")]), no_url);
    assert_eq!(error(&[(OTEL_EXPORTER_OTLP_ENDPOINT, "http://u:se cret@collector")]), no_url);
    let grpc = error(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]);
    assert!(grpc.contains("OTEL_EXPORTER_OTLP_PROTOCOL is \"grpc\"") && grpc.contains("4318"), "{grpc}");
    let alone = error(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "client.key")]);
    assert!(alone.contains("belong together"), "{alone}");
}

#[test]
fn a_span_id_is_never_the_invalid_one() {
    assert!((0..1_000).all(|_| new_id() != SpanId::INVALID));
}
