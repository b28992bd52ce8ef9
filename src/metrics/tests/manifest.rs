//! The shape of `deploy/kubernetes.yaml`: what must hold so that nothing is killed or waits for itself.

use std::time::Duration;

use serde_json::{Value, json};

use crate::config::Config;

fn documents() -> Vec<Value> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/kubernetes.yaml")).unwrap();
    serde_saphyr::from_multiple(&text).unwrap()
}

fn document(kind: &str) -> Value {
    documents().into_iter().find(|document| document["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

fn pod() -> Value {
    document("Deployment")["spec"]["template"]["spec"].clone()
}

/// Of the relay and of `migrate`.
fn pods() -> [Value; 2] {
    [pod(), document("Job")["spec"]["template"]["spec"].clone()]
}

#[test]
fn there_are_two_replicas_and_a_rollout_waits_for_neither_to_carry() {
    let deployment = document("Deployment");
    assert_eq!(deployment["spec"]["replicas"], 2);
    // The new one is ready as a standby, then an old one goes.
    let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
    assert_eq!(deployment["spec"]["strategy"], rolling);
    let budget = document("PodDisruptionBudget");
    assert_eq!(budget["spec"]["maxUnavailable"], 1);
    assert_eq!(budget["spec"]["selector"], deployment["spec"]["selector"]);
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    let selected = deployment["spec"]["selector"]["matchLabels"].as_object().unwrap();
    assert!(selected.iter().all(|(name, value)| labels[name] == *value));
    let affinity = &pod()["affinity"]["podAntiAffinity"];
    assert!(affinity["requiredDuringSchedulingIgnoredDuringExecution"].is_null(), "a cluster of one node must do");
    assert_eq!(affinity["preferredDuringSchedulingIgnoredDuringExecution"].as_array().unwrap().len(), 1);
}

#[test]
fn only_a_dead_event_loop_is_killed_and_it_has_time_to_drain() {
    let container = &pod()["containers"][0];
    let path = |probe: &str| container[probe]["httpGet"]["path"].clone();
    assert_eq!([path("startupProbe"), path("livenessProbe"), path("readinessProbe")], ["/live", "/live", "/ready"]);
    let port = &container["ports"][0];
    assert_eq!((&port["name"], &port["containerPort"]), (&json!("admin"), &json!(9750)));
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(container[probe]["httpGet"]["port"], "admin");
    }
    let grace = Duration::from_secs(pod()["terminationGracePeriodSeconds"].as_u64().unwrap());
    // A relay ends at most five seconds after its drain.
    assert!(grace >= configuration().limits.drain_timeout + Duration::from_secs(10), "{grace:?}");
}

#[test]
fn secrets_come_as_files_and_never_as_variables() {
    for container in pods().map(|pod| pod["containers"][0].clone()) {
        for variable in container["env"].as_array().unwrap() {
            let name = variable["name"].as_str().unwrap();
            let expected = match name {
                "DATABASE_URL_FILE" => "/run/secrets/postrider/database_url",
                "AMQP_URL_FILE" => "/run/secrets/postrider/amqp_url",
                "POSTRIDER_MANAGEMENT_URL_FILE" => "/run/secrets/postrider/management_url",
                "POSTRIDER_CONFIG" => "/etc/postrider/postrider.toml",
                "POSTRIDER_ADMIN_LISTEN" => "0.0.0.0:9750",
                _ => panic!("{name}: {variable}"),
            };
            assert_eq!(variable["value"], expected);
        }
        assert!(container["envFrom"].is_null());
    }
    let secret = document("Secret");
    let names: Vec<_> = secret["stringData"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["amqp_url", "database_url", "management_url"]);
    let mounted = pods().map(|pod| pod["volumes"][0]["secret"]["secretName"].clone());
    assert_eq!(mounted, ["postrider", "postrider-owner"], "the owner's password is not beside the relay");
}

#[test]
fn it_runs_without_root_and_without_a_file_system_to_write_to() {
    let dockerfile = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Dockerfile")).unwrap();
    for pod in pods() {
        let security = &pod["securityContext"];
        assert_eq!(security["runAsNonRoot"], true);
        assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert!(dockerfile.contains(&format!("\nUSER {0}:{0}\n", security["runAsUser"])));
        let container = &pod["containers"][0];
        let expected = json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        });
        assert_eq!(container["securityContext"], expected);
        for kind in ["requests", "limits"] {
            assert!(container["resources"][kind]["memory"].is_string(), "{kind}");
        }
    }
}

#[test]
fn prometheus_finds_every_replica() {
    let annotations = document("Deployment")["spec"]["template"]["metadata"]["annotations"].clone();
    let expected =
        json!({"prometheus.io/scrape": "true", "prometheus.io/port": "9750", "prometheus.io/path": "/metrics"});
    assert_eq!(annotations, expected);
    let service = document("Service");
    assert_eq!(service["spec"]["clusterIP"], "None");
    assert_eq!(service["spec"]["publishNotReadyAddresses"], true, "a halted relay must be seen");
    assert_eq!(service["spec"]["selector"], document("Deployment")["spec"]["selector"]["matchLabels"]);
}

/// The ConfigMap's file, as the relay reads it.
fn configuration() -> Config {
    let text = document("ConfigMap")["data"]["postrider.toml"].as_str().unwrap().to_owned();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("postrider.toml");
    std::fs::write(&path, text).unwrap();
    let env = [("DATABASE_URL", "postgres://postrider@localhost/shop"), ("AMQP_URL", "amqp://localhost")];
    Config::load(Some(&path), env.map(|(name, value)| (name.to_owned(), value.to_owned()))).unwrap()
}
