//! Requests, sent until they are answered.

use super::EndpointOptions;
use crate::random::SplitMix64;
use crate::{Error, Result};
use serde_json::Value;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use ureq::Agent;
use ureq::http::{Response, StatusCode};

/// Most bytes of an answer: 16,384 positions of 1,000 tokens.
const MAX_BODY: u64 = 1 << 30;
/// Longest wait of our own choice between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Longest wait that a server may ask for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(600);
/// Characters of a server's words that are shown.
const SHOWN: usize = 400;

/// A failed attempt.
pub(super) struct Failure {
    pub error: Error,
    /// Whether another attempt may succeed.
    pub again: bool,
    /// What the server asked to wait.
    pub after: Option<Duration>,
}

impl Failure {
    /// One that another attempt does not mend.
    pub fn lasting(error: Error) -> Failure {
        Failure { error, again: false, after: None }
    }

    /// One that another attempt may mend.
    pub fn passing(error: Error) -> Failure {
        Failure { error, again: true, after: None }
    }
}

/// One server, as all threads ask it.
pub(super) struct Client {
    agent: Agent,
    base: String,
    authorization: Option<String>,
    retries: u32,
    backoff: Duration,
    jitter: Mutex<SplitMix64>,
    /// Set to end every wait.
    pub stop: Arc<AtomicBool>,
}

impl Client {
    pub fn new(options: &EndpointOptions) -> Result<Client> {
        let base = options.url.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base);
        let host = base.strip_prefix("http://").or_else(|| base.strip_prefix("https://"));
        let Some(host) = host.filter(|host| !host.is_empty()) else {
            let complaint =
                Error::at("capture").field("`endpoint`").expected("an address such as http://localhost:8000");
            return complaint.found(&options.url).err();
        };
        let mut config = Agent::config_builder()
            .timeout_global(Some(options.timeout))
            .http_status_as_error(false)
            .max_idle_connections_per_host(options.concurrency)
            .max_idle_connections(options.concurrency)
            .user_agent(concat!("potstill/", env!("CARGO_PKG_VERSION")));
        // What runs on this machine is not asked for through a proxy.
        let name = host.split(['/', ':']).next().unwrap_or_default();
        let loopback = name.parse().is_ok_and(|ip: Ipv4Addr| ip.is_loopback());
        if loopback || name == "localhost" || host.starts_with("[::1]") {
            config = config.proxy(None);
        }
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        Ok(Client {
            agent: config.build().new_agent(),
            base: base.to_string(),
            authorization: options.api_key.as_ref().map(|key| format!("Bearer {}", key.0)),
            retries: options.retries,
            backoff: options.backoff,
            jitter: Mutex::new(SplitMix64::new(seed)),
            stop: Arc::default(),
        })
    }

    /// Sends `body` (or only asks, without one) until `read` makes something of the answer or there is no point in
    /// trying again. `place` says what the request is for, in every message.
    pub fn ask<T>(
        &self,
        path: &str,
        body: Option<&Value>,
        place: &str,
        read: impl Fn(&Value) -> Result<T, Failure>,
    ) -> Result<T> {
        let mut attempt = 0;
        loop {
            let failure = match self.once(path, body, place).and_then(|answer| read(&answer)) {
                Ok(result) => return Ok(result),
                Err(failure) => failure,
            };
            if !failure.again || attempt == self.retries {
                return Err(failure.error);
            }
            let wait = self.wait(attempt, failure.after);
            log::debug!("{}; attempt {} in {:.1} s", failure.error, attempt + 2, wait.as_secs_f64());
            self.sleep(wait)?;
            attempt += 1;
        }
    }

    /// The wait after attempt number `attempt`, from 0: what the server asked for, or ever longer; never the same for
    /// all threads.
    fn wait(&self, attempt: u32, after: Option<Duration>) -> Duration {
        let uniform = self.jitter.lock().unwrap_or_else(PoisonError::into_inner).uniform();
        match after {
            Some(after) => after.saturating_add(self.backoff.mul_f64(uniform)),
            None => {
                let longest = self.backoff.saturating_mul(1u32.checked_shl(attempt).unwrap_or(u32::MAX));
                longest.min(LONGEST_WAIT).mul_f64(0.5 + 0.5 * uniform)
            }
        }
    }

    fn sleep(&self, wait: Duration) -> Result<()> {
        let end = Instant::now() + wait;
        while !self.stop.load(Ordering::Relaxed) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(Duration::from_millis(50)));
        }
        Err(Error::Cancelled)
    }

    fn once(&self, path: &str, body: Option<&Value>, place: &str) -> Result<Value, Failure> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Failure::lasting(Error::Cancelled));
        }
        let url = format!("{}{path}", self.base);
        let complaint = || Error::at(place).field(&url);
        let text = body.map(Value::to_string);
        let sent = match (&text, &self.authorization) {
            (Some(text), Some(key)) => self.agent.post(&url).header("authorization", key).content_type(JSON).send(text),
            (Some(text), None) => self.agent.post(&url).content_type(JSON).send(text),
            (None, Some(key)) => self.agent.get(&url).header("authorization", key).call(),
            (None, None) => self.agent.get(&url).call(),
        };
        let mut response = sent.map_err(|error| self.broken(error, place, &url))?;
        let status = response.status();
        let after = retry_after(&response);
        let bytes = response.body_mut().with_config().limit(MAX_BODY).read_to_vec();
        let bytes = bytes.map_err(|error| self.broken(error, place, &url));
        if !status.is_success() {
            let words = bytes.map(|bytes| words(&bytes)).unwrap_or_default();
            return Err(self.refused(status, after, &words, place, &url));
        }
        serde_json::from_slice(&bytes?).map_err(|error| {
            let complaint = complaint().expected("an answer in JSON").found(error);
            Failure::passing(complaint.help("the same command goes on where it stopped").error())
        })
    }

    /// A connection that failed.
    fn broken(&self, error: ureq::Error, place: &str, url: &str) -> Failure {
        let again = matches!(
            error,
            ureq::Error::Io(_)
                | ureq::Error::Timeout(_)
                | ureq::Error::ConnectionFailed
                | ureq::Error::Protocol(_)
                | ureq::Error::BodyStalled
                | ureq::Error::Decompress(..)
        );
        let help = match error {
            ureq::Error::HostNotFound => "check the address",
            _ => "check that the server runs; the same command goes on where it stopped",
        };
        let found = self.without_key(&error.to_string());
        Failure {
            error: Error::at(place).field(url).expected("an answer").found(found).help(help).error(),
            again,
            after: None,
        }
    }

    /// A status other than 2xx.
    fn refused(&self, status: StatusCode, after: Option<Duration>, words: &str, place: &str, url: &str) -> Failure {
        let code = status.as_u16();
        let patience = after.is_none_or(|after| after <= LONGEST_RETRY_AFTER);
        let again = (code == 429 || code == 408 || (code >= 500 && code != 501)) && patience;
        let about_k = words.contains("logprobs");
        let help = match code {
            401 | 403 => "name the variable that holds the key with --api-key-env",
            404 | 405 => "check the address, the model's name and the dialect",
            _ if again => "the same command goes on where it stopped",
            _ if !patience => {
                "the server asks for a long wait: run the same command later, it goes on where it stopped"
            }
            _ if about_k => {
                "start the server so that it shows as many (vLLM: --max-logprobs), or capture with a smaller --top-k"
            }
            _ => "see the server's words",
        };
        let mut found = format!("status {status}");
        if !words.is_empty() {
            found.push_str(&format!(", {:?}", self.without_key(words)));
        }
        if let Some(after) = after {
            found.push_str(&format!(", and to wait {} s", after.as_secs()));
        }
        Failure {
            error: Error::at(place).field(url).expected("an answer").found(found).help(help).error(),
            again,
            after,
        }
    }

    /// Words from elsewhere may repeat what was sent.
    fn without_key(&self, words: &str) -> String {
        match self.authorization.as_deref().and_then(|key| key.strip_prefix("Bearer ")) {
            Some(key) if !key.is_empty() => words.replace(key, "(the key)"),
            _ => words.to_string(),
        }
    }
}

