//! Exponential back-off with jitter.

use std::time::Duration;

use rand::Rng;

/// Delays that double from an initial value up to a maximum, each spread by
/// up to a fifth so that many clients do not return at the same instant.
#[derive(Debug, Clone)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `initial` and never exceeds `max` (before jitter).
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self {
            initial,
            max,
            next: initial,
        }
    }

    /// The delay to wait before the next try.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Duration {
        let base = self.next;
        self.next = (base * 2).min(self.max);
        base + base.mul_f64(rand::rng().random_range(0.0..0.2))
    }

    /// Forgets earlier failures: call it after a success.
    pub fn reset(&mut self) {
        self.next = self.initial;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_maximum_and_resets() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(350));
        for want in [100, 200, 350, 350] {
            let got = backoff.next();
            assert!(
                got >= ms(want) && got <= ms(want).mul_f64(1.2),
                "{got:?} for {want} ms"
            );
        }
        backoff.reset();
        assert!(backoff.next() <= ms(120));
    }
}
