use super::*;
use crate::recorder::OutcomeClass;
use crate::telemetry::tests::{endpoint, serve};
use metrics::{Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, KeyName, Recorder};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a series was told, by its name and labels.
type Told = Arc<Mutex<BTreeMap<String, Vec<f64>>>>;

/// A recorder that remembers.
#[derive(Debug, Default)]
struct Memory(Told);

#[derive(Debug)]
struct Series(String, Told);

impl Series {
    fn tell(&self, value: f64, n: usize) {
        let mut told = self.1.lock().unwrap();
        let values = told.entry(self.0.clone()).or_default();
        values.extend(std::iter::repeat_n(value, n));
    }
}

impl CounterFn for Series {
    fn increment(&self, _: u64) {
        panic!("counts are absolute")
    }
    fn absolute(&self, value: u64) {
        self.tell(value as f64, 1);
    }
}

impl GaugeFn for Series {
    fn increment(&self, _: f64) {}
    fn decrement(&self, _: f64) {}
    fn set(&self, value: f64) {
        self.tell(value, 1);
    }
}

impl HistogramFn for Series {
    fn record(&self, value: f64) {
        self.tell(value, 1);
    }
    fn record_many(&self, value: f64, n: usize) {
        self.tell(value, n);
    }
}

impl Memory {
    fn series(&self, key: &Key) -> Arc<Series> {
        let labels = key.labels().map(|l| format!("{}={}", l.key(), l.value()));
        let name = format!("{} {}", key.name(), labels.collect::<Vec<_>>().join(" "));
        Arc::new(Series(name, Arc::clone(&self.0)))
    }
}

impl Recorder for Memory {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.series(key))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.series(key))
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.series(key))
    }
}

#[tokio::test]
async fn the_facade_gets_each_value_once() {
    let memory = Memory::default();
    let endpoint = endpoint().await;
    let mut exporter = MetricsExporter::new(&endpoint).provider("vllm");
    serve(&endpoint, 3, Duration::from_secs(2), OutcomeClass::Ok);
    metrics::with_local_recorder(&memory, || exporter.record()).unwrap();
    metrics::with_local_recorder(&memory, || exporter.record()).unwrap();
    serve(&endpoint, 2, Duration::from_secs(2), OutcomeClass::Ok);
    serve(&endpoint, 1, Duration::from_secs(8), OutcomeClass::Timeout);
    metrics::with_local_recorder(&memory, || exporter.record()).unwrap();
    let told = memory.0.lock().unwrap();
    let of = |name: &str, with: &str| {
        let mut found = told
            .iter()
            .filter(|(key, _)| key.starts_with(name) && key.contains(with));
        found.next().map(|(_, values)| values.clone()).unwrap()
    };
    let durations = of(
        "gen_ai.server.request.duration",
        "gen_ai.provider.name=vllm",
    );
    let seconds: Vec<_> = durations.iter().map(|v| v.round()).collect();
    assert_eq!(seconds, [2.0, 2.0, 2.0, 2.0, 2.0, 8.0]);
    assert_eq!(
        of("gen_ai.client.token.usage", "gen_ai.token.type=output"),
        [33.0, 33.0, 66.0]
    );
    assert_eq!(of("llm.rollout.requests", "outcome=ok"), [3.0, 3.0, 5.0]);
    assert_eq!(
        of("llm.rollout.requests", "outcome=timeout"),
        [0.0, 0.0, 1.0]
    );
}
