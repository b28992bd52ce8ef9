//! Rows of the outbox, and the ways to write them.

use std::fmt::Write as _;
use std::pin::pin;

use bytes::Bytes;
use futures_util::SinkExt;
use rand::Rng;
use rand::rngs::StdRng;
use tokio_postgres::Transaction;

use super::SECRET;
use crate::evidence::hash;

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub id: String,
    pub key: String,
    pub seq: i64,
    pub kind: String,
    /// Exactly as jsonb prints it, so that its hash is that of what arrives.
    pub payload: String,
}

impl Row {
    pub(crate) fn new(rng: &mut StdRng, key: String, seq: i64) -> Self {
        // One in a thousand is large.
        let pad =
            if rng.random_ratio(1, 1_000) { rng.random_range(50_000..1_500_000) } else { rng.random_range(0..600) };
        Row::sized(rng, key, seq, pad)
    }

    /// With a payload of about `pad` bytes.
    pub(crate) fn sized(rng: &mut StdRng, key: String, seq: i64, pad: usize) -> Self {
        let id = rng.random::<u128>();
        let id = format!("{id:032x}");
        let id = format!("{}-{}-{}-{}-{}", &id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]);
        let payload = format!(r#"{{"k": "{key}", "n": {seq}, "pad": "{}", "card": "{SECRET}"}}"#, "x".repeat(pad));
        let kind = format!("Changed{}", rng.random_range(0..8));
        Row { id, key, seq, kind, payload }
    }

    fn hash(&self) -> String {
        hash(self.payload.as_bytes())
    }
}

const OUTBOX: &str = "insert into outbox (id, aggregatetype, aggregateid, type, payload, sequence)
    select id::uuid, 'account', key, kind, payload::jsonb, seq
    from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::int8[]) with ordinality as row (id, key, kind, payload, seq, place)
    order by place";
const AUDIT: &str = "insert into audit (id, key, seq, hash)
    select id::uuid, key, seq, hash
    from unnest($1::text[], $2::text[], $3::int8[], $4::text[]) with ordinality as row (id, key, seq, hash, place)
    order by place";

/// One statement for all of them.
pub(crate) async fn insert(transaction: &Transaction<'_>, rows: &[Row]) -> Result<(), tokio_postgres::Error> {
    let text = |of: fn(&Row) -> &String| rows.iter().map(of).collect::<Vec<_>>();
    let (ids, keys) = (text(|row| &row.id), text(|row| &row.key));
    let (kinds, payloads) = (text(|row| &row.kind), text(|row| &row.payload));
    let seqs: Vec<i64> = rows.iter().map(|row| row.seq).collect();
    let hashes: Vec<String> = rows.iter().map(Row::hash).collect();
    transaction.execute(OUTBOX, &[&ids, &keys, &kinds, &payloads, &seqs]).await?;
    transaction.execute(AUDIT, &[&ids, &keys, &seqs, &hashes]).await?;
    Ok(())
}

pub(crate) async fn copy(transaction: &Transaction<'_>, rows: &[Row]) -> Result<(), tokio_postgres::Error> {
    let (mut outbox, mut audit) = (String::new(), String::new());
    for row in rows {
        let Row { id, key, seq, kind, payload } = row;
        // Nothing in them needs COPY's escapes.
        writeln!(outbox, "{id}\taccount\t{key}\t{kind}\t{payload}\t{seq}").ok();
        writeln!(audit, "{id}\t{key}\t{seq}\t{}", row.hash()).ok();
    }
    let into = "copy outbox (id, aggregatetype, aggregateid, type, payload, sequence) from stdin";
    send(transaction, into, outbox).await?;
    send(transaction, "copy audit (id, key, seq, hash) from stdin", audit).await
}

async fn send(transaction: &Transaction<'_>, statement: &str, text: String) -> Result<(), tokio_postgres::Error> {
    let mut sink = pin!(transaction.copy_in::<_, Bytes>(statement).await?);
    sink.send(Bytes::from(text)).await?;
    sink.finish().await.map(drop)
}
