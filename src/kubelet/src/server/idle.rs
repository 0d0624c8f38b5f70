//! A byte stream that notices when nothing travels on it any more.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// Remembers when bytes last travelled.
#[derive(Clone)]
pub struct Activity(Arc<Mutex<Instant>>);

/// A byte stream whose traffic is noted.
pub struct Noted<IO> {
    io: IO,
    activity: Activity,
}

/// Notes the traffic of a byte stream.
pub fn note<IO>(io: IO) -> (Noted<IO>, Activity) {
    let activity = Activity(Arc::new(Mutex::new(Instant::now())));
    (
        Noted {
            io,
            activity: activity.clone(),
        },
        activity,
    )
}

impl Activity {
    fn touch(&self) {
        *self.0.lock() = Instant::now();
    }

    /// Ends when nothing travelled for so long.
    pub async fn idle_for(&self, limit: Duration) {
        loop {
            let due = *self.0.lock() + limit;
            if due <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Noted<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if polled.is_ready() {
            self.activity.touch();
        }
        polled
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Noted<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        if polled.is_ready() {
            self.activity.touch();
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn traffic_either_way_puts_the_end_off() {
        let (near, mut far) = tokio::io::duplex(64);
        let (mut near, activity) = note(near);
        let began = Instant::now();
        let idle = tokio::spawn(async move { activity.idle_for(Duration::from_secs(10)).await });
        tokio::time::sleep(Duration::from_secs(9)).await;
        near.write_all(b"x").await.unwrap();
        tokio::time::sleep(Duration::from_secs(9)).await;
        far.write_all(b"y").await.unwrap();
        near.read_u8().await.unwrap();
        assert!(!idle.is_finished());
        idle.await.unwrap();
        assert_eq!(began.elapsed(), Duration::from_secs(28));
    }
}
