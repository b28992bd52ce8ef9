//! The program as it is called: exit codes, signals, the admin listener.

use std::io::Read;
use std::net::TcpListener;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(30);
/// Servers that nobody has, so that nothing but the program itself is looked at.
const NOWHERE: [(&str, &str); 2] =
    [("DATABASE_URL", "postgres://app@127.0.0.1:1/shop"), ("AMQP_URL", "amqp://guest:guest@127.0.0.1:1")];

fn postrider(arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
    command.args(arguments).env_clear().envs(variables.iter().copied()).stdin(Stdio::null());
    command
}

fn output(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = postrider(arguments, variables).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// A relay that is killed if the test ends before it does.
struct Relay(Child);

impl Relay {
    fn start(admin: &str) -> Relay {
        let variables = [NOWHERE.as_slice(), &[("POSTRIDER_ADMIN_LISTEN", admin)]].concat();
        let child = postrider(&["run"], &variables).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        Relay(child.unwrap())
    }

    fn signal(&self, name: &str) {
        let killed = Command::new("kill").args([&format!("-{name}"), &self.0.id().to_string()]).status().unwrap();
        assert!(killed.success());
    }

    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the relay does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&mut self) -> String {
        let mut text = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn wait_until_live(address: &str) {
    let deadline = Instant::now() + DEADLINE;
    let variables = [("POSTRIDER_ADMIN_LISTEN", address)];
    // Not its exit code, which tells how the relay is.
    while output(&["status"], &variables).1.is_empty() {
        assert!(Instant::now() < deadline, "the relay does not answer at {address}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn wrong_configuration_is_exit_code_64_and_every_error_a_line() {
    let (code, stdout, stderr) = output(&["run"], &[("POSTRIDER_SLOT", "No"), ("POSTRIDER_SLOTT", "x")]);
    assert_eq!((code, stdout.as_str()), (Some(64), ""));
    let keys: Vec<_> = stderr.lines().map(|line| line.split([' ', ':']).next().unwrap()).collect();
    assert_eq!(keys, ["database_url", "amqp_url", "slot", "POSTRIDER_SLOTT"], "{stderr}");
    assert_eq!(output(&["fly"], &[]).0, Some(2), "a wrong command line");
}

#[test]
fn a_relay_without_its_servers_lives_is_not_ready_and_ends_by_a_signal() {
    for signal in ["TERM", "INT"] {
        let address = free_address();
        let mut relay = Relay::start(&address);
        wait_until_live(&address);
        let (code, stdout, _) = output(&["status", "--ready"], &[("POSTRIDER_ADMIN_LISTEN", &address)]);
        assert!(code == Some(1) && stdout.starts_with("not ready: "), "{stdout}");
        relay.signal(signal);
        assert_eq!(relay.end().code(), Some(0), "{}", relay.log());
        let log = relay.log();
        assert!(log.lines().all(|line| line.starts_with('{')), "JSON where there is no terminal: {log}");
        assert!(log.contains("postrider starts") && !log.contains("guest:guest"), "{log}");
    }
}

#[test]
fn an_admin_address_in_use_is_an_error_that_names_the_setting() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut relay = Relay::start(&taken.local_addr().unwrap().to_string());
    assert_eq!(relay.end().code(), Some(1));
    assert!(relay.log().contains("POSTRIDER_ADMIN_LISTEN"));
}

#[test]
fn check_fails_with_a_line_for_each_server_that_is_not_there() {
    let (code, stdout, _) = output(&["check"], &NOWHERE);
    assert_eq!(code, Some(1));
    assert_eq!(stdout.lines().filter(|line| line.starts_with("fail")).count(), 2, "{stdout}");
    let (code, stdout, _) = output(&["check", "--json"], &NOWHERE);
    let findings: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert!(code == Some(1) && findings.as_array().unwrap().len() > 3, "{stdout}");
}

#[test]
fn migrations_are_printed_without_a_server() {
    let (code, stdout, _) = output(&["migrate", "--print"], &[]);
    assert!(code == Some(0) && stdout.contains("create schema postrider"));
    let (code, stdout, _) = output(&["migrate", "--print-roles"], &[("POSTRIDER_PUBLICATION", "other")]);
    assert!(code == Some(0) && stdout.contains("create role"));
    let (code, _, stderr) = output(&["migrate"], &[]);
    assert!(code == Some(64) && stderr.starts_with("database_url: not set") && stderr.lines().count() == 1, "{stderr}");
}
