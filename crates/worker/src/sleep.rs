//! Did this machine sleep? The clock that cannot be set stands still while it does, the calendar goes on.
//!
//! The driver looks at every heartbeat and when a session registers. Always true: only a difference that no setting of a
//! clock makes in passing counts, and only for as long as it explains a lost connection.
//! Deliberately not here: what the hub makes of it (its core).

use crate::limits::SLEEP_RECENT;
use essaim_core::limits::SLEPT_MS;
use std::time::{Duration, Instant, SystemTime};

/// What the two clocks said when they were last looked at.
#[derive(Debug)]
pub(crate) struct SleepMeter {
    looked: (Instant, SystemTime),
    slept: Option<(Instant, Duration)>,
}

impl Default for SleepMeter {
    fn default() -> SleepMeter {
        SleepMeter { looked: (Instant::now(), SystemTime::now()), slept: None }
    }
}

impl SleepMeter {
    /// Compares the clocks with those of the last look.
    pub(crate) fn look(&mut self) {
        self.look_at(Instant::now(), SystemTime::now());
    }

    /// For how long the machine slept just now, in milliseconds; 0 when it did not.
    pub(crate) fn slept_ms(&mut self) -> u64 {
        self.look();
        self.slept.map_or(0, |(_, slept)| slept.as_millis() as u64)
    }

    fn look_at(&mut self, now: Instant, calendar: SystemTime) {
        let awake = now.saturating_duration_since(self.looked.0);
        // A calendar that was set back says nothing.
        let passed = calendar.duration_since(self.looked.1).unwrap_or_default();
        self.looked = (now, calendar);
        if let Some(asleep) = passed.checked_sub(awake).filter(|asleep| asleep.as_millis() as u64 >= SLEPT_MS) {
            self.slept = Some((now, asleep));
        }
        self.slept = self.slept.filter(|(woke, _)| now.saturating_duration_since(*woke) < SLEEP_RECENT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // We want to know that sleep is noticed, remembered for a while, and not confused with a clock that is set back or
    // drifts. The clocks are made up.
    #[test]
    fn sleep_is_noticed_and_forgotten() {
        let mut meter = SleepMeter::default();
        let (mut now, mut calendar) = meter.looked;
        let mut pass = |meter: &mut SleepMeter, awake: u64, passed: i64| {
            now += Duration::from_secs(awake);
            let part = Duration::from_secs(passed.unsigned_abs());
            calendar = if passed < 0 { calendar - part } else { calendar + part };
            meter.look_at(now, calendar);
            meter.slept.map_or(0, |(_, slept)| slept.as_secs())
        };
        assert_eq!(pass(&mut meter, 5, 5), 0);
        assert_eq!(pass(&mut meter, 5, -3_600), 0);
        assert_eq!(pass(&mut meter, 5, 7), 0);
        assert_eq!(pass(&mut meter, 5, 3_605), 3_600);
        assert_eq!(pass(&mut meter, 60, 60), 3_600);
        assert_eq!(pass(&mut meter, SLEEP_RECENT.as_secs(), SLEEP_RECENT.as_secs() as i64), 0);
    }
}