const JSON: &str = "application/json";

/// What the server says of an error: the message of its JSON, else its text, at most [`SHOWN`] characters.
fn words(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let json: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let fields = ["/error/message", "/message", "/detail", "/error"];
    let message = fields.iter().find_map(|field| json.pointer(field).filter(|value| !value.is_null()));
    let message = match message {
        Some(Value::String(message)) => message.clone(),
        Some(other) => other.to_string(),
        None => text.trim().to_string(),
    };
    message.chars().take(SHOWN).collect()
}

/// `Retry-After`, in seconds or as a date.
fn retry_after<T>(response: &Response<T>) -> Option<Duration> {
    let text = response.headers().get("retry-after")?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some(Duration::from_secs(http_date(text)?).saturating_sub(now))
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`, the form of dates that HTTP prescribes.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let mut words = text.split_once(", ")?.1.strip_suffix(" GMT")?.split(' ');
    let day: u64 = words.next()?.parse().ok()?;
    let month = MONTHS.find(words.next()?).filter(|at| at.is_multiple_of(3))? as u64 / 3;
    let year: u64 = words.next()?.parse().ok()?;
    let clock: Vec<u64> = words.next()?.split(':').map(str::parse).collect::<Result<_, _>>().ok()?;
    let &[hour, minute, second] = &clock[..] else { return None };
    if !(1970..10_000).contains(&year) || !(1..32).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Years that begin in March: the leap day is a year's last.
    let (year, month) = if month < 2 { (year - 1, month + 10) } else { (year, month - 2) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    Some((days - 719_468) * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_http_are_understood() {
        // date -u -d '...' +%s
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date("Thu, 29 Feb 2024 23:59:59 GMT"), Some(1_709_251_199));
        for wrong in
            ["", "soon", "Sun, 06 Nov 94 08:49:37 GMT", "Sun, 06 ovD 1994 08:49:37 GMT", "Sun, 06 Nov 1994 8 GMT"]
        {
            assert_eq!(http_date(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn waits_grow_and_obey_the_server() {
        let options =
            EndpointOptions { backoff: Duration::from_secs(1), ..EndpointOptions::new("http://localhost:1/v1/", "m") };
        let client = Client::new(&options).unwrap();
        assert_eq!(client.base, "http://localhost:1");
        let within = |wait: Duration, least: f64, most: f64| (least..=most).contains(&wait.as_secs_f64());
        for _ in 0..50 {
            assert!(within(client.wait(0, None), 0.5, 1.0) && within(client.wait(3, None), 4.0, 8.0));
            assert!(within(client.wait(40, None), 30.0, 60.0));
            assert!(within(client.wait(0, Some(Duration::from_secs(7))), 7.0, 8.0));
        }
        assert!(Client::new(&EndpointOptions::new("localhost:8000", "m")).is_err());
    }
}
