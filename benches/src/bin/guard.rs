//! Does one piece of the request path many times, for a tool that counts instructions: `guard WHAT N`.

use benches::layer::{observe, reply};
use benches::recording::{record, record_local, samples};
use benches::{Error, data};
use llm_serve_adapters::recorder::Recorder;
use llm_serve_adapters::router::Key;
use std::hint::black_box;

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let (Some(what), Some(times)) = (arguments.next(), arguments.next()) else {
        return Err("usage: guard decide|record|record-local|event|reply|bare-reply N".into());
    };
    let times: usize = times.parse()?;
    match what.as_str() {
        "decide" => {
            let (router, keys) = (data::router(5.0)?, data::keys());
            let now = router.now();
            for key in keys.iter().cycle().take(times) {
                black_box(&router.decide(&Key::session(black_box(key)), now));
            }
        }
        "record" => {
            let (recorder, samples) = (Recorder::new(["bad_format"])?, samples(5.0)?);
            for sample in samples.iter().cycle().take(times) {
                record(&recorder, black_box(sample));
            }
        }
        "record-local" => {
            let (recorder, samples) = (Recorder::new(["bad_format"])?, samples(5.0)?);
            let local = recorder.local();
            for sample in samples.iter().cycle().take(times) {
                record_local(&local, black_box(sample));
            }
        }
        "event" => observe(times)?,
        "reply" => reply(true, times)?,
        "bare-reply" => reply(false, times)?,
        other => return Err(format!("cannot do {other:?}: see the usage").into()),
    }
    Ok(())
}
