//! The slot, as the database sees it.

use secrecy::ExposeSecret;
use tokio::time::timeout;

use super::{Never, STATEMENT_TIMEOUT, SampleError, Sampler, ticks};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::postgres::sql::{Sql, SqlError};
use crate::postgres::url::Target;
use crate::status::{Holder, SlotState, Status};

/// A restart LSN that is further behind the confirmed one than this is held back by somebody: without open transactions it
/// follows within a running-transactions record (15 s) and a WAL segment of the default size.
const HELD_BACK_BYTES: i64 = 16 * 1024 * 1024;

/// Samples the slot every five seconds until it is dropped.
pub async fn sample_slot(config: &Config, metrics: &Metrics, status: &Status) {
    let mut sampler = Sampler::new("slot", metrics);
    let mut spilled = None;
    loop {
        let error = match watch_slot(config, metrics, status, &mut spilled, &mut sampler).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        sampler.failed(&error).await;
    }
}

async fn watch_slot(
    config: &Config,
    metrics: &Metrics,
    status: &Status,
    spilled: &mut Option<i64>,
    sampler: &mut Sampler<'_>,
) -> Result<Never, SampleError> {
    let url = config.database_url.read()?;
    let target = Target::parse(url.expose_secret(), config.require_tls)?;
    let sql = Sql::connect(&target, "postrider lag", STATEMENT_TIMEOUT).await?;
    let mut ticks = ticks();
    loop {
        ticks.tick().await;
        let found = timeout(STATEMENT_TIMEOUT, slot_state(&sql, &config.slot)).await;
        let found = found.map_err(|_| SampleError::Silence)??;
        export(metrics, found.as_ref(), spilled);
        status.update(|snapshot| snapshot.slot_state = found);
        sampler.succeeded();
    }
}

/// `None`: there is no such slot.
async fn slot_state(sql: &Sql, slot: &str) -> Result<Option<SlotState>, SqlError> {
    let row = sql.client().query_opt(include_str!("../../sql/queries/slot_sample.sql"), &[&slot]).await?;
    let Some(row) = row else { return Ok(None) };
    let mut state = SlotState {
        active: row.try_get("active")?,
        confirmed_lag_bytes: row.try_get("confirmed_lag_bytes")?,
        retained_bytes: row.try_get("retained_bytes")?,
        safe_wal_bytes: row.try_get("safe_wal_bytes")?,
        wal_status: row.try_get("wal_status")?,
        catalog_xmin_age: row.try_get("catalog_xmin_age")?,
        spill_bytes: row.try_get("spill_bytes")?,
        restart_held_by: Vec::new(),
    };
    if held_back(&state) {
        for row in sql.client().query(include_str!("../../sql/queries/slot_blockers.sql"), &[]).await? {
            state.restart_held_by.push(Holder {
                pid: row.try_get("pid")?,
                xid: row.try_get("xid")?,
                description: row.try_get("blocker")?,
            });
        }
    }
    Ok(Some(state))
}

fn held_back(state: &SlotState) -> bool {
    match (state.retained_bytes, state.confirmed_lag_bytes) {
        (Some(retained), Some(unconfirmed)) => retained.saturating_sub(unconfirmed) > HELD_BACK_BYTES,
        _ => false,
    }
}

/// What the server does not know is no series, never 0. `spilled` is what its counter said last.
fn export(metrics: &Metrics, state: Option<&SlotState>, spilled: &mut Option<i64>) {
    for (gauge, value) in [
        (&metrics.slot_confirmed_lag_bytes, state.and_then(|state| state.confirmed_lag_bytes)),
        (&metrics.slot_retained_bytes, state.and_then(|state| state.retained_bytes)),
        (&metrics.slot_safe_wal_bytes, state.and_then(|state| state.safe_wal_bytes)),
        (&metrics.slot_catalog_xmin_age, state.and_then(|state| state.catalog_xmin_age)),
        (&metrics.slot_active, state.map(|state| i64::from(state.active))),
    ] {
        match value {
            Some(value) => gauge.get().set(value),
            None => gauge.clear(),
        }
    }
    match state.and_then(|state| state.wal_status.as_deref()) {
        Some(status) => metrics.set_slot_wal_status(status),
        None => metrics.clear_slot_wal_status(),
    }
    let now = state.and_then(|state| state.spill_bytes);
    if let Some(now) = now {
        // The server's counter begins again when its statistics are reset.
        let more = spilled.map_or(0, |before| if now >= before { now - before } else { now });
        metrics.slot_spill_bytes.inc_by(u64::try_from(more).unwrap_or_default());
    }
    *spilled = now.or(*spilled);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> SlotState {
        SlotState {
            active: true,
            confirmed_lag_bytes: Some(100),
            retained_bytes: Some(200),
            safe_wal_bytes: Some(300),
            wal_status: Some("reserved".to_owned()),
            catalog_xmin_age: Some(7),
            spill_bytes: Some(1_000),
            restart_held_by: Vec::new(),
        }
    }

    #[test]
    fn what_the_server_does_not_know_is_no_series() {
        let metrics = Metrics::new("postrider", &[]).unwrap();
        let gauges = |metrics: &Metrics| {
            let text = metrics.render().unwrap();
            let of_the_slot = |line: &&str| line.starts_with("postrider_slot_") && !line.contains("_total");
            text.lines().filter(of_the_slot).map(str::to_owned).collect::<Vec<_>>().join("\n")
        };
        export(&metrics, Some(&state()), &mut None);
        let text = gauges(&metrics);
        assert!(text.contains("postrider_slot_safe_wal_bytes{slot=\"postrider\"} 300\n"), "{text}");
        assert!(text.contains("postrider_slot_catalog_xmin_age{slot=\"postrider\"} 7\n"), "{text}");
        assert!(text.contains("postrider_slot_wal_status{status=\"reserved\",slot=\"postrider\"} 1"), "{text}");
        export(&metrics, Some(&SlotState { safe_wal_bytes: None, ..state() }), &mut None);
        let text = gauges(&metrics);
        assert!(!text.contains("postrider_slot_safe_wal_bytes") && text.contains("postrider_slot_retained_bytes"));
        export(&metrics, None, &mut None);
        assert_eq!(gauges(&metrics), "", "there is no slot: nothing is said of it");
    }

    #[test]
    fn what_was_spilled_is_counted_from_the_first_look_on_and_through_resets() {
        let metrics = Metrics::new("postrider", &[]).unwrap();
        let mut spilled = None;
        let mut total = |bytes| {
            export(&metrics, Some(&SlotState { spill_bytes: bytes, ..state() }), &mut spilled);
            metrics.slot_spill_bytes.get()
        };
        assert_eq!(total(Some(1_000)), 0, "what was before is not ours to count");
        assert_eq!(total(Some(1_500)), 500);
        assert_eq!(total(None), 500);
        assert_eq!(total(Some(1_700)), 700);
        assert_eq!(total(Some(100)), 800, "the statistics were reset");
    }

    #[test]
    fn holders_are_looked_for_when_the_restart_lsn_is_far_behind_the_confirmed_one() {
        let behind = |unconfirmed, retained| {
            held_back(&SlotState { confirmed_lag_bytes: unconfirmed, retained_bytes: retained, ..state() })
        };
        assert!(behind(Some(0), Some(HELD_BACK_BYTES + 1)));
        assert!(!behind(Some(0), Some(HELD_BACK_BYTES)));
        assert!(!behind(Some(HELD_BACK_BYTES), Some(HELD_BACK_BYTES + 1)), "the relay itself is behind");
        assert!(!behind(None, None));
    }
}
