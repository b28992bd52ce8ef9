//! How the metrics are made and registered.

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Buckets from a millisecond to six hours: the usual ones end at 10 s, and every incident lies beyond.
const DELAY_BUCKETS: [f64; 18] = [
    0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0, 1800.0, 7200.0, 21600.0,
];

/// A gauge that is exported from its first sample on: a 0 before that would be a lie.
#[derive(Clone)]
pub struct Sampled<G: Collector + Clone + 'static> {
    gauge: G,
    registry: Registry,
}

impl<G: Collector + Clone + 'static> Sampled<G> {
    /// The gauge, exported from now on.
    pub fn get(&self) -> &G {
        // A second registration is refused by the registry, which is what "already exported" means here.
        self.registry.register(Box::new(self.gauge.clone())).ok();
        &self.gauge
    }

    /// Takes the series away: the value does not exist (a NULL in PostgreSQL).
    pub fn clear(&self) {
        self.registry.unregister(Box::new(self.gauge.clone())).ok();
    }
}

pub(super) fn gauge(name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
    Gauge::with_opts(Opts::new(name, help))
}

pub(super) fn int_gauge(name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    IntGauge::with_opts(Opts::new(name, help))
}

/// Makes metrics and registers them.
pub(super) struct Table<'a> {
    pub(super) registry: &'a Registry,
}

impl Table<'_> {
    pub(super) fn add<C: Collector + Clone + 'static>(&self, collector: C) -> Result<C, prometheus::Error> {
        self.registry.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    pub(super) fn sampled<G: Collector + Clone + 'static>(&self, gauge: G) -> Sampled<G> {
        Sampled { gauge, registry: self.registry.clone() }
    }

    pub(super) fn int_gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.add(int_gauge(name, help)?)
    }

    pub(super) fn int_gauge_vec(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, prometheus::Error> {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    pub(super) fn gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, prometheus::Error> {
        self.add(GaugeVec::new(Opts::new(name, help), labels)?)
    }

    pub(super) fn int_counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.add(IntCounter::with_opts(Opts::new(name, help))?)
    }

    pub(super) fn int_counter_vec(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    pub(super) fn histogram(&self, name: &str, help: &str) -> Result<Histogram, prometheus::Error> {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(DELAY_BUCKETS.to_vec()))?)
    }
}
